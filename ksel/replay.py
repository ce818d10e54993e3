"""``python -m ksel.replay RUN``: validate a run, or play its schedule or policy, here or elsewhere."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import PreTrainedModel

from agents.follow import follow
from agents.make import get_agent
from agents.policy import Policy
from agents.rollout import play
from agents.sb3_zip import open_policy
from envs.distillation import DistillationEnv
from envs.observation import feature_names
from envs.recording import Recorder
from ksel import transfers
from ksel.artifacts import versions
from ksel.cells import safe
from ksel.cli import INTERRUPTED_EXIT, guard, quiet_libraries
from ksel.compare_results import print_comparison
from ksel.errors import UsageError
from ksel.evaluation import evaluate_dev
from ksel.files import atomic_folder, write_json
from ksel.replay_request import Request, parse
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
from ksel.saved import POLICY, inputs
from ksel.setup import Setup, prepare
from ksel.stages import decision_count, stage_ends, stage_shares
from ksel.tracking import Progress, Silent, training_loss
from ksel.trajectory import ScheduleWriter
from ksel.transfers import Setting, Student, Transfer
from ksel.validation import copy_weights, judge, judge_twice


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
    """Replay a run; 0, or 1 where ``validate`` finds a difference or a setting cannot be played."""
    quiet_libraries()
    request = parse(argv)
    if request.settings:
        return _transfer(request)
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
        policy = open_policy(
            request.policy or request.run.folder / POLICY,
            pool=setup.pool.names,
            observation=shapes,
            trusted=request.trusted,
        )
        observes = get_agent(policy.name).observes
        measure = observes and (policy.learns or setup.distiller.credit is not None)
        return Player(policy.soft, measure, observes, policy, None)
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
    return Replay(
        seed,
        _dev(setup, setup.student),
        played.updates,
        played.decisions,
        played.seconds,
        played.reason,
        rows=writer.rows(STAGE),
    )


def _dev(setup: Setup, model: PreTrainedModel) -> dict[str, float]:
    """Metrics of the student, or of the first teacher, over all dev rows."""
    return evaluate_dev(
        model,
        setup.task,
        setup.dev,
        rows=None,
        batch_size=setup.config.batching.eval_size,
        device=setup.device,
        span=setup.config.span,
    )


# --------------------------------------------------------------------------- several settings


def _transfer(request: Request) -> int:
    """Play in each setting with all types on beside it; write and print the tables."""
    transfer = Transfer(f"{request.run.config.agent}-{request.mode}")
    parts = [
        replace(request, config=one.config, changed=one.changed, replays=[], said=[])
        for one in request.settings
    ]
    with Progress() as progress:
        try:
            for setting, part in zip(request.settings, parts, strict=True):
                for seed in request.seeds:
                    transfer.cells += _pair(transfer, part, setting, seed, progress)
            request.status = "complete"
        except KeyboardInterrupt:
            progress.say("stopped by Ctrl-C")
    if not transfer.cells:
        print("no replay was finished; nothing was written")
        return INTERRUPTED_EXIT
    if len(transfer.failed) == len(transfer.cells):
        first = transfer.failed[0]
        raise UsageError(f"{transfers.OPTION}: nothing could be played. {first['error']}")
    folder = _new_folder(request, f"{request.mode}-across")
    with atomic_folder(folder) as temporary:
        comparison = transfers.write_transfer(transfer, temporary, f"{request.run.name}: transfer")
        for part, setting in zip(parts, request.settings, strict=True):
            if part.writer is not None:
                part.writer.write(temporary / "schedules" / f"{safe(setting.label)}.parquet")
        write_json(temporary / "replay.json", _transfer_record(request, parts))
    print_comparison(comparison)
    for line in dict.fromkeys(line for part in parts for line in part.said):
        print(line)
    print(f"written: {folder}")
    if request.status != "complete":
        return INTERRUPTED_EXIT
    return 1 if transfer.failed else 0


def _pair(
    transfer: Transfer, part: Request, setting: Setting, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    """Rows of one seed in one setting; what does not fit there is a failed row."""
    try:
        setup = prepare(
            replace(part.config, seed=seed), progress if part.writer is None else Silent()
        )
        player = _player(part, setup)
    except UsageError as error:
        progress.say(f"{setting.label}, seed {seed}: not played: {error}")
        return transfers.failed(transfer, setting, seed, str(error))
    if part.writer is None:
        part.writer = _writer(part, setup, player.soft)
        score = _dev(setup, setup.teacher.model)
        transfer.teachers[setting.label] = next(iter(score.values()))
    ends = stage_ends(stage_shares(setup.config.stages), setup.updates)
    count = decision_count(ends, setup.config.env.phase_steps)
    on = np.ones((count, len(setup.pool.names)), dtype=np.float32)
    plain = Player(player.soft, measure=False, observe=False, policy=None, actions=on)
    students = []
    for one in (player, plain):
        before = setup.ledger.copy()
        replay = _play(part, setup, one, progress)
        spent = setup.ledger.since(before)
        students.append(
            Student(replay.metrics, replay.updates, replay.seconds, replay.reason, spent)
        )
        if one is player:
            part.replays.append(replay)
            for row in replay.rows:
                part.writer.add(replace(row, episode=seed))
    facts = {"builtin_data": setup.builtin, "data": setup.origin}
    return transfers.pair(transfer, setting, seed, students[0], students[1], facts)


def _transfer_record(request: Request, parts: Sequence[Request]) -> dict[str, Any]:
    """What ``replay.json`` says of replays in several settings."""
    return {
        "status": request.status,
        "mode": request.mode,
        "run": request.run.name,
        "changed": request.changed,
        "settings": [
            {
                "label": setting.label,
                "values": setting.values,
                "changed": setting.changed,
                "replays": [one.record() for one in part.replays],
                "notes": [*part.said, *notes(part.replays)],
            }
            for setting, part in zip(request.settings, parts, strict=True)
        ],
        "versions": versions(),
    }


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


def _new_folder(request: Request, kind: str) -> Path:
    """A folder for this replay that does not exist."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = request.out / f"{kind}-{now}", 1
    while folder.exists():
        number += 1
        folder = request.out / f"{kind}-{now}-{number}"
    return folder


def _write(request: Request) -> Path:
    """Write replay.json and schedule.parquet into a new folder."""
    assert request.writer is not None
    folder = _new_folder(request, request.mode)
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
