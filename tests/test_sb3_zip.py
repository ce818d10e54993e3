"""Zips of Stable-Baselines3 from elsewhere: refused without trust, never unpickled with it."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from job import run_job, small
from stable_baselines3 import A2C, DDPG, PPO

import ksel.replay
from agents.frozen import policy_arguments
from agents.sb3_zip import open_policy
from agents.stable_baselines import SB3Agent
from envs.distillation import DistillationEnv
from ksel.cli import guard
from ksel.errors import UsageError
from ksel.trajectory import read_schedule


@pytest.fixture
def env(tiny_setup: Callable[..., Any]) -> DistillationEnv:
    return DistillationEnv(setup=tiny_setup(env={"observe": ["training", "student_cls"]}))


def opened(path: Path, env: DistillationEnv, trusted: bool = True, **changes: Any) -> Any:
    shapes = {name: tuple(space.shape or ()) for name, space in env.spaces.items()}
    return open_policy(
        path, **{"pool": env.pool_names, "observation": shapes, "trusted": trusted, **changes}
    )


def saved(model: Any, folder: Path) -> Path:
    model.save(folder / "model.zip")
    return folder / "model.zip"


@pytest.mark.parametrize("way", ["flat", "dict"])
@pytest.mark.parametrize("agent", ["a2c", "ppo"])
def test_a_trusted_zip_is_the_policy_that_was_saved(
    env: DistillationEnv, tmp_path: Path, agent: str, way: str
):
    config = env.setup.config
    config.agent = agent
    settings = getattr(config, agent)
    settings.n_steps, settings.net_arch, settings.observation = 3, [7, 5], way
    learner = SB3Agent(config, env.pool_names, env.observation_space, env.action_space)
    learner.learn(env, 6, seed=0)
    learner.save_sb3_zip(tmp_path / "model.zip")
    own, found = learner.frozen(), opened(tmp_path / "model.zip", env)
    assert (found.name, found.soft, found.pool) == (agent, False, own.pool)
    observation, _ = env.reset(seed=1)
    for policy in (own, found):
        policy.reset(np.random.default_rng(0))
    for _ in range(4):
        mine, theirs = own.act(observation), found.act(observation)
        assert np.array_equal(mine.action, theirs.action)
        assert np.array_equal(mine.probabilities, theirs.probabilities)
        observation = env.step(mine.action)[0]


def test_without_trust_it_is_refused_and_the_risk_is_said(env: DistillationEnv, tmp_path: Path):
    path = saved(A2C("MlpPolicy", gym.wrappers.FlattenObservation(env)), tmp_path)
    with pytest.raises(UsageError, match=r"can hold code that runs.*Add --trust_zip"):
        opened(path, env, trusted=False)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("part", ["policy.pth", "pytorch_variables.pth"])
def test_code_in_a_trusted_zip_does_not_run(env: DistillationEnv, tmp_path: Path, part: str):
    path = saved(A2C("MlpPolicy", gym.wrappers.FlattenObservation(env)), tmp_path)
    trap = io.BytesIO()
    torch.save({"x": Trap(tmp_path / "sprung")}, trap)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, trap.getvalue() if name == part else content)
    if part == "policy.pth":
        with pytest.raises(UsageError, match="cannot be read"):
            opened(path, env)
    else:
        opened(path, env)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # the trap works
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda env: A2C(
                "MlpPolicy",
                gym.wrappers.FlattenObservation(env),
                policy_kwargs={"activation_fn": torch.nn.ReLU},
            ),
            "activation_fn",
        ),
        (
            lambda env: DDPG(
                "MultiInputPolicy",
                Soft(env),
                policy_kwargs=policy_arguments(False, [4]),
                buffer_size=10,
            ),
            "no actor-critic",
        ),
        (lambda env: PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8), "2 actions"),
    ],
    ids=["activation", "ddpg", "another environment"],
)
def test_what_does_not_fit_is_refused(
    env: DistillationEnv, tmp_path: Path, make: Callable[[Any], Any], said: str
):
    with pytest.raises(UsageError, match=said):
        opened(saved(make(env), tmp_path), env)


class Soft(gym.ActionWrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = gym.spaces.Box(0.0, 1.0, (5,), np.float32)


def test_another_observation_or_no_zip_is_refused(env: DistillationEnv, tmp_path: Path):
    path = saved(A2C("MlpPolicy", gym.wrappers.FlattenObservation(env)), tmp_path)
    with pytest.raises(UsageError, match="numbers and the run shows"):
        opened(path, env, observation={"training": (31,)})
    (tmp_path / "no.zip").write_text("PK no")
    with pytest.raises(UsageError, match="cannot be read"):
        opened(tmp_path / "no.zip", env)


# --------------------------------------------------------------------------- ksel.replay --policy


@pytest.fixture
def run(tmp_path: Path, tiny_settings: Callable[..., Any]) -> Path:
    values = small(tiny_settings(), {"agent": "a2c", "references": []})
    return run_job(tmp_path, values).folder


def replayed(run: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = guard(ksel.replay.main, [str(run), *words])
    return code, capsys.readouterr().err


def test_a_replay_takes_a_zip_on_trust(run: Path, capsys: pytest.CaptureFixture[str]):
    policy = ["--mode", "policy"]
    zip_file = str(run / "policy" / "stable_baselines3.zip")
    for words in (policy, [*policy, "--policy", zip_file, "--trust_zip"]):
        code, error = replayed(run, *words, "--out", str(run / f"{len(words)}"), capsys=capsys)
        assert code == 0, error
    own, trusted = (
        read_schedule(next((run / name).rglob("schedule.parquet"))).frame for name in ("2", "5")
    )
    assert np.array_equal(np.stack(own["action"]), np.stack(trusted["action"]))
    for words, said in (
        ([*policy, "--policy", zip_file], "Add --trust_zip"),
        ([*policy, "--trust_zip"], "not used without --policy"),
        (["--policy", zip_file], "not used with --mode validate"),
        ([*policy, "--policy", "none.zip"], "there is no none.zip"),
        ([*policy, "--policy", str(run / "policy"), "--trust_zip"], "needs no trust"),
    ):
        code, error = replayed(run, *words, capsys=capsys)
        assert code == 2
        assert said in error
