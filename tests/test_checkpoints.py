"""Checkpoints: packed without loss, written whole, put off where they cost much; a full disk."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resumed
import tiny
import torch
from job import run_job, small

import ksel.run
from envs.distillation import DistillationEnv
from envs.keeping import KNOWN
from ksel.checkpoint_config import CheckpointConfig
from ksel.checkpoints import Checkpoints, read_checkpoint, write_checkpoint
from ksel.errors import UsageError
from ksel.packing import pack, records, unpack

CPU = torch.device("cpu")


@dataclass
class Box:
    """A record."""

    inside: Any


BOX = records(Box)


def there_and_back(value: Any) -> Any:
    packed, tensors = pack(value, BOX)
    return unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors, BOX, CPU)


# --------------------------------------------------------------------------- packing


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**127 + 1,
        0.1 + 0.2,
        -0.0,
        math.inf,
        "text",
        b"\x00\xff",
        (1, (2, [3])),
        {"a": {"b": 1}, "$": 2},
        {1: "one", b"key": (2,)},
        Box({"x": [Box(None)]}),
    ],
    ids=str,
)
def test_values_come_back_as_they_were(value: Any):
    found = there_and_back(value)
    assert found == value
    assert type(found) is type(value)
    assert str(found) == str(value)


def test_nan_comes_back():
    assert math.isnan(there_and_back([math.nan])[0])


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, math.nan]], np.float32),
        np.arange(3, dtype=np.uint32),
        np.array([True, False]),
        np.zeros((0, 4)),
        np.float32(0.1),
        np.array(3),
        np.arange(6).reshape(2, 3).T,
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_come_back_as_they_were(array: Any):
    found = there_and_back({"x": array})["x"]
    assert type(found) is type(array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path):
    one = torch.arange(4.0)
    state = {"a": one, "b": one, "c": one.reshape(2, 2).T, "bytes": torch.get_rng_state()}
    write_checkpoint(tmp_path / "checkpoint", state, BOX)
    found = read_checkpoint(tmp_path / "checkpoint", BOX, CPU, print)
    assert found is not None
    for name, tensor in state.items():
        assert torch.equal(found.state[name], tensor)


@pytest.mark.parametrize("value", [object(), CheckpointConfig(), np.array(["text"]), {1, 2}])
def test_what_has_no_form_is_refused_with_its_place(value: Any):
    with pytest.raises(TypeError, match=r"state\.x\.0"):
        pack({"x": [value]}, BOX)


def test_a_record_that_is_not_named_is_not_made(tmp_path: Path):
    write_checkpoint(tmp_path, {"x": Box(1)}, BOX)
    with pytest.raises(UsageError, match="damaged"):
        read_checkpoint(tmp_path, {}, CPU, print)


def test_an_environment_goes_on_from_the_disk(tiny_setup: Callable[..., Any], tmp_path: Path):
    """All that a snapshot holds has a form; what is read back leads to the same steps."""
    setup = tiny_setup(env={"reward": "amortized", "window": 2, "exploration": 0.1})
    env = DistillationEnv(setup=setup)
    env.reset(seed=3)
    env.step(np.ones(5))
    write_checkpoint(tmp_path, {"env": env.get_snapshot()}, KNOWN)
    expected = [env.step(np.ones(5)) for _ in range(3)]
    found = read_checkpoint(tmp_path, KNOWN, CPU, print)
    assert found is not None
    other = DistillationEnv(setup=setup)
    other.set_snapshot(found.state["env"])
    for mine, theirs in zip([other.step(np.ones(5)) for _ in range(3)], expected, strict=True):
        assert np.array_equal(mine[0]["training"], theirs[0]["training"])
        assert mine[1:4] == theirs[1:4]
        assert mine[4] == theirs[4]


# --------------------------------------------------------------------------- when


class Clock:
    """A clock that is set by hand; each look at it costs something."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(
    folder: Path, every: int, share: float, cost: float, decisions: int, size: float = 0.0
) -> list[int]:
    """The decisions after which a checkpoint was written, each decision being a second."""
    clock, written = Clock(), []
    checkpoints = Checkpoints(folder, CheckpointConfig(every, share), BOX, size, clock)
    checkpoints.begin(resumed=False)

    def state(taken: int) -> dict[str, Any]:
        written.append(taken)
        return {"inside": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ksel.checkpoints.write_checkpoint",
            lambda *_: setattr(clock, "now", clock.now + cost),
        )
        for taken in range(1, decisions + 1):
            clock.now += 1.0
            checkpoints.offer(taken, lambda taken=taken: state(taken))
    return written


