"""N students in one batched step, as a vector environment of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.seats import Seats
from envs.vector import batch
from ksel.errors import UsageError
from ksel.setup import Setup


class DistillationVecEnv(VecEnv):
    """The students of :class:`envs.vector.VectorDistillationEnv` for Stable-Baselines3.

    ``seed(s)`` seeds the next reset: s for all students, since their batches are common.
    ``set_options`` hands options of ``DistillationEnv.reset`` to it. An ended episode's last
    observation is ``infos[n]["terminal_observation"]``; nothing is ever truncated.

    Args:
        setup: data, teacher and distiller.
        students: N.
        vectorize, soft, updates, say: as of :class:`envs.seats.Seats`.
    """

    def __init__(
        self,
        setup: Setup,
        students: int,
        vectorize: Literal["auto", "loop", "vmap"] = "auto",
        soft: bool | None = None,
        updates: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.engine = Seats(setup, students, vectorize, soft, updates, say)
        first = self.engine.seats[0]
        self._actions = np.empty(0)
        super().__init__(students, first.observation_space, first.action_space)

    def reset(self) -> dict[str, np.ndarray]:
        """Begin N episodes with fresh students.

        Raises:
            UsageError: options that differ between students, or that ``DistillationEnv`` refuses.
        """
        if any(options != self._options[0] for options in self._options):
            raise UsageError("DistillationVecEnv: the students have one budget; set options once.")
        observations, infos = self.engine.reset(self._seeds[0], self._options[0] or None)
        self.reset_infos = infos
        self._reset_seeds()
        self._reset_options()
        return batch(self.observation_space, observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions [N, K]."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Carry them out: observations, rewards [N], dones [N], infos."""
        stepped = self.engine.step(self._actions)
        observations = [observation for observation, _, _, _ in stepped]
        infos = [{**info, "TimeLimit.truncated": False} for _, _, _, info in stepped]
        dones = np.array([terminated for _, _, terminated, _ in stepped])
        for n, (observation, info) in self.engine.go_on(dones).items() if dones.any() else ():
            infos[n]["terminal_observation"] = observations[n]
            observations[n] = observation
            self.reset_infos[n] = info
        rewards = np.array([reward for _, reward, _, _ in stepped], dtype=np.float32)
        return batch(self.observation_space, observations), rewards, dones, infos

    def close(self) -> None:
        """Nothing to clean up."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each student's environment."""
        return [getattr(seat, attr_name) for seat in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each student's environment."""
        for seat in self._chosen(indices):
            setattr(seat, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of each student's environment.

        Raises:
            UsageError: a method that would move one student without the others.
        """
        if method_name in ("reset", "step", "branch", "set_snapshot"):
            raise UsageError(
                f"DistillationVecEnv: {method_name} of one student alone would part it from the "
                f"others' batches; call the vector's own methods."
            )
        return [
            getattr(seat, method_name)(*method_args, **method_kwargs)
            for seat in self._chosen(indices)
        ]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False for each: there is nothing to wrap one by one."""
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> Iterable[Any]:
        return [self.engine.seats[n] for n in self._get_indices(indices)]
