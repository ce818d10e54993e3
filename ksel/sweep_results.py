"""What a sweep found: the table of its cells, and a plot with one panel for each axis."""

from __future__ import annotations

import csv
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import matplotlib
from matplotlib.axes import Axes as Panel
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ksel.grids import Cell
from ksel.plots import COLOURS, FAINT, INK, STYLE

DPI = 110
LETTERS_PER_INCH = 13
"""Of the caption, at its size."""


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

    @property
    def ended_early(self) -> str | None:
        """Why the student's training ended before its budget; its score is that of a torso."""
        return self.student["reason"] or None


Axes = Mapping[str, Sequence[str]]
Labels = tuple[str, ...]
"""A cell's label on each axis."""


# --------------------------------------------------------------------------- table


def table_csv(axes: Axes, results: Sequence[Result]) -> str:
    """One row for each cell and seed."""
    metrics = list(dict.fromkeys(name for r in _run(results) for name in r.student["metrics"]))
    figures = ("parameters", "ms_per_example", "updates", "seconds")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, "seed", *metrics, *figures, "ended_early", "not_run"])
    for one in results:
        row = [*one.cell.labels.values(), one.cell.seed]
        if one.summary is None:
            row += [""] * (len(metrics) + len(figures) + 1) + [one.reason or ""]
        else:
            row += [one.student["metrics"].get(name, "") for name in metrics]
            row += [*(one.student[key] for key in figures), one.ended_early or "", ""]
        writer.writerow(row)
    return text.getvalue()


def markdown_table(axes: Axes, results: Sequence[Result]) -> str:
    """One row for each cell, the best first; several seeds as mean and standard deviation.

    A score with a star has a student in it that ended early; why stands under the table, as does
    what was not run.
    """
    ran = _run(results)
    head = [*axes, _headline(ran) if ran else "score", "parameters", "train (s)"]
    lines = [_source(ran), ""] if ran else []
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    groups = _groups(ran)
    for labels, members in sorted(groups.items(), key=lambda g: -mean(r.score for r in g[1])):
        lines.append(f"| {' | '.join([*labels, *_row(members)])} |")
    early = [
        f"* ended early: {_name(one)}, seed {one.cell.seed}, after {one.student['updates']} "
        f"updates: {one.ended_early}"
        for one in ran
        if one.ended_early
    ]
    if early:
        lines += ["", *early]
    refused = [f"* {_name(one)}: {one.reason}" for one in results if one.summary is None]
    if refused:
        lines += ["", "Not run:", "", *dict.fromkeys(refused)]  # the seeds say the same
    return "\n".join(lines)


def _row(members: Sequence[Result]) -> list[str]:
    """Score, parameters and seconds of a cell's seeds."""
    scores = [one.score for one in members]
    star = "*" if any(one.ended_early for one in members) else ""
    spread = f" +- {stdev(scores):.4f} ({len(scores)} seeds)" if len(scores) > 1 else ""
    parameters = f"{members[0].student['parameters']:,}"
    seconds = f"{mean(one.student['seconds'] for one in members):.1f}"
    return [f"{mean(scores):.4f}{star}{spread}", parameters, seconds]


# --------------------------------------------------------------------------- plot


def comparable(axes: Axes, scores: Mapping[Labels, float], axis: str) -> dict[str, list[float]]:
    """What a fair mean of each label is over.

    Cells that cannot be run leave some labels without the others' easy or hard cells. So only
    those combinations of the other axes count that have a score under every label of this one.

    Args:
        axes: axis -> labels.
        scores: a cell's labels -> its score.
        axis: the axis to compare along.

    Returns:
        Label -> scores, in one order of the combinations for all labels; empty lists where no
        combination has them all.
    """
    place = list(axes).index(axis)
    found: dict[str, list[float]] = {label: [] for label in axes[axis]}
    others = [labels if name != axis else ("",) for name, labels in axes.items()]
    for combination in itertools.product(*others):
        keys = {
            label: (*combination[:place], label, *combination[place + 1 :]) for label in axes[axis]
        }
        if all(key in scores for key in keys.values()):
            for label, key in keys.items():
                found[label].append(scores[key])
    return found


def sweep_image(axes: Axes, results: Sequence[Result]) -> bytes:
    """:func:`sweep_figure` as PNG."""
    with matplotlib.rc_context(STYLE):
        figure = sweep_figure(axes, results)
        FigureCanvasAgg(figure)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=DPI)
    return image.getvalue()


