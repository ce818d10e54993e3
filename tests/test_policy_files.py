from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from best_mask_env import FEATURES, POOL, BestMaskEnv

from agents.make import AGENTS, make_agent
from agents.policy import load_policy
from ksel.config import RunConfig
from ksel.errors import UsageError

SHAPES = {"training": (FEATURES,), "student_cls": (4,)}


def policy_of(
    agent: str,
    soft: bool,
    observation: str | None = None,
    final: str = "sample",
    cls: int = 4,
    **settings,
):
    config = RunConfig(agent=agent)
    if observation is not None:
        settings["observation"] = observation
    for name, value in settings.items():
        setattr(getattr(config, agent), name, value)
    config.episodes.final = final
    env = BestMaskEnv(soft=soft, cls=cls)
    made = make_agent(config, env.pool_names, env.observation_space, env.action_space)
    if AGENTS[agent].learns:
        made.learn(env, 60, seed=0)
        return made.frozen()
    return made


def choices(policy, parts: tuple[str, ...] = ("training", "student_cls")) -> list[tuple]:
    rngs = {name: np.random.default_rng(7 + i) for i, name in enumerate(SHAPES)}
    policy.reset(np.random.default_rng(1))
    out = []
    for _ in range(12):
        observation = {
            name: rngs[name].uniform(-1, 1, SHAPES[name]).astype(np.float32) for name in parts
        }
        choice = policy.act(observation)
        out.append((choice.action.tolist(), choice.probabilities.tolist(), choice.log_prob))
    return out


@pytest.mark.parametrize("final", ["sample", "mode"])
@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("agent", ["a2c", "ppo"])
def test_learned_policy_comes_back_the_same(agent, soft, observation, final, tmp_path):
    policy = policy_of(agent, soft, observation, final)
    policy.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.json", "policy.safetensors"}
    loaded = load_policy(tmp_path, pool=POOL, observation=SHAPES)
    assert choices(loaded) == choices(policy)
    assert (loaded.name, loaded.soft, loaded.learns, loaded.pool) == (agent, soft, True, POOL)


@pytest.mark.parametrize(
    ("soft", "settings"),
    [
        (False, {"threshold": 0.45, "at_least_one": False}),
        (False, {"encoder": 0}),
        (True, {}),
        (True, {"encoder": 5, "net_arch": [8]}),
    ],
)
def test_deterministic_policy_comes_back_the_same(soft, settings, tmp_path):
    policy = policy_of("ddpg", soft, **settings)
    policy.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.json", "policy.safetensors"}
    loaded = load_policy(tmp_path, pool=POOL, observation=SHAPES)
    assert choices(loaded) == choices(policy)
    assert loaded.cut == policy.cut
    assert (loaded.name, loaded.soft, loaded.learns, loaded.pool) == ("ddpg", soft, True, POOL)


@pytest.mark.parametrize(
    ("algorithm", "final"), [("exp3s", "sample"), ("exp3s", "mode"), ("linucb", "sample")]
)
def test_bandit_comes_back_the_same(algorithm, final, tmp_path):
    policy = policy_of("bandit", False, final=final, algorithm=algorithm)
    policy.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.json", "policy.safetensors"}
    loaded = load_policy(tmp_path, pool=POOL, observation=SHAPES)
    assert choices(loaded) == choices(policy)
    if algorithm == "exp3s":  # blind, so it serves any observation
        load_policy(tmp_path, pool=POOL, observation={})
    else:
        with pytest.raises(UsageError, match="'training' is not observed"):
            load_policy(tmp_path, pool=POOL, observation={"student_cls": (4,)})
    assert (loaded.name, loaded.soft, loaded.learns, loaded.pool) == ("bandit", False, True, POOL)


@pytest.mark.parametrize(
    ("agent", "soft"),
    [
        (name, kind == "soft")
        for name, info in AGENTS.items()
        if not info.learns
        for kind in info.actions
    ],
)
def test_fixed_policy_comes_back_the_same(agent, soft, tmp_path):
    policy = policy_of(agent, soft)
    policy.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
    loaded = load_policy(tmp_path, pool=POOL, observation={"training": (FEATURES,)})
    assert choices(loaded) == choices(policy)
    assert (loaded.name, loaded.soft, loaded.learns, loaded.pool) == (agent, soft, False, POOL)


@pytest.mark.parametrize("agent", ["a2c", "ddpg"])
def test_loading_leaves_torchs_generator_alone(agent, tmp_path):
    policy_of(agent, False).save(tmp_path)
    before = torch.get_rng_state()
    load_policy(tmp_path, pool=POOL, observation=SHAPES)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_alone_serves_a_run_that_shows_more(tmp_path):
    policy = policy_of("a2c", False, cls=0)
    policy.save(tmp_path)
    other_student = {"training": (FEATURES,), "student_cls": (999,)}
    loaded = load_policy(tmp_path, pool=POOL, observation=other_student)
    assert choices(loaded) == choices(policy, ("training",))


