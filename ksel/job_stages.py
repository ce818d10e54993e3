"""The stages of the main job, one after the other; part of the entry point :mod:`ksel.run`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from agents.policy import Learner, Policy
from agents.rollout import Played, live, play, search
from envs.distillation import DistillationEnv
from envs.recording import OnDecision, Recorder
from envs.recording_vector import VectorRecorder
from envs.vector_sb3 import DistillationVecEnv
from ksel.artifacts import seconds_per_example
from ksel.costs import stage_cost
from ksel.data import Split
from ksel.evaluation import constant_score, evaluate_dev
from ksel.files import write_json
from ksel.leaving import Job, write_schedule
from ksel.machine import store_folder
from ksel.models import parameter_count
from ksel.packing import State
from ksel.resuming import job_state, keep
from ksel.setup import Setup
from ksel.summary import describe
from ksel.teacher_scores import known_scores
from ksel.tracking import Stage, Tracker, training_loss

CHANCE = 0.01
"""A teacher whose headline metric is above that of a constant answer by no more knows nothing of the task."""


@dataclass(frozen=True)
class Role:
    """A student that is to be distilled.

    Attributes:
        actor: decides; a learner learns meanwhile, and its student is the one that stays.
        name: of the student, for people.
        measure, observe, plain: as of :func:`agents.rollout.play`.
    """

    actor: Policy | Learner
    name: str
    measure: bool
    observe: bool = False
    plain: bool = False


def begin_stage(job: Job, stage: str, state: State | None) -> State | None:
    """Begin a stage, or go on within it.

    Args:
        job: the run.
        stage: ``search``, ``final`` or ``reference:<name>``.
        state: what an interrupted run goes on from; None = nothing is to be gone on with.

    Returns:
        The state of the play that goes on in this stage; None = it begins.

    Raises:
        UsageError: the checkpoint of its beginning cannot be written.
    """
    assert job.setup is not None
    assert job.checkpoints is not None
    job.stage = stage
    inside: State | None = state["inside"] if state and state["stage"] == stage else None
    job.checkpoints.begin(resumed=inside is not None)
    if inside is None:
        job.before = job.setup.ledger.copy()
        keep(job)
    return inside


def _offer(job: Job, decisions: int, inside: Callable[[], State]) -> None:
    """A point to go on from; see :data:`agents.policy.Keep`."""
    assert job.checkpoints is not None
    job.checkpoints.offer(decisions, lambda: job_state(job, inside()))


def measure_teacher(job: Job, setup: Setup, tracker: Tracker) -> None:
    """Score each teacher; ``teacher.json`` is the first one's, with the ``others`` in it."""
    records = []
    for number, teacher in enumerate(setup.teachers):
        model, dev = teacher.model, setup.dev_as_read[number]
        metrics = known_scores(
            store_folder(job.config),
            model,
            setup.task,
            dev,
            job.config.batching.eval_size,
            partial(_dev, setup, model, None, dev),
        )
        records.append(
            {
                **teacher.record,
                "data": setup.origin,
                "metrics": metrics,
                "parameters": parameter_count(model),
                "ms_per_example": _milliseconds(setup, model, dev),
            }
        )
        name = f"teacher {number + 1}" if number else "teacher"
        values = {f"{name.replace(' ', '_')}/{key}": value for key, value in metrics.items()}
        tracker.log("teacher", 0, values)
        job.progress.say(
            f"{name}: {describe(setup.teacher_shapes[number], model)}; {_words(metrics)}"
        )
        _warn_of_chance(job, name, next(iter(metrics.items())), next(iter(dev.values())))
    job.teacher = {**records[0], "others": records[1:]}
    write_json(job.folder / "teacher.json", job.teacher)


# --------------------------------------------------------------------------- search


