"""Transfer tables: one run's decisions over several settings, and the files they are left in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ksel.compare_page import write_page
from ksel.compare_results import Comparison, load_results, write_results, write_tables
from ksel.compare_tables import ALL
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.ledger import Ledger

OPTION = "--across"
OWN = {"seed": "--seeds N and --seed S", "out": "--out", "threads": "--threads"}
"""Settings that make no setting to transfer to, and what to use instead."""


@dataclass(frozen=True)
class Setting:
    """One place to transfer to.

    Attributes:
        values: what is set there, by dotted name.
        config: the run's settings with that.
        changed: all that differs from the run's, by dotted name.
    """

    values: dict[str, str]
    config: RunConfig
    changed: dict[str, Any]

    @property
    def label(self) -> str:
        """Its name in the tables: the task, and what else is set."""
        rest = [
            f"{name} {Path(value).name if Path(value).is_dir() else value}"
            for name, value in self.values.items()
            if name != "task"
        ]
        return ", ".join([self.config.task, *rest])


@dataclass
class Transfer:
    """What a transfer has measured so far.

    Attributes:
        method: the name of the replayed decisions in the tables.
        cells: rows of ``results.parquet``.
        teachers: label of a setting -> the teacher's score.
    """

    method: str
    cells: list[dict[str, Any]] = field(default_factory=list)
    teachers: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of what could not be played."""
        return [cell for cell in self.cells if cell["status"] == "failed"]


# --------------------------------------------------------------------------- what is asked for


def grid(words: Sequence[str], given: Sequence[str]) -> list[dict[str, str]]:
    """The combinations of ``--across SETTING=VALUE,VALUE``, the first option the slowest.

    Settings that go together are joined: ``task+teacher=rte+DIR,mrpc+DIR``.

    Args:
        words: values of the option.
        given: the other words of the command line.

    Raises:
        UsageError: no value, a setting twice, or one that is not to be crossed.
    """
    axes: list[list[dict[str, str]]] = []
    names: list[str] = []
    for word in words:
        left, _, right = word.partition("=")
        joined = [name.strip().removeprefix("--") for name in left.split("+")]
        values = split_values(right)
        parts = [value.split("+") if len(joined) > 1 else [value] for value in values]
        if any(len(part) != len(joined) or "" in part for part in parts) or "" in joined:
            raise UsageError(
                f"{OPTION} {word}: write SETTING=VALUE,VALUE, such as {OPTION} student.layers=2,4, or "
                f"for settings that go together task+teacher=rte+DIR,mrpc+DIR."
            )
        if len(set(values)) < len(values):
            raise UsageError(f"{OPTION} {word}: a value stands there twice. Give each once.")
        for name in joined:
            _check_name(name, names, given)
            names.append(name)
        axes.append([dict(zip(joined, part, strict=True)) for part in parts])
    return [
        {name: value for part in chosen for name, value in part.items()}
        for chosen in itertools.product(*axes)
    ]


def _check_name(name: str, before: Sequence[str], given: Sequence[str]) -> None:
    if name in OWN:
        raise UsageError(f"{OPTION} {name}: not here. Use {OWN[name]}.")
    option = f"--{name}"
    if name in before or any(one == option or one.startswith(f"{option}=") for one in given):
        raise UsageError(f"{OPTION} {name}: it is given twice. Give it once.")


def split_values(text: str) -> list[str]:
    """The values between commas; commas inside brackets or quotes divide nothing."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


# --------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Student:
    """One student that was played.

    Attributes:
        metrics: dev metrics, the headline first.
        updates: optimiser updates done.
        seconds: of environment and policy.
        reason: why it ended early, or None.
        spent: the ledger of its training.
    """

    metrics: Mapping[str, float]
    updates: int
    seconds: float
    reason: str | None
    spent: Ledger


def pair(
    transfer: Transfer,
    setting: Setting,
    seed: int,
    replayed: Student,
    plain: Student,
    facts: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Rows of the replayed student and of ``all`` beside it.

    One of the two computes the teacher's kept signals and the other finds them, so the unit of
    cost is the seconds of ``all`` with those that the replayed one spent on the teacher in its place.

    Args:
        transfer: the table.
        setting: where.
        seed: of both.
        replayed, plain: the students, in the order in which they were played.
        facts: further columns.
    """
    before = replayed.spent.seconds.get("teacher", 0.0)
    unit = plain.seconds + max(0.0, before - plain.spent.seconds.get("teacher", 0.0))
    rows = []
    for method, role, one in ((transfer.method, "method", replayed), (ALL, "baseline", plain)):
        seconds = unit if role == "baseline" else one.seconds
        rows.append(
            {
                **_identity(setting, method, seed, role),
                **facts,
                "status": "complete",
                "error": None,
                "metric": next(iter(one.metrics)),
                "higher_is_better": True,  # of all metrics in ksel.evaluation
                "score": next(iter(one.metrics.values())),
                "teacher_score": transfer.teachers.get(setting.label),
                "updates": one.updates,
                "updates_search": 0,
                "seconds_search": 0.0,
                "seconds_final": seconds,
                "seconds_total": seconds,
                "cost": seconds / unit if unit else None,
                "student_forwards": _examples(one, "student_forward", "held_out", "credit"),
                "student_backwards": _examples(one, "student_backward"),
                "teacher_forwards": _examples(one, "teacher"),
                "ended_early": one.reason,
                **{f"dev/{name}": value for name, value in one.metrics.items()},
            }
        )
    return rows


def failed(transfer: Transfer, setting: Setting, seed: int, error: str) -> list[dict[str, Any]]:
    """Rows of a pair that could not be played."""
    return [
        {
            **_identity(setting, method, seed, role),
            "status": "failed",
            "error": error,
            "higher_is_better": True,
        }
        for method, role in ((transfer.method, "method"), (ALL, "baseline"))
    ]


def _identity(setting: Setting, method: str, seed: int, role: str) -> dict[str, Any]:
    return {"task": setting.label, "method": method, "seed": seed, "role": role}


def _examples(one: Student, *parts: str) -> int:
    return sum(one.spent.examples.get(part, 0) for part in parts)


# --------------------------------------------------------------------------- what is left behind


def write_transfer(transfer: Transfer, folder: Path, name: str) -> Comparison:
    """Write the files that ``ksel.compare`` leaves: results, tables, page and plots.

    Args:
        transfer: with one row at least.
        folder: where.
        name: heading of the page.
    """
    write_results(folder, transfer.cells, [])
    comparison = write_tables(load_results(folder), folder)
    write_page(comparison, folder, name=name)
    return comparison
