"""The rows of a comparison's tables: each method's figures on a task, and over all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from ksel import statistics as st
from ksel.compare_curves import (
    BUDGETS,
    Curve,
    Reached,
    Target,
    area,
    common_start,
    curves_of,
    joined,
    score_at,
    targets,
    when_reached,
)
from ksel.compare_files import METHOD, Results

LEAST_TEACHER = 0.05
"""A teacher's score nearer to zero is no unit to measure others in."""


@dataclass(frozen=True)
class Versus:
    """A method against a reference, on the seeds that both have.

    Attributes:
        against: the reference.
        seeds: pairs, of all tasks together.
        tasks: tasks they are of.
        difference: mean over tasks of mean differences; above zero = better, whatever the metric.
        interval, by_t: of it.
        improvement: probability that the method is better on the same seed, and its interval.
        as_good: tasks on which the mean difference is not below zero.
        p: of the permutation test; nan where none was made.
        holm: the same, corrected for the methods of the table.
        area, area_interval, area_by_t: difference of the areas under the curve, and its intervals.
        alike: the scores of each pair are the same.
    """

    against: str
    seeds: int
    tasks: int
    difference: float
    interval: st.Interval
    by_t: st.Interval
    improvement: float
    improvement_interval: st.Interval
    as_good: int
    p: float
    holm: float
    area: float
    area_interval: st.Interval
    area_by_t: st.Interval
    alike: bool = False


@dataclass(frozen=True)
class Row:
    """A method's figures.

    Attributes:
        method, role: its name, and ``method`` or ``baseline``.
        seeds, failed: finished students, and cells that gave none.
        tasks: tasks with a finished student.
        mean, interval: of the score, and 95 % of where it may lie.
        iqm, iqm_interval: of the interquartile mean.
        versus: against each reference but itself.
        cost, examples: medians; examples by part.
        updates, updates_search, seconds: medians.
        area: mean area under the curve.
        at: mean score at each of :data:`BUDGETS`.
        reached: one for each target of the table.
    """

    method: str
    role: str
    seeds: int
    failed: int
    tasks: int
    mean: float
    interval: st.Interval
    iqm: float
    iqm_interval: st.Interval
    versus: tuple[Versus, ...]
    cost: float
    examples: Mapping[str, float]
    updates: float
    updates_search: float
    seconds: float
    area: float
    at: tuple[float, ...]
    reached: tuple[Reached | None, ...]

    def against(self, name: str) -> Versus | None:
        """The comparison with this reference, if there is one."""
        return next((one for one in self.versus if one.against == name), None)


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        task: of one task, or None = over all tasks.
        tasks: what it is over.
        metric: what scores are; over tasks, shares of the teacher's score.
        higher: a higher score is better.
        teacher: the teacher's score, or nan.
        rows: the best first.
        targets: the scores to reach.
        notes: what the reader must know.
        start: share of the budget from which on areas are taken; nan over tasks, each has its own.
    """

    task: str | None
    tasks: tuple[str, ...]
    metric: str
    higher: bool
    teacher: float
    rows: tuple[Row, ...]
    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()
    start: float = float("nan")

    def row(self, method: str) -> Row | None:
        """The row of a method, if it has one."""
        return next((row for row in self.rows if row.method == method), None)


@dataclass
class TaskScores:
    """The finished students of one task.

    Attributes:
        task, metric, higher, teacher: as in :class:`Table`.
        cells: method -> its finished cells, indexed by seed.
        curves: method -> seed -> curve, of the same students.
    """

    task: str
    metric: str
    higher: bool
    teacher: float
    cells: dict[str, pd.DataFrame]
    curves: dict[str, dict[int, Curve]] = field(default_factory=dict)

    def scores(self, method: str) -> pd.Series:
        """Final scores by seed."""
        cells = self.cells.get(method)
        return cells["score"] if cells is not None else pd.Series(dtype=float)

    def areas(self, method: str) -> pd.Series:
        """Areas under the curve by seed, of the finished students, from :attr:`start` on."""
        found = self.curves.get(method, {})
        areas = {seed: area(curve, self.start) for seed, curve in found.items()}
        return pd.Series(areas, dtype=float)

    @property
    def start(self) -> float:
        """Share of the budget from which on all students of the task were measured."""
        return common_start(one for found in self.curves.values() for one in found.values())

    def ends(self, method: str) -> list[float]:
        """Last values of the curves: on their dev rows; the final scores of a method without curves."""
        curves = [one for one in self.curves.get(method, {}).values() if len(one.values) > 1]
        if not curves:
            return self.scores(method).tolist()
        return [float(one.values[-1]) for one in curves]

    @property
    def unit(self) -> float:
        """What one point of the metric is in shares of the teacher's score; nan without one."""
        if not np.isfinite(self.teacher) or self.teacher < LEAST_TEACHER:
            return float("nan")
        return 1.0 / self.teacher

    def normalised(self, scores: pd.Series) -> pd.Series:
        """1 = the teacher's score, 1.01 = better than it by a hundredth of it."""
        sign = 1.0 if self.higher else -1.0
        return 1.0 + sign * (scores - self.teacher) * self.unit


