"""``python -m ksel.replay RUN``: validate a run, or play its schedule or its policy once more."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.follow import follow
from agents.make import check_rewards, get_agent
from agents.policy import Policy, load_policy, read_header
from agents.rollout import play
from envs.distillation import DistillationEnv
from envs.observation import feature_names
from envs.recording import Recorder
from ksel.artifacts import versions
from ksel.checks import check_unrewarded
from ksel.cli import INTERRUPTED_EXIT, guard, quiet_libraries
from ksel.config import CustomTaskConfig, RunConfig
from ksel.errors import UsageError, unknown_name
from ksel.evaluation import evaluate_dev
from ksel.files import atomic_folder, write_json
from ksel.replays import (
    STAGE,
    Replay,
    carried_actions,
    logged_actions,
    notes,
    replay_table,
    statistics,
    verdicts,
    was_measured,
    was_observed,
)
from ksel.saved import CONFIG, POLICY, SCHEDULE, SavedRun, inputs, open_run
from ksel.settings import parse_over
from ksel.setup import Setup, prepare
from ksel.tracking import Progress, Silent, training_loss
from ksel.trajectory import Schedule, ScheduleWriter, read_schedule
from ksel.validation import copy_weights, judge, judge_twice, load_weights

PROG = "python -m ksel.replay"
MODES = ("validate", "schedule", "policy")
NO_EFFECT = (
    *("agent", "name", "references", "evaluations", "rows.dev_on_the_way", "env.actions"),
    *("search", "students", "vectorize", "branches", "episodes", "method"),
    *("all_action", "greedy", "a2c", "ppo", "ddpg", "bandit"),
    *("static", "random", "annealed", "dynamic"),
)
"""Settings that only a search, a new agent or a measurement on the way reads."""
VALIDATE_TAKES = ("data", "teacher", "teachers", "store", "device", "threads", "student.init")
"""Settings under ``validate``: files may have moved; all else must be the run's."""


@dataclass
class Request:
    """What is to be replayed.

    Attributes:
        run: the run.
        mode: one of :data:`MODES`.
        config: the run's settings with the changes.
        changed: the settings that were changed, by dotted name.
        seeds: one replay for each.
        out: folder in which the replay's own folder is made.
        schedule: the run's schedule.
        status: ``complete`` once every seed was played.
        replays: those that are finished.
        writer: their decisions; None before the first.
        said: what the user must know of all of them.
    """

    run: SavedRun
    mode: str
    config: RunConfig
    changed: dict[str, Any]
    seeds: list[int]
    out: Path
    schedule: Schedule
    status: str = "interrupted"
    replays: list[Replay] = field(default_factory=list)
    writer: ScheduleWriter | None = None
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Player:
    """Who decides in a replay: a frozen policy, or actions [D, K] decided before.

    Attributes:
        soft: True if actions are weights.
        measure: whether rewards are measured, as the run did with its final student: a policy
            that learned observes what is measured, and the record holds the rewards.
        observe: whether each decision is observed, as the run did.
        policy, actions: one of the two.
    """

    soft: bool
    measure: bool
    observe: bool
    policy: Policy | None
    actions: np.ndarray | None


def main(argv: list[str]) -> int:
    """Replay a run; 0, or 1 where ``validate`` finds a difference."""
    quiet_libraries()
    request = parse(argv)
    with Progress() as progress:
        try:
            for seed in request.seeds:
                request.replays.append(_replay(request, seed, progress))
            request.status = "complete"
        except KeyboardInterrupt:
            progress.say("stopped by Ctrl-C")
    if not request.replays:
        print("no replay was finished; nothing was written")
        return INTERRUPTED_EXIT
    folder = _write(request)
    _print(request)
    print(f"written: {folder}")
    if request.status != "complete":
        return INTERRUPTED_EXIT
    return 0 if all(one.identical is not False for one in request.replays) else 1


# --------------------------------------------------------------------------- what is asked for