def sweep_figure(axes: Axes, results: Sequence[Result]) -> Figure:
    """A panel for each axis: every cell a dot over its label, and a bar where labels compare.

    A bar is the label's mean over the combinations of the other axes that ran for all labels of
    the axis (:func:`comparable`). Cells with a student that ended early are left out.

    Args:
        axes: axis -> labels.
        results: at least one that was run.
    """
    ran = _run(results)
    groups = _groups(ran)
    whole = {key: m for key, m in groups.items() if not any(one.ended_early for one in m)}
    scores = {key: mean(one.score for one in members) for key, members in whole.items()}
    teacher = _teacher(ran)
    widths = [max(2.6, len(labels)) for labels in axes.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(9.0, 0.8 * sum(widths)), 5.2), layout="constrained")
        panels = figure.subplots(1, len(axes), sharey=True, width_ratios=widths, squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            _panel(panel, axes, axis, scores)
            if teacher is not None:
                panel.axhline(teacher, color=FAINT, linestyle="--", linewidth=1.0)
        panels[0].set_ylabel(f"dev {_headline(ran)}")
        figure.align_xlabels()
        bare = [axis for axis in axes if not any(comparable(axes, scores, axis).values())]
        text = f"{_source(ran)}; " + _caption(
            len(scores), len(groups) - len(scores), bare, teacher is not None
        )
        width = round(LETTERS_PER_INCH * figure.get_figwidth())
        figure.supxlabel(textwrap.fill(text, width), fontsize=9.5, color=INK)
    return figure


def _panel(panel: Panel, axes: Axes, axis: str, scores: Mapping[Labels, float]) -> None:
    """The dots and bars of one axis."""
    place, labels = list(axes).index(axis), axes[axis]
    fair = comparable(axes, scores, axis)
    for x, label in enumerate(labels):
        dots = [score for key, score in scores.items() if key[place] == label]
        offsets = [x + 0.5 * ((i + 0.5) / len(dots) - 0.5) for i in range(len(dots))]
        panel.plot(offsets, dots, "o", color=COLOURS[0], alpha=0.45, markersize=4.5)
        if fair[label]:
            panel.hlines(mean(fair[label]), x - 0.35, x + 0.35, color=COLOURS[1], linewidth=2.2)
    count = len(fair[labels[0]])
    dots_each = "1 dot" if count == 1 else f"{count} dots"
    panel.set_xlabel(f"each bar: {dots_each}" if count else "no bars")
    panel.set_xticks(range(len(labels)), labels, rotation=35, ha="right", color=INK)
    panel.set_title(axis)
    panel.set_xlim(-0.6, len(labels) - 0.4)
    panel.grid(axis="x", visible=False)


def _caption(cells: int, early: int, bare: Sequence[str], teacher: bool) -> str:
    parts = [
        f"{_cells(cells)}; dot: a cell (mean of its seeds)",
        "bar: mean over those combinations of the other axes that ran for every label of the axis",
    ]
    if bare:
        parts.append(f"no bars for {', '.join(bare)}: no such combination")
    if early:
        parts.append(f"left out: {_cells(early)} with a student that ended early")
    if teacher:
        parts.append("dashed: teacher")
    return "; ".join(parts)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


# --------------------------------------------------------------------------- both


def _headline(ran: Sequence[Result]) -> str:
    """The metric that scores are of; cells of different tasks may have different ones."""
    names = {one.summary["headline"] for one in ran if one.summary is not None}
    return " or ".join(sorted(names))


def _teacher(ran: Sequence[Result]) -> float | None:
    """The teacher's score, where all cells have one and the same."""
    found = set()
    for one in ran:
        assert one.summary is not None
        score = one.summary["teacher"]["metrics"].get(one.summary["headline"])
        found.add(None if score is None else round(score, 6))
    return found.pop() if len(found) == 1 else None


def _name(one: Result) -> str:
    return ", ".join(one.cell.labels.values())


def _source(results: Sequence[Result]) -> str:
    """What the scores were measured on; loud where that is no benchmark."""
    summaries = [one.summary for one in results if one.summary is not None]
    tasks = ", ".join(dict.fromkeys(str(s["task"]) for s in summaries))
    data = ", ".join(dict.fromkeys(str(s["data"]) for s in summaries))
    builtin = any(s["builtin_data"] for s in summaries)
    warning = f": generated data, NOT scores of {tasks}" if builtin else ""
    return f"{tasks}, dev split of {data}{warning}"


def _run(results: Sequence[Result]) -> list[Result]:
    return [one for one in results if one.summary is not None]


def _groups(results: Sequence[Result]) -> dict[Labels, list[Result]]:
    """Labels -> the cell's seeds."""
    groups: dict[Labels, list[Result]] = {}
    for one in results:
        groups.setdefault(tuple(one.cell.labels.values()), []).append(one)
    return groups
