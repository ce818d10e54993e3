"""What a frozen policy would do at many observations at once: the mean of its action, nothing drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from scipy import special

from agents.bandit import BanditPolicy
from agents.bandit_rules import features, one_hot
from agents.deterministic import DDPGPolicy, masked
from agents.factorised import FactorisedPolicy
from agents.fixed import FixedPolicy
from agents.frozen import SB3Policy, action_distribution_batch, probabilities
from agents.policy import Policy
from agents.race import RacePolicy

TRAINING = "training"


def blind_spot(policy: Policy) -> str | None:
    """Why a schedule cannot tell how the policy responds, or None if it can.

    A schedule holds the part ``training`` of each observation and no other.
    """
    if isinstance(policy, FixedPolicy) and policy.name not in ("annealed", "dynamic", "greedy"):
        return f"{policy.name} is a rule that does not look at the observation"
    if isinstance(policy, RacePolicy):
        return "race looks at its progress alone: the schedule shows all of it"
    if not isinstance(
        policy, SB3Policy | FactorisedPolicy | DDPGPolicy | BanditPolicy | FixedPolicy
    ):
        return f"{policy.name} does not look at the observation"
    if isinstance(policy, BanditPolicy) and policy.algorithm == "exp3s":
        return "exp3s does not look at the observation"
    space: Any = getattr(policy, "space", None)
    others = [name for name in (space.spaces if space is not None else ()) if name != TRAINING]
    if others:
        return f"the policy also looks at {', '.join(others)}, which no schedule holds"
    return None


def respond_with(policy: Policy) -> Callable[[np.ndarray], np.ndarray]:
    """A function from observations [N, F] (``training``) to mean actions [N, K].

    The mean of a bit is its probability, that of a weight its mean; of a policy that draws nothing
    it is the action itself.

    Args:
        policy: one of which :func:`blind_spot` says None.
    """

    def respond(observations: np.ndarray) -> np.ndarray:
        rows = np.asarray(observations, np.float32)
        if isinstance(policy, SB3Policy):
            return _actor(policy, rows)
        parts = {TRAINING: torch.as_tensor(rows)}
        if isinstance(policy, FactorisedPolicy):
            return special.expit(policy.network.logits(parts).astype(np.float64))
        if isinstance(policy, DDPGPolicy):
            with torch.no_grad():
                weights = (0.5 * (policy.actor(parts) + 1.0)).numpy()
            cut = policy.cut
            return weights if cut is None else np.stack([masked(row, *cut) for row in weights])
        if isinstance(policy, BanditPolicy):
            return np.stack([_best_type(policy, row) for row in rows])
        policy.reset(np.random.default_rng(0))
        return np.stack([policy.act({TRAINING: row}).probabilities for row in rows])

    return respond


def _actor(policy: SB3Policy, rows: np.ndarray) -> np.ndarray:
    observations: Any = torch.as_tensor(rows)
    if not policy.flat:
        observations = {TRAINING: observations}
    center, _ = action_distribution_batch(policy.network, observations)
    return probabilities(center, policy.soft)


def _best_type(policy: BanditPolicy, row: np.ndarray) -> np.ndarray:
    space = policy.space
    assert isinstance(space, spaces.Dict)
    scores = policy.values @ features({TRAINING: row}, space)
    return one_hot(int(np.argmax(scores)), len(policy.pool))
