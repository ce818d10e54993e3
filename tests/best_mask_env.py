"""A tiny environment with a known best action, for tests of agents."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

POOL = ("label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1")
BEST = np.array([1, 0, 1, 1, 0], np.float32)
FEATURES = 6 + 5 * len(POOL)


class BestMaskEnv(gym.Env):
    """Reward 1 - 2 * mean |action - best| + noise; the observation says nothing of the best."""

    def __init__(
        self, best: np.ndarray = BEST, *, soft: bool = False, cls: int = 0, noise: float = 0.2
    ) -> None:
        size = len(best)
        self.best, self.noise, self.length = best, noise, 20
        self.action_space = spaces.Box(0, 1, (size,)) if soft else spaces.MultiBinary(size)
        parts: dict[str, spaces.Space] = {"training": spaces.Box(-1, 1, (FEATURES,))}
        if cls:
            parts["student_cls"] = spaces.Box(-np.inf, np.inf, (cls,))
        self.observation_space = spaces.Dict(parts)
        self.pool_names = POOL[:size]
        self.observations: list[dict[str, np.ndarray]] = []
        self.actions: list[np.ndarray] = []
        self.seeds: list[int | None] = []

    def _observe(self) -> dict[str, np.ndarray]:
        observation = {
            name: self.np_random.uniform(-1, 1, part.shape).astype(np.float32)
            for name, part in self.observation_space.spaces.items()
        }
        observation["training"][0] = self.decision / self.length
        self.last = {name: part.copy() for name, part in observation.items()}
        return observation

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.decision = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.observations.append(self.last)
        self.actions.append(np.array(action, np.float32))
        self.decision += 1
        error = np.abs(np.asarray(action) - self.best).mean()
        reward = 1 - 2 * error + self.noise * self.np_random.standard_normal()
        return self._observe(), float(reward), self.decision >= self.length, False, {}
