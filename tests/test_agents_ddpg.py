from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from best_mask_env import BEST, FEATURES, POOL, BestMaskEnv
from gymnasium import spaces
from stable_baselines3 import DDPG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.ddpg import DDPGAgent, Thresholded
from agents.deterministic import Encoded, behaviour, masked, network_arguments
from agents.frozen import Concatenated
from agents.make import check_settings, make_agent
from agents.policy import Learner
from ksel.config import RunConfig
from ksel.errors import UsageError

SOFT_BEST = np.array([1.0, 0.0, 0.9, 0.8, 0.2], np.float32)
KINDS = pytest.mark.parametrize("soft", [False, True])


def build(env: BestMaskEnv, **settings) -> DDPGAgent:
    config = RunConfig(agent="ddpg")
    for key, value in settings.items():
        setattr(config.ddpg, key, value)
    agent = make_agent(config, env.pool_names, env.observation_space, env.action_space)
    assert isinstance(agent, DDPGAgent)
    return agent


def environment(soft: bool, **arguments) -> BestMaskEnv:
    return BestMaskEnv(SOFT_BEST if soft else BEST, soft=soft, **arguments)


def actions_of(policy, env: BestMaskEnv) -> np.ndarray:
    policy.reset(np.random.default_rng(0))
    env.reset(seed=99)
    return np.stack([policy.act(env._observe()).action for _ in range(30)])


def weights_by_hand(actor, observation: dict[str, np.ndarray]) -> np.ndarray:
    """The actor layer by layer, in float64, with an encoder in front."""
    state = {name: tensor.double().numpy() for name, tensor in actor.state_dict().items()}

    def layers(prefix: str, x: np.ndarray, last: bool) -> np.ndarray:
        numbers = sorted(
            {int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)}
        )
        for number in numbers:
            x = state[f"{prefix}{number}.weight"] @ x + state[f"{prefix}{number}.bias"]
            if last or number != numbers[-1]:
                x = np.maximum(x, 0)
        return x

    encoded = [
        layers(f"features_extractor.encoders.{number}.", observation[name].astype(float), True)
        for number, name in enumerate(sorted(observation))
    ]
    return (np.tanh(layers("mu.", np.concatenate(encoded), False)) + 1) / 2


# --------------------------------------------------------------------------- learning


def test_finds_the_best_mask_with_default_settings():
    for seed in range(2):
        env = environment(False)
        agent = build(env)
        agent.learn(env, 300, seed=seed)
        assert np.array_equal(actions_of(agent.frozen(), env).mean(0) > 0.5, BEST > 0.5)


def test_soft_weights_move_towards_the_best():
    env = environment(True)
    agent = build(env)
    agent.learn(env, 300, seed=0)
    found = actions_of(agent.frozen(), env).mean(0)
    assert np.abs(found - SOFT_BEST).mean() < 0.2
    assert np.array_equal(found > 0.5, SOFT_BEST > 0.5)


@KINDS
def test_short_searches_work(soft):
    env = environment(soft)
    agent = build(env)
    before = agent._build_model(env, 20, 0).actor.state_dict()
    assert agent.learn(env, 20, seed=0) == 20
    assert len(env.actions) == 20
    assert agent.model._n_updates == 12
    after = agent.model.actor.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("decisions", [1, 8])
def test_a_search_without_an_update_is_refused(decisions):
    env = environment(False)
    with pytest.raises(UsageError, match=r"--ddpg\.learning_starts 8.*--episodes\.count"):
        build(env).learn(env, decisions, seed=0)
    assert build(env).learn(env, 9, seed=0) == 9


