"""A run's folder as one HTML page that needs no network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ksel import plots
from ksel.files import write_text
from ksel.page import document, folded, missing, number, section, show, table
from ksel.report_learned import Learned, learned, phases
from ksel.report_parts import amortized, cost, credit
from ksel.report_run import Run, load_run
from ksel.report_search import search

REPORT_FILE = "report.html"
BINS = 16
FEWEST_NORMS = 3
"""Gradient norms of a type from which on they are drawn."""


def write_report(run: Path, found: Learned | None = None) -> Path:
    """Write ``report.html`` into a run's folder; a part that is missing is said to be missing.

    Args:
        run: the folder.
        found: what is known of the run's policy; None = it was not looked at.

    Raises:
        UsageError: ``run`` is not the folder of a run, or the file cannot be written.
    """
    path = Path(run) / REPORT_FILE
    write_text(path, page(load_run(Path(run)), found))
    return path


def page(run: Run, found: Learned | None = None) -> str:
    """The whole page as HTML; ``found`` is what is known of the run's policy, None = it was not looked at."""
    command = f"python -m ksel.report {shlex.quote(str(run.folder))}"
    found = found or Learned(reason=f"`{command}` adds how the policy responds")
    method = f"{run.fact('method')}, " if run.fact("method") else ""
    title = f"{run.fact('task') or 'unknown task'}, {method}{run.fact('agent') or 'unknown agent'}"
    sections = [
        header(run),
        section("Summary", _summary_table(run) + _share_table(run)),
        section("Selection schedule", _schedule(run) + phases(run)),
        section("What the policy learned", learned(run, found)),
        section("Dev metrics on the way", _dev_curves(run)),
        section("Losses and gradients", _losses(run)),
        *([section("Credit", _credit(run))] if amortized(run.metrics) else []),
        section("Search", search(run)),
        section("Cost of the search", cost(run.summary)),
        section("How it was made", _settings(run)),
    ]
    return document(f"ksel: {title}", "".join(sections))


def header(run: Run) -> str:
    """Name, facts and notes of a run."""
    status = run.summary.get("status")
    if status is None:
        status = "unfinished: no summary was written (still running, or killed)"
    good = "good" if status == "complete" else "bad"
    facts = [(name, run.fact(name)) for name in ("task", "method", "agent", "seed")]
    chips = "".join(
        f'<span class="chip"><b>{name}</b> {escape(str(value))}</span>'
        for name, value in facts
        if value is not None
    )
    chips += f'<span class="chip {good}">{escape(str(status))}</span>'
    notes = [data_note(run)]
    notes += [
        f'<p class="note">Fallback: {escape(str(text))}</p>'
        for text in run.summary.get("fallbacks") or []
    ]
    notes += [
        f'<p class="missing"><code>{escape(name)}</code>: {escape(why)}</p>'
        for name, why in run.problems.items()
    ]
    return (
        f"<header><p class='kicker'>ksel report</p><h1>{escape(run.name)}</h1>"
        f"<p>{chips}</p>{''.join(notes)}</header>\n"
    )


def data_note(run: Run) -> str:
    """Where the figures come from; loud where they are no benchmark's."""
    builtin, data = run.fact("builtin_data"), run.fact("data")
    if builtin or data == "builtin":
        return (
            '<p class="loud"><b>Built-in data, not a benchmark.</b> Every figure on this page was '
            f"measured on: {escape(str(data or 'the built-in corpus'))}. None of them is a "
            "benchmark's score.</p>"
        )
    if builtin is None:
        return (
            '<p class="loud">The run did not get as far as recording where its data came from: it '
            "may be built-in data. Do not quote these figures as benchmark scores.</p>"
        )
    return f'<p class="note">Data: {escape(str(data))}</p>'


def _summary_table(run: Run) -> str:
    students = run.summary.get("students") or []
    teacher = run.teacher_record
    if not students and not teacher:
        return missing("No student was finished before the run ended: there is nothing to sum up.")
    models = [{**teacher, "name": f"teacher: {teacher.get('name', 'unknown')}"}] if teacher else []
    models += [
        {**other, "name": f"teacher {i}: {other.get('name', 'unknown')}"}
        for i, other in enumerate(teacher.get("others") or [], 2)
    ]
    models += students
    metrics = list(dict.fromkeys(key for model in models for key in model.get("metrics") or {}))
    rows = [
        [
            escape(str(model.get("name", "unnamed"))),
            *(number((model.get("metrics") or {}).get(metric), ".4f") for metric in metrics),
            number(model.get("parameters"), ",.0f"),
            number(model.get("ms_per_example"), ".2f"),
            number(model.get("updates"), ",.0f"),
            number(model.get("seconds"), ",.1f"),
        ]
        for model in models
    ]
    heads = ["model", *(f"{metric} (dev)" for metric in metrics)]
    heads += ["parameters", "ms per example", "updates", "training (s)"]
    summary = table(heads, rows, emphasis="selected")
    if not students:
        summary += missing("No student was finished before the run ended.")
    return summary


