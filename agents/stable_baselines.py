"""a2c and ppo by Stable-Baselines3, with hard or soft actions.

Everything runs on the CPU. Learning seeds and draws from the global generators of Python, numpy
and torch (Stable-Baselines3 knows no others); a student must therefore have its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.frozen import (
    SB3Policy,
    action_distribution,
    build_network,
    log_probability,
    policy_arguments,
    policy_class,
    probabilities,
)
from agents.keeping import algorithm_state, offer, restore_algorithm, resumed_logger
from agents.policy import Keep, OnStep
from agents.ranges import (
    refuse_bad_widths,
    refuse_below,
    refuse_not_positive,
    refuse_outside_unit,
    refuse_short_search,
)
from ksel.config import A2CConfig, PPOConfig, RunConfig
from ksel.errors import UsageError
from ksel.files import atomic_path
from ksel.packing import State

ALGORITHMS: dict[str, type[A2C] | type[PPO]] = {"a2c": A2C, "ppo": PPO}

# Stable-Baselines3's own start, mean 0 and deviation 1, would cut half of the first weights off at 0.
SOFT_LOG_STD = -1.0

SB3_ZIP = "stable_baselines3.zip"

Observations = torch.Tensor | dict[str, torch.Tensor]
Explain = Callable[[BaseCallback], list[tuple[np.ndarray, float]]]
"""Of each action just taken: the probabilities, and its log-probability."""


class SB3Agent:
    """a2c or ppo while it learns.

    Args:
        config: the run; its agent's group holds the hyper-parameters.
        pool: names of the knowledge types.
        observation_space: ``Dict`` of vectors.
        action_space: ``MultiBinary(K)`` (hard) or ``Box(0, 1, (K,))`` (soft).

    Raises:
        UsageError: a hyper-parameter is outside its range.
    """

    learns = True

    def __init__(
        self,
        config: RunConfig,
        pool: Sequence[str],
        observation_space: spaces.Dict,
        action_space: spaces.Space,
    ) -> None:
        self.name, self.pool = config.agent, tuple(pool)
        self.settings: A2CConfig | PPOConfig = getattr(config, config.agent)
        self.final = config.episodes.final
        self.observation_space, self.action_space = observation_space, action_space
        self.soft = isinstance(action_space, spaces.Box)
        self.model: OnPolicyAlgorithm | None = None
        self.keep: Keep | None = None
        self.state: State | None = None
        check_hyper_parameters(self.name, self.settings)

    @property
    def learned(self) -> bool:
        """True once there is a policy to take."""
        return self.model is not None

    def learn(
        self,
        env: gym.Env | VecEnv,
        decisions: int,
        *,
        seed: int,
        logger_folder: Path | None = None,
        on_step: OnStep | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Learn from exactly ``decisions`` steps of the environment, or of each in a vector of them.

        The policy is updated every ``n_steps`` decisions; where that does not divide the whole,
        the last update takes the rest as well (up to twice as many), so no decision is lost. The
        environment is seeded at its first reset and, as always in Stable-Baselines3, reset once
        more where an episode ends with the last decision.

        Args:
            env: one environment, or a vector of them; the policy is then updated every ``n_steps``
                decisions of each. It is not closed.
            decisions: number of steps of each environment.
            seed: of the environment's first reset, the network's weights and the actions; sets
                the global generators of Python, numpy and torch.
            logger_folder: where TensorBoard events (rollout/, train/, time/) go; None = nowhere.
            on_step: called after each step, for each environment in turn, with the probabilities
                (see :class:`Choice`) and the log-probability of the action under the behaviour
                that chose it.
            progress: called after each step with the number of decisions taken in all.
            stop: asked after each step; True ends learning before the next update.

        Returns:
            The number of decisions taken in all. If an exception comes through (Ctrl-C), the policy as
            it was after the last update is still there for :meth:`frozen`.

        Raises:
            UsageError: too few decisions to learn from.
        """
        refuse_short_search(self.name, decisions)
        length = min(self.settings.n_steps, decisions)
        self.model = model = self._build_model(env, length, seed)
        logger = start(model, logger_folder, self.state)
        watch = Watch(_explain, on_step, progress, stop, self.keep)
        last = length + decisions % length
        taken, first = model.num_timesteps, (decisions - last) * model.n_envs
        fresh = self.state is None
        try:
            if taken < first:
                model.learn(first - taken, watch, log_interval=1, reset_num_timesteps=fresh)
                fresh = False
            if not watch.stopped:
                model.n_steps = model.rollout_buffer.buffer_size = last
                model.learn(last * model.n_envs, watch, log_interval=1, reset_num_timesteps=fresh)
            # The figures of the last update would otherwise wait for a rollout that never comes.
            logger.dump(model.num_timesteps)
        finally:
            logger.close()
        return model.num_timesteps

    def _build_model(self, env: gym.Env | VecEnv, length: int, seed: int) -> OnPolicyAlgorithm:
        settings = asdict(self.settings)
        flat, start = settings.pop("observation") == "flat", settings.pop("start")
        settings["n_steps"] = length
        if "batch_size" in settings:
            collected = length * (env.num_envs if isinstance(env, VecEnv) else 1)
            settings["batch_size"] = min(settings["batch_size"], collected)
        policy_kwargs = policy_arguments(flat, settings.pop("net_arch"))
        if self.soft:
            policy_kwargs["log_std_init"] = SOFT_LOG_STD
        with warnings.catch_warnings():
            # A shorter last minibatch does no harm.
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            model = ALGORITHMS[self.name](
                policy_class(flat),
                _flattened(env) if flat else env,
                policy_kwargs=policy_kwargs,
                seed=seed,
                device="cpu",
                **settings,
            )
        bias = actor_critic(model).get_parameter("action_net.bias")
        torch.nn.init.constant_(bias, start if self.soft else math.log(start / (1 - start)))
        return model

    def frozen(self) -> SB3Policy:
        """A copy of the policy as it is now; learning further does not change it.

        Raises:
            RuntimeError: ``learn`` was not called.
        """
        if self.model is None:
            raise RuntimeError("call learn() before frozen()")
        flat = self.settings.observation == "flat"
        network = build_network(
            self.observation_space, len(self.pool), self.soft, flat, self.settings.net_arch
        )
        network.load_state_dict(self.model.policy.state_dict())
        return SB3Policy(self.name, network, self.pool, self.observation_space, flat, self.final)

    def save_sb3_zip(self, path: Path) -> None:
        """Write Stable-Baselines3's own zip, for its users; ksel never reads it.

        Raises:
            RuntimeError: ``learn`` was not called.
        """
        write_zip(self.model, path)

    def figures(self) -> dict[str, Any]:
        """Nothing beyond the policy."""
        return {}

    def save_extra(self, folder: Path) -> None:
        """Write the zip under its usual name; see :meth:`save_sb3_zip`."""
        self.save_sb3_zip(folder / SB3_ZIP)