def parse(argv: Sequence[str]) -> Request:
    """Read the command line, the run's settings and its schedule.

    Raises:
        UsageError: an unknown mode or setting, a setting without effect, or an unusable run.
        SystemExit: after ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} RUN [--mode MODE] [--seeds N] [--seed S] [--out DIR] [any setting of a run]",
        description="Play a run once more, and compare.",
        epilog="All other options are the run's settings (python -m ksel.run --help), taken from "
        "RUN/config.yaml and overridden here, e.g. --task, --data, --student.layers, --teacher.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--mode",
        default="validate",
        help="validate: the logged decisions must give the saved student again, bit for bit on the "
        "CPU (a further seed is played twice, and the two students must be identical); schedule: "
        "the same masks on another seed, student, task or teacher; policy: the frozen policy "
        "decides anew",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of seeds, from --seed (the run's) upwards"
    )
    parser.add_argument("--out", help="folder for the replay's own folder; default RUN/replays")
    own, rest = parser.parse_known_args(list(argv))
    if own.mode not in MODES:
        raise unknown_name("mode", own.mode, MODES, "--mode")
    if own.seeds < 1:
        raise UsageError(f"--seeds: {own.seeds} seeds; give 1 or more.")
    name, rest = _take_run(rest)
    run = open_run(Path(name))
    config = parse_over(run.folder / CONFIG, rest, PROG)
    changed = {
        key: value
        for key, value in _flat(config).items()
        if key != "out" and value != _flat(run.config)[key]
    }
    _check_changes(own.mode, changed)
    info = get_agent(run.config.agent)
    if "amortized" not in info.rewards:
        check_unrewarded(config, observes=info.observes)
    check_rewards(config)
    if config.task != run.config.task and config.task != "custom":
        config = replace(config, custom=CustomTaskConfig())
    schedule = read_schedule(run.folder / SCHEDULE)
    _check_run(own.mode, run, schedule)
    return Request(
        run,
        own.mode,
        config,
        changed,
        [config.seed + i for i in range(own.seeds)],
        Path(own.out) if own.out else run.folder / "replays",
        schedule,
    )


def _check_run(mode: str, run: SavedRun, schedule: Schedule) -> None:
    """Refuse what cannot be replayed now, not after minutes of data and teacher."""
    if mode == "policy":
        read_header(run.folder / POLICY)
        return
    logged_actions(schedule, schedule.pool)
    was_measured(schedule)
    was_observed(schedule)
    if mode == "validate":
        load_weights(run.needs_student())


def _take_run(words: list[str]) -> tuple[str, list[str]]:
    """The first word that is no option and no option's value; every setting takes one value."""
    i = 0
    while i < len(words):
        if not words[i].startswith("-"):
            return words[i], words[:i] + words[i + 1 :]
        i += 1 if "=" in words[i] else 2
    raise UsageError(f"RUN: name the folder of a run: {PROG} RUN [--mode schedule] ...")


