"""Plays episodes: a search in which an agent learns, and single episodes of a policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agents.policy import Learner, Policy
from envs.recording import Recorder
from envs.recording_vector import VectorRecorder

SEARCH_SEED = 1_000_003
"""Added to the run's seed for the search, so that its batches are not the final student's."""


@dataclass(frozen=True)
class Played:
    """How an episode (or a search) went.

    Attributes:
        updates: optimiser updates done.
        decisions: decisions taken.
        seconds: wall-clock seconds of environment and agent; recording and evaluations on the way
            are left out.
        rewards: total reward per episode.
        reason: why it ended early, or None.
    """

    updates: int
    decisions: int
    seconds: float
    rewards: tuple[float, ...]
    reason: str | None = None


def search(
    agent: Learner,
    env: Recorder | VectorRecorder,
    episodes: int,
    decisions: int,
    *,
    seed: int,
    logger_folder: Path | None,
    stop: Callable[[], bool] | None = None,
) -> Played:
    """Let an agent learn over episodes.

    Args:
        agent: learns in place; ``agent.frozen()`` is its policy afterwards.
        env: records the decisions; its environment's budget is the length of an episode.
        episodes: number of episodes.
        decisions: decisions of one episode.
        seed: the run's seed.
        logger_folder: where the agent logs for TensorBoard; None = nowhere.
        stop: asked after each decision; True ends the search.
    """
    return _learned(
        agent,
        env,
        episodes * decisions,
        seed=seed + SEARCH_SEED,
        logger_folder=logger_folder,
        stop=stop,
    )


def live(
    agent: Learner,
    env: Recorder,
    decisions: int,
    *,
    seed: int,
    logger_folder: Path | None,
    on_update: Callable[[int], None] | None = None,
) -> Played:
    """Let an agent learn while the one and only student trains (an online search).

    Args:
        agent: learns in place; ``agent.frozen()`` is its policy afterwards.
        env: records the decisions; made with ``one_life``, so that its student is that of this life.
        decisions: decisions of the life.
        seed: seed of batches and agent; the same seed gives the same batches to every policy.
        logger_folder: where the agent logs for TensorBoard; None = nowhere.
        on_update: called with the updates done after each decision, e.g. to evaluate.
    """

    def evaluate(taken: int) -> None:
        if on_update is not None and env.ended_early is None:
            on_update(env.update)

    played = _learned(
        agent,
        env,
        decisions,
        seed=seed,
        logger_folder=logger_folder,
        progress=evaluate,
        stop=lambda: env.ended_early is not None,
    )
    return replace(played, reason=env.ended_early)


def _learned(
    agent: Learner,
    env: Recorder | VectorRecorder,
    decisions: int,
    *,
    seed: int,
    logger_folder: Path | None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Played:
    """Let an agent learn; what ``progress`` does is not counted as its time."""
    beside = 0.0

    def annotate(probabilities: np.ndarray, log_prob: float) -> None:
        env.writer.annotate_next(probabilities, log_prob)

    def timed(taken: int) -> None:
        nonlocal beside
        before = time.perf_counter()
        if progress is not None:
            progress(taken)
        beside += time.perf_counter() - before

    start, recording, inside = time.perf_counter(), env.recording_seconds, env.seconds
    begun, done = len(env.rewards), env.updates_done
    taken = agent.learn(
        env,
        decisions,
        seed=seed,
        logger_folder=logger_folder,
        on_step=annotate,
        progress=timed,
        stop=stop,
    )
    seconds = time.perf_counter() - start - beside - (env.recording_seconds - recording)
    env.ledger.add("agent", seconds - (env.seconds - inside), taken)
    return Played(env.updates_done - done, taken, seconds, tuple(env.rewards[begun:]))


def measuring(measure: bool, observe: bool | None) -> dict[str, bool]:
    """Options of the environment's ``reset``; what is measured is observed too."""
    return {"measure": measure, "observe": measure if observe is None else observe}


def play(
    policy: Policy,
    env: Recorder,
    *,
    seed: int,
    measure: bool,
    observe: bool | None = None,
    plain: bool = False,
    on_update: Callable[[int], None] | None = None,
) -> Played:
    """One episode of a policy that does not learn any more.

    Args:
        policy: chooses the actions; draws from a generator of its own, seeded by ``seed``.
        env: records the decisions.
        seed: seed of batches and policy; the same seed gives the same batches to every policy.
        measure: measure rewards (and the observation that comes with them).
        observe: show the policy a fresh observation at each decision; None = as ``measure``.
        plain: leave the run's stages, static weights and weight schedules out.
        on_update: called with the updates done after each decision, e.g. to evaluate.
    """
    begun, done, inside = len(env.rewards), env.updates_done, env.seconds
    options = {**measuring(measure, observe), "plain": plain}
    observation, _ = env.reset(seed=seed, options=options)
    policy.reset(np.random.default_rng([seed, 5]))
    agent_seconds, decisions, terminated = 0.0, 0, False
    reason = None
    while not terminated:
        start = time.perf_counter()
        choice = policy.act(observation)
        agent_seconds += time.perf_counter() - start
        observation, _, terminated, _, info = env.step(choice.action)
        env.writer.annotate_last(choice.probabilities, choice.log_prob)
        decisions += 1
        reason = info.get("reason")
        if on_update is not None and reason is None:
            on_update(info["update"])
    seconds = env.seconds - inside + agent_seconds
    env.ledger.add("agent", agent_seconds, decisions)
    rewards = tuple(env.rewards[begun:])
    return Played(env.updates_done - done, decisions, seconds, rewards, reason)
