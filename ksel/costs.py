"""What the stages of a run cost: seconds and examples of each part, and the cost of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from ksel.ledger import PARTS, Ledger

BESIDE = "dev"
"""The part that no stage's seconds contain: dev metrics are measured beside the work."""
PRINTED = ("search", "final", "reference:all")
"""Stages of the printed table; the others are in summary.json and in the report."""
DEFINITION = (
    "seconds of search and final student over the seconds of one plain distillation: the reference "
    "'all' of this run, with every type on and nothing measured, and with the seconds that the "
    "teacher took for signals that it found computed (after a search in episodes: for no more rows "
    "than it asked for); an agent that learns online or from branches searches within the seconds of "
    "the final student; dev metrics and writing left out"
)
WITHOUT = "as multiples of one plain distillation: with all among --references"

Costs = Mapping[str, Mapping[str, Any]]
"""Stage -> what :func:`stage_cost` says of it."""


@dataclass(frozen=True)
class Row:
    """A line of a stage's table; None where there is nothing to say.

    Attributes:
        name: of the part.
        examples: rows it worked on, counted as often as it did.
        seconds: it took.
        share: of the stage's seconds.
    """

    name: str
    examples: int | None
    seconds: float
    share: float | None


def stage_cost(spent: Ledger, seconds: float) -> dict[str, Any]:
    """What a stage cost, for ``summary.json``.

    Args:
        spent: the ledger of the stage alone.
        seconds: of environment and agent together, as in :class:`agents.rollout.Played`.
    """
    parts = {
        part: {"seconds": figure, "examples": spent.examples.get(part, 0)}
        for part, figure in spent.seconds.items()
        if figure or spent.examples.get(part, 0)
    }
    return {"seconds": seconds, "parts": parts}


def cost_rows(cost: Mapping[str, Any]) -> list[Row]:
    """A stage's parts in order, what no part accounts for, the sum, and what was beside it."""
    parts, total = cost["parts"], cost["seconds"]
    names = [*(p for p in PARTS if p in parts), *(p for p in parts if p not in PARTS)]
    inside = [name for name in names if name != BESIDE]
    lines = [_row(name, parts[name], total) for name in inside]
    rest = total - sum(line.seconds for line in lines)
    lines += [_row("rest", {"seconds": rest}, total), _row("sum", {"seconds": total}, total)]
    return lines + [
        _row(f"beside it: {name}", parts[name], 0.0) for name in names if name == BESIDE
    ]


def _row(name: str, part: Mapping[str, Any], total: float) -> Row:
    seconds = part["seconds"]
    return Row(name, part.get("examples"), seconds, seconds / total if total else None)


# --------------------------------------------------------------------------- cost of the search


def multiples(
    costs: Costs, *, kept: bool, teachers: int = 1, online: bool = False
) -> dict[str, Any]:
    """Seconds of search, final student and one plain distillation, and what is a multiple of what.

    Signals that are kept are computed by the stage that asks first, which is never the plain
    distillation; alone it would have had to compute them as well, so the teacher's seconds of
    the stages before count for it too, see :func:`_shared`.

    Args:
        costs: of the stages so far.
        kept: whether all teacher signals are kept once they are computed.
        teachers: number of teachers.
        online: whether the agent learned while the final student trained.
    """
    plain, final = costs.get("reference:all"), costs.get("final")
    searched = costs["search"]["seconds"] if "search" in costs else 0.0
    shared = _shared(costs, teachers) if kept and plain else 0.0
    unit = plain["seconds"] + shared if plain else None
    ended = final["seconds"] if final else None
    return {
        "online": online,
        "search_seconds": searched,
        "final_seconds": ended,
        "plain_seconds": unit,
        "shared_teacher_seconds": shared,
        "search_multiple": searched / unit if unit else None,
        "total_multiple": (searched + ended) / unit if unit and ended is not None else None,
    }


