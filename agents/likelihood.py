"""What a frozen policy would have done at a logged decision: its mean action, the logged one's probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.stats import norm

from agents import factorised, frozen
from agents.bandit import BanditPolicy
from agents.factorised import FactorisedPolicy
from agents.fixed import FixedPolicy
from agents.frozen import SB3Policy, action_distribution, part_tensors
from agents.policy import Observation, Policy
from ksel.logged import BETA, BITS, EDGES, FLAT, ONE, POINT


@dataclass(frozen=True)
class Considered:
    """What a policy makes of one logged decision.

    Attributes:
        mean: [K] float64, expected action; for bits and single types the probability of each.
        log_prob: log-probability (weights: log-density, see :attr:`measure`) of the logged action;
            -inf if the policy would never take it.
        measure: what the policy draws from, one of the names of :mod:`ksel.logged`.
    """

    mean: np.ndarray
    log_prob: float
    measure: str


def consider(policy: Policy, observation: Observation, action: np.ndarray) -> Considered:
    """Ask a policy about a logged action; call it once per decision, in order, after ``reset``.

    Args:
        policy: frozen.
        observation: what was seen before the decision.
        action: [K], what was done then.
    """
    choice = policy.act(observation)  # rules count their decisions
    if isinstance(policy, SB3Policy) and policy.final == "sample":
        return _actor(policy, observation, action)
    if isinstance(policy, FactorisedPolicy) and policy.final == "sample":
        return _factorised(policy, observation, action, choice.action)
    if isinstance(policy, BanditPolicy) and policy.draws:
        return _one_type(policy.values, action)
    if isinstance(policy, FixedPolicy) and policy.name == "random_hard":
        return Considered(*_bits(special.logit(choice.probabilities), action), BITS)
    if isinstance(policy, FixedPolicy) and policy.name == "random_soft":
        return Considered(choice.probabilities.astype(np.float64), 0.0, FLAT)
    return _certain(choice.action, action)


def _certain(taken: np.ndarray, action: np.ndarray) -> Considered:
    same = np.array_equal(taken.astype(np.float32), action.astype(np.float32))
    return Considered(taken.astype(np.float64), 0.0 if same else -np.inf, POINT)


def _bits(logits: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float]:
    logits = logits.astype(np.float64)
    return special.expit(logits), frozen.log_probability(action, logits, None)


def _actor(policy: SB3Policy, observation: Observation, action: np.ndarray) -> Considered:
    center, spread = action_distribution(policy.network, policy.tensors(observation))
    if spread is None:
        return Considered(*_bits(center, action), BITS)
    low, high = -center / spread, (1.0 - center) / spread
    inside = center * (norm.cdf(high) - norm.cdf(low)) + spread * (norm.pdf(low) - norm.pdf(high))
    log_prob = frozen.log_probability(action, center, spread)
    return Considered(inside + norm.sf(high), log_prob, EDGES)


def _factorised(
    policy: FactorisedPolicy, observation: Observation, action: np.ndarray, taken: np.ndarray
) -> Considered:
    kind, concentration = policy.network.kind, policy.network.concentration
    if kind == "sigmoid":
        return _certain(taken, action)
    logits = policy.network.logits(part_tensors(observation, policy.space))[0].astype(np.float64)
    if kind == "bits":
        return Considered(*_bits(logits, action), BITS)
    log_prob = factorised.log_probability(action, logits, kind, concentration)
    return Considered(special.expit(logits), log_prob, BETA)


def _one_type(values: np.ndarray, action: np.ndarray) -> Considered:
    chance = float(values @ action) if action.sum() == 1 else 0.0
    with np.errstate(divide="ignore"):
        return Considered(values.astype(np.float64), float(np.log(chance)), ONE)
