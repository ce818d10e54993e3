"""``--resume RUN``: the same weights, schedule and metrics as a run that was never interrupted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resumed
import tiny
import torch
import yaml
from job import leftovers, run_job, small
from resumed import OFTEN, check_same, crashing, go_on, points
from stable_baselines3 import A2C

import ksel.run
from agents.all_action import AllAction
from agents.frozen import policy_arguments
from envs.distillation import DistillationEnv
from envs.keeping import KNOWN
from ksel.checkpoints import read_checkpoint
from ksel.cli import guard
from ksel.locks import alone

CPU = torch.device("cpu")
LESS: dict[str, Any] = {"references": ["all"], "evaluations": 2, **OFTEN}
SEARCH: dict[str, Any] = {
    "episodes": {"count": 2, "share": 1.0},
    "optim": {"max_updates": 6, "learning_rate": 1e-3, "grad_norm_every": 2},
}


NORMS: dict[str, Any] = {"knowledge": {"balance": "gradient", "balance_every": 2}}


@pytest.fixture(scope="module")
def values(
    tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """Settings of a tiny run that keeps a checkpoint wherever it can."""
    store = tmp_path_factory.mktemp("store")

    def make(**changes: Any) -> dict[str, Any]:
        return small(tiny.settings(tiny_data, tiny_teacher, store), {**LESS, **changes})

    return make


@pytest.fixture(scope="module")
def whole(
    values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A run that nothing interrupts; those of the same settings are made once."""
    made: dict[str, Path] = {}

    def make(**changes: Any) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            outcome = run_job(folder, values(**changes))
            assert outcome.code == 0, outcome.err
            made[key] = outcome.folder
        return made[key]

    return make


def interrupted(folder: Path, values: dict[str, Any], nth: int, *point: Any) -> Path:
    """A run that an error ends at the nth update (or call of another function)."""
    with crashing(nth, *point):
        run_job(folder, values)
    assert (folder / "run" / "summary.json").is_file()
    assert resumed.summary(folder / "run")["status"] == "failed"
    return folder / "run"


# --------------------------------------------------------------------------- equal to the bit

AGENTS = [
    pytest.param({"agent": "static"}, [9], id="static"),
    pytest.param({"agent": "a2c", "a2c": {"n_steps": 4}, **SEARCH}, [7], id="a2c"),
    pytest.param({"agent": "all_action"}, [5], id="all_action"),
]
MORE = [
    pytest.param({"agent": "ppo", "ppo": {"n_steps": 4, "batch_size": 2}, **SEARCH}, id="ppo"),
    pytest.param({"agent": "ddpg", "ddpg": {"learning_starts": 3}, **SEARCH}, id="ddpg"),
    pytest.param({"agent": "ddpg", "env": {"actions": "soft"}, **SEARCH}, id="ddpg-soft"),
    pytest.param({"agent": "bandit", **SEARCH}, id="exp3s"),
    pytest.param({"agent": "bandit", "bandit": {"algorithm": "linucb"}, **SEARCH}, id="linucb"),
    pytest.param(
        {"agent": "best_static", "best_static": {"candidates": 3, "least": 2}, **SEARCH},
        id="best_static",
    ),
    pytest.param({"agent": "a2c", "students": 2, "a2c": {"n_steps": 3}, **SEARCH}, id="students"),
    pytest.param({"agent": "a2c", "search": "online", "a2c": {"n_steps": 3}}, id="online"),
    pytest.param(
        {"agent": "all_action", "search": "branch", "branches": {"count": 2, "updates": 2}},
        id="branch",
    ),
    pytest.param(
        {"agent": "all_action", "search": "episodes", "all_action": {"n_steps": 2}, **SEARCH},
        id="all_action-episodes",
    ),
    pytest.param({"agent": "random_hard", "student": {"layers": 2, "dropout": 0.1}}, id="dropout"),
    pytest.param({"agent": "round_robin", "env": {"phase_steps": 2}}, id="phases"),
    pytest.param({"agent": "race", "race": {"least": 2, "doubt": 0.0, "share": 0.6}}, id="race"),
    pytest.param({"agent": "greedy", "optim": {"embeddings": "lazy"}}, id="greedy-lazy"),
    pytest.param({"agent": "random_hard", **NORMS}, id="gradient"),
    pytest.param(
        {"agent": "a2c", "students": 2, "a2c": {"n_steps": 3}, **NORMS, **SEARCH},
        id="students-gradient",
    ),
    pytest.param(
        {
            "agent": "random_soft",
            "stages": [{"pool": ["response"], "share": 0.5}, {"pool": [], "share": 0.5}],
        },
        id="stages",
    ),
    pytest.param(
        {
            "agent": "a2c",
            "a2c": {"n_steps": 3, "observation": "dict"},
            "env": {
                "exploration": 0.1,
                "final_metric": 0.5,
                "reward_scale": "quantile",
                "observe": ["training", "student_cls", "teacher_cls"],
            },
            **SEARCH,
        },
        id="rewards",
    ),
]


