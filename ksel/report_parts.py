"""Parts of the report: what the search cost, and whether credit told the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ksel import plots
from ksel.costs import cost_rows
from ksel.page import folded, missing, note, number, show, table
from ksel.trajectory import Schedule, time_means
from ksel.trust import RECENT, calibration, trust_history, trust_line

CREDIT_SPANS = 24
"""Spans over which credit, noisier than losses, is averaged in its figure."""

Lines = Sequence[Mapping[str, Any]]

# --------------------------------------------------------------------------- cost


def cost(summary: Mapping[str, Any]) -> str:
    """What the search cost; ``summary`` as in ``summary.json``."""
    cost = summary.get("cost") or {}
    if not cost:
        return missing("The cost is summed up at the end of a run, which this one did not reach.")
    times = "&times; one plain distillation"
    tiles = [
        ("search", cost.get("search_multiple"), ".2f", times),
        ("search + final", cost.get("total_multiple"), ".2f", times),
        ("search", cost.get("search_seconds"), ",.1f", " s"),
        ("final student", cost.get("final_seconds"), ",.1f", " s"),
    ]
    note = ""
    if cost.get("online"):
        tiles = [
            ("search and final student", cost.get("total_multiple"), ".2f", times),
            ("search and final student", cost.get("final_seconds"), ",.1f", " s"),
        ]
        note = (
            '<p class="note">The agent learned while the student trained, so one figure holds '
            "both.</p>"
        )
    tiles.append(("one plain distillation", cost.get("plain_seconds"), ",.1f", " s"))
    inner = "".join(
        f"<div class='tile'><span>{escape(name)}</span><b>{number(value, pattern)}</b>{unit}</div>"
        for name, value, pattern, unit in tiles
    )
    reason = (summary.get("search_cost") or {}).get("reason")
    body = f'<div class="tiles">{inner}</div>{note}' + (
        missing(f"No multiple: {reason}.") if reason else ""
    )
    ledgers = "".join(
        _stage_cost(stage, cost) for stage, cost in (cost.get("stages") or {}).items()
    )
    return body + (folded("Where the time went, stage by stage", ledgers) if ledgers else "")


def _stage_cost(stage: str, cost: Mapping[str, Any]) -> str:
    lines = [
        [
            escape(row.name),
            number(row.examples, ",.0f"),
            number(row.seconds, ",.2f"),
            number(row.share, ".0%"),
        ]
        for row in cost_rows(cost)
    ]
    lines_of = table(["part", "examples", "seconds", "share"], lines, emphasis="sum")
    return f"<h3>Where the time went: {escape(stage)}</h3>{lines_of}"


# --------------------------------------------------------------------------- credit


def amortized(metrics: Lines) -> bool:
    """True if these lines of ``metrics.jsonl`` have predicted rewards."""
    return any("reward/predicted" in line for line in metrics)


def credit(metrics: Lines, schedule: Schedule, stage: str, episode: int, name: str) -> str:
    """What credit each type had in an episode, and whether predicted drops came true.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        schedule: the run's.
        stage, episode: the one to show.
        name: what to call it.
    """
    judged = calibration(metrics, stage)
    line = trust_line(judged)
    mark = "note" if judged["trusted"] is not False else "loud"
    body = f'<p class="{mark}">{escape(line[0].upper() + line[1:])} ({escape(name)}).</p>'
    for change in trust_history(metrics):
        body += note(f"Predictions, {change}.")
    windows = [
        (line["reward/window_predicted"], line["reward/window_drop"])
        for line in metrics
        if line["stage"] == stage and line.get("reward/window_drop") is not None
    ]
    if windows:
        predicted, measured = np.array(windows).T
        figure = drops_figure(predicted, measured, RECENT, f"True and predicted drops, {name}")
        body += show(figure, "drops", f"Measured against predicted drops of windows, {name}")
        body += (
            '<p class="note">A dot is a window: the drop of the objective between two measurements, and '
            "the sum of what was predicted for its updates. Both are divided by the sum of the learning "
            "rates, with which all drops shrink. Branches that were not taken are judged, but not "
            "drawn.</p>"
        )
    else:
        body += missing("No window of predicted rewards was over before the run ended.")
    values = schedule.vectors("credit", stage, episode)
    if not np.isfinite(values).any():
        return body + missing("No credit was known before the run ended.")
    updates = schedule.stage(stage, episode)["update"].to_numpy()
    figure = credit_figure(values, schedule.pool, updates, f"Credit of each type, {name}")
    return body + show(figure, "credit", f"Credit of each knowledge type over updates, {name}")


def drops_figure(predicted: np.ndarray, measured: np.ndarray, recent: int, title: str) -> Figure:
    """Measured against predicted drops of windows, with the line of the judged ones.

    Args:
        predicted, measured: [W] drops per unit of learning rate, in the order of time.
        recent: the last ones, which were judged; earlier ones are drawn faintly.
        title: heading of the figure.
    """
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.new_figure(title, height=4.2)
        axes.axhline(0, color=plots.FAINT, linewidth=0.9)
        axes.axvline(0, color=plots.FAINT, linewidth=0.9)
        old, new = slice(None, -recent), slice(-recent, None)
        if len(predicted) > recent:
            axes.plot(
                predicted[old], measured[old], ".", color=plots.FAINT, label="earlier windows"
            )
        x, y = predicted[new], measured[new]
        axes.plot(
            x,
            y,
            "o",
            color=plots.colour(0),
            markersize=6,
            alpha=0.85,
            label=f"last {len(x)} windows",
        )
        if len(x) > 1 and np.ptp(x) > 0:
            ends = np.array([x.min(), x.max()])
            slope, level = np.polyfit(x, y, 1)
            axes.plot(
                ends,
                slope * ends + level,
                "--",
                color=plots.colour(1),
                label="their least-squares line",
            )
        axes.margins(0.1)
        axes.set_xlabel("predicted drop, per unit of learning rate")
        axes.set_ylabel("measured drop, per unit of learning rate")
        plots.add_legend(axes)
    return figure


def credit_figure(
    values: np.ndarray, pool: Sequence[str], updates: np.ndarray, title: str
) -> Figure:
    """Credit of each type over time: means over spans, since that of one decision is noisy.

    Args:
        values: [D, K] predicted drop of a decision owed to each type; nan = not known.
        pool: names of the K types.
        updates: [D] optimiser updates.
        title: heading of the figure.
    """
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.new_figure(title)
        axes.axhline(0, color=plots.FAINT, linewidth=0.9)
        for k, name in enumerate(pool):
            known = np.isfinite(values[:, k])
            count = int(known.sum())
            if not count:
                continue
            both = np.stack([np.asarray(updates)[known], values[known, k]], 1)
            x, y = time_means(both, min(CREDIT_SPANS, -(-count // 5))).T
            marker = "." if len(x) < 30 else ""
            axes.plot(
                x, y, marker=marker, color=plots.colour(k), linestyle=plots.dash(k), label=name
            )
        axes.set_ylabel("predicted drop of one decision")
        axes.set_xlabel("optimiser updates")
        plots.add_legend(axes)
    return figure
