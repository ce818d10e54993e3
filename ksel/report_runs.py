"""Several runs side by side as one HTML page: scores, schedules, phases, agreement, responses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ksel import plots
from ksel.agreement import PHASES, chosen, matrix, on_one_clock, phase_means
from ksel.errors import UsageError
from ksel.files import write_text
from ksel.learned_plots import Panel, limits, panel_of, small_multiples, stacked_schedules
from ksel.page import document, heat_table, missing, note, number, section, show, table
from ksel.report_learned import Learned, words
from ksel.report_page import REPORT_FILE, data_note, dev_points
from ksel.report_run import Run, load_run

FACTS = ("task", "method", "agent", "seed")
AGREE, CHANCE, CORRELATION, SAME = (
    "Masks agree",
    "By chance",
    "Probabilities: correlation",
    "Where they see the same",
)
MEANING = {
    AGREE: "Share of decisions and types on which two runs did the same (weights: 1 less their mean "
    "distance).",
    CHANCE: "The same if each run's decisions stood in random order: what comes from how often each type "
    "was on alone.",
    CORRELATION: "Pearson's, of the policies' probabilities, over all decisions and types; types that both "
    "favour throughout count for it too.",
    SAME: "1 less the mean distance between the mean actions of two policies, both shown the "
    "observations of all these runs.",
}
MOST_RESPONSES = 8
"""Runs whose responses are drawn; a page of more could not be read."""


@dataclass(frozen=True)
class Together:
    """What the entry point found out about the policies of several runs.

    Attributes:
        learned: of each run, in their order.
        same: for each group of runs of one pool and kind of action (tuples of their numbers), how
            alike their policies act where they see the same, [R, R].
    """

    learned: Sequence[Learned] = ()
    same: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several runs.

    Raises:
        UsageError: one is not the folder of a run, or is named twice.
    """
    runs = [load_run(folder) for folder in folders]
    seen: set[Path] = set()
    for run in runs:
        if run.folder.resolve() in seen:
            raise UsageError(f"RUN: {run.folder} is named twice. Name each run once.")
        seen.add(run.folder.resolve())
    return runs


def default_path(folders: Sequence[Path]) -> Path:
    """Where the page goes unless told otherwise: beside the runs, or here where they lie apart."""
    parents = {Path(folder).resolve().parent for folder in folders}
    if len(parents) == 1:
        return Path(os.path.relpath(parents.pop() / REPORT_FILE))
    return Path(REPORT_FILE)


def write_runs(path: Path, runs: Sequence[Run], together: Together) -> Path:
    """Write the page.

    Raises:
        UsageError: the file cannot be written.
    """
    write_text(path, runs_page(runs, together))
    return path


def groups(runs: Sequence[Run]) -> list[tuple[int, ...]]:
    """Numbers of the runs that share pool and kind of action, for each pool with two runs or more."""
    found: dict[Any, list[int]] = {}
    for number_, run in enumerate(runs):
        if run.schedule is not None and run.shown is not None:
            found.setdefault((run.schedule.pool, run.schedule.soft), []).append(number_)
    return [tuple(numbers) for numbers in found.values() if len(numbers) > 1]


def labels(runs: Sequence[Run]) -> list[str]:
    """Short names: the facts in which the runs differ, or their folders where these do not tell."""
    facts = [
        [run.fact("task"), run.fact("method") or run.fact("agent"), run.fact("seed")]
        for run in runs
    ]
    differ = [len({str(one[i]) for one in facts}) > 1 for i in range(3)]
    names = []
    for task, who, seed in facts:
        parts = [task if differ[0] else None, who if differ[1] else None]
        parts.append(f"seed {seed}" if differ[2] else None)
        names.append(" ".join(str(part) for part in parts if part is not None))
    if len(set(names)) == len(runs):
        return names
    folders = [run.name for run in runs]
    if len(set(folders)) == len(runs):
        return folders
    return [f"{name} ({i})" for i, name in enumerate(folders, 1)]


def runs_page(runs: Sequence[Run], together: Together) -> str:
    """The whole page as HTML."""
    names = labels(runs)
    sections = [
        _header(runs),
        section("Scores", _scores(runs, names)),
        section("Schedules", _schedules(runs, names)),
        section("By phase of training", _phases(runs, names)),
        section("Do they agree?", _agreement(runs, names, together)),
        section("What the policies learned", _responses(runs, names, together)),
        section("Dev metrics on the way", _curves(runs, names)),
    ]
    return document(f"ksel: {len(runs)} runs", "".join(sections))


# --------------------------------------------------------------------------- head


