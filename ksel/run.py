"""The main job: ``python -m ksel.run --task qnli --agent a2c``. Parses, wires the rooms, prints.

Stages: prepare data, teacher and student; search, in which the agent learns over episodes; the
final student under the frozen policy; reference students; summary and report.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.fixed import static_policy
from agents.make import (
    check_agent,
    check_settings,
    get_agent,
    make_agent,
    resolve_actions,
    resolve_reward,
    resolve_search,
)
from agents.policy import Learner, Policy
from agents.rollout import Played, live, play, search
from agents.stable_baselines import check_students
from envs.distillation import DistillationEnv
from envs.recording import OnDecision, Recorder
from envs.recording_vector import VectorRecorder
from envs.seats import refuse_unfit
from envs.vector_sb3 import DistillationVecEnv
from ksel.artifacts import make_run_folder, seconds_per_example, write_settings
from ksel.checks import check_unrewarded
from ksel.cli import INTERRUPTED_EXIT, guard, quiet_libraries, shielded
from ksel.config import RunConfig
from ksel.costs import stage_cost
from ksel.data import Split
from ksel.errors import UsageError
from ksel.evaluation import evaluate_dev
from ksel.files import write_json
from ksel.knowledge import KINDS, KnowledgePool, kind_of
from ksel.leaving import Job, fail, leave, stopped, write_schedule, write_student
from ksel.machine import resolve_threads
from ksel.models import parameter_count
from ksel.saved import inputs
from ksel.settings import config_files, layer_names, parse_run
from ksel.setup import Setup, episode_updates, prepare
from ksel.stages import Stage, decision_count, stage_ends, stage_shares
from ksel.summary import describe, opening_lines, print_summary
from ksel.tracking import Progress, Tracker, training_loss
from ksel.trajectory import ScheduleWriter


def main(argv: list[str]) -> int:
    """Run the main job; returns the exit code."""
    quiet_libraries()
    config = parse_run(argv)
    check_settings(config)
    check_references(config, None)
    info = get_agent(config.agent)
    if "amortized" not in info.rewards:
        check_unrewarded(config, observes=info.observes)
    soft = resolve_actions(config.agent, config.env.actions)
    config = resolve_threads(_resolve(config))
    check_students(config)
    if config.students > 1:
        refuse_unfit(config.env.reward, config.search, config.students)
    folder = make_run_folder(config)
    with Progress() as progress:
        job = Job(config, folder, progress, soft)
        masks = "soft" if soft else "hard"
        method = f"method {config.method}, " if config.method else ""
        progress.say(
            f"run: {config.task}, {method}agent {config.agent} ({masks} masks), seed {config.seed}; "
            f"folder {folder}"
        )
        layers = [*(f"configs/{name}" for name in layer_names(argv)), *config_files(argv)]
        progress.say(
            f"settings: {', '.join([*layers, 'the command line'])}, each over the one before"
        )
        try:
            _work(job)
            job.status = "complete"
        except KeyboardInterrupt:
            job.status = "interrupted"
            progress.say("stopped by Ctrl-C: writing what there is")
        except Exception as error:
            fail(job, error)
            raise
        with shielded():
            summary = leave(job)
    if job.status == "complete":
        print_summary(summary)
        print(f"student: {folder / 'student'}")
        print(f"report: {folder / 'report.html'}")
        print(f"curves: tensorboard --logdir {folder / 'tensorboard'}")
        return 0
    print(stopped(summary, folder))
    return INTERRUPTED_EXIT


def _resolve(config: RunConfig) -> RunConfig:
    """The settings with what ``auto`` stands for, so that a repeat does the same."""
    search = resolve_search(config.agent, config.search)
    reward = resolve_reward(config.agent, config.env.reward, search)
    return replace(config, search=search, env=replace(config.env, reward=reward))


def _work(job: Job) -> None:
    config, progress, soft = job.config, job.progress, job.soft
    job.setup = setup = prepare(config, progress, partial(_check, config))
    job.config = config = setup.config
    write_settings(job.folder, config, setup.origin)
    episode = episode_updates(config, setup.updates)
    env = DistillationEnv(setup=setup, soft=soft)
    agent = make_agent(config, setup.pool.names, spaces.Dict(env.spaces), env.action_space)
    episodic = agent.learns and config.search == "episodes"
    for line in opening_lines(setup, episode if episodic else None):
        progress.say(line)
    job.writer = ScheduleWriter(
        setup.pool.names,
        env.feature_names,
        {
            "soft": soft,
            "task": config.task,
            "agent": config.agent,
            "seed": config.seed,
            "data": setup.origin,
            "builtin_data": setup.builtin,
            "updates": setup.updates,
            "stage_ends": list(setup.distiller.ends),
            "inputs": inputs(setup),
        },
    )
    with Tracker(job.folder, setup.pool.names) as tracker:
        tracker.layout()
        job.stage = "teacher"
        _measure_teacher(job, setup, tracker)
        actor: Policy | Learner = agent
        if isinstance(agent, Learner):
            job.learner = agent
        if isinstance(agent, Learner) and episodic:
            job.stage = "search"
            search_env = DistillationEnv(setup=setup, soft=soft, updates=episode)
            _search(job, agent, search_env, tracker)
            actor = job.policy = agent.frozen()
        # From here on the student is the final one, also if Ctrl-C comes before its first update.
        setup.distiller.reset(config.seed, setup.updates)
        job.stage = "final"
        if not isinstance(actor, Learner):
            job.policy = actor
        observes = get_agent(config.agent).observes
        measure = agent.learns or config.env.reward == "amortized"
        job.writer.meta |= {"measured": measure, "observed": observes}
        _distil(job, actor, env, "final", "selected", tracker, measure=measure, observe=observes)
        write_student(job)
        for name in config.references:
            job.stage = f"reference:{name}"
            policy = static_policy(_mask(name), setup.pool.names, soft, "--references")
            # "all" is the run's own pool as it stands; one type alone has no stages to go through
            _distil(job, policy, env, job.stage, name, tracker, measure=False, plain=name != "all")


def _check(config: RunConfig, pool: KnowledgePool, stages: tuple[Stage, ...], updates: int) -> None:
    """Refuse what this pool and budget do not allow, before any teacher is trained."""
    check_references(config, pool.names)
    ends = stage_ends(stage_shares(config.stages), episode_updates(config, updates))
    online = config.search in ("online", "branch")
    if online:
        ends = stage_ends(stage_shares(config.stages), updates)
    count = 1 if online else config.episodes.count
    decisions = count * decision_count(ends, config.env.phase_steps)
    check_agent(config, pool.names, decisions, [stage.allowed for stage in stages])


def check_references(config: RunConfig, pool: Sequence[str] | None) -> None:
    """Refuse reference students that this pool cannot make.

    Args:
        config: the run.
        pool: names of the knowledge types; None = not built yet: check what needs no pool.

    Raises:
        UsageError: names the reference and what is missing.
    """
    specs = config.knowledge.pool
    if "finetune" in config.references and "label" not in specs and _are_kinds(specs):
        raise UsageError(
            "--references finetune trains on the label alone, and --knowledge.pool has no "
            "'label'. Add it to the pool, or leave finetune out of --references."
        )
    if len(set(config.references)) != len(config.references):
        raise UsageError("--references: each name once.")
    for name in config.references if pool is not None else ():
        static_policy(_mask(name), pool or (), option="--references")


def _are_kinds(specs: Sequence[str]) -> bool:
    """False where the pool has mistakes of its own, which are told when it is built."""
    return bool(specs) and all(kind_of(spec) in KINDS for spec in specs)


def _mask(reference: str) -> list[str]:
    return ["label"] if reference == "finetune" else [reference]


# --------------------------------------------------------------------------- stages


def _measure_teacher(job: Job, setup: Setup, tracker: Tracker) -> None:
    """Score each teacher; ``teacher.json`` is the first one's, with the ``others`` in it."""
    records = []
    for number, teacher in enumerate(setup.teachers):
        model, dev = teacher.model, setup.dev_as_read[number]
        metrics = _dev(setup, model, None, dev)
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
    job.teacher = {**records[0], "others": records[1:]}
    write_json(job.folder / "teacher.json", job.teacher)