def _shared(costs: Costs, teachers: int) -> float:
    """The teacher's seconds that the plain distillation was spared by the stages before it.

    The final student has the plain one's batches, so it asks for the same rows. The episodes of a
    search have others: then no more rows count than the plain student was trained on. That never
    makes the unit too large.
    """
    before = [costs[stage] for stage in ("search", "final") if stage in costs]
    seconds, computed = (
        sum(_of(cost, "teacher", figure) for cost in before) for figure in ("seconds", "examples")
    )
    if "search" not in costs or not computed:
        return float(seconds)
    asked = teachers * _of(costs["reference:all"], "student_forward", "examples")
    return seconds * min(computed, asked) / computed


def _of(cost: Mapping[str, Any], part: str, figure: str) -> float:
    return cost["parts"].get(part, {}).get(figure, 0)


def search_cost(cost: Mapping[str, Any], references: list[str]) -> dict[str, Any]:
    """The cost of finding and training the selected student, in plain distillations.

    Args:
        cost: from :func:`multiples`.
        references: of the run.

    Returns:
        ``multiple``, None with a ``reason`` where there is none, and its ``definition``.
    """
    reason = None
    if cost["total_multiple"] is None:
        reason = "the run ended before the student and its references were finished"
        if "all" not in references:
            reason = "no plain distillation to compare with: 'all' is not among --references"
    return {"multiple": cost["total_multiple"], "definition": DEFINITION, "reason": reason}


# --------------------------------------------------------------------------- printing


def cost_table(costs: Costs) -> Table | None:
    """Parts by stage: examples, seconds and share; None where no stage came to its end."""
    stages = [stage for stage in PRINTED if stage in costs]
    if not stages:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("part")
    lines = [{row.name: row for row in cost_rows(costs[stage])} for stage in stages]
    for stage in stages:
        table.add_column(f"{stage.removeprefix('reference:')}\nexamples", justify="right")
        table.add_column("\nseconds", justify="right")
        table.add_column("\nshare", justify="right")
    for name in _in_order(lines):
        cells = [_cells(line.get(name)) for line in lines]
        table.add_row(name, *(cell for three in cells for cell in three))
    return table


def _in_order(lines: list[dict[str, Row]]) -> list[str]:
    """All names of rows: parts as in :data:`PARTS`, unknown ones, then the last three."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    last = ["rest", "sum", f"beside it: {BESIDE}"]
    known = [part for part in PARTS if part in names]
    unknown = [name for name in names if name not in known and name not in last]
    return known + unknown + [name for name in last if name in names]


def _cells(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "-", "-", "-"
    return (
        "" if row.examples is None else f"{row.examples:,}",
        _brief(row.seconds),
        "" if row.share is None else f"{row.share:.0%}",
    )


def _brief(seconds: float) -> str:
    """Three or more digits that matter."""
    size = abs(seconds)
    return format(seconds, ".2f" if size < 10 else ".1f" if size < 1000 else ",.0f")


def cost_lines(cost: Mapping[str, Any]) -> list[str]:
    """The cost of the search beside one plain distillation, in words."""
    plain, search, final = (cost[f"{name}_seconds"] for name in ("plain", "search", "final"))
    searched = _words(search) if search else "none"
    both = "the agent learned while the student trained, so one figure holds both"
    if plain is None and cost.get("online"):
        return [f"cost of search and student: {both}: {_words(final)} ({WITHOUT})"]
    if plain is None:
        return [
            f"cost of the search: {searched}; of the final student: {_words(final)} ({WITHOUT})"
        ]
    times = f" = {cost['search_multiple']:.2f} x plain" if search else ""
    total = f"{_words(search + final)} = {cost['total_multiple']:.2f} x plain"
    shared = cost["shared_teacher_seconds"]
    own = f", {_words(shared)} of it for teacher signals that it found computed" if shared else ""
    of_plain = f"cost of one plain distillation (all types on): {_words(plain)}{own}"
    if cost.get("online"):
        return [of_plain, f"cost of search and student: {both}: {total}"]
    return [of_plain, f"cost of the search: {searched}{times}; with the final student: {total}"]


def _words(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
