"""A run's folder as one HTML page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ksel import plots
from ksel.errors import UsageError
from ksel.files import write_text
from ksel.page import document, missing, number, section, show, table
from ksel.report_parts import amortized, cost, credit
from ksel.tracking import METRICS_FILE, read_metrics
from ksel.trajectory import Schedule, read_schedule

REPORT_FILE = "report.html"
PARTS = ("config.yaml", "summary.json", "schedule.parquet", METRICS_FILE)
BINS = 16
SEARCH_MAPS = 12


@dataclass
class Run:
    """What a run's folder holds; a part that is missing or damaged is None or empty.

    Attributes:
        folder: the run's folder.
        problems: file name -> why the part is missing.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    schedule: Schedule | None = None
    problems: dict[str, str] = field(default_factory=dict)

    def fact(self, key: str) -> Any:
        """A fact about the run from the summary, else the schedule, else the settings."""
        sources = (self.summary, self.schedule.meta if self.schedule else {}, self.config)
        return next((source[key] for source in sources if source.get(key) is not None), None)


def load_run(folder: Path) -> Run:
    """Read what a run has left behind so far.

    Raises:
        UsageError: ``folder`` is not the folder of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"RUN: there is no folder {folder}. Give the folder of a run.")
    if not any((folder / part).is_file() for part in PARTS):
        raise UsageError(
            f"RUN: {folder} is not the folder of a run: it has none of {', '.join(PARTS)}."
        )
    run = Run(folder)
    run.summary = _read_json(run, "summary.json")
    run.teacher = _read_json(run, "teacher.json")
    run.versions = _read_json(run, "versions.json")
    try:
        run.config_text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(run.config_text)
        run.config = config if isinstance(config, dict) else {}
    except (OSError, ValueError, yaml.YAMLError):
        run.problems["config.yaml"] = "missing or damaged"
    try:
        run.metrics = read_metrics(folder / METRICS_FILE)
    except UsageError:
        run.problems[METRICS_FILE] = "missing"
    try:
        run.schedule = read_schedule(folder / "schedule.parquet")
    except UsageError as error:
        run.problems["schedule.parquet"] = str(error).removeprefix("RUN: ")
    return run


def _read_json(run: Run, name: str) -> dict[str, Any]:
    path = run.folder / name
    if not path.is_file():
        run.problems[name] = "missing"
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        run.problems[name] = "damaged"
        return {}
    return value


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder; a part that is missing is said to be missing.

    Raises:
        UsageError: ``run`` is not the folder of a run, or the file cannot be written.
    """
    path = Path(run) / REPORT_FILE
    write_text(path, page(load_run(Path(run))))
    return path


def page(run: Run) -> str:
    """The whole page as HTML."""
    method = f"{run.fact('method')}, " if run.fact("method") else ""
    title = f"{run.fact('task') or 'unknown task'}, {method}{run.fact('agent') or 'unknown agent'}"
    sections = [
        _header(run),
        section("Summary", _summary_table(run) + _share_table(run)),
        section("Cost of the search", cost(run.summary)),
        section("Selection schedule", _schedule(run)),
        section("Dev metrics on the way", _dev_curves(run)),
        section("Losses and gradients", _losses(run)),
        *([section("Credit", _credit(run))] if amortized(run.metrics) else []),
        section("Search", _search(run)),
        section("How it was made", _settings(run)),
    ]
    return document(f"ksel: {title}", "".join(sections))


def _header(run: Run) -> str:
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
    notes = [_data_note(run)]
    notes += [
        f'<p class="note">Fallback: {escape(str(text))}</p>'
        for text in run.summary.get("fallbacks") or []
    ]
    notes += [
        f'<p class="missing"><code>{escape(name)}</code>: {escape(why)}</p>'
        for name, why in run.problems.items()
    ]
    return (
        f"<header><p class='kicker'>ksel report</p><h1>{escape(run.folder.resolve().name)}</h1>"
        f"<p>{chips}</p>{''.join(notes)}</header>\n"
    )


def _data_note(run: Run) -> str:
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


def _teacher(run: Run) -> dict[str, Any]:
    teacher = run.summary.get("teacher") or run.teacher
    return teacher if isinstance(teacher, dict) else {}


def _summary_table(run: Run) -> str:
    students = run.summary.get("students") or []
    teacher = _teacher(run)
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
    students = [s for s in run.summary.get("students") or [] if s.get("shares")]
    if not students:
        return ""
    pool = run.fact("pool") or list(students[0]["shares"])
    rows = []
    for student in students:
        cells = []
        for name in pool:
            share = student["shares"].get(name)
            width = 100 * share if isinstance(share, (int, float)) else 0
            cells.append(
                f'<span class="bar" style="--w:{width:.1f}%">{number(share, ".0%")}</span>'
            )
        rows.append([escape(str(student.get("name", "unnamed"))), *cells])
    kind = "mean weight" if run.schedule and run.schedule.soft else "share of the decisions"
    return (
        f"<h3>What each knowledge type got ({kind})</h3>"
        f"{table(['student', *map(str, pool)], rows, emphasis='selected')}"
    )


