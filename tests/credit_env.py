"""A tiny environment that pays predicted drops and says what each type is owed, for tests of agents."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.branches import Branched, Step, relative
from envs.observation import GLOBAL, PER_TYPE

POOL = ("label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1", "fsp/skip")
FEATURES = len(GLOBAL) + len(PER_TYPE) * len(POOL)
FIRST = np.array([1.0, 0.6, -0.8, 0.4, -0.6, -0.4])
Credit = Callable[[int], np.ndarray]


class CreditEnv(gym.Env):
    """Reward = (sum over the types that are on of their noisy credit) / scale - cost per type.

    Args:
        credit: number of the decision within the episode -> [K] true credit.
        noise: deviation of a type's noise over the root mean square of the credits.
        length: decisions of an episode.
        cost: taken off the reward for each type that is on (soft: per unit of weight).
        scale: what credit and drops are multiplied by; also ``info["reward_scale"]``.
        known_from: decisions before which no credit is told.
        forbidden: types that cannot be selected.
        delayed: [K] earned one decision after a type was on, and told of no type.
        branches: (number of masks, decisions between two forks, decisions that a branch counts).
    """

    def __init__(
        self,
        credit: Credit = lambda decision: FIRST,
        *,
        noise: float = 1.0,
        length: int = 60,
        scale: float = 1.0,
        cost: float = 0.0,
        soft: bool = False,
        known_from: int = 0,
        forbidden: Sequence[int] = (),
        delayed: np.ndarray | None = None,
        branches: tuple[int, int, int] | None = None,
    ) -> None:
        self.credit, self.noise, self.length, self.scale = credit, noise, length, scale
        self.known_from, self.forbidden, self.cost = known_from, set(forbidden), cost
        self.delayed, self.branches = delayed, branches
        self.pool_names = POOL
        size = len(POOL)
        self.action_space = spaces.Box(0, 1, (size,)) if soft else spaces.MultiBinary(size)
        self.observation_space = spaces.Dict({"training": spaces.Box(-1, 1, (FEATURES,))})
        self.actions: list[np.ndarray] = []
        self.seeds: list[int | None] = []
        self.true_rewards: list[float] = []
        self.forks: list[tuple[int, np.ndarray]] = []

    @property
    def branching(self) -> bool:
        return self.branches is not None and self.decision >= self.next_fork

    @property
    def allowed(self) -> np.ndarray:
        return np.array([k not in self.forbidden for k in range(len(POOL))])

    @property
    def branch_count(self) -> int:
        assert self.branches is not None
        return self.branches[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.decision, self.earned = 0, 0.0
        self.next_fork = self.branches[1] if self.branches else 0
        self.window: deque[np.ndarray] = deque([np.zeros(len(POOL))], maxlen=10)
        self.taken = np.zeros(len(POOL))
        return self._observe(), {}

    def _observe(self) -> dict[str, np.ndarray]:
        training = np.zeros(FEATURES, np.float32)
        blocks = training[len(GLOBAL) :].reshape(len(PER_TYPE), len(POOL))
        training[0] = self.decision / self.length
        blocks[PER_TYPE.index("credit")] = np.tanh(np.mean(self.window, axis=0) / self.scale)
        blocks[PER_TYPE.index("last_action")] = self.taken
        self.last = {"training": training.copy()}
        return {"training": training}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        mask = np.asarray(action, np.float64).copy()
        mask[list(self.forbidden)] = 0.0
        true = self.scale * self.credit(self.decision)
        spread = self.noise * np.sqrt(np.mean(true**2))
        told = true + spread * self.np_random.standard_normal(len(POOL))
        info: dict[str, Any] = {"predicted": float(mask @ told), "reward_scale": self.scale}
        if self.decision >= self.known_from:
            self.window.append(told)
            info |= {
                f"credit/{n}": d
                for k, (n, d) in enumerate(zip(POOL, told.tolist(), strict=True))
                if k not in self.forbidden
            }
        costs = self.cost * float(mask.sum())
        reward = (info["predicted"] + self.earned) / self.scale - costs
        self.true_rewards.append(float(mask @ true + self.earned) / self.scale - costs)
        self.earned = 0.0 if self.delayed is None else self.scale * float(mask @ self.delayed)
        self.actions.append(mask)
        self.taken = mask
        self.decision += 1
        return self._observe(), float(reward), self.decision >= self.length, False, info

    def branch(self, masks: np.ndarray) -> Branched:
        assert self.branches is not None
        self.forks.append((self.decision, masks.copy()))
        counts = min(self.branches[2], self.length - self.decision)
        masks = np.asarray(masks) * self.allowed
        true = masks @ self.credit(self.decision)
        drops = self.scale * (true + self.noise * self.np_random.standard_normal(len(masks)))
        chosen = int(np.argmax(drops))
        mask, paid = masks[chosen], float(drops[chosen]) / self.scale
        self.actions += [mask] * counts
        self.taken = mask
        self.decision += counts
        self.next_fork = self.decision + self.branches[1]
        over = self.decision >= self.length
        info = {"reward_scale": self.scale}
        steps = []
        for number in range(1, counts + 1):
            last = number == counts
            reward = (paid if last else 0.0) - self.cost * float(mask.sum())
            steps.append(Step(mask, np.zeros(FEATURES), reward, over and last, info))
        observation = self._observe()
        return Branched(drops, relative(drops), chosen, steps, observation, over, info)

    def regret(self, last: int | None = None) -> float:
        """Mean shortfall of the (last) decisions' true rewards against the best masks."""
        best = [
            float(np.maximum(self.credit(t % self.length), 0).sum())
            for t in range(len(self.true_rewards))
        ]
        short = np.array(best) - np.array(self.true_rewards)
        return float(short[-last:].mean() if last else short.mean())