def search_stage(
    job: Job, agent: Learner, env: DistillationEnv, tracker: Tracker, inside: State | None
) -> None:
    """Let the agent learn over episodes, and note the figures.

    Args:
        job: the run.
        agent: learns in place.
        env: its budget is the length of an episode.
        tracker: where measurements go.
        inside: a state to go on from; None = the search begins.
    """
    assert job.before is not None
    episodes = job.config.episodes.count
    decisions = env.decisions()
    bar = job.progress.stage(f"search ({episodes} episodes)", episodes * decisions)

    def show(update: int, reward: float, info: dict[str, Any]) -> None:
        _say_trust(job, info)
        figures = {"reward": reward, "objective": info.get("objective", math.nan)}
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        bar.advance(loss=training_loss(info), **known)

    recorder = _search_recorder(job, env, tracker, show)
    if inside is not None:
        bar.advance(len(job.writer.rows("search")) if job.writer else 0)
    searched = search(
        agent,
        recorder,
        episodes,
        decisions,
        seed=job.config.seed,
        logger_folder=job.folder / "tensorboard" / "agent",
        keep=lambda taken, state: _offer(job, taken, state),
        state=inside,
    )
    bar.close()
    write_schedule(job)
    spent = env.setup.ledger.since(job.before)
    tracker.log("search", searched.updates, spent.flat())
    job.costs["search"] = stage_cost(spent, searched.seconds)
    for episode, total in enumerate(searched.rewards):
        tracker.log("episodes", episode, {"reward/episode": total})
    job.search = {
        "episodes": len(searched.rewards),
        "decisions": searched.decisions,
        "updates": searched.updates,
        "seconds": searched.seconds,
        "rewards": list(searched.rewards),
        "students": job.config.students,
        "vectorized": recorder.engine.students.mode
        if isinstance(recorder, VectorRecorder)
        else None,
        "learned": agent.figures(),
    }
    for line in job.search["learned"].get("says", ()):
        job.progress.say(line)


def _say_trust(job: Job, info: dict[str, Any]) -> None:
    line = job.trust(info, job.stage)
    if line is not None:
        job.progress.say(line)


def _search_recorder(
    job: Job, env: DistillationEnv, tracker: Tracker, show: OnDecision
) -> Recorder | VectorRecorder:
    """Writes down the search: of one student, or of several side by side."""
    assert job.writer is not None
    config = job.config
    if config.students == 1:
        return Recorder(env, "search", job.writer, tracker, show)
    students = DistillationVecEnv(
        env.setup, config.students, config.vectorize, job.soft, env.updates, job.progress.say
    )
    return VectorRecorder(students, "search", job.writer, tracker, show)


# --------------------------------------------------------------------------- students


@dataclass
class OnTheWay:
    """What is shown and measured while a student trains.

    Attributes:
        waiting: update numbers of the measurements to come.
        done: updates shown.
        curve: the figure measured last, by name.
    """

    job: Job
    bar: Stage
    tracker: Tracker
    measured: bool
    waiting: list[int]
    done: int = 0
    curve: dict[str, float] = field(default_factory=dict)

    def show(self, update: int, reward: float, info: dict[str, Any]) -> None:
        """See :data:`envs.recording.OnDecision`."""
        _say_trust(self.job, info)
        rewards = {"reward": reward} if self.measured and math.isfinite(reward) else {}
        self.bar.advance(update - self.done, loss=training_loss(info), **rewards, **self.curve)
        self.done = update

    def go_on(self, update: int) -> None:
        """All up to this update was shown and measured before."""
        self.bar.advance(update)
        self.done = update
        self.waiting = [mark for mark in self.waiting if mark > update]

    def evaluate(self, update: int) -> None:
        """Measure the dev metrics if a mark has been reached."""
        if not self.waiting or update < self.waiting[0]:
            return
        self.waiting = [mark for mark in self.waiting if mark > update]
        setup = self.job.setup
        assert setup is not None
        metrics = _dev(setup, setup.student, self.job.config.rows.dev_on_the_way)
        self.curve.update(list(metrics.items())[:1])
        values = {f"student/{key}": value for key, value in metrics.items()}
        self.tracker.log(self.job.stage, update, values)


def evaluation_marks(updates: int, count: int) -> list[int]:
    """Update numbers of the measurements on the way, evenly spread, the last one at the end."""
    return sorted({round(updates * (i + 1) / count) for i in range(count)} - {0})


