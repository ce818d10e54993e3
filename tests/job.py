"""Runs the main job in this process on tiny data, and hands back what it printed and left."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ksel.run
from agents.make import AGENTS, resolve_search
from ksel.cli import guard
from ksel.distiller import Distiller
from ksel.models import weights_fingerprint
from ksel.trajectory import Schedule, read_schedule

SMALL = {
    "optim": {"max_updates": 6, "learning_rate": 1e-3, "grad_norm_every": 2},
    "episodes": {"count": 2, "share": 0.5},
    "evaluations": 2,
}
"""Over tests/tiny.py's settings: 6 updates, two episodes of 3."""


def small(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings of tests/tiny.py with SMALL and the changes over them, groups merged."""
    agent = changes.get("agent", "a2c")
    merged = dict(settings)
    for layer in (SMALL, changes):
        for name, change in layer.items():
            old = merged.get(name)
            merged[name] = {**old, **change} if isinstance(change, dict) and old else change
    unsaid = agent in AGENTS and "episodes" not in changes
    if unsaid and not (AGENTS[agent].learns and searched(agent, changes) == "episodes"):
        del merged["episodes"]
    return merged


def searched(agent: str, changes: dict[str, Any]) -> str:
    """How the agent learns under these changes."""
    asked = changes.get("search", "auto")
    return resolve_search(agent, "auto") if asked == "auto" else asked


@dataclass
class Life:
    """One student's life as the distiller saw it."""

    start: str
    budget: int
    batches: list[list[int]] = field(default_factory=list)


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        lives: students that were trained.
        start: fingerprint of the first student's initial weights.
    """

    code: int
    out: str
    err: str
    folder: Path
    lives: list[Life] = field(default_factory=list)
    start: str = ""

    @property
    def summary(self) -> dict[str, Any]:
        return self.json("summary.json")

    @property
    def schedule(self) -> Schedule:
        return read_schedule(self.folder / "schedule.parquet")

    @property
    def error(self) -> str:
        """The one line of an error; fails where there is more or less than one."""
        lines = self.err.splitlines()
        assert [line[:13] for line in lines if line.startswith("ksel: ")] == ["ksel: error: "]
        assert "Traceback" not in self.err
        return lines[-1]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def leftovers(folder: Path) -> list[str]:
    """Temporary files under a folder."""
    return [str(p.relative_to(folder)) for p in folder.rglob(".*") if p.name != ".gitkeep"]


@contextlib.contextmanager
def watched(lives: list[Life]) -> Iterator[None]:
    """Note each student's initial weights and the rows of each update."""
    reset, update = Distiller.reset, Distiller.update

    def noted_reset(self: Distiller, data_seed: int, updates: int, **rest: Any) -> None:
        reset(self, data_seed, updates, **rest)
        lives.append(Life(weights_fingerprint(self.student), updates))

    def noted_update(self: Distiller, action: np.ndarray, **arguments: Any) -> Any:
        rows = self.order.rows(self.cursor).tolist()
        done = update(self, action, **arguments)
        lives[-1].batches.append(rows)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "reset", noted_reset)
        patch.setattr(Distiller, "update", noted_update)
        yield


def run_job(
    folder: Path, values: dict[str, Any], *argv: str, report: bool = False, name: str = "run"
) -> Outcome:
    """Run the job with settings written as YAML into ``folder``; its own folder is ``folder/name``.

    Args:
        folder: where settings and run go; made if missing.
        values: nested settings.
        argv: further arguments.
        report: write the real report (two seconds of plotting), or a stand-in.
        name: of the run's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    own = ["--config", str(path), "--out", str(folder), "--name", name]
    out, err, lives = io.StringIO(), io.StringIO(), []
    with pytest.MonkeyPatch.context() as patch, watched(lives):
        if not report:
            stand_in = lambda run: (run / "report.html").write_text("<p>stand-in</p>")  # noqa: E731
            patch.setattr("ksel.leaving.write_report", stand_in)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = guard(ksel.run.main, [*own, *argv])
    began = [life for life in lives if life.batches]
    start = lives[0].start if lives else ""
    return Outcome(code, out.getvalue(), err.getvalue(), folder / name, began, start)
