"""Figures of a comparison: intervals per method, metric against cost, curves over steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from ksel import statistics as st
from ksel.cells import safe
from ksel.compare_curves import Curve
from ksel.compare_files import METHOD
from ksel.compare_rows import Row, Table, TaskScores, differences, task_scores
from ksel.compare_tables import Comparison
from ksel.files import atomic_path
from ksel.plots import COLOURS, FAINT, INK, STYLE, WIDTH, colour, dash

DPI = 120
OVER = "over-tasks"
LINES = 6
"""Methods that one panel of curves shows beside the references."""
POINTS = 60
"""Shares of the budget at which bands are drawn."""
BAND_RESAMPLES = 1000
NAME_LETTER, NAME_HEIGHT = 6.0, 12.0
"""About the size of a letter of a name beside a point, in points."""
PANEL_WIDTH = 560.0
"""About the width of the panel of costs, in points."""


# --------------------------------------------------------------------------- intervals


def intervals(table: Table, scores: Sequence[TaskScores], against: str | None) -> Figure:
    """Every method's scores, and its paired differences to a reference: seeds, means, intervals.

    Args:
        table: of one task, or over tasks.
        scores: its tasks.
        against: the reference; None = scores alone.
    """
    rows = list(reversed(table.rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.5 + 0.34 * len(rows)), layout="constrained")
        panels = figure.subplots(1, 1 if against is None else 2, sharey=True, squeeze=False)[0]
        for y, row in enumerate(rows):
            tint = _tint(row, table)
            _seeds(panels[0], _dots(row, table, scores), y, tint)
            _bar(panels[0], row.mean, row.interval.low, row.interval.high, y, tint)
            one = row.against(against) if against else None
            if one is not None and against is not None:
                _seeds(panels[1], _pairs(row.method, against, table, scores), y, tint)
                _bar(panels[1], one.difference, one.interval.low, one.interval.high, y, tint)
        most = max(row.seeds for row in rows)
        names = [row.method + (f" ({row.seeds})" if row.seeds < most else "") for row in rows]
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].set_ylim(-0.6, len(rows) - 0.4)
        dots = "seeds" if table.task else "tasks"
        panels[0].set_xlabel(f"{_axis_name(table)}\ndots: {dots}")
        panels[0].set_title(table.task or f"Over {len(table.tasks)} tasks")
        if _near(table):
            panels[0].axvline(table.teacher, color=FAINT, linestyle=(0, (6, 3)), linewidth=1.2)
        if against is not None:
            panels[1].axvline(0, color=FAINT, linewidth=1.1)
            panels[1].set_xlabel("better by, on the same seed")
            panels[1].set_title(f"Difference to {against}")
            for y, row in enumerate(rows):
                if row.method == against:
                    panels[1].plot([0], [y], "D", color=_tint(row, table), markersize=5.5)
        for panel in panels:
            panel.tick_params(axis="y", length=0)
            panel.grid(False, axis="y")
            panel.margins(x=0.06)
    return figure


def _tint(row: Row, table: Table) -> str:
    """Methods in colour, baselines in grey."""
    return COLOURS[0] if row.role == METHOD else COLOURS[7]


def _seeds(axes: Axes, values: np.ndarray, y: float, tint: str) -> None:
    """A dot for each seed, spread a little so that equal ones stay two."""
    spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
    axes.plot(values, y + spread, "o", color=tint, alpha=0.35, markersize=3.6, markeredgewidth=0)


def _bar(axes: Axes, centre: float, low: float, high: float, y: float, tint: str) -> None:
    if np.isfinite(low):
        axes.hlines(y, low, high, color=tint, linewidth=2.6)
    axes.plot([centre], [y], "D", color=tint, markersize=5.5)


def _near(table: Table) -> bool:
    """True if the teacher's score can be drawn without squeezing the others."""
    means = [row.mean for row in table.rows]
    reach = 0.6 * (max(means) - min(means))
    return bool(min(means) - reach <= table.teacher <= max(means) + reach)


def _axis_name(table: Table) -> str:
    """The metric; and the teacher's score, as a line or in words."""
    if not np.isfinite(table.teacher) or (table.task is None and not _near(table)):
        return table.metric
    where = "dashed: " if _near(table) else ""
    return f"{table.metric} ({where}teacher {table.teacher:.3f})"


def _dots(row: Row, table: Table, scores: Sequence[TaskScores]) -> np.ndarray:
    having = [one for one in scores if row.method in one.cells]
    if table.task is not None:
        return having[0].scores(row.method).to_numpy()
    return np.array([st.mean(one.normalised(one.scores(row.method)).to_numpy()) for one in having])


def _pairs(method: str, against: str, table: Table, scores: Sequence[TaskScores]) -> np.ndarray:
    found = [differences(one, method, against).to_numpy() for one in scores]
    if table.task is not None:
        return found[0]
    both = zip(scores, found, strict=True)
    return np.array([st.mean(pairs) * one.unit for one, pairs in both if len(pairs)])