@KINDS
@pytest.mark.parametrize("encoder", [0, 16])
def test_same_seed_gives_the_same_policy(soft, encoder):
    def learned(seed: int):
        env = environment(soft, cls=3)
        agent = build(env, encoder=encoder)
        agent.learn(env, 40, seed=seed)
        return agent.frozen().actor.state_dict(), np.stack(env.actions)

    (first, first_actions), (second, second_actions) = learned(5), learned(5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.array_equal(first_actions, second_actions)
    other, other_actions = learned(6)
    assert not np.array_equal(first_actions, other_actions)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_seed_reaches_the_environment_once():
    env = environment(False)
    build(env).learn(env, 50, seed=11)
    assert env.seeds == [11, None, None]


def test_the_first_actions_are_uniform_and_the_later_ones_near_the_actor():
    env = environment(True)
    agent = build(env, learning_starts=150, noise=0.05, learning_rate=1e-12)
    centers: list[np.ndarray] = []
    agent.learn(env, 300, seed=0, on_step=lambda weights, _: centers.append(weights))
    actions = np.stack(env.actions)
    early, late = actions[:150], actions[150:]
    assert abs(early.mean() - 0.5) < 0.03
    assert early.std() > 0.25
    assert (np.stack(centers)[:150] == 0.5).all()
    # noise of 0.05 in the units of the weights
    assert abs((late - np.stack(centers)[150:]).std() - 0.05) < 0.005


# --------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize(
    ("gamma_on", "on_reward", "on_next"), [("next", 1.0, 0.6), ("reward", 0.6, 1.0)]
)
def test_the_target_has_gamma_where_asked(gamma_on, on_reward, on_next, monkeypatch):
    env = environment(False)
    paid: list[float] = []
    step = env.step

    def remember(action):
        result = step(action)
        paid.append(result[1])
        return result

    env.step = remember
    agent = build(env, gamma=0.6, gamma_on=gamma_on)
    agent.learn(env, 45, seed=0)
    model = agent.model
    rewards = model.replay_buffer.rewards[:45, 0]
    np.testing.assert_allclose(rewards, on_reward * np.array(paid), rtol=1e-6)
    assert model.replay_buffer.dones[:45, 0].nonzero()[0].tolist() == [19, 39]

    batch = model.replay_buffer.sample(64)
    assert 0 < batch.dones.sum() < 64
    with torch.no_grad():
        next_action = model.actor_target(batch.next_observations)
        next_value = model.critic_target(batch.next_observations, next_action)[0]
    own = batch.rewards / on_reward  # what the environment paid
    expected = on_reward * own + on_next * next_value * (1 - batch.dones)

    targets: list[torch.Tensor] = []
    loss = torch.nn.functional.mse_loss

    def watch(value, target):
        targets.append(target)
        return loss(value, target)

    monkeypatch.setattr(torch.nn.functional, "mse_loss", watch)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, **__: batch)
    model.train(gradient_steps=1, batch_size=64)
    torch.testing.assert_close(targets[0], expected)


def test_logged_episodes_count_what_the_environment_paid(tmp_path):
    def logged(gamma_on: str) -> float:
        env = environment(False, noise=0.0)
        build(env, gamma_on=gamma_on, gamma=0.5, learning_starts=30).learn(
            env, 45, seed=0, logger_folder=tmp_path / gamma_on
        )
        events = EventAccumulator(str(tmp_path / gamma_on))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"train/actor_loss", "train/critic_loss", "time/fps"} <= tags
        assert events.Scalars("train/critic_loss")[-1].step == 45
        own = 1 - 2 * np.abs(np.stack(env.actions)[:20] - BEST).mean(1)
        first = events.Scalars("rollout/ep_rew_mean")[0]
        assert first.value == pytest.approx(own.sum(), rel=1e-4)
        return first.value

    assert logged("reward") == logged("next")  # the random actions at the start are the same


def test_a_full_buffer_forgets_the_oldest_decisions():
    env = environment(False)
    agent = build(env, buffer_size=25)
    agent.learn(env, 60, seed=0)
    assert agent.model.replay_buffer.full
    assert len(agent.model.replay_buffer.rewards) == 25
    agent = build(env)
    agent.learn(env, 60, seed=0)
    assert len(agent.model.replay_buffer.rewards) == 60  # no more than the search can fill


def test_each_part_has_an_encoder_of_its_own():
    space = spaces.Dict(
        {
            name: spaces.Box(-np.inf, np.inf, (size,))
            for name, size in (("training", 11), ("student_cls", 4), ("teacher_cls", 6))
        }
    )
    torch.manual_seed(0)
    encoded = Encoded(space, 8)
    parts = {
        name: torch.randn(3, part.shape[0], requires_grad=True)
        for name, part in space.spaces.items()
    }
    out = encoded(parts)
    assert out.shape == (3, encoded.features_dim) == (3, 24)
    assert sum(isinstance(module, torch.nn.Linear) for module in encoded.modules()) == 6
    for number, name in enumerate(space.spaces):
        block = out[:, 8 * number : 8 * number + 8].sum()
        gradients = torch.autograd.grad(
            block, list(parts.values()), retain_graph=True, allow_unused=True
        )
        for other, gradient in zip(parts, gradients, strict=True):
            assert (gradient is not None and bool((gradient != 0).any())) == (other == name)


