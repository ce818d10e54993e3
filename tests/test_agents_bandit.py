from __future__ import annotations

import math

import numpy as np
import pytest
from arms_env import CONTEXT, FEATURES, POOL, ArmsEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.bandit import BanditAgent
from agents.bandit_rules import Exp3S, Gain, LinUCB, features
from agents.make import check_settings, make_agent
from agents.policy import Choice, Learner
from ksel.config import BanditConfig, RunConfig
from ksel.errors import UsageError

ALGORITHMS = pytest.mark.parametrize("algorithm", ["exp3s", "linucb"])


def build(env: ArmsEnv, final: str = "sample", scale: str = "running", **settings) -> BanditAgent:
    config = RunConfig(agent="bandit")
    config.episodes.final, config.env.reward_scale = final, scale
    for key, value in settings.items():
        setattr(config.bandit, key, value)
    agent = make_agent(config, env.pool_names, env.observation_space, env.action_space)
    assert isinstance(agent, BanditAgent)
    return agent


def one_best(step: int, training: np.ndarray) -> np.ndarray:
    return np.array([0.0, 0.6, 0.2, -0.3])


def switching(step: int, training: np.ndarray) -> np.ndarray:
    return np.array([0.0, 0.6, 0.2, -0.3] if step < 250 else [0.0, -0.3, 0.2, 0.6])


def by_context(step: int, training: np.ndarray) -> np.ndarray:
    """Nobody is best without looking; whoever looks has 1."""
    return np.array([0.0, 1.0, 0.0, -1.0]) * np.sign(training[CONTEXT])


def payoff(env: ArmsEnv, policy, means, steps: int = 200) -> float:
    """Mean reward, without its noise, of a frozen policy."""
    policy.reset(np.random.default_rng(5))
    env.reset(seed=77)
    got = []
    for _ in range(steps):
        observation = env._observe()
        got.append(means(10**6, observation["training"]) @ policy.act(observation).action)
    return float(np.mean(got))


# --------------------------------------------------------------------------- learning


@pytest.mark.parametrize("settings", [{}, {"algorithm": "linucb"}])
def test_the_best_arm_is_found(settings):
    for seed in range(3):
        env = ArmsEnv(one_best)
        agent = build(env, **settings)
        agent.learn(env, 400, seed=seed)
        late = np.stack(env.actions[-200:]).mean(0)
        assert late.argmax() == 1
        assert late[1] > 0.5
        # a blind draw of a type earns 0.125 per decision, the best one 0.6
        assert payoff(env, agent.frozen(), one_best) > 0.3


def test_exp3s_follows_a_switch_only_if_it_forgets():
    shares: dict[float, list[float]] = {0.0: [], 0.003: []}
    for forgetting, found in shares.items():
        for seed in range(5):
            env = ArmsEnv(switching)
            agent = build(env, forgetting=forgetting)
            agent.learn(env, 250, seed=seed)
            assert agent.frozen().values[1] > 0.5
            env = ArmsEnv(switching)
            agent = build(env, forgetting=forgetting)
            agent.learn(env, 500, seed=seed)
            found.append(agent.frozen().values[3])
    assert min(shares[0.003]) > 0.6
    assert min(shares[0.0]) < 0.1  # some searches never leave the type that was best before
    assert np.mean(shares[0.0]) < 0.6


def test_linucb_finds_what_depends_on_the_state_and_exp3s_cannot():
    for seed in range(3):
        env = ArmsEnv(by_context)
        agent = build(env, algorithm="linucb")
        agent.learn(env, 400, seed=seed)
        assert payoff(env, agent.frozen(), by_context) > 0.6
        env = ArmsEnv(by_context)
        agent = build(env)
        agent.learn(env, 400, seed=seed)
        assert abs(payoff(env, agent.frozen(), by_context)) < 0.2


@ALGORITHMS
def test_size_and_offset_of_rewards_do_not_matter(algorithm):
    def actions(**reward) -> list[list[float]]:
        env = ArmsEnv(one_best, **reward)
        build(env, algorithm=algorithm).learn(env, 120, seed=1)
        return [action.tolist() for action in env.actions]

    assert actions() == actions(offset=-3.0, size=0.01)


