"""A wrapper that writes down every decision of N students that train side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from envs.branches import Step
from envs.recording import OnDecision, Recorder
from envs.seats import Seat
from envs.vector_sb3 import DistillationVecEnv
from ksel.ledger import Ledger
from ksel.tracking import Tracker
from ksel.trajectory import DecisionRow, ScheduleWriter


class SeatRecorder(Recorder):
    """Writes down one of N students.

    Args:
        env: its environment.
        stage, writer: as of :class:`envs.recording.Recorder`.

    Attributes:
        episode: number of its life among those of all students.
    """

    def __init__(self, env: Seat, stage: str, writer: ScheduleWriter) -> None:
        super().__init__(env, stage, writer)
        self.episode = -1

    def begin(self) -> None:
        """Its environment has begun an episode."""
        self._update = self.inner.distiller.cursor
        self._decision = 0
        self._before = self.inner.training_features()

    def record(self, mask: np.ndarray, reward: float, done: bool, info: dict[str, Any]) -> None:
        """Write a decision down."""
        self._record(Step(mask, self._before, reward, done, info))

    @property
    def begins(self) -> bool:
        """True if the next decision is the first of a life."""
        return self._decision == 0

    def _row(self, step: Step, reward: float) -> DecisionRow:
        return replace(super()._row(step, reward), episode=self.episode)


class VectorRecorder(VecEnvWrapper):
    """Records each decision of a :class:`envs.vector_sb3.DistillationVecEnv`, and passes all through.

    The schedule gets a row for each student and decision, student after student; ``episode``
    is a number of its own for each student's life. Curves are means over the students.

    Args:
        venv: the students.
        stage, writer, tracker: as of :class:`envs.recording.Recorder`.
        on_decision: called once for all students, with means of their rewards and infos.

    Attributes:
        seconds, recording_seconds: as of :class:`envs.recording.Recorder`.
        updates_done: optimiser updates of all students.
        rewards: total reward of each life, finished or not, that has a decision.
    """

    def __init__(
        self,
        venv: DistillationVecEnv,
        stage: str,
        writer: ScheduleWriter,
        tracker: Tracker | None = None,
        on_decision: OnDecision | None = None,
    ) -> None:
        super().__init__(venv)
        self.stage, self.writer = stage, writer
        self.tracker, self.on_decision = tracker, on_decision
        self.engine = venv.engine
        self.seats = venv.engine.seats
        self.students = [SeatRecorder(seat, stage, writer) for seat in self.seats]
        self.rewards: list[float] = []
        self.seconds = 0.0
        self.recording_seconds = 0.0
        self._masks: list[np.ndarray] = []

    @property
    def ledger(self) -> Ledger:
        """Where the work is counted."""
        return self.seats[0].setup.ledger

    @property
    def updates_done(self) -> int:
        """Optimiser updates of all students."""
        return sum(student.updates_done for student in self.students)

    def get_state(self) -> dict[str, Any]:
        """As :meth:`envs.recording.Recorder.get_state`, of all students."""
        return {
            "env": self.engine.get_snapshot(),
            "options": self.engine.options,
            "counts": [student.get_counts() for student in self.students],
            "episodes": [student.episode for student in self.students],
            "rewards": list(self.rewards),
            "seconds": self.seconds,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Return to what :meth:`get_state` gave; the decisions that follow are equal to the bit."""
        self.engine.options = dict(state["options"])
        self.engine.set_snapshot(state["env"])
        for student, counts, episode in zip(
            self.students, state["counts"], state["episodes"], strict=True
        ):
            student.set_counts(counts)
            student.episode = episode
        self.rewards, self.seconds = list(state["rewards"]), state["seconds"]

    def reset(self) -> Any:
        """Begin N episodes."""
        start = time.perf_counter()
        observations = self.venv.reset()
        self.seconds += time.perf_counter() - start
        for student in self.students:
            student.begin()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions, as they would be carried out now: the next may be another stage's."""
        self._masks = [s.as_mask(a) for s, a in zip(self.seats, actions, strict=True)]
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Carry them out and record them."""
        start = time.perf_counter()
        result = self.venv.step_wait()
        self.seconds += time.perf_counter() - start
        played = time.perf_counter()
        _, rewards, dones, infos = result
        for n, student in enumerate(self.students):
            if student.begins:
                student.episode = len(self.rewards)
                self.rewards.append(0.0)
            student.record(self._masks[n], float(rewards[n]), bool(dones[n]), infos[n])
            self.rewards[student.episode] += float(rewards[n])
            if dones[n]:
                student.begin()
        self._show(rewards, infos)
        self.recording_seconds += time.perf_counter() - played
        return result

    def _show(self, rewards: np.ndarray, infos: list[dict[str, Any]]) -> None:
        info = means(infos)
        reward = float(rewards.mean())
        paid = reward if not {"drop", "predicted", "reason"}.isdisjoint(info) else math.nan
        if self.tracker is not None:
            action = np.mean(self._masks, axis=0)
            self.tracker.log_decision(
                self.stage, self.updates_done, action=action, reward=paid, info=info
            )
        if self.on_decision is not None:
            self.on_decision(int(info["update"]), paid, info)


def means(infos: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each number over the students that have it."""
    values: dict[str, list[float]] = {}
    for info in infos:
        for key, value in info.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(key, []).append(float(value))
    return {key: float(np.mean(found)) for key, found in values.items()}
