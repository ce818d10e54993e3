from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_run import make_run

from agents.table import AGENTS
from envs.recording import Recorder
from ksel import replay
from ksel.cells import safe
from ksel.cli import guard
from ksel.compare_results import load_results
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.files import write_json
from ksel.ledger import Ledger
from ksel.replay_request import NO_EFFECT, flat, parse
from ksel.replays import Replay, notes, statistics, stretched
from ksel.trajectory import DecisionRow, read_schedule
from ksel.transfers import Setting, Student, Transfer, pair, split_values
from ksel.validation import (
    decision_difference,
    judge_twice,
    likely_causes,
    relative_distance,
    weight_difference,
)

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def a2c_run(tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a2c")
    return make_run(folder, tiny_data, tiny_teacher, agent="a2c", optim={"max_updates": 8})


@pytest.fixture(scope="module")
def random_run(
    tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_run(tmp_path_factory.mktemp("random"), tiny_data, tiny_teacher)


@pytest.fixture
def a2c(a2c_run: Path, tmp_path: Path) -> Path:
    """A copy of the a2c run that a test may spoil."""
    return Path(shutil.copytree(a2c_run, tmp_path / "a2c"))


@pytest.fixture
def random(random_run: Path, tmp_path: Path) -> Path:
    """A copy of the random_hard run that a test may spoil."""
    return Path(shutil.copytree(random_run, tmp_path / "random"))


@pytest.fixture
def maker(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> Maker:
    def make(**changes: object) -> Path:
        return make_run(tmp_path / "made", tiny_data, tiny_teacher, **changes)

    return make


def call(*words: object) -> int:
    return guard(replay.main, [str(word) for word in words])


def record(run: Path) -> dict:
    (folder,) = (run / "replays").iterdir()
    return json.loads((folder / "replay.json").read_text(encoding="utf-8"))


def replayed_actions(run: Path, seed: int) -> np.ndarray:
    (folder,) = (run / "replays").iterdir()
    return read_schedule(folder / "schedule.parquet").actions("final", seed)


def rewrite(run: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    path = run / "schedule.parquet"
    table = pq.read_table(path)
    metadata = table.schema.metadata
    pq.write_table(edit(table).replace_schema_metadata(metadata), path, write_page_checksum=True)


def flip(run: Path, decision: int, k: int) -> None:
    """Turn one bit of the final student's schedule."""

    def edit(table: pa.Table) -> pa.Table:
        frame = table.select(["stage", "decision"]).to_pandas()
        row = frame.index[(frame.stage == "final") & (frame.decision == decision)][0]
        actions = table["action"].to_pylist()
        actions[row][k] = 1.0 - actions[row][k]
        column = table.schema.get_field_index("action")
        kind = table.schema.field("action").type
        return table.set_column(column, "action", pa.array(actions, kind))

    rewrite(run, edit)


def remove_final(run: Path, keep: int = 0) -> None:
    def edit(table: pa.Table) -> pa.Table:
        frame = table.select(["stage", "decision"]).to_pandas()
        return table.filter(pa.array((frame.stage != "final") | (frame.decision < keep)))

    rewrite(run, edit)


# --------------------------------------------------------------------------- validate


def test_validate_finds_the_same_student(
    a2c: Path, random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (a2c, random):
        assert call(run) == 0
        decisions = len(read_schedule(run / "schedule.parquet").stage("final"))
        expected = f"validated: seed 0, {decisions} decisions: identical to the saved student"
        assert expected in capsys.readouterr().out
        (one,) = record(run)["replays"]
        assert one["identical"] is True
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        assert one["metrics"] == summary["students"][0]["metrics"]


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": "a2c", "student": {"dropout": 0.1}},
        {"agent": "a2c", "knowledge": {"balance": "none"}, "env": {"actions": "soft"}},
        {"optim": {"max_updates": 7, "accumulate": 2}, "env": {"phase_steps": 3}},
        {
            "agent": "annealed",
            "signals": {"source": "live"},
            "student": {"width": 8, "heads": 2},
            "knowledge": {"pool": ["label", "response", "hidden/skip"]},
        },
    ],
    ids=["dropout", "soft without balance", "accumulate and phases", "live, other width"],
)
def test_validate_repeats_other_settings_too(maker: Maker, changes: dict) -> None:
    assert call(maker(**changes)) == 0


def test_a_changed_weight_is_named(a2c: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = a2c / "student" / "model.safetensors"
    weights = load_file(path)
    name = sorted(name for name in weights if name.endswith("output.dense.weight"))[0]
    weights[name][0, 0] += 0.25
    save_file(weights, path, metadata={"format": "pt"})
    assert call(a2c) == 1
    out = capsys.readouterr().out
    assert (
        f"1 of {len(weights)} tensors differ, the first is {name} (largest difference 0.25)" in out
    )
    assert "all 8 logged decisions agree" in out
    assert "possible cause: student/model.safetensors was changed" in out
    assert record(a2c)["replays"][0]["identical"] is False


@pytest.mark.parametrize(("shift", "code"), [(1e-6, 0), (10.0, 1)])
def test_a_run_made_on_cuda_is_compared_with_a_tolerance(
    a2c: Path, shift: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = json.loads((a2c / "versions.json").read_text(encoding="utf-8"))
    write_json(a2c / "versions.json", {**versions, "gpu": "a GPU"})
    path = a2c / "student" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][0] += shift
    save_file(weights, path, metadata={"format": "pt"})
    assert call(a2c) == code
    out = capsys.readouterr().out
    assert "on CUDA bitwise equality is not promised" in out
    assert ("validated within tolerance" in out) == (code == 0)
    assert "possible cause: gpu: a GPU then, None now" in out


def test_a_changed_decision_is_located(random: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(random, 3, 1)
    assert call(random) == 1
    out = capsys.readouterr().out
    assert "NOT validated" in out
    assert "they went apart at decision 3 (after 3 updates): loss of response" in out


def test_a_changed_decision_of_a_learned_policy_is_located(
    a2c: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # all losses are observed while rewards are measured, so the reward is the first to tell
    flip(a2c, 2, 0)
    assert call(a2c) == 1
    assert "they went apart at decision 2 (after 2 updates)" in capsys.readouterr().out


def test_changed_data_are_named_as_the_cause(
    maker: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = maker()
    other = tiny.write_data(tmp_path / "other", seed=1)
    assert call(run, "--data", other) == 1
    out = capsys.readouterr().out
    assert "possible cause: the training rows are not the run's" in out
    assert "the teacher" not in out.split("possible cause", 1)[1]


def test_other_versions_and_threads_are_named_as_causes() -> None:
    causes = likely_causes(
        (
            {"torch": "2.12.0", "numpy": "2.4.0", "threads": 8},
            {"torch": "2.13.0", "numpy": "2.4.0"},
        ),
        (2, 1),
        ({"teacher": "a", "training rows": "b"}, {"teacher": "x", "training rows": "b"}),
    )
    assert causes == [
        "the teacher is not the run's (files, settings or libraries changed)",
        "threads: 2 then, 1 now",
        "torch: 2.12.0 then, 2.13.0 now",
    ]


def test_validate_plays_further_seeds_twice(
    random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(random, "--seeds", 2) == 0
    assert "seed 1, 6 decisions: identical to itself, played twice" in capsys.readouterr().out
    assert [one["seed"] for one in record(random)["replays"]] == [0, 1]


def test_a_further_seed_that_does_not_repeat_itself_is_found(
    random: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow = replay.follow
    plays = []

    def forgetful(actions: np.ndarray, *arguments: object, **named: object) -> object:
        plays.append(named["seed"])
        return follow(1 - actions if len(plays) == 3 else actions, *arguments, **named)

    monkeypatch.setattr(replay, "follow", forgetful)
    assert call(random, "--seeds", 2) == 1
    assert plays == [0, 1, 1]
    out = capsys.readouterr().out
    assert "validated: seed 0, 6 decisions: identical to the saved student" in out
    assert "NOT validated: seed 1, 6 decisions: differs from itself, played twice" in out


def test_a_diverged_student_is_validated(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    run = maker(optim={"learning_rate": 1e30, "max_updates": 6, "warmup": 0})
    assert len(read_schedule(run / "schedule.parquet").stage("final")) < 6
    assert call(run) == 0
    assert "ended early" in capsys.readouterr().out
    assert call(run, "--mode", "schedule") == 2
    assert "ends after" in capsys.readouterr().err


# --------------------------------------------------------------------------- interrupted runs


def interrupt(monkeypatch: pytest.MonkeyPatch, stage: str, decision: int, *, late: bool) -> None:
    """Ctrl-C at a decision, before its update or between the update and its row."""
    step = Recorder.step

    def stopped(self: Recorder, action: object) -> object:
        if self.stage == stage and self._decision == decision:
            if late:
                self.env.step(action)
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(Recorder, "step", stopped)


def test_an_interrupted_final_student_is_validated(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "final", 4, late=False)
        run = maker(code=130)
    assert call(run) == 0
    assert "validated: seed 0, 4 decisions: identical" in capsys.readouterr().out
    assert call(run, "--mode", "schedule") == 2
    assert "ends after 4 of 6 decisions" in capsys.readouterr().err
    assert call(run, "--mode", "policy") == 0


def test_a_run_stopped_inside_a_decision_is_said_to_be(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "final", 4, late=True)
        run = maker(code=130)
    assert call(run) == 1
    out = capsys.readouterr().out
    assert "its student has had 5 updates, the schedule covers 4" in out
    assert "all 4 logged decisions agree" in out


def test_a_run_stopped_in_its_search_has_nothing_to_replay(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "search", 2, late=False)
        run = maker(agent="a2c", code=130, optim={"max_updates": 10})
    assert call(run) == 2
    assert "no decision of a final student (it holds: search)" in capsys.readouterr().err


# --------------------------------------------------------------------------- schedule


def test_schedule_takes_the_logged_masks_to_another_student(
    random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in random.rglob("*") if p.is_file()}
    assert call(random, "--mode", "schedule", "--seeds", 2, "--seed", 5, "--student.layers", 3) == 0
    logged = read_schedule(random / "schedule.parquet").actions("final")
    for seed in (5, 6):
        np.testing.assert_array_equal(replayed_actions(random, seed), logged)
    assert {p: p.read_bytes() for p in before} == before
    found = record(random)
    assert found["changed"] == {"seed": 5, "student.layers": 3}
    assert [one["seed"] for one in found["replays"]] == [5, 6]
    out = capsys.readouterr().out
    assert "too few seeds for an interval" in out
    assert "original, seed 0" in out


def test_schedule_on_the_runs_own_seed_gives_the_run_again(a2c: Path) -> None:
    assert call(a2c, "--mode", "schedule") == 0
    (folder,) = (a2c / "replays").iterdir()
    logged = read_schedule(a2c / "schedule.parquet")
    again = read_schedule(folder / "schedule.parquet")
    for column in ("loss", "scale", "grad_norm", "action"):
        np.testing.assert_array_equal(
            logged.vectors(column, "final"), again.vectors(column, "final", 0)
        )


def test_schedule_is_stretched_to_another_budget(
    random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--optim.max_updates", 9, "--out", random / "elsewhere"]
    assert call(random, "--mode", "schedule", *words) == 0
    assert "6 decisions were logged and this student takes 9; stretched" in capsys.readouterr().out
    logged = read_schedule(random / "schedule.parquet").actions("final")
    (folder,) = (random / "elsewhere").iterdir()
    found = read_schedule(folder / "schedule.parquet").actions("final", 0)
    np.testing.assert_array_equal(found, logged[[0, 0, 1, 2, 2, 3, 4, 4, 5]])


@pytest.mark.parametrize(
    ("logged", "wanted", "numbers"),
    [(4, 4, [0, 1, 2, 3]), (4, 2, [0, 2]), (2, 5, [0, 0, 0, 1, 1]), (3, 1, [0])],
)
def test_stretched(logged: int, wanted: int, numbers: list[int]) -> None:
    assert stretched(logged, wanted).tolist() == numbers


def test_schedule_moves_to_another_task_and_teacher(random: Path, tmp_path: Path) -> None:
    teacher = tiny.write_teacher(tmp_path / "teacher", task="mrpc", seed=3)
    words = ["--task", "mrpc", "--teacher", teacher]
    assert call("--mode", "schedule", *words, random) == 0
    assert set(record(random)["replays"][0]["metrics"]) == {"accuracy", "f1"}


def test_a_custom_tasks_schedule_moves_to_a_named_task(maker: Maker) -> None:
    custom = {
        "text": "sentence1",
        "text_pair": "sentence2",
        "labels": ["entailment", "not_entailment"],
    }
    run = maker(task="custom", custom=custom)
    assert call(run, "--mode", "schedule", "--task", "rte") == 0
    assert record(run)["task"] == "rte"


# --------------------------------------------------------------------------- policy


def test_the_frozen_policy_decides_as_in_the_run_and_anew_on_other_seeds(
    a2c: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(a2c, "--mode", "policy", "--seeds", 2) == 0
    logged = read_schedule(a2c / "schedule.parquet").actions("final")
    np.testing.assert_array_equal(replayed_actions(a2c, 0), logged)
    assert not np.array_equal(replayed_actions(a2c, 1), logged)
    found = record(a2c)
    values = [one["metrics"]["accuracy"] for one in found["replays"]]
    assert found["statistics"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert found["statistics"]["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "too few seeds" in capsys.readouterr().out


def test_a_policy_takes_another_budget_without_stretching(random: Path) -> None:
    assert call(random, "--mode", "policy", "--optim.max_updates", 3) == 0
    assert len(replayed_actions(random, 0)) == 3


def test_a_policy_that_does_not_fit_is_refused_with_the_difference(
    a2c: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(a2c, "--mode", "policy", "--knowledge.pool", "[label, fsp]") == 2
    assert "the run has fsp/skip, the policy does not" in capsys.readouterr().err


def test_a_policy_of_another_pool_is_refused_before_any_work(
    a2c: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = maker(knowledge={"pool": ["label", "response"]})
    monkeypatch.setattr(replay, "prepare", lambda *_: pytest.fail("data and teacher were read"))
    assert call(a2c, "--mode", "policy", "--policy", other / "policy") == 2
    message = capsys.readouterr().err
    assert "the policy does not" in message
    assert "Use its pool: label, response." in message


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--mode", "shedule"], ["--mode", "Did you mean 'schedule'?"]),
        (["--seeds", "0"], ["--seeds", "1 or more"]),
        (["--student.layer", "1"], ["--student.layer", "Did you mean --student.layers?"]),
        (["--student.layers", "1"], ["--student.layers", "--mode schedule"]),
        (["--seed", "4"], ["--seed", "repeats the run as it was"]),
        (["--mode", "schedule", "--agent", "static"], ["--agent", "no effect on a replay"]),
        (["--mode", "schedule", "--random.probability", "0.1"], ["--random.probability"]),
        (["--mode", "schedule", "--rows.dev_on_the_way", "9"], ["--rows.dev_on_the_way"]),
        (["--mode", "schedule", "--all_action.gamma", "0.9"], ["--all_action.gamma", "no effect"]),
        (["--mode", "schedule", "--greedy.threshold", "0.1"], ["--greedy.threshold", "no effect"]),
        (["--mode", "schedule", "--branches.every", "9"], ["--branches.every", "no effect"]),
        (["--mode", "schedule", "--search", "online"], ["--search", "no effect"]),
        (["--mode", "schedule", "--students", "2"], ["--students", "no effect"]),
        (["--mode", "schedule", "--vectorize", "loop"], ["--vectorize", "no effect"]),
        (["--mode", "schedule", "--env.objective", "margin"], ["--env.objective", "not used"]),
        (
            ["--mode", "schedule", "--knowledge.pool", "[label, response, fsp]"],
            ["--knowledge.pool", "the schedule has cls_hidden/skip", "the pool has fsp/skip"],
        ),
        (["--mode", "schedule", "--data", "nowhere"], ["--data nowhere", "does not exist"]),
    ],
)
def test_mistakes_end_with_one_message(
    random_run: Path, words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(random_run, *words) == 2
    err = capsys.readouterr().err
    for part in parts:
        assert part in err
    assert not (random_run / "replays").exists()


def test_the_settings_of_no_agent_have_an_effect_on_a_replay() -> None:
    groups = {group for info in AGENTS.values() for group in info.settings}
    assert groups <= set(NO_EFFECT)
    assert set(NO_EFFECT) <= {
        *flat(RunConfig()),
        *(f.name for f in fields(RunConfig)),
    }


@pytest.mark.parametrize(
    ("agent", "option", "taken"),
    [
        ("greedy", "cost_per_type", False),
        ("all_action", "exploration", False),
        ("all_action", "cost_per_type", True),
        ("a2c", "exploration", True),
    ],
)
def test_rewards_that_the_agent_was_not_taught_by_are_refused(
    random: Path, agent: str, option: str, taken: bool
) -> None:
    path = random / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings |= {"agent": agent, "search": "online" if agent == "all_action" else "episodes"}
    settings["env"]["reward"] = "measured" if agent == "a2c" else "amortized"
    path.write_text(yaml.safe_dump(settings))
    words = [str(random), "--mode", "schedule", f"--env.{option}", "0.1"]
    if taken:
        assert getattr(parse(words).config.env, option) == 0.1
        return
    with pytest.raises(UsageError, match=rf"--env\.{option} is not used with --agent {agent}"):
        parse(words)


def test_what_is_not_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (
        ([tmp_path / "absent"], "there is no folder"),
        ([tmp_path], "it has no config.yaml"),
        ([], "RUN: name the folder of a run"),
        (["--mode", "schedule"], "RUN: name the folder of a run"),
    ):
        assert call(*words) == 2
        assert part in capsys.readouterr().err


def test_spoiled_files_are_refused_before_any_work(
    random: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay, "prepare", lambda *_: pytest.fail("work was begun"))
    student = random / "student" / "model.safetensors"
    whole = student.read_bytes()
    student.write_bytes(whole[: len(whole) // 2])
    assert call(random) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err
    student.unlink()
    assert call(random) == 2
    assert "has no student/model.safetensors" in capsys.readouterr().err
    (random / "policy" / "policy.json").unlink()
    assert call(random, "--mode", "policy") == 2
    assert "policy.json is missing" in capsys.readouterr().err
    schedule = random / "schedule.parquet"
    whole = schedule.read_bytes()
    schedule.write_bytes(whole[: len(whole) // 2])
    assert call(random) == 2
    assert "schedule.parquet is cut short or damaged" in capsys.readouterr().err
    schedule.unlink()
    assert call(random, "--mode", "policy") == 2
    assert "there is no" in capsys.readouterr().err
    (random / "config.yaml").write_text("just words", encoding="utf-8")
    assert call(random) == 2
    assert "holds no settings" in capsys.readouterr().err


def test_a_student_of_another_shape_is_refused(
    random: Path, a2c: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(random / "student" / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, random / "student" / "model.safetensors", metadata={"format": "pt"})
    assert call(random) == 2
    assert "not of the shape that the run's settings give" in capsys.readouterr().err


def test_ctrl_c_keeps_the_finished_replays(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = replay.prepare
    calls = []

    def second_time(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return prepare(*arguments)

    monkeypatch.setattr(replay, "prepare", second_time)
    assert call(random, "--mode", "policy", "--seeds", 3) == 130
    found = record(random)
    assert (found["status"], len(found["replays"])) == ("interrupted", 1)
    assert call(random, "--mode", "policy") == 0


# --------------------------------------------------------------------------- comparisons


def test_weights_are_compared_bit_by_bit() -> None:
    nan = {"a": torch.tensor([1.0, math.nan])}
    assert weight_difference(nan, {"a": nan["a"].clone()}) is None
    zero = {"a": torch.zeros(2), "b": torch.ones(1)}
    found = weight_difference(zero, {"a": -torch.zeros(2), "b": torch.ones(1)})
    assert found is not None
    assert (found.tensor, found.largest, found.differing, found.tensors) == ("a", 0.0, 1, 2)
    found = weight_difference(zero, {"b": torch.tensor([1.5]), "a": torch.ones(2)})
    assert found is not None
    assert (found.tensor, found.largest, found.differing) == ("b", 0.5, 2)


def test_relative_distance_is_measured_against_the_way_that_was_gone() -> None:
    start = {"a": torch.zeros(2)}
    saved = {"a": torch.tensor([3.0, 4.0])}
    assert relative_distance(saved, {"a": torch.tensor([3.0, 3.5])}, start) == pytest.approx(0.1)
    assert relative_distance(saved, saved, start) == 0
    assert relative_distance(start, saved, start) == math.inf


def decision(number: int, **changes: object) -> DecisionRow:
    vectors = np.array([1.0, np.nan], np.float32)
    values: dict = {
        "episode": 0,
        "stage": "final",
        "decision": number,
        "update": number,
        "reward": 0.0,
        "objective": math.nan,
        "drop": math.nan,
        "reward_scale": math.nan,
        "log_prob": 0.0,
        "terminated": False,
    }
    for name in ("action", "probabilities", "loss", "scale", "grad_norm", "credit", "observation"):
        values[name] = vectors.copy()
    return DecisionRow(**{**values, **changes})


def test_the_first_decision_that_differs_is_found() -> None:
    rows = [decision(i) for i in range(3)]
    frame = pd.DataFrame([row.__dict__ for row in rows])
    assert decision_difference(frame, rows, ("label", "response")) is None
    other = [rows[0], decision(1, scale=np.array([1.0, 2.0], np.float32)), decision(2, reward=1.0)]
    found = decision_difference(frame, other, ("label", "response"))
    assert str(found) == (
        "decision 1 (after 1 updates): scale of response was logged as not there and is 2 in the "
        "re-run"
    )
    found = decision_difference(frame, [*rows[:2], decision(2, objective=0.5)], ("a", "b"))
    assert found is not None
    assert (found.decision, found.what, found.replayed) == (2, "objective", 0.5)
    found = decision_difference(frame, rows[:1], ("a", "b"))
    assert found is not None
    assert found.decision == 1


def one(seed: int, accuracy: float, reason: str | None = None) -> Replay:
    return Replay(seed, {"accuracy": accuracy}, 4, 4, 0.1, reason, rows=[])


def test_mean_and_deviation_come_with_the_words_that_belong_to_them() -> None:
    assert statistics([one(0, 0.5)]) == {}
    few = [one(0, 0.5), one(1, 0.7)]
    assert statistics(few)["accuracy"]["sd"] == pytest.approx(math.sqrt(0.02))
    assert "0.6000 +- 0.1414 over 2 seeds" in notes(few)[0]
    assert "too few seeds for an interval" in notes(few)[0]
    enough = [one(seed, 0.5 + 0.1 * seed) for seed in range(5)]
    assert notes(enough) == ["accuracy: 0.7000 +- 0.1581 over 5 seeds (mean +- standard deviation)"]
    assert "seed 3 ended early after 4 updates: the loss" in notes([one(3, 0.5, "the loss")])[0]


def test_two_plays_that_differ_are_noted() -> None:
    replay = one(1, 0.5)
    once, again = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    judge_twice(replay, once, again, once, torch.device("cpu"))
    assert replay.identical is False
    assert "the first is a" in replay.details[0]


@pytest.mark.parametrize(
    ("device", "apart", "same"),
    [("cpu", 1e-3, False), ("cuda", 1e-3, True), ("cuda", 1.0, False), ("cpu", 0.0, True)],
)
def test_two_plays_on_cuda_are_compared_with_a_tolerance(
    device: str, apart: float, same: bool
) -> None:
    replay = one(1, 0.5)
    start, once, again = ({"a": torch.tensor([x])} for x in (0.0, 4.0, 4.0 + apart))
    judge_twice(replay, once, again, start, torch.device(device))
    assert replay.identical is same
    assert ("on CUDA bitwise" in "".join(replay.details)) == (device == "cuda")


# --------------------------------------------------------------------------- stages

STAGES = [{"pool": ["label"], "share": 0.75}, {"pool": ["response"], "share": 0.25}]


def test_a_schedule_is_stretched_within_each_stage(maker: Maker) -> None:
    run = maker(
        agent="static",
        knowledge={"pool": ["label", "response"]},
        stages=STAGES,
        optim={"max_updates": 8},
        env={"phase_steps": 2},
    )
    assert call(run, "--mode", "schedule", "--optim.max_updates", 13) == 0
    (folder,) = (run / "replays").iterdir()
    actions = read_schedule(folder / "schedule.parquet").actions("final", 0).tolist()
    # 10 and 3 updates: 5 and 2 decisions, each stage's own types throughout
    assert actions == [[1, 0]] * 5 + [[0, 1]] * 2


def test_other_stages_do_not_take_the_logged_masks(
    maker: Maker, capsys: pytest.CaptureFixture
) -> None:
    run = maker(
        agent="static",
        knowledge={"pool": ["label", "response"]},
        stages=STAGES,
        optim={"max_updates": 8},
    )
    other = "[{pool: [label], share: 0.5}, {pool: [response], share: 0.5}]"
    assert call(run, "--mode", "schedule", "--stages", other) == 2
    assert "--stages: the logged masks belong to the run's stages" in capsys.readouterr().err
    assert call(run, "--mode", "policy", "--stages", other) == 0
    (folder,) = (run / "replays").iterdir()
    changed = json.loads((folder / "replay.json").read_text())["changed"]
    assert [stage["share"] for stage in changed["stages"]] == [0.5, 0.5]


def test_a_run_that_only_observes_is_validated(maker: Maker) -> None:
    run = maker(agent="dynamic", knowledge={"pool": ["label", "response", "hidden/skip"]})
    assert call(run) == 0


# --------------------------------------------------------------------------- several settings


def test_a_policy_is_played_across_students_and_tasks_beside_all(
    a2c: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_teacher(tmp_path / "other", task="mrpc", seed=3)
    words = ["--across", "student.layers=2,3", "--seeds", 2]
    words += ["--across", f"task+teacher=rte+{tiny_teacher},mrpc+{other}"]
    assert call(a2c, "--mode", "policy", *words) == 0
    (folder,) = (a2c / "replays").iterdir()
    results = load_results(folder)
    teachers = {"rte": tiny_teacher.name, "mrpc": "other"}
    labels = [
        f"{task}, student.layers {n}, teacher {teachers[task]}"
        for n in (2, 3)
        for task in ("rte", "mrpc")
    ]
    assert results.tasks == labels
    assert results.methods == ["a2c-policy", "all"]
    assert len(results.usable) == 4 * 2 * 2
    assert results.cells["teacher_score"].notna().all()
    assert (results.cells["cost"][results.cells["method"] == "all"] == 1).all()
    found = json.loads((folder / "replay.json").read_text(encoding="utf-8"))
    assert [one["label"] for one in found["settings"]] == labels
    changed = {"task": "mrpc", "student.layers": 3, "teacher": str(other)}
    assert found["settings"][3]["changed"] == changed
    kept = {path.name: path for path in (folder / "schedules").iterdir()}
    assert set(kept) == {f"{safe(label)}.parquet" for label in labels}
    schedule = read_schedule(kept[f"{safe(labels[0])}.parquet"])
    logged = read_schedule(a2c / "schedule.parquet").actions("final")
    np.testing.assert_array_equal(schedule.actions("final", 0), logged)
    out = capsys.readouterr().out
    assert "Over 4 tasks" in out
    assert "too few seeds" in out
    assert (folder / "compare.html").is_file()
    assert "difference to all" in (folder / "table.md").read_text(encoding="utf-8")


def test_beside_it_stands_the_runs_own_reference(maker: Maker) -> None:
    run = maker(references=["all"])
    assert call(run, "--mode", "schedule", "--across", "student.layers=2") == 0
    (folder,) = (run / "replays").iterdir()
    cells = load_results(folder).cells.set_index("method")
    students = json.loads((run / "summary.json").read_text(encoding="utf-8"))["students"]
    scores = {one["name"]: one["metrics"]["accuracy"] for one in students}
    assert cells.loc["all", "score"] == scores["all"]
    assert cells.loc["random_hard-schedule", "score"] == scores["selected"]
    assert cells.loc["all", "student_forwards"] > 0


def test_a_setting_that_does_not_fit_is_listed_and_the_others_are_played(
    a2c: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools = "knowledge.pool=[label,fsp],[label, response, cls_hidden/skip, hidden/skip, value_relation/last_1]"
    assert call(a2c, "--mode", "policy", "--across", pools) == 1
    (folder,) = (a2c / "replays").iterdir()
    results = load_results(folder)
    assert results.cells["status"].tolist() == ["failed"] * 2 + ["complete"] * 2
    assert "the run has fsp/skip, the policy does not" in results.failed["error"].iloc[0]
    assert "no score: rte, knowledge.pool [label,fsp]" in capsys.readouterr().out
    assert call(a2c, "--mode", "policy", "--across", "knowledge.pool=[label,fsp]") == 2
    assert "--across: nothing could be played" in capsys.readouterr().err
    assert len(list((a2c / "replays").iterdir())) == 1


def test_ctrl_c_keeps_the_pairs_that_were_played(
    a2c: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play, plays = replay._play, []

    def third(*arguments: object) -> object:
        plays.append(1)
        if len(plays) == 4:
            raise KeyboardInterrupt
        return play(*arguments)

    monkeypatch.setattr(replay, "_play", third)
    assert call(a2c, "--mode", "policy", "--across", "student.layers=2,3,4") == 130
    (folder,) = (a2c / "replays").iterdir()
    assert len(load_results(folder).cells) == 2
    assert json.loads((folder / "replay.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--across", "student.layers"], "write SETTING=VALUE,VALUE"),
        (["--across", "student.layers=2,,3"], "write SETTING=VALUE,VALUE"),
        (["--across", "task+teacher=rte"], "task+teacher=rte+DIR,mrpc+DIR"),
        (["--across", "student.layers=2,2"], "a value stands there twice"),
        (["--across", "student.layer=2"], "Did you mean --student.layers?"),
        (["--across", "student.layers=2,x"], "--student.layers"),
        (["--across", "seed=1,2"], "Use --seeds N"),
        (["--across", "agent=a2c,static"], "--agent has no effect on a replay"),
        (["--across", "student.layers=2", "--student.layers", "3"], "it is given twice"),
        (["--across", "task=rte", "--across", "task=mrpc"], "it is given twice"),
    ],
)
def test_settings_that_cannot_be_crossed_are_refused_before_any_work(
    random_run: Path,
    words: list[str],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(replay, "prepare", lambda *_: pytest.fail("work was begun"))
    assert call(random_run, "--mode", "schedule", *words) == 2
    assert part in capsys.readouterr().err
    assert call(random_run, *words) == 2
    assert "--across: --mode validate repeats the run as it was" in capsys.readouterr().err
    assert not (random_run / "replays").exists()


def test_values_are_divided_outside_of_brackets() -> None:
    assert split_values("2, 3") == ["2", "3"]
    assert split_values("[a,b],{c: [1,2]}") == ["[a,b]", "{c: [1,2]}"]
    assert split_values("'x,y',z") == ["'x,y'", "z"]


def test_the_seconds_of_kept_signals_count_for_both() -> None:
    setting = Setting({"task": "rte"}, RunConfig(task="rte"), {})
    transfer = Transfer("a2c-policy", teachers={"rte": 0.9})
    first = Student({"accuracy": 0.8}, 4, 10.0, None, Ledger({"teacher": 3.0}, {"teacher": 50}))
    plain = Student({"accuracy": 0.7}, 4, 5.0, None, Ledger({"teacher": 1.0}, {"teacher": 0}))
    replayed, unit = pair(transfer, setting, 0, first, plain, {})
    assert (replayed["cost"], unit["cost"]) == (10 / 7, 1.0)
    assert unit["seconds_total"] == 7.0
    assert (replayed["teacher_forwards"], replayed["teacher_score"]) == (50, 0.9)