# --------------------------------------------------------------------------- the rules


def test_exp3s_is_hand_worked():
    settings = BanditConfig(learning_rate=0.5, exploration=0.2, forgetting=0.1)
    exp3s = Exp3S(3, settings)
    weights = [1.0, 1.0, 1.0]
    for arm, gain in ((1, 0.8), (0, -1.0), (1, 1.0)):
        total = sum(weights)
        p = [0.8 * w / total + 0.2 / 3 for w in weights]
        np.testing.assert_allclose(exp3s.values(), p, rtol=1e-12)
        choice = Choice(np.eye(3, dtype=np.float32)[arm], np.array(p), math.log(p[arm]))
        exp3s.update(choice, np.zeros(1), gain)
        raised = [
            w * math.exp(0.5 * gain / p[arm]) if i == arm else w for i, w in enumerate(weights)
        ]
        weights = [
            0.9 * raised[i] + 0.1 / 2 * sum(raised[j] for j in range(3) if j != i) for i in range(3)
        ]
    total = sum(weights)
    np.testing.assert_allclose(exp3s.values(), [0.8 * w / total + 0.2 / 3 for w in weights])


def test_exp3s_stays_finite_over_a_long_search():
    settings = BanditConfig(learning_rate=2.0, exploration=0.0, forgetting=0.0)
    exp3s, rng = Exp3S(2, settings), np.random.default_rng(0)
    for _ in range(2_000):
        choice = exp3s.choose(np.zeros(1), rng)
        exp3s.update(choice, np.zeros(1), 1.0 if choice.action[0] else -1.0)
    assert np.isfinite(exp3s.log_weights).all()  # else a type could never come back
    assert exp3s.values()[0] > 0.999


def test_exp3s_with_one_type_takes_it():
    exp3s = Exp3S(1, BanditConfig())
    choice = exp3s.choose(np.zeros(1), np.random.default_rng(0))
    exp3s.update(choice, np.zeros(1), -1.0)
    assert (choice.action.tolist(), choice.log_prob) == ([1.0], 0.0)
    assert exp3s.values().tolist() == [1.0]


def test_linucb_is_ridge_regression_with_a_bound():
    rng = np.random.default_rng(0)
    settings = BanditConfig(algorithm="linucb", width=0.7, ridge=2.0)
    linucb = LinUCB(3, 4, settings)
    seen: list[tuple[int, np.ndarray, float]] = []
    for _ in range(60):
        x = rng.standard_normal(4)
        theta, bounds = [], []
        for arm in range(3):
            rows = [(y, r) for chosen, y, r in seen if chosen == arm]
            a, b = 2.0 * np.eye(4), np.zeros(4)
            for y, r in rows:
                a, b = a + np.outer(y, y), b + r * y
            theta.append(np.linalg.solve(a, b))
            bounds.append(theta[-1] @ x + 0.7 * math.sqrt(x @ np.linalg.solve(a, x)))
        np.testing.assert_allclose(linucb.values(), theta, atol=1e-10)
        choice = linucb.choose(x, rng)
        arm = int(choice.action.argmax())
        assert bounds[arm] == pytest.approx(max(bounds))
        assert (choice.action.sum(), choice.log_prob) == (1.0, 0.0)
        gain = float(rng.standard_normal())
        linucb.update(choice, x, gain)
        seen.append((arm, x, gain))
    assert {arm for arm, _, _ in seen} == {0, 1, 2}


def test_linucb_sees_every_number_of_the_observation():
    env = ArmsEnv(one_best)
    observation, _ = env.reset(seed=0)
    x = features(observation, env.observation_space)
    assert x.tolist() == [*observation["training"].astype(float).tolist(), 1.0]


def test_gains_are_hand_worked():
    gain = Gain("running")
    assert gain(7.0) == 0.0
    for reward in (3.0, 5.0, 9.0):
        gain(reward)
    # of 3, 5, 7, 9, 11 the 20 % and 80 % quantiles are 4.6 and 9.4
    assert gain(11.0) == 1.0
    # of those and 8 they are 5 and 9
    assert gain(8.0) == pytest.approx(0.5)


