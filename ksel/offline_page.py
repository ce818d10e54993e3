"""The page of an offline estimate: intervals as a plot, numbers as tables; one file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ksel.page import document, missing, number, section, show, table
from ksel.plots import FAINT, INK, STYLE, add_legend, colour, new_figure

ESTIMATORS = ("direct", "importance", "doubly_robust")
HEADS = (
    *("policy", "estimator", "estimate", "95 % interval", "less logged", "95 % interval"),
    *("used", "effective"),
)
ROW = 0.26
"""Inches per interval."""


def page(record: Mapping[str, Any]) -> str:
    """The HTML of ``offline.json``."""
    runs = ", ".join(escape(run) for run in record["runs"])
    body = f'<p class="kicker">offline estimates</p><h1>{len(record["policies"])} policies on '
    body += f'{record["decisions"]:,} logged decisions</h1><p class="note">{runs}</p>'
    body += "".join(f'<p class="note">{escape(note)}</p>' for note in record["notes"])
    for quantity, about in record["quantities"].items():
        body += section(about, _quantity(record, quantity))
    return document("ksel offline", body)


def _quantity(record: Mapping[str, Any], quantity: str) -> str:
    rows = [
        (policy["name"], one)
        for policy in record["policies"]
        for one in policy["estimates"]
        if one["quantity"] == quantity
    ]
    known = [(name, one) for name, one in rows if one["value"] is not None]
    body = ""
    if any(one["estimator"] != "logged" for _, one in known):
        with matplotlib.rc_context(STYLE):
            figure = intervals(known)
        body += show(figure, f"offline-{quantity}", f"estimates of {quantity} values")
    else:
        body += missing("No estimate could be given; the reasons are below.")
    body += table(HEADS, _cells(rows), "as logged")
    refused = {one["refused"]: None for _, one in rows if one["refused"]}
    return body + "".join(missing(reason) for reason in refused)


def intervals(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """Each estimate with its interval, by policy; the line is what was logged.

    Args:
        rows: (policy, estimate as a dictionary) with numbers; ``logged`` is among each policy's.
    """
    names = list(dict.fromkeys(name for name, one in rows if one["estimator"] != "logged"))
    figure, axes = new_figure("", 1.1 + ROW * (len(ESTIMATORS) + 1) * len(names))
    logged = next((one for _, one in rows if one["estimator"] == "logged"), None)
    if logged is not None:
        axes.axvline(logged["value"], color=FAINT, linewidth=1.2, label="as logged")
        axes.axvspan(logged["low"], logged["high"], color=FAINT, alpha=0.14, linewidth=0)
    labelled: set[str] = set()
    for place, name in enumerate(names):
        for one in (one for other, one in rows if other == name and one["estimator"] != "logged"):
            kind = ESTIMATORS.index(one["estimator"])
            at = place * (len(ESTIMATORS) + 1) + kind
            reach = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
            label = None if one["estimator"] in labelled else one["estimator"].replace("_", " ")
            labelled.add(one["estimator"])
            axes.errorbar(
                one["value"], at, xerr=reach, fmt="o", color=colour(kind), capsize=3, label=label
            )
    axes.set_yticks(
        [place * (len(ESTIMATORS) + 1) + 1 for place in range(len(names))], names, color=INK
    )
    axes.set_ylim((len(ESTIMATORS) + 1) * len(names) - 1, -1)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("reward")
    add_legend(axes)
    return figure


def _cells(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    cells, logged_shown = [], False
    for name, one in rows:
        is_logged = one["estimator"] == "logged"
        if is_logged and logged_shown:
            continue
        logged_shown |= is_logged
        gain = {} if is_logged else one
        cells.append(
            [
                "as logged" if is_logged else escape(name),
                "mean" if is_logged else one["estimator"].replace("_", " "),
                number(one["value"], ".3g"),
                _span(one["low"], one["high"], ".3g"),
                number(gain.get("gain"), "+.3g"),
                _span(gain.get("gain_low"), gain.get("gain_high"), "+.3g"),
                number(one["count"] or None, ",d"),
                number(one["effective"] if one["count"] else None, ",.0f"),
            ]
        )
    return cells


def _span(low: Any, high: Any, pattern: str) -> str:
    if low is None or high is None:
        return "&ndash;"
    return f"{number(low, pattern)} to {number(high, pattern)}"