def task_scores(results: Results) -> list[TaskScores]:
    """The finished students, task by task; a task without any has no entry."""
    found = []
    usable = results.usable
    for task in results.tasks:
        group = usable[usable["task"] == task]
        if not len(group):
            continue
        methods = {
            method: group[group["method"] == method].set_index("seed", drop=False).sort_index()
            for method in results.methods
            if (group["method"] == method).any()
        }
        curves = {
            method: {
                seed: curve
                for seed, curve in curves_of(results.curves, task, method).items()
                if seed in own.index
            }
            for method, own in methods.items()
        }
        first = group.iloc[0]
        teacher = st.mean(group["teacher_score"].to_numpy(float))
        higher = bool(first["higher_is_better"])
        found.append(TaskScores(task, str(first["metric"]), higher, teacher, methods, curves))
    return found


# --------------------------------------------------------------------------- against a reference


def differences(scores: TaskScores, method: str, against: str, *, areas: bool = False) -> pd.Series:
    """Method minus reference by seed, for the seeds that both have; above zero = better."""
    of = scores.areas if areas else scores.scores
    left, right = of(method), of(against)
    seeds = left.index.intersection(right.index)
    return (left[seeds] - right[seeds]) * (1.0 if scores.higher else -1.0)


def versus(
    tasks: Sequence[TaskScores], method: str, against: str, *, normalised: bool
) -> Versus | None:
    """A method against a reference; None if no task has a seed of both.

    Args:
        tasks: one, or several that have a unit.
        method, against: names.
        normalised: in shares of the teacher's score.
    """
    groups, areas, raw = [], [], []
    for one in tasks:
        pairs = differences(one, method, against).to_numpy()
        if not len(pairs):
            continue
        unit = one.unit if normalised else 1.0
        raw.append(pairs)
        groups.append(pairs * unit)
        areas.append(differences(one, method, against, areas=True).to_numpy() * unit)
    if not groups:
        return None
    value, interval = st.improvement(np.concatenate(raw))
    return Versus(
        against,
        sum(map(len, groups)),
        len(groups),
        st.mean_of_means(groups),
        st.stratified_interval(groups),
        st.t_interval(groups),
        value,
        interval,
        sum(st.mean(group) >= 0 for group in groups),
        st.sign_flip_test(groups).p,
        float("nan"),
        st.mean_of_means(areas),
        st.stratified_interval(areas),
        st.t_interval(areas),
        alike=not np.concatenate(raw).any(),
    )


def corrected(rows: Sequence[Row], references: Sequence[str]) -> list[Row]:
    """The rows with Holm's correction over the methods, for each reference a family of its own.

    Baselines stand there to be compared with; they are not claims, and are not tested. Where there
    are only baselines, all are.
    """
    claims = [row for row in rows if row.role == METHOD] or list(rows)
    found: dict[tuple[str, str], float] = {}
    for name in references:
        family = [(row.method, row.against(name)) for row in claims]
        tested = [(method, one.p) for method, one in family if one is not None]
        corrected_ps = st.holm([p for _, p in tested])
        found |= {(method, name): p for (method, _), p in zip(tested, corrected_ps, strict=True)}

    def with_p(row: Row) -> Row:
        pairs = (
            replace(one, holm=found[row.method, one.against])
            if (row.method, one.against) in found
            else replace(one, p=float("nan"))
            for one in row.versus
        )
        return replace(row, versus=tuple(pairs))

    return [with_p(row) for row in rows]


# --------------------------------------------------------------------------- rows