def test_without_an_encoder_the_parts_are_taken_as_they_are():
    assert network_arguments(0, [8])["features_extractor_class"] is Concatenated
    env = environment(False, cls=3)
    agent = build(env, encoder=0, net_arch=[8])
    agent.learn(env, 12, seed=0)
    assert agent.model.actor.mu[0].weight.shape == (8, FEATURES + 3)


def test_actor_and_critic_have_networks_of_three_layers():
    env = environment(False, cls=3)
    agent = build(env, encoder=7)
    agent.learn(env, 12, seed=0)
    actor = [layer for layer in agent.model.actor.mu if isinstance(layer, torch.nn.Linear)]
    critic = [layer for layer in agent.model.critic.qf0 if isinstance(layer, torch.nn.Linear)]
    assert [layer.in_features for layer in actor] == [14, 64, 64]
    assert [layer.in_features for layer in critic] == [14 + len(POOL), 64, 64]
    assert len(agent.model.critic.q_networks) == 1


def test_every_part_of_the_observation_moves_the_weights():
    env = environment(True, cls=3)
    agent = build(env)
    agent.learn(env, 30, seed=0)
    policy = agent.frozen()
    observation, _ = env.reset(seed=3)
    before = policy.act(observation).action
    np.testing.assert_allclose(before, weights_by_hand(policy.actor, observation), atol=1e-6)
    for name in observation:
        moved = {**observation, name: observation[name] + 1}
        assert not np.array_equal(policy.act(moved).action, before)


# --------------------------------------------------------------------------- threshold


@pytest.mark.parametrize(
    ("weights", "threshold", "at_least_one", "bits"),
    [
        ([0.2, 0.5, 0.51], 0.5, True, [0, 0, 1]),
        ([0.2, 0.5, 0.4], 0.5, True, [0, 1, 0]),
        ([0.2, 0.5, 0.4], 0.5, False, [0, 0, 0]),
        ([0.2, 0.5, 0.4], 0.3, True, [0, 1, 1]),
        ([0.0, 0.0, 0.0], 0.5, True, [1, 0, 0]),
        ([0.0, 0.01, 0.0], 0.0, False, [0, 1, 0]),
    ],
)
def test_weights_are_cut_at_the_threshold(weights, threshold, at_least_one, bits):
    cut = masked(np.array(weights, np.float32), threshold, at_least_one)
    assert cut.tolist() == bits
    assert cut.dtype == np.float32
    env = BestMaskEnv(np.zeros(3, np.float32))
    wrapped = Thresholded(env, threshold, at_least_one)
    wrapped.reset(seed=0)
    wrapped.step(np.array(weights, np.float32))
    assert env.actions[0].tolist() == bits


def test_the_replay_buffer_keeps_the_weights_and_the_environment_gets_bits():
    env = environment(False)
    agent = build(env, threshold=0.7)
    agent.learn(env, 40, seed=0)
    kept = (agent.model.replay_buffer.actions[:40, 0] + 1) / 2
    assert len(np.unique(kept)) > 50
    assert set(np.unique(np.stack(env.actions))) == {0.0, 1.0}
    for weights, bits in zip(kept, env.actions, strict=True):
        assert masked(weights, 0.7, True).tolist() == bits.tolist()


@pytest.mark.parametrize("at_least_one", [True, False])
def test_a_high_threshold_leaves_the_largest_weight_or_none(at_least_one):
    env = environment(False)
    agent = build(env, threshold=0.9999, at_least_one=at_least_one, learning_rate=1e-12)
    agent.learn(env, 12, seed=0)
    assert {float(bits.sum()) for bits in actions_of(agent.frozen(), env)} == {float(at_least_one)}


# --------------------------------------------------------------------------- how likely


