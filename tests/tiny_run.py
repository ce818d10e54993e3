"""Whole runs in a second or two, for the tests of what reads a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import tiny
import yaml

from agents.make import AGENTS, resolve_search
from ksel import leaving, run


def make_run(
    folder: Path, data: Path, teacher: Path, *, code: int = 0, name: str = "run", **changes: Any
) -> Path:
    """Run the main job on tiny data and give the run's folder.

    Args:
        folder: where the run's folder and its store are made.
        data, teacher: as :func:`tiny.write_data` and :func:`tiny.write_teacher` made them.
        code: the exit code to expect.
        name: of the run's folder.
        changes: settings, as in :func:`tiny.settings`.
    """
    usual: dict[str, Any] = {
        "agent": "random_hard",
        "out": str(folder),
        "name": name,
        "references": [],
        "evaluations": 1,
        "episodes": {"count": 1, "share": 0.5},
    }
    values = tiny.settings(data, teacher, folder / "store", **{**usual, **changes})
    agent = values["agent"]
    if (
        not AGENTS[agent].learns
        or resolve_search(agent, values.get("search", "auto")) != "episodes"
    ):
        values.pop("episodes")
    settings = folder / f"{name}.yaml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(yaml.safe_dump(values), encoding="utf-8")
    with mock.patch.object(leaving, "write_report"):  # a second of drawing that nobody looks at
        assert run.main(["--config", str(settings)]) == code
    return folder / name
