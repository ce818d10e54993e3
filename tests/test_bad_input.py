"""Mistakes: each ends with exit code 2 and one message that names the option and the fix."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from job import Outcome, run_job, small

import ksel.models
import ksel.run
import ksel.sources
from envs.distillation import DistillationEnv
from ksel.distiller import Distiller
from ksel.report_page import load_run

Runner = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, tiny_data: Path, tiny_teacher: Path) -> Runner:
    """Run a job with changed settings and arguments: ``run("--seed", "1", rows=...)``."""

    def go(*argv: str, name: str = "run", **changes: Any) -> Outcome:
        settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
        return run_job(tmp_path, small(settings, changes), *argv, name=name)

    return go


def refused(outcome: Outcome, *says: str) -> None:
    """One message with all of these parts, exit code 2, and no run left behind."""
    assert outcome.code == 2, outcome.err
    for part in says:
        assert part in outcome.error, outcome.error
    assert not outcome.folder.exists()


# ------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "rta"}, ["--task: unknown task 'rta'", "Did you mean 'rte'?", "Known: cola,"]),
        ({"agent": "a2d"}, ["--agent: unknown agent 'a2d'", "Did you mean 'a2c'?"]),
        (
            {"knowledge": {"pool": ["label", "respons"]}},
            ["--knowledge.pool: unknown knowledge kind 'respons'", "Did you mean 'response'?"],
        ),
        (
            {"knowledge": {"pool": ["label", "hidden/skp"]}},
            ["--knowledge.pool", "layer matching", "'skp'", "Did you mean 'skip'?"],
        ),
        (
            {"knowledge": {"pool": ["label", "hidden/1-2+2-9"]}},
            ["--knowledge.pool", "2-9", "layers 0 to 2", "0 to 4"],
        ),
        (
            {"knowledge": {"pool": ["label", "hidden/skip", "hidden"]}},
            ["--knowledge.pool", "the same knowledge type", "Name each type once"],
        ),
        (
            {"knowledge": {"pool": ["labl", "response"]}},
            ["--knowledge.pool: unknown knowledge kind 'labl'", "Did you mean 'label'?"],
        ),
        ({"knowledge": {"pool": []}}, ["--knowledge.pool: the pool is empty", "such as"]),
        (
            {"knowledge": {"poool": ["label"]}},
            ["--knowledge.poool", "Did you mean --knowledge.pool"],
        ),
        ({"env": {"objective": "margn"}}, ["--env.objective: margn", "Did you mean 'margin'?"]),
        (
            {"references": ["al"]},
            ["--references: unknown knowledge type 'al'", "Did you mean 'all'"],
        ),
        ({"references": ["all", "all"]}, ["--references: each name once"]),
        (
            {"knowledge": {"pool": ["response", "hidden/skip"]}},
            ["--references finetune", "no 'label'", "Add it to the pool, or leave finetune out"],
        ),
        (
            {"agent": "static", "static": {"mask": ["labl"]}},
            ["--static.mask: unknown knowledge type 'labl'", "Did you mean 'label'?"],
        ),
        (
            {"agent": "annealed", "knowledge": {"pool": ["response"]}, "references": []},
            ["--agent annealed", "--knowledge.pool has no 'label'", "Add it"],
        ),
        (
            {"agent": "random_hard", "env": {"actions": "soft"}},
            ["--env.actions soft does not work with --agent random_hard", "Leave it at auto"],
        ),
        ({"ppo": {"gamma": 0.5}}, ["--ppo.gamma is not used by --agent a2c", "read by ppo"]),
        (
            {"agent": "static", "episodes": {"count": 9}},
            ["--episodes.count is not used by --agent static", "read by a2c, ppo"],
        ),
        (
            {"agent": "round_robin", "env": {"exploration": 0.5}},
            ["--env.exploration: not used with --agent round_robin", "such as a2c"],
        ),
        (
            {"custom": {"text": "body"}},
            ["--custom: its settings have no effect on --task rte", "--task custom"],
        ),
        (
            {"task": "custom", "data": None, "custom": {"labels": ["a", "b"]}},
            ["--task custom: give --data DIR"],
        ),
        ({"device": "cuda:77"}, ["--device cuda:77", "Use --device cpu"]),
        ({"a2c": {"n_steps": 1}}, ["--a2c.n_steps is 1; give 2 or more"]),
        ({"optim": {"epochs": 0.001}}, ["--optim.epochs", "Raise it, or set --optim.max_updates"]),
        ({"batching": {"max_length": 3}}, ["--batching.max_length: 3 tokens leave no room"]),
    ],
)
def test_settings(run: Runner, changes: dict[str, Any], says: list[str]):
    if "epochs" in changes.get("optim", {}):
        changes = {**changes, "optim": {**changes["optim"], "max_updates": None}}
    refused(run(**changes), *says)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--student.layer", "2"], ["--student.layer: unknown setting", "--student.layers?"]),
        (["--optim.epochs", "three"], ["--optim.epochs: three is not valid. Give a number."]),
        (["--seed", "-1"], ["--seed: -1 is out of range. Give a number 0 or more"]),
        (["--config", "nowhere.yaml"], ["--config: cannot read nowhere.yaml"]),
    ],
)
def test_command_line(run: Runner, argv: list[str], says: list[str]):
    refused(run(*argv), *says)


# ------------------------------------------------------------------------ student and teacher


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"student": {"layers": 6, "init": "random"}},
            ["--knowledge.pool: 'cls_hidden/skip'", "6 layers", "--student.layers to 4 or fewer"],
        ),
        (
            {"student": {"layers": 6, "init": "first"}},
            ["--student.layers 6 is more than the teacher's 4", "--student.init random"],
        ),
        (
            {"student": {"heads": 2}, "knowledge": {"pool": ["label", "attention/skip"]}},
            ["--knowledge.pool: 'attention/skip'", "2 heads", "4"],
        ),
        (
            {
                "student": {"heads": 8},
                "knowledge": {"pool": ["label", "attention_output_relation/skip"]},
            },
            ["--knowledge.pool: 'attention_output_relation/skip'", "8", "4"],
        ),
        (
            {"student": {"heads": 2}, "knowledge": {"pool": ["label", "attention/skip"]}},
            ["--knowledge.pool: 'attention/skip'", "heads", "4", "2"],
        ),
        (
            {"knowledge": {"pool": ["label", "key_relation/last"], "relation_heads": 3}},
            ["--knowledge.pool: 'key_relation/last'", "3", "--knowledge.relation_heads"],
        ),
        ({"student": {"heads": 3}}, ["--student.heads 3", "does not divide", "16"]),
        (
            {"student": {"width": 8, "init": "first"}},
            ["--student.init first", "--student.init random"],
        ),
        ({"student": {"init": "frist"}}, ["--student.init", "'frist'", "first"]),
        ({"student": {"init": "nowhere/at-all"}}, ["--student.init", "nowhere/at-all"]),
        (
            {"student": {"source": "pretrained"}},
            ["--student.source pretrained", "Use --student.source teacher"],
        ),
        (
            {"teacher": "no/such-model"},
            ["--teacher: 'no/such-model'", "check the name and the net"],
        ),
        ({"teacher": "tinny"}, ["--teacher: 'tinny'"]),
    ],
)
def test_models(run: Runner, changes: dict[str, Any], says: list[str]):
    refused(run(**changes), *says)


def test_a_teacher_with_another_number_of_labels(run: Runner, tmp_path: Path):
    teacher = tiny.write_teacher(tmp_path / "three", task="mnli")
    refused(run(teacher=str(teacher)), "--teacher has 3 labels and task rte has 2", "Use a teacher")


def test_a_teacher_with_other_labels(run: Runner, tmp_path: Path):
    teacher = tiny.write_teacher(tmp_path / "sentiment", task="sst2")
    refused(run(teacher=str(teacher)), "--teacher names its labels", "id2label")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_unreadable_teacher(
    run: Runner, tiny_teacher: Path, tmp_path: Path, file: str, damage: str
):
    teacher = tmp_path / "broken"
    shutil.copytree(tiny_teacher, teacher)
    content = (teacher / file).read_bytes()
    (teacher / file).unlink()
    if damage == "cut":
        (teacher / file).write_bytes(content[: len(content) // 2])
    refused(run(teacher=str(teacher)), "--teacher", "broken")


# ------------------------------------------------------------------------ data


def changed_data(source: Path, folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
    folder.mkdir()
    for name in ("train", "dev"):
        change(pd.read_parquet(source / f"{name}.parquet")).to_parquet(folder / f"{name}.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda frame: frame.drop(columns="sentence2"),
            ["has no column 'sentence2' for task rte", "rename the columns", "--custom.text"],
        ),
        (lambda frame: frame.drop(columns="label"), ["has no column 'label'"]),
        (
            lambda frame: frame.assign(label=frame["label"] * 2),
            ["label 2 in data row", "outside task rte's labels", "correct the file"],
        ),
        (lambda frame: frame.assign(label="perhaps"), ["label 'perhaps' in data row 1"]),
        (lambda frame: frame.assign(label=np.nan), ["label nan in data row 1"]),
        (lambda frame: frame.iloc[:0], ["has no rows; supply a file with at least one"]),
        (lambda frame: frame.assign(label=1), ["only the class", "Add rows with other labels"]),
        (lambda frame: frame.assign(label=-1), ["no labels (all are -1)", "cannot be trained on"]),
        (lambda frame: frame.assign(sentence1=None), ["'sentence1' is missing in data row 1"]),
    ],
)
def test_data(
    run: Runner,
    tiny_data: Path,
    tmp_path: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    says: list[str],
):
    refused(run(data=changed_data(tiny_data, tmp_path / "bad", change)), "--data: ", *says)


def test_a_dev_file_without_labels_cannot_be_scored(run: Runner, tiny_data: Path, tmp_path: Path):
    folder = Path(changed_data(tiny_data, tmp_path / "test", lambda frame: frame))
    frame = pd.read_parquet(folder / "dev.parquet").assign(label=-1)
    frame.to_parquet(folder / "dev.parquet")
    refused(run(data=str(folder)), "--data: ", "split dev has no labels", "labelled files")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_half_written_file(run: Runner, tiny_data: Path, tmp_path: Path, kind: str):
    folder = tmp_path / "half"
    folder.mkdir()
    for name in ("train", "dev"):
        frame, path = pd.read_parquet(tiny_data / f"{name}.parquet"), folder / f"{name}.{kind}"
        if kind == "parquet":
            frame.to_parquet(path)
        elif kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True)
    content = (folder / f"train.{kind}").read_bytes()
    cut = content[: len(content) // 2]
    end = cut.rindex(b",") if kind == "csv" else len(cut) - 3
    (folder / f"train.{kind}").write_bytes(cut[:end])
    refused(run(data=str(folder)), "--data: ", f"train.{kind}", "half-written", "anew")


def test_a_folder_without_the_files(run: Runner, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused(run(data=str(tmp_path / "empty")), "--data ", "no train file", "Give the folder")
    refused(run(data=str(tmp_path / "absent")), "--data ", "does not exist", "hub, or builtin")


@pytest.mark.parametrize("reward", [200, 5000, 195])
def test_a_reward_split_larger_than_train(run: Runner, reward: int):
    outcome = run(rows={"reward": reward})
    refused(outcome, f"--rows.reward: {reward} of 200 training rows", "Lower --rows.reward")


# ------------------------------------------------------------------------ the world outside


def test_no_network(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(ksel.models, "hub_is_reachable", lambda: False)
    outcome = run(teacher="sentence-transformers/all-MiniLM-L6-v2-which-is-not-here")
    refused(outcome, "--teacher: ", "hub is out of reach", "Give a folder")


def test_no_network_for_data_asked_of_the_hub(run: Runner, monkeypatch: pytest.MonkeyPatch):
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    outcome = run(data="hub")
    refused(outcome, "--data hub: cannot load nyu-mll/glue", "Give --data DIR", "--data builtin")


def test_the_output_folder_exists(run: Runner, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    outcome = run(name="taken")
    assert outcome.code == 2
    assert "exists already and is left as it is. Choose another --name." in outcome.error
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_the_output_folder_cannot_be_made(run: Runner, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    outcome = run("--out", str(tmp_path / "file"))
    assert outcome.code == 2
    assert "--out: cannot make" in outcome.error


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/model.safetensors")


def test_a_disk_full_at_once(run: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ksel.files.os.replace", full_disk)
    refused(run(), "No space left on device", "Free space or choose another folder", "--out")


def test_a_disk_full_while_caching(run: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ksel.signal_files.reserve", full_disk)
    refused(run(signals={"source": "disk"}), "No space left on device", "--store")


def test_a_disk_full_later_keeps_what_there_is(run: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ksel.leaving.save_student", full_disk)
    outcome = run(agent="static")
    assert outcome.code == 2
    assert "No space left on device" in outcome.error
    assert outcome.summary["status"] == "failed"
    assert "No space left on device" in outcome.summary["error"]
    assert len(outcome.schedule.stage("final")) == 6
    assert not (outcome.folder / "student").exists()


# ------------------------------------------------------------------------ errors on the way


def no_gradient(*_: Any, **__: Any) -> None:
    raise ksel.run.UsageError("--knowledge.pool: 'label' is selected but its loss has no gradient")


def test_a_mistake_found_on_the_way(run: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Distiller, "update", no_gradient)
    outcome = run()
    assert outcome.code == 2
    assert "has no gradient" in outcome.error
    summary = outcome.summary
    assert (summary["status"], summary["stage"]) == ("failed", "search")
    assert summary["error"] == outcome.error.removeprefix("ksel: error: ")
    assert load_run(outcome.folder).summary["status"] == "failed"


class BugError(Exception):
    """Something nobody has thought of."""


def test_a_bug_keeps_its_traceback_and_leaves_what_there_is(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    step, calls = DistillationEnv.step, iter(range(100))

    def failing(self: DistillationEnv, action: Any) -> Any:
        if next(calls) == 8:
            raise BugError("an index is off by one")
        return step(self, action)

    monkeypatch.setattr(DistillationEnv, "step", failing)
    with pytest.raises(BugError, match="off by one"):
        run()
    outcome = Outcome(1, "", "", tmp_path / "run")
    summary = outcome.summary
    assert (summary["status"], summary["stage"]) == ("failed", "final")
    assert summary["error"] == "BugError: an index is off by one"
    assert summary["decisions"] == {"search": 6, "final": 2}
    assert len(outcome.schedule.frame) == 8
    assert {"policy", "student", "report.html", "config.yaml"} <= outcome.names()


def test_a_bug_at_set_up_leaves_its_folder(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def failing(*_: Any) -> None:
        raise BugError("while preparing")

    monkeypatch.setattr("ksel.run.prepare", failing)
    with pytest.raises(BugError):
        run()
    outcome = Outcome(1, "", "", tmp_path / "run")
    assert outcome.summary["status"] == "failed"
    assert outcome.summary["error"] == "BugError: while preparing"


def test_the_cause_is_told_where_leaving_fails_as_well(
    run: Runner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Distiller, "update", no_gradient)
    replace = os.replace

    def full(old: Any, new: Any) -> None:
        if Path(new).name == "summary.json":
            full_disk()
        replace(old, new)

    monkeypatch.setattr("ksel.files.os.replace", full)
    outcome = run()
    assert outcome.code == 2
    assert "has no gradient" in outcome.error
    assert not (outcome.folder / "summary.json").exists()


def test_debug_shows_the_traceback(run: Runner):
    outcome = run("--debug", task="rta")
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("ksel: error: --task: unknown task 'rta'")


@pytest.mark.slow
def test_from_the_shell(tmp_path: Path):
    """Once for real: exit code, one line on stderr, nothing on stdout."""
    command = [sys.executable, "-m", "ksel.run", "--task", "qnly", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("ksel: error: --task: unknown task 'qnly'. Did you mean 'qnli'?")
    assert list(tmp_path.iterdir()) == []