@pytest.mark.parametrize("center", [None, [0.1, 0.55, 0.97]])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_densities_of_weights_agree_with_draws(center, noise):
    rng = np.random.default_rng(0)
    count = 400_000
    base = rng.random(count) if center is None else None
    for k in range(3):
        middle = base if base is not None else center[k]
        drawn = np.clip(middle + noise * rng.standard_normal(count), 0, 1)
        where = None if center is None else np.array(center, np.float32)[k : k + 1]
        if center is not None and noise == 0:
            assert behaviour(where, where, noise, None) == (where, 0.0)
            continue
        for low, high in ((0.2, 0.22), (0.6, 0.62), (0.9, 0.92)):
            share = np.mean((low < drawn) & (drawn < high)) / (high - low)
            _, log_prob = behaviour(np.array([(low + high) / 2]), where, noise, None)
            assert math.exp(log_prob) == pytest.approx(share, rel=0.06, abs=0.02)
        for edge in (0.0, 1.0) if noise else ():
            _, log_prob = behaviour(np.array([edge]), where, noise, None)
            assert math.exp(log_prob) == pytest.approx(np.mean(drawn == edge), abs=0.003)


@pytest.mark.parametrize("center", [None, [0.3, 0.55, 0.8]])
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7])
def test_probabilities_of_bits_agree_with_draws(center, noise, threshold):
    rng = np.random.default_rng(0)
    shape = (200_000, 3)
    middle = rng.random(shape) if center is None else np.broadcast_to(center, shape)
    drawn = np.clip(middle + noise * rng.standard_normal(shape), 0, 1)
    bits = drawn > threshold
    where = None if center is None else np.array(center, np.float32)
    action = np.array([0.9, 0.2, 0.95])
    above, log_prob = behaviour(action, where, noise, (threshold, False))
    np.testing.assert_allclose(above, bits.mean(0), atol=0.005)
    if center is not None and noise == 0:
        assert log_prob == 0.0
        return
    share = (bits == (action > threshold)).all(1).mean()
    assert math.exp(log_prob) == pytest.approx(share, abs=0.005)


def test_a_single_type_that_may_be_the_largest_has_no_known_probability():
    center = np.array([0.4, 0.3], np.float32)
    alone, both, none = np.array([0.6, 0.2]), np.array([0.6, 0.7]), np.array([0.4, 0.2])
    assert math.isnan(behaviour(alone, center, 0.2, (0.5, True))[1])
    assert math.isnan(behaviour(none, center, 0.2, (0.5, True))[1])
    assert behaviour(both, center, 0.2, (0.5, True))[1] < 0
    assert behaviour(alone, center, 0.2, (0.5, False))[1] < 0
    probabilities, log_prob = behaviour(none, center, 0.0, (0.5, True))
    assert (probabilities.tolist(), log_prob) == ([1, 0], 0.0)


@KINDS
def test_what_is_reported_is_of_the_actor_before_the_action(soft):
    env = environment(soft, cls=3)
    agent = build(env, learning_starts=5, noise=0.3, at_least_one=True)
    seen: list[np.ndarray] = []

    def check(probabilities: np.ndarray, log_prob: float) -> None:
        seen.append(probabilities)
        assert len(env.actions) == len(seen)
        if len(seen) <= 5:
            return
        center = weights_by_hand(agent.model.actor, env.observations[-1])
        if soft:
            np.testing.assert_allclose(probabilities, center, atol=1e-5)
            assert math.isfinite(log_prob)
        else:
            z = (center - 0.5) / 0.3
            above = 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in z]))
            np.testing.assert_allclose(probabilities, above, atol=1e-5)
            likely = np.where(env.actions[-1] > 0.5, above, 1 - above)
            if env.actions[-1].sum() > 1:
                assert log_prob == pytest.approx(np.log(likely).sum(), abs=1e-4)

    agent.learn(env, 30, seed=0, on_step=check)
    assert len(seen) == 30
    assert len({float(p[0]) for p in seen}) > 20


# --------------------------------------------------------------------------- frozen


@KINDS
def test_a_frozen_policy_is_certain_and_draws_nothing(soft):
    env = environment(soft)
    agent = build(env)
    agent.learn(env, 40, seed=0)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    observation, _ = env.reset(seed=1)
    choices = [policy.act(observation) for _ in range(3)]
    assert all(choice.action.tolist() == choices[0].action.tolist() for choice in choices)
    assert all(choice.log_prob == 0.0 for choice in choices)
    assert np.array_equal(choices[0].probabilities, choices[0].action)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    assert (policy.name, policy.soft, policy.learns, policy.pool) == ("ddpg", soft, True, POOL)


