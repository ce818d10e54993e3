"""Ctrl-C at any moment: exit code 130, a message, and a folder with everything there was."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from job import Outcome, leftovers, run_job, small
from stable_baselines3 import A2C
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import ksel.trajectory
from agents.policy import load_policy
from envs.observation import feature_names
from ksel.cli import shielded
from ksel.distiller import Distiller
from ksel.models import weights_fingerprint
from ksel.report_page import load_run, write_report
from ksel.settings import config_from_file
from ksel.signals import LiveTeacher

Point = tuple[Any, str, int]
"""What is interrupted: owner, attribute, and at which call of it."""

UPDATE = (Distiller, "update")
STEP = (torch.optim.AdamW, "step")


@pytest.fixture
def stop(tmp_path: Path, tiny_data: Path, tiny_teacher: Path) -> Callable[..., Outcome]:
    """Run a job that is interrupted: ``stop((owner, name, n), agent=...)``, n from 1."""

    def go(point: Point, report: bool = False, **changes: Any) -> Outcome:
        settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, *point)
            return run_job(tmp_path, small(settings, changes), report=report)

    return go


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, nth: int) -> None:
    """Have the nth call of a function end as Ctrl-C would end it; later calls work again."""
    original, calls = getattr(owner, name), itertools.count(1)

    def pressed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(owner, name, pressed)


def check(outcome: Outcome, stage: str, decisions: dict[str, int], *more: str) -> None:
    """The run says that it was stopped, and holds exactly what was finished."""
    assert outcome.code == 130, outcome.err
    assert "stopped by Ctrl-C: writing what there is" in outcome.out
    last = outcome.out.splitlines()[-1]
    after = f", after {decisions[stage]} decisions" if stage in decisions else ""
    assert last.startswith(f"stopped during {stage}{after}; {outcome.folder} holds what there was:")
    assert "Traceback" not in outcome.err + outcome.out
    named = set(last.partition("was: ")[2].split(", "))
    assert outcome.out.splitlines()[-2].endswith(f"python -m ksel.run --resume {outcome.folder}")
    basis = {"config.yaml", "versions.json", "summary.json", "report.html"}
    basis |= set() if stage in ("setup", "teacher") else {"checkpoint"}
    assert outcome.names() == named == basis | set(more)
    assert leftovers(outcome.folder) == []
    summary = outcome.summary
    assert (summary["status"], summary["stage"]) == ("interrupted", stage)
    assert summary["decisions"] == decisions
    assert load_run(outcome.folder).config == yaml.safe_load(
        (outcome.folder / "config.yaml").read_text()
    )
    assert config_from_file(outcome.folder / "config.yaml").task == "rte"
    if decisions:
        found = outcome.schedule.frame.groupby("stage").size().to_dict()
        assert found == decisions


MEASURED = ("metrics.jsonl", "tensorboard", "teacher.json")
SEARCHED = (*MEASURED, "policy")


@pytest.mark.parametrize(
    ("point", "changes"),
    [
        (("ksel.setup", "load_source", 1), {}),
        ((*STEP, 2), {"teacher": "tiny", "fine_tune": {"max_updates": 3, "batch_size": 8}}),
    ],
    ids=["data", "fine-tuning"],
)
def test_while_setting_up(
    stop: Callable[..., Outcome], tmp_path: Path, point: Point, changes: dict[str, Any]
):
    owner, name, nth = point
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    outcome = stop((owner, name, nth), **changes)
    check(outcome, "setup", {})
    assert leftovers(tmp_path) == []
    store = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert store == []


def test_while_measuring_the_teacher(stop: Callable[..., Outcome]):
    check(stop((sys.modules["ksel.job_stages"], "evaluate_dev", 1)), "teacher", {}, "metrics.jsonl")


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_while_signals_are_kept(stop: Callable[..., Outcome], tmp_path: Path, source: str):
    outcome = stop((LiveTeacher, "__call__", 3), signals={"source": source})
    check(outcome, "search", {}, *SEARCHED)
    store = tmp_path / "store"
    assert leftovers(store) == []
    filled = [np.fromfile(path, "<u8") for path in store.rglob("*.filled")]
    assert [np.count_nonzero(record) for record in filled] == [1] * (5 if source == "disk" else 0)


@pytest.mark.parametrize("update", [1, 2, 5])
def test_in_the_search(stop: Callable[..., Outcome], update: int):
    outcome = stop((*UPDATE, update))
    decisions = {"search": update - 1} if update > 1 else {}
    schedule = ["schedule.parquet"] if decisions else []
    check(outcome, "search", decisions, *SEARCHED, *schedule)
    check_policy(outcome, learned=True)
    if decisions:
        frame = outcome.schedule.stage("search")
        assert frame["episode"].tolist() == [d // 3 for d in range(update - 1)]
        assert np.isfinite(frame["log_prob"]).all()
        assert frame["terminated"].tolist() == [d % 3 == 2 for d in range(update - 1)]


def test_while_the_policy_learns(stop: Callable[..., Outcome]):
    outcome = stop((A2C, "train", 1), a2c={"n_steps": 2})
    check(outcome, "search", {"search": 2}, *SEARCHED, "schedule.parquet")
    check_policy(outcome, learned=True)


def test_inside_an_update(stop: Callable[..., Outcome]):
    """The optimiser's step is cut: the decision is not finished, so it is not recorded."""
    outcome = stop((*STEP, 2), agent="static")
    check(outcome, "final", {"final": 1}, *SEARCHED, "student", "schedule.parquet")