def _flat(config: RunConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    groups = {one.name for one in fields(config) if is_dataclass(getattr(config, one.name))}
    for name, value in asdict(config).items():
        if name in groups:
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _check_changes(mode: str, changed: dict[str, Any]) -> None:
    for name in changed:
        if name in NO_EFFECT or name.split(".")[0] in NO_EFFECT:
            raise UsageError(
                f"--{name} has no effect on a replay: the decisions come from the run's schedule "
                f"or its frozen policy. Leave it out, or make a new run with python -m ksel.run."
            )
        if mode == "validate" and name not in VALIDATE_TAKES:
            raise UsageError(
                f"--{name}: --mode validate repeats the run as it was. Use --mode schedule or "
                f"--mode policy to change it; validate takes "
                f"{', '.join(f'--{option}' for option in VALIDATE_TAKES)}."
            )


# --------------------------------------------------------------------------- one replay


def _replay(request: Request, seed: int, progress: Progress) -> Replay:
    first = request.writer is None
    setup = prepare(replace(request.config, seed=seed), progress if first else Silent())
    player = _player(request, setup)
    if request.writer is None:
        request.writer = _writer(request, setup, player.soft)
        for line in request.said:
            progress.say(line)
    found, start = inputs(setup), copy_weights(setup.student)
    replay = _play(request, setup, player, progress)
    if request.mode == "validate":
        once = copy_weights(setup.student)
        if seed == request.run.config.seed:
            judge(replay, request.run, request.schedule, setup, found, start)
        else:
            _play(request, setup, player, progress)
            judge_twice(replay, once, copy_weights(setup.student), start, setup.device)
    for row in replay.rows:
        request.writer.add(replace(row, episode=seed))
    return replay


def _player(request: Request, setup: Setup) -> Player:
    if request.mode == "policy":
        shapes = {n: tuple(s.shape or ()) for n, s in DistillationEnv(setup=setup).spaces.items()}
        folder = request.run.folder / POLICY
        policy = load_policy(folder, pool=setup.pool.names, observation=shapes)
        observes = get_agent(policy.name).observes
        return Player(policy.soft, policy.learns, observes, policy, None)
    schedule = request.schedule
    if request.mode == "validate":
        actions = logged_actions(schedule, setup.pool.names)
    else:
        actions, line = carried_actions(schedule, setup, request.run.config)
        if line is not None and line not in request.said:
            request.said.append(line)
    return Player(schedule.soft, was_measured(schedule), was_observed(schedule), None, actions)


def _play(
    request: Request,
    setup: Setup,
    player: Player,
    progress: Progress,
) -> Replay:
    seed = setup.config.seed
    env = DistillationEnv(setup=setup, soft=player.soft)
    writer = ScheduleWriter(setup.pool.names, env.feature_names, {**request.schedule.meta})
    bar = progress.stage(f"{request.mode}, seed {seed}", setup.updates)

    def show(update: int, reward: float, info: dict[str, Any]) -> None:
        bar.advance(update - bar.done, loss=training_loss(info))

    recorder = Recorder(env, STAGE, writer, on_decision=show)
    if player.policy is not None:
        played = play(
            player.policy, recorder, seed=seed, measure=player.measure, observe=player.observe
        )
    else:
        assert player.actions is not None
        played = follow(
            player.actions, recorder, seed=seed, measure=player.measure, observe=player.observe
        )
    bar.close()
    metrics = evaluate_dev(
        setup.student,
        setup.task,
        setup.dev,
        rows=None,
        batch_size=setup.config.batching.eval_size,
        device=setup.device,
        span=setup.config.span,
    )
    return Replay(
        seed,
        metrics,
        played.updates,
        played.decisions,
        played.seconds,
        played.reason,
        rows=writer.rows(STAGE),
    )


# --------------------------------------------------------------------------- what is left behind


def _writer(request: Request, setup: Setup, soft: bool) -> ScheduleWriter:
    meta = {
        "soft": soft,
        "task": request.config.task,
        "agent": request.run.config.agent,
        "seed": request.seeds[0],
        "data": setup.origin,
        "builtin_data": setup.builtin,
        "replay_of": request.run.name,
        "mode": request.mode,
        "updates": setup.updates,
    }
    return ScheduleWriter(setup.pool.names, feature_names(setup.pool.names), meta)


def _write(request: Request) -> Path:
    """Write replay.json and schedule.parquet into a new folder."""
    assert request.writer is not None
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = request.out / f"{request.mode}-{now}", 1
    while folder.exists():
        number += 1
        folder = request.out / f"{request.mode}-{now}-{number}"
    selected = request.run.selected()
    record = {
        "status": request.status,
        "mode": request.mode,
        "run": request.run.name,
        "task": request.config.task,
        "data": request.writer.meta["data"],
        "builtin_data": request.writer.meta["builtin_data"],
        "changed": request.changed,
        "original": {"seed": request.run.config.seed, "metrics": selected.get("metrics")},
        "replays": [one.record() for one in request.replays],
        "statistics": statistics(request.replays),
        "notes": [*request.said, *notes(request.replays)],
        "versions": versions(),
    }
    with atomic_folder(folder) as temporary:
        request.writer.write(temporary / "schedule.parquet")
        write_json(temporary / "replay.json", record)
    return folder


def _print(request: Request) -> None:
    assert request.writer is not None
    title = f"{request.mode} of {request.run.name}; {request.config.task}: "
    title += str(request.writer.meta["data"])
    if request.writer.meta["builtin_data"]:
        title += " (not a benchmark score)"
    original = {**request.run.selected(), "seed": request.run.config.seed}
    Console(highlight=False).print(replay_table(title, original, request.replays))
    for line in [*notes(request.replays), *verdicts(request.replays)]:
        print(line)


if __name__ == "__main__":
    sys.exit(guard(main))
