"""A search over several students at once: what agents learn from, and what is written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from agents.make import make_agent
from agents.rollout import SEARCH_SEED, search
from agents.stable_baselines import FlatObservations, SB3Agent, check_students
from envs.distillation import DistillationEnv
from envs.recording import Recorder
from envs.recording_vector import VectorRecorder, means
from envs.vector_sb3 import DistillationVecEnv
from ksel.errors import UsageError
from ksel.settings import config_from_dict
from ksel.setup import Setup
from ksel.trajectory import ScheduleWriter, read_schedule


def make_recorder(
    setup: Setup, students: int, soft: bool = False, **options: Any
) -> VectorRecorder:
    venv = DistillationVecEnv(setup, students, "vmap", soft=soft)
    seat = venv.engine.seats[0]
    meta = {"soft": soft, "task": "rte", "agent": "a2c", "seed": 0}
    writer = ScheduleWriter(seat.pool_names, seat.feature_names, meta)
    return VectorRecorder(venv, "search", writer, **options)


def make_sb3(setup: Setup, soft: bool = False) -> SB3Agent:
    env = DistillationEnv(setup=setup, soft=soft)
    agent = make_agent(setup.config, env.pool_names, spaces.Dict(env.spaces), env.action_space)
    assert isinstance(agent, SB3Agent)
    return agent


@pytest.mark.parametrize(
    ("name", "group", "soft"),
    [
        ("a2c", {"n_steps": 2}, False),
        ("a2c", {"n_steps": 4, "observation": "flat"}, True),
        ("ppo", {"n_steps": 3, "batch_size": 4, "n_epochs": 2}, False),
    ],
)
def test_an_agent_learns_from_all_students_and_each_life_is_written_down(
    tiny_setup: Callable[..., Setup], tmp_path: Path, name: str, group: dict[str, Any], soft: bool
) -> None:
    setup = tiny_setup(agent=name, optim={"max_updates": 5}, **{name: group})
    shown: list[tuple[int, float, dict[str, Any]]] = []
    recorder = make_recorder(setup, 3, soft, on_decision=lambda *given: shown.append(given))
    agent = make_sb3(setup, soft)
    played = search(agent, recorder, 2, 5, seed=0, logger_folder=None)
    assert played.decisions == 3 * 10
    assert played.updates == 3 * 10
    assert len(played.rewards) == 6
    assert agent.model is not None
    assert agent.model.n_envs == 3
    assert agent.model.num_timesteps == 30

    path = tmp_path / "schedule.parquet"
    recorder.writer.write(path)
    schedule = read_schedule(path)
    assert schedule.stages() == [("search", n) for n in range(6)]
    for episode in range(6):
        rows = schedule.stage("search", episode)
        assert rows["decision"].tolist() == [0, 1, 2, 3, 4]
        assert rows["update"].tolist() == [0, 1, 2, 3, 4]
        assert rows["terminated"].tolist() == [False] * 4 + [True]
        assert rows["reward"].sum() == pytest.approx(played.rewards[episode], rel=1e-5)
        assert np.isfinite(rows["log_prob"]).all()
        # the observation before a decision: the share of the budget spent
        progress = schedule.vectors("observation", "search", episode)[:, 0]
        np.testing.assert_allclose(progress, np.arange(5) / 5, rtol=1e-6)
    first = [schedule.vectors("probabilities", "search", n)[0] for n in range(3)]
    assert all(np.isfinite(row).all() for row in first)
    actions = [schedule.actions("search", n) for n in range(3)]
    assert not np.array_equal(actions[0], actions[1])
    assert [update for update, _, _ in shown] == [1, 2, 3, 4, 5] * 2
    rows = schedule.frame["reward"].to_numpy().reshape(10, 3)
    np.testing.assert_allclose([reward for _, reward, _ in shown], rows.mean(1), rtol=1e-5)


def test_probabilities_belong_to_the_student_they_are_written_to(
    tiny_setup: Callable[..., Setup],
) -> None:
    setup = tiny_setup(a2c={"n_steps": 5, "learning_rate": 1e-9}, optim={"max_updates": 5})
    recorder = make_recorder(setup, 3)
    agent = make_sb3(setup)
    search(agent, recorder, 1, 5, seed=0, logger_folder=None)
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    for row in recorder.writer.rows("search"):
        choice = policy.act({"training": row.observation})
        np.testing.assert_allclose(row.probabilities, choice.probabilities, rtol=1e-5)
        p = np.clip(row.probabilities.astype(np.float64), 1e-9, 1 - 1e-9)
        expected = np.log(np.where(row.action > 0.5, p, 1 - p)).sum()
        assert row.log_prob == pytest.approx(expected, abs=1e-3)


def test_a_search_of_one_student_is_that_of_the_plain_environment(
    tiny_setup: Callable[..., Setup],
) -> None:
    setup = tiny_setup(a2c={"n_steps": 2}, optim={"max_updates": 4})
    recorder = make_recorder(setup, 1)
    recorder.venv.engine.students.mode = "loop"
    recorder.venv.engine.students._step = None
    search(make_sb3(setup), recorder, 2, 4, seed=0, logger_folder=None)
    plain = Recorder(DistillationEnv(setup=setup), "search", make_recorder(setup, 1).writer)
    search(make_sb3(setup), plain, 2, 4, seed=0, logger_folder=None)
    for one, other in zip(recorder.writer.rows("search"), plain.writer.rows("search"), strict=True):
        assert (one.episode, one.decision, one.update) == (
            other.episode,
            other.decision,
            other.update,
        )
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.observation, other.observation)
        assert one.reward == pytest.approx(other.reward, rel=1e-6)  # vectors of rewards are float32


def test_one_that_diverges_has_a_life_of_its_own_after(tiny_setup: Callable[..., Setup]) -> None:
    recorder = make_recorder(tiny_setup(optim={"max_updates": 4}), 2)
    recorder.venv.seed(SEARCH_SEED)
    recorder.reset()
    actions = np.ones((2, 5), np.float32)
    recorder.step(actions)
    recorder.venv.engine.students.weights[0][1] = math.inf
    _, _, dones, infos = recorder.step(actions)
    assert dones.tolist() == [False, True]
    assert "reason" in infos[1]
    for _ in range(2):
        recorder.step(actions)
    recorder.step(actions)
    rows = recorder.writer.rows("search")
    lives = {}
    for row in rows:
        lives.setdefault(row.episode, []).append((row.decision, row.update, row.terminated))
    assert lives == {
        0: [(0, 0, False), (1, 1, False), (2, 2, False), (3, 3, True)],
        1: [(0, 0, False), (1, 1, True)],
        2: [(0, 2, False), (1, 3, True)],
        3: [(0, 0, False)],
        4: [(0, 0, False)],
    }
    assert len(recorder.rewards) == 5
    assert recorder.rewards[1] == pytest.approx(rows[1].reward - 1.0)


def test_flat_observations_are_those_of_gymnasium(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup(env={"observe": ["training", "student_cls"]}, optim={"max_updates": 1})
    venv = DistillationVecEnv(setup, 2)
    flat = FlatObservations(venv)
    venv.seed(1)
    observations = flat.reset()
    venv.seed(1)
    parts = venv.reset()
    size = spaces.utils.flatdim(venv.observation_space)
    assert flat.observation_space.shape == (size,)
    assert observations.shape == (2, size)
    for n in range(2):
        one = {name: part[n] for name, part in parts.items()}
        np.testing.assert_array_equal(
            observations[n], spaces.utils.flatten(venv.observation_space, one)
        )
    observations, _, dones, infos = flat.step(np.ones((2, 5)))
    assert dones.all()
    assert observations.shape == (2, size)
    assert infos[1]["terminal_observation"].shape == (size,)


def test_curves_are_means_over_those_that_have_the_number() -> None:
    assert means([{"a": 1.0, "b": 2}, {"a": 3.0, "why": "x", "c": False}]) == {"a": 2.0, "b": 2.0}


def test_who_can_learn_from_several(tiny_settings: Callable[..., dict]) -> None:
    check_students(config_from_dict(tiny_settings(agent="ppo", students=2, vectorize="vmap")))
    check_students(config_from_dict(tiny_settings(agent="bandit")))
    with pytest.raises(UsageError, match=r"--students 2: --agent bandit .* a2c or ppo"):
        check_students(config_from_dict(tiny_settings(agent="bandit", students=2)))
    with pytest.raises(UsageError, match=r"--vectorize loop .*--students is 1"):
        check_students(config_from_dict(tiny_settings(vectorize="loop")))


def test_rewards_of_credit_are_refused(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup()
    setup.config.env.reward = "amortized"
    with pytest.raises(UsageError, match=r"--env\.reward amortized"):
        DistillationVecEnv(setup, 2)
