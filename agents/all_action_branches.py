"""What all_action does at a fork: which types it may try, what it climbs, how the episode is counted."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.all_action_gradient import score
from envs.branches import Branched, relative


def forkable(env: VecEnv, kind: str) -> bool:
    """True if the one student of this environment can be forked; a sigmoid has one mask to try."""
    return kind != "sigmoid" and env.num_envs == 1 and env.has_attr("branching")


def wants_fork(env: VecEnv, kind: str) -> bool:
    """True if the next decision is to be found by a fork."""
    return forkable(env, kind) and bool(env.get_attr("branching")[0])


def allowed_types(env: VecEnv, count: int) -> np.ndarray:
    """Which of ``count`` types can be selected now, [K] bool; all in an environment without stages."""
    if not env.has_attr("allowed"):
        return np.ones(count, dtype=bool)
    return np.asarray(env.get_attr("allowed")[0], dtype=bool)


def compare(branched: Branched, masks: np.ndarray, cost_per_type: float) -> np.ndarray:
    """Group-relative advantages [N] of the masks [N, K], less what their types cost.

    A cost is in units of the reward, per decision; drops become such by ``info["reward_scale"]``.
    """
    if not cost_per_type:
        return branched.advantages
    costs = cost_per_type * branched.decisions * masks.sum(-1)
    return relative(branched.drops / branched.info.get("reward_scale", 1.0) - costs)


def fork_gradient(
    logits: Tensor,
    masks: np.ndarray,
    advantages: np.ndarray,
    allowed: np.ndarray,
    kind: str,
    concentration: float,
) -> Tensor:
    """Mean over the masks of score x advantage; 0 for types that cannot be selected.

    Args:
        logits: [1, K].
        masks: [N, K].
        advantages: [N].
        allowed: [K] bool.
        kind, concentration: see :func:`agents.all_action_gradient.score`.

    Returns:
        [1, K], to be climbed.
    """
    tried = torch.as_tensor(masks, dtype=logits.dtype)
    scores = score(logits.expand(len(tried), -1), tried, kind, concentration)
    weights = torch.as_tensor(advantages, dtype=logits.dtype)
    gradient = (scores * weights[:, None]).mean(0, keepdim=True)
    return torch.where(torch.as_tensor(allowed), gradient, torch.zeros_like(gradient))


def reward_of(branched: Branched) -> float:
    """What the decisions of the chosen branch were paid together."""
    return float(sum(step.reward for step in branched.steps))


class Tally:
    """Total reward and length of an episode; Stable-Baselines3's ``Monitor`` sees no forked decision."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.total, self.length, self.begun = 0.0, 0, time.perf_counter()

    def add(self, reward: float, decisions: int, done: bool, info: dict[str, Any]) -> None:
        """Count decisions; where they end the episode, ``info["episode"]`` is set as a Monitor does."""
        self.total += reward
        self.length += decisions
        if done:
            seconds = time.perf_counter() - self.begun
            info["episode"] = {"r": self.total, "l": self.length, "t": seconds}
            self._begin()


def batch_of_one(observation: Any) -> Any:
    """One observation as a batch."""
    if isinstance(observation, dict):
        return {name: part[None] for name, part in observation.items()}
    return observation[None]
