from __future__ import annotations

import itertools
import json
import math
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from credit_env import FEATURES, FIRST, POOL, CreditEnv
from gymnasium import spaces
from scipy import special, stats
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import all_action
from agents.all_action import AllAction
from agents.all_action_agent import AllActionAgent
from agents.all_action_gradient import (
    EDGE,
    advantages,
    entropies,
    keep_alive,
    policy_gradient,
    score,
)
from agents.factorised import FactorisedNetwork, FactorisedPolicy, distinct, draw, log_probability
from agents.make import check_settings, make_agent
from agents.policy import Learner, load_policy
from agents.stable_baselines import SB3Agent
from envs.distillation import DistillationEnv
from envs.recording import Recorder
from ksel.config import AllActionConfig, RunConfig
from ksel.errors import UsageError
from ksel.trajectory import ScheduleWriter

K = 6
MASKS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)), dtype=torch.float64)
LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.0, -0.4, 0.9], dtype=torch.float64)
ZERO = torch.zeros(1, dtype=torch.float64)
SHAPES = {"training": (FEATURES,)}
CREDULOUS = {"block": 0, "anchor": 0.0, "start": 0.85}
"""Each credit counts as it comes: these credits have no noise. See test_agents_evidence for the rest."""


def build(
    env: CreditEnv, search: str = "auto", final: str = "sample", cost: float = 0.0, **settings
) -> AllActionAgent:
    config = RunConfig(agent="all_action", search=search)
    config.episodes.final, config.env.cost_per_type = final, cost
    config.env.actions = "soft" if isinstance(env.action_space, spaces.Box) else "hard"
    usual = {k: v for k, v in CREDULOUS.items() if k != "block" or search != "branch"}
    for key, value in {**usual, **settings}.items():
        setattr(config.all_action, key, value)
    agent = make_agent(config, env.pool_names, env.observation_space, env.action_space)
    assert isinstance(agent, AllActionAgent)
    assert isinstance(agent, Learner)
    return agent


def learned(
    env: CreditEnv | DummyVecEnv, decisions: int = 60, seed: int = 0, **settings
) -> AllAction:
    model = AllAction(env, AllActionConfig(**{**CREDULOUS, **settings}), seed=seed)
    model.learn(decisions)
    return model


def p_of(model: AllAction, env: CreditEnv) -> np.ndarray:
    return special.expit(
        model.policy.logits({"training": torch.as_tensor(env.last["training"])[None]})[0]
    )


def reversing(decision: int) -> np.ndarray:
    return FIRST if decision < 30 else -FIRST


# --------------------------------------------------------------------------- gradient


def enumerated(values: torch.Tensor) -> torch.Tensor:
    """Gradient of the expectation of values [2^K] over all masks, by automatic differentiation."""
    logits = LOGITS.clone().requires_grad_()
    p = torch.sigmoid(logits)
    chance = torch.where(MASKS > 0.5, p, 1 - p).prod(-1)
    (gradient,) = torch.autograd.grad((chance * values).sum(), logits)
    return gradient


def chances() -> torch.Tensor:
    p = torch.sigmoid(LOGITS)
    return torch.where(MASKS > 0.5, p, 1 - p).prod(-1)


def flipped(values: torch.Tensor) -> torch.Tensor:
    """Per mask and type: value with the type on minus value with it off, [2^K, K]."""
    table = values.reshape([2] * K)
    parts = []
    for k in range(K):
        difference = table.select(k, 1) - table.select(k, 0)
        parts.append(torch.stack([difference, difference], dim=k).reshape(-1))
    return torch.stack(parts, dim=-1)


