"""A comparison in words: sentences, Markdown, CSV, and the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Table as RichTable

from ksel.compare_curves import BUDGETS
from ksel.compare_files import METHOD
from ksel.compare_grids import Grid, difference, doubt, grids, marks, p_value, title, unit
from ksel.compare_rows import Row, Table, Versus
from ksel.compare_tables import ALL, BEST_STATIC, SURE, Comparison, count
from ksel.statistics import Interval

OVER = "over tasks"
SPOKEN = {ALL: "all types on", BEST_STATIC: "the best static mask"}
"""What the usual references are called in sentences."""
WIDTH = 150
"""Columns of the printed tables where the output is no terminal."""


# --------------------------------------------------------------------------- sentences


@dataclass(frozen=True)
class Sentence:
    """A finding in words.

    Attributes:
        text: begins with the method's name.
        side: 1 = better, -1 = worse, 0 = not told apart, in doubt, or no interval.
    """

    text: str
    side: int


def sentences(comparison: Comparison) -> list[Sentence]:
    """What was found: the methods against the last reference, the best first; then the others."""
    table = comparison.main
    if table is None:
        return []
    claims = [row for row in table.rows if row.role == METHOD] or list(table.rows)
    return [
        Sentence(_sentence(row, one, table), 0 if doubt(one.interval, one.by_t) else _side(one))
        for name in reversed(comparison.references)
        for row in claims
        if (one := row.against(name)) is not None
    ]


def _side(one: Versus) -> int:
    return int(one.interval.above_zero) - int(one.interval.below_zero)


def _sentence(row: Row, one: Versus, table: Table) -> str:
    where = f"on {table.task}" if table.task else f"on {count(one.tasks, 'task')}"
    what = table.metric if table.task else "shares of the teacher's score"
    against = SPOKEN.get(one.against, one.against)
    words = f"{row.method} is {difference(one)} over {against}, {where} ({what}; {count(one.seeds, 'pair')})"
    if math.isfinite(row.cost):
        words += f" at {row.cost:.2f} x the cost of {SPOKEN[ALL]}"
    return f"{words}: {_verdict(one)}."


def _verdict(one: Versus) -> str:
    if one.alike:
        return "the same score in each pair"
    tested = f", corrected p {p_value(one.holm)}" if math.isfinite(one.holm) else ""
    if not one.interval.known:
        return f"{one.interval.note}{tested}"
    if not _side(one):
        return f"not told apart from zero{tested}"
    side = "better" if one.interval.above_zero else "worse"
    if doubt(one.interval, one.by_t):
        return f"{side} by the bootstrap, not by Student's t: more seeds are needed{tested}"
    if math.isfinite(one.holm) and one.holm >= SURE:
        return f"{side} by its interval, but the corrected test is not below {SURE}{tested}"
    return f"{side}{tested}"


def failures(comparison: Comparison) -> list[str]:
    """The cells that gave no score, and why; seeds with the same error in one line."""
    found: dict[tuple[str, str, str], list[str]] = {}
    names = ["task", "method", "error", "seed"]
    for task, method, error, seed in comparison.results.failed[names].itertuples(index=False):
        found.setdefault((task, method, " ".join(error.split())), []).append(str(seed))
    return [
        f"{task}, {method}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}: {error}"
        for (task, method, error), seeds in found.items()
    ]


# --------------------------------------------------------------------------- written


def markdown(comparison: Comparison) -> str:
    """``table.md``."""
    lines = ["# Comparison", ""]
    for part in ([one.text for one in sentences(comparison)], comparison.notes):
        lines += [*(f"* {line}" for line in part), ""] if part else []
    for table in comparison.everything:
        found = grids(table, comparison.references)
        lines += [f"## {title(table)}", "", f"{unit(table)}.", ""]
        for grid in found:
            lines += [f"### {grid.title}", "", *_markdown_rows(grid), ""]
        notes = [*table.notes, *marks(found)]
        lines += [*(f"* {note}" for note in notes), ""] if notes else []
    failed = failures(comparison)
    if failed:
        lines += ["## Cells without a score", "", *(f"* {line}" for line in failed), ""]
    return "\n".join(lines)


def _markdown_rows(grid: Grid) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = f"| --- |{' ---: |' * (len(grid.heads) - 1)}"
    return [line(grid.heads), rule, *(line(row) for row in grid.rows)]


def table_csv(comparison: Comparison) -> str:
    """``table.csv``: one row for each task and method, and for each method over tasks."""
    text = io.StringIO()
    records = [
        _record(row, table, comparison.references)
        for table in comparison.everything
        for row in table.rows
    ]
    heads = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(row: Row, table: Table, references: Sequence[str]) -> dict[str, object]:
    record: dict[str, object] = {
        "task": table.task or OVER,
        "tasks": row.tasks,
        "metric": table.metric,
        "teacher": table.teacher,
        "method": row.method,
        "role": row.role,
        "seeds": row.seeds,
        "failed": row.failed,
        "mean": row.mean,
        **_ends("mean", row.interval),
        "iqm": row.iqm,
        **_ends("iqm", row.iqm_interval),
    }
    for name in references:
        one = row.against(name)
        if one is not None:
            record |= _versus_record(f"vs_{name}_", one)
    record |= {
        "cost": row.cost,
        "seconds": row.seconds,
        "updates": row.updates,
        "updates_search": row.updates_search,
        **row.examples,
        "area": row.area,
    }
    record |= {f"at_{share:.0%}": score for share, score in zip(BUDGETS, row.at, strict=True)}
    for goal, found in zip(table.targets, row.reached, strict=True):
        record[f"target: {goal.name}"] = goal.value if goal.value is not None else ""
        if found is not None:
            for key in ("reached", "seeds", "updates", "share", "seconds", "at_most"):
                record[f"{goal.name}: {key}"] = getattr(found, key)
    return {key: "" if _unknown(item) else item for key, item in record.items()}


def _unknown(item: object) -> bool:
    return isinstance(item, float) and math.isnan(item)


def _ends(name: str, interval: Interval) -> dict[str, object]:
    return {
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
        f"{name}_by": interval.method,
    }


def _versus_record(prefix: str, one: Versus) -> dict[str, object]:
    record: dict[str, object] = {
        "pairs": one.seeds,
        "difference": one.difference,
        **_ends("difference", one.interval),
        "t_low": one.by_t.low,
        "t_high": one.by_t.high,
        "improvement": one.improvement,
        **_ends("improvement", one.improvement_interval),
        "as_good": one.as_good,
        "p": one.p,
        "p_holm": one.holm,
        "area_difference": one.area,
        **_ends("area_difference", one.area_interval),
        "area_t_low": one.area_by_t.low,
        "area_t_high": one.area_by_t.high,
    }
    return {prefix + key: item for key, item in record.items()}


# --------------------------------------------------------------------------- the terminal


def rich_tables(comparison: Comparison) -> list[RenderableType]:
    """What is printed: all of the first table, the scores of the others."""
    shown: list[RenderableType] = []
    for table in comparison.everything:
        found = grids(table, comparison.references)
        if table is not comparison.main:
            found = found[:1]
        for grid in found:
            name = f"{title(table)}: {grid.title.lower()}"
            name += f" ({unit(table)})" if grid.title == "Scores" else ""
            shown.append(_rich(grid, name))
        shown += [_plain(line) for line in (*table.notes, *marks(found))]
    return shown


def _rich(grid: Grid, name: str) -> RichTable:
    table = RichTable(title=_plain(name), title_justify="left")
    for place, head in enumerate(grid.heads):
        table.add_column(_plain(head), justify="right" if place else "left")
    for row in grid.rows:
        table.add_row(*map(_plain, row))
    return table


def _plain(text: str) -> str:
    """Text in which brackets are brackets."""
    return text.replace("[", r"\[")


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print what was found: sentences, tables, and the cells that failed."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=WIDTH)
    for part in rich_tables(comparison):
        console.print(part)
    for line in [*comparison.notes, *(one.text for one in sentences(comparison))]:
        console.print(_plain(line))
    for line in failures(comparison):
        console.print(_plain(f"no score: {line}"))