def distil(
    job: Job, role: Role, env: DistillationEnv, tracker: Tracker, inside: State | None
) -> None:
    """Distil one student, evaluate it on the way and at the end, and note the figures.

    Args:
        job: the run; its ``stage`` is the student's.
        role: the student.
        env: where it trains.
        tracker: where measurements go.
        inside: a state to go on from; None = the student begins.
    """
    assert job.writer is not None
    assert job.setup is not None
    assert job.before is not None
    setup, stage = job.setup, job.stage
    bar = job.progress.stage(f"student {role.name}", setup.updates)
    marks = evaluation_marks(setup.updates, job.config.evaluations)
    shown = OnTheWay(job, bar, tracker, role.measure, marks)
    one_life = isinstance(role.actor, Learner)
    recorder = Recorder(env, stage, job.writer, tracker, shown.show, one_life=one_life)
    played = _played(job, role, recorder, shown, inside)
    metrics = _dev(setup, setup.student, None)
    spent = setup.ledger.since(job.before)
    dev = {f"dev/{key}": value for key, value in metrics.items()}
    tracker.log(stage, played.updates, {**dev, **spent.flat()})
    job.costs[stage] = stage_cost(spent, played.seconds)
    bar.close()
    write_schedule(job)
    learned = role.actor.figures() if isinstance(role.actor, Learner) else {}
    job.students.append({**_figures(job, role.name, metrics, played), "learned": learned})
    rows = job.writer.rows(stage)
    actions = np.stack([row.action for row in rows])
    updates = np.array([row.update for row in rows])
    tracker.heat_map(stage, actions, updates, setup.distiller.ends)
    for line in learned.get("says", ()):
        job.progress.say(line)
    early = f" (ended after {played.updates} updates: {played.reason})" if played.reason else ""
    job.progress.say(f"student {role.name}: {_words(metrics)}{early}")


def _played(
    job: Job, role: Role, recorder: Recorder, shown: OnTheWay, inside: State | None
) -> Played:
    """The student's life, or the rest of it."""
    if inside is not None:
        shown.go_on(recorder.updates_in(inside["env"]))

    def offer(decisions: int, state: Callable[[], State]) -> None:
        _offer(job, decisions, state)

    if isinstance(role.actor, Learner):
        return live(
            role.actor,
            recorder,
            recorder.inner.decisions(),
            seed=job.config.seed,
            logger_folder=job.folder / "tensorboard" / "agent",
            on_update=shown.evaluate,
            keep=offer,
            state=inside,
        )
    return play(
        role.actor,
        recorder,
        seed=job.config.seed,
        measure=role.measure,
        observe=role.observe,
        plain=role.plain,
        on_update=shown.evaluate,
        keep=offer,
        state=inside,
    )


def _figures(job: Job, name: str, metrics: dict[str, float], played: Played) -> dict[str, Any]:
    assert job.writer is not None
    assert job.setup is not None
    shares = np.stack([row.action for row in job.writer.rows(job.stage)]).mean(0)
    return {
        "name": name,
        "metrics": metrics,
        "parameters": parameter_count(job.setup.student),
        "ms_per_example": _student_milliseconds(job),
        "updates": played.updates,
        "decisions": played.decisions,
        "seconds": played.seconds,
        "shares": dict(zip(job.setup.pool.names, map(float, shares), strict=True)),
        "reason": played.reason,
    }


def _warn_of_chance(job: Job, name: str, headline: tuple[str, float], dev: Split) -> None:
    """Say so where a teacher knows no more of the task than one constant answer does."""
    assert job.setup is not None
    metric, value = headline
    constant = constant_score(job.setup.task, dev.labels)
    if constant is not None and value <= constant + CHANCE:
        job.progress.say(
            f"note: {name} is no better than one constant answer, which has {metric} {constant:.3f}: its "
            f"signals say little about this task. Fine-tune it for longer (--fine_tune.epochs, "
            f"--fine_tune.learning_rate), or choose another."
        )


def _dev(
    setup: Setup, model: Any, rows: int | None, dev: dict[str, Split] | None = None
) -> dict[str, float]:
    dev = dev or setup.dev
    sizes = [min(rows or s.num_examples, s.num_examples) for s in dev.values()]
    with setup.ledger.time("dev", sum(sizes)):
        return evaluate_dev(
            model,
            setup.task,
            dev,
            rows=rows,
            batch_size=setup.config.batching.eval_size,
            device=setup.device,
            span=setup.config.span,
        )


def _student_milliseconds(job: Job) -> float:
    """Measured on the first student of a run: the others have its shape, so they have its figure."""
    assert job.setup is not None
    if job.students:
        return float(job.students[0]["ms_per_example"])
    return _milliseconds(job.setup, job.setup.student)


def _milliseconds(setup: Setup, model: Any, dev: dict[str, Split] | None = None) -> float:
    first = next(iter((dev or setup.dev).values()))
    return 1000 * seconds_per_example(model, first, setup.device)


def _words(metrics: dict[str, float]) -> str:
    return ", ".join(f"dev {name} {value:.4f}" for name, value in metrics.items())
