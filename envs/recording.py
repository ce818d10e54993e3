"""A wrapper that writes down every decision: schedule rows, measurements, progress."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np

from envs.branches import Branched, Step
from envs.distillation import DistillationEnv
from envs.heats import Heat
from ksel.ledger import Ledger
from ksel.tracking import Tracker
from ksel.trajectory import DecisionRow, ScheduleWriter

Forked = TypeVar("Forked", Branched, Heat)
OnDecision = Callable[[int, float, dict[str, Any]], None]
COUNTS = ("updates_done", "ended_early", "rewards", "_before", "_update", "_decision")
"""What a recorder counts."""


class Recorder(gym.Wrapper):
    """Records each decision of a :class:`DistillationEnv` and passes everything else through.

    Args:
        env: the environment.
        stage: ``search``, ``final`` or ``reference:<name>``.
        writer: where rows go.
        tracker: where measurements go; None = nowhere.
        on_decision: called as ``on_decision(updates, reward, info)`` after each decision; the reward
            is nan where none was measured or predicted.
        one_life: the first reset is the only one: later ones give the last observation again and
            leave the student as it is (Stable-Baselines3 resets after the last decision).

    Attributes:
        seconds: wall-clock seconds spent inside resets and steps.
        updates_done: optimiser updates of all episodes.
        recording_seconds: wall-clock seconds spent on writing decisions down and showing them.
        ended_early: why the last episode ended before its time, or None.
        rewards: total reward of each episode, finished or not, that has a decision.
    """

    def __init__(
        self,
        env: DistillationEnv,
        stage: str,
        writer: ScheduleWriter,
        tracker: Tracker | None = None,
        on_decision: OnDecision | None = None,
        *,
        one_life: bool = False,
    ) -> None:
        super().__init__(env)
        self.inner = env
        self.stage = stage
        self.writer = writer
        self.tracker = tracker
        self.on_decision = on_decision
        self.one_life = one_life
        self._last: Any = None
        self.seconds = 0.0
        self.recording_seconds = 0.0
        self.updates_done = 0
        self.ended_early: str | None = None
        self.rewards: list[float] = []
        self._before = np.zeros(0)
        self._update = self._decision = 0

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; see :meth:`DistillationEnv.reset`."""
        if self.one_life and self._last is not None:
            return self._last, {"update": self._update}
        start = time.perf_counter()
        observation, info = self.env.reset(**arguments)
        self._last = observation
        self.seconds += time.perf_counter() - start
        self._update = self._decision = 0
        self._before = self.inner.training_features()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a decision and record it; see :meth:`DistillationEnv.step`."""
        start = time.perf_counter()
        mask = self.inner.as_mask(action)  # before the step: the next one may be another stage
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.seconds += time.perf_counter() - start
        self._last = observation
        self._record(Step(mask, self._before, float(reward), terminated, info))
        return observation, float(reward), terminated, truncated, info

    @property
    def observation(self) -> Any:
        """What was seen last."""
        return self._last

    def get_state(self) -> dict[str, Any]:
        """Environment, student and what was counted so far, to go on from; see :meth:`set_state`.

        Raises:
            gymnasium.error.ResetNeeded: as :meth:`DistillationEnv.get_snapshot`.
        """
        return {
            "env": self.inner.get_snapshot(),
            "counts": self.get_counts(),
            "last": self._last,
            "seconds": self.seconds,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Return to what :meth:`get_state` gave; the decisions that follow are equal to the bit."""
        self.inner.set_snapshot(state["env"])
        self.set_counts(state["counts"])
        self._last, self.seconds = state["last"], state["seconds"]

    @staticmethod
    def updates_in(state: Mapping[str, Any]) -> int:
        """Optimiser updates of the episode by the time of a state."""
        return int(state["counts"]["_update"])

    def get_counts(self) -> dict[str, Any]:
        """What was counted, without the environment."""
        return {name: copy.copy(getattr(self, name)) for name in COUNTS}

    def set_counts(self, counts: Mapping[str, Any]) -> None:
        """Return to what :meth:`get_counts` gave."""
        for name in COUNTS:
            setattr(self, name, counts[name])

    @property
    def ledger(self) -> Ledger:
        """Where the work is counted."""
        return self.inner.setup.ledger

    @property
    def update(self) -> int:
        """Optimiser updates of this episode that are written down."""
        return self._update

    @property
    def branching(self) -> bool:
        """See :attr:`DistillationEnv.branching`."""
        return self.inner.branching

    @property
    def allowed(self) -> np.ndarray:
        """See :attr:`DistillationEnv.allowed`."""
        return self.inner.allowed

    @property
    def branch_count(self) -> int:
        """See :attr:`DistillationEnv.branch_count`."""
        return self.inner.branch_count

    def branch(self, masks: np.ndarray) -> Branched:
        """Fork, see :meth:`DistillationEnv.branch`; the decisions of the chosen branch are recorded."""
        return self._forked(lambda: self.inner.branch(masks))

    def heat(self, masks: np.ndarray, updates: int, doubt: float, objective: str) -> Heat:
        """Race, see :meth:`DistillationEnv.heat`; the decisions of the lane that is kept are recorded."""
        return self._forked(lambda: self.inner.heat(masks, updates, doubt, objective))

    def _forked(self, play: Callable[[], Forked]) -> Forked:
        start = time.perf_counter()
        forked = play()
        self.seconds += time.perf_counter() - start
        self._last = forked.observation
        for step in forked.steps:
            self._record(step)
        return forked

    def _record(self, step: Step) -> None:
        """Write a decision down and show it."""
        played = time.perf_counter()
        reward, info = step.reward, step.info
        paid_for = {"drop", "reason"} | ({"predicted"} if self.inner.measures else set())
        rewarded = not paid_for.isdisjoint(info)
        if self._decision == 0:
            self.rewards.append(0.0)
        self.rewards[-1] += reward
        paid = reward if rewarded else math.nan
        self.writer.add(self._row(step, paid))
        self.updates_done += info["update"] - self._update
        self._update = info["update"]
        self.ended_early = info.get("reason")
        self._decision += 1
        self._before = self.inner.training_features()
        if self.tracker is not None:
            self.tracker.log_decision(
                self.stage, self.updates_done, action=step.action, reward=paid, info=info
            )
        if self.on_decision is not None:
            self.on_decision(info["update"], paid, info)
        self.recording_seconds += time.perf_counter() - played

    def _row(self, step: Step, reward: float) -> DecisionRow:
        names, info = self.inner.pool_names, step.info

        def column(block: str) -> np.ndarray:
            return np.array([info.get(f"{block}/{name}", math.nan) for name in names])

        return DecisionRow(
            episode=len(self.rewards) - 1,
            stage=self.stage,
            decision=self._decision,
            update=self._update,
            action=step.action,
            probabilities=np.full(len(names), math.nan),
            log_prob=math.nan,
            loss=column("loss"),
            scale=column("scale"),
            grad_norm=column("grad_norm"),
            credit=column("credit"),
            reward=reward,
            objective=info.get("objective", math.nan),
            drop=info.get("drop", math.nan),
            reward_scale=info.get("reward_scale", math.nan),
            observation=step.before,
            terminated=step.terminated,
        )
