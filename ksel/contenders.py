"""What the name of a method in a comparison stands for: settings of a run, or a saved decision-maker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ksel.cells import FROM, OWN
from ksel.config import KnowledgeConfig, RunConfig
from ksel.errors import UsageError, unknown_name
from ksel.grids import Key, flattened
from ksel.knowledge import KINDS, kind_of
from ksel.methods import merged, method_names, read_method, read_yaml
from ksel.saved import CONFIG, SCHEDULE, SavedRun, open_run
from ksel.trajectory import read_schedule

Unread = Callable[[str, Mapping[str, Any]], set[Key]]
"""(agent, settings) -> those that this agent has no use for, see :func:`agents.reading.unread`."""

PAIRED: tuple[Key, ...] = (
    *((name,) for name in ("data", "teacher", "teachers", "store", "device", "threads", "custom")),
    *((name,) for name in ("rows", "batching", "span", "student", "fine_tune", "evaluations")),
    ("task",),
    ("optim", "epochs"),
    ("optim", "max_updates"),
)
"""What must be one for all methods of a task: rows, batches, the student's start, the budget."""
OF_POOL: tuple[Key, ...] = (
    ("knowledge", "pool"),
    ("knowledge", "weights"),
    ("knowledge", "weight_schedules"),
    ("stages",),
)
"""Settings that name knowledge types: a method with a pool of its own has its own."""
PLAIN: dict[str, Any] = {"knowledge": {"weights": {}, "weight_schedules": {}}, "stages": []}
"""A fixed mask has no stages and no static weights, as a run's references."""
PREFIXES = ("agent", "method", "only", "policy", "schedule")
LABEL, ALL, FINETUNE = "label", "all", "finetune"
USUAL_AGENTS = ("random_hard", "best_static")


@dataclass(frozen=True)
class Contender:
    """A method of a comparison, its name looked up.

    Attributes:
        label: what it is called.
        role: ``method`` or ``baseline``.
        agent: who chooses its masks.
        settings: what it decides, nested; as over a run's ``--config``.
        decides: all settings that it decides, those of its method's file too.
        left_out: what its file says and the comparison does not follow, by name.
        played: a saved policy or schedule: its ``mode`` and ``run``; else empty.
    """

    label: str
    role: str
    agent: str
    settings: dict[str, Any]
    decides: tuple[Key, ...]
    left_out: dict[str, Any] = field(default_factory=dict)
    played: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """Settings by a name, before what changes them."""

    settings: dict[str, Any]
    played: dict[str, str] = field(default_factory=dict)
    whole: bool = False
    """Settings of a file that was not written for this comparison: what must be one is left out."""


def contender(
    label: str, own: Mapping[str, Any], role: str, pool: Sequence[str], agents: Iterable[str]
) -> Contender:
    """Look a method's name up.

    Args:
        label: what it is called.
        own: its settings, with its name under ``from`` ("" = none).
        role: ``method`` or ``baseline``.
        pool: the knowledge pool of the comparison.
        agents: names of the agents.

    Raises:
        UsageError: there is nothing of that name, or it changes what must be one for all methods.
    """
    where = f"methods.{label}"
    changes = {key: value for key, value in own.items() if key != FROM}
    for key, _ in flattened(changes):
        if _within(key, PAIRED):
            raise UsageError(
                f"{where}: {'.'.join(key)} must be the same for all methods, or they would not be "
                f"paired. Set it for all, under tasks, or make a comparison of its own."
            )
    name = str(own[FROM])
    found = _lookup(name, pool, list(agents)) if name else _Found({})
    settings, out = _split(found.settings) if found.whole else (found.settings, {})
    settings = merged(settings, changes)
    decides = [key for key, _ in flattened(settings)]
    method = settings.get("method")
    agent = settings.get("agent")
    if method is not None:
        file = read_method(str(method))
        kept, dropped = _split({k: v for k, v in file.items() if k not in OWN})
        out |= dropped
        decides += [key for key, _ in flattened(kept)]
        settings = merged(_defaults(dropped), settings)
        agent = agent or file.get("agent")
    agent = str(agent or RunConfig.agent)
    if agent not in set(agents):
        raise unknown_name("agent", agent, agents, where)
    return Contender(label, role, agent, settings, tuple(decides), out, found.played)


def usual_baselines(pool: Sequence[str], agents: Iterable[str]) -> list[str]:
    """Names of the baselines that every comparison has unless told otherwise."""
    known = set(agents)
    first = [FINETUNE] if LABEL in pool else []
    single = [name for name in pool if name != LABEL]  # the label alone is fine-tuning
    return [*first, ALL, *single, *(name for name in USUAL_AGENTS if name in known)]


def cell_settings(
    one: Contender, base: Mapping[str, Any], unread: Unread
) -> tuple[dict[str, Any], set[Key]]:
    """The settings of a method's cells.

    What the method decides stands over what holds for all cells; what must be one is always that of
    all cells; what the method's agent has no use for is left out.

    Args:
        one: the method.
        base: settings of all cells of the task.
        unread: says what an agent has no use for.

    Returns:
        Nested settings, and those of ``base`` that this method does not follow.
    """
    decided = set(one.decides)
    if any(key[:2] == ("knowledge", "pool") for key in decided):
        decided |= set(OF_POOL)
    away = {key for key, _ in flattened(base) if _within(key, decided) and not _within(key, PAIRED)}
    kept = _without(base, away)
    useless = unread(one.agent, merged(kept, one.settings))
    given = {key for key, _ in flattened(kept) if _within(key, useless)}
    kept = _without(kept, given)
    paired = _only_paired(kept)
    return merged(merged(kept, one.settings), paired), away | given


