"""``python -m ksel.compare_worker``: a worker of ``ksel.compare``; does its pieces of work."""

from __future__ import annotations

import contextlib
import gc
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agents.follow import ScheduledPolicy
from agents.policy import Policy, load_policy
from envs.distillation import DistillationEnv
from ksel import run
from ksel.cell_records import complete_summary, record_of
from ksel.cells import TEACHER
from ksel.cli import quiet_libraries
from ksel.errors import UsageError
from ksel.executors import into_log, serve
from ksel.methods import read_yaml
from ksel.replays import carried_actions
from ksel.resuming import OPTION
from ksel.saved import CONFIG, POLICY, SCHEDULE, STUDENT, open_run
from ksel.settings import parse_run
from ksel.setup import Setup, prepare
from ksel.tracking import Progress
from ksel.trajectory import read_schedule


def main(argv: list[str]) -> int:
    """Serve until the input ends."""
    if argv:
        raise UsageError("ksel.compare starts this itself; it takes no options.")
    return serve(work)


def work(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Do a piece of a comparison's work.

    Args:
        payload: ``kind``: ``teacher`` prepares a task's data and teacher, ``cell`` makes a run;
            ``folder`` of the comparison; ``name`` of the cell; ``identity`` of a cell; ``played`` and
            ``slim`` as in the plan; ``inline`` where it shares the terminal.

    Returns:
        The cell's record; empty for a teacher.

    Raises:
        Exception: whatever the run raised.
        KeyboardInterrupt: the run was interrupted.
    """
    folder, name = Path(payload["folder"]), str(payload["name"])
    if not (folder / "cells" / f"{name}.yaml").is_file():
        raise UsageError(
            f"--out: {folder} is not in reach of this worker. Choose a folder that all machines see."
        )
    prefix = "teacher-" if payload["kind"] == TEACHER else ""
    with _log(folder / "logs" / f"{prefix}{name}.log", bool(payload.get("inline"))):
        try:
            if payload["kind"] == TEACHER:
                return _teacher(folder, name)
            return _cell(folder, name, payload)
        finally:
            gc.collect()  # the setup's cycles hold models, and this process lives on


@contextlib.contextmanager
def _log(path: Path, inline: bool) -> Iterator[None]:
    """Send what is printed into a file; in one process with the progress line, only Python's."""
    if not inline:
        with into_log(path):
            yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def _teacher(folder: Path, name: str) -> dict[str, Any]:
    """Prepare what all cells of a task share, so that none of them has to: the fine-tuned teacher."""
    quiet_libraries()
    config = parse_run(["--config", str(folder / "cells" / f"{name}.yaml")])
    with Progress() as progress:
        prepare(config, progress)
    return {}


def _cell(folder: Path, name: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    made = folder / "runs" / name
    if complete_summary(made) is None:
        decide = partial(_decide, payload["played"]) if payload["played"] else None
        if _run(made, folder / "cells" / f"{name}.yaml", decide) != 0:
            raise KeyboardInterrupt
    rows = read_yaml(made / CONFIG)["rows"]["dev_on_the_way"]
    record = record_of(payload["identity"], made, rows)
    if payload["slim"]:
        shutil.rmtree(made / STUDENT, ignore_errors=True)
    return record


def _run(made: Path, settings: Path, decide: run.Decide | None) -> int:
    """Go on with the run that was interrupted or failed, or make it; returns its exit code."""
    if (made / CONFIG).is_file():
        try:
            return run.main(["--resume", str(made)], decide)
        except UsageError as error:
            if not str(error).startswith(OPTION):
                raise  # of its work, such as a full disk: what it has stays
            print(f"begun anew: {error}")
    shutil.rmtree(made, ignore_errors=True)
    words = ["--config", str(settings), "--out", str(made.parent), "--name", made.name]
    return run.main(words, decide)


def _decide(played: Mapping[str, str], setup: Setup, env: DistillationEnv) -> Policy:
    """The saved policy, or the saved schedule as a policy.

    Raises:
        UsageError: it does not fit this student.
    """
    saved = open_run(Path(played["run"]))
    if played["mode"] == "policy":
        shapes = {name: tuple(space.shape or ()) for name, space in env.spaces.items()}
        return load_policy(saved.folder / POLICY, pool=setup.pool.names, observation=shapes)
    schedule = read_schedule(saved.folder / SCHEDULE)
    actions, line = carried_actions(schedule, setup, saved.config)
    if line is not None:
        print(line)
    return ScheduledPolicy(actions, setup.pool.names, schedule.soft)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
