"""best_static: the best fixed mask, found on the reward split by successive halving, then held.

The baseline that a learned policy has to beat: it may search as long as the others, but its policy is
one mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.logger import Logger

from agents.fixed import mask_vector
from agents.halving import (
    NAME,
    Mask,
    Play,
    best_mask,
    budget_of,
    candidate_masks,
    rank,
    search_plan,
)
from agents.keeping import resumed_logger
from agents.policy import (
    HEADER,
    Choice,
    Keep,
    Observation,
    OnStep,
    damaged,
    write_header,
)
from agents.ranges import refuse_below
from agents.stable_baselines import start_logger
from ksel.config import BestStaticConfig, RunConfig
from ksel.errors import UsageError
from ksel.packing import State

REMEDY = "raise --episodes.count, or lower --best_static.least"
"""What makes room for more masks."""
SEEDS = 13
"""Marks the random numbers of this agent's masks and batches."""


def check_best_static(config: RunConfig) -> None:
    """Refuse values that cannot work, and settings that this search does not use.

    Raises:
        UsageError: names the option.
    """
    settings = config.best_static
    refuse_below("--best_static.candidates", settings.candidates, 2)
    refuse_below("--best_static.eta", settings.eta, 2)
    refuse_below("--best_static.least", settings.least, 1)
    if config.env.observe != RunConfig().env.observe:
        raise UsageError(
            f"--env.observe is not used by --agent {NAME}, which compares drops of the objective and "
            f"looks at nothing else. Leave it out."
        )


# --------------------------------------------------------------------------- frozen


class BestStaticPolicy:
    """The mask that was found. See :class:`agents.policy.Policy`.

    Args:
        mask: names of the types that are on.
        plays: how it was found.
        pool: names of the knowledge types.

    Raises:
        UsageError: a name is not in the pool.
    """

    name = NAME
    soft = False
    learns = True

    def __init__(self, mask: Sequence[str], plays: Sequence[Play], pool: Sequence[str]) -> None:
        self.mask, self.plays, self.pool = tuple(mask), tuple(plays), tuple(pool)
        self.bits = mask_vector(self.mask, self.pool, "the mask of best_static")
        self.begun = False

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; nothing is drawn."""
        self.begun = True

    def act(self, observation: Observation) -> Choice:
        """The mask.

        Raises:
            RuntimeError: ``reset`` was not called.
        """
        if not self.begun:
            raise RuntimeError("call reset(rng) before act()")
        return Choice.certain(self.bits)

    def save(self, folder: Path) -> None:
        """Write ``policy.json``, with the table of the search in it."""
        plays = [asdict(play) for play in self.plays]
        write_header(folder, self, NAME, (), mask=list(self.mask), plays=plays)


def _play_of(record: dict[str, Any]) -> Play:
    return Play(**{**record, "mask": tuple(record["mask"])})


def from_header(header: dict[str, Any], folder: Path) -> BestStaticPolicy:
    """Rebuild the policy from ``policy.json``.

    Raises:
        UsageError: the file does not describe one.
    """
    try:
        if header["agent"] != NAME or header["soft"]:
            raise ValueError("it is no mask of best_static")
        plays = [_play_of(play) for play in header["plays"]]
        return BestStaticPolicy(header["mask"], plays, header["pool"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise damaged(folder / HEADER, f"it does not describe a mask: {error}") from error


# --------------------------------------------------------------------------- the search


class BestStaticAgent:
    """Searches for a mask; see :class:`agents.policy.Learner`.

    Args:
        config: the run; its group ``best_static`` holds the settings.
        pool: names of the knowledge types.

    Raises:
        UsageError: a setting is outside its range or not used by this search.
    """

    name = NAME
    soft = False
    learns = True

    def __init__(self, config: RunConfig, pool: Sequence[str]) -> None:
        self.config, self.pool = config, tuple(pool)
        self.settings: BestStaticConfig = config.best_static
        self.plays: list[Play] = []
        self.keep: Keep | None = None
        self.state: State | None = None
        check_best_static(config)

    @property
    def learned(self) -> bool:
        """True once a mask has been played to its end."""
        return bool(self.plays)

    def learn(
        self,
        env: gym.Env,
        decisions: int,
        *,
        seed: int,
        logger_folder: Path | None = None,
        on_step: OnStep | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Play masks by successive halving, in at most ``decisions`` steps.

        Within a round each mask begins from the same student and has the same batches; each round
        has other batches than the one before. Every play is a whole short training: its length is
        the environment's budget, so that the learning rate falls to 0 and all stages are gone
        through. The score is the drop of ``info["objective"]`` from the reset to the end; nobody
        looks at it in between. Where the environment tells of none, the total reward.

        Args:
            env: a single environment; its ``reset`` takes ``options={"updates": n, "measure":
                "ends"}``, and may leave the second unheeded. Not closed.
            decisions: number of steps at most; a few may be left over.
            seed: of the masks drawn and of the batches.
            logger_folder: where TensorBoard events (search/score, search/rung) go; None = nowhere.
            on_step, progress, stop: as for all learners.

        Returns:
            The number of decisions taken.

        Raises:
            UsageError: the search is too short for two masks.
        """
        rungs = search_plan(self.config, self.pool, decisions)
        rng = np.random.default_rng([seed, SEEDS])
        masks = candidate_masks(self.pool, rungs[0].masks, rng)
        batches = rng.integers(2**31, size=len(rungs))
        player = _Player(env, on_step, progress, stop, partial(self._offer, decisions))
        before = self._restore(player)
        known, self.plays = self.plays, []
        logger = resumed_logger(logger_folder, before) if before else start_logger(logger_folder)
        try:
            for number, (rung, order) in enumerate(zip(rungs, batches, strict=True), 1):
                updates = budget_of(self.config, rung.decisions)
                masks = masks[: rung.masks]
                for mask in masks:
                    if len(self.plays) < len(known):
                        self.plays.append(known[len(self.plays)])
                        continue
                    score = player.play(mask, rung.decisions, updates, int(order))
                    if score is None:
                        return player.taken
                    self._note(mask, number, player.playing.decisions, score)
                    _log(logger, player.taken, number, score)
                    if player.stopped:
                        return player.taken
                scores = [rank(play) for play in self.plays[-len(masks) :]]
                masks = [masks[i] for i in sorted(range(len(masks)), key=lambda i: -scores[i])]
        finally:
            logger.close()
        return player.taken

    def _note(self, mask: Mask, rung: int, decisions: int, score: float) -> None:
        names = tuple(name for name, on in zip(self.pool, mask, strict=True) if on)
        kept = score if math.isfinite(score) else None
        self.plays.append(Play(names, rung, decisions, kept))

    def _offer(self, decisions: int, player: _Player) -> None:
        if self.keep is not None and player.taken < decisions:
            self.keep(
                player.taken,
                lambda: {
                    "taken": player.taken,
                    "plays": [asdict(play) for play in self.plays],
                    "playing": asdict(player.playing),
                },
            )

    def _restore(self, player: _Player) -> int:
        """Go back to the state to go on from, if there is one; the decisions taken by then."""
        self.plays = []
        if self.state is None:
            return 0
        self.plays = [_play_of(play) for play in self.state["plays"]]
        player.taken, player.playing = self.state["taken"], Playing(**self.state["playing"])
        player.resumed = True
        return player.taken

    def frozen(self) -> BestStaticPolicy:
        """The best mask of the last round that was played to its end, even in part.

        Raises:
            RuntimeError: no mask was played to its end.
        """
        if not self.plays:
            raise RuntimeError("call learn() before frozen()")
        return BestStaticPolicy(best_mask(self.plays), self.plays, self.pool)

    def figures(self) -> dict[str, Any]:
        """What was found, for ``summary.json``, and a line about it for people."""
        if not self.plays:
            return {}
        best = best_mask(self.plays)
        tried = sum(play.rung == 1 for play in self.plays)
        wanted = min(self.settings.candidates, 2 ** len(self.pool) - 1)
        less = f" of the {wanted} wanted; the search has no room for more: {REMEDY}"
        less = less if tried < wanted else ""
        lines = [f"{NAME}: {', '.join(best)} is the best of {tried} masks{less}"]
        return {"mask": list(best), "plays": [asdict(play) for play in self.plays], "says": lines}

    def save_extra(self, folder: Path) -> None:
        """Nothing: there is no library behind it."""


