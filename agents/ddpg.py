"""ddpg: the deterministic actor-critic of the selection paper, by Stable-Baselines3.

Wang et al., "Knowledge Selection" (Findings of EMNLP 2022, arXiv 2302.00444), on the algorithm of
Lillicrap et al. (2016, arXiv 1509.02971). The actor gives one weight in [0, 1] for each knowledge
type; as a mask they are cut at a threshold, and the replay buffer keeps the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise

from agents.deterministic import (
    NAME,
    Cut,
    DDPGPolicy,
    behaviour,
    build_actor,
    masked,
    network_arguments,
    weights_of,
)
from agents.frozen import part_tensors
from agents.policy import Keep, OnStep
from agents.ranges import (
    refuse_bad_widths,
    refuse_below,
    refuse_late_start,
    refuse_not_positive,
    refuse_outside_unit,
)
from agents.stable_baselines import SB3_ZIP, Watch, start, write_zip
from ksel.config import DDPGConfig, RunConfig
from ksel.errors import UsageError
from ksel.packing import State


class Thresholded(gym.ActionWrapper):
    """An environment of bits that takes weights in [0, 1]; see :func:`masked`."""

    def __init__(self, env: gym.Env, threshold: float, at_least_one: bool) -> None:
        super().__init__(env)
        self.threshold, self.at_least_one = threshold, at_least_one
        self.action_space = spaces.Box(0.0, 1.0, env.action_space.shape or (), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        """The bits that the environment is given."""
        return masked(np.asarray(action), self.threshold, self.at_least_one)


class DDPGAgent:
    """ddpg while it learns; see :class:`agents.policy.Learner`.

    Learning seeds and draws from the global generators of Python, numpy and torch, as all of
    Stable-Baselines3 does.

    Args:
        config: the run; its group ``ddpg`` holds the hyper-parameters.
        pool: names of the knowledge types.
        observation_space: ``Dict`` of vectors.
        action_space: ``MultiBinary(K)`` (hard: the weights are cut at a threshold) or
            ``Box(0, 1, (K,))`` (soft).

    Raises:
        UsageError: a hyper-parameter is outside its range.
    """

    name = NAME
    learns = True

    def __init__(
        self,
        config: RunConfig,
        pool: Sequence[str],
        observation_space: spaces.Dict,
        action_space: spaces.Space,
    ) -> None:
        self.pool, self.settings = tuple(pool), config.ddpg
        self.observation_space = observation_space
        self.soft = isinstance(action_space, spaces.Box)
        self.model: DDPG | None = None
        self.keep: Keep | None = None
        self.state: State | None = None
        check_ddpg(self.settings)

    @property
    def learned(self) -> bool:
        """True once there is a policy to take."""
        return self.model is not None

    @property
    def cut(self) -> Cut | None:
        """The arguments of :func:`masked`; None for soft actions."""
        return None if self.soft else (self.settings.threshold, self.settings.at_least_one)

    def learn(
        self,
        env: gym.Env,
        decisions: int,
        *,
        seed: int,
        logger_folder: Path | None = None,
        on_step: OnStep | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Learn from exactly ``decisions`` steps of the environment.

        The first ``learning_starts`` actions are uniform; after each later decision follow
        ``gradient_steps`` updates on decisions drawn from all so far.

        Args:
            env: a single environment, not a vector of them. It is not closed.
            decisions: number of steps.
            seed: of the environment's first reset, the networks and the noise; sets the global
                generators of Python, numpy and torch.
            logger_folder: where TensorBoard events (rollout/, train/, time/) go; None = nowhere.
            on_step: called after each step with what :func:`behaviour` says of it.
            progress: called after each step with the number of decisions taken.
            stop: asked after each step; True ends learning before the next update.

        Returns:
            The number of decisions taken. If an exception comes through (Ctrl-C), the policy as
            it was after the last update is still there for :meth:`frozen`.

        Raises:
            UsageError: too few decisions to learn from.
        """
        refuse_late_start(self.settings.learning_starts, decisions)
        self.model = model = self._build_model(env, decisions, seed)
        logger = start(model, logger_folder, self.state)
        watch = Watch(self._explain, on_step, progress, stop, self.keep)
        left, fresh = decisions - model.num_timesteps, self.state is None
        try:
            model.learn(left, watch, log_interval=1, reset_num_timesteps=fresh)
            # The figures of the last updates would otherwise wait for the end of an episode.
            logger.dump(model.num_timesteps)
        finally:
            logger.close()
        return model.num_timesteps

    def _build_model(self, env: gym.Env, decisions: int, seed: int) -> DDPG:
        settings = self.settings
        if self.cut is not None:
            env = Thresholded(env, *self.cut)
        # Inside what changes the reward, so that rollout/ep_rew_mean is the environment's.
        env = Monitor(env)
        gamma = settings.gamma
        if settings.gamma_on == "reward":
            env = gym.wrappers.TransformReward(env, partial(_scaled, settings.gamma))
            gamma = 1.0
        spread = np.full(len(self.pool), 2 * settings.noise)  # its actions span [-1, 1]
        return DDPG(
            "MultiInputPolicy",
            env,
            learning_rate=settings.learning_rate,
            buffer_size=min(settings.buffer_size, decisions),
            learning_starts=settings.learning_starts,
            batch_size=settings.batch_size,
            tau=settings.tau,
            gamma=gamma,
            gradient_steps=settings.gradient_steps,
            action_noise=NormalActionNoise(np.zeros_like(spread), spread) if spread.any() else None,
            policy_kwargs=network_arguments(settings.encoder, settings.net_arch),
            seed=seed,
            device="cpu",
        )

    def _explain(self, watch: BaseCallback) -> list[tuple[np.ndarray, float]]:
        model = cast(DDPG, watch.model)
        executed = np.asarray(watch.locals["actions"][0], np.float32)
        center = None
        if model.num_timesteps > model.learning_starts:
            # Still the observation that the action was chosen for.
            parts = {name: part[0] for name, part in cast(dict, model._last_obs).items()}
            center = weights_of(model.actor, part_tensors(parts, self.observation_space))
        return [behaviour(executed, center, self.settings.noise, self.cut)]

    def frozen(self) -> DDPGPolicy:
        """A copy of the actor as it is now; learning further does not change it.

        Raises:
            RuntimeError: ``learn`` was not called.
        """
        if self.model is None:
            raise RuntimeError("call learn() before frozen()")
        settings = self.settings
        actor = build_actor(
            self.observation_space, len(self.pool), settings.encoder, settings.net_arch
        )
        actor.load_state_dict(self.model.actor.state_dict())
        return DDPGPolicy(actor, self.pool, self.observation_space, settings.encoder, self.cut)

    def save_sb3_zip(self, path: Path) -> None:
        """Write Stable-Baselines3's own zip, for its users; its actions are weights.

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


def _scaled(factor: float, reward: Any) -> float:
    return factor * float(reward)


def check_ddpg(settings: DDPGConfig) -> None:
    """Refuse values that Stable-Baselines3 cannot learn with, or that leave nothing to learn.

    Raises:
        UsageError: names the option and its range.
    """
    least = {
        "encoder": 0,
        "buffer_size": 1,
        "learning_starts": 0,
        "batch_size": 1,
        "gradient_steps": 1,
        "noise": 0,
    }
    for name, bound in least.items():
        refuse_below(f"--ddpg.{name}", getattr(settings, name), bound)
    refuse_not_positive("--ddpg.learning_rate", settings.learning_rate)
    refuse_not_positive("--ddpg.tau", settings.tau)
    for name in ("tau", "gamma"):
        refuse_outside_unit(f"--ddpg.{name}", getattr(settings, name))
    if settings.gamma_on == "reward" and settings.gamma == 0:
        raise UsageError(
            "--ddpg.gamma is 0 with --ddpg.gamma_on reward: every reward would count nothing. "
            "Raise it, or set --ddpg.gamma_on to next."
        )
    if not 0.0 <= settings.threshold < 1.0:
        raise UsageError(
            f"--ddpg.threshold is {settings.threshold}; give a number from 0 to below 1."
        )
    refuse_bad_widths("--ddpg.net_arch", settings.net_arch)
