"""Branches: the student is forked, each fork holds one mask on the same batches, all are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from envs.distillation import DistillationEnv


@dataclass(frozen=True)
class Step:
    """One decision of a branch.

    Attributes:
        action: [K] as carried out.
        before: the ``training`` vector that it was taken at.
        reward, terminated, info: as of :meth:`DistillationEnv.step`.
    """

    action: np.ndarray
    before: np.ndarray
    reward: float
    terminated: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class Branched:
    """What came of a fork; the student goes on from the branch that was chosen.

    Attributes:
        drops: [N] true drop of the objective over each branch; nan where it diverged.
        advantages: [N] drops minus their mean, over their deviation; a diverged branch has the least.
        chosen: number of the branch with the largest drop.
        steps: its decisions.
        observation: after it.
        terminated: True if the episode is over.
        info: of its last decision.
    """

    drops: np.ndarray
    advantages: np.ndarray
    chosen: int
    steps: list[Step]
    observation: dict[str, np.ndarray]
    terminated: bool
    info: dict[str, Any]

    @property
    def decisions(self) -> int:
        """Decisions that the episode has gone on by."""
        return len(self.steps)


def hold(env: DistillationEnv, action: Any, updates: int, *, resting: bool = False) -> list[Step]:
    """Decisions with one action for this many updates; fewer where stage or episode ends.

    Args:
        env: in an episode.
        action: as of :meth:`DistillationEnv.step`.
        updates: optimiser updates; at least one decision is taken.
        resting: measure none of the decisions but the last.
    """
    end = min(env.distiller.cursor + updates, env.distiller.place.end)
    steps: list[Step] = []
    while not steps or (env.distiller.cursor < end and not steps[-1].terminated):
        before, mask = env.training_features(), env.as_mask(action)
        last = env.distiller.cursor + env.settings.phase_steps >= end
        with env.rest(resting and not last):
            _, reward, terminated, _, info = env.step(mask)
        steps.append(Step(mask, before, reward, terminated, info))
    return steps


def fork(env: DistillationEnv, masks: np.ndarray, updates: int) -> Branched:
    """Hold each mask for ``updates`` updates from where the student is, and keep the best branch.

    Args:
        env: in an episode that is measured.
        masks: [N, K], N >= 1.
        updates: optimiser updates of a branch; it ends with its stage and with the episode.
    """
    objective = env.objective_now()
    start = env.get_snapshot()
    best: tuple[int, Any, list[Step]] | None = None
    drops = np.full(len(masks), math.nan)
    windows: dict[int, tuple[float, float]] = {}
    try:
        for number, mask in enumerate(masks):
            if number:
                env.set_snapshot(start)
            steps = env.hold_branch(mask, updates)
            if "reason" not in steps[-1].info:
                drops[number] = objective - steps[-1].info["objective"]
                windows[number] = env.last_window()
            if best is None or drops[number] > drops[best[0]] or np.isnan(drops[best[0]]):
                best = (number, env.get_snapshot(None if best is None else best[1]), steps)
    except BaseException:
        env.set_snapshot(start)  # Ctrl-C: no branch was chosen, so none counts
        raise
    assert best is not None
    chosen, end, steps = best
    observation = env.set_snapshot(end)
    windows.pop(chosen, None)  # it is known already
    last = steps[-1]
    judged = env.judge_windows(list(windows.values()))  # the best alone would look too good
    last.info.update(judged)
    return Branched(drops, relative(drops), chosen, steps, observation, last.terminated, last.info)


def relative(drops: np.ndarray) -> np.ndarray:
    """Group-relative advantages of drops [N]; all 0 where none differs.

    A branch that diverged (nan) counts as worse than the worst by as much as the known ones lie apart
    (at least by the size of the largest).
    """
    known = np.isfinite(drops)
    if not known.any():
        return np.zeros(len(drops))
    worst = drops[known].min() - max(np.ptp(drops[known]), np.abs(drops[known]).max(), 1e-8)
    filled = np.where(known, drops, worst)
    spread = filled.std()
    if spread < 1e-12:
        return np.zeros(len(drops))
    return (filled - filled.mean()) / spread
