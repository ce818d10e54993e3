"""What the agent sees: the bounded, task-independent ``training`` vector and the [CLS] states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ksel.records import Update

GLOBAL = (
    "progress",
    "learning_rate",
    "student_entropy",
    "agreement",
    "objective_trend",
    "objective_level",
)
PER_TYPE = ("loss", "trend", "credit", "last_action", "share")
_GLOBAL_LOW = (0.0, 0.0, 0.0, 0.0, -1.0, -1.0)
_PER_TYPE_LOW = (-1.0, -1.0, -1.0, 0.0, 0.0)


def feature_names(pool: Sequence[str]) -> tuple[str, ...]:
    """Names of the entries of ``training``: the global ones, then block after block over the types."""
    return GLOBAL + tuple(f"{block}/{name}" for block in PER_TYPE for name in pool)


def bounds(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value of each entry of ``training`` for ``count`` types, float32."""
    low = [*_GLOBAL_LOW, *(value for value in _PER_TYPE_LOW for _ in range(count))]
    return np.array(low, np.float32), np.ones(len(low), np.float32)


@dataclass
class Features:
    """Builds ``training`` from what the last decision saw; holds what is known so far.

    A quantity that was not measured keeps its last value, and is 0 before its first.

    Attributes:
        count: number of knowledge types K.
    """

    count: int
    progress: float = 0.0
    learning_rate: float = 0.0
    entropy: float = 0.0
    agreement: float = 0.0
    objective_trend: float = 0.0
    objective_level: float = 0.0
    decisions: int = 0
    blocks: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    previous: np.ndarray = field(default_factory=lambda: np.zeros(0))
    taken: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if self.blocks.size == 0:
            self.blocks = np.zeros((len(PER_TYPE), self.count))
            self.previous = np.full(self.count, math.nan)
            self.taken = np.zeros(self.count)

    def see(self, update: Update, sizes: np.ndarray) -> None:
        """Take in losses [K] and their running sizes [K], entropy and agreement."""
        known = np.isfinite(update.loss) & (update.loss > 0) & (sizes > 0)
        loss, trend = self.blocks[0], self.blocks[1]
        logs = np.log(update.loss[known])
        loss[known] = np.tanh(logs - np.log(sizes[known]))
        before = known & np.isfinite(self.previous)
        trend[before] = np.tanh(np.log(update.loss[before]) - np.log(self.previous[before]))
        self.previous[known] = update.loss[known]
        if math.isfinite(update.entropy):
            self.entropy = update.entropy
        if math.isfinite(update.agreement):
            self.agreement = update.agreement

    def act(self, action: np.ndarray, progress: float, learning_rate: float) -> None:
        """Take in the action [K] just carried out.

        Args:
            action: bits or weights.
            progress: share of the step budget spent.
            learning_rate: of the last update over the peak.
        """
        self.decisions += 1
        self.taken += action
        self.blocks[3] = action
        self.blocks[4] = self.taken / self.decisions
        self.progress, self.learning_rate = progress, learning_rate

    def owe(self, scaled_credit: np.ndarray) -> None:
        """Take in the windowed credit [K] of a decision over the reward's scale; nan = not known."""
        known = np.isfinite(scaled_credit)
        self.blocks[2, known] = np.tanh(scaled_credit[known])

    def judge(self, scaled_drop: float, objective: float, initial: float) -> None:
        """Take in the reward: scaled drop, objective when last measured and at the episode's start."""
        self.objective_trend = math.tanh(scaled_drop)
        if math.isfinite(objective):
            self.objective_level = (objective - initial) / max(abs(initial), 1e-8)

    def training(self) -> np.ndarray:
        """The vector [6 + 5K] float32, every entry inside its bounds."""
        shared = [
            self.progress,
            self.learning_rate,
            self.entropy,
            self.agreement,
            self.objective_trend,
            self.objective_level,
        ]
        low, high = bounds(self.count)
        # cut before the cast: what float32 cannot hold would become infinite
        return np.clip(np.concatenate([shared, self.blocks.ravel()]), low, high).astype(np.float32)

    def copy(self) -> Features:
        """An independent copy."""
        twin = Features(**self.__dict__)
        twin.blocks, twin.previous = self.blocks.copy(), self.previous.copy()
        twin.taken = self.taken.copy()
        return twin