# --------------------------------------------------------------------------- cost


def metric_against_cost(table: Table) -> Figure | None:
    """Mean score and interval of each method over what it cost; None if no cost is known."""
    rows = [row for row in table.rows if np.isfinite(row.cost) and row.cost > 0]
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(f"Score against cost, {table.task or f'over {len(table.tasks)} tasks'}")
        axes.set_xscale("log")
        for row in rows:
            tint = _tint(row, table)
            if row.interval.known:
                axes.vlines(
                    row.cost, row.interval.low, row.interval.high, color=tint, linewidth=1.4
                )
            axes.plot([row.cost], [row.mean], "o", color=tint, markersize=6)
        costs = np.array([row.cost for row in rows])
        axes.set_xlim(costs.min() / 1.25, costs.max() * _room(costs, rows))
        if _near(table):
            axes.axhline(table.teacher, color=FAINT, linestyle=(0, (6, 3)), linewidth=1.2)
        axes.margins(y=0.12)
        axes.autoscale_view(scalex=False)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("seconds of search and training, as a multiple of all (log scale)")
        axes.set_ylabel(_axis_name(table))
        _names(figure, axes, rows)
    return figure


def _room(costs: np.ndarray, rows: Sequence[Row]) -> float:
    """Factor by which the axis of costs goes on to the right, so that the last name fits."""
    letters = max(len(row.method) for row in rows)
    share = min(0.4, NAME_LETTER * letters / PANEL_WIDTH)
    span = 1.25 * float(costs.max() / costs.min())
    return max(1.35, float(span ** (share / (1.0 - share))))


def _names(figure: Figure, axes: Axes, rows: Sequence[Row]) -> None:
    """Write each name near its point, where it covers neither a point nor another name."""
    FigureCanvasAgg(figure).draw()  # the layout, which decides where points are
    figure.set_layout_engine("none")
    scale = figure.dpi / 72
    points = [axes.transData.transform((row.cost, row.mean)) / scale for row in rows]
    for (x, y), row, place in zip(points, rows, label_places(points, rows), strict=True):
        left, low = place
        far = abs(low + NAME_HEIGHT / 2 - y) > NAME_HEIGHT
        axes.annotate(
            row.method,
            (row.cost, row.mean),
            xytext=(left - x, low - y),
            textcoords="offset points",
            fontsize=9.5,
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8} if far else None,
        )


