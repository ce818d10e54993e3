"""A teacher's dev scores: measured once, for as long as nothing that decides them changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ksel.files import write_json
from ksel.setup import Setup
from ksel.tasks import get_task
from ksel.teacher_scores import known_scores, scores_key


class Measured:
    """Counts how often something is measured."""

    def __init__(self, **metrics: float) -> None:
        self.metrics, self.times = metrics, 0

    def __call__(self) -> dict[str, float]:
        self.times += 1
        return dict(self.metrics)


@pytest.fixture
def setup(tiny_setup: Callable[..., Setup]) -> Setup:
    return tiny_setup()


def scores(store: Path, setup: Setup, measure: Measured, **changes: Any) -> dict[str, float]:
    values = {"task": setup.task, "dev": setup.dev, "batch_size": 16, **changes}
    return known_scores(store, setup.teachers[0].model, measure=measure, **values)


def test_the_second_look_is_free_and_says_the_same(tmp_path: Path, setup: Setup) -> None:
    measure = Measured(accuracy=2 / 3, f1=0.1 + 0.2)
    first = scores(tmp_path, setup, measure)
    assert scores(tmp_path, setup, measure) == first == measure.metrics
    assert measure.times == 1


def test_whatever_decides_a_score_is_in_the_key(setup: Setup) -> None:
    model, task, dev = setup.teachers[0].model, setup.task, setup.dev
    keys = {scores_key(model, task, dev, 16), scores_key(model, task, dev, 8)}
    (name, split), *_ = dev.items()
    assert split.labels is not None
    keys.add(scores_key(model, task, {name: replace(split, labels=1 - split.labels)}, 16))
    keys.add(scores_key(model, task, {name: split.take(np.arange(len(split) - 1))}, 16))
    keys.add(scores_key(model, task, {"other": split}, 16))
    keys.add(scores_key(model, get_task("mrpc"), dev, 16))
    with torch.no_grad():
        weight = next(model.parameters())
        weight[0, 0] += 1.0
        keys.add(scores_key(model, task, dev, 16))
        weight[0, 0] -= 1.0
    assert len(keys) == 7


@pytest.mark.parametrize("damage", ["cut", "changed", "list", "other"])
def test_a_damaged_file_is_measured_again(tmp_path: Path, setup: Setup, damage: str) -> None:
    measure = Measured(accuracy=0.5)
    scores(tmp_path, setup, measure)
    (path,) = (tmp_path / "scores").iterdir()
    content = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:40])
    elif damage == "list":
        path.write_text("[]")
    else:
        changed = {"metrics": {"accuracy": 0.9}} if damage == "changed" else {"sha256": "0"}
        write_json(path, {**content, **changed})
    assert scores(tmp_path, setup, measure) == {"accuracy": 0.5}
    assert measure.times == 2
    assert scores(tmp_path, setup, measure) == {"accuracy": 0.5}
    assert measure.times == 2


def test_what_cannot_be_kept_is_measured_each_time(tmp_path: Path, setup: Setup) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    measure = Measured(accuracy=0.5)
    for _ in range(2):
        assert scores(blocked, setup, measure) == {"accuracy": 0.5}
    assert measure.times == 2
    spans = Measured(f1=0.5)
    for _ in range(2):
        scores(tmp_path, setup, spans, task=get_task("squad"))
    broken = Measured(accuracy=float("nan"))
    for _ in range(2):
        scores(tmp_path, setup, broken)
    assert (spans.times, broken.times) == (2, 2)
    assert not (tmp_path / "scores").exists()