def test_saving_again_replaces_the_policy(tmp_path):
    policy_of("a2c", False).save(tmp_path)
    second = policy_of("ppo", True)
    second.save(tmp_path)
    assert choices(load_policy(tmp_path, pool=POOL, observation=SHAPES)) == choices(second)


def test_other_pool_is_refused_by_name(tmp_path):
    policy_of("a2c", False).save(tmp_path)
    other = [*POOL[:-1], "fsp"]
    with pytest.raises(UsageError, match=r"--knowledge\.pool.*value_relation/last_1.*has fsp"):
        load_policy(tmp_path, pool=other, observation=SHAPES)
    with pytest.raises(UsageError, match="another order"):
        load_policy(tmp_path, pool=POOL[::-1], observation=SHAPES)


def test_other_observation_is_refused_by_name(tmp_path):
    policy_of("a2c", False).save(tmp_path)
    with pytest.raises(UsageError, match=r"--env\.observe.*'student_cls' is not observed"):
        load_policy(tmp_path, pool=POOL, observation={"training": (FEATURES,)})
    with pytest.raises(
        UsageError, match=r"'student_cls' has shape \(8,\), the policy needs \(4,\)"
    ):
        load_policy(tmp_path, pool=POOL, observation=SHAPES | {"student_cls": (8,)})


def load(folder):
    return load_policy(folder, pool=POOL, observation=SHAPES)


def test_missing_policy_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"policy\.json is missing"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("agent", ["a2c", "ddpg", "bandit"])
def test_missing_weights_are_refused(agent, tmp_path):
    policy_of(agent, False).save(tmp_path)
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(UsageError, match=r"policy\.safetensors is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("agent", ["a2c", "ddpg", "bandit"])
@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_truncated_file_is_refused(name, agent, tmp_path):
    policy_of(agent, False).save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        load(tmp_path)


def test_weights_of_another_policy_are_refused(tmp_path):
    policy_of("a2c", False).save(tmp_path / "one")
    policy_of("ppo", False).save(tmp_path / "two")
    (tmp_path / "two" / "policy.safetensors").replace(tmp_path / "one" / "policy.safetensors")
    with pytest.raises(UsageError, match="checksum"):
        load(tmp_path / "one")


def test_unreadable_text_is_refused(tmp_path):
    (tmp_path / "policy.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="damaged"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "{}"])
def test_other_json_is_refused(text, tmp_path):
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(UsageError, match="does not describe a policy"):
        load(tmp_path)


def test_unknown_format_is_refused(tmp_path):
    policy_of("static", False).save(tmp_path)
    edit(tmp_path, format=99)
    with pytest.raises(UsageError, match="format 99 is unknown"):
        load(tmp_path)


def edit(folder, **values) -> None:
    header = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(header | values))


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "magic"},
        {"agent": "a2c"},
        {"agent": 3},
        {"soft": True, "agent": "round_robin"},
        {"settings": {}},
        {"settings": {"mask": ["nothing_known"]}},
        {"settings": {"mask": 5}},
        {"pool": None},
        {"observation": 7},
        {"observation": [["training", [-1]]]},
    ],
)
def test_impossible_rule_is_refused(values, tmp_path):
    policy_of("static", False).save(tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(UsageError, match=r"policy\.json is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"agent": "static"},
        {"features": "round"},
        {"final": "best"},
        {"net_arch": [3, 3]},
        {"net_arch": None},
        {"soft": True},
        {"observation": [["training", [FEATURES]]]},
    ],
)
def test_header_that_does_not_fit_the_weights_is_refused(values, tmp_path):
    policy_of("a2c", False).save(tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(UsageError, match=r"policy\.json is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("agent", "values"),
    [
        ("ddpg", {"agent": "a2c"}),
        ("ddpg", {"soft": True}),
        ("ddpg", {"cut": None}),
        ("ddpg", {"cut": [0.5]}),
        ("ddpg", {"cut": "half"}),
        ("ddpg", {"encoder": 0}),
        ("ddpg", {"encoder": None}),
        ("ddpg", {"net_arch": [3, 3]}),
        ("ddpg", {"observation": [["training", [FEATURES]]]}),
        ("bandit", {"agent": "ddpg"}),
        ("bandit", {"soft": True}),
        ("bandit", {"algorithm": "ucb1"}),
        ("bandit", {"final": "best"}),
        ("bandit", {"algorithm": "exp3s"}),
        ("bandit", {"observation": [["training", [FEATURES]]]}),
    ],
)
def test_header_that_does_not_fit_the_values_is_refused(agent, values, tmp_path):
    settings = {"algorithm": "linucb"} if agent == "bandit" else {}
    policy_of(agent, False, **settings).save(tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(UsageError, match=r"policy\.json is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5, 0.0, 0.0], [1.2, -0.2, 0.0, 0.0, 0.0]])
def test_probabilities_that_are_none_are_refused(values, tmp_path):
    policy = policy_of("bandit", False)
    policy.values = np.array(values)
    policy.save(tmp_path)
    with pytest.raises(UsageError, match=r"policy\.json is damaged.*probabilities"):
        load(tmp_path)