def _share_table(run: Run) -> str:
    """What each type got, a column of equal width for each student."""
    students = [s for s in run.summary.get("students") or [] if s.get("shares")]
    if not students:
        return ""
    pool = run.fact("pool") or list(students[0]["shares"])
    rows = []
    for name in pool:
        cells = []
        for student in students:
            share = student["shares"].get(name)
            width = 100 * share if isinstance(share, (int, float)) else 0
            cells.append(
                f'<span class="bar" style="--w:{width:.1f}%">{number(share, ".0%")}</span>'
            )
        rows.append([escape(str(name)), *cells])
    kind = "mean weight" if run.schedule and run.schedule.soft else "share of the decisions"
    heads = ["knowledge type", *(str(student.get("name", "unnamed")) for student in students)]
    shares = table(heads, rows, kind="even")
    return f"<h3>What each knowledge type got ({kind})</h3>{shares}"


def _schedule(run: Run) -> str:
    shown = run.shown
    if run.schedule is None or shown is None:
        return missing("No decisions were recorded.")
    stage, episode, name = shown
    body = "" if stage == "final" else missing(f"No final student yet; shown is the {name}.")
    rows = run.schedule.stage(stage, episode)
    updates = rows["update"].to_numpy()
    actions = run.schedule.actions(stage, episode)
    ends = run.schedule.meta.get("stage_ends") or [] if stage == "final" else []
    heat = plots.schedule_heat_map(actions, run.schedule.pool, updates, f"Schedule, {name}", ends)
    if len(ends) > 1:
        body += (
            "<p>Dotted lines: ends of stages; a type that a stage does not allow is off in it.</p>"
        )
    body += show(heat, "schedule", f"Heat map: which knowledge types were on, {name}")
    bins = min(BINS, max(1, len(rows) // 5))
    share = run.schedule.share_over_time(stage, bins, episode)
    middles = np.interp(
        (np.arange(bins) + 0.5) * len(rows) / bins - 0.5, np.arange(len(rows)), updates
    )
    lines = plots.shares(
        share, run.schedule.pool, middles, f"Share of each type, {name}", run.schedule.soft
    )
    return body + show(lines, "shares", f"Share of each knowledge type over time, {name}")


def dev_points(run: Run) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Dev metrics on the way: metric -> student -> (updates, values)."""
    points: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for line in run.metrics:
        stage = str(line["stage"])
        if stage != "final" and not stage.startswith("reference"):
            continue
        student = "selected" if stage == "final" else stage.removeprefix("reference")[1:]
        for key, value in line.items():
            if key.startswith("student/") and isinstance(value, (int, float)):
                series = points.setdefault(key.removeprefix("student/"), {})
                steps, values = series.setdefault(student, ([], []))
                steps.append(line["step"])
                values.append(value)
    return points


def _dev_curves(run: Run) -> str:
    points = dev_points(run)
    if not points:
        return missing("No dev metric was measured before the run ended.")
    rows = (run.config.get("rows") or {}).get("dev_on_the_way", "some")
    body = (
        f'<p class="note">On at most {escape(str(rows))} rows of the dev split; the table above '
        "and the teacher's line are over all of them.</p>"
    )
    for index, (metric, series) in enumerate(points.items()):
        arrays = {name: (np.array(s), np.array(v)) for name, (s, v) in series.items()}
        value = (run.teacher_record.get("metrics") or {}).get(metric)
        figure = plots.curves(arrays, metric, f"Dev {metric}", value)
        body += show(figure, f"dev{index}", f"Dev {metric} over updates of each student")
    return body


def _losses(run: Run) -> str:
    shown = run.shown
    if run.schedule is None or shown is None:
        return missing("No decisions were recorded.")
    stage, episode, name = shown
    updates = run.schedule.stage(stage, episode)["update"].to_numpy()
    pool = run.schedule.pool
    values = run.schedule.vectors("loss", stage, episode)
    figure = plots.losses(values, pool, updates, f"Loss of each type, {name}")
    body = show(figure, "losses", f"Raw loss of each knowledge type over updates, {name}")
    norms = run.schedule.vectors("grad_norm", stage, episode)
    measured = int(np.isfinite(norms).sum(0).max(initial=0))
    if measured < FEWEST_NORMS:
        times = {0: "not measured", 1: "measured once"}.get(measured, f"measured {measured} times")
        return body + missing(
            f"Gradient norms were {times} in this episode, so there is no chart of them; "
            f"--optim.grad_norm_every sets how often."
        )
    figure = plots.per_type(
        norms, pool, updates, f"Gradient norm of each type, {name}", "gradient norm (log scale)"
    )
    return body + show(figure, "norms", f"Gradient norm of each knowledge type, {name}")


def _credit(run: Run) -> str:
    shown = run.shown
    if run.schedule is None or shown is None:
        return missing("No decisions were recorded.")
    return credit(run.metrics, run.schedule, *shown)


def _settings(run: Run) -> str:
    def facts(title: str, values: Mapping[str, Any]) -> str:
        """A collapsed table of names and values."""
        if not values:
            return missing(f"{title}: missing.")
        rows = [
            [escape(str(key)), f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"]
            for key, value in values.items()
        ]
        return folded(title, table(["name", "value"], rows, kind="facts"))

    teacher = dict(run.teacher or run.teacher_record)
    others = teacher.pop("others", None) or []
    body = facts("Teacher", teacher)
    body += "".join(facts(f"Teacher {i}", other) for i, other in enumerate(others, 2))
    if run.config_text:
        body += folded("Settings (config.yaml)", f"<pre>{escape(run.config_text)}</pre>")
    else:
        body += missing("Settings (config.yaml): missing.")
    return body + facts("Versions", run.versions)
