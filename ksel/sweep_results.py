"""What a sweep found: the table of its cells, and a plot with one panel for each axis."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ksel.grids import Cell
from ksel.plots import COLOURS, FAINT, INK, STYLE


@dataclass(frozen=True)
class Result:
    """One cell.

    Attributes:
        cell: labels, seed, settings.
        summary: its run's ``summary.json``; None where it was not run.
        reason: why it was not run.
    """

    cell: Cell
    summary: dict[str, Any] | None
    reason: str | None

    @property
    def student(self) -> dict[str, Any]:
        """Figures of the final student."""
        assert self.summary is not None
        return next(one for one in self.summary["students"] if one["name"] == "selected")

    @property
    def score(self) -> float:
        """Headline metric of the final student on the dev split."""
        assert self.summary is not None
        return float(self.student["metrics"][self.summary["headline"]])


Axes = Mapping[str, Sequence[str]]


def table_csv(axes: Axes, results: Sequence[Result]) -> str:
    """One row for each cell and seed."""
    metrics = list(dict.fromkeys(name for r in _run(results) for name in r.student["metrics"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*axes, "seed", *metrics, "parameters", "ms_per_example", "updates", "seconds", "not_run"]
    )
    for one in results:
        labels = [*one.cell.labels.values(), one.cell.seed]
        if one.summary is None:
            writer.writerow([*labels, *[""] * (len(metrics) + 4), one.reason])
            continue
        student = one.student
        writer.writerow(
            [
                *labels,
                *(student["metrics"].get(name, "") for name in metrics),
                *(student[key] for key in ("parameters", "ms_per_example", "updates", "seconds")),
                student.get("reason") or "",
            ]
        )
    return text.getvalue()


def markdown_table(axes: Axes, results: Sequence[Result]) -> str:
    """One row for each cell, the best first; several seeds as mean and standard deviation."""
    ran = _run(results)
    headline = ran[0].summary["headline"] if ran and ran[0].summary else "score"
    head = [*axes, headline, "parameters", "train (s)"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    groups = _groups(ran)
    for labels, members in sorted(groups.items(), key=lambda g: -mean(r.score for r in g[1])):
        scores = [one.score for one in members]
        spread = f" +- {stdev(scores):.4f} ({len(scores)} seeds)" if len(scores) > 1 else ""
        seconds = mean(one.student["seconds"] for one in members)
        parameters = f"{members[0].student['parameters']:,}"
        cells = [*labels, f"{mean(scores):.4f}{spread}", parameters, f"{seconds:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    refused = [one for one in results if one.summary is None]
    if refused:
        lines += ["", "Not run:", ""]
        lines += [f"* {', '.join(one.cell.labels.values())}: {one.reason}" for one in refused]
    return "\n".join(lines)


def sweep_figure(axes: Axes, results: Sequence[Result]) -> bytes:
    """A panel for each axis: every cell a dot over its label, the label's mean a bar (PNG)."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(axes, results)
        FigureCanvasAgg(figure)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def _figure(axes: Axes, results: Sequence[Result]) -> Figure:
    ran = _run(results)
    assert ran[0].summary is not None
    headline = ran[0].summary["headline"]
    teacher = ran[0].summary["teacher"]["metrics"].get(headline)
    groups = _groups(ran)
    widths = [max(2, len(labels)) for labels in axes.values()]
    figure = Figure(figsize=(max(9.0, 0.8 * sum(widths)), 4.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, width_ratios=widths, squeeze=False)[0]
    for number, (axis, labels) in enumerate(axes.items()):
        panel = panels[number]
        for x, label in enumerate(labels):
            scores = [
                mean(one.score for one in members)
                for key, members in groups.items()
                if key[number] == label
            ]
            offsets = [x + 0.5 * ((i + 0.5) / len(scores) - 0.5) for i in range(len(scores))]
            panel.plot(offsets, scores, "o", color=COLOURS[0], alpha=0.45, markersize=4.5)
            if scores:
                panel.hlines(mean(scores), x - 0.35, x + 0.35, color=COLOURS[1], linewidth=2.2)
        if teacher is not None:
            panel.axhline(teacher, color=FAINT, linestyle="--", linewidth=1.0)
        panel.set_xticks(range(len(labels)), labels, rotation=35, ha="right", color=INK)
        panel.set_title(axis)
        panel.set_xlim(-0.6, len(labels) - 0.4)
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel(f"dev {headline}")
    figure.supxlabel(
        f"{len(groups)} cells; dot: a cell (mean of its seeds); bar: mean of the dots; "
        f"dashed: teacher",
        fontsize=9.5,
        color=INK,
    )
    return figure


def _run(results: Sequence[Result]) -> list[Result]:
    return [one for one in results if one.summary is not None]


def _groups(results: Sequence[Result]) -> dict[tuple[str, ...], list[Result]]:
    """Labels -> the cell's seeds."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for one in results:
        groups.setdefault(tuple(one.cell.labels.values()), []).append(one)
    return groups
