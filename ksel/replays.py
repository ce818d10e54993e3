"""What a replay plays, and what replays gave: actions, records, the table beside the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.setup import Setup
from ksel.stages import stage_decisions, stage_ends, stage_shares
from ksel.trajectory import DecisionRow, Schedule

STAGE = "final"
"""The stage of a schedule that is replayed."""
FEWEST_SEEDS = 5
"""Below this many seeds nothing is said about where the mean may lie."""


@dataclass
class Replay:
    """One replayed student.

    Attributes:
        seed: its seed.
        metrics: dev metrics.
        updates: optimiser updates done.
        decisions: decisions taken.
        seconds: wall-clock seconds of environment and policy.
        reason: why it ended early, or None.
        rows: its decisions.
        compared: validate: what the student was compared with.
        identical: validate: whether it is the same; None in the other modes.
        details: validate: where it differs, and why perhaps.
    """

    seed: int
    metrics: dict[str, float]
    updates: int
    decisions: int
    seconds: float
    reason: str | None
    rows: list[DecisionRow] = field(repr=False)
    compared: str | None = None
    identical: bool | None = None
    details: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What ``replay.json`` keeps."""
        return {key: value for key, value in self.__dict__.items() if key != "rows"}


def statistics(replays: Sequence[Replay]) -> dict[str, dict[str, float]]:
    """Metric -> mean, sample standard deviation and number of seeds; empty for one replay."""
    if len(replays) < 2:
        return {}
    found = {}
    for name in replays[0].metrics:
        values = np.array([one.metrics[name] for one in replays])
        found[name] = {
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)),
            "seeds": len(values),
        }
    return found


def notes(replays: Sequence[Replay]) -> list[str]:
    """What the numbers mean, and which students ended early."""
    lines = [
        f"seed {one.seed} ended early after {one.updates} updates: {one.reason}"
        for one in replays
        if one.reason
    ]
    for name, found in statistics(replays).items():
        words = f"{name}: {found['mean']:.4f} +- {found['sd']:.4f} over {len(replays)} seeds"
        few = "; too few seeds for an interval" if len(replays) < FEWEST_SEEDS else ""
        lines.append(f"{words} (mean +- standard deviation{few})")
    return lines


def replay_table(title: str, original: Mapping[str, Any], replays: Sequence[Replay]) -> Table:
    """Each replayed student beside the original.

    Args:
        title: above the table.
        original: ``seed`` of the run, and where it got that far ``metrics``, ``updates``,
            ``decisions``, ``seconds``.
        replays: at least one.
    """
    table = Table(title=title.replace("[", r"\["), title_justify="left")
    table.add_column("student")
    metrics = list(replays[0].metrics)
    judged = any(one.identical is not None for one in replays)
    for name in (*metrics, "updates", "decisions", "seconds", *(("same",) if judged else ())):
        table.add_column(name, justify="right")
    _row(table, f"original, seed {original['seed']}", original, metrics, ["-"] * judged)
    for one in replays:
        early = r" \[ended early]" if one.reason else ""
        same = [{True: "yes", False: "NO", None: "-"}[one.identical]] * judged
        _row(table, f"replay, seed {one.seed}{early}", one.__dict__, metrics, same)
    found = statistics(replays)
    if found:
        table.add_section()
        for label, key in (("mean", "mean"), ("standard deviation", "sd")):
            table.add_row(label, *(f"{found[name][key]:.4f}" for name in metrics))
    return table


def _row(
    table: Table, label: str, values: Mapping[str, Any], metrics: Sequence[str], more: list[str]
) -> None:
    scores = values.get("metrics") or {}
    cells = [f"{scores[name]:.4f}" if scores.get(name) is not None else "-" for name in metrics]
    for name, form in (("updates", "{:,}"), ("decisions", "{:,}"), ("seconds", "{:.1f}")):
        value = values.get(name)
        cells.append("-" if value is None else form.format(value))
    table.add_row(label, *cells, *more)


def verdicts(replays: Sequence[Replay]) -> list[str]:
    """What validation found, in words; empty for the other modes."""
    lines = []
    for one in replays:
        if one.identical is None:
            continue
        student = f"seed {one.seed}, {one.decisions} decisions"
        if not one.identical:
            lines.append(f"NOT validated: {student}: differs from {one.compared}")
        elif one.details:
            lines.append(f"validated within tolerance: {student}: close to {one.compared}")
        else:
            lines.append(f"validated: {student}: identical to {one.compared}")
        lines += [f"  {detail}" for detail in one.details]
    return lines