def label_places(points: Sequence[np.ndarray], rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Lower left corners of names (in points, as ``points`` are) that cover as little as possible."""
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    found = []
    for (x, y), row in zip(points, rows, strict=True):
        wide = NAME_LETTER * len(row.method)
        boxes = [
            (left, low, left + wide, low + NAME_HEIGHT)
            for step in range(9)
            for up in ((step, -step) if step else (0,))
            for left in (x + 7, x - 7 - wide)
            for low in (y - NAME_HEIGHT / 2 + 0.8 * up * NAME_HEIGHT,)
        ]
        covered = [sum(_common_area(box, other) for other in taken) for box in boxes]
        best = boxes[int(np.argmin(covered))]
        taken.append(best)
        found.append(best[:2])
    return found


def _common_area(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


# --------------------------------------------------------------------------- curves


def curves(table: Table, scores: TaskScores, references: Sequence[str]) -> Figure | None:
    """Dev metric over the budget, and its paired difference to the last reference; with bands.

    The references stand in every panel; other baselines are drawn faintly. None if nothing was
    measured on the way.
    """
    known = {
        row.method: found
        for row in table.rows
        if (found := {s: c for s, c in scores.curves[row.method].items() if len(c.values) > 1})
    }
    if not known:
        return None
    shown = [row.method for row in table.rows if row.role == METHOD and row.method in known]
    shown = [name for name in shown if name not in references]
    others = [name for name in known if name not in shown and name not in references]
    if not shown:
        shown, others = others, []
    groups = [shown[i : i + LINES] for i in range(0, len(shown), LINES)] or [[]]
    main = next((name for name in reversed(references) if name in known), None)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 3.0 * len(groups)), layout="constrained")
        columns = 1 if main is None else 2
        panels = figure.subplots(len(groups), columns, sharex=True, sharey="col", squeeze=False)
        for row, names in zip(panels, groups, strict=True):
            styles = _styles(names, others, [name for name in references if name in known])
            _panel(row[0], {name: list(found.values()) for name, found in known.items()}, styles)
            if _near(table):
                row[0].axhline(table.teacher, color=FAINT, linestyle=(0, (6, 3)), linewidth=1.2)
            if main is not None:
                _panel(row[1], _apart(known, main, scores.higher), styles)
                _zoom(row[1])
            row[-1].legend(
                *row[0].get_legend_handles_labels(),
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                handlelength=2.2,
            )
        panels[0, 0].set_title(f"On the way, {scores.task}")
        figure.supylabel(_axis_name(table), fontsize=10.5, color=INK)
        if main is not None:
            panels[0, 1].set_title(f"Better than {main} by")
        for panel in panels[-1]:
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.supxlabel("share of the step budget", fontsize=10.5, color=INK)
    return figure


Style = dict[str, Any]


def _styles(
    names: Sequence[str], others: Sequence[str], references: Sequence[str]
) -> dict[str, Style]:
    """Method -> how its line is drawn, in the order of drawing."""
    found: dict[str, Style] = {}
    for place, name in enumerate(others):
        label = "other baselines" if place == 0 else "_"
        found[name] = {"color": FAINT, "linewidth": 0.9, "alpha": 0.6, "label": label}
    for place, name in enumerate(references):
        style = ("--", "-", ":", "-.")[place % 4]
        found[name] = {"color": INK, "linestyle": style, "linewidth": 1.5, "label": name}
    for place, name in enumerate(names):
        found[name] = {"color": colour(place), "linestyle": dash(place), "label": name}
    return found


def _panel(axes: Axes, known: dict[str, list[Curve]], styles: dict[str, Style]) -> None:
    """Mean curves, with bands for the methods in colour."""
    for name, style in styles.items():
        if not known.get(name):
            continue
        x, middle, low, high = band(known[name])
        axes.plot(x, middle, **style)
        if style["color"] not in (INK, FAINT):
            axes.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)


def _zoom(axes: Axes) -> None:
    """Limits by the lines that are not faint."""
    lines = [line for line in axes.lines if line.get_color() != FAINT]
    values = st.finite(np.concatenate([np.asarray(line.get_ydata(), float) for line in lines]))
    low, high = float(values.min()), float(values.max())
    room = 0.25 * (high - low) or 0.01
    bottom, top = axes.get_ylim() if axes.get_autoscaley_on() is False else (np.inf, -np.inf)
    axes.set_ylim(min(bottom, low - room), max(top, high + room))


def _apart(
    known: Mapping[str, Mapping[int, Curve]], reference: str, higher: bool
) -> dict[str, list[Curve]]:
    """Method -> curves minus the reference's of the same seed, above zero = better."""
    sign = 1.0 if higher else -1.0
    base = known[reference]
    found: dict[str, list[Curve]] = {}
    for name, own in known.items():
        found[name] = []
        for seed, curve in own.items():
            if seed in base:
                other = np.interp(curve.shares, base[seed].shares, base[seed].values)
                gap = sign * (curve.values - other)
                found[name].append(Curve(curve.updates, curve.shares, gap))
    return found


def band(found: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of curves over seeds and a pointwise 95 % percentile bootstrap band.

    Returns:
        Shares of the budget that all curves span, mean, low, high; the band is nan for fewer than
        :data:`st.FEWEST_SEEDS` seeds.
    """
    start, end = max(c.shares[0] for c in found), min(c.shares[-1] for c in found)
    own = found[0].shares
    same = all(np.array_equal(c.shares, own) for c in found)
    x = own if same else np.linspace(start, end, POINTS)
    values = np.stack([np.interp(x, c.shares, c.values) for c in found])
    middle = values.mean(0)
    if len(values) < st.FEWEST_SEEDS:
        return x, middle, np.full(len(x), np.nan), np.full(len(x), np.nan)
    draws = np.random.default_rng(0).integers(0, len(values), (BAND_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [(1 - st.LEVEL) / 2, (1 + st.LEVEL) / 2], axis=0)
    return x, middle, low, high


# --------------------------------------------------------------------------- all of them


def figures(comparison: Comparison) -> dict[str, Figure]:
    """File name -> figure: over tasks first, then intervals, cost and curves of each task."""
    scores = {one.task: one for one in task_scores(comparison.results)}
    main = comparison.references[-1] if comparison.references else None
    found: dict[str, Figure | None] = {}
    for table in comparison.everything:
        own = [scores[task] for task in table.tasks]
        name = safe(table.task) if table.task else OVER
        found[f"intervals-{name}"] = intervals(table, own, main)
        found[f"cost-{name}"] = metric_against_cost(table)
        if table.task is not None:
            found[f"curves-{name}"] = curves(table, own[0], comparison.references)
    return {name: figure for name, figure in found.items() if figure is not None}


def image(figure: Figure) -> bytes:
    """A figure as PNG on white."""
    with matplotlib.rc_context(STYLE):
        figure.patch.set_facecolor("white")
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def write_plots(found: Mapping[str, Figure], folder: Path) -> None:
    """Write figures as ``plots/NAME.png``, each whole or not at all."""
    for name, figure in found.items():
        with atomic_path(Path(folder) / "plots" / f"{name}.png") as temporary:
            temporary.write_bytes(image(figure))
