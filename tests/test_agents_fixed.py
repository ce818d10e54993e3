from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from best_mask_env import POOL, BestMaskEnv

from agents.fixed import (
    annealed_policy,
    dynamic_policy,
    mask_vector,
    random_hard_policy,
    random_soft_policy,
    round_robin_policy,
    static_policy,
)
from agents.make import (
    AGENTS,
    check_agent,
    check_settings,
    get_agent,
    make_agent,
    resolve_actions,
    unused_settings,
)
from agents.policy import Learner
from envs.observation import feature_names
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.settings import config_from_dict

FIXED = [name for name, info in AGENTS.items() if not info.learns]
CONFIGS = Path(__file__).parent.parent / "configs" / "agents"


def at(progress: float) -> dict[str, np.ndarray]:
    training = np.full(6 + 5 * len(POOL), 0.3, np.float32)
    training[0] = progress
    return {"training": training}


def make(agent: str, soft: bool | None = None, **groups):
    config = RunConfig(agent=agent)
    for group, values in groups.items():
        for name, value in values.items():
            setattr(getattr(config, group), name, value)
    soft = AGENTS[agent].natural == "soft" if soft is None else soft
    env = BestMaskEnv(soft=soft)
    return make_agent(config, env.pool_names, env.observation_space, env.action_space)


@pytest.mark.parametrize(
    ("mask", "bits"),
    [
        (["all"], [1, 1, 1, 1, 1]),
        (["none"], [0, 0, 0, 0, 0]),
        (["response"], [0, 1, 0, 0, 0]),
        (["hidden/skip", "label"], [1, 0, 0, 1, 0]),
    ],
)
@pytest.mark.parametrize("soft", [False, True])
def test_static_holds_its_mask(mask, bits, soft):
    policy = make("static", soft, static={"mask": mask})
    policy.reset(np.random.default_rng(0))
    for _ in range(3):
        choice = policy.act(at(0.5))
        assert choice.action.tolist() == bits
        assert choice.action.dtype == np.float32
        assert choice.probabilities.tolist() == bits
        assert choice.log_prob == 0.0
    assert policy.soft is soft
    assert not policy.learns


def test_changing_a_choice_does_not_change_the_mask():
    policy = static_policy(["label"], POOL)
    policy.reset(np.random.default_rng(0))
    policy.act(at(0)).action[:] = 9
    assert policy.act(at(0)).action.tolist() == [1, 0, 0, 0, 0]


def test_unknown_mask_name_gives_the_nearest():
    with pytest.raises(UsageError, match=r"--static\.mask.*'respnse'.*Did you mean 'response'"):
        make("static", static={"mask": ["respnse"]})


@pytest.mark.parametrize("mask", [["all", "label"], ["label", "none"], []])
def test_contradictory_or_empty_mask_is_refused(mask):
    with pytest.raises(UsageError, match=r"--static\.mask"):
        make("static", static={"mask": mask})


def test_mask_errors_name_the_option_they_came_from():
    with pytest.raises(UsageError, match="--references"):
        mask_vector(["labels"], POOL, "--references")


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_random_hard_frequency_and_log_prob(probability):
    policy = random_hard_policy(probability, POOL)
    policy.reset(np.random.default_rng(1))
    choices = [policy.act(at(0)) for _ in range(2000)]
    actions = np.stack([choice.action for choice in choices])
    np.testing.assert_allclose(actions.mean(0), probability, atol=0.04)
    on = choices[0].action.sum()
    expected = probability**on * (1 - probability) ** (len(POOL) - on)
    assert choices[0].log_prob == pytest.approx(np.log(expected))
    assert set(np.unique(actions)) <= {0.0, 1.0}


