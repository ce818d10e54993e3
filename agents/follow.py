"""Plays given actions: one episode of a schedule that was decided before."""

from __future__ import annotations

import numpy as np

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
