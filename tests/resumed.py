"""Runs that are cut short and gone on with, and what has to be equal to a run never interrupted."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from job import Outcome
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ksel.run
from ksel.cli import guard
from ksel.distiller import Distiller
from ksel.trajectory import read_schedule

OFTEN = {"checkpoint": {"every": 1, "share": 1.0}}
"""A checkpoint wherever there can be one."""
TIMED = (
    "seconds",
    "fine_tune_seconds",
    "ms_per_example",
    "cost",
    "costs",
    "search_cost",
    "search_multiple",
)
"""What depends on the clock, or on which signals had been computed before."""


class CrashError(RuntimeError):
    """What a run is cut short with."""


@contextlib.contextmanager
def crashing(nth: int, owner: Any = Distiller, name: str = "update") -> Any:
    """Inside, the nth call of a function is an error that nobody expects."""
    original, calls = getattr(owner, name), itertools.count(1)

    def crash(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise CrashError
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CrashError):
        patch.setattr(owner, name, crash)
        yield


def no_report(patch: pytest.MonkeyPatch) -> None:
    """Seconds of plotting that no test here looks at."""
    stand_in = lambda run: (run / "report.html").write_text("<p>stand-in</p>")  # noqa: E731
    patch.setattr("ksel.leaving.write_report", stand_in)


def go_on(run: Path, *argv: str) -> Outcome:
    """``--resume`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        no_report(patch)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = guard(ksel.run.main, ["--resume", str(run), *argv])
    return Outcome(code, out.getvalue(), err.getvalue(), run)


# ------------------------------------------------------------------------ what has to be equal


def check_same(whole: Path, other: Path) -> None:
    """Both runs are complete, with the same weights, schedule, policy, metrics and points of curves."""
    assert not (other / "checkpoint").exists()
    assert weights_differ(whole, other) == []
    mine, theirs = (read_schedule(run / "schedule.parquet") for run in (whole, other))
    pd.testing.assert_frame_equal(mine.frame, theirs.frame, check_exact=True)
    assert mine.meta == theirs.meta
    policies = [(run / "policy" / "policy.json").read_text() for run in (whole, other)]
    assert policies[0] == policies[1]
    assert measured(other) == measured(whole)
    assert timeless(summary(other)) == timeless(summary(whole))
    assert summary(other)["status"] == "complete"


def weights_differ(a: Path, b: Path) -> list[str]:
    """Names of the tensors of the final students that are not equal to the bit."""
    mine, theirs = (load_file(run / "student" / "model.safetensors") for run in (a, b))
    assert mine.keys() == theirs.keys()
    return [name for name in mine if not torch.equal(mine[name], theirs[name])]


def measured(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; of what was spent, the examples that no cache decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not _timed(k)} for line in lines]


def _timed(tag: str) -> bool:
    return tag.startswith("cost/") and (tag.endswith("_seconds") or tag == "cost/teacher_examples")


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def timeless(value: Any) -> Any:
    """A summary without what the clock decides."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMED}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def points(run: Path) -> dict[tuple[str, str], list[str]]:
    """What TensorBoard shows: (folder, tag) -> points, without those of the clock."""
    found = {}
    for folder in sorted((run / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith(("cost/", "time/")):
                # as text, in which nan is equal to nan
                # event files of one second are read in the order of their names, 10 before 9
                scalars = sorted(events.Scalars(tag), key=lambda e: e.step)
                found[folder.name, tag] = [f"{e.step} {e.value}" for e in scalars]
    return found


# ------------------------------------------------------------------------ processes of their own


def forked(argv: list[str], log: Path) -> int:
    """Run the main job in a child process; its number."""
    child = os.fork()
    if child:
        return child
    code = 99
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
    try:
        with log.open("a", buffering=1) as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
            code = guard(ksel.run.main, argv)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def killed_when(
    child: int, due: Callable[[], bool], sign: int, pause: float, seconds: float = 120.0
) -> int | None:
    """Send a signal once something has happened and a pause has passed; the exit code.

    Negative for a signal, and None if the run ended by itself before.
    """
    end = time.monotonic() + seconds
    while not due():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return None
        assert time.monotonic() < end, "it does not get there"
        time.sleep(0.002)
    time.sleep(pause)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, sign)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == 0 else code


def lines_of(run: Path) -> int:
    """Measurements that a run has written down."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def write_values(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def pressed(sign: int) -> bool:
    """True for Ctrl-C, after which a run ends in its own way."""
    return sign == signal.SIGINT