@pytest.mark.parametrize("agent", ["a2c", "random_soft"])
@pytest.mark.parametrize("update", [1, 4])
def test_in_the_final_student(stop: Callable[..., Outcome], agent: str, update: int):
    searched = {"search": 6} if agent == "a2c" else {}
    outcome = stop((*UPDATE, len(searched) * 6 + update), agent=agent)
    final = {"final": update - 1} if update > 1 else {}
    schedule = ["schedule.parquet"] if searched or final else []
    check(outcome, "final", {**searched, **final}, *SEARCHED, "student", *schedule)
    check_policy(outcome, learned=agent == "a2c")
    weights = weights_fingerprint(check_student(outcome, update - 1))
    assert (weights == outcome.start) is (update == 1)
    if outcome.summary["search"]:
        assert outcome.summary["search"]["decisions"] == 6


def test_before_the_final_student_has_begun(
    stop: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
):
    """The student left behind is the final one at its start, not what the search ended with."""
    search = sys.modules["ksel.job_stages"].search

    def ends_within_an_episode(agent: Any, env: Any, *args: Any, **kwargs: Any) -> Any:
        found = search(agent, env, *args, **kwargs)
        env.inner.distiller.update(np.ones(5))
        return found

    monkeypatch.setattr("ksel.job_stages.search", ends_within_an_episode)
    outcome = stop((sys.modules["ksel.job_stages"], "play", 1))
    check(outcome, "final", {"search": 6}, *SEARCHED, "student", "schedule.parquet")
    assert weights_fingerprint(check_student(outcome, 0)) == outcome.start


def test_in_a_phase_of_the_final_student(stop: Callable[..., Outcome]):
    outcome = stop((*UPDATE, 6), agent="static", env={"phase_steps": 4})
    check(outcome, "final", {"final": 1}, *SEARCHED, "student", "schedule.parquet")
    check_student(outcome, 5)
    assert outcome.schedule.meta["student_updates"] == 5


@pytest.mark.parametrize(("call", "measured"), [(2, 3), (4, 6)])
def test_while_evaluating_the_final_student(stop: Callable[..., Outcome], call: int, measured: int):
    """Calls of evaluate_dev: teacher; after updates 3 and 6; at the end."""
    outcome = stop((sys.modules["ksel.job_stages"], "evaluate_dev", call), agent="static")
    check(outcome, "final", {"final": measured}, *SEARCHED, "student", "schedule.parquet")
    check_student(outcome, measured)
    assert outcome.summary["students"] == []


def test_while_saving_the_student(stop: Callable[..., Outcome]):
    outcome = stop((PreTrainedModel, "save_pretrained", 1), agent="static")
    check(outcome, "final", {"final": 6}, *SEARCHED, "student", "schedule.parquet")
    check_student(outcome, 6)
    assert outcome.summary["students"][0]["metrics"]


@pytest.mark.parametrize("update", [1, 3])
def test_in_a_reference(stop: Callable[..., Outcome], update: int):
    outcome = stop((*UPDATE, 6 + update), agent="static")
    begun = {"reference:finetune": update - 1} if update > 1 else {}
    check(
        outcome,
        "reference:finetune",
        {"final": 6, **begun},
        *SEARCHED,
        "student",
        "schedule.parquet",
    )
    student = check_student(outcome, 6)
    assert [one["name"] for one in outcome.summary["students"]] == ["selected"]
    assert outcome.summary["cost"]["total_multiple"] is None
    assert len(outcome.lives[-1].batches) == update - 1 or update == 1
    assert student.config.num_hidden_layers == 2


