"""greedy: the types whose credit is good enough now; all_action without learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.fixed import FixedPolicy
from agents.policy import Choice, Observation
from envs.observation import GLOBAL, PER_TYPE
from ksel.errors import UsageError

NAME = "greedy"
SATURATED = 1.0 - 1e-6
"""Credit is observed squashed by tanh; beyond this it cannot be told how large it was."""


def credit_of(training: np.ndarray, count: int) -> np.ndarray:
    """Windowed credit of each of ``count`` types as it was before it was squashed, [count] float64."""
    first = len(GLOBAL) + PER_TYPE.index("credit") * count
    squashed = training[first : first + count].astype(np.float64)
    return np.arctanh(np.clip(squashed, -SATURATED, SATURATED))


def weights_by_credit(credit: np.ndarray, threshold: float, soft: bool) -> np.ndarray:
    """The action for credits [K]; never empty.

    A type is on where its credit over the largest of all exceeds the threshold; soft: with that
    share as its weight. The type with the largest credit is always on, alone where no credit is
    above 0. While no credit is known (all are 0) all types are on.

    Returns:
        [K] float32 in [0, 1].
    """
    if not credit.any():
        return np.ones(len(credit), np.float32)
    best = int(np.argmax(credit))
    action = np.zeros(len(credit), np.float32)
    if credit[best] > 0:
        share = credit / credit[best]
        action = np.where(share > threshold, share if soft else 1.0, 0.0).astype(np.float32)
    action[best] = 1.0
    return action


def greedy_policy(threshold: float, pool: Sequence[str], soft: bool) -> FixedPolicy:
    """The rule as a policy; see :func:`weights_by_credit`.

    Args:
        threshold: from 0 to below 1.
        pool: names of the knowledge types.
        soft: weights instead of bits.

    Raises:
        UsageError: the threshold is outside its range.
    """
    if not 0.0 <= threshold < 1.0:
        raise UsageError(f"--greedy.threshold is {threshold}; give a number from 0 to below 1.")

    def rule(rng: np.random.Generator, decision: int, observation: Observation) -> Choice:
        if "training" not in observation:
            raise UsageError("--env.observe: greedy reads the credit in 'training'; add it.")
        credit = credit_of(observation["training"], len(pool))
        return Choice.certain(weights_by_credit(credit, threshold, soft))

    return FixedPolicy(NAME, tuple(pool), soft, {"threshold": threshold}, rule)
