"""``--resume RUN``: what a run's checkpoint holds, whether it fits, and the folder put back to it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ksel.artifacts import versions
from ksel.checkpoints import FOLDER, Checkpoint, read_checkpoint, remove_leftovers
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.leaving import Job
from ksel.ledger import Ledger
from ksel.packing import Records, State
from ksel.saved import CONFIG, POLICY, SCHEDULE, STUDENT, open_run
from ksel.settings import config_to_yaml
from ksel.tracking import METRICS_FILE, TENSORBOARD_FOLDER, read_metrics

OPTION = "--resume"
LAST = ("summary.json", "report.html")
"""What a run writes when it ends."""
ALL = (*LAST, METRICS_FILE, TENSORBOARD_FOLDER, POLICY, SCHEDULE, STUDENT, "teacher.json")
"""What a run writes after its settings."""
ELSEWHERE = ("name", "out")
"""Settings that say where a run lies; its folder may have been moved."""


def resume_folder(argv: Sequence[str]) -> Path | None:
    """The run to go on with; None if the command line asks for a new one.

    Raises:
        UsageError: no run is named, or other options stand beside it.
    """
    words = list(argv)
    place = next((i for i, w in enumerate(words) if w.partition("=")[0] == OPTION), None)
    if place is None:
        return None
    word = words.pop(place)
    name = word.partition("=")[2]
    if "=" not in word and place < len(words) and not words[place].startswith("--"):
        name = words.pop(place)
    if not name:
        raise UsageError(f"{OPTION}: its value is missing. Give the folder of an interrupted run.")
    if words:
        others = [w.partition("=")[0] for w in words if w.startswith("--")] or words
        raise UsageError(
            f"{OPTION}: {', '.join(others)} cannot stand beside it: an interrupted run goes on with "
            f"its own settings ({Path(name) / CONFIG}). Leave the rest out, or begin anew with "
            f"--config {Path(name) / CONFIG}."
        )
    return Path(name)


def interrupted_settings(folder: Path) -> RunConfig:
    """The settings of a run that is not complete.

    Raises:
        UsageError: there is no such run, or it is complete.
    """
    try:
        run = open_run(folder)
    except UsageError as error:
        raise UsageError(f"{OPTION} {error}") from error
    if run.summary.get("status") == "complete":
        raise UsageError(
            f"{OPTION}: {folder} is complete; there is nothing to go on with. For another run with its "
            f"settings use --config {folder / CONFIG}."
        )
    return run.config


# --------------------------------------------------------------------------- what is kept


def job_state(job: Job, inside: State | None) -> State:
    """The state of a run in its present stage.

    Args:
        job: the run.
        inside: of the play that goes on in this stage; None = the stage is about to begin.
    """
    assert job.setup is not None
    assert job.writer is not None
    metrics = job.folder / METRICS_FILE
    with metrics.open("rb") as file:
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
    return {
        "stage": job.stage,
        "inside": inside,
        "teacher": job.teacher,
        "search": job.search,
        "students": job.students,
        "costs": job.costs,
        "trust": job.trust,
        "writer": job.writer.get_state(),
        "meta": job.writer.meta,
        "ledger": _figures(job.setup.ledger),
        "before": None if job.before is None else _figures(job.before),
        "metrics": size,
        "settings": yaml.safe_load(config_to_yaml(job.config)),
    }


def _figures(ledger: Ledger) -> State:
    return {"seconds": dict(ledger.seconds), "examples": dict(ledger.examples)}


def keep(job: Job, inside: State | None = None) -> None:
    """Write a checkpoint of a run now, see :func:`job_state`.

    Raises:
        UsageError: the disk is full; the checkpoint before is whole.
    """
    assert job.checkpoints is not None
    if job.checkpoints.on:
        job.checkpoints.write(job_state(job, inside))


# --------------------------------------------------------------------------- going on


def find_state(job: Job, known: Records) -> State | None:
    """The state that an interrupted run goes on from; None if it begins anew. Changes nothing.

    Raises:
        UsageError: its checkpoints are damaged or of another version; or settings, data, teacher or
            records are not what they were.
    """
    assert job.setup is not None
    assert job.writer is not None
    say = job.progress.say
    found = read_checkpoint(job.folder / FOLDER, known, job.setup.device, say)
    if found is None:
        say(f"resumed: {job.folder} has no checkpoint yet, so it begins anew")
        return None
    try:
        _check_state(job, found.state)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{OPTION}: {found.folder} is no checkpoint of a run ({error}). Remove "
            f"{found.folder.parent}: {OPTION} then begins the run anew."
        ) from error
    _say_where(job, found)
    return found.state


def restore_job(job: Job, state: State) -> dict[str, int]:
    """Put a run and its records back to a state.

    Returns:
        For each stage the step from which on TensorBoard has to forget what it was told.
    """
    assert job.setup is not None
    assert job.writer is not None
    job.teacher, job.search, job.trust = state["teacher"], state["search"], state["trust"]
    job.students, job.costs = list(state["students"]), dict(state["costs"])
    job.writer.set_state(state["writer"])
    job.writer.meta = dict(state["meta"])
    ledger = job.setup.ledger
    for mine, kept in ((ledger.seconds, "seconds"), (ledger.examples, "examples")):
        mine.clear()
        mine.update(state["ledger"][kept])
    if state["before"] is not None:
        job.before = Ledger(dict(state["before"]["seconds"]), dict(state["before"]["examples"]))
    metrics = job.folder / METRICS_FILE
    os.truncate(metrics, state["metrics"])
    later = state["stage"].startswith("reference:")
    _remove(job.folder, LAST if later else (*LAST, STUDENT))
    job.stage = state["stage"]
    remove_leftovers(job.folder / FOLDER)
    steps: dict[str, int] = {}
    for line in read_metrics(metrics):
        steps[line["stage"]] = max(steps.get(line["stage"], 0), int(line["step"]) + 1)
    return steps


def begin_anew(folder: Path) -> None:
    """Remove what an interrupted run has left, but its settings."""
    _remove(folder, ALL)
    remove_leftovers(folder / FOLDER)


def _remove(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_state(job: Job, state: State) -> None:
    assert job.writer is not None
    changed = _differences(state["settings"], yaml.safe_load(config_to_yaml(job.config)))
    if changed:
        raise UsageError(
            f"{OPTION}: {job.folder / CONFIG} is not what it was when the checkpoint was written: "
            f"{', '.join(changed)}. Put it back, or begin anew with --config {job.folder / CONFIG}."
        )
    if state["meta"].get("decided") != job.writer.meta.get("decided"):
        raise UsageError(
            f"{OPTION}: {job.folder} is a cell of a comparison, in which a saved policy decides. Go on "
            f"with the comparison: python -m ksel.compare --resume."
        )
    then, now = state["meta"]["inputs"], job.writer.meta["inputs"]
    others = [name for name, value in then.items() if now.get(name) != value]
    if others:
        raise UsageError(
            f"{OPTION}: since the run was interrupted {_listed(others)} changed, so it would not go on "
            f"to what it would have been. Put the files back (--data, --teacher and --store are in "
            f"{job.folder / CONFIG}), or begin anew with --config {job.folder / CONFIG}."
        )
    metrics = job.folder / METRICS_FILE
    size = metrics.stat().st_size if metrics.is_file() else -1
    if size < state["metrics"]:
        raise UsageError(
            f"{OPTION}: {metrics} is {'gone' if size < 0 else 'shorter than it was'}. Restore it, or "
            f"remove {job.folder / FOLDER}: {OPTION} then begins the run anew."
        )
    if state["stage"].startswith("reference:") and not (job.folder / STUDENT).is_dir():
        raise UsageError(
            f"{OPTION}: the final student {job.folder / STUDENT} is gone. Restore it, or remove "
            f"{job.folder / FOLDER}: {OPTION} then begins the run anew."
        )


def _listed(names: Sequence[str]) -> str:
    has = "has" if len(names) == 1 and not names[0].endswith("rows") else "have"
    return f"the {' and the '.join(names)} {has}"


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings that differ."""
    found = []
    for key in dict.fromkeys([*then, *now]):
        a, b = then.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and not prefix:
            found += _differences(a, b, f"{key}.")
        elif a != b and (prefix or key not in ELSEWHERE):
            found.append(f"{prefix}{key}")
    return found


def _say_where(job: Job, found: Checkpoint) -> None:
    stage, rows = found.state["stage"], len(found.state["writer"]["columns"]["stage"])
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.when))
    where = f"at the beginning of {stage}" if found.state["inside"] is None else f"within {stage}"
    job.progress.say(
        f"resumed: from the checkpoint of {when}, {where}, after {rows:,} decisions in all"
    )
    then, now = open_run(job.folder).versions, versions()
    moved = [f"{n} {v} then, {now.get(n)} now" for n, v in then.items() if now.get(n) != v]
    if moved:
        job.progress.say(
            f"note: {'; '.join(moved)}: what follows need not be what it would have been"
        )
