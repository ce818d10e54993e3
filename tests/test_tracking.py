"""What is measured arrives in metrics.jsonl and TensorBoard; progress is told on any stream."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from ksel.errors import UsageError
from ksel.tracking import Progress, Silent, Tracker, read_metrics, stage_folder

POOL = ("label", "hidden/skip", "cls_hidden/last_1")


def lines(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_a_measurement_is_a_line_and_a_scalar(tmp_path: Path) -> None:
    with Tracker(tmp_path, POOL) as tracker:
        tracker.log("final", 10, {"loss/label": 0.5, "student/accuracy": np.float32(0.75)})
        tracker.log("reference:finetune", 20, {"loss/label": 0.25})
    assert lines(tmp_path) == [
        {"stage": "final", "step": 10, "loss/label": 0.5, "student/accuracy": 0.75},
        {"stage": "reference:finetune", "step": 20, "loss/label": 0.25},
    ]
    final = events(tmp_path / "tensorboard" / "final")
    assert sorted(final.Tags()["scalars"]) == ["loss/label", "student/accuracy"]
    scalar = final.Scalars("student/accuracy")[0]
    assert (scalar.step, scalar.value) == (10, 0.75)
    reference = events(tmp_path / "tensorboard" / "reference-finetune")
    assert [s.value for s in reference.Scalars("loss/label")] == [0.25]


def test_numbers_that_are_not_finite_are_null_and_no_points(tmp_path: Path) -> None:
    values = {"grad_norm/label": float("nan"), "loss/label": float("inf"), "drop": 0.5}
    with Tracker(tmp_path, POOL) as tracker:
        tracker.log("search", 1, values)
    assert lines(tmp_path) == [
        {
            "stage": "search",
            "step": 1,
            "grad_norm/label": None,
            "loss/label": None,
            "reward/drop": 0.5,
        }
    ]
    assert events(tmp_path / "tensorboard" / "search").Tags()["scalars"] == ["reward/drop"]


def test_a_decision_is_logged_under_the_designs_tags(tmp_path: Path) -> None:
    info = {
        "update": 5,
        "objective": 0.5,
        "drop": 0.25,
        "reward_scale": 2.0,
        "clip_norm": 1.5,
        "loss/hidden/skip": 3.0,
        "grad_norm/label": 0.125,
        "reason": "loss of label is not finite",
    }
    with Tracker(tmp_path, POOL) as tracker:
        tracker.log_decision(
            "search",
            5,
            action=np.array([1, 0, 1], np.int8),
            reward=0.75,
            info=info | {f"credit/{name}": 0.1 for name in POOL},
        )
        paid = {"predicted": 0.5, "correlation": 0.9, "trusted": 1.0}
        tracker.log_decision("final", 5, action=np.ones(3), reward=0.25, info=paid)
    amortized = lines(tmp_path)[1]
    assert amortized["reward/paid"] == 0.25
    assert {"reward/predicted", "reward/correlation", "reward/trusted"} <= set(amortized)
    assert "reward/measured" not in amortized
    line = lines(tmp_path)[0]
    assert line["reason"] == "loss of label is not finite"
    assert "update" not in line
    tags = set(events(tmp_path / "tensorboard" / "search").Tags()["scalars"])
    assert tags == set(line) - {"stage", "step", "reason"}
    assert tags >= {f"schedule/{name}" for name in POOL} | {f"credit/{name}" for name in POOL}
    assert tags >= {"reward/measured", "reward/objective", "reward/drop", "reward/scale"}
    assert tags >= {"grad_norm/total", "grad_norm/label", "loss/hidden/skip"}
    assert line["reward/measured"] == 0.75
    assert line["schedule/hidden/skip"] == 0.0


def test_the_heat_map_is_an_image(tmp_path: Path) -> None:
    actions = np.random.default_rng(0).integers(0, 2, (50, 3)).astype(np.float32)
    with Tracker(tmp_path, POOL) as tracker:
        tracker.heat_map("final", actions, np.arange(50) * 4)
    final = events(tmp_path / "tensorboard" / "final")
    assert final.Tags()["images"] == ["schedule/heat_map"]
    image = final.Images("schedule/heat_map")[0]
    assert image.step == 196
    assert image.width > 500
    assert image.encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.parametrize("before", [True, False])
def test_the_layout_puts_all_types_in_one_chart(tmp_path: Path, before: bool) -> None:
    with Tracker(tmp_path, POOL) as tracker:
        if before:
            tracker.layout()
        tracker.log("final", 1, {f"loss/{name}": 1.0 for name in POOL})
        tracker.layout()
    tensors = events(tmp_path / "tensorboard" / "final").Tensors("custom_scalars__config__")
    assert len(tensors) == 1
    layout = layout_pb2.Layout.FromString(tensors[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert set(charts) == {"schedule", "loss", "grad_norm", "credit"}
    for group, patterns in charts.items():
        for name in POOL:
            assert [bool(re.match(p, f"{group}/{name}")) for p in patterns].count(True) == 1
        assert not any(re.match(p, f"{group}/label_other") for p in patterns)


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, POOL)
    tracker.log("search", 1, {"reward": 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["reward/measured"] == 1.0
    tracker.close()
    tracker.close()
    with pytest.raises(RuntimeError, match="closed"):
        tracker.log("search", 2, {})
    with pytest.raises(RuntimeError, match="closed"):
        tracker.log("search", 2, {"reward": 1.0})


def test_lines_are_appended_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage":"search","step":1,"loss/label":2.0}\n[]\n{"stage":"sea')
    with Tracker(tmp_path, POOL) as tracker:
        tracker.log("search", 2, {"loss/label": 1.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert path.read_text().startswith('{"stage":"search","step":1')


def test_missing_metrics_and_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(UsageError, match="--out"):
        Tracker(tmp_path / "absent", POOL)


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Tracker(tmp_path, POOL) as tracker:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(UsageError, match=r"No space left.*--out"):
                tracker.log("search", 1, {})
        tracker.log("search", 2, {})
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, main = os.write, threading.get_ident()

    def short(fd: int, content: bytes) -> int:
        return whole(fd, content[:7] if threading.get_ident() == main else content)

    tracker = Tracker(tmp_path, POOL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        tracker.log("search", 1, {"reason": "ab"})
    tracker.close()
    assert lines(tmp_path) == [{"stage": "search", "step": 1, "reason": "ab"}]


@pytest.mark.parametrize(
    ("stage", "folder"),
    [("final", "final"), ("reference:hidden/skip", "reference-hidden-skip"), ("a/../b", "a-..-b")],
)
def test_stage_folders(stage: str, folder: str) -> None:
    assert stage_folder(stage) == folder


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_at_most_every_ten_seconds_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with (
        Progress(live=False, clock=clock) as progress,
        progress.stage("search episode 1/4", 30) as bar,
    ):
        for _ in range(30):
            clock.now += 1.0
            bar.advance(loss=0.61234, reward=0.123, acc=0.7134)
        progress.say("teacher is ready")
    captured = capsys.readouterr()
    assert captured.out == "teacher is ready\n"
    assert captured.err.splitlines() == [
        "search episode 1/4  10/30  loss 0.612  reward +0.12  acc 0.713  0:00:20 left",
        "search episode 1/4  20/30  loss 0.612  reward +0.12  acc 0.713  0:00:10 left",
        "search episode 1/4  30/30  loss 0.612  reward +0.12  acc 0.713  0:00:30 taken",
    ]


def test_an_interrupted_stage_says_where_it_stood(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with Progress(live=False) as progress:
            progress.stage("final student", 60).advance(31)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == "final student  31/60  0:00:00 taken\n"


def test_bars_stay_on_stderr_and_messages_on_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    with Progress(live=True) as progress:
        with progress.stage("search [1/4]", 4) as bar:
            bar.advance(3, loss=0.5)
            progress.say("half way")
            bar.advance(1, loss=0.25)
        with progress.stage("final", 2):
            pass
    captured = capsys.readouterr()
    assert captured.out == "half way\n"
    assert "search [1/4]" in captured.err
    assert "4/4" in captured.err
    assert "loss 0.25" in captured.err


def test_silence_counts_and_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    with silent.stage("teacher", 3) as bar:
        bar.advance(2, loss=0.5)
        bar.advance()
        assert bar.done == 3
    bar.close()
    silent.say("hello")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