def check_policy(outcome: Outcome, *, learned: bool) -> None:
    pool = tuple(outcome.summary["pool"])
    shape = (len(feature_names(pool)),)
    policy = load_policy(outcome.folder / "policy", pool=pool, observation={"training": shape})
    assert policy.learns is learned
    policy.reset(np.random.default_rng(0))
    assert policy.act({"training": np.zeros(shape, np.float32)}).action.shape == (len(pool),)


def check_student(outcome: Outcome, updates: int) -> PreTrainedModel:
    card = (outcome.folder / "student" / "README.md").read_text(encoding="utf-8")
    told = "* Updates: 6, " if updates == 6 else f"* Updates: {updates} of 6: the run ended early"
    assert told in card
    return AutoModelForSequenceClassification.from_pretrained(outcome.folder / "student")


def test_a_report_is_written_of_what_there_is(stop: Callable[..., Outcome]):
    outcome = stop((*UPDATE, 9), report=True)
    check(outcome, "final", {"search": 6, "final": 2}, *SEARCHED, "student", "schedule.parquet")
    page = (outcome.folder / "report.html").read_text(encoding="utf-8")
    assert "interrupted" in page
    assert "<svg" in page
    assert write_report(outcome.folder).is_file()


def test_the_finished_part_is_that_of_a_whole_run(
    stop: Callable[..., Outcome], tmp_path: Path, tiny_data: Path, tiny_teacher: Path
):
    stopped = stop((*UPDATE, 10)).schedule.frame
    settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
    whole = run_job(tmp_path, small(settings, {}), name="whole").schedule.frame
    pd.testing.assert_frame_equal(stopped, whole.iloc[: len(stopped)], check_exact=True)


# ------------------------------------------------------------------------ pressed again


def test_ctrl_c_again_while_writing_leaves_no_half_written_file(
    stop: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def half(table: Any, where: Path, **_: Any) -> None:
        Path(where).write_bytes(b"PAR1 half")
        raise KeyboardInterrupt

    monkeypatch.setattr(ksel.trajectory.pq, "write_table", half)
    outcome = stop((*UPDATE, 3))
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "ksel: stopped by Ctrl-C"
    assert leftovers(tmp_path) == []
    assert outcome.names() == {"config.yaml", "versions.json", "checkpoint", *MEASURED}


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@shielded()
def pressed_twice(done: list[str]) -> None:
    press()
    done.append("second")
    press()
    done.append("third")


def test_a_shielded_block_ends_before_ctrl_c_counts(capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGINT)
    done = []
    with shielded():
        press()
        done.append("first")
    assert done == ["first"]
    assert "still writing what there is; Ctrl-C again gives up" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        pressed_twice(done)
    assert done == ["first", "second"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("interrupted", [True, False])
def test_ctrl_c_while_writing_does_not_stop_the_writing(
    stop: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, interrupted: bool
):
    summarize = sys.modules["ksel.leaving"].summarize

    def pressed(*args: Any, **kwargs: Any) -> Any:
        press()
        return summarize(*args, **kwargs)

    monkeypatch.setattr("ksel.leaving.summarize", pressed)
    outcome = stop((*UPDATE, 3 if interrupted else 10_000), agent="static")
    assert outcome.code == (130 if interrupted else 0)
    assert "ksel: still writing what there is" in outcome.err
    assert outcome.summary["status"] == ("interrupted" if interrupted else "complete")
    assert "report.html" in outcome.names()


# ------------------------------------------------------------------------ for real


def test_sigint_from_the_shell(tmp_path: Path, tiny_data: Path, tiny_teacher: Path):
    settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
    values = small(settings, {"optim": {"max_updates": 100_000}, "agent": "random_hard"})
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    own = ["--config", str(tmp_path / "long.yaml"), "--out", str(tmp_path), "--name", "run"]
    command = [sys.executable, "-u", "-m", "ksel.run", *own]
    metrics = tmp_path / "run" / "metrics.jsonl"
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's & has it ignored
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds
    ) as process:
        while not metrics.is_file() or '"stage": "final"' not in metrics.read_text():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    outcome = Outcome(process.returncode, out, err, tmp_path / "run")
    decisions = outcome.summary["decisions"]["final"]
    assert decisions > 0
    check(outcome, "final", {"final": decisions}, *SEARCHED, "student", "schedule.parquet")
    AutoModelForSequenceClassification.from_pretrained(outcome.folder / "student")
