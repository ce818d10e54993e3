"""The recorded decisions of several runs joined into arrays; see :func:`ksel.trajectory.load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ksel.errors import UsageError, unknown_name
from ksel.trajectory import Schedule, read_schedule

SCHEDULE = "schedule.parquet"
STAGES = ("search", "final", "references")
REFERENCE = "reference:"
SCALAR_COLUMNS = {
    "rewards": "reward",
    "log_prob": "log_prob",
    "objectives": "objective",
    "drops": "drop",
    "reward_scales": "reward_scale",
}
VECTOR_COLUMNS = {
    "observations": "observation",
    "actions": "action",
    "probabilities": "probabilities",
    "credits": "credit",
}


@dataclass(frozen=True)
class Trajectories:
    """N decisions of one or several runs, in the order they were taken; nan = not known.

    Attributes:
        pool: names of the K knowledge types.
        features: names of the F entries of an observation.
        soft: True if actions are weights rather than bits.
        observations: [N, F] float32, the ``training`` vector before each decision.
        actions: [N, K] float32, as carried out.
        rewards: [N] float64, what the agent was paid.
        probabilities: [N, K] float64, P(bit on), or mean weight, under the policy that chose.
        log_prob: [N] float64, log-probability (soft: log-density) of the whole action.
        credits: [N, K] float64, predicted drop of the objective owed to each type.
        predicted: [N] float64, sum of action x credit: the drop that the credits predict.
        objectives: [N] float64, objective on the reward split after the decision.
        drops: [N] float64, its measured fall since it was measured last.
        reward_scales: [N] float64, what the drop that was paid was divided by.
        terminations: [N] bool, last decision of its episode.
        episodes: [N] int64, number of the episode, from 0, counted over all runs.
        decisions, updates: [N] int64, number of the decision in its episode, from 0; optimiser
            updates done before it.
        runs: [N] int64, index into ``names`` and ``meta``.
        stage: [N] str, ``search``, ``final`` or ``reference:<name>``.
        names: of the runs' folders.
        meta: what each run's schedule says of itself.
    """

    pool: tuple[str, ...]
    features: tuple[str, ...]
    soft: bool
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    probabilities: np.ndarray
    log_prob: np.ndarray
    credits: np.ndarray
    predicted: np.ndarray
    objectives: np.ndarray
    drops: np.ndarray
    reward_scales: np.ndarray
    terminations: np.ndarray
    episodes: np.ndarray
    decisions: np.ndarray
    updates: np.ndarray
    runs: np.ndarray
    stage: np.ndarray
    names: tuple[str, ...]
    meta: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rewards)

    def agents(self) -> np.ndarray:
        """[N] str, the agent whose run each decision belongs to."""
        return np.array([meta["agent"] for meta in self.meta])[self.runs]

    def take(self, rows: np.ndarray) -> Trajectories:
        """The decisions that a boolean mask [N] or an array of indices selects.

        Episodes keep their numbers.
        """
        columns = [f.name for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)]
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def join(runs: Sequence[Path | str], stages: Sequence[str] = ("search", "final")) -> Trajectories:
    """Read and join schedules; what :func:`ksel.trajectory.load` does.

    Raises:
        UsageError: as :func:`ksel.trajectory.load` says.
    """
    if not runs:
        raise UsageError("RUN: no run was named. Give the folder of one run or more.")
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES, "--stages")
    if not stages:
        raise UsageError(f"--stages: no stage was named. Known: {', '.join(STAGES)}.")
    paths = [_schedule_of(Path(run)) for run in runs]
    _refuse_twice(paths)
    schedules = [read_schedule(path) for path in paths]
    _refuse_differences(paths, schedules)
    frames, held = [], []
    for number, schedule in enumerate(schedules):
        frame = schedule.frame.assign(run=number)
        held += [stage for stage, _ in schedule.stages()]
        frames.append(frame[frame["stage"].map(lambda stage: _stage_kind(stage) in stages)])
    if not sum(map(len, frames)):
        found = ", ".join(dict.fromkeys(_stage_kind(stage) for stage in held)) or "nothing"
        raise UsageError(
            f"--stages {' '.join(stages)}: none of the runs has a decision there; they hold: "
            f"{found}."
        )
    return _joined(paths, schedules, frames)


def _stage_kind(stage: str) -> str:
    return "references" if stage.startswith(REFERENCE) else stage


def _schedule_of(run: Path) -> Path:
    if not run.exists():
        raise UsageError(f"RUN: there is no folder {run}. Give the folder of a run.")
    return run / SCHEDULE if run.is_dir() else run


def _refuse_twice(paths: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UsageError(
                f"RUN: {path.parent} is named twice, which would count its decisions twice. "
                f"Name each run once."
            )
        seen.add(path.resolve())


def _refuse_differences(paths: Sequence[Path], schedules: Sequence[Schedule]) -> None:
    """Name every way in which a later run differs from the first one."""
    first, parts = schedules[0], []
    for path, other in zip(paths[1:], schedules[1:], strict=True):
        name = path.parent
        if other.pool != first.pool:
            parts.append(f"{name} has {_names_differ('type', first.pool, other.pool)}")
        elif other.features != first.features:
            parts.append(f"{name} has {_names_differ('feature', first.features, other.features)}")
        if other.soft != first.soft:
            kinds = {True: "weights (soft)", False: "bits (hard)"}
            parts.append(f"{name} has {kinds[other.soft]}, not {kinds[first.soft]}")
    if parts:
        raise UsageError(
            f"RUN: these runs cannot be joined. Compared with {paths[0].parent}: "
            f"{'; '.join(parts)}. Give runs of one pool and one kind of action."
        )


def _names_differ(what: str, first: Sequence[str], other: Sequence[str]) -> str:
    missing = [name for name in first if name not in other]
    extra = [name for name in other if name not in first]
    parts = [f"no {what} {', '.join(missing)}"] if missing else []
    parts += [f"more {what}s: {', '.join(extra)}"] if extra else []
    return " and ".join(parts) or f"the same {what}s in another order"


def _joined(
    paths: Sequence[Path], schedules: Sequence[Schedule], frames: list[Any]
) -> Trajectories:
    first = schedules[0]
    columns: dict[str, np.ndarray] = {}
    for name, column in VECTOR_COLUMNS.items():
        width = len(first.features) if column == "observation" else len(first.pool)
        rows = [np.stack(f[column].tolist()) for f in frames if len(f)]
        kind = np.float32 if name in ("observations", "actions") else np.float64
        columns[name] = np.concatenate(rows).reshape(-1, width).astype(kind)
    for name, column in SCALAR_COLUMNS.items():
        columns[name] = np.concatenate([f[column].to_numpy(np.float64) for f in frames])
    for name, column in (("decisions", "decision"), ("updates", "update"), ("runs", "run")):
        columns[name] = np.concatenate([f[column].to_numpy(np.int64) for f in frames])
    stage = np.concatenate([f["stage"].to_numpy(str) for f in frames])
    episode = np.concatenate([f["episode"].to_numpy(np.int64) for f in frames])
    keys = list(zip(columns["runs"], stage, episode, strict=True))
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return Trajectories(
        first.pool,
        first.features,
        first.soft,
        terminations=np.concatenate([f["terminated"].to_numpy(bool) for f in frames]),
        episodes=np.array([number[key] for key in keys], np.int64),
        stage=stage,
        predicted=(columns["actions"] * columns["credits"]).sum(1),
        names=tuple(path.parent.resolve().name for path in paths),
        meta=tuple(schedule.meta for schedule in schedules),
        **columns,
    )
