"""What frozen policies would have done: means and chances checked against their own draws."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from agents.bandit import BanditPolicy
from agents.factorised import FactorisedNetwork, FactorisedPolicy
from agents.fixed import (
    dynamic_policy,
    random_hard_policy,
    random_soft_policy,
    round_robin_policy,
    static_policy,
)
from agents.frozen import SB3Policy, build_network
from agents.likelihood import Considered, consider
from agents.policy import Policy
from envs.observation import feature_names
from ksel.logged import BETA, BITS, EDGES, FLAT, ONE, POINT

POOL = ("label", "response", "hidden/skip")
WIDTH = len(feature_names(POOL))
SPACE = spaces.Dict({"training": spaces.Box(-np.inf, np.inf, (WIDTH,))})
SEEN = {"training": np.linspace(-1, 1, WIDTH, dtype=np.float32)}
DRAWS = 3000


def actor(soft: bool, final: str = "sample") -> SB3Policy:
    import torch

    torch.manual_seed(0)
    network = build_network(SPACE, len(POOL), soft, False, [8])
    bias = network.get_parameter("action_net.bias")
    torch.nn.init.constant_(bias, 0.6)
    return SB3Policy("a2c", network, POOL, SPACE, False, final)


def factorised(kind: str, final: str = "sample") -> FactorisedPolicy:
    actions = spaces.MultiBinary(3) if kind == "bits" else spaces.Box(0.0, 1.0, (3,))
    return FactorisedPolicy(
        FactorisedNetwork(SPACE, actions, kind, 6.0, [8], start=0.7), POOL, SPACE, final
    )


def exp3s(final: str = "sample") -> BanditPolicy:
    return BanditPolicy("exp3s", np.array([0.5, 0.3, 0.2]), POOL, SPACE, final)


DRAWING = {
    "a2c": (lambda: actor(False), BITS),
    "a2c soft": (lambda: actor(True), EDGES),
    "all_action": (lambda: factorised("bits"), BITS),
    "all_action soft": (lambda: factorised("beta"), BETA),
    "bandit": (exp3s, ONE),
    "random_hard": (lambda: random_hard_policy(0.3, POOL), BITS),
    "random_soft": (lambda: random_soft_policy(POOL), FLAT),
}
CERTAIN = {
    "a2c mode": lambda: actor(False, "mode"),
    "a2c soft mode": lambda: actor(True, "mode"),
    "all_action mode": lambda: factorised("bits", "mode"),
    "sigmoid": lambda: factorised("sigmoid"),
    "bandit mode": lambda: exp3s("mode"),
    "linucb": lambda: BanditPolicy("linucb", np.ones((3, WIDTH + 1)), POOL, SPACE, "sample"),
    "static": lambda: static_policy(["label"], POOL),
    "dynamic": lambda: dynamic_policy(1.0, POOL),
}


def ask(policy: Policy, action: np.ndarray) -> Considered:
    policy.reset(np.random.default_rng(0))
    return consider(policy, SEEN, action)


@pytest.mark.parametrize("name", DRAWING)
def test_mean_and_chance_are_those_of_the_policys_own_draws(name: str) -> None:
    make, measure = DRAWING[name]
    policy = make()
    policy.reset(np.random.default_rng(1))
    choices = [policy.act(SEEN) for _ in range(DRAWS)]
    mean = np.mean([choice.action for choice in choices], axis=0)
    for choice in choices[:20]:
        considered = ask(policy, choice.action)
        assert considered.measure == measure
        np.testing.assert_allclose(considered.mean, mean, atol=5 * 0.5 / DRAWS**0.5)
        assert considered.log_prob == pytest.approx(choice.log_prob, abs=1e-4)
    actions = np.stack([choice.action for choice in choices[:20]])
    assert len(np.unique(actions, axis=0)) > 1


@pytest.mark.parametrize("name", CERTAIN)
def test_a_certain_policy_gives_its_own_action_all_the_chance(name: str) -> None:
    policy = CERTAIN[name]()
    policy.reset(np.random.default_rng(0))
    action = policy.act(SEEN).action
    considered = ask(policy, action)
    assert considered.measure == POINT
    assert considered.log_prob == 0.0
    np.testing.assert_array_equal(considered.mean, action)
    other = action.copy()
    other[1] = 1 - other[1] * 0.5
    assert ask(policy, other).log_prob == -np.inf


def test_a_mean_weight_counts_what_is_cut_off_to_the_edges() -> None:
    policy = actor(True)
    policy.network.log_std.data.fill_(0.5)  # wide: much is cut off
    policy.reset(np.random.default_rng(1))
    drawn = np.mean([policy.act(SEEN).action for _ in range(DRAWS)], axis=0)
    considered = ask(policy, np.array([0.0, 1.0, 0.5], np.float32))
    np.testing.assert_allclose(considered.mean, drawn, atol=5 * 0.5 / DRAWS**0.5)
    assert np.abs(considered.mean - np.clip(policy.act(SEEN).probabilities, 0, 1)).max() > 0.05
    assert np.isfinite(considered.log_prob)


def test_one_type_cannot_be_two() -> None:
    assert ask(exp3s(), np.array([1, 1, 0], np.float32)).log_prob == -np.inf
    assert ask(exp3s(), np.array([0, 1, 0], np.float32)).log_prob == pytest.approx(np.log(0.3))


def test_rules_count_the_decisions_they_are_asked_about() -> None:
    policy = round_robin_policy(POOL)
    policy.reset(np.random.default_rng(0))
    means = [consider(policy, SEEN, np.zeros(3)).mean.tolist() for _ in range(4)]
    assert means == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