# --------------------------------------------------------------------------- actions


def logged_actions(schedule: Schedule, pool: Sequence[str]) -> np.ndarray:
    """The actions [D, K] of the run's final student.

    Raises:
        UsageError: the schedule has none, or is one of another pool.
    """
    if (STAGE, 0) not in schedule.stages():
        held = ", ".join(dict.fromkeys(stage for stage, _ in schedule.stages())) or "nothing"
        raise UsageError(
            f"RUN: its schedule.parquet has no decision of a final student (it holds: {held}): the "
            f"run stopped before it. Give a run that got that far, or use --mode policy."
        )
    _check_pool(schedule.pool, pool)
    return schedule.actions(STAGE, 0)


def carried_actions(
    schedule: Schedule, setup: Setup, run: RunConfig
) -> tuple[np.ndarray, str | None]:
    """The logged actions for another student, stretched in relative time if its budget is another.

    Args:
        schedule: of the run.
        setup: what they are to be played in.
        run: settings of the run.

    Returns:
        [D, K] actions, and a line that says how they were stretched, or None.

    Raises:
        UsageError: the schedule has no final student, is one of another pool, or was cut short.
    """
    logged = logged_actions(schedule, setup.pool.names)
    logged_stages = _decisions(run, _budget(schedule))
    whole = sum(logged_stages)
    if len(logged) < whole:
        raise UsageError(
            f"RUN: the final student's schedule ends after {len(logged)} of {whole} decisions "
            f"(interrupted, or diverged), so it cannot be carried over. Give a run that came to "
            f"its end, or use --mode policy."
        )
    stages = _decisions(setup.config, setup.updates)
    if run.stages != setup.config.stages:
        raise UsageError(
            "--stages: the logged masks belong to the run's stages. Leave it out, or use "
            "--mode policy."
        )
    wanted = sum(stages)
    if stages == logged_stages:
        return logged, None
    line = (
        f"schedule: {whole} decisions were logged and this student takes {wanted}; stretched in "
        f"relative time (decision i takes the logged one number floor(i x {whole} / {wanted}); "
        f"where there are stages, within each)"
    )
    parts = np.split(logged[:whole], np.cumsum(logged_stages)[:-1])
    pairs = zip(parts, logged_stages, stages, strict=True)
    return np.concatenate([part[stretched(old, new)] for part, old, new in pairs]), line


def _decisions(config: RunConfig, updates: int) -> list[int]:
    """Decisions of each stage."""
    ends = stage_ends(stage_shares(config.stages), updates)
    return stage_decisions(ends, config.env.phase_steps)


def stretched(logged: int, wanted: int) -> np.ndarray:
    """For each of ``wanted`` decisions the number of the logged one at the same share of time."""
    return np.arange(wanted) * logged // wanted


def was_measured(schedule: Schedule) -> bool:
    """Whether the run measured rewards with its final student.

    Raises:
        UsageError: the schedule does not say.
    """
    measured = schedule.meta.get("measured")
    if not isinstance(measured, bool):
        raise _unsaid("whether rewards were measured")
    return measured


def was_observed(schedule: Schedule) -> bool:
    """Whether the run observed the student before each decision, which measuring does anyway."""
    return bool(schedule.meta.get("observed", False)) or was_measured(schedule)


def _budget(schedule: Schedule) -> int:
    updates = schedule.meta.get("updates")
    if not isinstance(updates, int):
        raise _unsaid("the step budget")
    return updates


def _unsaid(what: str) -> UsageError:
    return UsageError(
        f"RUN: its schedule.parquet does not say {what}, so it cannot be repeated. Make the run "
        f"again with this version of ksel."
    )


def _check_pool(logged: Sequence[str], pool: Sequence[str]) -> None:
    if list(logged) == list(pool):
        return
    missing = [name for name in logged if name not in pool]
    extra = [name for name in pool if name not in logged]
    parts = [f"the schedule has {', '.join(missing)}, the pool does not"] if missing else []
    parts += [f"the pool has {', '.join(extra)}, the schedule does not"] if extra else []
    raise UsageError(
        f"--knowledge.pool: the schedule does not fit: "
        f"{'; '.join(parts) or 'the same types are in another order'}. "
        f"Use its pool: {', '.join(logged)}."
    )