def _search(job: Job, agent: Learner, env: DistillationEnv, tracker: Tracker) -> None:
    assert job.writer is not None
    episodes = job.config.episodes.count
    decisions = env.decisions()
    bar = job.progress.stage(f"search ({episodes} episodes)", episodes * decisions)

    def show(update: int, reward: float, info: dict[str, Any]) -> None:
        _say_trust(job, info)
        bar.advance(
            loss=training_loss(info), reward=reward, objective=info.get("objective", math.nan)
        )

    recorder = _search_recorder(job, env, tracker, show)
    before = env.setup.ledger.copy()
    searched = search(
        agent,
        recorder,
        episodes,
        decisions,
        seed=job.config.seed,
        logger_folder=job.folder / "tensorboard" / "agent",
    )
    bar.close()
    write_schedule(job)
    spent = env.setup.ledger.since(before)
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
    }


def _say_trust(job: Job, info: dict[str, Any]) -> None:
    line = job.trust(info)
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


def _distil(
    job: Job,
    actor: Policy | Learner,
    env: DistillationEnv,
    stage: str,
    name: str,
    tracker: Tracker,
    *,
    measure: bool,
    observe: bool = False,
    plain: bool = False,
) -> None:
    """Distil one student, evaluate it on the way and at the end, and note the figures.

    A learner learns meanwhile, and its student is the one that stays.
    """
    assert job.writer is not None
    assert job.setup is not None
    setup = job.setup
    bar = job.progress.stage(f"student {name}", setup.updates)
    curve: dict[str, float] = {}
    done = 0

    def show(update: int, reward: float, info: dict[str, Any]) -> None:
        nonlocal done
        _say_trust(job, info)
        rewards = {"reward": reward} if measure else {}
        bar.advance(update - done, loss=training_loss(info), **rewards, **curve)
        done = update

    one_life = isinstance(actor, Learner)
    recorder = Recorder(env, stage, job.writer, tracker, show, one_life=one_life)

    def on_the_way(update: int) -> None:
        metrics = _dev(setup, setup.student, job.config.rows.dev_on_the_way)
        curve.update(list(metrics.items())[:1])
        tracker.log(stage, update, {f"student/{key}": value for key, value in metrics.items()})

    marks = evaluation_marks(setup.updates, job.config.evaluations)
    before = setup.ledger.copy()
    evaluate = _at_marks(marks, on_the_way)
    if isinstance(actor, Learner):
        played = live(
            actor,
            recorder,
            env.decisions(),
            seed=job.config.seed,
            logger_folder=job.folder / "tensorboard" / "agent",
            on_update=evaluate,
        )
    else:
        played = play(
            actor,
            recorder,
            seed=job.config.seed,
            measure=measure,
            observe=observe,
            plain=plain,
            on_update=evaluate,
        )
    metrics = _dev(setup, setup.student, None)
    spent = setup.ledger.since(before)
    dev = {f"dev/{key}": value for key, value in metrics.items()}
    tracker.log(stage, played.updates, {**dev, **spent.flat()})
    job.costs[stage] = stage_cost(spent, played.seconds)
    bar.close()
    write_schedule(job)
    job.students.append(_figures(job, name, stage, metrics, played))
    rows = job.writer.rows(stage)
    actions = np.stack([row.action for row in rows])
    updates = np.array([row.update for row in rows])
    tracker.heat_map(stage, actions, updates, setup.distiller.ends)
    early = f" (ended after {played.updates} updates: {played.reason})" if played.reason else ""
    job.progress.say(f"student {name}: {_words(metrics)}{early}")