def test_with_additive_credit_each_single_decision_gives_the_exact_gradient():
    credit = torch.tensor([0.7, -0.3, 1.1, 0.2, -2.0, 0.05], dtype=torch.float64)
    exact = enumerated(MASKS @ credit)
    for mask in MASKS:
        estimate = policy_gradient(LOGITS[None], mask[None], credit[None], ZERO + 9, ZERO)
        torch.testing.assert_close(estimate[0], exact, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("blind", [False, True])
def test_the_expected_gradient_is_that_of_all_masks(blind):
    """Of any reward, additive or not, and of any value of what comes after."""
    generator = torch.Generator().manual_seed(3)
    now = torch.randn(2**K, generator=generator, dtype=torch.float64)
    after = torch.randn(2**K, generator=generator, dtype=torch.float64)
    credit = flipped(now)
    if blind:
        credit = torch.full_like(credit, math.nan)
    estimates = policy_gradient(LOGITS.expand(2**K, -1), MASKS, credit, now - 0.7, after + 1.3)
    expected = (chances()[:, None] * estimates).sum(0)
    torch.testing.assert_close(expected, enumerated(now + after), atol=1e-10, rtol=1e-10)


def test_credit_leaves_less_noise_than_the_score():
    generator = torch.Generator().manual_seed(3)
    now = MASKS @ torch.randn(K, generator=generator, dtype=torch.float64)
    now = now + 0.3 * torch.randn(2**K, generator=generator, dtype=torch.float64)
    weights, logits, none = chances()[:, None], LOGITS.expand(2**K, -1), torch.zeros(2**K)
    spread = {}
    for name, credit in (("credit", flipped(now)), ("score", torch.full((2**K, K), math.nan))):
        estimates = policy_gradient(logits, MASKS, credit, now - (weights[:, 0] * now).sum(), none)
        mean = (weights * estimates).sum(0)
        spread[name] = float((weights * (estimates - mean) ** 2).sum())
    assert spread["credit"] < 0.2 * spread["score"]


def test_the_sigmoid_climbs_the_derivative_of_any_reward():
    def reward(weights: torch.Tensor) -> torch.Tensor:
        return torch.sin(weights @ torch.arange(1.0, K + 1, dtype=torch.float64)) + weights.prod()

    weights = torch.sigmoid(LOGITS).requires_grad_()
    (credit,) = torch.autograd.grad(reward(weights), weights)
    estimate = policy_gradient(
        LOGITS[None], weights.detach()[None], credit[None], ZERO + 2, ZERO + 5, "sigmoid"
    )[0]
    step = 1e-6 * torch.eye(K, dtype=torch.float64)
    numerical = torch.stack(
        [
            (reward(torch.sigmoid(LOGITS + h)) - reward(torch.sigmoid(LOGITS - h))) / 2e-6
            for h in step
        ]
    )
    torch.testing.assert_close(estimate, numerical, atol=1e-8, rtol=1e-7)


def nodes(logits: np.ndarray, concentration: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights that integrate over two Beta distributions, [n^2, 2] and [n^2]."""
    grids = []
    for p in special.expit(logits):
        one, other = concentration * p, concentration * (1 - p)
        x, w = special.roots_sh_jacobi(60, one + other - 1, one)
        grids.append((x, w / w.sum()))
    points = np.array(list(itertools.product(grids[0][0], grids[1][0])))
    weights = np.outer(grids[0][1], grids[1][1]).ravel()
    return torch.as_tensor(points), torch.as_tensor(weights)


def test_beta_climbs_the_derivative_of_the_expected_return():
    """The reward is linear in each weight (and not additive); what comes after is anything."""
    logits, concentration = np.array([0.4, -0.3]), 9.0

    def now(a: torch.Tensor) -> torch.Tensor:
        return 0.8 * a[:, 0] - 0.5 * a[:, 1] + 1.7 * a[:, 0] * a[:, 1]

    def after(a: torch.Tensor) -> torch.Tensor:
        return (a[:, 0] - 0.3) ** 3 + a[:, 0] * a[:, 1] ** 2

    def expected(at: np.ndarray) -> float:
        points, weights = nodes(at, concentration)
        return float((weights * (now(points) + after(points))).sum())

    numerical = [(expected(logits + h) - expected(logits - h)) / 2e-5 for h in 1e-5 * np.eye(2)]
    points, weights = nodes(logits, concentration)
    credit = torch.stack([0.8 + 1.7 * points[:, 1], -0.5 + 1.7 * points[:, 0]], dim=-1)
    estimates = policy_gradient(
        torch.as_tensor(logits).expand(len(points), -1),
        points,
        credit,
        torch.zeros(len(points), dtype=torch.float64),
        after(points) - 0.2,
        "beta",
        concentration,
    )
    found = (weights[:, None] * estimates).sum(0)
    np.testing.assert_allclose(found, numerical, atol=2e-6)


def test_beta_scores_are_the_derivative_of_the_log_density():
    logits = LOGITS.clone().requires_grad_()
    action = torch.tensor([0.2, 0.5, 0.9, 0.3, 0.01, 0.99], dtype=torch.float64)
    p = torch.sigmoid(logits)
    density = torch.distributions.Beta(7 * p, 7 * (1 - p)).log_prob(action).sum()
    (exact,) = torch.autograd.grad(density, logits)
    torch.testing.assert_close(score(LOGITS, action, "beta", 7.0), exact)


def test_types_that_cannot_be_selected_get_no_gradient():
    credit = torch.tensor([[0.5, math.nan, -0.5, math.nan, 1.0, 1.0]], dtype=torch.float64)
    gradient = policy_gradient(LOGITS[None], MASKS[21][None], credit, ZERO + 1, ZERO + 2)[0]
    assert (gradient == 0).tolist() == [False, True, False, True, False, False]
    assert (keep_alive(LOGITS[None] * 9, gradient[None], 0.5)[0] == 0)[[1, 3]].all()


def test_a_bit_below_the_floor_is_turned_back_however_large_its_credit():
    logits = torch.tensor([6.0, -6.0, 6.0, -6.0, 0.5, 1.0])
    gradient = torch.tensor([1e6, -1e6, -1e6, 1e6, 1e6, 0.0])
    kept = keep_alive(logits, gradient, 0.1)
    assert kept[0] < 0 < kept[1]
    assert torch.equal(kept[2:], gradient[2:])
    at = logits.clone().requires_grad_()
    (of_entropy,) = torch.autograd.grad(entropies(at).sum(), at)
    torch.testing.assert_close(kept[:2], of_entropy[:2])
    assert torch.equal(keep_alive(logits, gradient, 0.0), gradient)


def test_entropies_are_those_of_bits():
    p = np.array([0.001, 0.2, 0.5, 0.97])
    np.testing.assert_allclose(
        entropies(torch.logit(torch.as_tensor(p))), stats.bernoulli(p).entropy(), rtol=1e-9
    )


def test_advantages_by_hand():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(5, 2)), rng.normal(size=(5, 2, 2))
    last, gamma, lam = rng.normal(size=2), 0.8, 0.6
    dones = np.zeros((5, 2))
    dones[2, 0] = 1
    now, after = advantages(rewards, values, last, dones, gamma, lam)
    v = np.vstack([values.sum(-1), last[None]])
    for n in range(2):
        for t in range(5):
            total, factor = 0.0, 1.0
            for s in range(t, 5):
                alive = 1 - dones[s, n]
                delta = rewards[s, n] + gamma * alive * v[s + 1, n] - v[s, n]
                total += factor * delta
                factor *= gamma * lam * alive
            surprise = rewards[t, n] - values[t, n, 0]
            assert now[t, n] == pytest.approx(surprise)
            assert after[t, n] == pytest.approx(total - surprise)
    assert after[2, 0] == pytest.approx(-values[2, 0, 1])  # nothing comes after the end


@pytest.mark.parametrize("cost", [0.0, 0.5])
def test_an_update_takes_credit_and_reward_on_one_scale(monkeypatch, cost):
    env = CreditEnv(length=3, scale=8.0, cost=cost)
    settings = AllActionConfig(n_steps=4, gamma=0.9, gae_lambda=0.7)
    model = AllAction(env, settings, cost_per_type=cost, seed=0)
    seen = {}

    def spy(logits, action, credit, now, after, *rest):
        seen.update(logits=logits, action=action, credit=credit, now=now, after=after)
        return policy_gradient(logits, action, credit, now, after, *rest)

    monkeypatch.setattr(all_action, "policy_gradient", spy)
    values, rewards = [], []
    train = model.train

    def note():
        rewards.extend(np.concatenate(model.rollout.rewards))
        parts = torch.cat([torch.as_tensor(o["training"]) for o in model.rollout.observations])
        last = torch.as_tensor(model._last_obs["training"])
        with torch.no_grad():
            values.append(model.policy({"training": torch.cat([parts, last])})[1].double().numpy())
        train()

    monkeypatch.setattr(model, "train", note)
    model.learn(4)
    told, action = seen["credit"].double().numpy(), seen["action"].double().numpy()
    assert np.abs(told).max() < 5  # over the scale of 8
    paid = (told * action).sum(-1)
    np.testing.assert_allclose(paid, rewards, atol=1e-5)  # costs and all
    v = values[0]
    np.testing.assert_allclose(seen["now"], paid - v[:4, 0], atol=1e-5)
    # the luck of the draw is taken out of what comes after
    expected = (told * special.expit(seen["logits"].double().numpy())).sum(-1)
    second = expected[2] - v[2].sum()  # the third decision ends the episode
    first = expected[1] + 0.9 * v[2].sum() - v[1].sum() + 0.9 * 0.7 * second
    assert seen["after"][0] == pytest.approx(0.9 * v[1].sum() - v[0, 1] + 0.63 * first, abs=1e-5)
    assert seen["after"][2] == pytest.approx(-v[2, 1], abs=1e-5)
    assert seen["after"][3] == pytest.approx(0.9 * v[4].sum() - v[3, 1], abs=1e-5)


# --------------------------------------------------------------------------- learning


@pytest.mark.parametrize(("noise", "least"), [(1.0, 0.95), (2.0, 0.85)])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_finds_the_right_mask_in_one_short_life(noise, least, scale):
    right = []
    for seed in range(5):
        env = CreditEnv(noise=noise, scale=scale)
        right.append(np.mean((p_of(learned(env, seed=seed), env) > 0.5) == (FIRST > 0)))
    assert np.mean(right) >= least


@pytest.mark.parametrize("soft", [None, "beta", "sigmoid"])
def test_a_type_that_costs_more_than_it_earns_goes(soft):
    """Types 1 and 3 earn 0.6 and 0.4, more than nothing and less than they cost."""
    chosen = {}
    for cost in (0.0, 0.8):
        env = CreditEnv(noise=0.3, cost=cost, scale=0.01, soft=soft is not None, length=100)
        agent = build(env, cost=cost, **({"soft": soft} if soft else {}))
        agent.learn(env, 100, seed=0)
        chosen[cost] = p_of(agent.model, env) > 0.5
    assert np.array_equal(chosen[0.0], FIRST > 0)
    assert np.array_equal(chosen[0.8], FIRST > 0.8)


def test_forty_decisions_are_enough():
    regrets = []
    for seed in range(5):
        env = CreditEnv(length=40)
        learned(env, 40, seed=seed)
        regrets.append(env.regret(10))
    all_on = -FIRST[FIRST < 0].sum()
    assert np.mean(regrets) < 0.2 * all_on


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_follows_a_change_midway(noise):
    regrets = []
    for seed in range(5):
        env = CreditEnv(reversing, noise=noise)
        learned(env, seed=seed)
        regrets.append(env.regret(15))
    holding_on = np.abs(FIRST).sum()
    assert np.mean(regrets) < 0.4 * holding_on


@pytest.mark.parametrize("credit", [lambda decision: FIRST, reversing], ids=["steady", "reversing"])
def test_loses_less_than_a2c_on_the_same_rewards(credit):
    lost = {"all_action": [], "a2c": []}
    for seed in range(4):
        env = CreditEnv(credit, noise=1.0)
        build(env).learn(env, 60, seed=seed)
        lost["all_action"].append(env.regret())
        env = CreditEnv(credit, noise=1.0)
        SB3Agent(RunConfig(agent="a2c"), POOL, env.observation_space, env.action_space).learn(
            env, 60, seed=seed
        )
        lost["a2c"].append(env.regret())
    assert np.mean(lost["all_action"]) < 0.65 * np.mean(lost["a2c"])
    assert np.max(lost["all_action"]) < np.min(lost["a2c"])


def test_the_size_of_drops_does_not_matter_where_their_scale_is_told():
    runs = []
    for scale in (1.0, 2.0**-12, 2.0**9):
        env = CreditEnv(scale=scale)
        learned(env)
        runs.append(np.stack(env.actions))
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], runs[2])


def test_learns_from_rewards_alone_where_credit_is_never_known():
    env = CreditEnv(noise=0.3, known_from=10**9, length=50)
    model = learned(env, 1500, learning_rate=0.01, n_steps=8)
    assert np.array_equal(p_of(model, env) > 0.5, FIRST > 0)


def test_what_comes_after_counts_with_gamma():
    """Type 4 costs a little now and earns more one decision later; no credit tells of it."""
    now = np.array([1.0, 0.6, -0.8, 0.4, -0.2, 0.0])
    later = np.array([0.0, 0.0, 0.0, 0.0, 1.5, -1.5])
    chosen = {}
    for gamma in (0.0, 0.9):
        env = CreditEnv(lambda decision: now, noise=0.3, delayed=later, length=50)
        learned(env, 600, gamma=gamma, gae_lambda=0.9, n_steps=8, learning_rate=0.02)
        chosen[gamma] = np.stack(env.actions)[-100:].mean(0)
    assert chosen[0.0][4] < 0.2
    assert chosen[0.9][4] > 0.8
    assert chosen[0.9][5] < 0.2


def test_no_bit_dies():
    env = CreditEnv(lambda decision: 1e3 * FIRST, noise=0.1, length=300)
    p = p_of(learned(env, 300), env)
    share = stats.bernoulli(p).entropy() / math.log(2)
    assert share.min() > 0.03
    assert np.array_equal(p > 0.5, FIRST > 0)


def test_a_forbidden_type_stays_where_it_was():
    env = CreditEnv(forbidden=[2, 3], noise=0.5)
    model = learned(env, net_arch=[])  # no hidden layer that all types share
    before = AllAction(CreditEnv(), AllActionConfig(net_arch=[], start=0.85)).policy.actor[-1].bias
    after = model.policy.actor[-1].bias
    assert torch.equal(after[[2, 3]], before[[2, 3]])
    assert (after[[0, 1, 4, 5]] != before[[0, 1, 4, 5]]).all()


@pytest.mark.parametrize("soft", ["beta", "sigmoid"])
def test_weights_move_where_they_pay(soft):
    env = CreditEnv(soft=True, noise=0.5)
    p = p_of(learned(env, 100, soft=soft), env)
    assert np.array_equal(p > 0.5, FIRST > 0)
    assert set(np.unique(np.stack(env.actions) > 0)) == {True}  # weights, not bits


def test_the_start_is_where_asked():
    for start in (0.2, 0.85):
        env = CreditEnv(length=200)
        learned(env, 200, learning_rate=1e-12, start=start)
        assert abs(np.stack(env.actions).mean() - start) < 0.05


# --------------------------------------------------------------------------- randomness


def test_global_generators_are_neither_read_nor_moved():
    actions = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        random.seed(state)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        env = CreditEnv(branches=(3, 10, 2))
        model = learned(env)
        model.predict(env.last)
        model.frozen()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
        actions.append(np.stack(env.actions))
    assert np.array_equal(*actions)


@pytest.mark.parametrize("soft", [False, True])
def test_same_seed_gives_the_same_policy(soft):
    def run(seed: int):
        env = CreditEnv(soft=soft)
        agent = build(env)
        agent.learn(env, 30, seed=seed)
        return agent.frozen().network.state_dict(), np.stack(env.actions)

    (first, first_actions), (second, second_actions) = run(5), run(5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.array_equal(first_actions, second_actions)
    other, other_actions = run(6)
    assert not np.array_equal(first_actions, other_actions)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_seed_reaches_the_environment_once():
    env = CreditEnv(length=20)
    build(env).learn(env, 50, seed=11)
    assert env.seeds == [11, None, None]


# --------------------------------------------------------------------------- the learner


@pytest.mark.parametrize("decisions", [2, 7, 61])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_takes_exactly_the_decisions_asked_for_and_learns_from_each(decisions, n_steps):
    env = CreditEnv()
    agent = build(env, n_steps=n_steps)
    counted: list[int] = []
    lengths: list[int] = []
    original = AllAction.train

    def train(self):
        lengths.append(len(self.rollout.rewards))
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AllAction, "train", train)
        assert agent.learn(env, decisions, seed=0, progress=counted.append) == decisions
    assert len(env.actions) == decisions
    assert counted == list(range(1, decisions + 1))
    assert sum(lengths) == decisions
    assert all(length == n_steps for length in lengths[:-1])


@pytest.mark.parametrize("search", ["online", "episodes"])
def test_one_decision_is_refused_with_what_helps(search):
    env = CreditEnv()
    with pytest.raises(UsageError, match=r"--optim\.max_updates") as caught:
        build(env, search).learn(env, 1, seed=0)
    assert ("--episodes.count" in str(caught.value)) is (search == "episodes")


@pytest.mark.parametrize("soft", [False, True])
def test_reported_probabilities_are_those_before_the_action(soft):
    env = CreditEnv(soft=soft)
    agent = build(env)
    seen = []

    shown = []
    step = env.step

    def noting(action):
        shown.append(
            (
                env.last["training"].copy(),
                agent.model.policy.logits(
                    {"training": torch.as_tensor(env.last["training"])[None]}
                )[0],
            )
        )
        return step(action)

    env.step = noting

    def check(probabilities: np.ndarray, log_prob: float) -> None:
        seen.append(probabilities)
        assert len(env.actions) == len(seen)
        action, p = env.actions[-1], special.expit(shown[-1][1].astype(float))
        np.testing.assert_allclose(probabilities, p, atol=1e-6)
        if soft:
            inside = (action > 2 * EDGE) & (action < 1 - 2 * EDGE)
            density = stats.beta(10 * p, 10 * (1 - p)).logpdf(action)
            if inside.all():
                assert log_prob == pytest.approx(density.sum(), abs=1e-3)
        else:
            assert log_prob == pytest.approx(
                np.log(np.where(action > 0.5, p, 1 - p)).sum(), abs=1e-5
            )

    agent.learn(env, 30, seed=0, on_step=check)
    assert len(seen) == 30
    assert len({float(p[0]) for p in seen}) > 25


def test_a_weight_at_an_edge_counts_with_what_was_cut_off():
    logits = np.array([-2.0, 2.0])
    p = special.expit(logits)
    expected = stats.beta(4 * p[0], 4 * (1 - p[0])).logcdf(EDGE)
    expected += stats.beta(4 * p[1], 4 * (1 - p[1])).logsf(1 - EDGE)
    edge = np.array([EDGE, 1 - EDGE], np.float32)
    assert log_probability(edge, logits, "beta", 4.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decisions", [100, 10])
def test_stop_ends_learning_and_leaves_a_policy(decisions):
    env = CreditEnv()
    agent = build(env, n_steps=4)
    assert not agent.learned
    assert agent.learn(env, decisions, seed=0, stop=lambda: len(env.actions) >= 9) == 9
    assert len(env.actions) == 9
    assert agent.learned
    assert agent.model._n_updates == 2
    assert isinstance(agent.frozen(), FactorisedPolicy)


def test_an_interrupt_comes_through_and_leaves_a_policy():
    env = CreditEnv()
    agent = build(env)

    def interrupt(done: int) -> None:
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agent.learn(env, 100, seed=0, progress=interrupt)
    assert agent.frozen().pool == POOL


def test_nothing_can_be_taken_before_learning():
    with pytest.raises(RuntimeError, match="learn"):
        build(CreditEnv()).frozen()


def test_learning_on_does_not_change_a_frozen_policy():
    env = CreditEnv()
    agent = build(env)
    agent.learn(env, 20, seed=0)
    policy = agent.frozen()
    before = {name: tensor.clone() for name, tensor in policy.network.state_dict().items()}
    agent.model.learn(20)
    assert all(torch.equal(before[name], t) for name, t in policy.network.state_dict().items())
    assert any(
        not torch.equal(before[name], t) for name, t in agent.model.policy.state_dict().items()
    )


def test_students_side_by_side_are_counted_together():
    envs = [CreditEnv(length=20) for _ in range(3)]
    venv = DummyVecEnv([lambda env=env: env for env in envs])
    agent = build(envs[0], search="episodes")
    reports, counted = [], []
    assert (
        agent.learn(
            venv, 100, seed=4, on_step=lambda p, _: reports.append(p), progress=counted.append
        )
        == 102
    )
    assert [len(env.actions) for env in envs] == [34] * 3
    assert len(reports) == 102
    assert counted == list(range(3, 103, 3))
    assert [env.seeds for env in envs] == [[4, None], [5, None], [6, None]]
    assert np.array_equal(p_of(agent.model, envs[0]) > 0.5, FIRST > 0)


# --------------------------------------------------------------------------- branches


@pytest.mark.parametrize("kind", ["bits", "beta"])
def test_masks_of_a_fork_differ_and_hold_the_likeliest(kind):
    p = special.expit(LOGITS.numpy())
    for seed in range(5):
        masks = distinct(p, 6, kind, 10.0, np.random.default_rng(seed), np.ones(K, bool))
        assert masks.shape == (6, K)
        assert len(np.unique(masks, axis=0)) == 6
        np.testing.assert_allclose(masks[0], p > 0.5 if kind == "bits" else p, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "free", "number"),
    [
        ("bits", 3, 6),
        ("bits", 2, 4),
        ("bits", 1, 2),
        ("bits", 0, 1),
        ("beta", 1, 6),
        ("beta", 0, 1),
    ],
)
def test_masks_of_a_fork_differ_in_what_the_stage_allows(kind, free, number):
    allowed = np.arange(K) < free
    p = np.array([0.5, 0.9, 0.2, 0.5, 0.5, 0.5])
    masks = distinct(p, 6, kind, 10.0, np.random.default_rng(0), allowed)
    assert masks.shape == (number, K)
    assert masks.dtype == np.float32
    assert not masks[:, ~allowed].any()
    assert len(np.unique(masks, axis=0)) == number


def test_a_policy_that_is_sure_proposes_fewer_masks():
    p = np.array([1e-12, 1 - 1e-12, 0.5])
    masks = distinct(p, 4, "bits", 1.0, np.random.default_rng(0), np.ones(3, bool))
    assert sorted(masks.tolist()) == [[0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("soft", [False, True])
def test_a_fork_tries_each_mask_that_the_stage_allows_once(soft):
    env = CreditEnv(soft=soft, branches=(6, 0, 1), forbidden=[0, 2, 3, 5], length=20)
    agent, seen = build(env, "branch"), []
    agent.learn(env, 20, seed=0, on_step=lambda p, log_prob: seen.append((p, log_prob)))
    assert len(env.forks) == 20
    for _, masks in env.forks:
        assert len(masks) == (6 if soft else 4)
        assert len(np.unique(masks, axis=0)) == len(masks)
        assert not masks[:, [0, 2, 3, 5]].any()
    assert len(seen) == len(env.actions)
    assert all(math.isnan(log_prob) for _, log_prob in seen)  # picked for its drop, not drawn


def test_forks_of_a_student_in_stages_try_what_each_stage_allows(tiny_setup):
    setup = tiny_setup(
        search="branch",
        knowledge={"pool": ["label", "response", "hidden/skip"]},
        stages=[
            {"pool": ["label", "response"], "share": 0.5},
            {"pool": ["hidden/skip"], "share": 0.5},
        ],
        student={"layers": 2, "init": "random"},
        optim={"max_updates": 8},
        env={"reward": "measured"},
        branches={"count": 4, "updates": 2},
    )
    env = DistillationEnv(setup=setup)
    meta = {"soft": False, "task": "rte", "agent": "all_action", "seed": 0}
    recorder = Recorder(env, "final", ScheduleWriter(setup.pool.names, env.feature_names, meta))
    tried, branch = [], env.branch
    env.branch = lambda masks: branch(tried.append(masks) or masks)
    assert AllAction(recorder, pool=setup.pool.names, seed=0).learn(8).num_timesteps == 8
    assert [sorted(masks.tolist()) for masks in tried] == 2 * [
        [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    ] + 2 * [[[0, 0, 0], [0, 0, 1]]]


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_fork_weighs_drops_against_costs(scale):
    """Types 1 and 3 earn 0.6 and 0.4 per fork of two decisions, and cost as much as 0.8."""
    chosen = {}
    for cost in (0.0, 0.4):
        env = CreditEnv(noise=0.1, cost=cost, scale=scale, branches=(6, 0, 2), length=200)
        model = AllAction(env, cost_per_type=cost, seed=0)
        model.learn(200)
        chosen[cost] = p_of(model, env) > 0.5
    assert np.array_equal(chosen[0.0], FIRST > 0)
    assert np.array_equal(chosen[0.4], FIRST > 0.8)


@pytest.mark.parametrize(("soft", "forks", "least"), [(False, 60, 0.9), (True, 150, 0.75)])
def test_finds_the_right_mask_from_branches_alone(soft, forks, least):
    right = []
    for seed in range(4):
        env = CreditEnv(soft=soft, noise=0.5, known_from=10**9, branches=(4, 0, 1), length=forks)
        right.append(np.mean((p_of(learned(env, forks, seed=seed), env) > 0.5) == (FIRST > 0)))
        assert len(env.forks) == forks
    assert np.mean(right) >= least


def test_a_fork_climbs_the_mean_of_scores_times_advantages(monkeypatch):
    env = CreditEnv(branches=(5, 0, 2))
    model = AllAction(env, AllActionConfig(entropy=0.0), seed=0)
    climbed = []
    monkeypatch.setattr(
        model, "_climb", lambda logits, gradient, loss: climbed.append((logits, gradient, loss))
    )
    branch = env.branch
    results = []

    def noting(masks):
        results.append((masks, branch(masks)))
        return results[-1][1]

    env.branch = noting
    model.learn(2)
    (logits, gradient, value_loss), (masks, branched) = climbed[0], results[0]
    p = torch.sigmoid(logits[0].detach()).numpy()
    expected = np.mean(
        [(a - p) * w for a, w in zip(masks, branched.advantages, strict=True)], axis=0
    )
    np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
    assert value_loss is None


def test_a_fork_leaves_types_alone_that_cannot_be_selected():
    env = CreditEnv(branches=(5, 0, 2), forbidden=[2, 3])
    model = learned(env, 20, net_arch=[])
    assert len(env.forks) == 10
    before = AllAction(CreditEnv(), AllActionConfig(net_arch=[], start=0.85)).policy.actor[-1].bias
    assert (model.policy.actor[-1].bias == before).tolist() == [k in (2, 3) for k in range(K)]


def test_a_sigmoid_does_not_fork():
    env = CreditEnv(soft=True, branches=(4, 5, 1))
    learned(env, 20, soft="sigmoid")
    assert env.forks == []
    assert len(env.actions) == 20


def test_decisions_of_a_branch_count_and_are_reported():
    env = CreditEnv(branches=(4, 7, 3), length=20)
    agent = build(env)
    seen, counted = [], []

    def report(probabilities: np.ndarray, log_prob: float) -> None:
        seen.append((probabilities, log_prob))

    assert agent.learn(env, 40, seed=0, on_step=report, progress=counted.append) == 40
    assert [decision for decision, _ in env.forks] == [7, 17, 7, 17]
    assert len(env.actions) == 40
    assert counted == [*range(1, 8), *range(10, 18), *range(20, 28), *range(30, 38), 40]
    assert len(seen) == 40
    for p, log_prob in seen[7:10]:
        assert np.array_equal(p, seen[7][0])
        assert math.isnan(log_prob)  # picked for its drop, not drawn
    assert env.seeds == [0, None]


def test_what_was_collected_before_a_fork_is_learned_from_first():
    env = CreditEnv(branches=(4, 3, 1), length=30)
    model = AllAction(env, AllActionConfig(n_steps=10))
    branch, pending = env.branch, []

    def noting(masks):
        pending.append((len(model.rollout.rewards), model._n_updates))
        return branch(masks)

    env.branch = noting
    model.learn(30)
    assert pending == [(0, 1 + 2 * fork) for fork in range(7)]
    assert model._n_updates == 15  # each fork, what led to it, and the last decisions


def test_a_search_of_branches_alone_is_logged(tmp_path):
    env = CreditEnv(branches=(4, 0, 2))
    build(env, "branch").learn(env, 20, seed=0, logger_folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/policy_gradient_loss")]
    assert steps[:3] == [2, 4, 6]
    assert steps[-1] == 20


class Episodes(BaseCallback):
    """Rewards that were paid, and what the log's figures are made of."""

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.found = [(one["r"], one["l"]) for one in self.model.ep_info_buffer]


@pytest.mark.parametrize(
    ("branches", "length"),
    [((4, 0, 2), 10), ((4, 7, 3), 20), ((4, 7, 3), 16), ((4, 99, 3), 20)],
    ids=["forks alone", "ends with a fork", "ends with a step", "no fork"],
)
@pytest.mark.parametrize("monitored", [True, False])
def test_episodes_are_counted_with_their_forked_decisions(branches, length, monitored, monkeypatch):
    env = CreditEnv(branches=branches, length=length, cost=0.25)
    paid: list[float] = []
    step, branch = env.step, env.branch

    def noting_step(action):
        result = step(action)
        paid.append(result[1])
        return result

    def noting_branch(masks):
        branched = branch(masks)
        paid.extend(one.reward for one in branched.steps)
        return branched

    monkeypatch.setattr(env, "step", noting_step)
    monkeypatch.setattr(env, "branch", noting_branch)
    model = AllAction(env if monitored else DummyVecEnv([lambda: env]), pool=POOL)
    callback = Episodes()
    model.learn(2 * length, callback)
    assert len(paid) == 2 * length
    totals = [sum(paid[:length]), sum(paid[length:])]
    assert [length for _, length in callback.found] == [length, length]
    np.testing.assert_allclose([total for total, _ in callback.found], totals, atol=1e-5)


def test_an_episode_that_was_left_does_not_count_in_the_next():
    env = CreditEnv(branches=(4, 0, 1), length=20)
    model, callback = AllAction(env), Episodes()
    model.learn(5)
    model.learn(20, callback)
    assert [length for _, length in callback.found] == [20]


def test_an_episode_of_forks_alone_is_logged(tmp_path):
    env = CreditEnv(branches=(4, 0, 2), length=20)
    build(env, "branch").learn(env, 40, seed=0, logger_folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("rollout/ep_len_mean")[0].step == 20
    assert events.Scalars("rollout/ep_len_mean")[-1].value == 20
    assert math.isfinite(events.Scalars("rollout/ep_rew_mean")[-1].value)


def test_an_episode_cut_off_by_a_time_limit_is_worth_what_would_follow(monkeypatch):
    env = CreditEnv(length=10**6, noise=0.0)
    model = AllAction(
        gym.wrappers.TimeLimit(env, 3), AllActionConfig(n_steps=3, gamma=0.7), pool=POOL
    )
    notes = []

    def note():
        ends = {"training": torch.as_tensor(ended[0])[None]}
        with torch.no_grad():
            notes.append(
                (np.concatenate(model.rollout.rewards), float(model.policy(ends)[1].sum()))
            )

    ended = []
    reset = env.reset

    def noting(**arguments):
        if env.actions:
            ended.append(env.last["training"])
        return reset(**arguments)

    monkeypatch.setattr(env, "reset", noting)
    monkeypatch.setattr(model, "train", note)
    model.learn(3)
    rewards, value = notes[0]
    np.testing.assert_allclose(rewards[:2], env.true_rewards[:2], atol=1e-6)
    assert abs(value) > 1e-3
    assert rewards[2] - env.true_rewards[2] == pytest.approx(0.7 * value, abs=1e-5)


# --------------------------------------------------------------------------- Stable-Baselines3


class Counting(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def _on_training_start(self) -> None:
        self.calls.append("start")

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout")

    def _on_step(self) -> bool:
        assert self.locals["infos"][0]["predicted"] is not None
        assert self.training_env.num_envs == 1
        self.calls.append("step")
        return self.num_timesteps < 10

    def _on_training_end(self) -> None:
        self.calls.append("end")


def test_callbacks_are_called_and_can_stop():
    env, callback = CreditEnv(), Counting()
    model = AllAction(env, AllActionConfig(n_steps=4))
    assert model.learn(100, callback) is model
    assert model.num_timesteps == 10
    assert callback.calls == [
        "start",
        *["step"] * 4,
        "rollout",
        *["step"] * 4,
        "rollout",
        "step",
        "step",
        "end",
    ]


def test_the_librarys_own_callbacks_work(tmp_path):
    env = CreditEnv(length=10)
    checkpoint = CheckpointCallback(10, str(tmp_path / "points"), "point")
    evaluation = EvalCallback(
        Monitor(CreditEnv(length=5)),
        best_model_save_path=str(tmp_path),
        eval_freq=10,
        n_eval_episodes=2,
        verbose=0,
    )
    AllAction(env).learn(20, [checkpoint, evaluation])
    points = sorted(path.name for path in (tmp_path / "points").iterdir())
    assert points == ["point_10_steps.zip", "point_20_steps.zip"]
    assert AllAction.load(tmp_path / "points" / points[1]).num_timesteps == 20
    assert AllAction.load(tmp_path / "best_model").num_timesteps in (10, 20)
    assert math.isfinite(evaluation.best_mean_reward)


def test_predicts_for_one_observation_and_for_many():
    env = CreditEnv()
    model = learned(env)
    action, state = model.predict(env.last, deterministic=True)
    assert state is None
    assert action.shape == (K,)
    assert env.action_space.contains(action.astype(np.int8))
    assert np.array_equal(action > 0.5, p_of(model, env) > 0.5)
    many = {"training": np.repeat(env.last["training"][None], 400, 0)}
    drawn, _ = model.predict(many)
    assert drawn.shape == (400, K)
    np.testing.assert_allclose(drawn.mean(0), p_of(model, env), atol=0.08)


def test_a_plain_vector_as_observation_works():
    class Flat(CreditEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = self.observation_space["training"]

        def _observe(self):
            return super()._observe()["training"]

    env = Flat()
    model = learned(env)
    action, _ = model.predict(env.last["training"], deterministic=True)
    assert np.array_equal(action > 0.5, FIRST > 0)


def test_figures_carry_the_librarys_names(tmp_path):
    env = CreditEnv(length=20)
    build(env).learn(env, 60, seed=0, logger_folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    train = (
        "policy_gradient_loss",
        "value_loss",
        "entropy_loss",
        "explained_variance",
        "learning_rate",
    )
    assert {f"train/{name}" for name in train} <= tags
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"} <= tags
    assert events.Scalars("train/value_loss")[-1].step == 60
    assert events.Scalars("rollout/ep_len_mean")[-1].value == 20
    mean = np.mean([sum(env.true_rewards[i : i + 20]) for i in (0, 20, 40)])
    assert abs(events.Scalars("rollout/ep_rew_mean")[-1].value - mean) < 15


def test_a_logger_can_be_set(tmp_path):
    model = AllAction(CreditEnv())
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(4)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [line["time/total_timesteps"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["train/n_updates"] == 3


def test_nothing_is_written_or_printed_without_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    env = CreditEnv()
    build(env).learn(env, 20, seed=0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("soft", [False, True])
def test_a_saved_algorithm_learns_on_as_if_never_saved(soft, tmp_path):
    def halves(path=None):
        env = CreditEnv(soft=soft, length=10**6)
        venv = DummyVecEnv([lambda: env])
        model = learned(venv, 20, seed=3)
        if path is not None:
            model.save(path)
            last = model._last_obs
            model = AllAction.load(path, venv)
            model._last_obs = last
        model.learn(20, reset_num_timesteps=False)
        return model, np.stack(env.actions), model.predict(env.last)[0]

    whole, actions, drawn = halves()
    again, actions_again, drawn_again = halves(tmp_path / "saved")
    assert whole.num_timesteps == again.num_timesteps == 40
    assert whole._n_updates == again._n_updates == 40
    assert np.array_equal(actions, actions_again)
    assert np.array_equal(drawn, drawn_again)
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(tensor, again.policy.state_dict()[name])
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"policy.json", "policy.safetensors", "training.json", "training.safetensors"}


@pytest.mark.parametrize(
    "name", ["policy.json", "policy.safetensors", "training.json", "training.safetensors"]
)
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_damaged_files_are_refused(name, harm, tmp_path):
    learned(CreditEnv(), 4).save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if harm == "cut":
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=str(tmp_path)):
        AllAction.load(tmp_path)


def test_a_policy_without_named_parts_is_not_saved(tmp_path):
    env = CreditEnv()
    model = AllAction(gym.wrappers.FlattenObservation(env), pool=POOL)
    with pytest.raises(UsageError, match="Dict of vectors"):
        model.save(tmp_path)


def test_the_cost_is_kept_in_a_save(tmp_path):
    AllAction(CreditEnv(), cost_per_type=0.25).save(tmp_path)
    assert AllAction.load(tmp_path).cost_per_type == 0.25


def test_leaving_parts_out_of_a_save_is_refused(tmp_path):
    with pytest.raises(UsageError, match="exclude"):
        learned(CreditEnv(), 2).save(tmp_path, exclude=["policy"])


# --------------------------------------------------------------------------- frozen policies


@pytest.mark.parametrize("final", ["sample", "mode"])
@pytest.mark.parametrize("kind", ["bits", "beta", "sigmoid"])
def test_a_frozen_policy_comes_back_the_same(kind, final, tmp_path):
    env = CreditEnv(soft=kind != "bits")
    settings = {} if kind == "bits" else {"soft": kind}
    if kind == "sigmoid":
        final = "sample"
    agent = build(env, search="episodes", final=final, **settings)
    agent.learn(env, 4, seed=0)
    agent.frozen().save(tmp_path)
    agent.save_extra(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.json", "policy.safetensors"}
    loaded = load_policy(tmp_path, pool=POOL, observation=SHAPES)
    assert (loaded.name, loaded.soft, loaded.learns) == ("all_action", kind != "bits", True)

    def choices(policy):
        policy.reset(np.random.default_rng(1))
        chosen = [policy.act(env.last) for _ in range(8)]
        return [(c.action.tolist(), c.probabilities.tolist(), c.log_prob) for c in chosen]

    assert choices(loaded) == choices(agent.frozen())
    varied = len({tuple(action) for action, _, _ in choices(loaded)}) > 1
    assert varied is (final == "sample" and kind != "sigmoid")


@pytest.mark.parametrize("soft", [False, True])
def test_frozen_draws_follow_the_reported_distribution(soft):
    env = CreditEnv(soft=soft)
    agent = build(env)
    agent.learn(env, 10, seed=0)
    policy = agent.frozen()
    with pytest.raises(RuntimeError, match="reset"):
        policy.act(env.last)
    policy.reset(np.random.default_rng(2))
    choices = [policy.act(env.last) for _ in range(3000)]
    actions = np.stack([choice.action for choice in choices])
    np.testing.assert_allclose(actions.mean(0), choices[0].probabilities, atol=0.03)
    assert actions.dtype == np.float32
    assert set(np.unique(actions)) == {0.0, 1.0} or soft


def test_a_header_that_contradicts_itself_is_refused(tmp_path):
    learned(CreditEnv(), 2).frozen().save(tmp_path)
    header = json.loads((tmp_path / "policy.json").read_text())
    for change in ({"soft": True}, {"distribution": "beta"}, {"net_arch": [3]}, {"final": "x"}):
        (tmp_path / "policy.json").write_text(json.dumps(header | change))
        with pytest.raises(UsageError, match="does not describe the weights"):
            load_policy(tmp_path, pool=POOL, observation=SHAPES)


def test_wide_observations_do_not_make_larger_steps():
    space = spaces.Dict(
        {"training": spaces.Box(-1, 1, (FEATURES,)), "student_cls": spaces.Box(-9, 9, (768,))}
    )
    moved = []
    for observed in (space["training"], space):
        network = FactorisedNetwork(observed, spaces.MultiBinary(K), "bits", 1.0, [64], seed=0)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.04)
        rng = np.random.default_rng(0)
        width = spaces.utils.flatdim(observed)
        x = torch.as_tensor(rng.uniform(-1, 1, (1, width)), dtype=torch.float32)
        parts = (
            x
            if width == FEATURES
            else {"training": x[:, :FEATURES], "student_cls": x[:, FEATURES:]}
        )
        before = network(parts)[0].detach()
        network(parts)[0].sum().backward()
        optimizer.step()
        moved.append(float((network(parts)[0].detach() - before).abs().mean()))
    assert moved[1] < 3 * moved[0]


def test_draws_of_bits_are_bits():
    p = np.array([[0.0, 1.0, 0.5]])
    drawn = draw(np.repeat(p, 500, 0), "bits", 1.0, np.random.default_rng(0))
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 1] == 1).all()
    assert 0.4 < drawn[:, 2].mean() < 0.6


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 0.0),
        ("n_steps", 0),
        ("gamma", 1.1),
        ("gae_lambda", -0.1),
        ("entropy", 1.0),
        ("entropy", -0.1),
        ("max_grad_norm", float("nan")),
        ("concentration", 0.0),
        ("start", 1.0),
        ("anchor", -0.1),
        ("block", -1),
        ("memory", 3),
        ("doubt", -1.0),
        ("net_arch", [0]),
        ("soft", "sigmoid"),
        ("concentration", 5.0),
        ("gae_lambda", 0.9),
    ],
)
def test_values_that_cannot_work_or_are_not_used_are_refused(option, value):
    config = RunConfig(agent="all_action")
    setattr(config.all_action, option, value)
    with pytest.raises(UsageError, match=rf"--all_action\.{option}"):
        check_settings(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"all_action.block": 0, "all_action.doubt": 2.0}, "--all_action.doubt is not used with --all_action.block 0"),
        ({"search": "branch", "all_action.block": 5}, "--all_action.block is not used with --search branch"),
        ({"env.actions": "soft", "all_action.soft": "sigmoid", "all_action.gamma": 0.9}, "--all_action.gamma is not used"),
        ({"env.actions": "soft", "all_action.soft": "sigmoid", "search": "branch"}, "learns from credit alone"),
        ({"env.actions": "soft", "all_action.soft": "sigmoid", "env.reward": "measured"}, "learns from credit alone"),
        (
            {"env.actions": "soft", "all_action.soft": "sigmoid", "search": "episodes", "episodes.final": "mode"},
            "--episodes.final mode has no effect",
        ),
        ({"search": "branch", "all_action.gamma": 0.9}, "--all_action.gamma is not used with --search branch"),
        ({"episodes.count": 3}, "--episodes.count is not used with --search online"),
        ({"env.reward": "measured", "credit.rows": 4}, "--credit.rows is not used with measured rewards"),
        ({"env.reward": "measured", "branches.count": 3}, "--branches.count is not used with --search auto"),
        ({"env.reward": "measured", "env.window": 10}, "--env.window is not used"),
        ({"agent": "a2c", "credit.rows": 4}, "--credit.rows is not used with measured rewards"),
        ({"agent": "a2c", "env.reward": "amortized", "branches.count": 3}, "--branches.count is not used by --agent a2c (it is read by all_action)"),
        ({"agent": "a2c", "search": "branch"}, "--search branch does not work with --agent a2c, which cannot compare"),
        ({"agent": "static", "search": "online"}, "--search online does not work with --agent static, which does not learn"),
        ({"agent": "static", "env.reward": "amortized"}, "--env.reward amortized does not work with --agent static"),
        ({"agent": "static", "credit.rows": 3}, "--credit.rows is not used by --agent static"),
        ({"agent": "greedy", "env.reward": "measured"}, "--env.reward measured does not work with --agent greedy"),
        ({"env.exploration": 0.1}, "--env.exploration is not used with --agent all_action where it learns from credit"),
        ({"env.final_metric": 1.0}, "--env.final_metric is not used with --agent all_action where it learns from credit"),
        ({"env.final_metric": 1.0, "method": "x"}, "It may come from --method x."),
        ({"search": "branch", "env.reward_scale": "none"}, "--env.reward_scale is not used with --search branch"),
        ({"search": "branch", "env.cost_per_type": 0.1}, "--env.cost_per_type is not used with --search branch"),
        ({"search": "branch", "env.exploration": 0.1}, "--env.exploration is not used with --search branch"),
        ({"search": "branch", "env.final_metric": 0.1, "env.reward": "measured"}, "--env.final_metric is not used with --search branch"),
        ({"search": "branch", "env.cost_per_type": 0.1, "env.reward": "amortized"}, "--env.cost_per_type is not used with --search branch"),
        ({"search": "branch", "branches.every": 9}, "--branches.every is not used with --search branch"),
        ({"search": "branch", "env.window": 9}, "--env.window is not used with measured rewards"),
        ({"search": "branch", "env.window": 9, "env.reward": "measured"}, "--env.window is not used with measured rewards"),
        ({"env.actions": "soft", "all_action.soft": "sigmoid", "branches.count": 3}, "--branches: not used with --all_action.soft sigmoid"),
        ({"agent": "greedy", "env.cost_per_type": 0.1}, "--env.cost_per_type is not used with --agent greedy"),
        ({"agent": "greedy", "env.exploration": 0.1}, "--env.exploration is not used with --agent greedy"),
        ({"agent": "greedy", "env.final_metric": 0.1}, "--env.final_metric is not used with --agent greedy"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(UsageError) as caught:
        check_settings(changed(changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"credit.rows": 4, "branches.count": 3, "env.window": 10},
        {"search": "episodes", "episodes.count": 3, "episodes.final": "mode"},
        {"search": "branch", "env.reward": "measured", "branches.count": 3},
        {"search": "online", "env.reward": "amortized"},
        {"env.actions": "soft", "all_action.concentration": 4.0},
        {"all_action.n_steps": 4, "all_action.gae_lambda": 0.9},
        {"agent": "a2c", "search": "online", "env.reward": "amortized", "credit.rows": 4, "env.window": 10},
        {"agent": "static", "search": "episodes", "env.reward": "measured"},
        {"agent": "greedy", "credit.rows": 4, "env.reward_scale": "quantile", "env.objective": "margin"},
        {"env.cost_per_type": 0.1, "env.reward_scale": "quantile", "branches.every": 9},
        {"env.reward": "measured", "env.exploration": 0.1, "env.final_metric": 1.0, "env.cost_per_type": 0.1},
        {"agent": "a2c", "env.reward": "amortized", "env.exploration": 0.1, "env.final_metric": 1.0},
    ],
)  # fmt: skip
def test_settings_that_go_together_are_taken(changes):
    check_settings(changed(changes))


def changed(changes: dict) -> RunConfig:
    config = RunConfig(agent=changes.get("agent", "all_action"))
    for option, value in changes.items():
        group, _, name = option.rpartition(".")
        setattr(getattr(config, group) if group else config, name, value)
    return config
