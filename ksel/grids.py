"""A grid of runs from one file: axes with labels, settings with {axis} placeholders, one cell each."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksel.errors import UsageError, unknown_name
from ksel.methods import merged, read_yaml

KEYS = ("base", "grid", "seeds")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
Key = tuple[str, ...]
"""A setting, or a part of one, by its names from the outside in: ("knowledge", "pool")."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        labels: axis -> label.
        seed: seed of the run.
        settings: nested settings, placeholders filled in.
    """

    labels: dict[str, str]
    seed: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder."""
        words = [re.sub(r"[^\w.-]+", "_", label) for label in self.labels.values()]
        return "-".join([*words, f"s{self.seed}"])


@dataclass(frozen=True)
class Grid:
    """What a sweep file asks for.

    Attributes:
        axes: axis -> its labels, in the order of the file.
        cells: one for each combination and seed.
        keys: axis -> the settings that it decides, placeholders not filled in.
    """

    axes: dict[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    keys: Mapping[str, tuple[Key, ...]]

    def axis_of(self, key: Key) -> str | None:
        """The axis that decides this setting, a part of it, or what it is a part of."""
        for axis, keys in self.keys.items():
            if any(_overlap(key, own) for own in keys):
                return axis
        return None


def read_grid(path: Path) -> Grid:
    """Read a sweep file.

    ``base`` holds the settings of every cell; ``grid`` maps an axis to a list of labels, or to
    labels with settings of their own; ``{axis}`` in any text stands for the cell's label on that
    axis; ``seeds`` lists the seeds (default: one, 0).

    Raises:
        UsageError: not such a file, no axis, an axis without labels, a placeholder without an axis,
            or an axis that changes nothing.
    """
    values = read_yaml(path, "FILE")
    for key in values:
        if key not in KEYS:
            raise unknown_name("part of a sweep", str(key), KEYS, str(path))
    base, grid, seeds = values.get("base") or {}, values.get("grid"), values.get("seeds", [0])
    if not isinstance(base, Mapping):
        raise UsageError(f"{path}: base must map settings to values.")
    if not isinstance(grid, Mapping) or not grid:
        raise UsageError(f"{path}: grid must map at least one axis to its labels.")
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) for s in seeds):
        raise UsageError(f"{path}: seeds must be a list of whole numbers, such as [0, 1, 2].")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"{path}: seeds {seeds}: each once.")
    axes = {str(axis): _labels(path, str(axis), given) for axis, given in grid.items()}
    _check_placeholders(path, base, axes)
    cells = []
    for combination in itertools.product(*(axes[axis].items() for axis in axes)):
        labels = {axis: label for axis, (label, _) in zip(axes, combination, strict=True)}
        settings: dict[str, Any] = copy.deepcopy(dict(base))
        for _, own in combination:
            settings = merged(settings, own)
        filled = _filled(settings, labels)
        cells += [Cell(labels, seed, {**filled, "seed": seed}) for seed in seeds]
    return Grid(
        {axis: tuple(labels) for axis, labels in axes.items()}, tuple(cells), _decided(base, axes)
    )


def _labels(path: Path, axis: str, given: Any) -> dict[str, dict[str, Any]]:
    """Label -> its own settings."""
    if isinstance(given, list) and given and len({str(x) for x in given}) == len(given):
        return {str(label): {} for label in given}
    if isinstance(given, Mapping) and given:
        for label, own in given.items():
            if not isinstance(own, Mapping):
                raise UsageError(
                    f"{path}: grid.{axis}.{label} must map settings to values, such as "
                    f"{{student: {{layers: 3}}}}."
                )
        return {str(label): dict(own) for label, own in given.items()}
    raise UsageError(
        f"{path}: grid.{axis} must be a list of different labels, or map labels to settings."
    )


def _check_placeholders(
    path: Path, base: Mapping[str, Any], axes: Mapping[str, Mapping[str, dict[str, Any]]]
) -> None:
    everywhere = [base, *(own for labels in axes.values() for own in labels.values())]
    asked = {name for part in everywhere for name in _placeholders(part)}
    for name in sorted(asked):
        if name not in axes:
            raise unknown_name("axis", name, axes, f"{path}: {{{name}}}")
    for axis, labels in axes.items():
        if axis not in asked and not any(labels.values()):
            raise UsageError(
                f"{path}: grid.{axis} changes nothing: no text holds {{{axis}}}, and its labels "
                f"have no settings."
            )


def _decided(
    base: Mapping[str, Any], axes: Mapping[str, Mapping[str, dict[str, Any]]]
) -> dict[str, tuple[Key, ...]]:
    """Axis -> the settings of its labels, and those in which its placeholder stands."""
    owned = {axis: [own for own in labels.values() if own] for axis, labels in axes.items()}
    everywhere = [base, *(own for parts in owned.values() for own in parts)]
    decided = {}
    for axis, parts in owned.items():
        keys = [key for own in parts for key, _ in flattened(own)]
        for part in everywhere:
            keys += [k for k, value in flattened(part) if axis in _placeholders([*k, value])]
        decided[axis] = tuple(dict.fromkeys(keys))
    return decided


def flattened(settings: Any, above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Each setting with its value; an empty mapping is a value, and a name may have dots."""
    if not isinstance(settings, Mapping) or not settings:
        yield above, settings
        return
    for name, value in settings.items():
        yield from flattened(value, (*above, *str(name).split(".")))


def _overlap(one: Sequence[str], own: Sequence[str]) -> bool:
    """True if one lies within the other; {axis} in ``own`` stands for any label."""
    patterns = (".+".join(map(re.escape, PLACEHOLDER.split(part)[::2])) for part in own)
    return all(re.fullmatch(pattern, name) for name, pattern in zip(one, patterns, strict=False))


def _placeholders(value: Any) -> set[str]:
    if isinstance(value, str):
        return set(PLACEHOLDER.findall(value))
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        parts = value
    return {name for part in parts for name in _placeholders(part)}


def _filled(value: Any, labels: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda found: labels[found[1]], value)
    if isinstance(value, Mapping):
        return {_filled(key, labels): _filled(item, labels) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, labels) for item in value]
    return value