class Watch(BaseCallback):
    """Hands each decision's probabilities on, counts, and stops on demand.

    Args:
        explain: given this callback, (probabilities, log-probability) of each action just taken.
        on_step, progress, stop: as in :meth:`SB3Agent.learn`.
        keep: see :class:`agents.policy.Resumable`.

    Attributes:
        stopped: True once ``stop`` has said so.
    """

    def __init__(
        self,
        explain: Explain,
        on_step: OnStep | None,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
        keep: Keep | None = None,
    ) -> None:
        super().__init__()
        self.explain, self.keep = explain, keep
        self.on_step_done, self.progress, self.stop = on_step, progress, stop
        self.stopped = False

    def _on_rollout_start(self) -> None:
        offer(self.keep, self.model, partial(algorithm_state, self.model))

    def _on_step(self) -> bool:
        if self.on_step_done is not None:
            for probability, log_prob in self.explain(self):
                self.on_step_done(probability, log_prob)
        if self.progress is not None:
            self.progress(self.num_timesteps)
        self.stopped = self.stop is not None and self.stop()
        return not self.stopped


def _explain(watch: BaseCallback) -> list[tuple[np.ndarray, float]]:
    network = actor_critic(watch.model)
    soft = isinstance(network.action_space, spaces.Box)
    # `obs_tensor` is what the actions were drawn for; `clipped_actions` what was executed.
    actions = np.asarray(watch.locals["clipped_actions"], np.float32)
    explained = []
    for n, action in enumerate(actions):
        center, spread = action_distribution(network, _one(watch.locals["obs_tensor"], n))
        explained.append((probabilities(center, soft), log_probability(action, center, spread)))
    return explained


def _one(observations: Observations, n: int) -> Observations:
    """One of a batch of observations, as a batch of 1."""
    if isinstance(observations, dict):
        return {name: part[n : n + 1] for name, part in observations.items()}
    return observations[n : n + 1]


