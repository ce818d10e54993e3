"""Plays episodes: a search in which an agent learns, and single episodes of a policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.policy import Counting, Keep, Learner, Policy, Resumable
from envs.recording import Recorder
from envs.recording_vector import VectorRecorder
from ksel.packing import State

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
    keep: Keep | None = None,
    state: State | None = None,
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
        keep: offered a state wherever the search can go on from; by agents that are
            :class:`agents.policy.Resumable`.
        state: one of these, to go on from; all else is as it was then.
    """
    return _learned(
        agent,
        env,
        episodes * decisions,
        seed=seed + SEARCH_SEED,
        logger_folder=logger_folder,
        stop=stop,
        keep=keep,
        state=state,
    )


def live(
    agent: Learner,
    env: Recorder,
    decisions: int,
    *,
    seed: int,
    logger_folder: Path | None,
    on_update: Callable[[int], None] | None = None,
    keep: Keep | None = None,
    state: State | None = None,
) -> Played:
    """Let an agent learn while the one and only student trains (an online search).

    Args:
        agent: learns in place; ``agent.frozen()`` is its policy afterwards.
        env: records the decisions; made with ``one_life``, so that its student is that of this life.
        decisions: decisions of the life.
        seed: seed of batches and agent; the same seed gives the same batches to every policy.
        logger_folder: where the agent logs for TensorBoard; None = nowhere.
        on_update: called with the updates done after each decision, e.g. to evaluate.
        keep, state: as in :func:`search`.
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
        keep=keep,
        state=state,
    )
    return replace(played, reason=env.ended_early)


@dataclass
class Clock:
    """Wall-clock seconds of environment and agent, less what is done beside: recording, evaluating.

    Attributes:
        beside: seconds to be left out.
        before: seconds of the part that another process has played.
    """

    env: Recorder | VectorRecorder
    before: float = 0.0
    beside: float = 0.0

    def __post_init__(self) -> None:
        self.start, self.recording = time.perf_counter(), self.env.recording_seconds

    @property
    def seconds(self) -> float:
        """So far."""
        recording = self.env.recording_seconds - self.recording
        return self.before + time.perf_counter() - self.start - self.beside - recording

    @contextmanager
    def out(self) -> Iterator[None]:
        """Leave out what is done inside."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.beside += time.perf_counter() - before


def _learned(
    agent: Learner,
    env: Recorder | VectorRecorder,
    decisions: int,
    *,
    seed: int,
    logger_folder: Path | None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    keep: Keep | None = None,
    state: State | None = None,
) -> Played:
    """Let an agent learn; what ``progress`` does is not counted as its time."""

    def annotate(probabilities: np.ndarray, log_prob: float) -> None:
        env.writer.annotate_next(probabilities, log_prob)

    def timed(taken: int) -> None:
        with clock.out():
            if progress is not None:
                progress(taken)

    def offer(taken: int, own: Callable[[], State]) -> None:
        assert keep is not None
        with clock.out():
            keep(taken, lambda: {"agent": own(), **_so_far(env, begin, clock.seconds)})

    clock, begin = Clock(env), _begin(env)
    if isinstance(agent, Resumable):
        agent.keep, agent.state = None if keep is None else offer, None
    if state is not None:
        assert isinstance(agent, Resumable)
        begin = _go_on(env, state, clock)
        agent.state = state["agent"]
    taken = agent.learn(
        env,
        decisions,
        seed=seed,
        logger_folder=logger_folder,
        on_step=annotate,
        progress=timed,
        stop=stop,
    )
    seconds = clock.seconds
    env.ledger.add("agent", seconds - (env.seconds - begin["seconds"]), taken)
    done = env.updates_done - begin["updates"]
    return Played(done, taken, seconds, tuple(env.rewards[begin["episodes"] :]))


def _begin(env: Recorder | VectorRecorder) -> dict[str, Any]:
    """What a recorder had counted by now."""
    return {"episodes": len(env.rewards), "updates": env.updates_done, "seconds": env.seconds}


def _so_far(env: Recorder | VectorRecorder, begin: dict[str, Any], seconds: float) -> State:
    return {"env": env.get_state(), "begin": begin, "seconds": seconds}


def _go_on(env: Recorder | VectorRecorder, state: State, clock: Clock | None) -> dict[str, Any]:
    """Put the environment into a state; gives what had been counted when the play began."""
    env.set_state(state["env"])
    if clock is not None:
        clock.before = state["seconds"]
    return dict(state["begin"])


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
    keep: Keep | None = None,
    state: State | None = None,
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
        keep: offered a state after each decision but the last.
        state: one of these, to go on from; all else is as it was then.
    """
    rng, begin = np.random.default_rng([seed, 5]), _begin(env)
    agent_seconds, decisions, terminated = 0.0, 0, False
    reason = None
    if state is None:
        options = {**measuring(measure, observe), "plain": plain}
        observation, _ = env.reset(seed=seed, options=options)
        policy.reset(rng)
    else:
        begin = _go_on(env, state, None)
        observation, decisions, agent_seconds = (
            env.observation,
            state["decisions"],
            state["seconds"],
        )
        policy.reset(rng)
        rng.bit_generator.state = state["rng"]
        if isinstance(policy, Counting):
            policy.decision = decisions
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
        if keep is not None and not terminated:
            own = {"decisions": decisions, "rng": rng.bit_generator.state}
            keep(decisions, partial(_with, own, env, begin, agent_seconds))
    seconds = env.seconds - begin["seconds"] + agent_seconds
    env.ledger.add("agent", agent_seconds, decisions)
    rewards = tuple(env.rewards[begin["episodes"] :])
    return Played(env.updates_done - begin["updates"], decisions, seconds, rewards, reason)


def _with(own: State, env: Recorder, begin: dict[str, Any], seconds: float) -> State:
    return {**own, **_so_far(env, begin, seconds)}
