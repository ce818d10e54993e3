"""Successive halving over masks: which are compared, in what rounds, and which of them is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.fixed import LABEL
from agents.racing import Mask, by_family
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.stages import decision_count, stage_ends, stage_shares

NAME = "best_static"


@dataclass(frozen=True)
class Rung:
    """One round of the search.

    Attributes:
        masks: masks that are played.
        decisions: length of each play.
    """

    masks: int
    decisions: int


@dataclass(frozen=True)
class Play:
    """One mask, held for a whole short training from the initial student.

    Attributes:
        mask: the knowledge types that are on.
        rung: its round, from 1.
        decisions: decisions that the play had.
        score: drop of the objective on the reward split from start to end; None where the student
            diverged.
    """

    mask: tuple[str, ...]
    rung: int
    decisions: int
    score: float | None


def candidate_masks(pool: Sequence[str], count: int, rng: np.random.Generator) -> list[Mask]:
    """Different masks to choose from, the most promising kinds first.

    All types; the answers alone, all but a family (as in a race, see
    :mod:`agents.racing`); each type alone, the label with each other type, all but one, then masks
    drawn uniformly from what is left; never the empty one.

    Args:
        pool: names of the knowledge types.
        count: how many; fewer where the pool has no more.
        rng: draws the last ones.

    Returns:
        At most ``count`` tuples of K bits.
    """
    size = len(pool)
    everything = np.ones(size, dtype=int)
    families = [np.flatnonzero(mask).tolist() for mask in by_family(everything, pool)]
    sets = [set(range(size)), *map(set, families), *({k} for k in range(size))]
    if LABEL in pool:
        label = list(pool).index(LABEL)
        sets += [{label, k} for k in range(size) if k != label]
    sets += [set(range(size)) - {k} for k in range(size)]
    masks = [tuple(int(k in chosen) for k in range(size)) for chosen in sets]
    masks = [mask for mask in dict.fromkeys(masks) if any(mask)]
    wanted = min(count, 2**size - 1)
    while len(masks) < wanted:
        drawn = tuple(int(bit) for bit in rng.integers(2, size=size))
        if any(drawn) and drawn not in masks:
            masks.append(drawn)
    return masks[:wanted]


def halving(masks: int, decisions: int, longest: int, eta: int) -> tuple[Rung, ...]:
    """Rounds of successive halving within a budget.

    Karnin, Koren & Somekh (2013), algorithm 1, and Jamieson & Talwalkar (2016): each round has the
    same share of the budget, plays all masks that are left equally long, and keeps the best
    1 / ``eta``. A play is no longer than ``longest``; what that leaves over goes to the rounds
    before, and what does not divide evenly to the last ones.

    Args:
        masks: how many there are, from 2 on.
        decisions: budget of all rounds together.
        longest: decisions of a play at most.
        eta: one in ``eta`` masks goes on, rounded up.

    Returns:
        The rounds; those of a budget too small have plays of 0 decisions.
    """
    sizes = [masks]
    while math.ceil(sizes[-1] / eta) > 1:
        sizes.append(math.ceil(sizes[-1] / eta))
    lengths, left = [0] * len(sizes), decisions
    for rung in reversed(range(len(sizes))):
        lengths[rung] = min(longest, left // ((rung + 1) * sizes[rung]))
        left -= lengths[rung] * sizes[rung]
    for rung in reversed(range(len(sizes))):
        more = min(longest - lengths[rung], left // sizes[rung])
        lengths[rung] += more
        left -= more * sizes[rung]
    return tuple(Rung(*pair) for pair in zip(sizes, lengths, strict=True))


def budget_of(config: RunConfig, decisions: int) -> int:
    """The most updates that fit into so many decisions of a play; 0 where not even one of each stage.

    A decision is held for ``env.phase_steps`` updates, but ends with its stage.
    """
    shares, held = stage_shares(config.stages), config.env.phase_steps
    for updates in range(decisions * held, 0, -1):
        try:
            needed = decision_count(stage_ends(shares, updates), held)
        except UsageError:
            return 0
        if needed <= decisions:
            return updates
    return 0


def search_plan(config: RunConfig, pool: Sequence[str], decisions: int) -> tuple[Rung, ...]:
    """The rounds of a search of ``decisions``, with as many masks as it has room for.

    Raises:
        UsageError: a pool of one type; not even two masks can be played long enough.
    """
    settings = config.best_static
    if len(pool) < 2:
        raise UsageError(
            f"--agent {NAME} compares masks, and --knowledge.pool has one type ({', '.join(pool)}), "
            f"so there is one mask. Add a type, or use --agent static."
        )
    longest = decisions // config.episodes.count
    for masks in range(min(settings.candidates, 2 ** len(pool) - 1), 1, -1):
        rungs = halving(masks, decisions, longest, settings.eta)
        shortest = rungs[0].decisions
        if shortest >= settings.least and budget_of(config, shortest) > 0:
            return rungs
    raise UsageError(
        f"--agent {NAME}: a search of {decisions} decisions is too short to play even two masks for "
        f"--best_static.least {settings.least} decisions each. Raise --episodes.count, "
        f"--episodes.share or the step budget (--optim.max_updates), or lower --best_static.least or "
        f"--env.phase_steps."
    )


def rank(play: Play) -> float:
    """Its score; -inf where the student diverged."""
    return -math.inf if play.score is None else play.score


def best_mask(plays: Sequence[Play]) -> tuple[str, ...]:
    """The mask with the largest score in the last round that has a play; the first of equals."""
    last = max(play.rung for play in plays)
    return max((play for play in plays if play.rung == last), key=rank).mask