def _header(runs: Sequence[Run]) -> str:
    chips = ""
    for name in FACTS:
        values = list(
            dict.fromkeys(str(v) for v in (run.fact(name) for run in runs) if v is not None)
        )
        if values:
            chips += f'<span class="chip"><b>{name}</b> {escape(", ".join(values))}</span>'
    origins = list(dict.fromkeys(data_note(run) for run in runs))
    notes = "".join(origins)
    if len(origins) > 1:
        notes += note("The runs have different data: their scores do not compare.")
    for run in runs:
        for name, why in run.problems.items():
            notes += f'<p class="missing">{escape(run.name)}/<code>{escape(name)}</code>: {escape(why)}</p>'
    pools = {run.schedule.pool for run in runs if run.schedule is not None}
    if len(pools) > 1:
        notes += (
            '<p class="loud">These runs have different pools of knowledge types. They are shown side by '
            "side; only runs of one pool are compared decision by decision.</p>"
        )
    return (
        f"<header><p class='kicker'>ksel report</p><h1>{len(runs)} runs side by side</h1>"
        f"<p>{chips}</p>{notes}</header>\n"
    )


def _scores(runs: Sequence[Run], names: Sequence[str]) -> str:
    students = [
        {s["name"]: s for s in run.summary.get("students") or [] if s.get("name")} for run in runs
    ]
    references = list(dict.fromkeys(n for one in students for n in one if n != "selected"))
    rows = []
    for run, name, made in zip(runs, names, students, strict=True):
        metric = run.summary.get("headline")
        metric = metric or next(iter(run.teacher_record.get("metrics") or {}), None)

        def score(record: dict[str, Any], metric: Any = metric) -> str:
            return number((record.get("metrics") or {}).get(metric), ".4f")

        cost = run.summary.get("cost") or {}
        rows.append(
            [
                escape(name),
                escape(str(metric or "unknown")),
                f"<b>{score(made.get('selected', {}))}</b>",
                *(score(made.get(reference, {})) for reference in references),
                score(run.teacher_record),
                number(made.get("selected", {}).get("updates"), ",.0f"),
                number(cost.get("total_multiple"), ".2f"),
                escape(str(run.summary.get("status", "unfinished"))),
            ]
        )
    heads = ["run", "metric (dev)", "selected", *references, "teacher", "updates"]
    heads += ["cost (\u00d7 one distillation)", "status"]
    body = table(heads, rows)
    folders = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(run.folder))}</td></tr>"
        for run, name in zip(runs, names, strict=True)
    )
    return (
        f"{body}<details><summary>Folders</summary><table class='facts'>{folders}</table></details>"
    )


# --------------------------------------------------------------------------- schedules


def _schedules(runs: Sequence[Run], names: Sequence[str]) -> str:
    parts, body = [], ""
    for run, name in zip(runs, names, strict=True):
        if run.schedule is None or run.shown is None:
            body += missing(f"{name}: no decisions were recorded.")
            continue
        stage, episode, what = run.shown
        label = name if stage == "final" else f"{name} ({what}: no final student yet)"
        parts.append((label, run.schedule.actions(stage, episode), run.schedule.pool))
    if parts:
        body += show(
            stacked_schedules(parts, "Which types were on"),
            "schedules",
            "Heat maps: which knowledge types were on, one for each run",
        )
        body += note("Percentages: share of each type over the whole training.", faint=True)
    return body


def _phases(runs: Sequence[Run], names: Sequence[str]) -> str:
    pools: dict[tuple[str, ...], list[int]] = {}
    for index, run in enumerate(runs):
        if run.schedule is not None and run.shown is not None:
            pools.setdefault(run.schedule.pool, []).append(index)
    body = ""
    for pool, members in pools.items():
        means, rows = [], []
        for index in members:
            run = runs[index]
            assert run.schedule is not None
            assert run.shown is not None
            actions, _ = chosen(run.schedule, *run.shown[:2])
            if len(actions) < len(PHASES):
                body += missing(f"{names[index]}: too few decisions ({len(actions)}) for phases.")
                continue
            rows.append(index)
            means.append(phase_means(actions))
        if len(pools) > 1 and means:
            body += f"<h3>Pool: {escape(', '.join(pool))}</h3>"
        if len(means) > 1:
            body += _different_tasks(runs, rows)
        for phase, title in enumerate(PHASES):
            if not means:
                continue
            values = np.stack([one[phase] for one in means])
            heads = [title, *pool]
            cells = [names[index] for index in rows]
            if len(means) > 1:
                values = np.vstack([values, values.mean(0)])
                cells = [*cells, "mean"]
            body += heat_table(heads, cells, values, ".0%")
    return body or missing("No decisions were recorded.")


# --------------------------------------------------------------------------- agreement


