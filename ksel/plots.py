"""Figures of a run: schedule, shares, losses, dev curves, rewards; matplotlib without pyplot."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from ksel.trajectory import time_means

# Okabe and Ito's colours, which the common kinds of colour blindness tell apart; their yellow and
# black, illegible on a light or dark page, are darkened and lightened.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8a7c00",
    "#7a7a7a",
)
DASHES = ("-", "--", ":", "-.")
INK = "#1f2329"
FAINT = "#8b919a"
# Alpha rather than white for "off", so that the figure sits on a light or a dark page.
WEIGHTS = LinearSegmentedColormap.from_list("weights", [(0.07, 0.47, 0.78, a) for a in (0.0, 1.0)])

WIDTH = 9.0  # inches
MAX_COLUMNS = 600  # heat map columns that a screen can show
SMOOTHING = 60  # spans of a smoothed curve

STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelsize": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ksel",
}


def colour(index: int) -> str:
    """The colour of the knowledge type at this place of the pool."""
    return COLOURS[index % len(COLOURS)]


def schedule_heat_map(
    actions: np.ndarray,
    pool: Sequence[str],
    updates: np.ndarray,
    title: str,
    ends: Sequence[int] = (),
) -> Figure:
    """Types x time: which types were on, or with what weight.

    Args:
        actions: [D, K] bits or weights in [0, 1], D >= 1. More decisions than a screen has
            columns are averaged over equal spans.
        pool: names of the K types.
        updates: [D] optimiser updates done before each decision, increasing.
        title: heading of the figure.
        ends: update after the last one of each stage; the last is where the figure ends.
    """
    actions = np.asarray(actions, dtype=np.float64)
    updates = np.asarray(updates, dtype=np.float64)
    hard = bool(np.isin(actions, (0.0, 1.0)).all())
    share = actions.mean(0)
    last = updates[-1] - updates[-2] if len(updates) > 1 else 1.0
    edges = np.append(updates, max(ends[-1], updates[-1] + 1) if ends else updates[-1] + last)
    if len(actions) > MAX_COLUMNS:
        actions = time_means(actions, MAX_COLUMNS)
        places = np.linspace(0, len(updates), MAX_COLUMNS + 1)
        edges = np.interp(places, np.arange(len(edges)), edges)
    crisp = bool(np.isin(actions, (0.0, 1.0)).all())
    colours = WEIGHTS.resampled(2) if crisp else WEIGHTS
    kinds = len(pool)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title, height=1.35 + 0.36 * kinds)
        mesh = axes.pcolormesh(
            edges, np.arange(kinds + 1), actions.T, cmap=colours, vmin=0, vmax=1, rasterized=True
        )
        for end in ends[:-1]:
            axes.axvline(end, color=INK, linestyle=":", linewidth=1.2)
        axes.set_yticks(np.arange(kinds) + 0.5, list(pool))
        axes.set_ylim(kinds, 0)
        axes.tick_params(axis="y", length=0)
        axes.grid(False)
        axes.hlines(np.arange(1, kinds), edges[0], edges[-1], colors=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("optimiser updates")
        for row, part in enumerate(share):
            axes.text(
                1.01, row + 0.5, f"{part:.0%}", transform=axes.get_yaxis_transform(), va="center"
            )
        axes.set_title("share", loc="right", fontsize=10, fontweight="normal", x=1.06)
        bar = figure.colorbar(mesh, ax=axes, pad=0.08, aspect=14)
        if bar.solids is not None:
            bar.solids.set_rasterized(True)
        bar.outline.set_edgecolor(FAINT)
        if crisp:
            bar.set_ticks([0.25, 0.75], labels=["off", "on"])
            bar.ax.tick_params(length=0)
        else:
            bar.set_label("share of decisions" if hard else "weight")
    return figure


def heat_map_image(
    actions: np.ndarray,
    pool: Sequence[str],
    updates: np.ndarray,
    title: str,
    ends: Sequence[int] = (),
) -> np.ndarray:
    """:func:`schedule_heat_map` as pixels on white, [height, width, 3] uint8."""
    figure = schedule_heat_map(actions, pool, updates, title, ends)
    figure.patch.set_facecolor("white")
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shares(
    share: np.ndarray, pool: Sequence[str], updates: np.ndarray, title: str, soft: bool = False
) -> Figure:
    """Share of decisions (or mean weight) of each type over time.

    Args:
        share: [bins, K] in [0, 1].
        pool: names of the K types.
        updates: [bins] middle of each span (optimiser updates).
        title: heading of the figure.
        soft: the actions are weights.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title)
        for k, name in enumerate(pool):
            axes.plot(
                updates, share[:, k], marker=".", color=colour(k), linestyle=dash(k), label=name
            )
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylabel("mean weight" if soft else "share of decisions")
        axes.set_xlabel("optimiser updates")
        add_legend(axes)
    return figure