def evaluation_marks(updates: int, count: int) -> list[int]:
    """Update numbers of the measurements on the way, evenly spread, the last one at the end."""
    return sorted({round(updates * (i + 1) / count) for i in range(count)} - {0})


def _at_marks(marks: list[int], act: Callable[[int], None]) -> Callable[[int], None]:
    waiting = list(marks)

    def on_update(update: int) -> None:
        if waiting and update >= waiting[0]:
            while waiting and update >= waiting[0]:
                waiting.pop(0)
            act(update)

    return on_update


def _figures(
    job: Job, name: str, stage: str, metrics: dict[str, float], played: Played
) -> dict[str, Any]:
    assert job.writer is not None
    assert job.setup is not None
    shares = np.stack([row.action for row in job.writer.rows(stage)]).mean(0)
    return {
        "name": name,
        "metrics": metrics,
        "parameters": parameter_count(job.setup.student),
        "ms_per_example": _milliseconds(job.setup, job.setup.student),
        "updates": played.updates,
        "decisions": played.decisions,
        "seconds": played.seconds,
        "shares": dict(zip(job.setup.pool.names, map(float, shares), strict=True)),
        "reason": played.reason,
    }


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


def _milliseconds(setup: Setup, model: Any, dev: dict[str, Split] | None = None) -> float:
    first = next(iter((dev or setup.dev).values()))
    return 1000 * seconds_per_example(model, first, setup.device)


def _words(metrics: dict[str, float]) -> str:
    return ", ".join(f"dev {name} {value:.4f}" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(guard(main))
