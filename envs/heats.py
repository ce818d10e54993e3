"""Heats: lanes of one student, each holding a mask on the same batches; a challenger has to prove itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.branches import Step, hold

if TYPE_CHECKING:
    from envs.distillation import DistillationEnv


@dataclass(frozen=True)
class Heat:
    """What came of a heat; the student goes on from the lane that was chosen.

    Attributes:
        objectives: [N] the objective at the end of each lane; nan where it diverged.
        t: [N] how far each lane is ahead of lane 0: the mean over the rows of the reward split (of
            question answering: its windows) of their difference in the objective, in standard
            errors; 0 for lane 0.
        chosen: number of the lane that was kept.
        steps: its decisions.
        observation: after it.
        terminated: True if the episode is over.
    """

    objectives: np.ndarray
    t: np.ndarray
    chosen: int
    steps: list[Step]
    observation: dict[str, np.ndarray]
    terminated: bool

    @property
    def decisions(self) -> int:
        """Decisions that the episode has gone on by."""
        return len(self.steps)


def run_heat(
    env: DistillationEnv, masks: np.ndarray, updates: int, doubt: float, objective: str
) -> Heat:
    """Hold each mask from where the student is; keep lane 0 unless another is clearly ahead of it.

    Args:
        env: in an episode whose decisions are not measured.
        masks: [N, K], the first one is that of the incumbent.
        updates: optimiser updates of a lane; it ends with its stage and with the episode.
        doubt: standard errors by which a challenger has to be ahead.
        objective: what is compared, see :mod:`ksel.objectives`.
    """
    start = env.get_snapshot()
    spare: Any = None
    kept: tuple[int, Any, list[Step]] | None = None
    rows: list[np.ndarray] = []
    try:
        for number, mask in enumerate(masks):
            if number:
                env.set_snapshot(start)
            steps, losses = _lane(env, mask, updates, objective)
            rows.append(losses)
            best = 0 if kept is None else kept[0]
            if kept is None or _preferred(rows, best, doubt) == number:
                end = env.get_snapshot(spare)
                spare = None if kept is None else kept[1]
                kept = (number, end, steps)
    except BaseException:
        env.set_snapshot(start)  # Ctrl-C: no lane was chosen, so none counts
        raise
    assert kept is not None
    chosen, end, steps = kept
    observation = env.set_snapshot(end)
    objectives = np.array([float(one.mean()) for one in rows])
    t = np.array([ahead(rows[0], one) for one in rows])
    return Heat(objectives, t, chosen, steps, observation, steps[-1].terminated)


def ahead(incumbent: np.ndarray, challenger: np.ndarray) -> float:
    """Paired t of two lanes' losses on the same rows [R]; positive where the challenger's are lower.

    A lane that diverged (nan) is infinitely far behind one that did not.
    """
    if incumbent is challenger:
        return 0.0
    gone = (not np.isfinite(incumbent).all(), not np.isfinite(challenger).all())
    if any(gone):
        return 0.0 if all(gone) else (math.inf if gone[0] else -math.inf)
    if len(incumbent) < 2:
        raise ValueError("one row has no spread to compare with")
    difference = incumbent - challenger
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    mean = float(difference.mean())
    if error == 0.0:
        return 0.0 if mean == 0.0 else math.copysign(math.inf, mean)
    return mean / error


def _preferred(rows: list[np.ndarray], best: int, doubt: float) -> int:
    """The last lane where it is to be kept in the place of ``best``; else ``best``.

    It has to be clearly ahead of lane 0, and ahead of the challenger that is kept so far.
    """
    last = len(rows) - 1
    if not ahead(rows[0], rows[last]) > doubt:
        return best
    return last if best == 0 or ahead(rows[best], rows[last]) > 0 else best


def _lane(
    env: DistillationEnv, mask: np.ndarray, updates: int, objective: str
) -> tuple[list[Step], np.ndarray]:
    """The decisions of a lane, and the objective of each reward row at its end."""
    steps = hold(env, mask, updates)
    if "reason" in steps[-1].info:
        return steps, np.full(1, math.nan)
    return steps, env.objective_rows(objective)
