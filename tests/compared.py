"""Simulated comparisons with a known truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ksel.compare_files import Results, load_results, write_results

EFFECTS = {"all_action": 0.02, "a2c": 0.0, "best_static": 0.005, "all": 0.0, "finetune": -0.05}
COSTS = {"all_action": 1.3, "a2c": 2.9, "best_static": 2.8, "all": 1.0, "finetune": 0.7}
BASELINES = ("best_static", "all", "finetune")


def simulate(
    folder: Path,
    tasks: Sequence[str] = ("rte", "mrpc"),
    effects: Mapping[str, float] = EFFECTS,
    seeds: int = 8,
    *,
    noise: float = 0.006,
    level: float = 0.7,
    teacher: float | None = 0.85,
    failed: Sequence[tuple[str, str, int]] = (),
    points: int = 8,
    sign: float = 1.0,
    metric: str = "accuracy",
    **columns: Any,
) -> Results:
    """Write and load a comparison whose seeds share a part of their luck.

    Args:
        folder: where its files go.
        tasks: each a little easier than the one before.
        effects: method -> what it adds to the score.
        seeds: number of them.
        noise: standard deviation of a student's own luck; that of the seed is thrice it.
        level: score of a method without effect.
        teacher: its score on the first task.
        failed: task, method, seed of cells that failed.
        points: measurements of each curve.
        sign: -1 = a lower score is better.
        metric: name of the metric.
        columns: further or other columns, the same in all rows.
    """
    rng = np.random.default_rng(0)
    cells: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        luck = rng.normal(0, 3 * noise, seeds)
        for method, effect in effects.items():
            for seed in range(seeds):
                own = {"task": task, "method": method, "seed": seed}
                score = level + 0.03 * number + sign * effect + luck[seed] + rng.normal(0, noise)
                bad = (task, method, seed) in failed
                cell = cell_record(own, score, teacher and teacher + 0.03 * number, bad)
                cells.append({**cell, "metric": metric, "higher_is_better": sign > 0, **columns})
                if bad:
                    continue
                for place in range(points):
                    share = place / (points - 1)
                    value = score - sign * 0.2 * (1 - share) ** (2 + 40 * max(effect, 0))
                    point = {"update": round(400 * share), "share": share, "value": value}
                    curves.append({**own, **point, "metric": metric, "rows": 277})
    write_results(folder, cells, curves)
    return load_results(folder)


def cell_record(
    own: dict[str, Any], score: float, teacher: float | None, failed: bool
) -> dict[str, Any]:
    """One row of results.parquet."""
    method = own["method"]
    cost = COSTS.get(method, 1.0)
    search = 30.0 if method in ("a2c", "best_static") else 0.0
    return {
        **own,
        "role": "baseline" if method in BASELINES else "method",
        "status": "failed" if failed else "complete",
        "error": "RuntimeError: out of\nluck" if failed else None,
        "metric": "accuracy",
        "higher_is_better": True,
        "score": None if failed else score,
        "teacher_score": teacher,
        "updates": 400,
        "updates_search": 20 * search,
        "seconds_search": search,
        "seconds_final": 20.0 * cost,
        "seconds_total": search + 20.0 * cost,
        "cost": cost,
        "student_forwards": 6400 * cost,
        "student_backwards": 6400,
        "teacher_forwards": 0 if method == "finetune" else 2490,
        "reward_objective": None,
        "run": f"{own['task']}-{method}-s{own['seed']}",
        "dev/f1": score - 0.01,
    }