def test_random_soft_is_uniform():
    policy = random_soft_policy(POOL)
    policy.reset(np.random.default_rng(1))
    choices = [policy.act(at(0)) for _ in range(2000)]
    actions = np.stack([choice.action for choice in choices])
    np.testing.assert_allclose(actions.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(actions.var(0), 1 / 12, atol=0.01)
    assert choices[0].log_prob == 0.0
    assert choices[0].probabilities.tolist() == [0.5] * len(POOL)


@pytest.mark.parametrize("agent", ["random_hard", "random_soft"])
def test_random_agents_draw_from_the_given_generator_alone(agent):
    policy = make(agent)

    def draws(seed: int) -> list[list[float]]:
        policy.reset(np.random.default_rng(seed))
        return [policy.act(at(0)).action.tolist() for _ in range(8)]

    first = draws(3)
    np.random.seed(0)  # noqa: NPY002
    assert draws(3) == first
    assert draws(4) != first


@pytest.mark.parametrize(
    ("progress", "label", "teacher"),
    [(0.0, 0.0, 0.8), (0.25, 0.25, 0.6), (1.0, 1.0, 0.0), (1.5, 1.0, 0.0), (-0.5, 0.0, 0.8)],
)
def test_annealed_crosses_from_teacher_to_label(progress, label, teacher):
    policy = annealed_policy(0.8, ("response", "label", "hidden/skip"))
    policy.reset(np.random.default_rng(0))
    choice = policy.act(at(progress))
    np.testing.assert_allclose(choice.action, [teacher, label, teacher], atol=1e-6)
    assert choice.log_prob == 0.0


def test_annealed_without_label_is_refused():
    with pytest.raises(UsageError, match=r"annealed.*--knowledge\.pool.*'label'"):
        annealed_policy(1.0, ("response", "hidden/skip"))


def test_annealed_without_progress_is_refused():
    config = RunConfig(agent="annealed")
    config.env.observe = ["student_cls"]
    with pytest.raises(UsageError, match=r"--env\.observe"):
        check_settings(config)
    policy = annealed_policy(1.0, POOL)
    policy.reset(np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"--env\.observe"):
        policy.act({"student_cls": np.zeros(3, np.float32)})


def test_round_robin_takes_each_type_in_turn_and_starts_anew():
    policy = round_robin_policy(POOL)
    for _ in range(2):
        policy.reset(np.random.default_rng(0))
        turns = [int(policy.act(at(0)).action.argmax()) for _ in range(7)]
        assert turns == [0, 1, 2, 3, 4, 0, 1]
    assert policy.act(at(0)).action.sum() == 1


MIXED = (
    "response@2",
    "label",
    "hidden/skip@2",
    "logits",
    "sample_similarity",
    "response",
    "cls_hidden/1-2+2-4",
)


def unsure(u: float, pool: tuple[str, ...] = MIXED) -> dict[str, np.ndarray]:
    names = feature_names(pool)
    training = np.full(len(names), 0.3, np.float32)
    training[names.index("student_entropy")] = u
    return {"training": training}


@pytest.mark.parametrize("u", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("label", [1.0, 0.4])
def test_dynamic_teaches_states_while_the_student_is_unsure(u, label):
    policy = dynamic_policy(label, MIXED)
    policy.reset(np.random.default_rng(0))
    choice = policy.act(unsure(u))
    np.testing.assert_allclose(
        choice.action, [1 - u, label, u, 1 - u, u, 1 - u, u], rtol=1e-6, atol=1e-7
    )
    assert (choice.action.dtype, choice.log_prob) == (np.float32, 0.0)
    assert np.array_equal(choice.probabilities, choice.action)
    assert (policy.soft, policy.learns) == (True, False)


@pytest.mark.parametrize(
    ("pool", "missing"),
    [
        (["label", "hidden/skip"], "answers.*response"),
        (["label", "response", "logits@2"], "states.*hidden"),
        (["label"], "answers.*response"),
    ],
)
def test_dynamic_needs_answers_and_states(pool, missing):
    with pytest.raises(UsageError, match=rf"--agent dynamic.*--knowledge\.pool.*{missing}"):
        dynamic_policy(1.0, pool)
    config = RunConfig(agent="dynamic")
    config.knowledge.pool = pool
    with pytest.raises(UsageError, match=rf"--agent dynamic.*--knowledge\.pool.*{missing}"):
        check_settings(config)


def test_dynamic_without_the_entropy_is_refused():
    config = RunConfig(agent="dynamic")
    config.env.observe = ["student_cls"]
    with pytest.raises(UsageError, match=r"--env\.observe.*dynamic.*'training'"):
        check_settings(config)
    policy = dynamic_policy(1.0, POOL)
    policy.reset(np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"--env\.observe"):
        policy.act({"student_cls": np.zeros(3, np.float32)})


def test_dynamic_refuses_scores_which_have_no_entropy():
    for custom in ({}, {"kind": "span"}, {"labels": ["no", "yes"]}):
        config = RunConfig(agent="dynamic", task="custom")
        for name, value in custom.items():
            setattr(config.custom, name, value)
        if custom:
            check_settings(config)
            continue
        with pytest.raises(UsageError, match=r"--agent dynamic.*entropy.*--task custom"):
            check_settings(config)
    with pytest.raises(UsageError, match=r"--agent dynamic.*entropy.*--task stsb"):
        check_settings(RunConfig(agent="dynamic", task="stsb"))


def test_a_label_weight_without_a_label_is_refused():
    config = RunConfig(agent="dynamic")
    config.knowledge.pool = ["response", "hidden/skip"]
    check_settings(config)
    config.dynamic.label = 0.5
    with pytest.raises(UsageError, match=r"--dynamic\.label is not used"):
        check_settings(config)


@pytest.mark.parametrize("agent", AGENTS)
def test_the_table_says_what_is_made(agent):
    made, info = make(agent), AGENTS[agent]
    assert made.learns is info.learns is isinstance(made, Learner)
    assert (made.name, made.pool, made.soft) == (agent, POOL, info.natural == "soft")
    # whoever learns looks at the student, but for those that compare masks; dynamic and greedy do
    # without learning
    blind = agent in ("best_static", "race")
    assert info.observes is ((info.learns and not blind) or agent in ("dynamic", "greedy"))


@pytest.mark.parametrize(
    ("agent", "group", "name", "value"),
    [
        ("random_hard", "random", "probability", 1.5),
        ("annealed", "annealed", "start", -0.1),
        ("dynamic", "dynamic", "label", 1.1),
    ],
)
def test_settings_outside_their_range_are_refused(agent, group, name, value):
    with pytest.raises(UsageError, match=rf"--{group}\.{name} is {value}"):
        make(agent, **{group: {name: value}})


@pytest.mark.parametrize("agent", FIXED)
def test_act_before_reset_is_an_error(agent):
    with pytest.raises(RuntimeError, match="reset"):
        make(agent).act(at(0))


def test_unknown_agent_gives_the_nearest():
    with pytest.raises(UsageError, match=r"--agent.*'a2'.*Did you mean 'a2c'"):
        get_agent("a2")
    with pytest.raises(UsageError, match=r"--agent.*'random'.*Did you mean 'random_"):
        unused_settings(RunConfig(agent="random"))


@pytest.mark.parametrize(
    ("agent", "asked", "soft"),
    [
        ("a2c", "auto", False),
        ("a2c", "soft", True),
        ("ppo", "hard", False),
        ("ddpg", "auto", False),
        ("ddpg", "soft", True),
        ("bandit", "auto", False),
        ("dynamic", "auto", True),
        ("static", "auto", False),
        ("static", "soft", True),
        ("random_hard", "auto", False),
        ("random_soft", "auto", True),
        ("annealed", "auto", True),
        ("round_robin", "hard", False),
    ],
)
def test_actions_resolve(agent, asked, soft):
    assert resolve_actions(agent, asked) is soft


@pytest.mark.parametrize(
    ("agent", "asked"),
    [
        ("random_hard", "soft"),
        ("random_soft", "hard"),
        ("annealed", "hard"),
        ("round_robin", "soft"),
        ("bandit", "soft"),
        ("dynamic", "hard"),
    ],
)
def test_actions_that_do_not_fit_are_refused(agent, asked):
    message = rf"--env\.actions {asked} does not work with --agent {agent}.*a2c"
    with pytest.raises(UsageError, match=message):
        resolve_actions(agent, asked)
    with pytest.raises(UsageError, match=message):
        make(agent, asked == "soft")
    config = RunConfig(agent=agent)
    config.env.actions = asked
    with pytest.raises(UsageError, match=message):
        check_settings(config)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_accepts_the_defaults(agent):
    check_settings(RunConfig(agent=agent))
    assert unused_settings(RunConfig(agent=agent)) == []


@pytest.mark.parametrize(
    ("agent", "group", "name", "value"),
    [
        ("a2c", "ppo", "gamma", 0.5),
        ("a2c", "static", "mask", ["label"]),
        ("ppo", "a2c", "net_arch", [8]),
        ("static", "episodes", "count", 9),
        ("random_soft", "random", "probability", 0.1),
        ("round_robin", "annealed", "start", 0.5),
        ("a2c", "ddpg", "noise", 0.5),
        ("ddpg", "ppo", "gamma", 0.5),
        ("bandit", "ddpg", "encoder", 8),
        ("ppo", "bandit", "algorithm", "linucb"),
        ("static", "dynamic", "label", 0.5),
        ("dynamic", "episodes", "count", 9),
    ],
)
def test_settings_the_agent_does_not_read_are_refused(agent, group, name, value):
    config = RunConfig(agent=agent)
    setattr(getattr(config, group), name, value)
    assert unused_settings(config) == [f"--{group}.{name}"]
    reader = next(n for n, info in AGENTS.items() if group in info.settings)
    message = rf"--{group}\.{name} is not used by --agent {agent}.*{reader}"
    with pytest.raises(UsageError, match=message):
        check_settings(config)
    with pytest.raises(UsageError, match=message):
        make(agent, **{group: {name: value}})
    config.agent = reader
    assert unused_settings(config) == []


@pytest.mark.parametrize("agent", AGENTS)
def test_yaml_of_each_agent_lists_all_its_settings_with_their_defaults(agent):
    text = yaml.safe_load((CONFIGS / f"{agent}.yaml").read_text())
    own = [group for group in AGENTS[agent].settings if group != "episodes"]
    expected = {group: asdict(getattr(RunConfig(), group)) for group in own}
    assert text == {"agent": agent, **expected}


def test_there_is_one_yaml_per_agent():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(AGENTS)


# --------------------------------------------------------------------------- before any work


def checked(agent: str, decisions: int = 100, **groups: Any) -> None:
    pool = ["label", "response", "hidden/skip"]
    config = config_from_dict({"agent": agent, "knowledge": {"pool": pool}, **groups})
    stages = [np.array([True, False, False]), np.array([False, True, True])]
    check_agent(config, pool, decisions, stages)


def test_agents_that_can_work_pass_the_check() -> None:
    for agent in AGENTS:
        if agent not in ("bandit", "round_robin"):
            checked(agent)
    everything = [np.ones(2, dtype=bool)] * 2
    for agent in ("bandit", "round_robin"):
        check_agent(config_from_dict({"agent": agent}), ["label", "response"], 9, everything)
    checked("static", static={"mask": ["none"]})
    checked("static", static={"mask": ["label", "response"]})


@pytest.mark.parametrize(
    ("agent", "decisions", "groups", "words"),
    [
        ("a2c", 1, {}, "--agent a2c cannot learn from 1 decision"),
        ("bandit", 1, {}, "--agent bandit cannot learn from 1 decision"),
        ("bandit", 9, {}, "--agent bandit selects one type at a time"),
        ("round_robin", 9, {}, "--agent round_robin selects one type at a time"),
        ("ddpg", 8, {}, "--ddpg.learning_starts 8 is not below the search's 8 decision"),
        ("static", 9, {"static": {"mask": ["labl"]}}, "--static.mask: unknown knowledge type"),
        (
            "static",
            9,
            {"static": {"mask": ["response"]}},
            "--static.mask: nothing of it can be selected in stage 1",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_teacher_is_trained(
    agent: str, decisions: int, groups: dict, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        checked(agent, decisions, **groups)
    assert words in str(caught.value)
