"""Published methods: their files in configs/, and what a method and its teachers make of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ksel.config import RunConfig
from ksel.errors import UsageError, unknown_name
from ksel.knowledge import find_name

QUICK = "quick.yaml"
"""The quick job's file of configs/, which lies under a plain command line."""
METHODS = "methods"
"""Folder of configs/ with one file per published method."""


def method_names() -> list[str]:
    """The published methods, by the names that ``--method`` takes."""
    folder = Path(packaged(METHODS))
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
    )


def read_yaml(path: Path, option: str = "--config") -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Args:
        path: the file.
        option: what it was named by, for the message.

    Raises:
        UsageError: missing, unreadable, or something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{option}: cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{option}: {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{option}: {path} holds no settings; it must map names to values.")
    return values


def packaged(name: str) -> str:
    """Path of a file of ``configs/``, as installed."""
    return str(resources.files("configs") / name)


def read_method(name: str) -> dict[str, Any]:
    """The settings of a published method.

    Raises:
        UsageError: there is none of that name.
    """
    return read_yaml(Path(packaged(method_file(name))))


def method_file(name: str) -> str:
    """A method's file, below ``configs/``.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in method_names():
        raise unknown_name("method", name, method_names(), "--method")
    return f"{METHODS}/{name}.yaml"


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others over them; lists and plain values are replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def keep_weights(config: RunConfig) -> RunConfig:
    """Give the types of a method's pool that got no weight of their own the method's.

    YAML layers replace a mapping whole: one weight on the command line would otherwise put the
    others back to 1. An empty mapping clears them all.
    """
    if config.method is None:
        return config
    own = read_method(config.method).get("knowledge", {})
    changes: dict[str, Any] = {}
    for field in ("weights", "weight_schedules"):
        given = getattr(config.knowledge, field)
        if given and own.get(field):
            named = {_long_name(name, config.knowledge.pool) for name in given}
            rest = {
                name: value
                for name, value in own[field].items()
                if name in config.knowledge.pool and name not in named
            }
            changes[field] = {**rest, **given}
    return replace(config, knowledge=replace(config.knowledge, **changes))


def _long_name(name: str, pool: Sequence[str]) -> str:
    """The name as the pool has it; unknown ones are told later."""
    try:
        return find_name(name, pool, "")
    except UsageError:
        return name


def for_each_teacher(config: RunConfig) -> RunConfig:
    """Write ``kind@*``, a signal of each teacher, out: ``kind``, ``kind@2``, ..."""
    count = len(config.teachers) or 1

    def out(spec: str) -> list[str]:
        if not spec.endswith("@*"):
            return [spec]
        bare = spec.removesuffix("@*")
        if count < 2:
            raise UsageError(
                f"--teachers: '{spec}' stands for several teachers. Name them, --teachers A B C, or "
                f"write '{bare}' for one."
            )
        if bare == "label":
            raise UsageError(
                "--knowledge.pool: 'label@*': the gold label needs no teacher. Write 'label'."
            )
        return [bare, *(f"{bare}@{i}" for i in range(2, count + 1))]

    def lists(specs: list[str]) -> list[str]:
        return [name for spec in specs for name in out(spec)]

    def tables(values: dict[str, Any]) -> dict[str, Any]:
        named = [name for spec in values for name in out(spec)]
        for name in named:
            if named.count(name) > 1:
                raise UsageError(
                    f"--knowledge.weights, --knowledge.weight_schedules: '{name}' is named twice, "
                    f"once by its own name and once by @*. Name it once."
                )
        return {name: value for spec, value in values.items() for name in out(spec)}

    knowledge = replace(
        config.knowledge,
        pool=lists(config.knowledge.pool),
        weights=tables(config.knowledge.weights),
        weight_schedules=tables(config.knowledge.weight_schedules),
    )
    stages = [replace(stage, pool=lists(stage.pool)) for stage in config.stages]
    return replace(config, knowledge=knowledge, stages=stages)
