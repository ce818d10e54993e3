"""all_action as the main job knows it: :class:`agents.policy.Learner` over the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.all_action import AllAction
from agents.evidence import FEWEST
from agents.factorised import NAME, FactorisedPolicy
from agents.keeping import algorithm_state, offer
from agents.policy import Keep, OnStep
from agents.ranges import (
    refuse_bad_widths,
    refuse_below,
    refuse_not_positive,
    refuse_outside_unit,
    refuse_short_search,
)
from agents.stable_baselines import start
from agents.table import resolve_search
from ksel.config import AllActionConfig, RunConfig
from ksel.errors import UsageError
from ksel.packing import State


class AllActionAgent:
    """all_action while it learns; see :class:`agents.policy.Learner`.

    Args:
        config: the run; its group ``all_action`` holds the hyper-parameters, and
            ``env.cost_per_type`` is taken off credit.
        pool: names of the knowledge types.
        observation_space: ``Dict`` of vectors.
        action_space: ``MultiBinary(K)`` (hard) or ``Box(0, 1, (K,))`` (soft).

    Raises:
        UsageError: a hyper-parameter is outside its range, or not used by the others.
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
        self.pool, self.settings = tuple(pool), config.all_action
        self.cost_per_type, self.final = config.env.cost_per_type, config.episodes.final
        self.online = resolve_search(NAME, config.search) != "episodes"
        self.observation_space = observation_space
        self.soft = isinstance(action_space, spaces.Box)
        self.model: AllAction | None = None
        self.keep: Keep | None = None
        self.state: State | None = None
        check_all_action(self.settings, self.soft)

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
        """Learn from ``decisions`` decisions; those of a branch that was chosen count too.

        Args:
            env: an environment, or several students in a ``VecEnv``, whose decisions are counted
                together. It is not closed. As always in Stable-Baselines3 it is reset where an
                episode ends, also with the last decision.
            decisions: their number; several students and branches may take it a little further.
            seed: of the environment's first reset, the network and the draws. Global generators
                are left alone.
            logger_folder: where TensorBoard events (rollout/, train/, time/) go; None = nowhere.
            on_step: called for each decision, in the order of the students, with the
                probabilities (see :class:`agents.policy.Choice`) and the log-probability of the
                action; in a branch the latter is nan.
            progress: called after each step with the number of decisions taken.
            stop: asked after each step; True ends learning before the next update.

        Returns:
            The number of decisions taken. If an exception comes through (Ctrl-C), the policy as
            it was after the last update is still there for :meth:`frozen`.

        Raises:
            UsageError: too few decisions to learn from.
        """
        refuse_short_search(NAME, decisions, self.online)
        self.model = model = AllAction(
            env, self.settings, pool=self.pool, cost_per_type=self.cost_per_type, seed=seed
        )
        logger = start(model, logger_folder, self.state)
        if self.state is not None:
            restore_draws(model, self.state["own"])
        left, fresh = decisions - model.num_timesteps, self.state is None
        reports = Reports(on_step, progress, stop, self.keep)
        try:
            model.learn(left, reports, reset_num_timesteps=fresh)
            # The figures of the last update would otherwise wait for one that never comes.
            logger.dump(model.num_timesteps)
        finally:
            logger.close()
        return model.num_timesteps

    def frozen(self) -> FactorisedPolicy:
        """A copy of the policy as it is now; learning further does not change it.

        Raises:
            RuntimeError: ``learn`` was not called.
        """
        if self.model is None:
            raise RuntimeError("call learn() before frozen()")
        return self.model.frozen(self.final)

    def figures(self) -> dict[str, Any]:
        """Nothing beyond the policy."""
        return {}

    def save_extra(self, folder: Path) -> None:
        """Nothing: ``AllAction.load`` and the run read the same files."""


