"""The summary of a run: one dictionary, written as summary.json and printed as tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from ksel.config import RunConfig
from ksel.costs import Costs, cost_lines, cost_table, multiples, search_cost
from ksel.models import parameter_count
from ksel.setup import Setup
from ksel.stages import stage_ends, stage_shares, window_count
from ksel.trajectory import ScheduleWriter, time_means
from ksel.trust import FEWEST, calibration, trust_line
from ksel.types import Shape

SHARE_PARTS = 4
WIDTH = 100
"""Columns of the printed tables where the output is no terminal."""


# --------------------------------------------------------------------------- at the start


def opening_lines(setup: Setup, episode: int | None) -> list[str]:
    """What a run is about to do.

    Args:
        setup: the run, prepared.
        episode: optimiser updates of a search episode; None = no search in episodes.
    """
    config = setup.config
    lines = []
    if setup.builtin:
        lines.append(
            f"NOTE: this is the generated {setup.origin}. Its figures are not scores of "
            f"{setup.task.name} and compare with nothing published."
        )
    lines.append(f"student: {describe(setup.student_shape, setup.student)}; {_start(setup)}")
    lines.append(f"pool: {', '.join(setup.pool.names)}")
    held = config.env.phase_steps
    hold = "a decision at each" if held == 1 else f"a decision every {held}"
    lines.append(f"budget: {setup.updates:,} updates of {config.batching.size} rows, {hold}")
    lines += _stage_lines(setup)
    if episode is not None and "all" not in config.references:
        lines.append(
            "note: no student with all types on will stand beside the selected one; "
            "--references '[all]' adds it"
        )
    if episode is not None:
        total = config.students * config.episodes.count * episode
        beside = f" of {config.students} students side by side" if config.students > 1 else ""
        lines.append(
            f"search: {config.episodes.count} episodes{beside} of {episode:,} updates = "
            f"{total / setup.updates:.2f} x the budget"
        )
    elif config.search == "online":
        lines.append("search: online, while the one student trains")
    elif config.search == "branch":
        lines.append(
            f"search: online, from {config.branches.count} branches of "
            f"{config.branches.updates} updates after one another"
        )
    else:
        lines.append(f"search: none, {config.agent} does not learn")
    if setup.distiller.credit is not None:
        lines.append(
            f"rewards: predicted from credit ({setup.distiller.credit.method}), checked against true "
            f"drops every {config.env.window} updates"
        )
        lines += _few_windows(config, setup.updates)
    return lines


def _few_windows(config: RunConfig, updates: int) -> list[str]:
    """A note where the final student has too few windows to be judged, with the window that helps."""
    if config.search == "branch":
        return []  # each branch is a window
    ends, held = stage_ends(stage_shares(config.stages), updates), config.env.phase_steps
    windows = window_count(ends, held, config.env.window)
    if windows >= FEWEST:
        return []
    remedy = "raise --optim.max_updates, or lower --env.phase_steps, to have them judged"
    for window in range(max(1, (updates - 1) // (FEWEST - 1)), 0, -1):
        found = window_count(ends, held, window)
        if found >= FEWEST:
            remedy = f"--env.window {window} gives {found}"
            break
    return [
        f"note: {updates} update{'s have' if updates != 1 else ' has'} {windows} such "
        f"window{'s' if windows != 1 else ''}, and {FEWEST} are needed to judge whether predictions "
        f"are true: {remedy}"
    ]


def _stage_lines(setup: Setup) -> list[str]:
    """One line for each stage of a run that has several."""
    stages = setup.distiller.parts.stages
    ends = stage_ends(stage_shares(setup.config.stages), setup.updates)
    lines = []
    for number, (stage, start, end) in enumerate(zip(stages, (0, *ends), ends, strict=False), 1):
        names = [name for name, on in zip(setup.pool.names, stage.allowed, strict=True) if on]
        lines.append(
            f"stage {number}: {end - start:,} updates, learning rate {stage.learning_rate:g}: "
            f"{', '.join(names)}"
        )
    return lines if len(stages) > 1 else []


def describe(shape: Shape, model: PreTrainedModel) -> str:
    """A model in words."""
    return (
        f"{shape.layers} layers, width {shape.width}, {shape.heads} heads, "
        f"{parameter_count(model):,} parameters"
    )


def _start(setup: Setup) -> str:
    plan = setup.plan
    if plan.layer_map:
        layers = ", ".join(str(teacher) for _, teacher in plan.layer_map)
        whose = "fine-tuned teacher" if plan.source == "teacher" else "pretrained checkpoint"
        return f"starts from layers {layers} of the {whose}"
    if plan.init == "random":
        return "starts from random weights"
    return f"starts from {plan.init}"


# --------------------------------------------------------------------------- summary.json


def summarize(
    config: RunConfig,
    setup: Setup | None,
    *,
    status: str,
    stage: str,
    error: str | None,
    soft: bool,
    teacher: dict[str, Any],
    students: list[dict[str, Any]],
    search: dict[str, Any] | None,
    costs: Costs,
    writer: ScheduleWriter | None,
    metrics: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The run's ``summary.json``, also of a run that ended early.

    Args:
        config: the settings.
        setup: None where the run ended before it was prepared.
        status: ``complete``, ``interrupted`` or ``failed``.
        stage: the last stage that began.
        error: what ended a failed run.
        soft: whether actions are weights.
        teacher: figures of the teacher.
        students: figures of the finished students, the selected one first.
        search: figures of a finished search, with its ``seconds``.
        costs: what each finished stage cost.
        writer: the decisions so far.
        metrics: the lines of ``metrics.jsonl`` so far.
    """
    stages = ("search", "final", *(f"reference:{name}" for name in config.references))
    decisions = {stage: len(writer.rows(stage)) for stage in stages} if writer else {}
    cost = multiples(
        costs,
        kept=_all_kept(setup),
        teachers=len(setup.teachers) if setup else 1,
        online=config.search in ("online", "branch"),
    )
    return {
        "status": status,
        "stage": stage,
        "error": error,
        "task": config.task,
        "agent": config.agent,
        "method": config.method,
        "actions": "soft" if soft else "hard",
        "learned": config.search,
        "rewards": config.env.reward,
        "seed": config.seed,
        "data": setup.origin if setup else None,
        "builtin_data": setup.builtin if setup else None,
        "rows": _rows(setup) if setup else {},
        "headline": setup.task.metrics[0] if setup else None,
        "teacher": teacher,
        "students": students,
        "decisions": {stage: count for stage, count in decisions.items() if count},
        "search": search,
        "shares_over_time": _shares_over_time(writer) if students and writer else [],
        "calibration": calibration(metrics) if config.env.reward == "amortized" else None,
        "search_cost": search_cost(cost, config.references),
        "cost": {**cost, "stages": costs, **(setup.ledger.flat() if setup else {})},
        "pool": list(setup.pool.names) if setup else list(config.knowledge.pool),
        "student_start": f"{setup.plan.init} ({setup.plan.source})" if setup else None,
        "teacher_signals": setup.signals if setup else None,
        "fallbacks": setup.fallbacks if setup else [],
    }


