"""How fast students learned: area under the dev curve, and when a target score was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ksel.statistics import mean

OF_STATIC, OF_TEACHER = 0.95, 0.90
"""Shares of the best static result and of the teacher's score that are targets."""
BUDGETS = (0.10, 0.25, 0.50)
"""Shares of the budget at which the curve is read."""
STATIC = ("best_static", "all")
"""Whose final score counts as the best static result: the first that was run."""


@dataclass(frozen=True)
class Target:
    """A score to reach.

    Attributes:
        name: in words.
        value: the score; None where there is none.
        note: why there is none, else empty.
    """

    name: str
    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Reached:
    """When the students of a method reached a target.

    Attributes:
        reached, seeds: how many of how many.
        updates: median of the final student's updates; inf where half or more did not reach it.
        share: the same as a share of the budget.
        seconds: median of the seconds, the search's included, the final student's in proportion.
        shares: of each student.
    """

    reached: int
    seeds: int
    updates: float
    share: float
    seconds: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One student's dev metric on the way.

    Attributes:
        updates: [P] at which it was measured, increasing.
        shares: [P] of the budget.
        values: [P].
    """

    updates: np.ndarray
    shares: np.ndarray
    values: np.ndarray


def curves_of(frame: pd.DataFrame, task: str, method: str) -> dict[int, Curve]:
    """Seed -> its curve; what is not a number is left out."""
    rows = frame[(frame["task"] == task) & (frame["method"] == method)]
    found = {}
    for seed, group in rows.groupby("seed"):
        group = group[np.isfinite(group["value"])].sort_values("update")
        columns = (group[name].to_numpy(float) for name in ("update", "share", "value"))
        found[int(str(seed))] = Curve(*columns)
    return found


def area(curve: Curve) -> float:
    """Area under the curve over the share of the budget it spans: the mean score on the way.

    By the trapezoid rule; nan for fewer than two measurements.
    """
    span = curve.shares[-1] - curve.shares[0] if len(curve.shares) > 1 else 0.0
    if span <= 0:
        return float("nan")
    return float(np.trapezoid(curve.values, curve.shares) / span)


def score_at(curve: Curve, share: float) -> float:
    """The last value measured by this share of the budget; nan before the first."""
    before = np.flatnonzero(curve.shares <= share + 1e-9)
    return float(curve.values[before[-1]]) if len(before) else float("nan")


def first_at(curve: Curve, target: float, *, higher: bool) -> tuple[float, float]:
    """Update and share of the first measurement that is at the target; inf if none is."""
    reached = curve.values >= target if higher else curve.values <= target
    places = np.flatnonzero(reached)
    if not len(places):
        return float("inf"), float("inf")
    return float(curve.updates[places[0]]), float(curve.shares[places[0]])


def targets(
    scores: Mapping[str, Sequence[float]], teacher: float, *, higher: bool
) -> tuple[Target, Target]:
    """The two scores to reach on a task.

    Args:
        scores: method -> final scores.
        teacher: the teacher's score, or nan.
        higher: a higher score is better; if not, a share s of a score x is x / s.
    """
    static = next((name for name in STATIC if len(scores.get(name, ()))), None)
    name = f"{OF_STATIC:.0%} of {static or STATIC[0]}"
    if static is None:
        first = Target(name, None, f"no target '{name}': neither {' nor '.join(STATIC)} has run")
    else:
        first = _share_of(name, mean(scores[static]), OF_STATIC, higher)
    return first, _share_of(f"{OF_TEACHER:.0%} of the teacher", teacher, OF_TEACHER, higher)


def _share_of(name: str, score: float, share: float, higher: bool) -> Target:
    if not np.isfinite(score):
        return Target(name, None, f"no target '{name}': that score is not known")
    if score <= 0:
        return Target(name, None, f"no target '{name}': {score:.3f} is not above zero")
    return Target(name, score * share if higher else score / share)


def when_reached(
    curves: Mapping[int, Curve], cells: pd.DataFrame, target: float | None, *, higher: bool
) -> Reached | None:
    """When the students of a method reached a target; None without target or curves.

    A student that never did is counted (as later than all others), not left out.

    Args:
        curves: seed -> curve.
        cells: the finished cells of these students.
        target: the score.
        higher: a higher score is better.
    """
    if target is None:
        return None
    found = []
    for cell in cells.itertuples():
        curve = curves.get(int(str(cell.seed)))
        if curve is None or len(curve.values) < 2:
            continue
        update, share = first_at(curve, target, higher=higher)
        search = float(str(cell.seconds_search))
        search = search if np.isfinite(search) else 0.0
        done = share / float(curve.shares[-1])  # of a student that ended early, all that it had
        found.append((update, share, search + done * float(str(cell.seconds_final))))
    if not found:
        return None
    updates, shares, seconds = (np.array(column) for column in zip(*found, strict=True))
    count = int(np.isfinite(updates).sum())
    update, share, second = (float(np.median(values)) for values in (updates, shares, seconds))
    return Reached(count, len(found), update, share, second, tuple(map(float, shares)))


def joined(parts: Sequence[Reached | None]) -> Reached | None:
    """One figure over tasks: how many reached it, and the median share of the budget."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    nan = float("nan")
    shares = tuple(share for part in known for share in part.shares)
    count = sum(part.reached for part in known)
    return Reached(count, len(shares), nan, float(np.median(shares)), nan, shares)