def _stages(run: Run) -> list[tuple[str, int]]:
    return run.schedule.stages() if run.schedule else []


def _shown(run: Run) -> tuple[str, int, str] | None:
    """The episode the page is about: stage, number, and what to call it."""
    stages = _stages(run)
    if not stages:
        return None
    final = [(stage, episode) for stage, episode in stages if stage == "final"]
    stage, episode = (final or stages)[-1]
    name = "final student" if final else f"{stage} episode {episode + 1}"
    return stage, episode, name


def _schedule(run: Run) -> str:
    shown = _shown(run)
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


def _dev_curves(run: Run) -> str:
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
    if not points:
        return missing("No dev metric was measured before the run ended.")
    rows = (run.config.get("rows") or {}).get("dev_on_the_way", "some")
    body = (
        f'<p class="note">On at most {escape(str(rows))} rows of the dev split; the table above '
        "and the teacher's line are over all of them.</p>"
    )
    for index, (metric, series) in enumerate(points.items()):
        arrays = {name: (np.array(s), np.array(v)) for name, (s, v) in series.items()}
        value = (_teacher(run).get("metrics") or {}).get(metric)
        figure = plots.curves(arrays, metric, f"Dev {metric}", value)
        body += show(figure, f"dev{index}", f"Dev {metric} over updates of each student")
    return body


def _losses(run: Run) -> str:
    shown = _shown(run)
    if run.schedule is None or shown is None:
        return missing("No decisions were recorded.")
    stage, episode, name = shown
    updates = run.schedule.stage(stage, episode)["update"].to_numpy()
    pool = run.schedule.pool
    values = run.schedule.vectors("loss", stage, episode)
    figure = plots.losses(values, pool, updates, f"Loss of each type, {name}")
    body = show(figure, "losses", f"Raw loss of each knowledge type over updates, {name}")
    norms = run.schedule.vectors("grad_norm", stage, episode)
    if not np.isfinite(norms).any():
        return body + missing("Gradient norms were not measured (--optim.grad_norm_every).")
    figure = plots.per_type(
        norms, pool, updates, f"Gradient norm of each type, {name}", "gradient norm (log scale)"
    )
    return body + show(figure, "norms", f"Gradient norm of each knowledge type, {name}")


def _credit(run: Run) -> str:
    shown = _shown(run)
    if run.schedule is None or shown is None:
        return missing("No decisions were recorded.")
    return credit(run.metrics, run.schedule, *shown)


def _search(run: Run) -> str:
    numbers = [episode for stage, episode in _stages(run) if stage == "search"]
    if (run.summary.get("cost") or {}).get("online"):
        return missing("There were no episodes: the agent learned while the final student trained.")
    if run.schedule is None or not numbers:
        return missing("There was no search: the agent does not learn, or the run ended before.")
    rewards = {n: run.schedule.stage("search", n)["reward"].to_numpy() for n in numbers}
    body = show(
        plots.reward_curve(rewards, "Rewards of the search"),
        "rewards",
        "Reward of each decision and mean of each search episode",
    )
    maps = ""
    for n in numbers[-SEARCH_MAPS:]:
        rows = run.schedule.stage("search", n)
        title = f"Search episode {n + 1}"
        figure = plots.schedule_heat_map(
            run.schedule.actions("search", n), run.schedule.pool, rows["update"].to_numpy(), title
        )
        maps += show(figure, f"search{n}", f"Heat map of the schedule of {title}")
    count = min(len(numbers), SEARCH_MAPS)
    return f"{body}<details><summary>Schedules of {count} search episodes</summary>{maps}</details>"


def _settings(run: Run) -> str:
    def facts(title: str, values: Mapping[str, Any]) -> str:
        """A collapsed table of names and values."""
        if not values:
            return missing(f"{title}: missing.")
        rows = [
            [escape(str(key)), f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"]
            for key, value in values.items()
        ]
        return (
            f"<details><summary>{title}</summary>{table(['name', 'value'], rows)}</details>"
        ).replace("<table>", '<table class="facts">')

    teacher = dict(run.teacher or _teacher(run))
    others = teacher.pop("others", None) or []
    body = facts("Teacher", teacher)
    body += "".join(facts(f"Teacher {i}", other) for i, other in enumerate(others, 2))
    if run.config_text:
        body += (
            "<details><summary>Settings (config.yaml)</summary>"
            f"<pre>{escape(run.config_text)}</pre></details>"
        )
    else:
        body += missing("Settings (config.yaml): missing.")
    return body + facts("Versions", run.versions)
