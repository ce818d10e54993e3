"""bandit: one knowledge type per decision, by Exp3.S or LinUCB; learns in a search, then is frozen.

Exp3.S is blind to the observation, LinUCB is linear in it, and both are paid the same gain: what the
second finds beyond the first is what the state is worth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors
from gymnasium import spaces
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from stable_baselines3.common.logger import Logger

from agents.bandit_rules import Algorithm, Exp3S, Gain, LinUCB, drawn, features, one_hot
from agents.frozen import shapes_of, unbounded
from agents.keeping import resumed_logger
from agents.policy import (
    HEADER,
    Choice,
    Keep,
    Observation,
    OnStep,
    damaged,
    read_weights,
    write_header,
    write_weights,
)
from agents.ranges import (
    refuse_below,
    refuse_not_positive,
    refuse_outside_unit,
    refuse_short_search,
)
from agents.stable_baselines import start_logger
from ksel.config import BanditConfig, RunConfig
from ksel.errors import UsageError
from ksel.packing import State

NAME = "bandit"
VALUES = "values"
READS = {
    "exp3s": ("learning_rate", "exploration", "forgetting"),
    "linucb": ("width", "ridge"),
}
"""algorithm -> the fields of BanditConfig that only it reads."""
WINDOW = 100
"""Episodes that rollout/ep_rew_mean is the mean of, as in Stable-Baselines3."""


# --------------------------------------------------------------------------- frozen


class BanditPolicy:
    """A frozen bandit. See :class:`agents.policy.Policy`.

    Exp3.S holds the distribution of its last moment; LinUCB takes the type with the largest
    expected gain, without a bonus for what is uncertain.

    Args:
        algorithm: exp3s or linucb.
        values: [K] probabilities (exp3s) or [K, d] theta (linucb).
        pool: names of the knowledge types.
        space: the observation; exp3s does not look at it.
        final: exp3s: ``sample``, or ``mode`` for the most likely type.
    """

    name = NAME
    soft = False
    learns = True

    def __init__(
        self,
        algorithm: str,
        values: np.ndarray,
        pool: Sequence[str],
        space: spaces.Dict,
        final: str,
    ) -> None:
        self.algorithm, self.values, self.pool = algorithm, values, tuple(pool)
        self.space, self.final = space, final
        self.rng: np.random.Generator | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; all draws come from ``rng``."""
        self.rng = rng

    @property
    def draws(self) -> bool:
        """True if the type is drawn, False if it is certain."""
        return self.algorithm == "exp3s" and self.final == "sample"

    def act(self, observation: Observation) -> Choice:
        """One type.

        Raises:
            RuntimeError: ``reset`` was not called.
        """
        if self.rng is None:
            raise RuntimeError("call reset(rng) before act()")
        if self.draws:
            return drawn(self.values, self.rng)
        scores = self.values
        if self.algorithm == "linucb":
            scores = self.values @ features(observation, self.space)
        return Choice.certain(one_hot(int(np.argmax(scores)), len(self.pool)))

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors``, then ``policy.json`` with its checksum."""
        checksum = write_weights(folder, save_arrays({VALUES: self.values}))
        write_header(
            folder,
            self,
            NAME,
            shapes_of(self.space) if self.algorithm == "linucb" else (),
            algorithm=self.algorithm,
            final=self.final,
            weights_sha256=checksum,
        )


def from_header(header: dict[str, Any], folder: Path) -> BanditPolicy:
    """Rebuild a frozen bandit from ``policy.json`` and ``policy.safetensors``.

    Raises:
        UsageError: one of them is missing or damaged, or they do not belong together.
    """
    data = read_weights(header, folder)
    try:
        if header["agent"] != NAME or header["soft"]:
            raise ValueError("a bandit takes one type")
        algorithm = {"exp3s": "exp3s", "linucb": "linucb"}[header["algorithm"]]
        final = {"sample": "sample", "mode": "mode"}[header["final"]]
        space = unbounded(header["observation"])
        values = load_arrays(data)[VALUES]
        size = len(header["pool"])
        wanted = (size,) if algorithm == "exp3s" else (size, spaces.utils.flatdim(space) + 1)
        if values.shape != wanted or not np.isfinite(values).all():
            raise ValueError(f"values of shape {values.shape}, expected {wanted} finite numbers")
        if algorithm == "exp3s" and not (values.min() >= 0 and np.isclose(values.sum(), 1.0)):
            raise ValueError("the probabilities do not add up to 1")
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise damaged(folder / HEADER, f"it does not describe the weights: {error}") from error
    return BanditPolicy(algorithm, values, header["pool"], space, final)


# --------------------------------------------------------------------------- learning


class BanditAgent:
    """A bandit while it learns; see :class:`agents.policy.Learner`.

    Args:
        config: the run; its group ``bandit`` holds the settings.
        pool: names of the knowledge types.
        observation_space: ``Dict`` of vectors.

    Raises:
        UsageError: a setting is outside its range, or the chosen algorithm does not read it.
    """

    name = NAME
    soft = False
    learns = True

    def __init__(
        self, config: RunConfig, pool: Sequence[str], observation_space: spaces.Dict
    ) -> None:
        self.pool, self.settings = tuple(pool), config.bandit
        self.final, self.reward_scale = config.episodes.final, config.env.reward_scale
        self.observation_space = observation_space
        self.learner: Algorithm | None = None
        self.keep: Keep | None = None
        self.state: State | None = None
        check_bandit(self.settings)

    @property
    def learned(self) -> bool:
        """True once there is a policy to take."""
        return self.learner is not None

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
        """Learn from exactly ``decisions`` steps of the environment, after each of them.

        Args:
            env: a single environment; not closed.
            decisions: number of steps.
            seed: of the environment's first reset and of the draws. Global generators are left
                alone.
            logger_folder: where TensorBoard events go (rollout/ep_rew_mean, and a number for each
                type: train/probability/ or train/estimate/); None = nowhere.
            on_step: called after each step with the probabilities (see :class:`Choice`) and the
                log-probability of the action.
            progress: called after each step with the number of decisions taken.
            stop: asked after each step; True ends learning before the next update.

        Returns:
            The number of decisions taken.

        Raises:
            UsageError: too few decisions to learn from.
        """
        refuse_short_search(NAME, decisions)
        self.learner = learner = self._algorithm()
        rng, gain = np.random.default_rng([seed, 11]), Gain(self.reward_scale)
        totals = deque([0.0], maxlen=WINDOW)
        before = self._restore(rng, gain, totals)
        logger = resumed_logger(logger_folder, before) if before else start_logger(logger_folder)
        try:
            observation = self.state["observation"] if self.state else env.reset(seed=seed)[0]
            for taken in range(before + 1, decisions + 1):
                x = features(observation, self.observation_space)
                choice = learner.choose(x, rng)
                observation, reward, terminated, truncated, _ = env.step(choice.action)
                totals[-1] += float(reward)
                if on_step is not None:
                    on_step(choice.probabilities, choice.log_prob)
                if progress is not None:
                    progress(taken)
                if stop is not None and stop():
                    return taken
                learner.update(choice, x, gain(float(reward)))
                over = terminated or truncated
                self._log(logger, taken, totals if over else None)
                if over and taken < decisions:
                    totals.append(0.0)
                    observation, _ = env.reset()
                if self.keep is not None and taken < decisions:
                    self.keep(taken, partial(self._state, taken, observation, rng, gain, totals))
        finally:
            logger.close()
        return decisions

    def _state(
        self,
        taken: int,
        observation: Observation,
        rng: np.random.Generator,
        gain: Gain,
        totals: deque[float],
    ) -> State:
        return {
            "taken": taken,
            "observation": dict(observation),
            "learner": vars(self.learner),
            "rng": rng.bit_generator.state,
            "gains": [] if gain.scale is None else gain.scale.drops,
            "totals": list(totals),
        }

    def _restore(self, rng: np.random.Generator, gain: Gain, totals: deque[float]) -> int:
        """Go back to the state to go on from, if there is one; the decisions taken by then."""
        state = self.state
        if state is None:
            return 0
        vars(self.learner).update(state["learner"])
        rng.bit_generator.state = state["rng"]
        if gain.scale is not None:
            gain.scale.drops = list(state["gains"])
        totals.clear()
        totals.extend(state["totals"])
        return int(state["taken"])

    def _algorithm(self) -> Algorithm:
        size = len(self.pool)
        if self.settings.algorithm == "exp3s":
            return Exp3S(size, self.settings)
        length = spaces.utils.flatdim(self.observation_space) + 1
        return LinUCB(size, length, self.settings)

    def _log(self, logger: Logger, taken: int, totals: deque[float] | None) -> None:
        assert self.learner is not None
        if not logger.output_formats:
            return
        name, numbers = self.learner.figures()
        for type_name, number in zip(self.pool, numbers, strict=True):
            logger.record(f"train/{name}/{type_name}", float(number))
        if totals is not None:
            logger.record("rollout/ep_rew_mean", float(np.mean(totals)))
        logger.dump(taken)

    def frozen(self) -> BanditPolicy:
        """The policy as it is now; learning further does not change it.

        Raises:
            RuntimeError: ``learn`` was not called.
        """
        if self.learner is None:
            raise RuntimeError("call learn() before frozen()")
        return BanditPolicy(
            self.settings.algorithm,
            self.learner.values(),
            self.pool,
            self.observation_space,
            self.final,
        )

    def figures(self) -> dict[str, Any]:
        """Nothing beyond the policy."""
        return {}

    def save_extra(self, folder: Path) -> None:
        """Nothing: there is no library behind it."""


def check_bandit(settings: BanditConfig) -> None:
    """Refuse values that cannot work, and those that the other algorithm would read.

    Raises:
        UsageError: names the option.
    """
    usual = BanditConfig()
    for algorithm, names in READS.items():
        for name in names if algorithm != settings.algorithm else ():
            if getattr(settings, name) != getattr(usual, name):
                raise UsageError(
                    f"--bandit.{name} is not used by --bandit.algorithm {settings.algorithm}. "
                    f"Leave it out, or set --bandit.algorithm {algorithm}."
                )
    refuse_not_positive("--bandit.learning_rate", settings.learning_rate)
    for name in ("exploration", "forgetting"):
        refuse_outside_unit(f"--bandit.{name}", getattr(settings, name))
    refuse_below("--bandit.width", settings.width, 0)
    refuse_not_positive("--bandit.ridge", settings.ridge)
