from __future__ import annotations

import numpy as np
import pytest
from credit_env import FIRST, POOL, CreditEnv

from agents.greedy import credit_of, greedy_policy, weights_by_credit
from agents.make import check_settings, make_agent, resolve_actions, resolve_reward, resolve_search
from agents.policy import load_policy
from envs.observation import Features, feature_names
from ksel.config import RunConfig
from ksel.errors import UsageError

CREDIT = np.array([0.5, -0.2, 0.1, 0.0, 2.0, 0.3])


def observed(credit: np.ndarray) -> dict[str, np.ndarray]:
    training = np.full(len(feature_names(POOL)), 0.7, np.float32)
    first = feature_names(POOL).index(f"credit/{POOL[0]}")
    training[first : first + len(POOL)] = np.tanh(credit)
    return {"training": training}


@pytest.mark.parametrize(
    ("threshold", "soft", "expected"),
    [
        (0.0, False, [1, 0, 1, 0, 1, 1]),
        (0.1, False, [1, 0, 0, 0, 1, 1]),
        (0.2, False, [1, 0, 0, 0, 1, 0]),
        (0.9, False, [0, 0, 0, 0, 1, 0]),
        (0.0, True, [0.25, 0, 0.05, 0, 1, 0.15]),
        (0.1, True, [0.25, 0, 0, 0, 1, 0.15]),
    ],
)
def test_types_with_enough_credit_are_on(threshold, soft, expected):
    policy = greedy_policy(threshold, POOL, soft)
    policy.reset(np.random.default_rng(0))
    choice = policy.act(observed(CREDIT))
    np.testing.assert_allclose(choice.action, expected, atol=1e-5)
    assert np.array_equal(choice.probabilities, choice.action)
    assert choice.log_prob == 0.0
    assert policy.soft is soft


@pytest.mark.parametrize("soft", [False, True])
def test_all_are_on_until_credit_is_known_and_never_none(soft):
    assert weights_by_credit(np.zeros(3), 0.5, soft).tolist() == [1, 1, 1]
    assert weights_by_credit(np.array([-3.0, -1.0, -2.0]), 0.0, soft).tolist() == [0, 1, 0]
    assert weights_by_credit(np.array([-3.0, 0.0, -2.0]), 0.0, soft).tolist() == [0, 1, 0]


def test_reads_what_the_environment_observes():
    features = Features(len(POOL))
    features.owe(CREDIT)
    np.testing.assert_allclose(credit_of(features.training(), len(POOL)), CREDIT, atol=1e-5)


def test_a_saturated_credit_is_a_number():
    assert np.isfinite(credit_of(observed(np.full(len(POOL), 1e9))["training"], len(POOL))).all()


def test_follows_the_credit_of_an_environment():
    env = CreditEnv(lambda t: FIRST if t < 30 else -FIRST, noise=0.5)
    policy = greedy_policy(0.0, POOL, False)
    policy.reset(np.random.default_rng(0))
    observation, _ = env.reset(seed=0)
    for _ in range(60):
        observation, *_ = env.step(policy.act(observation).action)
    assert env.actions[0].all()
    assert np.mean(np.stack(env.actions[15:30]) == (FIRST > 0)) > 0.9
    assert np.mean(np.stack(env.actions[45:]) == (FIRST < 0)) > 0.9


@pytest.mark.parametrize("soft", [False, True])
def test_comes_back_from_its_file(soft, tmp_path):
    policy = greedy_policy(0.15, POOL, soft)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path, pool=POOL, observation={"training": (len(feature_names(POOL)),)})
    assert (loaded.name, loaded.soft, loaded.learns) == ("greedy", soft, False)
    loaded.reset(np.random.default_rng(0))
    policy.reset(np.random.default_rng(0))
    assert (
        loaded.act(observed(CREDIT)).action.tolist() == policy.act(observed(CREDIT)).action.tolist()
    )


def test_is_paid_and_made_as_the_table_says():
    assert resolve_actions("greedy", "auto") is False
    assert resolve_actions("greedy", "soft") is True
    assert resolve_reward("greedy", "auto") == "amortized"
    assert resolve_search("greedy", "auto") == "episodes"
    env = CreditEnv()
    policy = make_agent(RunConfig(agent="greedy"), POOL, env.observation_space, env.action_space)
    assert policy.name == "greedy"
    assert not policy.learns


@pytest.mark.parametrize("threshold", [1.0, -0.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(UsageError, match=r"--greedy\.threshold"):
        greedy_policy(threshold, POOL, False)


def test_the_vector_with_credit_must_be_observed():
    config = RunConfig(agent="greedy")
    config.env.observe = ["student_cls"]
    with pytest.raises(UsageError, match=r"--env\.observe: greedy"):
        check_settings(config)
    policy = greedy_policy(0.0, POOL, False)
    policy.reset(np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"--env\.observe: greedy"):
        policy.act({"student_cls": np.zeros(3)})
