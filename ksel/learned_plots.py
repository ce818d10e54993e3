"""Figures of what policies learned: responses as small multiples, schedules of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ksel.plots import FAINT, INK, STYLE, WEIGHTS, WIDTH, colour, dash
from ksel.responses import Response
from ksel.trajectory import time_means

COLUMNS = 6
BARS = 14
"""Bars of the little histogram under each panel."""
STRIPS = 240
"""Columns of a schedule among several."""
SMALL = 8.5


@dataclass(frozen=True)
class Panel:
    """One small chart: the curves [P, K] of a feature over its grid [P].

    Attributes:
        title: over the panel.
        grid, curves: see :class:`ksel.responses.Response`.
        seen: [N] values of the feature that were observed.
    """

    title: str
    grid: np.ndarray
    curves: np.ndarray
    seen: np.ndarray


def panel_of(response: Response, feature: int, title: str) -> Panel:
    """The panel of one feature."""
    seen = response.observed[:, feature]
    return Panel(title, response.grid[feature], response.curves[feature], seen)


def limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Ends of a common vertical axis, at tenths."""
    low = math.floor(10 * min(float(one.min()) for one in curves)) / 10
    high = math.ceil(10 * max(float(one.max()) for one in curves)) / 10
    return (low, high) if high > low else (max(0.0, low - 0.1), min(1.0, high + 0.1))


def small_multiples(
    rows: Sequence[tuple[str, Sequence[Panel | None]]],
    pool: Sequence[str],
    ends: tuple[float, float],
    title: str,
    soft: bool = False,
) -> Figure:
    """Rows of small panels that share their vertical axis; a colour for each type.

    Args:
        rows: label of the row (empty: none) and its panels, at most ``COLUMNS``; None = no panel.
        pool: names of the K types.
        ends: of the vertical axis.
        title: heading of the figure.
        soft: the actions are weights.
    """
    columns = max(len(panels) for _, panels in rows)
    with matplotlib.rc_context({**STYLE, "axes.titlesize": SMALL + 0.5, "axes.titlepad": 4.0}):
        figure = Figure(figsize=(WIDTH, 1.05 + 1.32 * len(rows)), layout="constrained")
        figure.suptitle(title, x=0.0, ha="left", fontsize=12, fontweight="bold", color=INK)
        grid = figure.subplots(len(rows), max(columns, 3), squeeze=False, sharey=True)
        for place, (label, panels) in zip(grid, rows, strict=True):
            for column, axes in enumerate(place):
                panel = panels[column] if column < len(panels) else None
                if panel is None:
                    axes.set_axis_off()
                    continue
                _draw(axes, panel, ends)
                if column == 0:
                    what = "mean weight" if soft else "probability"
                    axes.set_ylabel(label or what, fontsize=SMALL)
        handles, names = grid[0][0].get_legend_handles_labels()
        del names
        figure.legend(
            handles,
            list(pool),
            loc="outside lower center",
            ncols=min(len(pool), 5),
            fontsize=SMALL + 0.5,
        )
    return figure


def _draw(axes: Axes, panel: Panel, ends: tuple[float, float]) -> None:
    low, high = ends
    room = high - low
    for k, line in enumerate(panel.curves.T):
        axes.plot(panel.grid, line, color=colour(k), linestyle=dash(k), linewidth=1.6, label=str(k))
    counts, edges = np.histogram(panel.seen, BARS, (panel.grid[0], panel.grid[-1]))
    heights = 0.16 * room * counts / max(1, counts.max())
    axes.bar(
        edges[:-1],
        heights,
        np.diff(edges),
        low - 0.2 * room,
        align="edge",
        color=FAINT,
        alpha=0.45,
        linewidth=0,
    )
    axes.set_ylim(low - 0.2 * room, high + 0.04 * room)
    axes.set_yticks([low, (low + high) / 2, high])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.tick_params(labelsize=SMALL - 0.5, length=2)
    axes.set_title(panel.title)


def stacked_schedules(
    schedules: Sequence[tuple[str, np.ndarray, Sequence[str]]], title: str
) -> Figure:
    """Schedules of several runs under each other, over the share of the training that was done.

    Args:
        schedules: for each run its label, its actions [D, K], and the names of its K types.
        title: heading of the figure.
    """
    kinds = [len(pool) for _, _, pool in schedules]
    height = 0.9 + sum(0.42 + 0.2 * count for count in kinds)
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 10, "axes.titlepad": 4.0}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.suptitle(title, x=0.0, ha="left", fontsize=12, fontweight="bold", color=INK)
        grid = figure.subplots(
            len(schedules),
            1,
            squeeze=False,
            sharex=True,
            height_ratios=[0.42 + 0.2 * n for n in kinds],
        )[:, 0]
        for axes, (label, actions, pool) in zip(grid, schedules, strict=True):
            shown = time_means(actions, STRIPS) if len(actions) > STRIPS else actions
            edges = np.linspace(0, 1, len(shown) + 1)
            axes.pcolormesh(
                edges,
                np.arange(len(pool) + 1),
                shown.T,
                cmap=WEIGHTS,
                vmin=0,
                vmax=1,
                rasterized=True,
            )
            axes.set_yticks(np.arange(len(pool)) + 0.5, list(pool), fontsize=SMALL)
            axes.set_ylim(len(pool), 0)
            axes.tick_params(axis="y", length=0)
            axes.grid(False)
            axes.hlines(np.arange(1, len(pool)), 0, 1, colors=FAINT, linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(True)
            axes.set_title(label)
            for row, part in enumerate(actions.mean(0)):
                axes.text(
                    *(1.008, row + 0.5, f"{part:.0%}"),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=SMALL,
                )
        grid[-1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        grid[-1].set_xlabel("share of the training done")
    return figure
