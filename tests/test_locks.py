"""Two processes at once on a run, a store of teachers, a cache of signals: none waits forever."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from job import run_job, small
from resumed import check_same, forked, killed_when, no_report, write_values

from ksel.errors import UsageError
from ksel.locks import alone, sign, turn
from ksel.signal_files import FileStore
from ksel.signal_store import Layout, Slot


@contextlib.contextmanager
def other(hold: Callable[[], Any], ready: Path) -> Iterator[int]:
    """Inside, another process is within a context; its number."""
    child = os.fork()
    if not child:
        with hold():
            ready.touch()
            time.sleep(60)
        os._exit(0)
    while not ready.exists():
        time.sleep(0.005)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_run_belongs_to_one_process_until_it_is_dead(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    with other(lambda: alone(run), tmp_path / "ready") as child:
        with pytest.raises(UsageError, match="another process is at work"), alone(run):
            pass
        end(child)
        with alone(run):
            pass


def test_a_turn_is_waited_for_and_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ksel.locks.SOON", 0.05)
    said: list[str] = []
    path = tmp_path / "locks" / "one"
    with other(lambda: turn(path, 1, print, "x"), tmp_path / "ready") as child:
        began = time.monotonic()
        with turn(path, 0.3, said.append, "the work") as mine:
            assert not mine
        assert 0.3 <= time.monotonic() - began < 2
        assert said[0].startswith(f"the work: waiting for process {child} on ")
        assert said[1].startswith(f"the work: process {child} on ")
        assert said[1].endswith("is still at it after 0 s; not waiting longer")
        end(child)
        with turn(path, 0.3, said.append, "the work") as mine:
            assert mine
    assert len(said) == 2
    assert not path.exists()


def test_who_waited_gets_the_turn_although_the_file_was_removed(tmp_path: Path):
    path = tmp_path / "one"
    turns: list[bool] = []

    def wait() -> None:
        with turn(path, 5, lambda _: None, "x") as mine:
            turns.append(mine and path.exists())

    waiting = threading.Thread(target=wait)
    with turn(path, 1, print, "x"):
        waiting.start()
        time.sleep(0.1)
        assert turns == []
    waiting.join()
    assert turns == [True]
    assert not path.exists()


def cache(folder: Path, say: Callable[[str], None] = print) -> FileStore:
    layout = Layout.of(np.full(16, 3))
    return FileStore(folder, "key", layout, {"logits": Slot(False, 2)}, "float32", say)


def test_a_process_that_was_stopped_while_writing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ksel.signal_files.LONGEST_WAIT", 0.4)
    monkeypatch.setattr("ksel.locks.SOON", 0.1)
    said: list[str] = []
    store = cache(tmp_path / "cache", said.append)

    @contextlib.contextmanager
    def stopped() -> Iterator[None]:
        handle = os.open(tmp_path / "cache" / "lock", os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
        sign(handle)
        yield

    value = {"logits": np.ones((8, 2), np.float32)}
    with other(stopped, tmp_path / "ready") as child:
        with pytest.raises(UsageError, match=rf"--store: process {child} on .* has been writing"):
            store.keep(0, value)
        assert said[0].startswith(f"teacher signals: waiting for process {child}")
        end(child)
        store.keep(0, value)  # what a dead process held is free
    assert list(store.missing(["logits"], np.array([0, 1]))) == [1]


def jobs(folder: Path, values: dict[str, Any], patch: pytest.MonkeyPatch) -> list[Path]:
    """Two equal runs that start at once."""
    no_report(patch)
    write_values(folder / "run.yaml", values)
    children = {}
    for name in ("one", "two"):
        argv = ["--config", str(folder / "run.yaml"), "--out", str(folder), "--name", name]
        children[name] = forked(argv, folder / f"{name}.txt")
    for child in children.values():
        assert killed_when(child, lambda: False, signal.SIGKILL, 0) is None
    return [folder / name for name in children]


def test_two_runs_at_once_fill_one_cache_and_fine_tune_one_teacher(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
):
    changes: dict[str, Any] = {
        "agent": "static",
        "references": ["all"],
        "signals": {"source": "disk"},
        "fine_tune": {"max_updates": 40, "batch_size": 8},
    }
    values = small(tiny.settings(tiny_data, Path("tiny"), tmp_path / "store"), changes)
    runs = jobs(tmp_path, values, monkeypatch)
    logs = [(tmp_path / f"{run.name}.txt").read_text() for run in runs]
    assert sum("fine-tuning tiny" in log for log in logs) == 1
    assert sum("fine-tuned on rte, from the store" in log for log in logs) == 1
    values["store"] = str(tmp_path / "another")
    whole = run_job(tmp_path, values, name="whole").folder
    for run in runs:
        check_same(whole, run)
    assert not any((tmp_path / "store" / "locks").iterdir())
