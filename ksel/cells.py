"""The plan of a comparison: tasks, methods, baselines, seeds; from a file, the command line, or both."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ksel.errors import UsageError, unknown_name
from ksel.files import write_text
from ksel.grids import Key, flattened
from ksel.methods import merged, read_yaml
from ksel.saved import COMPARISON
from ksel.settings import known_options

PLAN = COMPARISON
KEYS = ("base", "tasks", "methods", "baselines", "seeds")
OWN = ("out", "name", "seed", "references")
"""Settings of a run that the comparison sets itself."""
PLACES = ("data", "teacher")
PLAYED = ("policy", "schedule")
"""Before a colon in a method's name: what of a saved run decides."""
TEACHER, CELL = "teacher", "cell"
"""Kinds of work: a task's teacher is prepared once, before its cells."""
FROM = "from"
"""In a method's settings: the name of the method that they change."""
SEEDS = 5
AUTO = "auto"
"""Baselines: the usual ones."""
FREE = ("store",)
"""Settings that may differ when a comparison goes on: they say where, not what."""


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        base: settings of all cells, nested.
        tasks: label -> settings over ``base``; the label is the task where they name none.
        methods: label -> settings, with the method's name under ``from``.
        baselines: names of methods, or ``auto``.
        seeds: each gives one cell for each task and method.
    """

    base: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    baselines: list[str]
    seeds: list[int]

    def text(self) -> str:
        """The plan as a file that ``python -m ksel.compare`` reads."""
        values = {key: getattr(self, key) for key in KEYS}
        head = "# A comparison. Repeat it:  python -m ksel.compare compare.yaml --out FOLDER\n"
        return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        task, method: labels.
        seed: of the run.
        role: ``method`` or ``baseline``.
        settings: of the run, nested.
        played: a saved policy or schedule that decides: its ``mode`` and ``run``; else empty.
    """

    task: str
    method: str
    seed: int
    role: str
    settings: dict[str, Any]
    played: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its run's folder and of its record."""
        return f"{safe(self.task)}-{safe(self.method)}-s{self.seed}"

    def text(self) -> str:
        """Its settings as a ``--config`` of ``ksel.run``."""
        head = (
            f"# decided by the {self.played['mode']} of {self.played['run']}\n"
            if self.played
            else ""
        )
        return head + yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)


def safe(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.+-]+", "_", label)


# --------------------------------------------------------------------------- reading


def read_plan(path: Path) -> dict[str, Any]:
    """A comparison's file: ``base`` (or settings beside the other keys), ``tasks``, ``methods``, ...

    Raises:
        UsageError: not such a file.
    """
    values = read_yaml(path, "FILE")
    settings = known_options()
    known = [*KEYS, *dict.fromkeys(option.split(".")[0] for option in settings)]
    for key in values:
        if key not in known:
            raise unknown_name("part of a comparison", str(key), [*KEYS, *settings], str(path))
    base = values.get("base") or {}
    if not isinstance(base, Mapping):
        raise UsageError(f"{path}: base must map settings to values.")
    rest = {key: value for key, value in values.items() if key not in KEYS}
    parts = {key: values[key] for key in KEYS if key in values and key != "base"}
    return {**parts, "base": merged(base, rest)}


