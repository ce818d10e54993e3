"""Stages of a run: which knowledge types can be selected when, for how long, at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ksel.config import StageConfig
from ksel.errors import UsageError
from ksel.knowledge import KINDS, find_name, kind_of


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        allowed: [K] bool, the knowledge types that can be selected.
        share: share of the step budget.
        learning_rate: peak learning rate.
    """

    allowed: np.ndarray
    share: float
    learning_rate: float


@dataclass(frozen=True)
class Place:
    """Where in its stage an update is.

    Attributes:
        number: number of the stage, from 0.
        start, end: first update of the stage, and the first one after it.
        update: the update, counted over the whole run.
    """

    number: int
    start: int
    end: int
    update: int

    @property
    def done(self) -> int:
        """Updates of the stage before this one."""
        return self.update - self.start

    @property
    def length(self) -> int:
        """Updates of the stage."""
        return self.end - self.start

    @property
    def progress(self) -> float:
        """Share of the stage's updates done, in [0, 1)."""
        return self.done / self.length


def build_stages(
    settings: Sequence[StageConfig], pool: Sequence[str], learning_rate: float
) -> tuple[Stage, ...]:
    """Resolve ``--stages``; without any, one stage in which everything can be selected.

    Args:
        settings: the stages.
        pool: names of the knowledge types.
        learning_rate: peak learning rate where a stage names none.

    Raises:
        UsageError: shares that do not add up, unknown, repeated or unused knowledge types, a
            learning rate that is not positive.
    """
    if not settings:
        return (Stage(np.ones(len(pool), dtype=bool), 1.0, learning_rate),)
    stages = tuple(
        _stage(number, one, pool, learning_rate) for number, one in enumerate(settings, 1)
    )
    total = sum(stage.share for stage in stages)
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise UsageError(
            f"--stages: the shares {', '.join(f'{s.share:g}' for s in stages)} add up to "
            f"{total:g}, not to 1. Each is the stage's part of the step budget."
        )
    unused = [
        name
        for name, used in zip(pool, np.any([s.allowed for s in stages], axis=0), strict=True)
        if not used
    ]
    if unused:
        raise UsageError(
            f"--stages: no stage uses {', '.join(unused)}. Add it to a stage's pool, or take it "
            f"out of --knowledge.pool."
        )
    return stages


def _stage(number: int, settings: StageConfig, pool: Sequence[str], learning_rate: float) -> Stage:
    option = f"--stages: stage {number}"
    if not (0 < settings.share <= 1):
        raise UsageError(f"{option}: share {settings.share:g}; give a number above 0, at most 1.")
    rate = settings.learning_rate
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise UsageError(f"{option}: learning_rate {rate:g}; give a number above 0, or null.")
    allowed = np.zeros(len(pool), dtype=bool)
    for name in settings.pool or pool:
        k = pool.index(_in_pool(name, pool, option))
        if allowed[k]:
            raise UsageError(f"{option}: '{name}' stands twice in its pool. Name it once.")
        allowed[k] = True
    return Stage(allowed, settings.share, learning_rate if rate is None else rate)


def _in_pool(name: str, pool: Sequence[str], option: str) -> str:
    try:
        return find_name(name, pool, option)
    except UsageError:
        if kind_of(name) not in KINDS:
            raise
        raise UsageError(
            f"{option}: '{name}' is not in --knowledge.pool ({', '.join(pool)}). Add it there, or "
            f"leave it out of the stage."
        ) from None


def stage_shares(settings: Sequence[StageConfig]) -> tuple[float, ...]:
    """Each stage's share of the step budget."""
    return tuple(one.share for one in settings) or (1.0,)


def stage_ends(shares: Sequence[float], updates: int) -> tuple[int, ...]:
    """The update after the last one of each stage.

    Args:
        shares: each stage's share of the step budget.
        updates: the step budget.

    Raises:
        UsageError: the budget leaves a stage without an update.
    """
    ends = [round(share * updates) for share in accumulate(shares)]
    ends[-1] = updates
    if any(start >= end for start, end in zip([0, *ends], ends, strict=False)):
        raise UsageError(
            f"--stages: a budget of {updates} updates leaves one of {len(shares)} stages without "
            f"an update. Raise --optim.epochs or --optim.max_updates, or the stage's share."
        )
    return tuple(ends)


def place(ends: Sequence[int], update: int) -> Place:
    """The stage of an update (from 0); past the budget, the end of the last stage."""
    number = min(sum(update >= end for end in ends), len(ends) - 1)
    return Place(number, ends[number - 1] if number else 0, ends[number], update)


def stage_decisions(ends: Sequence[int], phase_steps: int) -> list[int]:
    """Decisions of each stage: one is held for ``phase_steps`` updates, but ends with its stage."""
    starts = (0, *ends)
    return [
        math.ceil((end - start) / phase_steps) for start, end in zip(starts, ends, strict=False)
    ]


def window_count(ends: Sequence[int], phase_steps: int, window: int) -> int:
    """Windows of one episode with amortised rewards: each ends with a decision, the last one with the
    episode, however short it is.

    Args:
        ends: the update after the last one of each stage.
        phase_steps: updates of a decision.
        window: updates of a window at least.
    """
    windows = updates = 0
    for start, end in zip((0, *ends), ends, strict=False):
        for first in range(start, end, phase_steps):
            updates += min(phase_steps, end - first)
            if updates >= window:
                windows, updates = windows + 1, 0
    return windows + (updates > 0)


def decision_count(ends: Sequence[int], phase_steps: int) -> int:
    """Decisions of one episode."""
    return sum(stage_decisions(ends, phase_steps))