@pytest.mark.parametrize(("changes", "moments"), AGENTS)
def test_a_run_goes_on_to_what_it_would_have_been(
    values: Callable[..., dict[str, Any]],
    whole: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    moments: list[int],
):
    for moment in moments:
        run = interrupted(tmp_path / str(moment), values(**changes), moment)
        outcome = go_on(run)
        assert outcome.code == 0, outcome.err
        assert "resumed: from the checkpoint of" in outcome.out
        check_same(whole(**changes), run)
        assert points(run) == points(whole(**changes))
        assert leftovers(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("changes", MORE)
@pytest.mark.parametrize("moment", [3, 5, 8, 11])
def test_every_agent_goes_on_to_what_it_would_have_been(
    values: Callable[..., dict[str, Any]],
    whole: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    moment: int,
):
    run = interrupted(tmp_path, values(**changes), moment)
    outcome = go_on(run)
    assert outcome.code == 0, outcome.err
    check_same(whole(**changes), run)
    assert points(run) == points(whole(**changes))


def test_twice_interrupted_and_without_checkpoints_in_between(
    values: Callable[..., dict[str, Any]], whole: Callable[..., Path], tmp_path: Path
):
    settings = {"agent": "static", "checkpoint": {"every": 4, "share": 1.0}}
    run = interrupted(tmp_path, values(**settings), 6)
    with crashing(2):
        go_on(run)
    outcome = go_on(run)
    assert outcome.code == 0, outcome.err
    assert "within final, after 4 decisions in all" in outcome.out
    check_same(whole(**settings), run)


def test_a_student_after_going_on_has_the_speed_of_the_first(
    values: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    times = iter(range(1, 9))
    monkeypatch.setattr("ksel.job_stages.seconds_per_example", lambda *_: next(times))
    run = interrupted(tmp_path, values(agent="static"), 9)  # within the reference
    outcome = go_on(run)
    assert "within reference:all" in outcome.out
    assert [one["ms_per_example"] for one in outcome.summary["students"]] == [2000.0] * 2


def test_checkpoints_change_nothing(whole: Callable[..., Path]):
    never = whole(agent="static", checkpoint={"every": 0})
    often = whole(agent="static")
    assert resumed.weights_differ(never, often) == []
    assert resumed.measured(never) == resumed.measured(often)


@pytest.mark.parametrize(("moment", "every"), [(1, 0), (4, 0)])
def test_without_a_checkpoint_the_run_begins_anew(
    values: Callable[..., dict[str, Any]],
    whole: Callable[..., Path],
    tmp_path: Path,
    moment: int,
    every: int,
):
    settings = {"agent": "static", "checkpoint": {"every": every}}
    run = interrupted(tmp_path, values(**settings), moment)
    outcome = go_on(run)
    assert outcome.code == 0, outcome.err
    assert "has no checkpoint yet, so it begins anew" in outcome.out
    check_same(whole(**settings), run)


def test_all_that_all_action_keeps_in_mind_is_in_its_state(tiny_setup: Callable[..., Any]):
    """An attribute that is new has to be looked at: does a checkpoint hold it?"""
    env = DistillationEnv(setup=tiny_setup(env={"reward": "amortized"}))
    algorithm = A2C("MultiInputPolicy", env, policy_kwargs=policy_arguments(False, [4]))
    own = set(vars(AllAction(env))) - set(vars(algorithm))
    assert own == {
        *("optimizer", "tally", "evidence"),  # kept, with the policy and rng
        *("settings", "cost_per_type", "pool", "kind"),  # decided by the settings
        "rollout",  # empty wherever a rollout begins
        "rng",
    }


# --------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def half(values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interrupted run of a static mask, within its final student."""
    return interrupted(tmp_path_factory.mktemp("half"), values(agent="static"), 4)


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    """A copy of it to be spoiled."""
    return shutil.copytree(half, tmp_path / "copy" / "run")


def refused(run: Path, *argv: str) -> str:
    """The message of a refused resume, which leaves the run's folder as it was."""
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    outcome = go_on(run, *argv)
    assert outcome.code == 2
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    return outcome.error


@pytest.mark.parametrize("words", [("--seed", "3"), ("--threads=2",), ("--config", "x.yaml")])
def test_other_options_are_refused(run: Path, words: tuple[str, ...]):
    name = words[0].partition("=")[0]
    assert f"--resume: {name} cannot stand beside it" in refused(run, *words)


def test_a_complete_run_is_refused(whole: Callable[..., Path]):
    assert "is complete" in refused(whole(agent="static"))


def test_no_run_no_folder_and_no_value_are_refused(tmp_path: Path, capsys: Any):
    for argv, said in (
        (["--resume"], "its value is missing"),
        (["--resume", str(tmp_path / "none")], "there is no folder"),
        (["--resume", str(tmp_path)], "is not the folder of a run"),
    ):
        assert guard(ksel.run.main, argv) == 2
        assert said in capsys.readouterr().err


def test_other_data_are_refused(run: Path, tmp_path: Path):
    path = run / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    data = tiny.write_data(tmp_path / "other", seed=1)
    for file in data.iterdir():
        shutil.copy(file, tmp_path / file.name)
    settings["data"] = str(data)
    path.write_text(yaml.safe_dump(settings))
    assert "is not what it was when the checkpoint was written: data" in refused(run)


def test_a_changed_teacher_is_refused(
    values: Callable[..., dict[str, Any]], tiny_teacher: Path, tmp_path: Path
):
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    settings = values(agent="static") | {"teacher": str(teacher)}
    run = interrupted(tmp_path / "job", settings, 4)
    shutil.rmtree(teacher)
    tiny.write_teacher(teacher, seed=1)
    message = refused(run)
    assert "since the run was interrupted" in message
    assert "teacher" in message


def test_shortened_records_are_refused(run: Path):
    os.truncate(run / "metrics.jsonl", 10)
    assert "metrics.jsonl is shorter than it was" in refused(run)


def test_another_format_or_version_is_refused(run: Path):
    (place,) = (run / "checkpoint").iterdir()
    header = json.loads((place / "checkpoint.json").read_text())
    for change, said in (({"format": 99}, "of format 99"), ({"ksel": "0.0.1"}, "of version 0.0.1")):
        (place / "checkpoint.json").write_text(json.dumps(header | change))
        assert said in refused(run)


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "checkpoint.json"])
def test_a_damaged_checkpoint_is_never_passed_over_in_silence(run: Path, file: str):
    (place,) = (run / "checkpoint").iterdir()
    older = place.with_name("000000")
    shutil.copytree(place, older)
    path = place / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    said: list[str] = []
    found = read_checkpoint(run / "checkpoint", KNOWN, CPU, said.append)
    assert found is not None
    assert found.folder == older
    assert f"{place} is damaged" in said[0]
    assert "going back to the one before it" in said[1]
    shutil.rmtree(older)
    assert "each checkpoint in" in refused(run)


def test_one_wrong_byte_is_found(run: Path):
    (place,) = (run / "checkpoint").iterdir()
    path = place / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "each checkpoint in" in refused(run)


def test_a_run_at_work_is_refused(run: Path):
    with alone(run):
        assert "another process is at work" in refused(run)


def test_ctrl_c_while_setting_up_again_leaves_the_folder_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    monkeypatch.setattr("ksel.run.prepare", pressed)
    assert go_on(run).code == 130
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