def _rows(setup: Setup) -> dict[str, int]:
    splits = {"train": setup.train, "reward": setup.reward, **setup.dev}
    return {name: split.num_examples for name, split in splits.items()}


def _all_kept(setup: Setup | None) -> bool:
    return setup is not None and all(source.cached for source in setup.distiller.sources)


def _shares_over_time(writer: ScheduleWriter) -> list[list[float]]:
    actions = np.stack([row.action for row in writer.rows("final")])
    return time_means(actions, SHARE_PARTS).tolist()


# --------------------------------------------------------------------------- at the end


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of a run: students beside teacher, shares over time, cost of the search."""
    width = None if sys.stdout.isatty() else WIDTH
    console = console or Console(highlight=False, width=width)
    method = f"method {summary['method']}, " if summary.get("method") else ""
    title = f"{summary['task']}, {method}agent {summary['agent']}, dev split of {summary['data']}"
    if summary["builtin_data"]:
        title += f": generated data, NOT a {summary['task']} score"
    console.print()
    console.print(title, markup=False)
    console.print(students_table(summary))
    for student in summary["students"]:
        if student.get("reason"):
            console.print(f"* {student['name']} ended early: {student['reason']}", markup=False)
    if summary["shares_over_time"]:
        soft = summary["actions"] == "soft"
        what = "mean weight of each type" if soft else "share of the decisions with each type on"
        console.print(f"selected student: {what}, over its training", markup=False)
        console.print(shares_table(summary))
    if summary["calibration"] is not None:
        console.print(trust_line(summary["calibration"]), markup=False)
    table = cost_table(summary["cost"]["stages"])
    if table is not None:
        console.print("where the time went")
        console.print(table)
    for line in cost_lines(summary["cost"]):
        console.print(line, markup=False)
    console.print()


def students_table(summary: Mapping[str, Any]) -> Table:
    """Teacher, selected student and references: metrics, size, speed, work."""
    table = Table()
    table.add_column("model")
    teacher = summary["teacher"]
    metrics = list(teacher["metrics"])
    for name in (*metrics, "parameters", "ms/row", "updates", "train (s)"):
        table.add_column(name, justify="right")
    teachers = [("teacher", teacher)]
    teachers += [(f"teacher {i}", one) for i, one in enumerate(teacher.get("others", []), 2)]
    for name, row in [*teachers, *((s["name"], s) for s in summary["students"])]:
        table.add_row(
            Text(f"{name}*" if row.get("reason") else name),
            *(_number(row["metrics"].get(metric), ".4f") for metric in metrics),
            _number(row.get("parameters"), ","),
            _number(row.get("ms_per_example"), ".2f"),
            _number(row.get("updates"), ","),
            _number(row.get("seconds"), ".1f"),
        )
    return table


def shares_table(summary: Mapping[str, Any]) -> Table:
    """How much of each type was selected in each part of the final student's training."""
    parts: Sequence[Sequence[float]] = summary["shares_over_time"]
    table = Table()
    table.add_column("knowledge type")
    for part in range(len(parts)):
        table.add_column(f"{part + 1}/{len(parts)}", justify="right")
    table.add_column("all", justify="right")
    selected = summary["students"][0]["shares"]
    for k, name in enumerate(summary["pool"]):
        table.add_row(Text(name), *(f"{part[k]:.2f}" for part in parts), f"{selected[name]:.2f}")
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