def test_rewards_that_the_environment_has_scaled_are_only_cut():
    gain = Gain("quantile")
    assert [gain(reward) for reward in (0.4, -3.0, 1.5, -0.2)] == [0.4, -1.0, 1.0, -0.2]


# --------------------------------------------------------------------------- the search


@ALGORITHMS
@pytest.mark.parametrize("decisions", [2, 25, 60])
def test_takes_exactly_the_decisions_asked_for_one_type_each(algorithm, decisions):
    env = ArmsEnv(one_best)
    agent = build(env, algorithm=algorithm)
    counted: list[int] = []
    told: list[tuple[np.ndarray, float]] = []
    taken = agent.learn(
        env,
        decisions,
        seed=9,
        progress=counted.append,
        on_step=lambda probabilities, log_prob: told.append((probabilities, log_prob)),
    )
    assert taken == len(env.actions) == decisions
    assert counted == list(range(1, decisions + 1))
    assert all(action.sum() == 1 and action.max() == 1 for action in env.actions)
    assert env.seeds == [9] + [None] * ((decisions - 1) // 25)
    for action, (probabilities, log_prob) in zip(env.actions, told, strict=True):
        assert probabilities.sum() == pytest.approx(1.0)
        assert log_prob == pytest.approx(math.log(probabilities @ action), abs=1e-6)
        assert (log_prob == 0.0) == (algorithm == "linucb")


@ALGORITHMS
def test_same_seed_gives_the_same_search_whatever_the_global_generators(algorithm):
    def learned(seed: int) -> tuple[list[list[float]], np.ndarray]:
        np.random.seed(len(runs))  # noqa: NPY002
        numbers = np.random.get_state()  # noqa: NPY002
        runs.append(seed)
        env = ArmsEnv(one_best)
        agent = build(env, algorithm=algorithm)
        agent.learn(env, 60, seed=seed)
        after = np.random.get_state()  # noqa: NPY002
        assert np.array_equal(after[1], numbers[1])
        assert after[2] == numbers[2]
        return [action.tolist() for action in env.actions], agent.frozen().values

    runs: list[int] = []
    first, values = learned(3)
    again, same = learned(3)
    assert again == first
    assert np.array_equal(values, same)
    assert learned(4)[0] != first


def test_draws_differ_between_seeds_where_rewards_do_not():
    def actions(seed: int) -> list[list[float]]:
        env = ArmsEnv(lambda step, training: np.zeros(4), noise=0.0)
        build(env).learn(env, 30, seed=seed)
        return [action.tolist() for action in env.actions]

    assert actions(1) == actions(1) != actions(2)


def test_one_decision_is_refused():
    env = ArmsEnv(one_best)
    with pytest.raises(UsageError, match=r"--agent bandit.*--episodes\.count"):
        build(env).learn(env, 1, seed=0)


@ALGORITHMS
def test_stop_and_interrupt_leave_a_policy(algorithm):
    env = ArmsEnv(one_best)
    agent = build(env, algorithm=algorithm)
    assert not agent.learned
    with pytest.raises(RuntimeError, match="learn"):
        agent.frozen()
    assert agent.learn(env, 50, seed=0, stop=lambda: len(env.actions) >= 9) == 9
    assert len(env.actions) == 9
    assert agent.learned

    def interrupt(done: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agent.learn(ArmsEnv(one_best), 50, seed=0, progress=interrupt)
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    assert policy.act({"training": np.zeros(FEATURES, np.float32)}).action.sum() == 1


@ALGORITHMS
def test_tensorboard_shows_each_type(algorithm, tmp_path):
    env = ArmsEnv(one_best)
    agent = build(env, algorithm=algorithm)
    agent.learn(env, 60, seed=0, logger_folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    word = {"exp3s": "probability", "linucb": "estimate"}[algorithm]
    tags = {f"train/{word}/{name}" for name in POOL}
    assert set(events.Tags()["scalars"]) == tags | {"rollout/ep_rew_mean"}
    episodes = events.Scalars("rollout/ep_rew_mean")
    assert [event.step for event in episodes] == [25, 50]
    totals = [sum(env.rewards[:25]), sum(env.rewards[25:50])]
    assert [event.value for event in episodes] == pytest.approx([totals[0], np.mean(totals)])
    last = events.Scalars(f"train/{word}/{POOL[1]}")[-1]
    assert last.step == 60
    if algorithm == "exp3s":
        assert last.value == pytest.approx(agent.frozen().values[1])


def test_it_is_a_learner_with_nothing_extra_to_save(tmp_path):
    env = ArmsEnv(one_best)
    agent = build(env)
    agent.learn(env, 10, seed=0)
    assert isinstance(agent, Learner)
    agent.save_extra(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- frozen


def test_exp3s_holds_the_distribution_of_its_last_moment():
    env = ArmsEnv(one_best)
    agent = build(env)
    agent.learn(env, 200, seed=0)
    policy = agent.frozen()
    before = policy.values.copy()
    assert before.min() >= 0.1 / 4
    policy.reset(np.random.default_rng(0))
    choices = [policy.act({}) for _ in range(3000)]
    np.testing.assert_allclose(np.mean([c.action for c in choices], 0), before, atol=0.03)
    for choice in choices[:20]:
        np.testing.assert_allclose(choice.probabilities, before, rtol=1e-6)
        assert choice.log_prob == pytest.approx(math.log(before[choice.action.argmax()]))
    agent.learn(env, 50, seed=1)
    assert np.array_equal(policy.values, before)


def test_the_mode_of_exp3s_is_the_most_likely_type():
    env = ArmsEnv(one_best)
    agent = build(env, final="mode")
    agent.learn(env, 200, seed=0)
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    for _ in range(5):
        choice = policy.act({})
        assert choice.action.tolist() == [0, 1, 0, 0]
        assert (choice.probabilities.tolist(), choice.log_prob) == ([0, 1, 0, 0], 0.0)


def test_frozen_linucb_takes_the_largest_expected_gain_without_a_bonus():
    env = ArmsEnv(by_context)
    agent = build(env, algorithm="linucb", width=50.0)
    agent.learn(env, 120, seed=0)
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    env.reset(seed=2)
    greedy = 0
    for _ in range(40):
        observation = env._observe()
        x = np.append(observation["training"], 1.0).astype(float)
        choice = policy.act(observation)
        assert choice.action.argmax() == (agent.learner.values() @ x).argmax()
        greedy += choice.action.tolist() == agent.learner.choose(x, None).action.tolist()
    assert greedy < 40  # with so wide a bound the search itself would have chosen otherwise


def test_act_before_reset_is_an_error():
    env = ArmsEnv(one_best)
    agent = build(env)
    agent.learn(env, 10, seed=0)
    with pytest.raises(RuntimeError, match="reset"):
        agent.frozen().act({})


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("algorithm", "option", "value"),
    [
        ("exp3s", "learning_rate", 0.0),
        ("exp3s", "exploration", 1.5),
        ("exp3s", "forgetting", -0.1),
        ("linucb", "width", -1.0),
        ("linucb", "ridge", 0.0),
        ("exp3s", "width", 2.0),
        ("linucb", "forgetting", 0.5),
    ],
)
def test_values_that_cannot_work_or_have_no_effect_are_refused(algorithm, option, value):
    config = RunConfig(agent="bandit")
    config.bandit.algorithm = algorithm
    check_settings(config)
    setattr(config.bandit, option, value)
    with pytest.raises(UsageError, match=rf"--bandit\.{option}"):
        check_settings(config)


def test_what_a_blind_or_certain_bandit_does_not_use_is_refused():
    config = RunConfig(agent="bandit")
    config.env.observe = ["training", "student_cls"]
    with pytest.raises(UsageError, match=r"--env\.observe.*linucb"):
        check_settings(config)
    config.bandit.algorithm = "linucb"
    check_settings(config)
    config.episodes.final = "mode"
    with pytest.raises(UsageError, match=r"--episodes\.final"):
        check_settings(config)
    config = RunConfig(agent="bandit")
    config.episodes.final = "mode"
    check_settings(config)
    config.env.actions = "soft"
    with pytest.raises(UsageError, match=r"--env\.actions soft does not work with --agent bandit"):
        check_settings(config)
