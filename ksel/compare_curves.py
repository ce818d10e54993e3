"""How fast students learned: area under the dev curve, and when a target score was reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
        at_most: the median student was at the target when it was measured first, so it may have come
            there before.
    """

    reached: int
    seeds: int
    updates: float
    share: float
    seconds: float
    shares: tuple[float, ...]
    at_most: bool = False


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
    """Seed -> its curve; what is not a number is left out.

    A curve is of the same dev rows from end to end: those of the measurements on the way.
    """
    rows = frame[(frame["task"] == task) & (frame["method"] == method)]
    found = {}
    for seed, group in rows.groupby("seed"):
        group = group[group["rows"] == group["rows"].min()]
        group = group[np.isfinite(group["value"])].sort_values("update")
        columns = (group[name].to_numpy(float) for name in ("update", "share", "value"))
        found[int(str(seed))] = Curve(*columns)
    return found


def common_start(curves: Iterable[Curve]) -> float:
    """Share of the budget from which on all curves are known: the latest of their starts.

    Some begin late: what trains in lanes is not measured before one of them is kept.
    """
    return max((float(one.shares[0]) for one in curves if len(one.shares) > 1), default=0.0)


def area(curve: Curve, start: float = 0.0) -> float:
    """Area under the curve from a share of the budget on, over that span: the mean score on the way.

    By the trapezoid rule; nan for fewer than two measurements, and where it ends before ``start``.
    """
    if len(curve.shares) < 2 or curve.shares[-1] <= start:
        return float("nan")
    start = max(start, float(curve.shares[0]))
    later = curve.shares > start
    shares = np.concatenate([[start], curve.shares[later]])
    first = np.interp(start, curve.shares, curve.values)
    values = np.concatenate([[first], curve.values[later]])
    return float(np.trapezoid(values, shares) / (shares[-1] - start))


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
    found, first = [], []
    for cell in cells.itertuples():
        curve = curves.get(int(str(cell.seed)))
        if curve is None or len(curve.values) < 2:
            continue
        update, share = first_at(curve, target, higher=higher)
        first.append(update == curve.updates[0])
        search = float(str(cell.seconds_search))
        search = search if np.isfinite(search) else 0.0
        done = share / float(curve.shares[-1])  # of a student that ended early, all that it had
        found.append((update, share, search + done * float(str(cell.seconds_final))))
    if not found:
        return None
    updates, shares, seconds = (np.array(column) for column in zip(*found, strict=True))
    count = int(np.isfinite(updates).sum())
    update, share, second = (float(np.median(values)) for values in (updates, shares, seconds))
    at_most = bool(np.any(np.array(first) & (updates <= update)) and np.isfinite(update))
    return Reached(count, len(found), update, share, second, tuple(map(float, shares)), at_most)


def joined(parts: Sequence[Reached | None]) -> Reached | None:
    """One figure over tasks: how many reached it, and the median share of the budget."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    nan = float("nan")
    shares = tuple(share for part in known for share in part.shares)
    count = sum(part.reached for part in known)
    at_most = any(part.at_most for part in known)
    return Reached(count, len(shares), nan, float(np.median(shares)), nan, shares, at_most)
