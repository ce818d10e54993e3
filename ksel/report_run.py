"""What a run's folder holds, read for a report: a part that is missing does not take the rest along."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ksel.errors import UsageError
from ksel.saved import what_it_is
from ksel.tracking import METRICS_FILE, read_metrics
from ksel.trajectory import Schedule, read_schedule

PARTS = ("config.yaml", "summary.json", "schedule.parquet", METRICS_FILE)


@dataclass
class Run:
    """What a run's folder holds; a part that is missing or damaged is None or empty.

    Attributes:
        folder: the run's folder.
        problems: file name -> why the part is missing.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    schedule: Schedule | None = None
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def teacher_record(self) -> dict[str, Any]:
        """What is known of the (first) teacher."""
        teacher = self.summary.get("teacher") or self.teacher
        return teacher if isinstance(teacher, dict) else {}

    @property
    def stages(self) -> list[tuple[str, int]]:
        """Each (stage, episode) that has decisions."""
        return self.schedule.stages() if self.schedule else []

    @property
    def shown(self) -> tuple[str, int, str] | None:
        """The episode that a page is about: stage, number, and what to call it."""
        if not self.stages:
            return None
        final = [(stage, episode) for stage, episode in self.stages if stage == "final"]
        stage, episode = (final or self.stages)[-1]
        name = "final student" if final else f"{stage} episode {episode + 1}"
        return stage, episode, name

    def fact(self, key: str) -> Any:
        """A fact about the run from the summary, else the schedule, else the settings."""
        sources = (self.summary, self.schedule.meta if self.schedule else {}, self.config)
        return next((source[key] for source in sources if source.get(key) is not None), None)


def load_run(folder: Path) -> Run:
    """Read what a run has left behind so far.

    Raises:
        UsageError: ``folder`` is not the folder of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"RUN: there is no folder {folder}. Give the folder of a run.")
    if not any((folder / part).is_file() for part in PARTS):
        raise UsageError(
            f"RUN: {folder} is not the folder of a run: it has none of {', '.join(PARTS)}. "
            f"{what_it_is(folder)}".rstrip()
        )
    run = Run(folder)
    run.summary = _read_json(run, "summary.json")
    run.teacher = _read_json(run, "teacher.json")
    run.versions = _read_json(run, "versions.json")
    try:
        run.config_text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(run.config_text)
        run.config = config if isinstance(config, dict) else {}
    except (OSError, ValueError, yaml.YAMLError):
        run.problems["config.yaml"] = "missing or damaged"
    try:
        run.metrics = read_metrics(folder / METRICS_FILE)
    except UsageError:
        run.problems[METRICS_FILE] = "missing"
    try:
        run.schedule = read_schedule(folder / "schedule.parquet")
    except UsageError as error:
        run.problems["schedule.parquet"] = str(error).removeprefix("RUN: ")
    return run


def _read_json(run: Run, name: str) -> dict[str, Any]:
    path = run.folder / name
    if not path.is_file():
        run.problems[name] = "missing"
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        run.problems[name] = "damaged"
        return {}
    return value
