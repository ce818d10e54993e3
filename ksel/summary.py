"""The summary of a run: one dictionary, written as summary.json and printed as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of a run: students beside teacher, shares over time, cost of the search."""
    console = console or Console(highlight=False)
    console.print(students_table(summary))
    if summary.get("shares_over_time"):
        console.print(shares_table(summary))
    for line in cost_lines(summary):
        console.print(line, markup=False)


def students_table(summary: Mapping[str, Any]) -> Table:
    """Teacher, selected student and references: metrics, size, speed, work."""
    title = f"{summary['task']}: {summary['data']}"
    if summary["builtin_data"]:
        title += " (not a benchmark score)"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    metrics = list(summary["teacher"].get("metrics") or summary["students"][0]["metrics"])
    for name in (*metrics, "parameters", "ms/example", "updates", "seconds"):
        table.add_column(name, justify="right")
    teacher = summary["teacher"]
    rows = [("teacher", teacher), *((s["name"], s) for s in summary["students"])]
    for name, row in rows:
        found = row.get("metrics") or {}
        cells = [f"{found[m]:.4f}" if m in found else "-" for m in metrics]
        cells.append(f"{row['parameters'] / 1e6:.2f} M" if "parameters" in row else "-")
        cells.append(_number(row.get("ms_per_example"), "{:.2f}"))
        cells.append(_number(row.get("updates"), "{:,}"))
        cells.append(_number(row.get("seconds"), "{:.1f}"))
        label = f"{name} ({summary['agent']})" if name == "selected" else name
        if row.get("reason"):
            label += " [ended early]"
        table.add_row(label.replace("[", r"\["), *cells)
    return table


def shares_table(summary: Mapping[str, Any]) -> Table:
    """How much of each type was selected in each part of the final student's training."""
    shares: Sequence[Sequence[float]] = summary["shares_over_time"]
    table = Table(title="selected share of each knowledge type, by part of training")
    table.add_column("knowledge type")
    for part in range(len(shares)):
        table.add_column(f"{part + 1}/{len(shares)}", justify="right")
    table.add_column("all", justify="right")
    selected = summary["students"][0].get("shares", {})
    for k, name in enumerate(summary["pool"]):
        table.add_row(
            name, *(f"{part[k]:.2f}" for part in shares), f"{selected.get(name, 0.0):.2f}"
        )
    return table


def cost_lines(summary: Mapping[str, Any]) -> list[str]:
    """The cost of the search beside one plain distillation, in words."""
    cost = summary["cost"]
    plain = cost.get("plain_seconds")
    if plain is None:
        return [
            "cost: no plain distillation was run beside this one (--references all), so the "
            "search has no multiple"
        ]
    lines = [f"one plain distillation (all types on): {plain:.1f} s"]
    if cost["search_seconds"]:
        lines.append(
            f"search: {cost['search_seconds']:.1f} s = {cost['search_multiple']:.2f} x plain; "
            f"search and final student: {cost['total_multiple']:.2f} x plain"
        )
    else:
        lines.append(
            f"search: none; final student: {cost['final_seconds']:.1f} s = "
            f"{cost['total_multiple']:.2f} x plain"
        )
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
