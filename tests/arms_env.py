"""A tiny environment with one mean reward for each arm, for tests of bandits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

POOL = ("label", "response", "cls_hidden/skip", "hidden/skip")
FEATURES = 6 + 5 * len(POOL)
CONTEXT = 10
"""The entry of ``training`` that a context-dependent reward may look at."""

Means = Callable[[int, np.ndarray], np.ndarray]


class ArmsEnv(gym.Env):
    """Reward = sum over the types that are on of ``means(step, training)`` + noise.

    Args:
        means: (number of the step over all episodes, the observation's ``training``) -> [K].
        noise: standard deviation.
        offset, size: the reward is ``offset + size * (mean + noise)``.
    """

    def __init__(
        self, means: Means, *, noise: float = 0.5, offset: float = 0.0, size: float = 1.0
    ) -> None:
        self.means, self.noise, self.offset, self.size = means, noise, offset, size
        self.length = 25
        self.action_space = spaces.MultiBinary(len(POOL))
        self.observation_space = spaces.Dict({"training": spaces.Box(-1, 1, (FEATURES,))})
        self.pool_names = POOL
        self.actions: list[np.ndarray] = []
        self.seeds: list[int | None] = []
        self.shown: list[np.ndarray] = []
        self.rewards: list[float] = []

    def _observe(self) -> dict[str, np.ndarray]:
        self.training = self.np_random.uniform(-1, 1, FEATURES).astype(np.float32)
        return {"training": self.training.copy()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.decision = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        mean = float(self.means(len(self.actions), self.training) @ np.asarray(action))
        self.shown.append(self.training)
        self.actions.append(np.array(action, np.float32))
        self.decision += 1
        noisy = mean + self.noise * self.np_random.standard_normal()
        self.rewards.append(float(self.offset + self.size * noisy))
        return self._observe(), self.rewards[-1], self.decision >= self.length, False, {}
