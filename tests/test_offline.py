"""``ksel.offline`` on tiny runs: policies found and refused, numbers right, nothing overwritten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import make_run

from agents.fixed import random_hard_policy, static_policy
from envs.reward import LIMIT
from ksel import offline
from ksel.__main__ import main as ksel
from ksel.config import StageConfig
from ksel.errors import UsageError
from ksel.logged import Payment, direct_rewards
from ksel.offline import find_policy, judge
from ksel.saved import open_run
from ksel.settings import config_from_file, config_to_yaml
from ksel.trajectory import load

EXPLORE: dict[str, Any] = {
    "agent": "a2c",
    "a2c": {"start": 0.5, "learning_rate": 1e-9},
    "env": {"reward": "amortized"},
    "episodes": {"count": 4, "share": 1.0},
    "optim": {"max_updates": 24, "learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Path
) -> Callable[[str], Path]:
    """explore: random masks, paid; soft: a2c with weights; unpaid: random_hard."""
    folder = tmp_path_factory.mktemp("offline")
    settings: dict[str, dict[str, Any]] = {
        "explore": EXPLORE,
        "measured": {**EXPLORE, "env": {"reward": "measured"}, "episodes": {"count": 1}},
        "soft": {
            **EXPLORE,
            "a2c": {},
            "episodes": {"count": 1, "share": 1.0},
            "env": {"reward": "amortized", "actions": "soft"},
        },
        "unpaid": {"agent": "random_hard", "optim": {"max_updates": 4}},
    }

    def find(name: str) -> Path:
        if not (folder / name).is_dir():
            make_run(folder, tiny_data, tiny_teacher, name=name, **settings[name])
        return folder / name

    return find


def changed_copy(run: Path, folder: Path, **env: Any) -> Path:
    """The same run, as if these settings of the environment had been others."""
    shutil.copytree(run, folder)
    config = config_from_file(folder / "config.yaml")
    for name, value in env.items():
        setattr(config.env, name, value)
    (folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    return folder


def estimates(record: dict[str, Any], policy: int, quantity: str) -> dict[str, dict[str, Any]]:
    found = record["policies"][policy]["estimates"]
    return {one["estimator"]: one for one in found if one["quantity"] == quantity}


def test_policies_are_judged_and_written_down(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = runs("explore"), tmp_path / "out"
    specs = ["uniform", "random_hard:0.6", "static:label,response", str(run)]
    assert ksel(["offline", str(run), "--policy", *specs, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mean reward per decision, asked at the logged states" in printed
    assert "the policy is too far from what was logged" in printed
    assert "they would have gone elsewhere" in printed
    assert "not of what the objective would have done" in printed
    record = json.loads((out / "offline.json").read_text())
    assert [policy["name"] for policy in record["policies"]] == [*specs[:3], "explore"]
    logged = load(run)
    assert record["decisions"] == len(logged) == 120
    assert record["episodes"] == 5
    uniform = estimates(record, 0, "decision")
    assert uniform["logged"]["value"] == pytest.approx(logged.rewards.mean())
    assert uniform["importance"]["value"] == pytest.approx(logged.rewards.mean(), abs=1e-3)
    assert uniform["importance"]["effective"] == pytest.approx(120, rel=1e-3)
    assert uniform["importance"]["interval"] == "5 episodes"
    payment = Payment(0.0, False, frozenset(), False, "running", LIMIT)
    for number, action in ((0, 0.5), (1, 0.6), (2, np.array([1, 1, 0, 0, 0]))):
        mean = np.broadcast_to(action, logged.actions.shape)
        direct = direct_rewards(logged, logged.rewards, mean, payment)
        found = estimates(record, number, "decision")["direct"]
        assert found["value"] == pytest.approx(direct.mean(), rel=1e-5)
        assert found["low"] < found["value"] < found["high"]
    far = estimates(record, 2, "decision")["importance"]
    assert far["value"] is None
    assert far["effective"] < 30
    assert estimates(record, 0, "episode")["importance"]["value"] is None
    page = (out / "offline.html").read_text()
    assert "<svg" in page
    assert "static:label,response" in page
    assert "5.0 of 5 episodes, below 30" in page


def test_a_policy_judged_by_what_it_learned_from_is_said_to_be(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = runs("explore"), tmp_path / "other"
    shutil.copytree(run, other)
    said = "was learned in these runs"
    for spec in (run, run / "policy"):
        assert ksel(["offline", str(run), "--policy", "uniform", str(spec)]) == 0
        assert f"explore {said}" in capsys.readouterr().out
    assert ksel(["offline", str(run), "--policy", "uniform", str(other)]) == 0
    assert said not in capsys.readouterr().out


def test_runs_that_weights_leave_out_are_said(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("explore")
    staged = tmp_path / "staged"
    shutil.copytree(run, staged)
    config = config_from_file(staged / "config.yaml")
    config.stages = [StageConfig(pool=["label"])]
    (staged / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    out = tmp_path / "out"
    words = ["--policy", "uniform", "random_hard:0.6", "--out", str(out)]
    assert ksel(["offline", str(run), str(staged), *words]) == 0
    said = "importance and doubly robust of uniform, random_hard:0.6 leave out staged (search): its"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (out / "offline.html").read_text()
    one = estimates(json.loads((out / "offline.json").read_text()), 0, "decision")
    assert one["importance"]["count"] < one["direct"]["count"]


def test_the_weights_of_a_policy_are_those_of_its_chances(runs: Callable[[str], Path]) -> None:
    logged = load(runs("explore"))
    judged = judge(logged, random_hard_policy(0.6, logged.pool), 0)
    on = logged.actions.sum(1)
    np.testing.assert_allclose(judged.log_prob, on * np.log(0.6) + (5 - on) * np.log(0.4))
    static = judge(logged, static_policy(["all"], logged.pool), 0)
    assert set(np.unique(static.log_prob)) <= {-np.inf, 0.0}
    assert ((static.log_prob == 0) == (on == 5)).all()


def test_the_frozen_policy_of_a_run_has_its_own_chances(runs: Callable[[str], Path]) -> None:
    run = runs("explore")
    logged = load(run, stages=["final"])
    for folder in (run, run / "policy"):
        judged = judge(logged, find_policy(str(folder), logged), 0)
        np.testing.assert_allclose(judged.mean, logged.probabilities, atol=1e-6)
        np.testing.assert_allclose(judged.log_prob, logged.log_prob, atol=1e-5)


def test_measured_rewards_have_no_direct_method_but_drops(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("measured")
    words = ["offline", str(run), "--policy", "random_hard:0.55", "--reward", "drop"]
    assert ksel([*words, "--out", str(tmp_path / "drop")]) == 0
    assert "credits were not logged beside measured drops" in capsys.readouterr().out
    record = json.loads((tmp_path / "drop" / "offline.json").read_text())
    found = estimates(record, 0, "decision")
    logged = load(run)
    assert found["logged"]["value"] == pytest.approx(logged.drops.mean())
    assert found["importance"]["interval"].startswith("blocks of ")
    assert found["importance"]["value"] is not None
    assert ksel([*words[:-2], "--out", str(tmp_path / "paid")]) == 0
    assert "--env.reward amortized" in capsys.readouterr().out
    record = json.loads((tmp_path / "paid" / "offline.json").read_text())
    paid = estimates(record, 0, "decision")["logged"]["value"]
    assert paid == pytest.approx(logged.rewards.mean())


def test_weights_are_weighed_where_their_densities_allow(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("soft")
    words = ["offline", str(run), "--policy", "all", "uniform", "--out", str(tmp_path / "out")]
    assert ksel(words) == 0
    assert "a certain weight has no density to compare" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "offline.json").read_text())
    assert estimates(record, 0, "decision")["direct"]["value"] is not None
    assert "effective sample size" in estimates(record, 1, "decision")["importance"]["refused"]


def test_the_default_place_is_the_first_runs_and_nothing_is_overwritten(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed_copy(runs("explore"), tmp_path / "copy")
    shutil.rmtree(run / "offline", ignore_errors=True)  # of a test that was here before
    assert ksel(["offline", str(run), "--policy", "uniform"]) == 0
    (folder,) = (run / "offline").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["offline.html", "offline.json"]
    before = (folder / "offline.json").read_bytes()
    assert ksel(["offline", str(run), "--policy", "all", "--out", str(folder)]) == 2
    assert "exists; nothing is overwritten" in capsys.readouterr().err
    assert (folder / "offline.json").read_bytes() == before


def test_rewards_of_another_kind_are_named(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("explore")
    other = changed_copy(run, tmp_path / "other", cost_per_type=0.5, phase_steps=3)
    assert ksel(["offline", str(run), str(other), "--policy", "all"]) == 2
    err = capsys.readouterr().err
    assert "--env.cost_per_type 0.5, not 0.0" in err
    assert "--env.phase_steps 3, not 1" in err
    assert str(other) in err


def test_the_settings_of_the_run_decide_how_rewards_are_predicted(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run = changed_copy(runs("explore"), tmp_path / "dear", cost_per_type=0.5)
    assert ksel(["offline", str(run), "--policy", "all", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "offline.json").read_text())
    logged = load(run)
    payment = Payment(0.5, False, frozenset(), False, "running", LIMIT)
    direct = direct_rewards(logged, logged.rewards, np.ones(logged.actions.shape), payment)
    found = estimates(record, 0, "decision")["direct"]["value"]
    assert found == pytest.approx(direct.mean(), rel=1e-5)


def test_distrusted_predictions_are_said(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed_copy(runs("explore"), tmp_path / "copy")
    summary = json.loads((run / "summary.json").read_text())
    summary["calibration"]["trusted"] = 0
    (run / "summary.json").write_text(json.dumps(summary))
    assert ksel(["offline", str(run), "--policy", "uniform"]) == 0
    assert "copy: its predictions did not go with true drops" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--policy", "sttic:label"],
            "is neither the folder of a run or policy nor a fixed policy",
        ),
        (["--policy", "static:labl"], "Did you mean 'label'?"),
        (["--policy", "static:"], "is neither the folder"),
        (["--policy", "random_hard:two"], "'two' is no probability"),
        (["--policy", "random_hard:1.5"], "'1.5' is no probability"),
        (["--policy", "all", "all"], "named twice"),
        (["--policy", "all", "--clip", "0.5"], "--clip is 0.5"),
        (["--policy", "all", "--clip", "nan"], "--clip is nan"),
        (["--policy", "all", "--resamples", "5"], "--resamples is 5"),
        (["--policy", "all", "--seed", "-1"], "--seed is -1"),
        (["--policy", "all", "--stages", "finale"], "unknown stage 'finale'"),
        (["--policy", "all", "--reward", "drop"], "Use --reward paid"),
    ],
)
def test_mistakes_are_named(
    runs: Callable[[str], Path], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert ksel(["offline", str(runs("explore")), *words]) == 2
    assert message in capsys.readouterr().err


def test_runs_that_nobody_was_paid_in_are_refused(
    runs: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ksel(["offline", str(runs("unpaid")), "--policy", "all"]) == 2
    assert "agents that do not learn are not paid" in capsys.readouterr().err


def test_runs_that_are_paid_once_per_play_are_refused(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed_copy(runs("measured"), tmp_path / "plays")
    config = config_from_file(run / "config.yaml")
    config.agent = "best_static"
    (run / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert ksel(["offline", str(run), "--policy", "all"]) == 2
    assert "plays is of best_static, which is paid once" in capsys.readouterr().err


def test_hard_and_soft_do_not_mix(
    runs: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ksel(["offline", str(runs("soft")), "--policy", str(runs("unpaid"))]) == 2
    assert "takes bits (hard), and the runs were logged with weights" in capsys.readouterr().err
    assert ksel(["offline", str(runs("soft")), str(runs("explore")), "--policy", "all"]) == 2
    assert "bits (hard), not weights (soft)" in capsys.readouterr().err


def saved_policy(folder: Path, run: Path, **changes: Any) -> Path:
    shutil.copytree(run / "policy", folder)
    header = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**header, **changes}))
    return folder


def test_a_policy_that_does_not_fit_is_refused_by_its_differences(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run = runs("explore")
    logged = load(run)
    other = saved_policy(tmp_path / "pool", run, pool=["label", "nst"])
    with pytest.raises(
        UsageError,
        match=r"^--policy: .*knows nst, the run does not; the run has .*Give one over label",
    ):
        find_policy(str(other), logged)
    wide = saved_policy(tmp_path / "wide", run, observation=[["training", [40]]])
    with pytest.raises(UsageError, match=r"'training' has shape \(31,\), the policy needs \(40,\)"):
        find_policy(str(wide), logged)
    parts = [["training", [31]], ["student_cls", [16]]]
    sees = saved_policy(tmp_path / "sees", run, observation=parts)
    with pytest.raises(UsageError, match=r"looks at student_cls, and schedule.parquet holds"):
        find_policy(str(sees), logged)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no frozen policy"):
        find_policy(str(tmp_path / "empty"), logged)


def test_a_damaged_schedule_names_the_file(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed_copy(runs("explore"), tmp_path / "copy")
    path = run / "schedule.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert ksel(["offline", str(run), "--policy", "all"]) == 2
    assert f"{path} is cut short or damaged" in capsys.readouterr().err


def test_names_stay_apart(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "c/other/policy"):
        (tmp_path / name).mkdir(parents=True)
    specs = [str(tmp_path / "a/run"), str(tmp_path / "b/run"), str(tmp_path / "c/other/policy")]
    assert offline._names([*specs, "all"]) == [*specs[:2], "other", "all"]


def test_a_run_whose_stages_switch_types_off_is_not_weighed(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed_copy(runs("explore"), tmp_path / "staged")
    text = (run / "config.yaml").read_text()
    assert "stages: []" in text
    stages = "stages: [{pool: [label, response], share: 0.5}, {share: 0.5}]"
    (run / "config.yaml").write_text(text.replace("stages: []", stages))
    assert open_run(run).config.stages[0].pool == ["label", "response"]
    assert ksel(["offline", str(run), "--policy", "uniform"]) == 0
    assert "staged (search): its stages switch types off" in capsys.readouterr().out
