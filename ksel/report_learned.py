"""Parts of the report: the schedule by phase of training, and how the policy responds to what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ksel.agreement import PHASES, chosen, phase_means
from ksel.learned_plots import COLUMNS, Panel, limits, panel_of, small_multiples
from ksel.page import folded, heat_table, missing, note, show
from ksel.report_run import Run
from ksel.responses import Response

SLASH = "/"
WORDS = {
    "progress": "budget spent",
    "learning_rate": "learning rate",
    "student_entropy": "entropy",
    "agreement": "agreement",
    "objective_trend": "last drop",
    "objective_level": "objective level",
    "loss": "loss over its running size",
    "trend": "trend of the loss",
    "credit": "credit",
    "last_action": "last action",
    "share": "share so far",
}
"""What features are called on the page; those of types by the part of their name before the slash."""
STRONGEST = 12
"""Features in the table of effects."""
FLAT = 0.005
"""A response that moves by less is said to be none."""
FAINT_RESPONSE = 0.03
"""A policy that moves by less than this is not drawn until a reader asks."""


@dataclass(frozen=True)
class Learned:
    """What the entry point found out about a run's policy.

    Attributes:
        response: how it responds; None where that is not known.
        reason: why it is not known.
    """

    response: Response | None = None
    reason: str = ""


def words(feature: str) -> str:
    """A feature in words: ``loss/label`` is ``loss over its running size: label``."""
    block, _, of = feature.partition(SLASH)
    name = WORDS.get(block, block.replace("_", " "))
    return f"{name}: {of}" if of else name


# --------------------------------------------------------------------------- phases


def phases(run: Run) -> str:
    """Table of what each type got in the early, middle and late third of the shown episode."""
    if run.schedule is None or run.shown is None:
        return ""
    stage, episode, name = run.shown
    actions, probabilities = chosen(run.schedule, stage, episode)
    if len(actions) < len(PHASES):
        return missing(f"Too few decisions ({len(actions)}) for phases of the training.")
    what = "mean weight" if run.schedule.soft else "share of the decisions"
    tables = [("What it did", what, phase_means(actions))]
    if not np.array_equal(actions, probabilities):
        mean = "mean of the policy's weight" if run.schedule.soft else "mean probability"
        tables.append(("What the policy meant", mean, phase_means(probabilities)))
    body = "".join(
        f"<div><h4>{title} <small>({escape(kind)})</small></h4>"
        f"{heat_table(['type', *PHASES], list(run.schedule.pool), means.T, '.0%')}</div>"
        for title, kind, means in tables
    )
    return f"<h3>By phase of training, {escape(name)}</h3><div class='pair'>{body}</div>"


# --------------------------------------------------------------------------- responses


def learned(run: Run, found: Learned) -> str:
    """How the policy responds to each feature of the observation."""
    response = found.response
    if response is None:
        return missing(f"No responses are drawn: {found.reason}.")
    pool = run.fact("pool") or []
    soft = bool(run.schedule and run.schedule.soft)
    what = "mean weight" if soft else "probability of being on"
    if not response.varied.any():
        return missing("No observation changed in this run, so there is nothing to respond to.")
    body = note(
        f"Each panel varies one observation over the range that was seen, leaves the others as they "
        f"were, and averages what the policy would do over {len(response.observed)} decisions "
        f"(partial dependence). A line is the {what} of a type; the grey bars show which values were "
        f"seen. Observations move together in training, so the ends of a panel can be moments that "
        f"never happened."
    )
    body += note(
        "Agreement: share of the batch on which student and teacher answer the same. Last drop and "
        "objective level: of the objective on the reward split."
    )
    body += _effects(response, pool)
    panels = ""
    ends = limits([response.curves[f] for f in np.flatnonzero(response.varied)])
    for number, (title, rows) in enumerate(_blocks(response)):
        figure = small_multiples([("", row) for row in rows], pool, ends, title, soft)
        panels += show(figure, f"response{number}", title)
    largest = float(response.strength()[response.varied].max())
    if largest < FAINT_RESPONSE:
        body += folded(f"All panels; no line moves by more than {largest:.1%}", panels)
    else:
        body += panels
    still = [words(response.features[f]) for f in np.flatnonzero(~response.varied)]
    if still:
        body += note(f"Left out, since they never changed: {', '.join(still)}.", faint=True)
    return body


def _blocks(response: Response) -> list[tuple[str, list[list[Panel | None]]]]:
    """Panels of the features that varied: those of the whole student, then block by block."""
    groups: dict[str, list[Panel | None]] = {}
    for f, name in enumerate(response.features):
        if not response.varied[f]:
            continue
        block, _, of = name.partition(SLASH)
        title = f"Response to the {WORDS.get(block, block)} of each type" if of else ""
        title = title or "Response to the state of the training"
        groups.setdefault(title, []).append(panel_of(response, f, of or words(name)))
    return [
        (title, [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)])
        for title, panels in groups.items()
    ]


def _effects(response: Response, pool: Sequence[str]) -> str:
    """Table of the features that move the policy most, and in which direction."""
    strength = np.where(response.varied, response.strength().max(1), -1.0)
    order = [int(f) for f in np.argsort(-strength, kind="stable") if strength[f] >= FLAT]
    if not order:
        return note(
            f"The policy does the same whatever it sees: no mean action moves by {FLAT:.1%} or more."
        )
    shown = order[:STRONGEST]
    effects = response.effects()[shown]
    names = [words(response.features[f]) for f in shown]
    largest = float(np.abs(effects).max())
    table = heat_table(
        ["from its lowest to its highest value", *pool],
        names,
        effects,
        "+.1%",
        signed=max(largest, 1e-9),
    )
    return f"<h3>What moves it most</h3>{table}"
