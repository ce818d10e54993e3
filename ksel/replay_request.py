"""What a replay is asked for: its command line over the settings of a run, checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from agents.make import check_rewards, get_agent
from agents.policy import read_header, refuse_other_pool
from ksel import transfers
from ksel.checks import check_unrewarded
from ksel.config import CustomTaskConfig, RunConfig
from ksel.errors import UsageError, unknown_name
from ksel.replays import Replay, logged_actions, was_measured, was_observed
from ksel.saved import CONFIG, POLICY, SCHEDULE, SavedRun, open_run
from ksel.settings import parse_over
from ksel.trajectory import Schedule, ScheduleWriter, read_schedule
from ksel.transfers import Setting
from ksel.validation import load_weights

PROG = "python -m ksel.replay"
MODES = ("validate", "schedule", "policy")
NO_EFFECT = (
    *("agent", "name", "references", "evaluations", "rows.dev_on_the_way", "env.actions"),
    *("search", "students", "vectorize", "branches", "episodes", "method", "checkpoint"),
    *("all_action", "greedy", "a2c", "ppo", "ddpg", "bandit", "best_static", "race"),
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
        settings: where else to play them, beside ``all``; empty = here.
        policy: a policy from elsewhere that decides in place of the run's own; None = that one.
        trusted: whether the user vouches for a zip in its place.
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
    settings: list[Setting] = field(default_factory=list)
    policy: Path | None = None
    trusted: bool = False


def parse(argv: Sequence[str]) -> Request:
    """Read the command line, the run's settings and its schedule.

    Raises:
        UsageError: an unknown mode or setting, a setting without effect, or an unusable run.
        SystemExit: after ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} RUN [--mode MODE] [--seeds N] [--seed S] [--across SETTING=VALUES] "
        "[--out DIR] [any setting of a run]",
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
    parser.add_argument(
        transfers.OPTION,
        action="append",
        default=[],
        metavar="SETTING=VALUE,VALUE",
        help="play in several settings, e.g. student.layers=2,4 or task=rte,mrpc (more than once: all "
        "combinations), with all types on beside each, and print the tables of ksel.compare",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        help="--mode policy: another policy in place of the run's own: the folder policy of a run, or a "
        "zip of Stable-Baselines3 (a2c, ppo)",
    )
    parser.add_argument(
        "--trust_zip",
        action="store_true",
        help="--policy ZIP: you know where the zip comes from; a file made to do harm could run code",
    )
    parser.add_argument("--out", help="folder for the replay's own folder; default RUN/replays")
    own, rest = parser.parse_known_args(list(argv))
    if own.mode not in MODES:
        raise unknown_name("mode", own.mode, MODES, "--mode")
    if own.seeds < 1:
        raise UsageError(f"--seeds: {own.seeds} seeds; give 1 or more.")
    if own.across and own.mode == "validate":
        raise UsageError(
            f"{transfers.OPTION}: --mode validate repeats the run as it was. Use --mode schedule or "
            f"--mode policy."
        )
    _check_policy(own.mode, own.policy, own.trust_zip)
    name, rest = _take_run(rest)
    run = open_run(Path(name))
    config, changed = _settings(run, own.mode, rest)
    schedule = read_schedule(run.folder / SCHEDULE)
    _check_run(own.mode, run, schedule, own.policy)
    crossed = any(words.startswith("knowledge.pool=") for words in own.across)
    if own.policy is not None and "knowledge.pool" not in changed and not crossed:
        _check_pool(own.policy, schedule)
    return Request(
        run,
        own.mode,
        config,
        changed,
        [config.seed + i for i in range(own.seeds)],
        Path(own.out) if own.out else run.folder / "replays",
        schedule,
        settings=_elsewhere(run, own.mode, own.across, rest),
        policy=own.policy,
        trusted=own.trust_zip,
    )


def _check_policy(mode: str, policy: Path | None, trusted: bool) -> None:
    """Refuse a policy from elsewhere where none is used, or where there is none."""
    if policy is None:
        if trusted:
            raise UsageError("--trust_zip: not used without --policy ZIP. Leave it out.")
        return
    if mode != "policy":
        raise UsageError(
            f"--policy: not used with --mode {mode}, where the run's schedule decides. Leave it out, or "
            f"set --mode policy."
        )
    if not policy.exists():
        raise UsageError(
            f"--policy: there is no {policy}. Give a folder policy of a run, or a zip."
        )
    if trusted and not policy.is_file():
        raise UsageError("--trust_zip: not used with a folder, which needs no trust. Leave it out.")


def _elsewhere(run: SavedRun, mode: str, across: list[str], rest: Sequence[str]) -> list[Setting]:
    """The settings that ``--across`` asks for, each checked."""
    if not across:
        return []
    found = []
    for values in transfers.grid(across, rest):
        words = [f"--{name}={value}" for name, value in values.items()]
        found.append(Setting(values, *_settings(run, mode, [*rest, *words])))
    labels = [one.label for one in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{transfers.OPTION}: two settings would both be called '{twice}'. Give folders of "
            f"different names."
        )
    return found


def _settings(run: SavedRun, mode: str, words: Sequence[str]) -> tuple[RunConfig, dict[str, Any]]:
    """The run's settings with changes, checked; and the changes by dotted name."""
    config = parse_over(run.folder / CONFIG, words, PROG)
    changed = {
        key: value
        for key, value in flat(config).items()
        if key != "out" and value != flat(run.config)[key]
    }
    _check_changes(mode, changed)
    info = get_agent(run.config.agent)
    if not info.learns and "amortized" not in info.rewards:
        check_unrewarded(config, observes=info.observes)
    check_rewards(config)
    if config.task != run.config.task and config.task != "custom":
        config = replace(config, custom=CustomTaskConfig())
    return config, changed


def _check_run(mode: str, run: SavedRun, schedule: Schedule, policy: Path | None) -> None:
    """Refuse what cannot be replayed now, not after minutes of data and teacher."""
    if mode == "policy":
        if policy is None or policy.is_dir():
            read_header(policy or run.folder / POLICY)
        return
    logged_actions(schedule, schedule.pool)
    was_measured(schedule)
    was_observed(schedule)
    if mode == "validate":
        load_weights(run.needs_student())


def _check_pool(policy: Path, schedule: Schedule) -> None:
    """Refuse a policy of another pool; of a zip nobody knows before it is opened."""
    if policy.is_dir():
        refuse_other_pool(policy, read_header(policy)["pool"], schedule.pool)


def _take_run(words: list[str]) -> tuple[str, list[str]]:
    """The first word that is no option and no option's value; every setting takes one value."""
    i = 0
    while i < len(words):
        if not words[i].startswith("-"):
            return words[i], words[:i] + words[i + 1 :]
        i += 1 if "=" in words[i] else 2
    raise UsageError(f"RUN: name the folder of a run: {PROG} RUN [--mode schedule] ...")


def flat(config: RunConfig) -> dict[str, Any]:
    """All settings by dotted name."""
    found: dict[str, Any] = {}
    groups = {one.name for one in fields(config) if is_dataclass(getattr(config, one.name))}
    for name, value in asdict(config).items():
        if name in groups:
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[name] = value
    return found


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
