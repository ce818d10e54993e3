"""The main job: ``python -m ksel.run --task qnli --agent a2c``. Parses, wires the rooms, prints.

Stages: prepare data, teacher and student; search, in which the agent learns over episodes; the
final student under the frozen policy; reference students; summary and report.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.fixed import static_policy
from agents.make import check_settings, make_agent, resolve_actions
from agents.policy import Policy
from agents.rollout import Played, play, search
from agents.stable_baselines import SB3Agent
from envs.distillation import DistillationEnv
from envs.recording import Recorder
from ksel.artifacts import make_run_folder, save_student, seconds_per_example
from ksel.cli import guard, quiet_libraries
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.evaluation import evaluate_dev
from ksel.files import write_json
from ksel.models import parameter_count
from ksel.report import write_report
from ksel.settings import parse_run
from ksel.setup import Setup, prepare, resolve_threads
from ksel.summary import print_summary
from ksel.tracking import Progress, Tracker
from ksel.trajectory import ScheduleWriter, time_means

SHARE_PARTS = 4
INTERRUPTED = 130


@dataclass
class Job:
    """A run in progress: what there is so far, so that it can be written at any moment."""

    config: RunConfig
    folder: Path
    progress: Progress
    status: str = "interrupted"
    setup: Setup | None = None
    writer: ScheduleWriter | None = None
    agent: SB3Agent | None = None
    policy: Policy | None = None
    stage: str = "setup"
    teacher: dict[str, Any] = field(default_factory=dict)
    students: list[dict[str, Any]] = field(default_factory=list)
    searched: Played | None = None


def main(argv: list[str]) -> int:
    """Run the main job; returns the exit code."""
    quiet_libraries()
    config = parse_run(argv)
    check_settings(config)
    soft = resolve_actions(config.agent, config.env.actions)
    config = resolve_threads(config)
    folder = make_run_folder(config)
    with Progress() as progress:
        progress.say(f"run: {folder}")
        job = Job(config, folder, progress)
        try:
            _work(job, soft)
            job.status = "complete"
        except KeyboardInterrupt:
            progress.say("stopped by Ctrl-C: writing what there is")
        finally:
            summary = _leave(job)
    if job.status == "complete":
        print_summary(summary)
        write_report(folder)
        print(f"report: {folder / 'report.html'}")
        print(f"tensorboard --logdir {folder / 'tensorboard'}")
        return 0
    print(f"stopped during {job.stage}; {folder} holds what there was: {_inventory(folder)}")
    return INTERRUPTED


def _work(job: Job, soft: bool) -> None:
    config, progress = job.config, job.progress
    job.setup = setup = prepare(config, progress)
    check_references(config, setup.pool.names)
    episode = max(1, round(setup.updates * config.episodes.share))
    env = DistillationEnv(setup=setup, soft=soft)
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
        },
    )
    with Tracker(job.folder, setup.pool.names) as tracker:
        tracker.layout()
        job.stage = "teacher"
        _measure_teacher(job, setup, tracker)
        agent = make_agent(config, setup.pool.names, spaces.Dict(env.spaces), env.action_space)
        if isinstance(agent, SB3Agent):
            job.stage, job.agent = "search", agent
            search_env = DistillationEnv(setup=setup, soft=soft, updates=episode)
            job.searched = _search(job, agent, search_env, tracker)
            job.policy = agent.frozen()
        else:
            job.policy = agent
        job.stage = "final"
        _distil(job, job.policy, env, "final", "selected", tracker, measure=job.policy.learns)
        _save_student(job)
        for name in config.references:
            job.stage = f"reference:{name}"
            policy = static_policy(_mask(name), setup.pool.names, soft, "--references")
            _distil(job, policy, env, job.stage, name, tracker, measure=False)


def check_references(config: RunConfig, pool: Sequence[str]) -> None:
    """Refuse reference students that this pool cannot make.

    Raises:
        UsageError: names the reference and what is missing.
    """
    if "finetune" in config.references and "label" not in pool:
        raise UsageError(
            "--references finetune trains on the label alone, and --knowledge.pool has no "
            "'label'. Add it to the pool, or leave finetune out of --references."
        )
    if len(set(config.references)) != len(config.references):
        raise UsageError("--references: each name once.")
    for name in config.references:
        static_policy(_mask(name), pool, option="--references")


def _mask(reference: str) -> list[str]:
    return ["label"] if reference == "finetune" else [reference]


# --------------------------------------------------------------------------- stages


def _measure_teacher(job: Job, setup: Setup, tracker: Tracker) -> None:
    model = setup.teacher.model
    metrics = _dev(setup, model, None)
    job.teacher = {
        **setup.teacher.record,
        "metrics": metrics,
        "parameters": parameter_count(model),
        "ms_per_example": _milliseconds(setup, model),
    }
    tracker.log("teacher", 0, {f"teacher/{name}": value for name, value in metrics.items()})
    write_json(job.folder / "teacher.json", job.teacher)
    job.progress.say(f"teacher: {_words(metrics)}")


def _search(job: Job, agent: SB3Agent, env: DistillationEnv, tracker: Tracker) -> Played:
    assert job.writer is not None
    episodes = job.config.episodes.count
    decisions = math.ceil(env.updates / job.config.env.phase_steps)
    bar = job.progress.stage(f"search ({episodes} episodes)", episodes * decisions)

    def show(update: int, reward: float, info: dict[str, Any]) -> None:
        bar.advance(reward=reward, objective=info.get("objective", math.nan))

    recorder = Recorder(env, "search", job.writer, tracker, show)
    searched = search(
        agent,
        recorder,
        episodes,
        decisions,
        seed=job.config.seed,
        logger_folder=job.folder / "tensorboard" / "agent",
    )
    bar.close()
    for episode, total in enumerate(searched.rewards):
        tracker.log("episodes", episode, {"reward/episode": total})
    return searched


def _distil(
    job: Job,
    policy: Policy,
    env: DistillationEnv,
    stage: str,
    name: str,
    tracker: Tracker,
    *,
    measure: bool,
) -> None:
    """Distil one student, evaluate it on the way and at the end, and note the figures."""
    assert job.writer is not None and job.setup is not None
    setup = job.setup
    bar = job.progress.stage(f"student {name}", setup.updates)
    curve: dict[str, float] = {}
    done = 0

    def show(update: int, reward: float, info: dict[str, Any]) -> None:
        nonlocal done
        losses = [v for k, v in info.items() if k.startswith("loss/")]
        bar.advance(update - done, **curve, loss=sum(losses) / max(1, len(losses)))
        done = update

    recorder = Recorder(env, stage, job.writer, tracker, show)

    def on_the_way(update: int) -> None:
        metrics = _dev(setup, setup.student, job.config.rows.dev_on_the_way)
        curve.update(list(metrics.items())[:1])
        tracker.log(stage, update, {f"student/{key}": value for key, value in metrics.items()})

    marks = evaluation_marks(setup.updates, job.config.evaluations)
    played = play(
        policy,
        recorder,
        seed=job.config.seed,
        measure=measure,
        on_update=_at_marks(marks, on_the_way),
    )
    metrics = _dev(setup, setup.student, None)
    tracker.log(stage, played.updates, {f"dev/{key}": value for key, value in metrics.items()})
    bar.close()
    job.students.append(_figures(job, name, stage, metrics, played))
    rows = job.writer.rows(stage)
    actions = np.stack([row.action for row in rows])
    tracker.heat_map(stage, actions, np.array([row.update for row in rows]))
    early = f" (ended early: {played.reason})" if played.reason else ""
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
    assert job.setup is not None and job.writer is not None
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


def _dev(setup: Setup, model: Any, rows: int | None) -> dict[str, float]:
    with setup.ledger.time("dev"):
        return evaluate_dev(
            model,
            setup.task,
            setup.dev,
            rows=rows,
            batch_size=setup.config.batching.eval_size,
            device=setup.device,
        )


def _milliseconds(setup: Setup, model: Any) -> float:
    dev = next(iter(setup.dev.values()))
    return 1000 * seconds_per_example(model, dev, setup.device)


def _words(metrics: dict[str, float]) -> str:
    return ", ".join(f"dev {name} {value:.4f}" for name, value in metrics.items())


# --------------------------------------------------------------------------- what is left behind


def _save_student(job: Job) -> None:
    assert job.setup is not None
    metrics = job.students[0]["metrics"] if job.students else {}
    card = {"agent": job.config.agent, "metrics": metrics, "teacher": job.teacher.get("name")}
    save_student(job.folder / "student", job.setup, card)


def _leave(job: Job) -> dict[str, Any]:
    """Write whatever there is: schedule, policy, student, summary."""
    if job.writer is not None and len(job.writer):
        job.writer.write(job.folder / "schedule.parquet")
    if job.agent is not None and job.agent.model is not None:
        job.policy = job.policy or job.agent.frozen()
        job.agent.save_sb3_zip(job.folder / "policy" / "stable_baselines3.zip")
    if job.policy is not None:
        job.policy.save(job.folder / "policy")
    if job.stage == "final" and job.setup is not None and not (job.folder / "student").exists():
        _save_student(job)
    summary = summarize(job)
    write_json(job.folder / "summary.json", summary)
    return summary


def summarize(job: Job) -> dict[str, Any]:
    """The run's ``summary.json``."""
    setup, config = job.setup, job.config
    by_name = {student["name"]: student for student in job.students}
    plain = by_name.get("all", {}).get("seconds")
    selected = by_name.get("selected", {}).get("seconds")
    searched = job.searched.seconds if job.searched else 0.0
    cost = {
        "search_seconds": searched,
        "final_seconds": selected,
        "plain_seconds": plain,
        "search_multiple": searched / plain if plain else None,
        "total_multiple": (searched + selected) / plain if plain and selected else None,
        **(setup.ledger.flat() if setup else {}),
    }
    parts: list[list[float]] = []
    if "selected" in by_name and job.writer is not None:
        actions = np.stack([row.action for row in job.writer.rows("final")])
        parts = time_means(actions, SHARE_PARTS).tolist()
    return {
        "status": job.status,
        "stage": job.stage,
        "task": config.task,
        "agent": config.agent,
        "seed": config.seed,
        "data": setup.origin if setup else None,
        "builtin_data": setup.builtin if setup else None,
        "rows": {
            "train": len(setup.train),
            "reward": len(setup.reward),
            **{name: len(split) for name, split in setup.dev.items()},
        }
        if setup
        else {},
        "headline": setup.task.metrics[0] if setup else None,
        "teacher": job.teacher,
        "students": job.students,
        "search": {
            "episodes": len(job.searched.rewards),
            "decisions": job.searched.decisions,
            "updates": job.searched.updates,
            "rewards": list(job.searched.rewards),
        }
        if job.searched
        else None,
        "shares_over_time": parts,
        "cost": cost,
        "pool": list(setup.pool.names) if setup else list(config.knowledge.pool),
        "student_start": f"{setup.plan.init} ({setup.plan.source})" if setup else None,
        "teacher_signals": setup.signals if setup else None,
        "fallbacks": setup.fallbacks if setup else [],
    }


def _inventory(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir()))


if __name__ == "__main__":
    sys.exit(guard(main))
