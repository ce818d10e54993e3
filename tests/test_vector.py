"""N students as one environment: what each sees and is paid is what it would see and be paid alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor

from agents.frozen import policy_arguments, policy_class
from envs import ENV_ID
from envs.distillation import DistillationEnv
from envs.vector import VectorDistillationEnv
from envs.vector_sb3 import DistillationVecEnv
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.setup import Setup

STAGES = [
    {"pool": ["label", "response"], "share": 0.5},
    {"pool": ["hidden/skip", "cls_hidden/skip", "value_relation/last_1"], "share": 0.5},
]


def random_actions(env: Any, steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (steps, env.num_envs, len(env.engine.setup.pool))
    actions = rng.random(shape) if env.engine.seats[0].soft else rng.integers(0, 2, shape)
    actions[:, 1] = 0
    return actions.astype(np.float32)


def alone(
    setup: Setup, actions: np.ndarray, *, seed: int, soft: bool = False, **options: Any
) -> list[tuple[Any, ...]]:
    """One student by itself: the reset, then each step; a new episode where one ends."""
    env = DistillationEnv(setup=setup, soft=soft)
    seen: list[tuple[Any, ...]] = [env.reset(seed=seed, options=options)]
    for action in actions:
        observation, reward, terminated, _, info = env.step(action)
        seen.append((observation, reward, terminated, info))
        if terminated:
            seen.append(env.reset(options=options))
    return seen


def same(found: Any, expected: Any, rtol: float) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value, rtol)
    elif isinstance(expected, str):
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-6 if rtol else 0)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"phase_steps": 2, "observe": ["training", "student_cls", "teacher_cls"]}},
        {
            "env": {
                "actions": "soft",
                "exploration": 0.1,
                "cost_per_type": 0.05,
                "final_metric": 1.0,
                "reward_scale": "none",
            },
            "stages": STAGES,
        },
    ],
    ids=["hard", "soft"],
)
def test_each_student_sees_and_earns_what_it_would_alone(
    tiny_setup: Callable[..., Setup], mode: Any, changes: dict[str, Any]
) -> None:
    setup = tiny_setup(**changes)
    if mode == "vmap":  # in float32 the trends of losses near 0 are those of their rounding
        setup.student.double()
        setup.pool.projections.double()
        setup.distiller = Distiller(setup.distiller.parts)
    env = VectorDistillationEnv(3, setup=setup, vectorize=mode)
    soft = env.engine.seats[0].soft
    steps = env.engine.seats[0].decisions() + 2  # into a second episode
    actions = random_actions(env, steps)
    expected = [alone(setup, actions[:, n], seed=5, soft=soft) for n in range(3)]
    first = env.engine.reset(seed=5)
    found: list[list[tuple[Any, ...]]] = [[(first[0][n], first[1][n])] for n in range(3)]
    for action in actions:
        stepped = env.engine.step(action)
        ended = np.array([terminated for _, _, terminated, _ in stepped])
        begun = env.engine.go_on(ended) if ended.any() else {}
        for n in range(3):
            found[n].append(stepped[n])
            if n in begun:
                found[n].append(begun[n])
    rtol = 0.0 if mode == "loop" else 1e-3
    for n in range(3):
        assert len(found[n]) == len(expected[n])
        for one, other in zip(found[n], expected[n], strict=True):
            for a, b in zip(one, other, strict=True):
                same(a, b, rtol)


@pytest.mark.parametrize("options", [{"measure": False}, {"measure": False, "observe": True}])
def test_options_reach_each_student(
    tiny_setup: Callable[..., Setup], options: dict[str, Any]
) -> None:
    setup = tiny_setup()
    env = VectorDistillationEnv(2, setup=setup, vectorize="vmap")
    given = {**options, "updates": 3, "plain": True}
    actions = random_actions(env, 4)
    expected = alone(setup, actions[:, 0], seed=1, **given)
    observations, infos = env.reset(seed=1, options=given)
    assert "objective" not in infos
    same({k: v[0] for k, v in observations.items()}, expected[0][0], 1e-3)
    for number, action in enumerate(actions[:3]):
        observations, rewards, ended, truncated, infos = env.step(action)
        assert rewards.tolist() == [0.0, 0.0]
        assert ended.tolist() == [number == 2] * 2
        assert not truncated.any()
    # the episode that followed by itself has kept them
    env.step(actions[3])
    assert env.engine.students.updates == 3
    assert env.engine.core.plain
    with pytest.raises(UsageError, match="unknown options"):
        env.reset(options={"budget": 3})


# --------------------------------------------------------------------------- Gymnasium


def test_the_gymnasium_face_keeps_its_rules(tiny_settings: Callable[..., dict]) -> None:
    env = gym.make_vec(
        ENV_ID,
        num_envs=3,
        vectorization_mode="vector_entry_point",
        config=tiny_settings(env={"observe": ["training", "student_cls"]}),
        vectorize="vmap",
    )
    assert isinstance(env, VectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.num_envs == 3
    assert env.action_space.shape == (3, 5)
    assert env.observation_space["student_cls"].shape == (3, 16)
    env.action_space.seed(0)
    lengths = []
    for _ in range(2):
        observations, _ = env.reset(seed=7)
        assert observations in env.observation_space
        trace = [observations["training"]]
        for step in range(8):  # an episode has 6 decisions
            given = np.random.default_rng(step).integers(0, 2, (3, 5)).astype(np.int8)
            assert given in env.action_space
            observations, rewards, ended, truncated, infos = env.step(given)
            assert observations in env.observation_space
            assert rewards.shape == ended.shape == truncated.shape == (3,)
            assert (rewards.dtype, ended.dtype, truncated.dtype) == (np.float64, bool, bool)
            assert infos["update"].shape == infos["_update"].shape == (3,)
            assert ended.tolist() == [step == 5] * 3
            assert ("final_obs" in infos) == (step == 5)
            if step == 5:
                assert infos["final_obs"][0] in env.single_observation_space
                assert infos["final_info"]["update"].tolist() == [6, 6, 6]
                assert infos["update"].tolist() == [0, 0, 0]
                assert infos["final_obs"][0]["training"][0] == 1.0
                assert observations["training"][0, 0] == 0.0
            trace += [observations["training"], rewards]
        lengths.append(trace)
    for one, other in zip(*lengths, strict=True):
        np.testing.assert_array_equal(one, other)
    env.close()


def test_gymnasium_wrappers_count_its_episodes(tiny_setup: Callable[..., Setup]) -> None:
    plain = VectorDistillationEnv(2, setup=tiny_setup(optim={"max_updates": 2}))
    env = gym.wrappers.vector.RecordEpisodeStatistics(plain)
    env.reset(seed=0)
    total = np.zeros(2)
    for _ in range(2):
        _, rewards, _, _, infos = env.step(np.ones((2, 5), np.int8))
        total += rewards
    np.testing.assert_allclose(infos["episode"]["r"], total)
    assert infos["episode"]["l"].tolist() == [2, 2]


def test_one_seed_serves_all(tiny_setup: Callable[..., Setup]) -> None:
    env = VectorDistillationEnv(2, setup=tiny_setup())
    one, _ = env.reset(seed=4)
    other, _ = env.reset(seed=[4, 4])
    np.testing.assert_array_equal(one["training"], other["training"])
    with pytest.raises(UsageError, match="one seed"):
        env.reset(seed=[4, 5])


# --------------------------------------------------------------------------- copies


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_snapshot_of_all_repeats_to_the_bit(tiny_setup: Callable[..., Setup], mode: Any) -> None:
    env = VectorDistillationEnv(3, setup=tiny_setup(), vectorize=mode)
    actions = random_actions(env, 6)
    env.reset(seed=2)
    for action in actions[:2]:
        env.step(action)
    state = env.get_snapshot()
    ends = []
    for _ in range(2):
        env.set_snapshot(state)
        for action in actions[2:]:
            observations, rewards, ended, _, _ = env.step(action)
        assert ended.all()
        ends.append((observations["training"], rewards))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    np.testing.assert_array_equal(ends[0][1], ends[1][1])


def test_forked_students_and_their_episodes_are_alike(tiny_setup: Callable[..., Setup]) -> None:
    env = VectorDistillationEnv(3, setup=tiny_setup(), vectorize="vmap")
    actions = random_actions(env, 4)
    env.reset(seed=2)
    for action in actions[:2]:
        before, _, _, _, _ = env.step(action)
    observations = env.copy_best([2, 2, 0])
    np.testing.assert_array_equal(observations["training"], before["training"][[2, 2, 0]])
    observations = env.fork(1)  # which is a copy of 2
    np.testing.assert_array_equal(observations["training"], before["training"][[2, 2, 2]])
    observations, rewards, _, _, _ = env.step(np.tile(actions[2, :1], (3, 1)))
    assert len(set(rewards.tolist())) == 1
    _, rewards, _, _, _ = env.step(actions[3])
    assert len(set(rewards.tolist())) == 3


# --------------------------------------------------------------------------- divergence


@pytest.mark.parametrize(("mode", "ill"), [("loop", 0), ("vmap", 0), ("vmap", 1)])
def test_one_that_diverges_begins_anew_by_itself(
    tiny_setup: Callable[..., Setup], mode: Any, ill: int
) -> None:
    setup = tiny_setup(env={"phase_steps": 2})
    env = VectorDistillationEnv(3, setup=setup, vectorize=mode)
    actions = np.ones((3, 3, 5), np.float32)
    healthy = alone(setup, actions[:, 0], seed=5)
    env.reset(seed=5)
    env.step(actions[0])
    env.engine.students.weights[0][ill] = math.inf
    _, rewards, ended, _, infos = env.step(actions[1])
    assert ended.tolist() == [n == ill for n in range(3)]
    assert rewards[ill] == -1.0
    assert "the loss of label is nan" in infos["final_info"]["reason"][ill]
    assert infos["final_info"]["update"].tolist()[ill] == 2
    assert infos["objective"][ill] == pytest.approx(healthy[0][1]["objective"], rel=1e-4)
    assert env.engine.students.reasons == [None, None, None]
    observations, rewards, ended, _, infos = env.step(actions[2])
    assert ended.all()  # the budget of all is spent
    for n in {0, 1, 2} - {ill}:
        same(rewards[n], healthy[3][1], 0.0 if mode == "loop" else 2e-2)
    # and the next episode of all has the batches it would have had
    rtol = 0.0 if mode == "loop" else 1e-3
    same({k: v[ill] for k, v in observations.items()}, healthy[4][0], rtol)


# --------------------------------------------------------------------------- bad input


def test_what_cannot_be_is_refused(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup()
    with pytest.raises(UsageError, match="--students 0"):
        VectorDistillationEnv(0, setup=setup)
    with pytest.raises(UsageError, match="config or setup"):
        VectorDistillationEnv(2, config={}, setup=setup)
    env = VectorDistillationEnv(2, setup=setup)
    with pytest.raises(gym.error.ResetNeeded, match="no episode has begun"):
        env.step(np.ones((2, 5)))
    env.reset(seed=0)
    with pytest.raises(UsageError, match="2 students, and was given 3"):
        env.step(np.ones((3, 5)))
    with pytest.raises(UsageError, match="5 finite numbers"):
        env.step(np.ones((2, 4)))
    DistillationEnv(setup=setup).reset(seed=0)
    with pytest.raises(gym.error.ResetNeeded, match="another environment"):
        env.step(np.ones((2, 5)))
    setup.config.env.reward = "amortized"
    with pytest.raises(UsageError, match=r"--env.reward amortized.*--students 2"):
        VectorDistillationEnv(2, setup=setup)
    setup.config.env.reward = "measured"
    setup.config.env.objective = "probe"
    with pytest.raises(UsageError, match=r"--env.objective probe.*--students 2"):
        VectorDistillationEnv(2, setup=setup)
    setup.config.env.objective = "cross_entropy"
    setup.config.search = "branch"
    with pytest.raises(UsageError, match=r"--search branch.*--students 2"):
        VectorDistillationEnv(2, setup=setup)


# --------------------------------------------------------------------------- Stable-Baselines3


@pytest.mark.parametrize("algorithm", [A2C, PPO])
@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_stable_baselines_learns_on_it(
    tiny_setup: Callable[..., Setup], algorithm: Any, mode: Any
) -> None:
    setup = tiny_setup(optim={"max_updates": 4})
    env = VecMonitor(VecCheckNan(DistillationVecEnv(setup, 3, mode), raise_exception=True))
    steps = {"n_steps": 4} | ({"batch_size": 6, "n_epochs": 1} if algorithm is PPO else {})
    shape = policy_arguments(flat=False, net_arch=[8])
    model = algorithm(
        policy_class(flat=False), env, seed=0, device="cpu", policy_kwargs=shape, **steps
    )
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(24)
    assert model.n_envs == 3
    assert model.num_timesteps == 24  # 8 of each student
    assert any(not torch.equal(v, before[k]) for k, v in model.policy.state_dict().items())
    assert len(model.ep_info_buffer) == 6
    assert {episode["l"] for episode in model.ep_info_buffer} == {4}


def test_the_stable_baselines_face_keeps_its_rules(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup(optim={"max_updates": 2})
    env = DistillationVecEnv(setup, 3)
    gymnasium = VectorDistillationEnv(3, setup=setup)
    actions = random_actions(gymnasium, 3)
    expected, _ = gymnasium.reset(seed=9)
    trace = [gymnasium.step(action) for action in actions]
    assert env.seed(9) == [9, 10, 11]
    observations = env.reset()
    same(observations, expected, 0.0)
    assert env.reset_infos[2]["objective"] > 0
    for number, action in enumerate(actions):
        observations, rewards, dones, infos = env.step(action)
        same(observations, trace[number][0], 0.0)
        np.testing.assert_array_equal(rewards, trace[number][1].astype(np.float32))
        assert dones.tolist() == [number == 1] * 3
        assert all(info["TimeLimit.truncated"] is False for info in infos)
        assert ["terminal_observation" in info for info in infos] == dones.tolist()
    same(
        {"training": infos[0].get("terminal_observation", observations["training"][0])},
        {"training": observations["training"][0]},
        0.0,
    )
    assert env.get_attr("number") == [0, 1, 2]
    assert env.get_attr("number", indices=1) == [1]
    env.set_attr("label", "x", indices=[2])
    assert env.get_attr("label", indices=[2]) == ["x"]
    assert env.env_method("decisions") == [2, 2, 2]
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    with pytest.raises(UsageError, match="step of one student"):
        env.env_method("step", np.ones(5))
    env.set_options([{"updates": 2}, {"updates": 3}, {}])
    with pytest.raises(UsageError, match="one budget"):
        env.reset()
    env.set_options({"updates": 1})
    env.reset()
    assert env.step(actions[0])[2].all()
    env.close()
