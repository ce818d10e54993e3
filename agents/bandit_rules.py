"""Exp3.S and LinUCB: how they choose one of K types, and how they learn from what it brought."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from gymnasium import spaces

from agents.policy import Choice, Observation
from envs.reward import DropScale
from ksel.config import BanditConfig


def features(observation: Observation, space: spaces.Dict) -> np.ndarray:
    """The parts of an observation side by side, and a constant 1: [d] float64."""
    parts = [np.ravel(observation[name]) for name in space.spaces]
    return np.concatenate([*parts, [1.0]]).astype(np.float64)


def one_hot(arm: int, size: int) -> np.ndarray:
    """[K] float32, 1 for one type and 0 for the others."""
    bits = np.zeros(size, np.float32)
    bits[arm] = 1.0
    return bits


def drawn(probabilities: np.ndarray, rng: np.random.Generator) -> Choice:
    """One type drawn from a distribution [K] over the types."""
    arm = int(rng.choice(len(probabilities), p=probabilities))
    log_prob = float(np.log(probabilities[arm]))
    return Choice(one_hot(arm, len(probabilities)), probabilities.astype(np.float32), log_prob)


class Gain:
    """Brings rewards to [-1, 1] for the whole search (Graves et al. 2017).

    The range from the 20 % to the 80 % quantile of all rewards so far is mapped to [-1, 1], and what
    lies outside is cut; the first reward is 0. A reward that the environment has scaled like that
    (``--env.reward_scale quantile``) is only cut.

    Args:
        reward_scale: of the environment.
    """

    def __init__(self, reward_scale: str) -> None:
        self.scale = None if reward_scale == "quantile" else DropScale("quantile")

    def __call__(self, reward: float) -> float:
        """Scale one reward."""
        if self.scale is None:
            return float(np.clip(reward, -1.0, 1.0))
        return self.scale(reward)[0]


# --------------------------------------------------------------------------- the two algorithms


class Algorithm(Protocol):
    """A bandit while it learns."""

    def choose(self, x: np.ndarray, rng: np.random.Generator) -> Choice:
        """Choose for features [d]."""
        ...

    def update(self, choice: Choice, x: np.ndarray, gain: float) -> None:
        """Learn from the gain of a choice."""

    def values(self) -> np.ndarray:
        """What the frozen policy keeps."""
        ...

    def figures(self) -> tuple[str, np.ndarray]:
        """A name and one number for each type, for TensorBoard."""
        ...


class Exp3S:
    """Exp3.S (Auer et al. 2002) in the form of Graves et al. (2017, section 2.2).

    p_i = (1 - epsilon) exp(w_i) / sum_j exp(w_j) + epsilon / K; the gain r of the chosen type a
    counts r / p_a; with v_i = w_i + eta [i = a] r / p_a the new weights are
    w_i = log((1 - alpha) exp(v_i) + alpha / (K - 1) sum_{j != i} exp(v_j)).

    Args:
        size: number of types K.
        settings: eta = ``learning_rate``, epsilon = ``exploration``, alpha = ``forgetting``.
    """

    def __init__(self, size: int, settings: BanditConfig) -> None:
        self.log_weights = np.zeros(size)
        self.rate, self.exploration = settings.learning_rate, settings.exploration
        self.forgetting = settings.forgetting

    def values(self) -> np.ndarray:
        """The distribution over the types, [K]."""
        weights = np.exp(self.log_weights - self.log_weights.max())
        size = len(weights)
        return (1 - self.exploration) * weights / weights.sum() + self.exploration / size

    def choose(self, x: np.ndarray, rng: np.random.Generator) -> Choice:
        """Draw from the distribution; the features are not looked at."""
        return drawn(self.values(), rng)

    def update(self, choice: Choice, x: np.ndarray, gain: float) -> None:
        """Weigh the gain by its probability, then forget a little."""
        raised = self.log_weights.copy()
        raised[int(np.argmax(choice.action))] += self.rate * gain / np.exp(choice.log_prob)
        weights = np.exp(raised - raised.max())
        others = (weights.sum() - weights) / max(len(weights) - 1, 1)
        mixed = (1 - self.forgetting) * weights + self.forgetting * others
        # without a floor a weight that has run out of digits would never come back
        self.log_weights = np.log(np.maximum(mixed, np.finfo(float).tiny))

    def figures(self) -> tuple[str, np.ndarray]:
        """The probability of each type."""
        return "probability", self.values()


class LinUCB:
    """LinUCB with a model for each type (Li et al. 2010, algorithm 1).

    With features x of the observation, A = ridge I + sum x x^T and b = sum r x over the decisions
    that chose a type, theta = A^-1 b: the type with the largest
    theta^T x + width sqrt(x^T A^-1 x) is chosen, the first of equals.

    Args:
        size: number of types K.
        length: number of features d.
        settings: ``width`` and ``ridge``.
    """

    def __init__(self, size: int, length: int, settings: BanditConfig) -> None:
        self.width = settings.width
        self.inverse = np.stack([np.eye(length) / settings.ridge] * size)
        self.sums = np.zeros((size, length))
        self.last = np.zeros(size)

    def values(self) -> np.ndarray:
        """theta of each type, [K, d]."""
        return np.einsum("kij,kj->ki", self.inverse, self.sums)

    def choose(self, x: np.ndarray, rng: np.random.Generator) -> Choice:
        """The largest upper bound; nothing is drawn."""
        spread = np.sqrt(np.einsum("i,kij,j->k", x, self.inverse, x, optimize=True))
        self.last = self.values() @ x
        arm = int(np.argmax(self.last + self.width * spread))
        return Choice.certain(one_hot(arm, len(self.sums)))

    def update(self, choice: Choice, x: np.ndarray, gain: float) -> None:
        """Add one decision to the chosen type's model (Sherman-Morrison)."""
        arm = int(np.argmax(choice.action))
        moved = self.inverse[arm] @ x
        self.inverse[arm] -= np.outer(moved, moved) / (1.0 + x @ moved)
        self.sums[arm] += gain * x

    def figures(self) -> tuple[str, np.ndarray]:
        """The expected gain of each type at the last decision."""
        return "estimate", self.last
