from __future__ import annotations

import numpy as np
import pytest
import torch
from best_mask_env import BEST, POOL, BestMaskEnv
from scipy.stats import norm
from stable_baselines3 import A2C, PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.frozen import log_probability
from agents.make import check_settings, make_agent
from agents.stable_baselines import SB3Agent
from ksel.config import RunConfig
from ksel.errors import UsageError

SOFT_BEST = np.array([1.0, 0.0, 0.9, 0.8, 0.2], np.float32)
BOTH = pytest.mark.parametrize("name", ["a2c", "ppo"])


def build(name: str, env: BestMaskEnv, **settings) -> SB3Agent:
    config = RunConfig(agent=name)
    for key, value in settings.items():
        setattr(config.episodes if key == "final" else getattr(config, name), key, value)
    agent = make_agent(config, env.pool_names, env.observation_space, env.action_space)
    assert isinstance(agent, SB3Agent)
    return agent


def mean_probabilities(policy, env: BestMaskEnv) -> np.ndarray:
    policy.reset(np.random.default_rng(0))
    env.reset(seed=99)
    return np.mean([policy.act(env._observe()).probabilities for _ in range(50)], axis=0)


@BOTH
def test_finds_the_best_mask_with_default_settings(name):
    env = BestMaskEnv()
    agent = build(name, env)
    agent.learn(env, 1500, seed=0)
    found = mean_probabilities(agent.frozen(), env)
    assert np.abs(found - BEST).max() < 0.3
    assert np.array_equal(found > 0.5, BEST > 0.5)


@BOTH
def test_soft_weights_move_towards_the_best(name):
    env = BestMaskEnv(SOFT_BEST, soft=True)
    agent = build(name, env, start=0.5)
    agent.learn(env, 1500, seed=0)
    found = mean_probabilities(agent.frozen(), env)
    start = np.abs(0.5 - SOFT_BEST).mean()
    assert np.abs(found - SOFT_BEST).mean() < 0.7 * start
    assert np.array_equal(found > 0.5, SOFT_BEST > 0.5)


@BOTH
def test_soft_actions_start_where_asked(name):
    env = BestMaskEnv(SOFT_BEST, soft=True)
    build(name, env, learning_rate=1e-12, start=0.5).learn(env, 60, seed=0)
    actions = np.stack(env.actions)
    assert abs(actions.mean() - 0.5) < 0.1
    assert np.mean((actions == 0) | (actions == 1)) < 0.3


@BOTH
@pytest.mark.parametrize("start", [0.2, 0.85])
def test_hard_masks_start_where_asked(name, start):
    env = BestMaskEnv()
    build(name, env, learning_rate=1e-12, start=start).learn(env, 200, seed=0)
    assert abs(np.stack(env.actions).mean() - start) < 0.06


@BOTH
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_start_that_never_tries_is_refused(name, start):
    with pytest.raises(UsageError, match=rf"--{name}\.start"):
        build(name, BestMaskEnv(), start=start)


@BOTH
@pytest.mark.parametrize("decisions", [2, 7, 32, 33, 45, 64, 100])
def test_takes_exactly_the_decisions_asked_for_and_learns_from_each(name, decisions):
    env = BestMaskEnv()
    agent = build(name, env, n_steps=8)
    counted: list[int] = []
    lengths: list[int] = []
    build_model = agent._build_model

    def watched(*args):
        model = build_model(*args)
        train = model.train

        def count_then_train():
            assert model.rollout_buffer.full
            lengths.append(model.rollout_buffer.pos)
            train()

        model.train = count_then_train
        return model

    agent._build_model = watched
    assert agent.learn(env, decisions, seed=0, progress=counted.append) == decisions
    assert len(env.actions) == decisions
    assert counted == list(range(1, decisions + 1))
    assert sum(lengths) == decisions
    assert all(length == 8 for length in lengths[:-1])
    state = agent.frozen().network.state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


@BOTH
def test_one_decision_is_refused(name):
    env = BestMaskEnv()
    with pytest.raises(UsageError, match=r"--episodes\.count"):
        build(name, env).learn(env, 1, seed=0)