class FlatObservations(VecEnvWrapper):
    """Observations of a vector of environments with their parts side by side, [N, F] float32.

    Args:
        venv: its observations are parts by name.
    """

    def __init__(self, venv: VecEnv) -> None:
        self.parts = venv.observation_space
        super().__init__(venv, observation_space=spaces.utils.flatten_space(self.parts))

    def reset(self) -> np.ndarray:
        """Begin the episodes."""
        return self._flat(cast(dict[str, np.ndarray], self.venv.reset()))

    def step_wait(self) -> VecEnvStepReturn:
        """One step of each."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                last = spaces.utils.flatten(self.parts, info["terminal_observation"])
                info["terminal_observation"] = last
        return self._flat(cast(dict[str, np.ndarray], observations)), rewards, dones, infos

    def _flat(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        rows = [
            spaces.utils.flatten(self.parts, {name: part[n] for name, part in observations.items()})
            for n in range(self.num_envs)
        ]
        return np.stack([np.asarray(row, np.float32) for row in rows])


def _flattened(env: gym.Env | VecEnv) -> gym.Env | VecEnv:
    if isinstance(env, VecEnv):
        return FlatObservations(env)
    return gym.wrappers.FlattenObservation(env)


def start(model: BaseAlgorithm, folder: Path | None, state: State | None) -> Logger:
    """Give a model its logger and, if there is one, the state that it goes on from."""
    taken = None if state is None else int(state["counted"]["num_timesteps"])
    logger = start_logger(folder) if taken is None else resumed_logger(folder, taken)
    model.set_logger(logger)
    if state is not None:
        restore_algorithm(model, state)
    return logger


def start_logger(folder: Path | None) -> Logger:
    """Where Stable-Baselines3's figures go: TensorBoard events in a folder, or nowhere."""
    return configure(str(folder), ["tensorboard"]) if folder else Logger(None, [])


def write_zip(model: BaseAlgorithm | None, path: Path) -> None:
    """Write Stable-Baselines3's own file, whole or not at all.

    Raises:
        RuntimeError: there is no model: ``learn`` was not called.
    """
    if model is None:
        raise RuntimeError("call learn() before save_sb3_zip()")
    with atomic_path(path) as temporary:
        model.save(temporary)


def actor_critic(model: BaseAlgorithm) -> ActorCriticPolicy:
    """The network of an a2c or ppo model."""
    return cast(ActorCriticPolicy, model.policy)


def check_students(config: RunConfig) -> None:
    """Refuse several students where the agent learns from one, and ways to train several of one.

    Raises:
        UsageError: names the option and what works.
    """
    if config.students > 1 and config.agent not in ALGORITHMS:
        able = " or ".join(ALGORITHMS)
        raise UsageError(
            f"--students {config.students}: --agent {config.agent} works with one student at a "
            f"time. Set --students 1, or choose --agent {able}."
        )
    if config.students == 1 and config.vectorize != "auto":
        raise UsageError(
            f"--vectorize {config.vectorize} says how several students train, and --students is 1. "
            f"Leave it out, or raise --students."
        )


def check_hyper_parameters(agent: str, settings: A2CConfig | PPOConfig) -> None:
    """Refuse values that Stable-Baselines3 cannot learn with.

    Raises:
        UsageError: names the option and its range.
    """
    least: dict[str, float] = {
        "n_steps": 1,
        "batch_size": 1,
        "n_epochs": 1,
        "ent_coef": 0,
        "vf_coef": 0,
    }
    if settings.normalize_advantage:
        # The deviation of a single advantage is not a number.
        least |= {"n_steps": 2, "batch_size": 2}
    for name, bound in least.items():
        instead = f" (or --{agent}.normalize_advantage false)" if bound == 2 else ""
        refuse_below(f"--{agent}.{name}", getattr(settings, name, bound), bound, instead)
    for name in ("learning_rate", "max_grad_norm", "clip_range"):
        refuse_not_positive(f"--{agent}.{name}", getattr(settings, name, 1.0))
    if not 0.0 < settings.start < 1.0:
        raise UsageError(
            f"--{agent}.start is {settings.start}; give a number between 0 and 1, such as 0.85."
        )
    for name in ("gamma", "gae_lambda"):
        refuse_outside_unit(f"--{agent}.{name}", getattr(settings, name))
    refuse_bad_widths(f"--{agent}.net_arch", settings.net_arch)