@dataclass
class Playing:
    """A play that is not over: decisions taken, total reward, the objective at its start."""

    decisions: int = 0
    total: float = 0.0
    start: float | None = None


@dataclass
class _Player:
    """Plays masks in an environment and counts decisions; see :meth:`BestStaticAgent.learn`."""

    env: gym.Env
    on_step: OnStep | None
    progress: Callable[[int], None] | None
    stop: Callable[[], bool] | None
    offer: Callable[[_Player], None]
    playing: Playing = field(default_factory=Playing)
    taken: int = 0
    stopped: bool = False
    resumed: bool = False

    def play(self, mask: Mask, decisions: int, updates: int, seed: int) -> float | None:
        """Hold a mask for a training of its own and score it; None where it was stopped."""
        if not self.resumed:
            options = {"updates": updates, "measure": "ends"}
            _, info = self.env.reset(seed=seed, options=options)
            self.playing = Playing(start=info.get("objective"))
        self.resumed = False
        now, choice = self.playing, Choice.certain(np.array(mask))
        while True:
            _, reward, terminated, truncated, info = self.env.step(choice.action)
            now.total, now.decisions = now.total + float(reward), now.decisions + 1
            self.taken += 1
            if self.on_step is not None:
                self.on_step(choice.probabilities, choice.log_prob)
            if self.progress is not None:
                self.progress(self.taken)
            self.stopped = self.stop is not None and self.stop()
            if terminated or truncated or now.decisions >= decisions:
                break
            if self.stopped:
                return None
            self.offer(self)
        if "reason" in info:
            return -math.inf
        return now.total if now.start is None else now.start - info["objective"]


def _log(logger: Logger, taken: int, rung: int, score: float) -> None:
    if logger.output_formats:
        logger.record("search/rung", rung)
        logger.record("search/score", score)
        logger.dump(taken)
