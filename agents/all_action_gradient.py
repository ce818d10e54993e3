"""What all_action climbs: the gradient of bits or weights that are independent of each other, advantages."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

EDGE = 1e-4
"""Beta: weights are kept this far from 0 and 1, where the density may be infinite."""


def score(logits: Tensor, action: Tensor, kind: str, concentration: float) -> Tensor:
    """Derivative of the action's log-probability with respect to the logits.

    Bits: a - p. Beta: p (1 - p) n (log a - log (1 - a) - psi(n p) + psi(n (1 - p))), n the
    concentration. Sigmoid: 0, as nothing is drawn.

    Args:
        logits: [b, K].
        action: [b, K] bits or weights.
        kind: ``bits``, ``beta`` or ``sigmoid``, see :mod:`agents.factorised`.
        concentration: read by ``beta``.

    Returns:
        [b, K].
    """
    p = torch.sigmoid(logits)
    if kind == "bits":
        return action - p
    if kind == "sigmoid":
        return torch.zeros_like(p)
    weight = action.clamp(EDGE, 1 - EDGE)
    expected = torch.digamma(concentration * p) - torch.digamma(concentration * (1 - p))
    return p * (1 - p) * concentration * (torch.logit(weight) - expected)


def policy_gradient(
    logits: Tensor,
    action: Tensor,
    credit: Tensor,
    now: Tensor,
    after: Tensor,
    kind: str = "bits",
    concentration: float = 1.0,
) -> Tensor:
    """Gradient of the expected return with respect to the logits, one estimate per decision.

    What a decision earns at once is known for each type alone: d_k is the reward with type k on
    minus that with it off, the rest of the action as it was taken (soft: the derivative). Its part
    of the gradient is p_k (1 - p_k) d_k: an expectation over bit k, with no noise from its draw.
    It is exact from one decision where the reward is additive, and right on average for any
    reward of bits and any that is linear in each weight. What comes after is one number for the
    whole action. Added to each d_k it would move all bits the same way, whatever was chosen; it
    takes the score: score_k x after.

    A type without credit beside others with credit cannot be selected now and gets no gradient.
    Where no type has credit the score takes the advantage of the reward too.

    Args:
        logits, action: [b, K].
        credit: [b, K] d_k; nan = not known.
        now: [b] reward minus what was expected of it.
        after: [b] what came after minus what was expected of it.
        kind, concentration: see :func:`score`.

    Returns:
        [b, K], to be climbed.
    """
    known = ~credit.isnan()
    blind = ~known.any(-1, keepdim=True)
    p = torch.sigmoid(logits)
    at_once = p * (1 - p) * credit.nan_to_num(0.0)
    advantage = after[:, None] + torch.where(blind, now[:, None], torch.zeros_like(now[:, None]))
    gradient = at_once + score(logits, action, kind, concentration) * advantage
    return torch.where(known | blind, gradient, torch.zeros_like(gradient))


def entropies(logits: Tensor) -> Tensor:
    """Entropy of each bit (soft: of a bit with that mean), in nats; the shape of ``logits``."""
    softplus = nn.functional.softplus
    p = torch.sigmoid(logits)
    return p * softplus(-logits) + (1 - p) * softplus(logits)


def keep_alive(logits: Tensor, gradient: Tensor, floor: float) -> Tensor:
    """Turn the gradient of bits back whose entropy has fallen below ``floor`` x ln 2.

    There, what would push the bit further out is replaced by the gradient of its entropy, however
    large the rewards are; what pushes it back stays. A gradient of 0 (a type that cannot be
    selected) stays 0.

    Args:
        logits, gradient: [b, K].
        floor: share of ln 2.
    """
    outward = (entropies(logits) < floor * math.log(2)) & (gradient * logits > 0)
    p = torch.sigmoid(logits)
    return torch.where(outward, -p * (1 - p) * logits, gradient)


def advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    last_value: np.ndarray,
    dones: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages of the reward of each decision, and of what comes after it.

    With V = values of both kinds, the generalised advantage is A_t = r_t + gamma V_(t+1) - V_t +
    gamma lambda A_(t+1), and what came after is A_t less the surprise r_t - (expected r_t).

    Args:
        rewards, dones: [T, n].
        values: [T, n, 2] expected reward of the decision, and of what comes after.
        last_value: [n] V after the last decision.

    Returns:
        now [T, n] and after [T, n]; added to ``values`` they are the critic's targets.
    """
    following, advantage = last_value, np.zeros_like(last_value)
    both = np.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        alive = 1.0 - dones[t]
        value = values[t].sum(-1)
        delta = rewards[t] + gamma * alive * following - value
        advantage = delta + gamma * gae_lambda * alive * advantage
        both[t], following = advantage, value
    now = rewards - values[..., 0]
    return now, both - now
