"""N students in one batched step, as a vector environment of Gymnasium."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from envs.seats import Observation, Seats, SeatsSnapshot
from ksel.errors import UsageError
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare


class VectorDistillationEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """N students' distillation side by side, one decision of each at a time.

    ## Description
    Each sub-environment is what :class:`envs.distillation.DistillationEnv` is, with rewards that
    are measured. The students start alike and see the same batches; only their actions differ. All
    of them train in one batched step where they can.

    ## Action Space
    That of ``DistillationEnv``, N times.

    ## Observation Space
    That of ``DistillationEnv``, N times.

    ## Rewards
    Those of ``DistillationEnv``.

    ## Starting State
    ``reset(seed=...)`` takes one seed for all, since the batches are common. ``options`` are those of
    ``DistillationEnv``; episodes that begin by themselves keep them.

    ## Episode End
    Episodes end together when the budget is spent. One that diverges ends by itself; a fresh
    student takes its place for what is left of the others' budget. Ended episodes begin anew in
    the same step (``AutoresetMode.SAME_STEP``): the last observation and info are in
    ``info["final_obs"]`` and ``info["final_info"]``.

    ## Arguments
    | Argument | Meaning |
    | --- | --- |
    | num_envs | number of students |
    | config, setup, soft, updates | as of ``DistillationEnv`` |
    | vectorize | ``auto``, ``loop`` or ``vmap``, as ``--vectorize`` |
    | say | called with a line for the user; default: nowhere |

    ## Version History
    * v0: first version.
    """

    metadata = {  # noqa: RUF012 - Gymnasium's own form
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        config: dict[str, Any] | None = None,
        setup: Setup | None = None,
        soft: bool | None = None,
        updates: int | None = None,
        vectorize: Literal["auto", "loop", "vmap"] = "auto",
        say: Callable[[str], None] | None = None,
    ) -> None:
        if setup is not None and config is not None:
            raise UsageError("VectorDistillationEnv: give config or setup, not both.")
        if num_envs < 1:
            raise UsageError(f"--students {num_envs}: give 1 or more.")
        setup = setup if setup is not None else prepare(config_from_dict(config or {}))
        self.engine = Seats(setup, num_envs, vectorize, soft, updates, say)
        first = self.engine.seats[0]
        self.num_envs = num_envs
        self.single_action_space = first.action_space
        self.single_observation_space = first.observation_space
        self.action_space = batch_space(first.action_space, num_envs)
        self.observation_space = batch_space(first.observation_space, num_envs)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin N episodes; see the class.

        Raises:
            UsageError: seeds that differ, or options that ``DistillationEnv.reset`` refuses.
        """
        if isinstance(seed, list):
            if len(set(seed)) != 1:
                raise UsageError(
                    "VectorDistillationEnv.reset: the students share their batches, so they have "
                    "one seed; give a whole number."
                )
            seed = seed[0]
        observations, infos = self.engine.reset(seed, options)
        return self._batched(observations), self._vector_info(infos)

    def step(
        self, actions: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision of each student; see the class.

        Args:
            actions: [N, K].

        Raises:
            UsageError, gymnasium.error.ResetNeeded: as :meth:`DistillationEnv.step`.
        """
        stepped = self.engine.step(actions)
        ended = np.array([terminated for _, _, terminated, _ in stepped])
        observations = [observation for observation, _, _, _ in stepped]
        infos = [info for _, _, _, info in stepped]
        for n, (observation, info) in self.engine.go_on(ended).items() if ended.any() else ():
            infos[n] = {**info, "final_obs": observations[n], "final_info": infos[n]}
            observations[n] = observation
        rewards = np.array([reward for _, reward, _, _ in stepped], dtype=np.float64)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        batched = self._batched(observations)
        return batched, rewards, ended, truncated, self._vector_info(infos)

    def get_snapshot(self) -> SeatsSnapshot:
        """Copy the state of all students and episodes."""
        return self.engine.get_snapshot()

    def set_snapshot(self, state: SeatsSnapshot) -> dict[str, np.ndarray]:
        """Return to a snapshot; the steps that follow are equal to the bit."""
        return self._batched(self.engine.set_snapshot(state))

    def copy_best(self, sources: list[int]) -> dict[str, np.ndarray]:
        """Student n and its episode become a copy of ``sources[n]``'s."""
        return self._batched(self.engine.copy_best(sources))

    def fork(self, source: int) -> dict[str, np.ndarray]:
        """All students and their episodes become copies of ``source``'s."""
        return self._batched(self.engine.fork(source))

    def _batched(self, observations: list[Observation]) -> dict[str, np.ndarray]:
        return batch(self.single_observation_space, observations)

    def _vector_info(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        vector: dict[str, Any] = {}
        for n, info in enumerate(infos):
            vector = self._add_info(vector, info, n)
        return vector


def batch(space: gym.Space, observations: list[Observation]) -> dict[str, np.ndarray]:
    """N observations as one whose arrays are [N, ...]."""
    empty = create_empty_array(space, len(observations))
    return concatenate(space, observations, empty)  # type: ignore[return-value,arg-type]
