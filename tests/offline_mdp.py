"""A small decision process with factorised masks whose true values are computed, not estimated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ksel.estimators import Log
from ksel.logged import BITS, Judged, Payment, see
from ksel.trajectories import Trajectories

STATES, TYPES = 4, 3
MASKS = np.array([[(n >> k) & 1 for k in range(TYPES)] for n in range(2**TYPES)], float)


@dataclass(frozen=True)
class World:
    """States, credits [S, K], an effect [S] of types 0 and 1 together that no credit knows, noise."""

    credits: np.ndarray
    together: np.ndarray
    noise: float
    length: int

    def rewards(self) -> np.ndarray:
        """Expected reward of each mask, [S, 2^K]."""
        both = MASKS[:, 0] * MASKS[:, 1]
        return self.credits @ MASKS.T + self.together[:, None] * both

    def moves(self) -> np.ndarray:
        """[S, 2^K, S]: more types on lead to later states."""
        table = np.zeros((STATES, len(MASKS), STATES))
        for state in range(STATES):
            for number, mask in enumerate(MASKS):
                forward = 0.05 + 0.1 * mask.sum()
                table[state, number, (state + 1) % STATES] += forward
                table[state, number, state] += 1 - forward
        return table


def world(misspecified: bool = False, length: int = 12, noise: float = 0.5) -> World:
    rng = np.random.default_rng(7)
    together = np.array([0.8, -0.6, 0.5, 0.7]) if misspecified else np.zeros(STATES)
    return World(rng.normal(0.3, 0.6, (STATES, TYPES)), together, noise, length)


def policy(shift: float, spread: float = 0.8) -> np.ndarray:
    """P(bit on) [S, K]; ``shift`` moves all logits."""
    logits = np.random.default_rng(3).normal(0.0, spread, (STATES, TYPES))
    return 1 / (1 + np.exp(-(logits + shift)))


def mask_chances(p: np.ndarray) -> np.ndarray:
    """[S, 2^K]."""
    return np.prod(np.where(MASKS > 0.5, p[:, None], 1 - p[:, None]), axis=2)


def true_values(w: World, behaviour: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Mean reward per decision of the target at the behaviour's states; its own return."""
    b, t = mask_chances(behaviour), mask_chances(target)
    paid = (t * w.rewards()).sum(1)
    there, own = np.eye(STATES)[0], np.eye(STATES)[0]
    decision = episode = 0.0
    for _ in range(w.length):
        decision += there @ paid / w.length
        episode += own @ paid
        there = np.einsum("s,sm,smn->n", there, b, w.moves())
        own = np.einsum("s,sm,smn->n", own, t, w.moves())
    return decision, episode


def play(
    w: World,
    behaviour: np.ndarray,
    episodes: int,
    rng: np.random.Generator,
    credit_noise: float = 0.2,
) -> Trajectories:
    """Log episodes of the behaviour, with noisy credits; the observation is the state, one-hot."""
    rewards, moves = w.rewards(), w.moves().cumsum(2)
    state = np.zeros(episodes, int)
    columns: list[tuple[np.ndarray, ...]] = []
    for _ in range(w.length):
        bits = (rng.random((episodes, TYPES)) < behaviour[state]).astype(float)
        masks = (bits @ 2 ** np.arange(TYPES)).astype(int)
        credits = w.credits[state] + rng.normal(0, credit_noise, (episodes, TYPES))
        paid = rewards[state, masks] + rng.normal(0, w.noise, episodes)
        columns.append((state, bits, credits, paid))
        state = (rng.random(episodes)[:, None] > moves[state, masks]).sum(1)
    joined = [np.stack([column[n] for column in columns], 1) for n in range(4)]
    states, paid = joined[0].ravel(), joined[3].ravel()
    bits, credits = (part.reshape(-1, TYPES) for part in joined[1:3])
    chances, count = behaviour[states], len(paid)
    decisions = np.tile(np.arange(w.length), episodes)
    return Trajectories(
        pool=tuple(f"type{k}" for k in range(TYPES)),
        features=tuple(f"state{n}" for n in range(STATES)),
        soft=False,
        observations=np.eye(STATES, dtype=np.float32)[states],
        actions=bits.astype(np.float32),
        rewards=paid,
        probabilities=chances,
        log_prob=np.log(np.where(bits > 0.5, chances, 1 - chances)).sum(1),
        credits=credits,
        predicted=(credits * bits).sum(1),
        objectives=np.full(count, np.nan),
        drops=np.full(count, np.nan),
        reward_scales=np.ones(count),
        terminations=decisions == w.length - 1,
        episodes=np.repeat(np.arange(episodes), w.length),
        decisions=decisions,
        updates=decisions,
        runs=np.zeros(count, int),
        stage=np.full(count, "search"),
        names=("simulated",),
        meta=({"agent": "a2c"},),
    )


def judge(logged: Trajectories, target: np.ndarray) -> Judged:
    """What a policy of independent bits [S, K] makes of the decisions."""
    p = target[logged.observations.argmax(1)]
    log_prob = np.log(np.where(logged.actions > 0.5, p, 1 - p)).sum(1)
    return Judged("target", p, log_prob, BITS)


def seen(logged: Trajectories, target: np.ndarray) -> Log:
    """The decisions as the estimators take them."""
    return see(
        logged, judge(logged, target), Payment(0.0, False, frozenset(), False, "none", np.inf)
    )
