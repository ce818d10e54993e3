"""The main job of agents that learn from credit, online, from forks, or over students side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from job import Outcome, leftovers, run_job, small

import ksel.replay
from agents.all_action import AllAction
from agents.policy import load_policy
from ksel.cli import guard
from ksel.distiller import Distiller
from ksel.settings import config_from_file
from ksel.trajectory import read_schedule

# name: settings, lives of the search, how the agent learned, rewards, whether it learns
JOBS: dict[str, tuple[dict[str, Any], int, str, str, bool]] = {
    "all_action": ({"agent": "all_action"}, 0, "online", "amortized", True),
    "soft": (
        {"agent": "all_action", "env": {"actions": "soft", "window": 2}},
        0,
        "online",
        "amortized",
        True,
    ),
    "branch": (
        {"agent": "all_action", "search": "branch", "branches": {"count": 2, "updates": 3}},
        0,
        "branch",
        "measured",
        True,
    ),
    "online_a2c": (
        {"agent": "a2c", "search": "online", "env": {"reward": "amortized"}},
        0,
        "online",
        "amortized",
        True,
    ),
    "amortized_ppo": ({"agent": "ppo", "env": {"reward": "amortized"}}, 2, "episodes", "amortized", True),
    "greedy": ({"agent": "greedy"}, 0, "episodes", "amortized", False),
    "students": ({"agent": "a2c", "students": 2}, 4, "episodes", "measured", True),
}  # fmt: skip


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Path
) -> Callable[[str], Outcome]:
    """The finished job of a row of the table, run once for all tests."""
    done: dict[str, Outcome] = {}
    store = tmp_path_factory.mktemp("store")

    def get(name: str) -> Outcome:
        if name not in done:
            settings = tiny.settings(tiny_data, tiny_teacher, store)
            values = small(settings, {"references": ["all"], **JOBS[name][0]})
            done[name] = run_job(tmp_path_factory.mktemp(name), values)
        return done[name]

    return get


@pytest.mark.parametrize("name", JOBS)
def test_the_run_says_what_it_did(job: Callable[[str], Outcome], name: str):
    outcome, (_, lives, learned, rewards, _) = job(name), JOBS[name]
    assert outcome.code == 0, outcome.err
    assert leftovers(outcome.folder) == []
    summary, schedule = outcome.summary, outcome.schedule
    assert (summary["status"], summary["learned"], summary["rewards"]) == (
        "complete",
        learned,
        rewards,
    )
    search = schedule.frame[schedule.frame["stage"] == "search"]
    assert search["episode"].nunique() == lives
    assert (summary["search"] is None) is (lives == 0)
    assert (summary["calibration"] is None) is (rewards == "measured")
    config = config_from_file(outcome.folder / "config.yaml")
    assert (config.search, config.env.reward) == (learned, rewards)


@pytest.mark.parametrize("name", JOBS)
def test_every_decision_of_the_student_is_written_down(job: Callable[[str], Outcome], name: str):
    outcome, (_, _, _, rewards, learns) = job(name), JOBS[name]
    rows = outcome.schedule.stage("final")
    assert rows["update"].tolist() == list(range(6))
    assert rows["terminated"].tolist() == [False] * 5 + [True]
    assert np.isfinite(np.stack(rows["probabilities"].to_numpy())).all()
    drawn = np.isfinite(rows["log_prob"])
    assert not drawn.any() if name == "branch" else drawn.all()
    credit = np.isfinite(np.stack(rows["credit"].to_numpy()))
    assert credit.all() if rewards == "amortized" else not credit.any()
    paid = np.isfinite(rows["reward"])
    if name == "branch":  # the end of each branch is measured
        assert paid.tolist() == [False, False, True] * 2
        assert np.isfinite(rows["drop"]).tolist() == paid.tolist()
    else:
        assert paid.all()
    if learns:
        assert (outcome.folder / "policy" / "policy.safetensors").is_file()


@pytest.mark.parametrize("name", JOBS)
def test_students_begin_alike_and_share_their_batches(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    final, reference = outcome.lives[-2:]
    assert final.start == reference.start == outcome.start
    if name != "branch":  # whose forks go over their batches again
        assert final.batches == reference.batches
        assert len(final.batches) == 6


@pytest.mark.parametrize("name", JOBS)
def test_a_replay_arrives_at_the_same_student(job: Callable[[str], Outcome], name: str):
    assert guard(ksel.replay.main, [str(job(name).folder), "--mode", "validate"]) == 0


@pytest.mark.parametrize("name", [name for name, row in JOBS.items() if row[4]])
def test_the_policy_can_be_loaded(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    pool = outcome.schedule.pool
    shapes = {"training": (6 + 5 * len(pool),)}
    policy = load_policy(outcome.folder / "policy", pool=pool, observation=shapes)
    assert policy.learns
    policy.reset(np.random.default_rng(0))
    assert policy.act({"training": np.zeros(shapes["training"], np.float32)}).action.shape == (5,)


def test_an_agent_that_learns_online_has_learned(job: Callable[[str], Outcome]):
    # each decision changes the policy, so the probabilities move
    rows = np.stack(job("all_action").schedule.stage("final")["probabilities"].to_numpy())
    assert (np.abs(np.diff(rows, axis=0)).max(axis=1) > 0).all()


def test_the_search_of_several_students_is_of_several_students(job: Callable[[str], Outcome]):
    outcome = job("students")
    search = outcome.schedule.stage("search")
    assert len(search) == 2 * 2 * 3
    masks = [np.stack(rows["action"].to_numpy()) for _, rows in search.groupby("episode")]
    assert any((masks[0] != other).any() for other in masks[1:])
    assert outcome.summary["search"]["updates"] == 12


@pytest.mark.parametrize(("point", "decisions"), [((AllAction, "train"), 2), ((Distiller, "update"), 1)])  # fmt: skip
def test_ctrl_c_leaves_the_student_as_far_as_it_came(
    tmp_path: Path,
    tiny_data: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: tuple[Any, str],
    decisions: int,
):
    owner, name = point
    real, calls = getattr(owner, name), []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
    values = small(settings, {"agent": "all_action"})
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopped)
        outcome = run_job(tmp_path, values)
    assert outcome.code == 130
    assert outcome.summary["status"] == "interrupted"
    assert outcome.summary["decisions"] == {"final": decisions}
    assert (outcome.folder / "student" / "model.safetensors").is_file()
    assert (outcome.folder / "policy" / "policy.safetensors").is_file()
    assert len(read_schedule(outcome.folder / "schedule.parquet").frame) == decisions


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"agent": "all_action", "credit": {"rows": 25}}, "--credit.rows"),
        ({"agent": "static", "env": {"reward": "amortized"}}, "--env.reward amortized"),
        ({"agent": "static", "search": "online"}, "--search online"),
        ({"agent": "a2c", "search": "branch"}, "--search branch"),
        ({"agent": "all_action", "students": 2}, "--students 2"),
        ({"agent": "a2c", "students": 2, "env": {"reward": "amortized"}}, "--env.reward amortized"),
        ({"agent": "a2c", "students": 4000}, "--students"),
        ({"agent": "all_action", "env": {"window": 0}}, "--env.window"),
        ({"agent": "all_action", "credit": {"interval": 0}}, "--credit.interval"),
        ({"agent": "a2c", "signals": {"budget": 0}}, "--signals.budget"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path,
    tiny_data: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    says: str,
):
    monkeypatch.setattr("ksel.stacked_memory.free_memory", lambda: 10_000_000)
    settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
    outcome = run_job(tmp_path, small(settings, changes))
    assert outcome.code == 2
    assert says in outcome.error
