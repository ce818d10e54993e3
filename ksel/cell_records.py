"""Records of a comparison's cells: read out of runs, kept as JSON, put together as two tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ksel.compare_files import COMPLETE, FAILED, write_results
from ksel.errors import UsageError
from ksel.files import write_json
from ksel.tracking import METRICS_FILE, read_metrics

STAGES = ("search", "final")
"""Stages of a run whose work counts for its final student."""
UNIT = "all"
"""The method whose seconds are the unit of cost."""
STUDENT_FORWARDS = ("student_forward", "held_out", "credit")
"""Parts of the ledger in which the student reads examples."""


def record_of(identity: Mapping[str, Any], run: Path, rows_on_the_way: int) -> dict[str, Any]:
    """A finished cell's record, out of its run's folder.

    Args:
        identity: ``task``, ``method``, ``seed``, ``role``.
        run: the run's folder.
        rows_on_the_way: dev rows of a measurement on the way, at most.

    Returns:
        The columns of ``results.parquet`` but ``cost``, and ``curve``, the rows of
        ``curves.parquet``.

    Raises:
        UsageError: the run has no complete ``summary.json``.
    """
    summary = complete_summary(run)
    if summary is None:
        raise UsageError(f"{run} is not the folder of a complete run.")
    metric = str(summary["headline"])
    student = summary["students"][0]
    teacher = summary["teacher"].get("metrics") or {}
    stages = summary["cost"]["stages"]
    seconds = {stage: float(stages.get(stage, {}).get("seconds", 0.0)) for stage in STAGES}
    lines = [x for x in read_metrics(run / METRICS_FILE) if x["stage"] == "final"]
    objectives = [x["reward/objective"] for x in lines if x.get("reward/objective") is not None]
    updates = _budget(run, student)
    return {
        **identity,
        "status": COMPLETE,
        "error": None,
        "metric": metric,
        "higher_is_better": True,  # of all metrics in ksel.evaluation
        "score": student["metrics"][metric],
        "teacher_score": teacher.get(metric),
        "updates": updates,
        "updates_search": int((summary.get("search") or {}).get("updates", 0)),
        "seconds_search": seconds["search"],
        "seconds_final": seconds["final"],
        "seconds_total": seconds["search"] + seconds["final"],
        "student_forwards": _examples(stages, STUDENT_FORWARDS),
        "student_backwards": _examples(stages, ("student_backward",)),
        "teacher_forwards": _examples(stages, ("teacher",)),
        "reward_objective": objectives[-1] if objectives else None,
        "ended_early": student.get("reason"),
        "builtin_data": bool(summary["builtin_data"]),
        "run": run.name,
        **{f"dev/{name}": value for name, value in student["metrics"].items()},
        "curve": _curve(lines, metric, updates, summary["rows"], rows_on_the_way),
    }


def failed_record(identity: Mapping[str, Any], error: str, run: str) -> dict[str, Any]:
    """The record of a cell that could not be run."""
    return {**identity, "status": FAILED, "error": error, "run": run, "curve": []}


def complete_summary(run: Path) -> dict[str, Any] | None:
    """``summary.json`` of a run that came to its end, else None."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(summary, dict) and summary.get("status") == "complete"
    return summary if whole else None


def _budget(run: Path, student: Mapping[str, Any]) -> int:
    """The step budget, which a student that ended early has not spent."""
    try:
        content = pq.read_schema(run / "schedule.parquet").metadata[b"ksel"]
        return int(json.loads(content)["updates"])
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid):
        return int(student["updates"])


def _examples(stages: Mapping[str, Any], parts: Sequence[str]) -> int:
    """Examples of these parts, in the search and for the final student."""
    return sum(
        int(stages.get(stage, {}).get("parts", {}).get(part, {}).get("examples", 0))
        for stage in STAGES
        for part in parts
    )


def _curve(
    lines: Sequence[Mapping[str, Any]],
    metric: str,
    budget: int,
    rows: Mapping[str, int],
    rows_on_the_way: int,
) -> list[dict[str, Any]]:
    """Measurements on the way, the last of them at the end, and the one of all dev rows at the end."""
    dev = {name: count for name, count in rows.items() if name not in ("train", "reward")}
    some = sum(min(count, rows_on_the_way) for count in dev.values())
    end = {x["step"]: x[f"dev/{metric}"] for x in lines if x.get(f"dev/{metric}") is not None}
    way = {
        x["step"]: x[f"student/{metric}"] for x in lines if x.get(f"student/{metric}") is not None
    }
    every = sum(dev.values())
    if some == every:
        way |= end
    points = [(step, value, some) for step, value in sorted(way.items())]
    points += [(step, value, every) for step, value in end.items() if some < every]
    return [
        {"update": step, "share": step / budget, "metric": metric, "value": value, "rows": count}
        for step, value, count in points
    ]


# --------------------------------------------------------------------------- files


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Keep a cell's record as ``cells/NAME.json``."""
    write_json(folder / "cells" / f"{name}.json", dict(record))


def read_records(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The records of those of these cells that have one.

    Raises:
        UsageError: a record is damaged.
    """
    found = {}
    for name in names:
        path = folder / "cells" / f"{name}.json"
        if not path.exists():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            assert isinstance(record, dict)
            assert {"task", "method", "seed", "status", "curve"} <= set(record)
        except (OSError, ValueError, AssertionError) as error:
            raise UsageError(
                f"--out: {path} is damaged. Remove it; its cell is then taken from its run, or run "
                f"again."
            ) from error
        found[name] = record
    return found


def write_frames(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write ``results.parquet`` and ``curves.parquet`` of these records, each whole or not at all."""
    units = {
        (one["task"], one["seed"]): one["seconds_total"]
        for one in records
        if one["method"] == UNIT and one["status"] == COMPLETE
    }
    cells, points = [], []
    for one in records:
        unit = units.get((one["task"], one["seed"]))
        seconds = one.get("seconds_total")
        cost = seconds / unit if unit and seconds is not None else None
        cells.append({**{k: v for k, v in one.items() if k != "curve"}, "cost": cost})
        own = {key: one[key] for key in ("task", "method", "seed")}
        points += [{**own, **point} for point in one["curve"]]
    write_results(folder, cells, points)
