"""Plays given actions: one episode of a schedule that was decided before."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agents.policy import Choice, Observation
from agents.rollout import Played, measuring
from envs.recording import Recorder


def follow(
    actions: np.ndarray, env: Recorder, *, seed: int, measure: bool, observe: bool | None = None
) -> Played:
    """Take the actions one after the other; ends with the last of them, or where the episode does.

    Args:
        actions: [D, K] masks or weights.
        env: records the decisions; used for this one episode.
        seed: seed of the batches.
        measure: measure rewards, as :func:`agents.rollout.play` does for a policy that learned.
        observe: observe at each decision, so that the record holds the same; None = as ``measure``.
    """
    env.reset(seed=seed, options=measuring(measure, observe))
    decisions, reason = 0, None
    for action in actions:
        _, _, terminated, _, info = env.step(action)
        env.writer.annotate_last(action, 0.0)
        decisions += 1
        reason = info.get("reason")
        if terminated:
            break
    return Played(env.updates_done, decisions, env.seconds, tuple(env.rewards), reason)


@dataclass
class ScheduledPolicy:
    """Given actions as a policy, for whoever plays policies; the last one stays.

    Attributes:
        actions: [D, K] masks or weights.
        pool: names of the knowledge types.
        soft: True if actions are weights.
        name: what it counts as: it observes nothing and learns nothing.
    """

    actions: np.ndarray
    pool: tuple[str, ...]
    soft: bool
    name: str = "static"
    learns: bool = False
    decision: int = field(default=0, init=False)

    def reset(self, rng: np.random.Generator) -> None:
        """Begin with the first action."""
        self.decision = 0

    def act(self, observation: Observation) -> Choice:
        """The next action."""
        action = self.actions[min(self.decision, len(self.actions) - 1)]
        self.decision += 1
        return Choice.certain(action)

    def save(self, folder: Path) -> None:
        """Write nothing: the run's ``schedule.parquet`` holds the actions."""
