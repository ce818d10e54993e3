"""What a run leaves behind, however it ends: whole, stopped by Ctrl-C, or failed."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ksel.artifacts import save_student
from ksel.checkpoints import Checkpoints
from ksel.cli import shielded
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.files import write_json
from ksel.ledger import Ledger
from ksel.report_page import write_report
from ksel.setup import Setup
from ksel.summary import summarize
from ksel.tracking import METRICS_FILE, Progress, read_metrics
from ksel.trajectory import ScheduleWriter
from ksel.trust import TrustWatch


class Saveable(Protocol):
    """A policy, as far as it is saved here."""

    def save(self, folder: Path) -> None:
        """Write the policy's files."""


class Learner(Protocol):
    """An agent that learns, as far as it is saved here."""

    @property
    def learned(self) -> bool:
        """True once there is a policy to take."""
        ...

    def frozen(self) -> Saveable:
        """The policy as it is now."""
        ...

    def save_extra(self, folder: Path) -> None:
        """Write files for users of the library behind the agent, if there is one."""


@dataclass
class Job:
    """A run in progress: what there is so far, so that it can be written at any moment.

    Attributes:
        config: the settings.
        folder: the run's folder.
        progress: where to report.
        soft: whether actions are weights.
        status: ``complete``, ``interrupted``, or ``failed`` until it is known to be one of those.
        stage: what has begun: ``setup``, ``teacher``, ``search``, ``final``, ``reference:<name>``.
        error: what ended a failed run.
        setup: None until it is prepared.
        writer: the decisions so far.
        learner: the agent, once its search has begun.
        policy: the frozen policy, once the final stage has begun.
        teacher: figures of the teacher.
        search: figures of the finished search.
        students: figures of the finished students, the selected one first.
        costs: what each finished stage cost, see :func:`ksel.costs.stage_cost`.
        trust: asked after each decision whether there is something to say of its credit.
        checkpoints: where the run can be gone on from; None before there is anything to keep.
        before: the ledger when the stage began.
        resumed: True if the run goes on in the folder of an interrupted one.
    """

    config: RunConfig
    folder: Path
    progress: Progress
    soft: bool
    status: str = "failed"
    stage: str = "setup"
    error: str | None = None
    setup: Setup | None = None
    writer: ScheduleWriter | None = None
    learner: Learner | None = None
    policy: Saveable | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] | None = None
    students: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    trust: TrustWatch = field(default_factory=TrustWatch)
    checkpoints: Checkpoints | None = None
    before: Ledger | None = None
    resumed: bool = False


def leave(job: Job) -> dict[str, Any]:
    """Write whatever there is; what cannot be written does not take the rest along.

    Returns:
        The summary.

    Raises:
        UsageError, OSError: the first of the parts that could not be written, after all were tried.
    """
    problems: list[UsageError | OSError] = []
    for write in (write_schedule, write_policy, _write_partial_student):
        try:
            write(job)
        except (UsageError, OSError) as error:
            problems.append(error)
    summary = _summary(job)
    write_json(job.folder / "summary.json", summary)
    write_report(job.folder)
    if problems:
        raise problems[0]
    return summary


def fail(job: Job, error: Exception) -> None:
    """Leave what there is of a run that an error ended; of one that never began, nothing.

    The folder of a run that was to be gone on with stays as it was until its set-up is over.
    """
    if job.stage == "setup" and job.resumed:
        return
    if job.stage == "setup" and isinstance(error, (UsageError, OSError)):
        shutil.rmtree(job.folder, ignore_errors=True)
        return
    job.error = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
    # The error that ended the run is the one to be shown.
    with shielded(), suppress(UsageError, OSError):
        leave(job)


def stopped(summary: dict[str, Any], folder: Path) -> str:
    """What is said of a run that Ctrl-C ended."""
    stage, decisions = summary["stage"], summary["decisions"]
    after = f", after {decisions[stage]} decisions" if stage in decisions else ""
    held = ", ".join(sorted(path.name for path in folder.iterdir()))
    return f"stopped during {stage}{after}; {folder} holds what there was: {held}"


def write_schedule(job: Job) -> None:
    """Write the decisions so far; called at the end of each stage as well."""
    if job.writer is None or not len(job.writer):
        return
    if job.stage == "final" and job.setup is not None:
        # Ctrl-C can fall between an update and its row in the schedule
        job.writer.meta["student_updates"] = job.setup.distiller.cursor
    job.writer.write(job.folder / "schedule.parquet")


def write_student(job: Job) -> None:
    """Write the student with the weights it has now as the run's final student."""
    assert job.setup is not None
    card = {
        "agent": job.config.agent,
        "metrics": job.students[0]["metrics"] if job.students else {},
        "teacher": " and ".join(
            str(one.get("name")) for one in (job.teacher, *job.teacher.get("others", []))
        ),
        "updates": job.setup.distiller.cursor,
    }
    save_student(job.folder / "student", job.setup, card)


def write_policy(job: Job) -> None:
    """Write the policy as it is now, if there is one; called where learning ends as well."""
    policy = job.policy
    if job.learner is not None and job.learner.learned:
        policy = policy or job.learner.frozen()
        job.learner.save_extra(job.folder / "policy")
    if policy is not None:
        policy.save(job.folder / "policy")


def _write_partial_student(job: Job) -> None:
    """The final student as far as it came, if the run ended before it was saved."""
    if job.stage == "final" and not (job.folder / "student").exists():
        write_student(job)


def _summary(job: Job) -> dict[str, Any]:
    path = job.folder / METRICS_FILE
    return summarize(
        job.config,
        job.setup,
        status=job.status,
        stage=job.stage,
        error=job.error,
        soft=job.soft,
        teacher=job.teacher,
        students=job.students,
        search=job.search,
        costs=job.costs,
        writer=job.writer,
        metrics=read_metrics(path) if path.is_file() else [],
    )