def per_type(
    values: np.ndarray, pool: Sequence[str], updates: np.ndarray, title: str, ylabel: str
) -> Figure:
    """One line per type over time, on a logarithmic axis; used for losses and gradient norms.

    Args:
        values: [D, K]; nan = not measured. Many decisions are drawn faintly under their mean over
            equal spans.
        pool: names of the K types.
        updates: [D] optimiser updates.
        title: heading of the figure.
        ylabel: what is measured.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title)
        for k, name in enumerate(pool):
            known = np.isfinite(values[:, k]) & (values[:, k] > 0)
            x, y = np.asarray(updates)[known], values[known, k]
            style: dict[str, Any] = {"color": colour(k), "linestyle": dash(k), "label": name}
            if len(y) > 2 * SMOOTHING:
                axes.plot(x, y, color=colour(k), linewidth=0.7, alpha=0.25, rasterized=True)
                x, y = _smooth(x), _smooth(y)
            axes.plot(x, y, marker="." if len(y) < 30 else "", **style)
        axes.set_yscale("log")
        # where less than a decade is shown, these would come out as unrendered TeX
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylabel(ylabel)
        axes.set_xlabel("optimiser updates")
        add_legend(axes)
    return figure


def losses(values: np.ndarray, pool: Sequence[str], updates: np.ndarray, title: str) -> Figure:
    """Raw loss of each type over time; arguments as :func:`per_type`."""
    return per_type(values, pool, updates, title, "raw loss (log scale)")


def curves(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]],
    metric: str,
    title: str,
    teacher: float | None = None,
) -> Figure:
    """Dev metric over updates of the selected student and the references.

    Args:
        points: student name -> (updates [P], values [P]).
        metric: name of the metric.
        title: heading of the figure.
        teacher: the teacher's value, drawn as a horizontal line.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title)
        for k, (name, (updates, values)) in enumerate(points.items()):
            width = 2.6 if name == "selected" else 1.6
            axes.plot(
                updates,
                values,
                color=colour(k),
                linestyle=dash(k),
                marker="osD^v"[k % 5],
                markersize=4.5,
                linewidth=width,
                label=name,
            )
        if teacher is not None:
            axes.axhline(teacher, color=FAINT, linestyle=(0, (6, 3)), linewidth=1.4)
            axes.annotate(
                f"teacher {teacher:.3f}",
                (1.0, teacher),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 4),
                textcoords="offset points",
                ha="right",
            )
        axes.margins(y=0.15)
        axes.set_ylabel(f"{metric} on dev rows")
        axes.set_xlabel("optimiser updates")
        add_legend(axes)
    return figure


def reward_curve(episodes: Mapping[int, np.ndarray], title: str) -> Figure:
    """Search rewards: the mean reward of each episode, over the rewards of its decisions.

    Args:
        episodes: number of the episode -> rewards [D] of its decisions.
        title: heading of the figure.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title)
        start = 0
        ticks, names = [], []
        for number, rewards in episodes.items():
            x = start + np.arange(len(rewards))
            axes.plot(x, rewards, ".", color=colour(5), markersize=4, alpha=0.6, rasterized=True)
            known = rewards[np.isfinite(rewards)]
            mean = float(known.mean()) if len(known) else np.nan
            axes.hlines(mean, start - 0.5, x[-1] + 0.5, color=colour(1), linewidth=2.6)
            axes.text(
                float(x.mean()),
                1.02,
                f"mean {mean:+.2f}" if len(known) else "mean unknown",
                transform=axes.get_xaxis_transform(),
                ha="center",
            )
            ticks.append(float(x.mean()))
            names.append(f"episode {number + 1}")
            start += len(rewards)
            axes.axvline(start - 0.5, color=FAINT, linewidth=0.6)
        axes.set_title(title, pad=26)
        axes.plot([], [], ".", color=colour(5), label="reward of one decision")
        axes.plot([], [], color=colour(1), linewidth=2.6, label="mean of the episode")
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.grid(False, axis="x")
        axes.set_xlim(-0.5, start - 0.5)
        axes.set_xticks(ticks, names)
        axes.set_xlabel("decisions, in the order they were played")
        axes.set_ylabel("reward (scaled drop)")
        add_legend(axes)
    return figure


def to_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an ``<svg>`` element to be put into a page.

    Colours are the page's CSS variables ``--ink``, ``--faint`` and ``--c0`` to ``--c7``, so that a
    dark page can lighten them; ids start with ``name``, so that several figures share a page;
    ``label`` is the text for screen readers.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            dpi=160,
            metadata={"Date": None, "Creator": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    for index, hexadecimal in enumerate(COLOURS):
        svg = svg.replace(hexadecimal, f"var(--c{index})")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    size = re.compile(r'<svg([^>]*?) height="[^"]*"([^>]*?) width="[^"]*"')
    svg, found = size.subn(r"<svg\1\2", svg, count=1)
    if not found:
        svg = re.sub(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def new_figure(title: str, height: float = 3.6) -> tuple[Figure, Axes]:
    """An empty figure with its heading; make it inside ``rc_context(STYLE)``."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def add_legend(axes: Axes) -> None:
    """A legend to the right of the axes, if anything has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.4)


def dash(index: int) -> str:
    """The line style of the knowledge type at this place of the pool."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def _smooth(values: np.ndarray) -> np.ndarray:
    return time_means(np.asarray(values, dtype=np.float64)[:, None], SMOOTHING)[:, 0]