@BOTH
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_same_seed_gives_the_same_policy(name, soft, observation):
    def learned(seed: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        env = BestMaskEnv(SOFT_BEST if soft else BEST, soft=soft, cls=3)
        agent = build(name, env, observation=observation)
        agent.learn(env, 70, seed=seed)
        return agent.frozen().network.state_dict(), np.stack(env.actions)

    (first, first_actions), (second, second_actions) = learned(5), learned(5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.array_equal(first_actions, second_actions)
    other, other_actions = learned(6)
    assert not np.array_equal(first_actions, other_actions)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@BOTH
def test_the_seed_reaches_the_environment_once(name):
    env = BestMaskEnv()
    build(name, env).learn(env, 50, seed=11)
    assert env.seeds == [11, None, None]


def by_hand(network, observation: dict[str, np.ndarray], flat: bool):
    parts = {key: torch.tensor(value)[None] for key, value in observation.items()}
    tensors = torch.cat([parts[key] for key in sorted(parts)], 1) if flat else parts
    with torch.no_grad():
        features = network.extract_features(tensors)
        return network.action_net(network.mlp_extractor.forward_actor(features))[0].double().numpy()


@BOTH
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_reported_probabilities_are_those_before_the_action(name, soft, observation):
    env = BestMaskEnv(SOFT_BEST if soft else BEST, soft=soft, cls=3)
    agent = build(name, env, observation=observation, n_steps=4)
    seen: list[tuple[np.ndarray, float]] = []

    def check(probabilities: np.ndarray, log_prob: float) -> None:
        seen.append((probabilities, log_prob))
        assert len(env.actions) == len(seen)
        output = by_hand(agent.model.policy, env.observations[-1], observation == "flat")
        action = env.actions[-1]
        if soft:
            std = np.exp(agent.model.policy.log_std.detach().double().numpy())
            density = norm.pdf(action, output, std)
            density[action == 0] = norm.cdf(0, output, std)[action == 0]
            density[action == 1] = 1 - norm.cdf(1, output, std)[action == 1]
            np.testing.assert_allclose(probabilities, np.clip(output, 0, 1), atol=1e-6)
            assert log_prob == pytest.approx(np.log(density).sum(), abs=1e-5)
        else:
            p = 1 / (1 + np.exp(-output))
            np.testing.assert_allclose(probabilities, p, atol=1e-6)
            expected = np.log(np.where(action > 0.5, p, 1 - p)).sum()
            assert log_prob == pytest.approx(expected, abs=1e-5)

    agent.learn(env, 30, seed=0, on_step=check)
    assert len(seen) == 30
    assert len({float(p[0]) for p, _ in seen}) > 25


def test_log_probability_stays_finite_for_an_unlikely_bit():
    assert log_probability(np.array([1.0]), np.array([-800.0]), None) == pytest.approx(-800.0)
    assert log_probability(np.array([0.0]), np.array([-800.0]), None) == pytest.approx(0.0)


@pytest.mark.parametrize("soft", [False, True])
def test_frozen_draws_follow_the_reported_distribution(soft):
    env = BestMaskEnv(SOFT_BEST if soft else BEST, soft=soft)
    agent = build("a2c", env)
    agent.learn(env, 400, seed=0)
    policy = agent.frozen()
    policy.reset(np.random.default_rng(2))
    observation, _ = env.reset(seed=1)
    choices = [policy.act(observation) for _ in range(3000)]
    actions = np.stack([choice.action for choice in choices])
    if soft:
        # The mean of a Gaussian cut off to [0, 1], by numerical integration.
        center = by_hand(policy.network, observation, True)
        std = np.exp(policy.network.log_std.detach().double().numpy())
        grid = norm.ppf((np.arange(20000) + 0.5) / 20000)[:, None] * std + center
        expected = np.clip(grid, 0, 1).mean(0)
    else:
        expected = choices[0].probabilities
        assert set(np.unique(actions)) == {0.0, 1.0}
        p = np.where(actions[0] > 0.5, expected, 1 - expected)
        assert choices[0].log_prob == pytest.approx(np.log(p).sum(), abs=1e-5)
    np.testing.assert_allclose(actions.mean(0), expected, atol=0.03)
    assert actions.dtype == np.float32


@pytest.mark.parametrize("soft", [False, True])
def test_mode_takes_the_most_likely_action(soft):
    env = BestMaskEnv(SOFT_BEST if soft else BEST, soft=soft)
    agent = build("ppo", env, final="mode")
    agent.learn(env, 200, seed=0)
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    observation, _ = env.reset(seed=3)
    output = by_hand(policy.network, observation, True)
    expected = np.clip(output, 0, 1) if soft else output > 0
    for _ in range(3):
        choice = policy.act(observation)
        np.testing.assert_allclose(choice.action, expected, atol=1e-6)
        assert np.array_equal(choice.probabilities, choice.action)
        assert choice.log_prob == 0.0


def test_a_frozen_policy_leaves_the_global_generators_alone():
    env = BestMaskEnv()
    agent = build("a2c", env)
    agent.learn(env, 40, seed=0)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    observation, _ = env.reset(seed=1)
    draws = [policy.act(observation).action.tolist() for _ in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    torch.manual_seed(123)
    policy.reset(np.random.default_rng(0))
    assert [policy.act(observation).action.tolist() for _ in range(20)] == draws


def test_learning_on_does_not_change_a_frozen_policy():
    env = BestMaskEnv()
    agent = build("a2c", env)
    agent.learn(env, 40, seed=0)
    policy = agent.frozen()
    before = mean_probabilities(policy, env)
    agent.model.learn(80)
    assert np.array_equal(mean_probabilities(policy, env), before)
    assert not np.array_equal(mean_probabilities(agent.frozen(), env), before)


@BOTH
@pytest.mark.parametrize("decisions", [100, 10])
def test_stop_ends_learning_and_leaves_a_policy(name, decisions):
    env = BestMaskEnv()
    agent = build(name, env, n_steps=8)
    assert agent.learn(env, decisions, seed=0, stop=lambda: len(env.actions) >= 9) == 9
    assert len(env.actions) == 9
    assert mean_probabilities(agent.frozen(), env).shape == (len(POOL),)


def test_an_interrupt_comes_through_and_leaves_a_policy():
    env = BestMaskEnv()
    agent = build("a2c", env)

    def interrupt(done: int) -> None:
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agent.learn(env, 100, seed=0, progress=interrupt)
    assert mean_probabilities(agent.frozen(), env).shape == (len(POOL),)


@BOTH
def test_tensorboard_keeps_the_names_of_stable_baselines(name, tmp_path):
    env = BestMaskEnv()
    build(name, env).learn(env, 100, seed=0, logger_folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"rollout/ep_rew_mean", "train/value_loss", "train/entropy_loss", "time/fps"} <= tags
    assert events.Scalars("train/value_loss")[-1].step == 100


def test_nothing_is_written_or_printed_without_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    env = BestMaskEnv()
    build("a2c", env).learn(env, 20, seed=0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "algorithm"), [("a2c", A2C), ("ppo", PPO)])
def test_the_zip_serves_users_of_stable_baselines(name, algorithm, tmp_path):
    env = BestMaskEnv()
    agent = build(name, env, final="mode")
    agent.learn(env, 200, seed=0)
    agent.save_sb3_zip(tmp_path / "sb3.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["sb3.zip"]
    model = algorithm.load(tmp_path / "sb3.zip", device="cpu")
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    observation, _ = env.reset(seed=4)
    action, _ = model.predict(observation["training"], deterministic=True)
    assert action.tolist() == policy.act(observation).action.tolist()


def test_nothing_can_be_taken_before_learning(tmp_path):
    agent = build("a2c", BestMaskEnv())
    with pytest.raises(RuntimeError, match="learn"):
        agent.frozen()
    with pytest.raises(RuntimeError, match="learn"):
        agent.save_sb3_zip(tmp_path / "sb3.zip")
    env = BestMaskEnv()
    agent.learn(env, 10, seed=0)
    with pytest.raises(RuntimeError, match="reset"):
        agent.frozen().act(env.last)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("a2c", "n_steps", 1),
        ("a2c", "gamma", 1.2),
        ("a2c", "learning_rate", 0.0),
        ("a2c", "max_grad_norm", float("nan")),
        ("ppo", "batch_size", 1),
        ("ppo", "n_epochs", 0),
        ("ppo", "clip_range", -0.1),
        ("ppo", "gae_lambda", -1.0),
        ("ppo", "net_arch", [64, 0]),
        ("ppo", "ent_coef", -0.5),
    ],
)
def test_values_that_cannot_work_are_refused(name, option, value):
    config = RunConfig(agent=name)
    setattr(getattr(config, name), option, value)
    with pytest.raises(UsageError, match=rf"--{name}\.{option}"):
        check_settings(config)


def test_single_decisions_are_allowed_without_normalised_advantages():
    env = BestMaskEnv()
    agent = build("a2c", env, n_steps=1, normalize_advantage=False)
    assert agent.learn(env, 5, seed=0) == 5
