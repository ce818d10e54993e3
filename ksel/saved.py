"""A run's folder read back, and what says whether two runs started from the same things."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksel.config import RunConfig
from ksel.data import Split
from ksel.errors import UsageError
from ksel.models import weights_fingerprint
from ksel.settings import config_from_file
from ksel.setup import Setup

CONFIG = "config.yaml"
SCHEDULE = "schedule.parquet"
STUDENT = "student"
POLICY = "policy"
COMPARISON = "compare.yaml"
"""What the folder of a comparison has."""


@dataclass(frozen=True)
class SavedRun:
    """What every run leaves behind, however it ended.

    Attributes:
        folder: the run's folder.
        config: its settings.
        summary: its ``summary.json``; empty if it is missing or damaged.
        versions: its ``versions.json``; empty if it is missing or damaged.
    """

    folder: Path
    config: RunConfig
    summary: dict[str, Any]
    versions: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    def selected(self) -> dict[str, Any]:
        """The summary's record of the final student; empty if the run did not get that far."""
        for student in self.summary.get("students") or []:
            if student.get("name") == "selected":
                return student
        return {}

    def needs_student(self) -> Path:
        """The folder of the final student.

        Raises:
            UsageError: the run has left none.
        """
        folder = self.folder / STUDENT
        if not (folder / "model.safetensors").is_file():
            raise UsageError(
                f"RUN: {self.folder} has no {STUDENT}/model.safetensors: the run stopped before "
                f"its final student, or the file was removed. Give a run that has one, or make it "
                f"again with `python -m ksel.run --config {self.folder / CONFIG}`."
            )
        return folder


def open_run(folder: Path) -> SavedRun:
    """Read a run's settings and records.

    Raises:
        UsageError: there is no such folder, it is not a run's, or its settings are unreadable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"RUN: there is no folder {folder}. Give the folder of a run.")
    if not (folder / CONFIG).is_file():
        raise UsageError(
            f"RUN: {folder} is not the folder of a run: it has no {CONFIG}. "
            f"{what_it_is(folder) or 'Give the folder that python -m ksel.run made.'}"
        )
    return SavedRun(
        folder,
        config_from_file(folder / CONFIG),
        _json(folder / "summary.json"),
        _json(folder / "versions.json"),
    )


def what_it_is(folder: Path) -> str:
    """What to give instead of a folder that is none of a run's, in a sentence; empty where it is not known."""
    if (folder / COMPARISON).is_file():
        return f"It is a comparison: its page is {folder / 'compare.html'}, its runs are in {folder / 'runs'}."
    if (folder.parent / CONFIG).is_file() and folder.name:
        return f"It lies in the folder of a run: give {folder.parent}."
    return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def inputs(setup: Setup) -> dict[str, str]:
    """What a student is made from, as SHA-256: equal inputs and equal actions give equal students.

    Call it before the first update: the student must still have its initial weights.
    """
    return {
        "training rows": _rows(setup.train),
        "reward rows": _rows(setup.reward),
        **{
            f"teacher {i}" if i > 1 else "teacher": weights_fingerprint(teacher.model)
            for i, teacher in enumerate(setup.teachers, 1)
        },
        "student's start": weights_fingerprint(setup.student),
    }


def _rows(split: Split) -> str:
    labels = b"" if split.labels is None else split.labels.numpy().tobytes()
    return hashlib.sha256(split.fingerprint().encode() + labels).hexdigest()