def test_every_so_many_decisions(tmp_path: Path):
    assert kept(tmp_path, 5, 1.0, 0.1, 17) == [5, 10, 15]
    assert kept(tmp_path, 0, 1.0, 0.1, 17) == []


def test_dear_checkpoints_are_put_off(tmp_path: Path):
    """At 1 s each and a share of 1 in 20, the run pays for one in 20 s."""
    written = kept(tmp_path, 5, 0.05, 1.0, 100)
    assert written[0] == 5
    assert all(len([w for w in written if w <= t]) <= 1 + t / 20 for t in range(1, 101))
    assert len(written) >= 4


def test_the_count_goes_on_where_a_stage_is_gone_on_with(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(5, 1.0), BOX)
    checkpoints.begin(resumed=True)
    for taken in range(12, 18):
        checkpoints.offer(taken, lambda: {"inside": {}})
    assert checkpoints.count == 1


def test_the_first_is_put_off_by_what_its_size_lets_expect(tmp_path: Path):
    """400 MB are two seconds, at a share of 1 in 20 forty."""
    assert kept(tmp_path, 5, 0.05, 0.1, 60, size=4e8)[:2] == [40, 45]


def test_the_one_before_goes_only_when_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "checkpoint"
    first = write_checkpoint(place, {"x": 1}, BOX)
    seen: list[list[str]] = []
    remove = shutil.rmtree

    def removed(path: Path, **rest: Any) -> None:
        seen.append(sorted(p.name for p in place.iterdir()))
        remove(path, **rest)

    monkeypatch.setattr("ksel.checkpoints.shutil.rmtree", removed)
    second = write_checkpoint(place, {"x": 2}, BOX)
    assert seen[-1] == [first.name, second.name]
    assert all(first.name in names for names in seen)
    assert [p.name for p in place.iterdir()] == [second.name]


# --------------------------------------------------------------------------- a full disk

PARTS = ["save_file", "_to_disk"]


@pytest.mark.parametrize("part", PARTS)
def test_a_full_disk_leaves_the_one_before_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    write_checkpoint(tmp_path / "checkpoint", {"x": 1}, BOX)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"ksel.checkpoints.{part}", full)
        with pytest.raises(
            UsageError, match=r"No space left on device.*000001.*is whole.*--resume"
        ):
            write_checkpoint(tmp_path / "checkpoint", {"x": 2}, BOX)
    found = read_checkpoint(tmp_path / "checkpoint", BOX, CPU, print)
    assert found is not None
    assert found.state == {"x": 1}
    assert len(list((tmp_path / "checkpoint").iterdir())) == 1


def test_a_file_too_large_for_the_system_ends_the_run_and_it_can_be_gone_on_with(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    """A limit of the system on the size of files, as a disk that is full: a real failure to write."""
    values = small(
        tiny.settings(tiny_data, tiny_teacher, tmp_path / "store"),
        {"agent": "static", "references": ["all"], "checkpoint": {"every": 2, "share": 1.0}},
    )
    monkeypatch.setattr("ksel.run.prepare", prepared := Limited(ksel.run.prepare))
    run = run_job(tmp_path, values)
    prepared.lift()
    monkeypatch.undo()
    assert run.code == 2
    assert "File too large" in run.error
    assert resumed.summary(run.folder)["status"] == "failed"
    places = list((run.folder / "checkpoint").iterdir())
    assert [place.name for place in places] == ["000001"]
    outcome = resumed.go_on(run.folder)
    assert outcome.code == 0, outcome.err
    resumed.check_same(run_job(tmp_path, values, name="whole").folder, run.folder)


class Limited:
    """Prepares a run, then lets files grow to 100 kB: records fit, a student's state does not."""

    def __init__(self, prepare: Callable[..., Any]) -> None:
        self.prepare, self.before = prepare, resource.getrlimit(resource.RLIMIT_FSIZE)

    def __call__(self, *arguments: Any) -> Any:
        setup = self.prepare(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, self.before[1]))
        return setup

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
