"""Do schedules agree? Shares by phase of training, and how alike the decisions of several runs are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ksel.trajectory import Schedule, time_means

PHASES = ("early", "middle", "late")
MOST = 400
"""Decisions of a run that chance agreement is worked out from."""


def phase_means(values: np.ndarray) -> np.ndarray:
    """Mean of ``values`` [D, K] in the early, middle and late third of the decisions, [3, K]."""
    return time_means(values, len(PHASES))


def chosen(schedule: Schedule, stage: str, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions and their probabilities [D, K] of an episode; an unknown probability is the action."""
    actions = schedule.actions(stage, episode).astype(np.float64)
    probabilities = schedule.vectors("probabilities", stage, episode).astype(np.float64)
    return actions, np.where(np.isfinite(probabilities), probabilities, actions)


def on_one_clock(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Bring [D_r, K] of several runs to as many rows as the shortest has, by means over equal spans."""
    rows = min(len(one) for one in values)
    return [one if len(one) == rows else time_means(one, rows) for one in values]


def matrix(values: Sequence[np.ndarray], measure: str) -> np.ndarray:
    """Compare each run with each, [R, R].

    Args:
        values: [D, K] of each run, on one clock.
        measure: ``agreement``: 1 - mean distance at the same decision (bits: the share that is equal);
            ``chance``: the same if each run's decisions stood in random order; ``correlation``:
            Pearson's, over all decisions and types; nan where all of one side is one number.
    """
    measures = {"agreement": agreement, "chance": chance, "correlation": correlation}
    return np.array([[measures[measure](a, b) for b in values] for a in values])


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """1 - mean distance of [D, K]; of bits the share of decisions and types that are equal."""
    return 1.0 - float(np.abs(a - b).mean())


def chance(a: np.ndarray, b: np.ndarray) -> float:
    """The :func:`agreement` to expect from how often each type was on alone, whenever that was."""
    a, b = _some(a), _some(b)
    distances = [np.abs(x[:, None] - y[None]).mean() for x, y in zip(a.T, b.T, strict=True)]
    return 1.0 - float(np.mean(distances))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation over all entries; nan where all of one side is one number."""
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-12 else float("nan")


def _some(values: np.ndarray) -> np.ndarray:
    if len(values) <= MOST:
        return values
    return values[np.linspace(0, len(values) - 1, MOST).round().astype(int)]