def task_table(scores: TaskScores, results: Results, references: Sequence[str]) -> Table:
    """The table of one task."""
    ends = {method: scores.ends(method) for method in scores.cells}
    goals = targets(ends, scores.teacher, higher=scores.higher)
    rows = [_task_row(scores, results, method, references, goals) for method in scores.cells]
    rows = corrected(rows, references)
    rows.sort(key=lambda row: -row.mean if scores.higher else row.mean)
    return Table(
        scores.task,
        (scores.task,),
        scores.metric,
        scores.higher,
        scores.teacher,
        tuple(rows),
        goals,
        start=scores.start,
    )


def _task_row(
    scores: TaskScores,
    results: Results,
    method: str,
    references: Sequence[str],
    goals: Sequence[Target],
) -> Row:
    cells, curves = scores.cells[method], scores.curves[method]
    values = scores.scores(method).to_numpy()
    against = [versus([scores], method, r, normalised=False) for r in references if r != method]
    return Row(
        method,
        str(cells["role"].iloc[0]),
        len(values),
        _failed(results, method, [scores.task]),
        1,
        st.mean(values),
        st.bootstrap_interval(values),
        st.interquartile_mean(values),
        st.bootstrap_interval(values, iqm=True),
        tuple(one for one in against if one is not None),
        **_medians([cells]),
        area=st.mean(scores.areas(method).to_numpy()),
        at=tuple(
            st.mean([score_at(curve, s) for curve in curves.values() if len(curve.values) > 1])
            for s in BUDGETS
        ),
        reached=tuple(
            when_reached(curves, cells, goal.value, higher=scores.higher) for goal in goals
        ),
    )


def over_table(
    tasks: Sequence[TaskScores],
    tables: Sequence[Table],
    results: Results,
    references: Sequence[str],
) -> Table:
    """The table over tasks, in shares of the teacher's score; every task counts the same.

    Args:
        tasks: those with a unit (:attr:`TaskScores.unit`), two at least.
        tables: their own tables.
        results: the comparison.
        references: what methods are compared with.
    """
    methods = [m for m in results.methods if any(m in one.cells for one in tasks)]
    rows = [_over_row(tasks, tables, results, method, references) for method in methods]
    rows = corrected(rows, references)
    whole = len(tasks)
    rows.sort(key=lambda row: (row.tasks < whole, -row.mean))
    names = tuple(one.task for one in tasks)
    goals = [Target(goal.name, None) for goal in tables[0].targets]
    return Table(None, names, "share of the teacher's score", True, 1.0, tuple(rows), tuple(goals))


def _over_row(
    tasks: Sequence[TaskScores],
    tables: Sequence[Table],
    results: Results,
    method: str,
    references: Sequence[str],
) -> Row:
    having = [one for one in tasks if method in one.cells]
    own = [row for table in tables if (row := table.row(method)) is not None]
    groups = [one.normalised(one.scores(method)).to_numpy() for one in having]
    areas = [st.mean(one.normalised(one.areas(method)).to_numpy()) for one in having]
    against = [versus(tasks, method, r, normalised=True) for r in references if r != method]

    def at(place: int) -> float:
        values = pd.Series([row.at[place] for row in own])
        pairs = zip(having, values, strict=True)
        return float(np.mean([one.normalised(pd.Series([v])).iloc[0] for one, v in pairs]))

    return Row(
        method,
        own[0].role,
        sum(map(len, groups)),
        _failed(results, method, [one.task for one in tasks]),
        len(having),
        st.mean_of_means(groups),
        st.stratified_interval(groups),
        st.interquartile_mean(np.concatenate(groups)),
        st.stratified_interval(groups, iqm=True),
        tuple(one for one in against if one is not None),
        **_medians([one.cells[method] for one in having]),
        area=float(np.mean(areas)),
        at=tuple(at(place) for place in range(len(BUDGETS))),
        reached=tuple(
            joined([row.reached[place] for row in own]) for place in range(len(own[0].reached))
        ),
    )


def _failed(results: Results, method: str, tasks: Sequence[str]) -> int:
    failed = results.failed
    return int(((failed["method"] == method) & failed["task"].isin(list(tasks))).sum())


def _medians(groups: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Medians of what students cost: over the seeds of a task, then their mean over the tasks."""

    def of(name: str) -> float:
        parts = [st.finite(group[name].to_numpy(float)) for group in groups]
        return st.mean([float(np.median(part)) for part in parts if len(part)])

    names = ("student_forwards", "student_backwards", "teacher_forwards")
    return {
        "cost": of("cost"),
        "examples": {name: of(name) for name in names},
        "updates": of("updates"),
        "updates_search": of("updates_search"),
        "seconds": of("seconds_total"),
    }
