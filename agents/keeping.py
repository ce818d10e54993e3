"""The whole learning state of an algorithm of Stable-Baselines3, to go on from to the bit.

Taken where a rollout begins: what was collected before is learned from, nothing new is collected yet.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch.utils.tensorboard import SummaryWriter

from agents.policy import Keep
from ksel.packing import State

MONITORED = (
    "rewards",
    "needs_reset",
    "episode_returns",
    "episode_lengths",
    "episode_times",
    "total_steps",
)
COUNTED = ("num_timesteps", "_n_updates", "_episode_num")
REPLAYED = ("actions", "rewards", "dones", "timeouts")


def algorithm_state(model: BaseAlgorithm, *, draws: bool = True) -> State:
    """Everything that decides how a model learns on, as JSON values, arrays and tensors.

    Args:
        model: within ``learn``, where a rollout begins.
        draws: it draws from the global generators of Python, numpy and torch.
    """
    assert model.ep_info_buffer is not None
    state: State = {
        "parameters": {name: part.state_dict() for name, part in _parts(model).items()},
        "counted": {name: getattr(model, name) for name in COUNTED},
        "last": model._last_obs,
        "starts": model._last_episode_starts,
        "episodes": [dict(one) for one in model.ep_info_buffer],
        "monitors": [
            {name: getattr(one, name) for name in MONITORED} for one in _monitors(model.env)
        ],
        "log": [
            (name, float(value), model.logger.name_to_excluded[name])
            for name, value in model.logger.name_to_value.items()
        ],
    }
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        state["replay"] = _replay_state(buffer)
    if draws:
        state["generators"] = _global_generators()
        state["draws"] = model.action_space.np_random.bit_generator.state
    return state


def restore_algorithm(model: BaseAlgorithm, state: State) -> None:
    """Put a model, freshly made for the same environment, into a state; ``learn`` goes on from there.

    Call ``learn`` with ``reset_num_timesteps=False`` right after it.
    """
    assert model.env is not None
    assert model.ep_info_buffer is None
    for name, part in _parts(model).items():
        part.load_state_dict(state["parameters"][name])
    for name in COUNTED:
        setattr(model, name, state["counted"][name])
    model._last_obs, model._last_episode_starts = state["last"], state["starts"]
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    for one, kept in zip(_monitors(model.env), state["monitors"], strict=True):
        for name in MONITORED:
            setattr(one, name, kept[name])
    for name, value, excluded in state["log"]:
        model.logger.record(name, value, exclude=excluded)
    venv: Any = model.env
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
    venv._reset_seeds()  # the episode has begun; what comes after it is not seeded anew
    if "replay" in state:
        _restore_replay(cast(DictReplayBuffer, cast(Any, model).replay_buffer), state["replay"])
    if "generators" in state:
        model.action_space.np_random.bit_generator.state = state["draws"]
        _set_global_generators(state["generators"])


def offer(
    keep: Keep | None, model: BaseAlgorithm, state: Callable[[], State], total: int | None = None
) -> None:
    """Offer a model's state where a rollout begins, unless learning is over.

    Args:
        keep: takes it; None = nobody.
        model: within ``learn``.
        state: gives the state.
        total: decisions after which learning is over; None = when this ``learn`` is.
    """
    over = model.num_timesteps >= (model._total_timesteps if total is None else total)
    if keep is not None and not over:
        keep(model.num_timesteps, state)


def resumed_logger(folder: Path | None, taken: int) -> Logger:
    """As :func:`agents.stable_baselines.start_logger`; what was told beyond ``taken`` is forgotten."""
    if folder is None:
        return Logger(None, [])
    logger = configure(str(folder), ["tensorboard"])
    for output in logger.output_formats:
        assert isinstance(output, TensorBoardOutputFormat)
        output.writer.close()
        output.writer = SummaryWriter(str(folder), purge_step=taken + 1)
    return logger


def _parts(model: BaseAlgorithm) -> dict[str, Any]:
    """Networks and optimisers, by name."""
    names = ["policy", "optimizer"]
    if isinstance(model, OnPolicyAlgorithm | OffPolicyAlgorithm):
        names = model._get_torch_save_params()[0]
    return {name: recursive_getattr(model, name) for name in names}


def _monitors(venv: VecEnv | None) -> Iterator[Monitor]:
    """The monitors that Stable-Baselines3 has put around single environments."""
    inner: Any = venv
    while isinstance(inner, VecEnvWrapper):
        inner = inner.venv
    for env in getattr(inner, "envs", ()):
        while isinstance(env, gym.Wrapper):
            if isinstance(env, Monitor):
                yield env
            env = env.env


def _replay_state(buffer: DictReplayBuffer) -> State:
    """What has been filled of a replay buffer."""
    size = buffer.buffer_size if buffer.full else buffer.pos
    return {
        "pos": buffer.pos,
        "full": buffer.full,
        "seen": {name: part[:size] for name, part in buffer.observations.items()},
        "next": {name: part[:size] for name, part in buffer.next_observations.items()},
        **{name: getattr(buffer, name)[:size] for name in REPLAYED},
    }


def _restore_replay(buffer: DictReplayBuffer, state: State) -> None:
    buffer.pos, buffer.full = state["pos"], state["full"]
    for name in REPLAYED:
        getattr(buffer, name)[: len(state[name])] = state[name]
    for mine, kept in ((buffer.observations, "seen"), (buffer.next_observations, "next")):
        for name, part in state[kept].items():
            mine[name][: len(part)] = part


def _global_generators() -> State:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - as below
    assert name == "MT19937"
    return {
        "python": random.getstate(),
        "numpy": (keys, position, has_gauss, gauss),
        "torch": torch.random.get_rng_state(),
    }


def _set_global_generators(state: State) -> None:
    random.setstate(state["python"])
    np.random.set_state(("MT19937", *state["numpy"]))  # noqa: NPY002 - the one that ppo draws from
    torch.random.set_rng_state(state["torch"])