class Reports(BaseCallback):
    """Hands the probabilities of each decision on, counts, and stops on demand.

    Args:
        on_step, progress, stop: as in :meth:`AllActionAgent.learn`.
        keep: see :class:`agents.policy.Resumable`.
    """

    def __init__(
        self,
        on_step: OnStep | None,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
        keep: Keep | None = None,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.on_step_done, self.progress, self.stop = on_step, progress, stop

    def _on_rollout_start(self) -> None:
        model = cast(AllAction, self.model)
        offer(
            self.keep,
            model,
            lambda: {**algorithm_state(model, draws=False), "own": draws_of(model)},
        )

    def _on_step(self) -> bool:
        if self.on_step_done is not None:
            for probabilities, log_prob in self.locals["reports"]:
                self.on_step_done(probabilities, log_prob)
        if self.progress is not None:
            self.progress(self.num_timesteps)
        return self.stop is None or not self.stop()


def draws_of(model: AllAction) -> State:
    """The generators of a model, and what it has counted of the episode that goes on."""
    tally = model.tally
    return {
        "generators": [rng.bit_generator.state for rng in (model.rng, model.policy.rng)],
        "tally": {"total": tally.total, "length": tally.length},
        "evidence": model.evidence.get_state(),
    }


def restore_draws(model: AllAction, state: State) -> None:
    """Return to what :func:`draws_of` gave."""
    for rng, kept in zip((model.rng, model.policy.rng), state["generators"], strict=True):
        rng.bit_generator.state = kept
    model.evidence.set_state(state["evidence"])
    model.tally.total, model.tally.length = state["tally"]["total"], state["tally"]["length"]


def check_all_action(settings: AllActionConfig, soft: bool) -> None:
    """Refuse values that nothing can be learned with, and those that others put out of use.

    Args:
        settings: the group.
        soft: True if actions are weights.

    Raises:
        UsageError: names the option.
    """
    refuse_below("--all_action.n_steps", settings.n_steps, 1)
    for name in ("learning_rate", "max_grad_norm", "concentration"):
        refuse_not_positive(f"--all_action.{name}", getattr(settings, name))
    for name in ("gamma", "gae_lambda"):
        refuse_outside_unit(f"--all_action.{name}", getattr(settings, name))
    if not 0.0 <= settings.entropy < 1.0:
        raise UsageError(
            f"--all_action.entropy is {settings.entropy}; give a number from 0 to below 1, such as 0.1."
        )
    if not 0.0 < settings.start < 1.0:
        raise UsageError(
            f"--all_action.start is {settings.start}; give a number between 0 and 1, such as 0.85."
        )
    refuse_below("--all_action.block", settings.block, 0)
    refuse_below("--all_action.memory", settings.memory, FEWEST)
    for name in ("doubt", "anchor"):
        refuse_below(f"--all_action.{name}", getattr(settings, name), 0)
    refuse_bad_widths("--all_action.net_arch", settings.net_arch)
    _refuse_unused(settings, soft)


def _refuse_unused(settings: AllActionConfig, soft: bool) -> None:
    unused: dict[str, tuple[str, str]] = {}
    if settings.n_steps == 1:
        unused["gae_lambda"] = ("--all_action.n_steps 1", "raise n_steps")
    if settings.block == 0:
        unused |= dict.fromkeys(
            ("memory", "doubt"), ("--all_action.block 0", "set --all_action.block 10")
        )
    if not soft:
        unused |= dict.fromkeys(
            ("soft", "concentration"), ("hard actions", "set --env.actions soft")
        )
    elif settings.soft == "sigmoid":
        unused |= dict.fromkeys(
            ("concentration", "gamma", "gae_lambda"),
            ("--all_action.soft sigmoid, which draws nothing", "set --all_action.soft beta"),
        )
    for name, (why, instead) in unused.items():
        if getattr(settings, name) != getattr(AllActionConfig(), name):
            raise UsageError(
                f"--all_action.{name} is not used with {why}. Leave it out, or {instead}."
            )