def _agreement(runs: Sequence[Run], names: Sequence[str], together: Together) -> str:
    found = groups(runs)
    if not found:
        return missing("Agreement needs two runs with decisions, one pool and one kind of action.")
    body = note("Runs of different length are compared at equal shares of their training.")
    for members in found:
        tables = _matrices(runs, members)
        if members in together.same:
            tables.append((SAME, together.same[members]))
        short = [names[index] for index in members]
        if len(found) > 1:
            pool = runs[members[0]].schedule
            assert pool is not None
            body += f"<h3>Pool: {escape(', '.join(pool.pool))}</h3>"
        body += _different_tasks(runs, members)
        body += "<div class='pair'>"
        for title, values in tables:
            shown = values.copy()
            np.fill_diagonal(shown, np.nan)
            mean = shown[np.isfinite(shown)]
            middle = f"mean {mean.mean():.2f}" if len(mean) else "not known"
            signed = 1.0 if title == CORRELATION else None
            body += (
                f"<div><h4>{escape(title)} <small>{middle}</small></h4>{note(MEANING[title])}"
                f"{heat_table(['', *short], short, shown, '.2f', signed)}</div>"
            )
        body += "</div>"
    return body


def _different_tasks(runs: Sequence[Run], members: Sequence[int]) -> str:
    """A note where figures are taken over runs of several tasks."""
    tasks = list(dict.fromkeys(str(runs[index].fact("task")) for index in members))
    if len(tasks) < 2:
        return ""
    return note(
        f"These runs are of different tasks ({', '.join(tasks)}): agreement between them, and means "
        f"over them, mix what differs by task with what differs by run."
    )


def _matrices(runs: Sequence[Run], members: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    actions, probabilities = [], []
    for index in members:
        run = runs[index]
        assert run.schedule is not None
        assert run.shown is not None
        done, meant = chosen(run.schedule, *run.shown[:2])
        actions.append(done)
        probabilities.append(meant)
    actions, probabilities = on_one_clock(actions), on_one_clock(probabilities)
    return [
        (AGREE, matrix(actions, "agreement")),
        (CHANCE, matrix(actions, "chance")),
        (CORRELATION, matrix(probabilities, "correlation")),
    ]


# --------------------------------------------------------------------------- responses, curves


def _responses(runs: Sequence[Run], names: Sequence[str], together: Together) -> str:
    body, known = "", []
    for index, (name, found) in enumerate(zip(names, together.learned, strict=True)):
        if found.response is None:
            body += missing(f"{name}: {found.reason}.")
        else:
            known.append(index)
    if not known:
        return body or missing("How the policies respond is not known.")
    if len(known) > MOST_RESPONSES:
        body += note(f"Of the first {MOST_RESPONSES} runs.")
    body += note(
        "A row is a run. Each panel varies one observation over the range that was seen in it and "
        "averages what its policy would do (partial dependence); the grey bars show which values were "
        "seen. The report of each run, `python -m ksel.report RUN`, has all observations."
    )
    pools: dict[tuple[str, ...], list[int]] = {}
    for index in known[:MOST_RESPONSES]:
        pools.setdefault(tuple(runs[index].fact("pool") or ()), []).append(index)
    for count, (pool, members) in enumerate(pools.items()):
        rows, curves = [], []
        for index in members:
            response = together.learned[index].response
            assert response is not None
            panels: list[Panel | None] = [
                panel_of(response, f, words(feature)) if response.varied[f] else None
                for f, feature in enumerate(response.features)
                if "/" not in feature
            ]
            curves += [panel.curves for panel in panels if panel is not None]
            rows.append((names[index], panels))
        # an observation that changed in none of the runs has no column
        some = [
            i for i, column in enumerate(zip(*(row for _, row in rows), strict=True)) if any(column)
        ]
        rows = [(name, [row[i] for i in some]) for name, row in rows]
        if not curves:
            body += missing("No observation of the whole training changed in these runs.")
            continue
        soft = all(bool(run.schedule and run.schedule.soft) for run in runs)
        figure = small_multiples(rows, pool, limits(curves), "Response to the training", soft)
        body += show(figure, f"responses{count}", "Response of each run's policy to the training")
    return body


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    charts: dict[tuple[str, str], dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for run, name in zip(runs, names, strict=True):
        for metric, series in dev_points(run).items():
            if "selected" in series:
                steps, values = series["selected"]
                key = (str(run.fact("task")), metric)
                charts.setdefault(key, {})[name] = (np.array(steps), np.array(values))
    if not charts:
        return missing("No dev metric was measured before the runs ended.")
    body = note("The selected student of each run, on the dev rows that are measured on the way.")
    for count, ((task, metric), lines) in enumerate(charts.items()):
        figure = plots.curves(lines, metric, f"{task}: dev {metric}")
        body += show(figure, f"dev{count}", f"Dev {metric} of {task} over updates of each run")
    return body