def make_plan(
    given: Mapping[str, Any],
    *,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Plan:
    """A plan from what a file says and what the command line says over it.

    Args:
        given: from :func:`read_plan`; empty without a file.
        tasks, methods, baselines, seeds: words of the command line; None = not given.
        base: settings of the command line, nested.

    Raises:
        UsageError: nothing to compare, a label twice, no seed, or a setting that the comparison
            sets itself.
    """
    settings = _places(merged(given.get("base") or {}, base or {}))
    task = settings.pop("task", None)
    if tasks is None:
        tasks = given.get("tasks") or ([task] if task else None)
    if not tasks:
        raise UsageError("--task: name at least one task, such as --task rte mrpc.")
    chosen = methods if methods is not None else given.get("methods")
    if not chosen:
        raise UsageError("--methods: name at least one method, such as --methods a2c,kd.")
    found = Plan(
        base=settings,
        tasks=_named(tasks, "tasks", given),
        methods={
            label: _method(label, own) for label, own in _named(chosen, "methods", given).items()
        },
        baselines=_baselines(baselines if baselines is not None else given.get("baselines", AUTO)),
        seeds=_seeds(given.get("seeds", SEEDS) if seeds is None else _counted(seeds)),
    )
    _check_own(found)
    return found


def _named(chosen: Any, part: str, file: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """:func:`_labelled`; a name that the file has gets the settings that it has there."""
    known = _labelled(file[part], part) if file.get(part) else {}
    found = _labelled(chosen, part)
    return {label: own or known.get(label, own) for label, own in found.items()}


def _labelled(given: Any, part: str) -> dict[str, dict[str, Any]]:
    """Label -> settings, out of a list of names (``label=name`` too) or a mapping."""
    if isinstance(given, Mapping):
        for label, own in given.items():
            if own is not None and not isinstance(own, Mapping):
                raise UsageError(
                    f"{part}.{label} must map settings to values, such as {{env: {{phase_steps: 5}}}}."
                )
        return {str(label): _places(dict(own or {})) for label, own in given.items()}
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UsageError(f"{part}: give a list of names, or map names to settings.")
    found: dict[str, dict[str, Any]] = {}
    for word in given:
        label, equals, name = word.partition("=")
        if not equals:
            label, name = short(word), word
        if label in found:
            raise UsageError(f"--{part}: '{label}' is named twice. Name each once, or label=name.")
        found[label] = {} if label == name else {FROM: name}
    return found


def short(name: str) -> str:
    """What a method is called that has no label of its own: ``only:response`` -> ``response``."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in ("only", "agent"):
        return rest
    if colon and prefix in PLAYED:
        return f"{prefix}:{Path(rest).name}"
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


def _method(label: str, own: dict[str, Any]) -> dict[str, Any]:
    """A method's settings with the name that it stands for."""
    if FROM in own:
        return {**own, FROM: _located(str(own[FROM]))}
    if "agent" in own or "method" in own:
        return {FROM: "", **own}
    return {FROM: _located(label), **own}


def _located(name: str) -> str:
    """A method's name; a file or a run in it by its absolute path, so that it is found from anywhere."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PLAYED:
        return f"{prefix}:{Path(rest).resolve()}" if Path(rest).exists() else name
    file = name.endswith((".yaml", ".yml")) and Path(name).is_file()
    return str(Path(name).resolve()) if file else name


def _baselines(given: Any) -> list[str]:
    if given is None or given in ("none", [], ["none"]):
        return []
    if given == AUTO:
        return [AUTO]
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return [_located(name) for name in dict.fromkeys(given)]
    raise UsageError(
        "--baselines: give names of methods, none, or leave it out for the usual ones."
    )


def _counted(words: Sequence[str]) -> Any:
    """Seeds of a command line: one word is their number; ``3,`` is a list."""
    return words[0] if len(words) == 1 else [word for word in words if word]


def _seeds(given: Any) -> list[int]:
    """Seeds: a number n means 0 .. n-1, a list means those."""
    words = given if isinstance(given, list) else [given]
    try:
        numbers = [int(str(word)) for word in words]
    except ValueError:
        raise UsageError(
            f"--seeds: {given} is no number of seeds and no list of them. Write --seeds 5, or "
            f"--seeds 0,3,7."
        ) from None
    if not isinstance(given, list):
        numbers = list(range(numbers[0]))
    if not numbers:
        raise UsageError("--seeds: no seed, so nothing to run. Give 1 or more; 5 for intervals.")
    if len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise UsageError(f"--seeds: {numbers}: each once, and none below 0.")
    return numbers


def _places(settings: dict[str, Any]) -> dict[str, Any]:
    """Folders as absolute paths: workers may run elsewhere."""

    def absolute(value: Any) -> Any:
        there = isinstance(value, str) and Path(value).is_dir()
        return str(Path(value).resolve()) if there else value

    found = {key: absolute(value) if key in PLACES else value for key, value in settings.items()}
    if found.get("store") is not None:
        found["store"] = str(Path(found["store"]).expanduser().resolve())
    if "teachers" in found:
        found["teachers"] = [absolute(name) for name in found["teachers"]]
    return found


def _check_own(plan: Plan) -> None:
    parts = {"": plan.base}
    parts |= {f"tasks.{label}: ": own for label, own in plan.tasks.items()}
    parts |= {f"methods.{label}: ": own for label, own in plan.methods.items()}
    for where, settings in parts.items():
        for name in OWN:
            if name in settings:
                raise UsageError(
                    f"{where}--{name}: the comparison sets it itself. Leave it out"
                    + (", or use --seeds." if name == "seed" else ".")
                )


# --------------------------------------------------------------------------- going on


def check_same(plan: Plan, folder: Path) -> None:
    """Refuse to go on with a folder whose plan is another; further tasks, methods, seeds may come.

    Raises:
        UsageError: names the setting that differs, or what is missing now.
    """
    before = read_plan(folder / PLAN)
    for part in ("base", "tasks", "methods"):
        old, new = dict(flattened(before.get(part) or {})), dict(flattened(getattr(plan, part)))
        if part != "base":
            labels = getattr(plan, part)
            for label in before.get(part) or {}:
                if label not in labels:
                    raise _differs(folder, part, f"it has '{label}', which is left out now")
            new = {k: v for k, v in new.items() if _label(k, before[part])}
        for key in (*old, *(key for key in new if key not in old)):
            if _value(old, key) != _value(new, key) and not (part == "base" and key[0] in FREE):
                name = ".".join(key) if part == "base" else f"{part}.{'.'.join(key)}"
                was, now = _value(old, key), _value(new, key)
                raise _differs(folder, name, f"it was {was}, and it is {now} now")
    for part in ("baselines", "seeds"):
        missing = [x for x in before.get(part) or [] if x not in getattr(plan, part)]
        if missing:
            raise _differs(folder, part, f"it has {missing[0]}, which is left out now")


def _label(key: Key, labels: Mapping[str, Any]) -> bool:
    """True if this setting is one of these labels', dots in labels or not."""
    return any(
        key[: len(label.split("."))] == tuple(label.split(".")) for label in map(str, labels)
    )


def _value(settings: Mapping[Key, Any], key: Key) -> Any:
    value = settings.get(key, "not given")
    return list(value) if isinstance(value, tuple) else value


def _differs(folder: Path, name: str, words: str) -> UsageError:
    return UsageError(
        f"--resume: {folder} was begun with another plan: {name}: {words}. Repeat the command that "
        f"made it, leave all of it out (--resume --out {folder}), or choose another --out."
    )


def write_cells(folder: Path, cells: Sequence[Cell]) -> None:
    """Write each cell's settings as ``cells/NAME.yaml``.

    Raises:
        UsageError: there is a cell of that name with other settings, or two have one name.
    """
    texts: dict[str, str] = {}
    for cell in cells:
        if cell.name in texts:
            raise UsageError(
                f"--methods: two cells would share the folder {cell.name}. Rename one."
            )
        texts[cell.name] = cell.text()
    for name, text in texts.items():
        path = folder / "cells" / f"{name}.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            changed = list(_changed(path.read_text(encoding="utf-8"), text))
            if not changed:
                continue
            raise UsageError(
                f"--out: {folder} holds a cell {name} with other settings ({', '.join(changed)}). "
                f"Choose another --out, or repeat the command that made it."
            )
    for name, text in texts.items():
        write_text(folder / "cells" / f"{name}.yaml", text)


def forget(folder: Path, cells: Sequence[Cell]) -> None:
    """Take the settings of another plan out of a folder in which no cell was finished.

    A run that had begun with other settings goes with them; one with the same can go on.
    """
    kept = {cell.name: cell.text() for cell in cells}
    for path in (folder / "cells").glob("*.yaml"):
        own = kept.get(path.stem)
        if own is None or any(_changed(path.read_text(encoding="utf-8"), own)):
            shutil.rmtree(folder / "runs" / path.stem, ignore_errors=True)
            path.unlink()


def _changed(old: str, new: str) -> Iterator[str]:
    """Names of the settings in which two cells differ; where teachers are kept is none of them."""
    heads = ([line for line in text.splitlines() if line.startswith("#")] for text in (old, new))
    if next(heads) != next(heads):
        yield "who decides"
    before, after = (dict(flattened(yaml.safe_load(text))) for text in (old, new))
    for key in dict.fromkeys([*before, *after]):
        if _value(before, key) != _value(after, key) and key[0] not in FREE:
            yield ".".join(key)