# --------------------------------------------------------------------------- names


def _lookup(name: str, pool: Sequence[str], agents: list[str]) -> _Found:
    """What a name stands for.

    Raises:
        UsageError: nothing; with what is near.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PREFIXES:
        return _prefixed(prefix, rest, pool, agents)
    if name.endswith((".yaml", ".yml")):
        return _Found(_file(Path(name)), whole=True)
    if name in (ALL, FINETUNE) or name in pool:
        return _Found(_mask([LABEL] if name == FINETUNE else [name], pool))
    if name in agents:
        return _Found({"agent": name})
    if name in method_names():
        return _Found({"method": name})
    method, plus, agent = name.rpartition("+")
    if plus and method in method_names() and agent in agents:
        return _Found({"method": method, "agent": agent})
    if kind_of(name) in KINDS:
        return _Found(_mask([name], pool))
    if plus:
        what = ("agent", agent, agents) if method in method_names() else None
        what = what or ("method", method, method_names())
        raise unknown_name(*what, f"--methods {name}")
    known = [ALL, FINETUNE, *pool, *agents, *method_names()]
    raise unknown_name("method", name, dict.fromkeys(known), "--methods")


def _prefixed(prefix: str, rest: str, pool: Sequence[str], agents: list[str]) -> _Found:
    if prefix == "agent":
        if rest not in agents:
            raise unknown_name("agent", rest, agents, "--methods agent:")
        return _Found({"agent": rest})
    if prefix == "method":
        if rest not in method_names():
            raise unknown_name("method", rest, method_names(), "--methods method:")
        return _Found({"method": rest})
    if prefix == "only":
        return _Found(_mask(rest.split("+"), pool))
    return _played(prefix, open_run(Path(rest)))


def _played(mode: str, run: SavedRun) -> _Found:
    """A run's frozen policy, or its schedule, with the settings that it was made under."""
    saved = read_yaml(run.folder / CONFIG)
    settings = {key: saved[key] for key in ("knowledge", "stages")}
    if mode == "policy":
        # What it observes and what that costs are the run's: credit, measured rewards, phases.
        settings |= {key: saved[key] for key in ("agent", "search", "env", "credit", "branches")}
    else:
        actions = "soft" if read_schedule(run.folder / SCHEDULE).soft else "hard"
        env = {"phase_steps": run.config.env.phase_steps, "actions": actions}
        settings |= {"agent": "static", "env": env}
    return _Found(settings, {"mode": mode, "run": str(run.folder.resolve())}, whole=True)


def _file(path: Path) -> dict[str, Any]:
    settings = read_yaml(path, "--methods")
    return {key: value for key, value in settings.items() if key not in OWN}


def _mask(names: list[str], pool: Sequence[str]) -> dict[str, Any]:
    """A fixed mask over the comparison's pool; over a pool of its own where that lacks a type."""
    if names == [ALL]:
        return {"agent": "static", "static": {"mask": [ALL]}}
    for name in names:
        if kind_of(name) not in KINDS:
            raise unknown_name("knowledge type", name, [*pool, *KINDS], "--methods only:")
    lacking = [name for name in names if name not in pool]
    own: dict[str, Any] = {"agent": "static", "static": {"mask": names}}
    return merged(merged(PLAIN, own), {"knowledge": {"pool": names}} if lacking else {})


# --------------------------------------------------------------------------- parts of settings


def _within(key: Key, keys: Iterable[Key]) -> bool:
    """True if one of the keys is this one, or a group that it lies in."""
    return any(key[: len(one)] == one for one in keys)


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings without what must be one for all methods, and that by name."""
    away = {key: value for key, value in flattened(settings) if _within(key, PAIRED)}
    return _without(settings, set(away)), {".".join(key): value for key, value in away.items()}


def _without(settings: Mapping[str, Any], away: set[Key], above: Key = ()) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        key = (*above, *str(name).split("."))
        if _within(key, away):
            continue
        if isinstance(value, Mapping) and value:
            value = _without(value, away, key)
            if not value:
                continue
        kept[name] = value
    return kept


def _defaults(names: Iterable[str]) -> dict[str, Any]:
    """Settings at their defaults, over a method's file that says otherwise."""
    found: dict[str, Any] = {}
    for name in names:
        group, dot, inner = name.partition(".")
        value = getattr(RunConfig(), group)
        found = merged(found, {group: {inner: getattr(value, inner)}} if dot else {group: value})
    return found


def _only_paired(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _without(settings, {key for key, _ in flattened(settings) if not _within(key, PAIRED)})


def pool_of(base: Mapping[str, Any]) -> list[str]:
    """The knowledge pool that these settings give."""
    pool = (base.get("knowledge") or {}).get("pool")
    return list(pool) if pool is not None else KnowledgeConfig().pool
