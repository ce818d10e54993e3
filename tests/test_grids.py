"""Sweep files: which cells they ask for, and what of them is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksel.errors import UsageError
from ksel.grids import read_grid
from ksel.methods import merged

GOOD = """
base:
  task: rte
  knowledge: {pool: [label, "{kind}/{matching}"], weights: {"{kind}/{matching}": 2.0}}
grid:
  kind: [hidden, nst]
  matching: [skip, last]
  start:
    low: {student: {init: first}}
    none: {student: {init: random}, knowledge: {balance: none}}
seeds: [3, 4]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_cell_for_each_combination_and_seed(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, GOOD))
    assert grid.axes == {
        "kind": ("hidden", "nst"),
        "matching": ("skip", "last"),
        "start": ("low", "none"),
    }
    assert len(grid.cells) == 2 * 2 * 2 * 2
    assert len({cell.name for cell in grid.cells}) == 16
    cell = next(c for c in grid.cells if c.name == "nst-last-none-s4")
    assert cell.settings == {
        "task": "rte",
        "knowledge": {
            "pool": ["label", "nst/last"],
            "weights": {"nst/last": 2.0},
            "balance": "none",
        },
        "student": {"init": "random"},
        "seed": 4,
    }


def test_without_seeds_there_is_one(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, "base: {task: '{task}'}\ngrid: {task: [rte, mrpc]}\n"))
    assert [(cell.settings["task"], cell.seed) for cell in grid.cells] == [("rte", 0), ("mrpc", 0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axes: {a: [b]}", "unknown part of a sweep 'axes'"),
        ("base: {task: rte}", "grid must map at least one axis"),
        ("grid: {task: []}", "grid.task must be a list of different labels"),
        ("base: {task: '{t}'}\ngrid: {t: [rte, rte]}", "different labels"),
        ("base: {task: rte}\ngrid: {task: [rte, mrpc]}", "grid.task changes nothing"),
        ("base: {task: '{tasks}'}\ngrid: {task: [rte]}", "Did you mean 'task'"),
        ("base: {task: '{t}'}\ngrid: {t: [rte]}\nseeds: [1, 1]", "each once"),
        ("base: {task: '{t}'}\ngrid: {t: [rte]}\nseeds: 3", "list of whole numbers"),
        ("base: [1]\ngrid: {t: [rte]}", "base must map"),
        ("grid: {t: {a: 1}}", "grid.t.a must map settings"),
    ],
)
def test_refuses(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_grid(write(tmp_path, text))
    assert words in str(caught.value)
    assert "sweep.yaml" in str(caught.value)


def test_merging_replaces_lists_and_values_and_keeps_the_rest() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(below, {"a": {"c": [5]}}) == {"a": {"b": 1, "c": [5]}, "d": 3}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


@pytest.mark.parametrize(
    ("key", "axis"),
    [
        ("knowledge.pool", "kind"),
        ("knowledge.weights", "kind"),
        ("knowledge", "kind"),
        ("knowledge.weights.hidden/skip", "kind"),
        ("knowledge.weights.label", None),
        ("knowledge.balance", "start"),
        ("student.init", "start"),
        ("student.init.deeper", "start"),
        ("student.initial", None),
        ("student.layers", None),
        ("task", None),
        ("seed", None),
    ],
)
def test_the_axis_that_decides_a_setting(tmp_path: Path, key: str, axis: str | None) -> None:
    grid = read_grid(write(tmp_path, GOOD))
    assert grid.axis_of(tuple(key.split("."))) == axis


def test_the_settings_of_each_axis(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, GOOD))
    kinds = (("knowledge", "pool"), ("knowledge", "weights", "{kind}/{matching}"))
    assert grid.keys == {
        "kind": kinds,
        "matching": kinds,
        "start": (("student", "init"), ("knowledge", "balance")),
    }


def test_an_axis_decides_what_its_placeholder_stands_in_wherever_that_is(tmp_path: Path) -> None:
    text = """
base: {stages: [{pool: ["{kind}"]}], knowledge: {weights: {}}}
grid:
  kind: [hidden, nst]
  extra:
    none: {knowledge.weights: {}}
    some: {knowledge: {weight_schedules: {"{kind}": decay}}}
"""
    grid = read_grid(write(tmp_path, text))
    assert grid.keys == {
        "kind": (("stages",), ("knowledge", "weight_schedules", "{kind}")),
        "extra": (("knowledge", "weights"), ("knowledge", "weight_schedules", "{kind}")),
    }
    assert grid.axis_of(("knowledge", "weights", "label")) == "extra"
