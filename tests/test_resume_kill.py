"""Runs in processes of their own, killed at random moments, end as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from job import leftovers, run_job, small
from resumed import (
    check_same,
    forked,
    killed_when,
    lines_of,
    no_report,
    weights_differ,
    write_values,
)

A2C_SEARCH = {"agent": "a2c", "a2c": {"n_steps": 4}, "episodes": {"count": 2, "share": 1.0}}
BUDGET = 30
"""Updates of each student."""


def settings(data: Path, teacher: Path, store: Path, **changes: Any) -> dict[str, Any]:
    own = {
        "optim": {"max_updates": BUDGET, "learning_rate": 1e-3},
        "checkpoint": {"every": 3, "share": 1.0},
        "references": ["all"],
        **changes,
    }
    return small(tiny.settings(data, teacher, store), own)


def storm(
    folder: Path, values: dict[str, Any], kills: int, seed: int, patch: pytest.MonkeyPatch
) -> tuple[Path, int]:
    """Run a job, kill it over and over at random moments, go on each time; the run and the kills.

    A moment is a number of measurements written down, spread over the whole run, and a pause after
    it; each kill is SIGKILL or Ctrl-C.
    """
    no_report(patch)
    rng = np.random.default_rng(seed)
    write_values(folder / "run.yaml", values)
    run = folder / "run"
    argv = ["--config", str(folder / "run.yaml"), "--out", str(folder), "--name", "run"]
    searched = 2 if values["agent"] in ("a2c", "ddpg", "bandit") else 0
    total = (searched + 2) * BUDGET
    done = 0
    for mark in np.sort(rng.integers(0, total, kills)).tolist():
        child = forked(argv, folder / "log.txt")
        sign = signal.SIGKILL if rng.random() < 0.6 else signal.SIGINT
        pause = float(rng.uniform(0, 0.06))
        code = killed_when(child, lambda mark=mark: lines_of(run) > mark, sign, pause)
        if code is None:
            break
        assert code == -signal.SIGKILL if sign == signal.SIGKILL else code == 130, code
        done += 1
        argv = ["--resume", str(run)]
    else:
        child = forked(argv, folder / "log.txt")
        assert killed_when(child, lambda: False, signal.SIGKILL, 0) is None, "it did not end"
    return run, done


def test_killed_three_times(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    values = settings(
        tiny_data, tiny_teacher, tmp_path / "store", **A2C_SEARCH, signals={"source": "disk"}
    )
    run, kills = storm(tmp_path, values, 3, 103, monkeypatch)  # 9, 37 and 66 of 120 measurements
    assert kills == 3
    values["store"] = str(tmp_path / "another")
    whole = run_job(tmp_path, values, name="whole")
    check_same(whole.folder, run)
    assert leftovers(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("source", ["disk", "memory"])
def test_killed_at_twenty_moments(
    tmp_path: Path,
    tiny_data: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
):
    """Search, writing of signals and of checkpoints, final student and reference included."""
    values = settings(
        tiny_data, tiny_teacher, tmp_path / "store", **A2C_SEARCH, signals={"source": source}
    )
    run, kills = storm(tmp_path, values, 20, 2, monkeypatch)
    assert kills == 20
    values["store"] = str(tmp_path / "another")
    check_same(run_job(tmp_path, values, name="whole").folder, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"agent": "all_action"},
        {"agent": "static"},
        {"agent": "ddpg", "episodes": {"count": 2, "share": 1.0}},
        {"agent": "bandit", "episodes": {"count": 2, "share": 1.0}},
        {**A2C_SEARCH, "students": 2},
    ],
    ids=["all_action", "static", "ddpg", "bandit", "students"],
)
def test_every_agent_survives(
    tmp_path: Path,
    tiny_data: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
):
    values = settings(tiny_data, tiny_teacher, tmp_path / "store", **changes)
    run, kills = storm(tmp_path, values, 6, 3, monkeypatch)
    assert kills == 6
    values["store"] = str(tmp_path / "another")  # in which nothing is found done
    check_same(run_job(tmp_path, values, name="whole").folder, run)


@pytest.mark.slow
def test_killed_while_the_teacher_is_fine_tuned(tmp_path: Path, tiny_data: Path):
    """Fine-tuning begins anew; the run is what it would have been."""
    values = settings(
        tiny_data,
        Path("tiny"),
        tmp_path / "store",
        agent="static",
        fine_tune={"max_updates": 60, "batch_size": 8},
    )
    write_values(tmp_path / "run.yaml", values)
    own = ["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path), "--name", "run"]
    log, run = tmp_path / "log.txt", tmp_path / "run"
    child = forked(own, log)
    begun = "fine-tuning tiny"
    due = lambda: log.exists() and begun in log.read_text()  # noqa: E731
    assert killed_when(child, due, signal.SIGKILL, 0.3) == -signal.SIGKILL
    assert not list((tmp_path / "store").rglob("model.safetensors"))
    child = forked(["--resume", str(run)], log)
    assert killed_when(child, lambda: False, signal.SIGKILL, 0) is None
    assert "has no checkpoint yet, so it begins anew" in log.read_text()
    assert log.read_text().count(begun) == 2
    values["store"] = str(tmp_path / "another")
    check_same(run_job(tmp_path, values, name="whole").folder, run)


@pytest.mark.slow
def test_from_the_shell(tmp_path: Path, tiny_data: Path, tiny_teacher: Path):
    values = settings(tiny_data, tiny_teacher, tmp_path / "store", **A2C_SEARCH)
    write_values(tmp_path / "run.yaml", values)
    run = tmp_path / "run"
    python = [sys.executable, "-u", "-m", "ksel.run"]
    own = ["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path), "--name", "run"]
    for argv, mark, sign in (
        (own, 20, signal.SIGKILL),
        (["--resume", str(run)], 70, signal.SIGINT),
    ):
        with subprocess.Popen([*python, *argv], stdout=subprocess.PIPE, text=True) as process:
            while lines_of(run) < mark:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(sign)
            out, _ = process.communicate(timeout=120)
    assert f"go on with it: python -m ksel.run --resume {run}" in out
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    done = subprocess.run([*python, "--resume", str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = subprocess.run([*python, "--resume", str(run)], capture_output=True, text=True)
    assert again.returncode == 2
    assert "is complete" in again.stderr
    whole = run_job(tmp_path, values, name="whole").folder
    assert weights_differ(whole, run) == []
    check_same(whole, run)