def test_learning_on_does_not_change_a_frozen_policy():
    env = environment(True)
    agent = build(env)
    agent.learn(env, 40, seed=0)
    policy = agent.frozen()
    before = actions_of(policy, env)
    agent.model.learn(40)
    assert np.array_equal(actions_of(policy, env), before)
    assert not np.array_equal(actions_of(agent.frozen(), env), before)


@KINDS
def test_the_zip_serves_users_of_stable_baselines(soft, tmp_path):
    env = environment(soft, cls=3)
    agent = build(env)
    agent.learn(env, 40, seed=0)
    agent.save_extra(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stable_baselines3.zip"]
    model = DDPG.load(tmp_path / "stable_baselines3.zip", device="cpu")
    observation, _ = env.reset(seed=4)
    weights, _ = model.predict(observation, deterministic=True)
    expected = weights if soft else masked(weights, 0.5, True)
    np.testing.assert_allclose(agent.frozen().act(observation).action, expected, atol=1e-6)


@pytest.mark.parametrize("decisions", [100, 10])
def test_stop_ends_learning_and_leaves_a_policy(decisions):
    env = environment(False)
    agent = build(env)
    counted: list[int] = []
    taken = agent.learn(
        env, decisions, seed=0, progress=counted.append, stop=lambda: len(env.actions) >= 9
    )
    assert taken == len(env.actions) == 9
    assert counted == list(range(1, 10))
    assert actions_of(agent.frozen(), env).shape == (30, len(POOL))


def test_an_interrupt_comes_through_and_leaves_a_policy():
    env = environment(False)
    agent = build(env)

    def interrupt(done: int) -> None:
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agent.learn(env, 100, seed=0, progress=interrupt)
    assert agent.learned
    assert actions_of(agent.frozen(), env).shape == (30, len(POOL))


def test_nothing_can_be_taken_before_learning(tmp_path):
    agent = build(environment(False))
    assert isinstance(agent, Learner)
    assert not agent.learned
    with pytest.raises(RuntimeError, match="learn"):
        agent.frozen()
    with pytest.raises(RuntimeError, match="learn"):
        agent.save_extra(tmp_path)


def test_nothing_is_written_or_printed_without_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    env = environment(False)
    build(env).learn(env, 20, seed=0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("encoder", -1),
        ("learning_rate", 0.0),
        ("buffer_size", 0),
        ("learning_starts", -1),
        ("batch_size", 0),
        ("gradient_steps", 0),
        ("tau", 0.0),
        ("tau", 1.5),
        ("gamma", -0.1),
        ("noise", -0.1),
        ("noise", float("nan")),
        ("threshold", 1.0),
        ("threshold", -0.1),
        ("net_arch", [64, 0]),
    ],
)
def test_values_that_cannot_work_are_refused(option, value):
    config = RunConfig(agent="ddpg")
    setattr(config.ddpg, option, value)
    with pytest.raises(UsageError, match=rf"--ddpg\.{option}"):
        check_settings(config)


def test_rewards_that_count_nothing_are_refused():
    config = RunConfig(agent="ddpg")
    config.ddpg.gamma = 0.0
    check_settings(config)
    config.ddpg.gamma_on = "reward"
    with pytest.raises(UsageError, match=r"--ddpg\.gamma is 0.*--ddpg\.gamma_on"):
        check_settings(config)


@pytest.mark.parametrize(("option", "value"), [("threshold", 0.3), ("at_least_one", False)])
def test_the_threshold_is_refused_for_soft_actions(option, value):
    config = RunConfig(agent="ddpg")
    setattr(config.ddpg, option, value)
    check_settings(config)
    with pytest.raises(UsageError, match=rf"--ddpg\.{option}.*--env\.actions hard"):
        build(environment(True), **{option: value})
    config.env.actions = "soft"
    with pytest.raises(UsageError, match=rf"--ddpg\.{option}.*--env\.actions hard"):
        check_settings(config)


def test_the_mode_of_a_deterministic_policy_is_refused():
    config = RunConfig(agent="ddpg")
    config.episodes.final = "mode"
    with pytest.raises(UsageError, match=r"--episodes\.final"):
        check_settings(config)
