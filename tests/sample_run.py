"""A run's folder made of invented but plausible numbers, for the tests of report and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ksel.files import write_json, write_text
from ksel.tracking import Tracker
from ksel.trajectory import DecisionRow, ScheduleWriter

POOL = ("label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1")
FEATURES = tuple(f"feature_{i}" for i in range(6 + 5 * len(POOL)))
STUDENTS = {"selected": 0.91, "finetune": 0.86, "all": 0.89}


def summary(**changes: Any) -> dict[str, Any]:
    students = [
        {
            "name": name,
            "metrics": {"accuracy": accuracy},
            "parameters": 17_400_194,
            "ms_per_example": 1.52,
            "updates": 375,
            "seconds": 61.25,
            "shares": {kind: 1.0 if name == "all" else 0.15 * k for k, kind in enumerate(POOL, 1)},
        }
        for name, accuracy in STUDENTS.items()
    ]
    return {
        "status": "complete",
        "task": "qnli",
        "agent": "a2c",
        "seed": 0,
        "data": "builtin corpus v1",
        "builtin_data": True,
        "headline": "accuracy",
        "teacher": {
            "name": "all-MiniLM-L6-v2",
            "metrics": {"accuracy": 0.955},
            "parameters": 22_713_986,
            "ms_per_example": 2.97,
        },
        "students": students,
        "cost": {
            "search_seconds": 88.0,
            "final_seconds": 64.0,
            "plain_seconds": 61.25,
            "search_multiple": 1.44,
            "total_multiple": 2.48,
            "stages": {
                "search": {
                    "seconds": 88.0,
                    "parts": {
                        "held_out": {"seconds": 30.0, "examples": 96_256},
                        "teacher": {"seconds": 12.0, "examples": 4_000},
                        "student_forward": {"seconds": 20.0, "examples": 12_032},
                        "dev": {"seconds": 7.5, "examples": 2_000},
                    },
                },
                "final": {"seconds": 64.0, "parts": {}},
            },
        },
        "pool": list(POOL),
        "fallbacks": ["no network: the built-in corpus stands in for nyu-mll/glue"],
        **changes,
    }


def row(rng: np.random.Generator, stage: str, episode: int, d: int, total: int) -> DecisionRow:
    kinds = len(POOL)
    late = d / total
    chance = np.clip([0.4 + 0.5 * late, 0.85, 0.7 - 0.6 * late, 0.9 - 0.85 * late, 0.5], 0, 1)
    size = np.array([0.7, 6.0, 0.05, 0.9, 0.2]) * (0.35 + 0.65 * np.exp(-3 * late))
    norm = np.full(kinds, np.nan)
    if d % 10 == 0:
        norm = size * rng.lognormal(0.3, 0.2, kinds)
    return DecisionRow(
        episode=episode,
        stage=stage,
        decision=d,
        update=d,
        action=(rng.random(kinds) < chance).astype(np.float32),
        probabilities=chance,
        log_prob=-2.0,
        loss=size * rng.lognormal(0, 0.15, kinds),
        scale=size,
        grad_norm=norm,
        credit=np.full(kinds, np.nan),
        reward=float(rng.normal(0.15 * episode, 0.8)),
        objective=0.7 - 0.4 * late,
        drop=0.004,
        reward_scale=0.02,
        observation=rng.uniform(-1, 1, len(FEATURES)),
        terminated=d == total - 1,
    )


def make_run(folder: Path, *, final: bool = True, **changes: Any) -> Path:
    """A whole run, or (``final=False``) one stopped in its second search episode."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", "task: qnli\nagent: a2c\nseed: 0\ndata: null\n")
    write_json(folder / "versions.json", {"ksel": "0.1.0", "torch": "2.13"})
    write_json(folder / "teacher.json", summary()["teacher"])
    writer = ScheduleWriter(
        POOL, FEATURES, {"soft": False, "task": "qnli", "agent": "a2c", "seed": 0}
    )
    for episode in range(4 if final else 2):
        for d in range(94 if final or episode == 0 else 31):
            writer.add(row(rng, "search", episode, d, 94))
    with Tracker(folder, POOL) as tracker:
        if final:
            for d in range(375):
                writer.add(row(rng, "final", 0, d, 375))
            for name, accuracy in STUDENTS.items():
                stage = "final" if name == "selected" else f"reference:{name}"
                for part in range(1, 5):
                    value = 0.5 + (accuracy - 0.5) * (1 - 0.35**part)
                    tracker.log(stage, 94 * part, {"student/accuracy": value})
            write_json(folder / "summary.json", summary(**changes))
    writer.write(folder / "schedule.parquet")
    return folder
