"""A comparison's tables as texts: scores, certainty, speed, cost; and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ksel.compare_curves import BUDGETS, Reached
from ksel.compare_rows import Table, Versus
from ksel.statistics import Interval

NONE = "-"
PERCENTILE = "*"
ONLY_BOOTSTRAP = "?"
MARKS = {
    PERCENTILE: "percentile interval: BCa is not defined for these data",
    ONLY_BOOTSTRAP: "zero is outside the bootstrap's interval but inside Student's t interval, "
    "which is the more cautious one with few seeds (table.csv has both)",
}


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        title: what it shows.
        heads: of the columns; the first is the method.
        rows: texts, the method first.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


# --------------------------------------------------------------------------- numbers


def value(number: float, pattern: str = ".3f") -> str:
    """A number, or a dash where there is none; what rounds to zero has no sign."""
    if not math.isfinite(number):
        return NONE
    text = format(number, pattern)
    return text if any(digit in "123456789" for digit in text) else text.lstrip("+-")


def p_value(p: float) -> str:
    """A p, never rounded to zero."""
    return NONE if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def with_interval(number: float, interval: Interval, pattern: str = ".3f", mark: str = "") -> str:
    """A number and its interval; the number alone where there is none."""
    if not interval.known:
        return value(number, pattern)
    if interval.method == "percentile":
        mark += PERCENTILE
    ends = f"{value(interval.low, pattern)}, {value(interval.high, pattern)}"
    return f"{value(number, pattern)} [{ends}]{mark}"


def difference(one: Versus | None) -> str:
    """A difference and its interval."""
    if one is None:
        return NONE
    return with_interval(one.difference, one.interval, "+.3f", doubt(one.interval, one.by_t))


def area_difference(one: Versus | None) -> str:
    """A difference of areas under the curve and its interval."""
    if one is None:
        return NONE
    mark = doubt(one.area_interval, one.area_by_t)
    return with_interval(one.area, one.area_interval, "+.3f", mark)


def doubt(bootstrap: Interval, by_t: Interval) -> str:
    """The mark of a finding that Student's t does not share."""
    sure = bootstrap.above_zero or bootstrap.below_zero
    return ONLY_BOOTSTRAP if sure and not (by_t.above_zero or by_t.below_zero) else ""


def _reached(found: Reached | None, table: Table) -> tuple[str, ...]:
    """How many reached a target, and the medians."""
    if found is None:
        return (NONE,) * (2 if table.task is None else 3)
    count = f"{found.reached}/{found.seeds}"
    if table.task is None:
        return count, _censored(found.share, ".0%", found.at_most)
    updates = _censored(found.updates, ",.0f", found.at_most)
    return count, updates, _censored(found.seconds, ",.1f", found.at_most)


def _censored(median: float, pattern: str, at_most: bool) -> str:
    if not math.isfinite(median):
        return "not reached"
    return ("≤ " if at_most else "") + format(median, pattern)


# --------------------------------------------------------------------------- grids


def grids(table: Table, references: Sequence[str]) -> list[Grid]:
    """The tables of texts of one table: scores, certainty, speed, cost."""
    found = [_scores(table, references)]
    found += [_certainty(table, name) for name in references]
    if any(math.isfinite(row.area) for row in table.rows):
        found.append(_speed(table, references))
    return [*found, _cost(table)]


def title(table: Table) -> str:
    """What a table is about."""
    if table.task is None:
        return f"Over {len(table.tasks)} tasks ({', '.join(table.tasks)})"
    return table.task


def unit(table: Table) -> str:
    """What its scores are, in words."""
    if table.task is None:
        return "scores as shares of the teacher's (1 = the teacher), every task counts the same"
    teacher = f"; teacher {value(table.teacher)}" if math.isfinite(table.teacher) else ""
    return f"{table.metric} on the dev split{teacher}"


def _scores(table: Table, references: Sequence[str]) -> Grid:
    heads = ["method", "seeds", "mean [95 %]", "IQM [95 %]"]
    heads += [f"difference to {name} [95 %]" for name in references]
    rows = []
    for row in table.rows:
        cells = [
            row.method,
            str(row.seeds) + (f" ({row.failed} failed)" if row.failed else ""),
            with_interval(row.mean, row.interval),
            with_interval(row.iqm, row.iqm_interval),
            *("reference" if row.method == n else difference(row.against(n)) for n in references),
            value(row.cost, ".2f"),
        ]
        rows.append(tuple(cells))
    return Grid("Scores", (*heads, "cost (x all)"), tuple(rows))


def _certainty(table: Table, name: str) -> Grid:
    heads = ["method", "pairs", "P(better) [95 %]", "p", "p (Holm)"]
    heads += ["as good on"] if table.task is None else []
    rows = []
    for row in table.rows:
        one = row.against(name)
        if one is None:
            continue
        better = with_interval(one.improvement, one.improvement_interval, ".2f")
        cells = [row.method, str(one.seeds), better, p_value(one.p), p_value(one.holm)]
        cells += [f"{one.as_good}/{one.tasks} tasks"] if table.task is None else []
        rows.append(tuple(cells))
    return Grid(f"How sure, against {name}", tuple(heads), tuple(rows))


def _speed(table: Table, references: Sequence[str]) -> Grid:
    since = f" from {table.start:.0%} on" if table.start > 0 else ""
    heads = ["method", f"area under the curve{since}"]
    main = references[-1:]
    heads += [f"area, difference to {name} [95 %]" for name in main]
    heads += [f"at {share:.0%}" for share in BUDGETS]
    for goal in table.targets:
        aim = f" ({goal.value:.3f})" if goal.value is not None else ""
        heads.append(f"reached {goal.name}{aim}")
        heads += ["share of budget"] if table.task is None else ["updates", "seconds"]
    rows = []
    for row in table.rows:
        cells = [row.method, value(row.area)]
        cells += [area_difference(row.against(name)) for name in main]
        cells += [value(score) for score in row.at]
        for found in row.reached:
            cells += _reached(found, table)
        rows.append(tuple(cells))
    return Grid("Speed", tuple(heads), tuple(rows))


def _cost(table: Table) -> Grid:
    names = ("student_forwards", "student_backwards", "teacher_forwards")
    heads = ("method", "cost (x all)", "seconds", "updates", "of the search")
    rows = tuple(
        (
            row.method,
            value(row.cost, ".2f"),
            value(row.seconds, ",.1f"),
            value(row.updates, ",.0f"),
            value(row.updates_search, ",.0f"),
            *(value(row.examples[name], ",.0f") for name in names),
        )
        for row in table.rows
    )
    return Grid("Cost", (*heads, *(name.replace("_", " ") for name in names)), rows)


def marks(found: Iterable[Grid]) -> list[str]:
    """What the marks that these tables use mean."""
    texts = [cell for grid in found for row in grid.rows for cell in row[1:]]
    return [
        f"{mark} {meaning}"
        for mark, meaning in MARKS.items()
        if any("]" in text and mark in text.rsplit("]", 1)[1] for text in texts)
    ]
