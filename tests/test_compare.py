"""``ksel.compare``: names to settings, paired cells, records, going on, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from agents.make import AGENTS, check_settings
from agents.reading import unread
from ksel import compare, comparing, leaving, run
from ksel.batches import BatchOrder
from ksel.cells import FROM, make_plan, read_plan
from ksel.cli import guard
from ksel.config import RunConfig
from ksel.contenders import Contender, cell_settings, contender, pool_of, usual_baselines
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.grids import flattened
from ksel.saved import open_run
from ksel.settings import config_from_dict
from ksel.tracking import Tracker
from ksel.trajectory import read_schedule

POOL = ["label", "response", "hidden/skip"]


def named(name: str, own: dict | None = None, pool: list[str] = POOL) -> Contender:
    return contender("it", {FROM: name, **(own or {})}, "method", pool, AGENTS)


def settings_of(name: str, base: dict[str, Any], own: dict | None = None) -> dict[str, Any]:
    """The settings of a method's cells over those of all cells."""
    return cell_settings(named(name, own, pool_of(base)), base, unread)[0]


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a2c", {"agent": "a2c"}),
        ("kd", {"method": "kd"}),
        ("random_hard", {"agent": "random_hard"}),  # over the comparison's pool, as a baseline
        ("method:random_hard", {"method": "random_hard"}),
        ("agent:bandit", {"agent": "bandit"}),
        ("revisited/attention_mse+a2c", {"method": "revisited/attention_mse", "agent": "a2c"}),
        ("all", {"agent": "static", "static": {"mask": ["all"]}}),
    ],
)
def test_a_name_stands_for_settings(name: str, settings: dict[str, Any]) -> None:
    assert named(name).settings == settings


@pytest.mark.parametrize(
    ("name", "mask", "pool"),
    [
        ("finetune", ["label"], None),
        ("response", ["response"], None),
        ("only:label+response", ["label", "response"], None),
        ("hidden/last", ["hidden/last"], ["hidden/last"]),  # not in the pool: one of its own
        ("only:label+fsp/skip", ["label", "fsp/skip"], ["label", "fsp/skip"]),
    ],
)
def test_a_fixed_mask_stands_alone(name: str, mask: list[str], pool: list[str] | None) -> None:
    base = {
        "knowledge": {"pool": POOL, "weights": {"response": 3.0}},
        "stages": [{"pool": ["label"], "share": 1.0}],
    }
    config = config_from_dict(settings_of(name, base))
    assert config.agent == "static"
    assert config.static.mask == mask
    assert config.knowledge.pool == (pool or POOL)
    assert config.knowledge.weights == {}
    assert config.stages == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a2cc", "unknown method 'a2cc'. Did you mean 'a2c'?"),
        ("mlkd_brt", "Did you mean 'mlkd_bert'?"),
        ("mlkd_bert+a3c", "unknown agent 'a3c'. Did you mean 'a2c'?"),
        ("mlkd+a2c", "unknown method 'mlkd'"),
        ("only:hiden/skip", "unknown knowledge type 'hiden/skip'. Did you mean 'hidden/skip'?"),
        ("agent:kd", "unknown agent 'kd'"),
        ("method:a2c", "unknown method 'a2c'"),
        ("absent.yaml", "cannot read absent.yaml"),
        ("policy:absent", "there is no folder absent"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_near(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        named(name)
    assert message in str(error.value)


def test_the_usual_baselines_are_over_the_comparisons_pool() -> None:
    names = usual_baselines(POOL, AGENTS)
    assert names == ["finetune", "all", "response", "hidden/skip", "random_hard", "best_static"]
    assert "finetune" not in usual_baselines(["response"], AGENTS)


# --------------------------------------------------------------------------- whose settings hold


def test_a_method_keeps_what_its_file_decides_and_takes_the_rest() -> None:
    base = {
        "knowledge": {"pool": POOL, "balance": "ema", "ema_decay": 0.5, "weights": {"response": 2}},
        "optim": {"learning_rate": 1e-3},
        "env": {"phase_steps": 3},
    }
    config = config_from_dict(settings_of("kd", base))
    assert config.knowledge.pool == ["label", "response"]
    assert config.knowledge.balance == "none"
    assert config.knowledge.weights == {"label": 0.5, "response": 0.5}
    assert config.knowledge.ema_decay == 0.5
    assert config.optim.learning_rate == 1e-3
    assert config.env.phase_steps == 3
    assert config_from_dict(settings_of("ks_hard", base)).env.phase_steps == 10
    assert config_from_dict(settings_of("a2c", base)).knowledge.pool == POOL


def test_what_must_be_one_for_all_is_not_the_methods() -> None:
    assert named("pkd_skip").left_out == {"student.init": "first"}
    for start in ("auto", "spread", "last"):
        base = {"student": {"init": start}} if start != "auto" else {}
        starts = {
            config_from_dict(settings_of(name, base)).student.init
            for name in ("pkd_skip", "distilbert", "kd", "a2c")
        }
        assert starts == {start}


@pytest.mark.parametrize(
    "own",
    [
        {"student": {"layers": 1}},
        {"optim": {"max_updates": 3}},
        {"rows": {"train": 9}},
        {"data": "x"},
    ],
)
def test_a_method_cannot_unpair_itself(own: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be the same for all methods"):
        named("a2c", own)


def test_settings_of_other_agents_are_left_out_and_a_run_takes_the_rest() -> None:
    base = {
        "episodes": {"count": 3},
        "a2c": {"gamma": 0.5},
        "all_action": {"entropy": 0.2},
        "env": {"objective": "calibrated", "window": 7, "actions": "soft", "reward": "amortized"},
        "search": "online",
        "credit": {"rows": 4},
        "branches": {"count": 3},
    }
    for agent in AGENTS:
        check_settings(config_from_dict(settings_of(f"agent:{agent}", base)))
    assert settings_of("static", base) == {"agent": "static", "env": {"actions": "soft"}}
    assert settings_of("best_static", base)["env"]["objective"] == "calibrated"
    a2c = config_from_dict(settings_of("a2c", base))
    assert (a2c.a2c.gamma, a2c.env.reward, a2c.env.window) == (0.5, "amortized", 7)
    assert a2c.all_action == RunConfig().all_action
    learns = config_from_dict(settings_of("a2c", {**base, "search": "episodes"}))
    assert learns.episodes.count == 3


# --------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("words", "seeds"),
    [(["3"], [0, 1, 2]), (["0", "3", "7"], [0, 3, 7]), (["4", ""], [4])],
)
def test_seeds_are_a_number_or_a_list(words: list[str], seeds: list[int]) -> None:
    assert make_plan({}, tasks=["rte"], methods=["kd"], seeds=words).seeds == seeds


@pytest.mark.parametrize(("given", "seeds"), [(2, [0, 1]), ([2], [2]), ([1, 0], [1, 0])])
def test_seeds_of_a_file_are_a_number_or_a_list(given: Any, seeds: list[int]) -> None:
    assert make_plan({"seeds": given}, tasks=["rte"], methods=["kd"]).seeds == seeds


@pytest.mark.parametrize("words", [["0"], [""], ["-1", "2"], ["1", "1"], ["two"]])
def test_no_seed_or_a_wrong_one_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        make_plan({}, tasks=["rte"], methods=["kd"], seeds=words)


def test_a_name_on_the_command_line_has_the_settings_that_the_file_gives_it() -> None:
    file = {
        "tasks": {"few": {"from": "rte", "rows": {"train": 90}}, "mrpc": None},
        "methods": {"slow": {"from": "a2c", "env": {"phase_steps": 5}}, "kd": {}},
    }
    plan = make_plan(file, tasks=["few", "cola"], methods=["slow", "pkd_skip"])
    assert plan.tasks == {"few": {"from": "rte", "rows": {"train": 90}}, "cola": {}}
    assert plan.methods["slow"] == {"from": "a2c", "env": {"phase_steps": 5}}
    assert list(plan.methods) == ["slow", "pkd_skip"]
    other = make_plan(file, tasks=["few=mrpc"], methods=["kd"])
    assert other.tasks == {"few": {"from": "mrpc"}}
    listed = make_plan({"tasks": ["rte", "x=mrpc"], "methods": ["kd"]}, tasks=["x"])
    assert listed.tasks == {"x": {"from": "mrpc"}}


def test_a_file_and_the_command_line_make_one_plan(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        """
base: {optim: {epochs: 2}, knowledge: {pool: [label, response]}}
student: {layers: 2}
tasks:
  rte: {}
  few: {from: rte, rows: {train: 100}}
methods:
  kd:
  slow: {from: a2c, env: {phase_steps: 9}}
  own: {agent: static, static: {mask: [response]}}
baselines: none
seeds: [1, 4]
"""
    )
    plan = make_plan(read_plan(path), base={"optim": {"epochs": 5}})
    assert plan.base["optim"] == {"epochs": 5}
    assert plan.base["student"] == {"layers": 2}
    assert plan.tasks == {"rte": {}, "few": {"from": "rte", "rows": {"train": 100}}}
    assert plan.methods["slow"] == {"from": "a2c", "env": {"phase_steps": 9}}
    assert plan.methods["kd"] == {"from": "kd"}
    assert plan.methods["own"][FROM] == ""
    assert (plan.baselines, plan.seeds) == ([], [1, 4])
    again = tmp_path / "again.yaml"
    again.write_text(plan.text())
    assert make_plan(read_plan(again)) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "not valid YAML"),
        ("metods: [kd]", "unknown part of a comparison 'metods'. Did you mean 'methods'?"),
        ("tasks: [rte]", "--methods: name at least one"),
        ("methods: [kd]", "--task: name at least one"),
        ("{tasks: [rte], methods: [kd], seed: 3}", "--seed: the comparison sets it itself"),
        ("{tasks: [rte], methods: {kd: 3}}", "methods.kd must map"),
        ("{tasks: [rte], methods: [kd, kd]}", "'kd' is named twice"),
        ("{tasks: [rte], methods: [kd], base: 3}", "base must map"),
    ],
)
def test_an_unusable_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        make_plan(read_plan(path))
    assert message in str(error.value)


# --------------------------------------------------------------------------- whole comparisons


@pytest.fixture
def words(tiny_settings: Callable[..., dict]) -> list[str]:
    """A command line over tiny data and models, in this process."""
    settings = tiny_settings(evaluations=2)
    settings.pop("task")
    found = ["--executor", "inline", "--task", "rte"]
    for key, value in flattened(settings):
        found += [
            f"--{'.'.join(key)}",
            json.dumps(value) if isinstance(value, list) else str(value),
        ]
    return found


@pytest.fixture(autouse=True)
def nothing_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of drawing that nobody looks at, unless a test says otherwise."""
    monkeypatch.setattr(leaving, "write_report", lambda folder: None)
    monkeypatch.setattr(Tracker, "heat_map", lambda *_: None)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(
            comparing, "_write", lambda c, console=False: comparing._write_frames(c)
        )


@pytest.fixture
def drawn() -> None:
    """Asks for tables, plots and page."""


def frame(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet").set_index(["task", "method", "seed"])


@pytest.mark.usefixtures("drawn")
def test_a_comparison_leaves_runs_records_tables_and_a_page(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ["--methods", "kd", "soft=random_soft", "--baselines", "all,finetune", "--seeds", "3,"]
    assert compare.main([*words, *more, "--out", str(out)]) == 0
    cells = frame(out)
    assert len(cells) == 4
    assert (cells["status"] == "complete").all()
    roles = cells["role"].to_dict()
    assert roles["rte", "kd", 3] == roles["rte", "soft", 3] == "method"
    assert roles["rte", "all", 3] == roles["rte", "finetune", 3] == "baseline"
    assert cells.loc[("rte", "all", 3), "cost"] == 1.0
    for (_, method, seed), row in cells.iterrows():
        summary = json.loads((out / "runs" / row["run"] / "summary.json").read_text())
        assert (summary["status"], summary["seed"]) == ("complete", seed)
        assert row["score"] == row["dev/accuracy"] == summary["students"][0]["metrics"]["accuracy"]
        assert row["seconds_total"] == summary["cost"]["stages"]["final"]["seconds"] > 0
        assert row["student_backwards"] == 6 * 8 or method == "soft"
        assert row["updates"] == 6
    forwards = cells["teacher_forwards"].to_dict()
    assert forwards["rte", "finetune", 3] == 0
    assert forwards["rte", "all", 3] > 0
    curves = pd.read_parquet(out / "curves.parquet")
    one = curves[(curves["method"] == "kd") & (curves["seed"] == 3)]
    assert one["update"].tolist() == [3, 6, 6]
    assert one["share"].tolist() == [0.5, 1.0, 1.0]
    assert one["rows"].tolist() == [20, 20, 40]
    assert one["value"].iloc[-1] == cells.loc[("rte", "kd", 3), "score"]
    for name in ("table.md", "table.csv", "compare.html", "compare.yaml"):
        assert (out / name).stat().st_size > 100
    assert list((out / "plots").glob("*.png"))
    assert "executor inline" in capsys.readouterr().out
    assert "teacher" in (out / "logs" / "rte-kd-s3.log").read_text()


def test_cells_of_one_seed_have_one_start_and_one_order_of_batches(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pool, the matching, the projections and the agent."""
    lives: list[dict[int, np.ndarray]] = [{}]
    rows, reset, write_record = BatchOrder.rows, Distiller.reset, comparing.write_record
    trained: dict[str, dict[int, np.ndarray]] = {}

    def noted(self: BatchOrder, update: int) -> np.ndarray:
        found = rows(self, update)
        if len(found) == 8:  # a batch; a held-out gradient has 4 rows here
            lives[-1][update] = found
        return found

    def reborn(self: Distiller, *args: Any, **options: Any) -> None:
        lives.append({})
        reset(self, *args, **options)

    def of_cell(folder: Path, name: str, record: dict) -> None:
        trained[name] = lives[-1]
        write_record(folder, name, record)

    monkeypatch.setattr(BatchOrder, "rows", noted)
    monkeypatch.setattr(Distiller, "reset", reborn)
    monkeypatch.setattr(comparing, "write_record", of_cell)
    out = tmp_path / "out"
    methods = ["hidden/last", "tinybert", "all_action"]
    more = ["--baselines", "none", "--seeds", "2", "--credit.rows", "4", "--out", str(out)]
    assert compare.main([*words, "--methods", *methods, *more]) == 0
    for seed in (0, 1):
        names = [name for name in trained if name.endswith(f"-s{seed}")]
        assert len(names) == len(methods)
        metas = [read_schedule(out / "runs" / name / "schedule.parquet").meta for name in names]
        inputs = metas[0]["inputs"]
        assert {"student's start", "training rows", "reward rows", "teacher"} <= set(inputs)
        assert all((meta["inputs"], meta["updates"]) == (inputs, 6) for meta in metas)
        for name in names:
            assert sorted(trained[name]) == [0, 1, 2, 3, 4, 5]
            for update in range(6):
                np.testing.assert_array_equal(trained[name][update], trained[names[0]][update])
    assert not np.array_equal(trained["rte-tinybert-s0"][0], trained["rte-tinybert-s1"][0])


def test_a_policy_and_a_schedule_are_played_as_they_are(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    more = ["--methods", "a2c", "--baselines", "none", "--seeds", "1", "--episodes.count", "1"]
    assert compare.main([*words, *more, "--out", str(first)]) == 0
    made = first / "runs" / "rte-a2c-s0"
    more = ["--methods", f"policy:{made}", f"same=schedule:{made}", "--baselines", "none"]
    at = words.index("--knowledge.pool")  # theirs, not the comparison's
    words = [*words[:at], *words[at + 2 :]]
    assert compare.main([*words, *more, "--seeds", "0,1", "--out", str(second)]) == 0
    assert "its own pool" not in capsys.readouterr().out  # it is the comparison's
    base = {"knowledge": {"pool": ["label", "response"]}}
    plan = compare.make_plan({}, tasks=["rte"], methods=[f"policy:{made}"], base=base)
    pool = ", ".join(read_schedule(made / "schedule.parquet").pool)
    (line,) = compare._notes(plan)
    assert f"decides over its own pool ({pool}), not over the comparison's (label, resp" in line
    logged = read_schedule(made / "schedule.parquet").actions("final")
    runs = second / "runs"
    for name in ("rte-same-s0", "rte-same-s1", "rte-policy_rte-a2c-s0-s0"):
        schedule = read_schedule(runs / name / "schedule.parquet")
        np.testing.assert_array_equal(schedule.actions("final"), logged)
        assert {stage for stage, _ in schedule.stages()} == {"final"}
    other = read_schedule(runs / "rte-policy_rte-a2c-s0-s1" / "schedule.parquet")
    assert other.actions("final").shape == logged.shape
    cells = frame(second)
    assert (cells["seconds_search"] == 0).all()
    assert (cells["updates_search"] == 0).all()
    assert cells.loc[("rte", "same", 0), "score"] == frame(first)["score"].iloc[0]


def test_a_saved_runs_settings_are_a_method_of_the_comparisons_student(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"agent": "round_robin", "student": {"layers": 1}, "name": "x"}))
    out = tmp_path / "out"
    more = ["--methods", str(file), "--baselines", "none", "--seeds", "1", "--out", str(out)]
    capsys.readouterr()
    assert compare.main([*words, *more]) == 0
    assert "note: mine: its own --student.layers is not followed" in capsys.readouterr().out
    config = open_run(out / "runs" / "rte-mine-s0").config
    assert config.agent == "round_robin"
    assert config.student.layers == 2


# --------------------------------------------------------------------------- failures and going on


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of cells whose run raises while they are in this list."""
    names: list[str] = []
    work = run._work

    def broken(job: Any, *rest: Any) -> None:
        if job.folder.name in names:
            raise ZeroDivisionError("of this test")
        work(job, *rest)

    monkeypatch.setattr(run, "_work", broken)
    return names


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(
    words: list[str], tmp_path: Path, failing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ["--methods", "kd,random_soft", "--baselines", "all", "--seeds", "1", "--out", str(out)]
    failing.append("rte-kd-s0")
    assert compare.main([*words, *more]) == 1
    cells = frame(out)
    assert len(cells) == 3
    assert cells.loc[("rte", "kd", 0), "status"] == "failed"
    assert cells.loc[("rte", "kd", 0), "error"] == "ZeroDivisionError: of this test"
    assert (cells["status"] == "complete").sum() == 2
    assert "ZeroDivisionError" in (out / "cells" / "rte-kd-s0.traceback.txt").read_text()
    printed = capsys.readouterr().out
    assert "1 of 3 cells failed" in printed
    assert "rte, kd, seed 0: FAILED: ZeroDivisionError: of this test" in printed

    kept = {p: p.stat().st_mtime_ns for p in (out / "runs").glob("*/summary.json")}
    failing.clear()
    assert guard(compare.main, [*words, *more]) == 2
    assert "Add --resume" in capsys.readouterr().err
    assert compare.main(["--resume", str(out), "--executor", "inline"]) == 0
    assert (frame(out)["status"] == "complete").all()
    for path, time in kept.items():
        assert path.stat().st_mtime_ns == time or path.parent.name == "rte-kd-s0"


def test_a_finished_run_without_a_record_is_taken_as_it_is(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    more = ["--methods", "response", "--baselines", "none", "--seeds", "1", "--out", str(out)]
    assert compare.main([*words, *more]) == 0
    before = frame(out)
    (out / "cells" / "rte-response-s0.json").unlink()
    monkeypatch.setattr(run, "main", lambda *_: pytest.fail("it ran again"))
    assert compare.main([*words, *more, "--resume"]) == 0
    pd.testing.assert_frame_equal(frame(out), before)


def test_an_interrupted_cell_goes_on_and_ends_alike(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [
        "--methods",
        "response",
        "--baselines",
        "none",
        "--seeds",
        "1",
        "--checkpoint.every",
        "1",
    ]
    more += ["--checkpoint.share", "1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert compare.main([*words, *more, "--out", str(whole)]) == 0
    update, count = Distiller.update, 0

    def pressed(self: Distiller, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return update(self, *args, **options)

    monkeypatch.setattr(Distiller, "update", pressed)
    assert compare.main([*words, *more, "--out", str(cut)]) == 130
    assert not (cut / "results.parquet").exists()
    assert compare.main(["--resume", str(cut), "--executor", "inline"]) == 0
    assert count < 4 + 6, "it began anew"
    weights = [f / "runs/rte-response-s0/student/model.safetensors" for f in (whole, cut)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert frame(whole)["score"].tolist() == frame(cut)["score"].tolist()


def test_going_on_takes_more_but_nothing_else(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def go_on(*more: str) -> int:
        return guard(compare.main, [*words, "--baselines", "none", "--out", str(out), *more])

    assert go_on("--methods", "response", "--seeds", "1") == 0
    assert go_on("--resume", "--methods", "response", "random_soft", "--seeds", "2") == 0
    assert len(frame(out)) == 4
    capsys.readouterr()
    for more, names in (
        (["--methods", "response", "random_soft", "--seeds", "1"], "seeds: it has 1"),
        (["--methods", "response", "--seeds", "2"], "methods: it has 'random_soft'"),
        (
            ["--methods", "response=label", "random_soft", "--seeds", "2"],
            "methods.response.from: it was response",
        ),
        (
            ["--methods", "response", "random_soft", "--seeds", "2", "--optim.max_updates", "7"],
            "optim.max_updates: it was 6, and it is 7 now",
        ),
    ):
        assert go_on("--resume", *more) == 2
        assert names in capsys.readouterr().err
    assert len(frame(out)) == 4
    assert guard(compare.main, ["--resume", str(out), "--methods", "response"]) == 2
    assert "Repeat the whole command" in capsys.readouterr().err
    assert guard(compare.main, ["--resume", str(tmp_path / "absent")]) == 2
    assert "holds no comparison" in capsys.readouterr().err


def test_a_method_that_a_task_cannot_have_fails_there_alone(
    words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "two.yaml"
    columns = {
        "text": "sentence1",
        "text_pair": "sentence2",
        "labels": ["entailment", "not_entailment"],
    }
    scores = {"text": "sentence1", "text_pair": "sentence2", "metrics": ["pearson"]}
    tasks = {
        "classes": {FROM: "custom", "custom": columns},
        "scores": {FROM: "custom", "custom": scores},
    }
    file.write_text(yaml.safe_dump({"tasks": tasks, "methods": ["dynamic"], "seeds": 1}))
    out = tmp_path / "out"
    words.remove("--task")
    words.remove("rte")
    assert compare.main([str(file), *words, "--baselines", "none", "--out", str(out)]) == 1
    cells = frame(out)
    assert cells.loc[("classes", "dynamic", 0), "status"] == "complete"
    assert "Choose another agent" in cells.loc[("scores", "dynamic", 0), "error"]


def test_a_teacher_that_cannot_be_had_fails_its_tasks_cells_at_once(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    more = ["--methods", "kd,random_soft", "--baselines", "none", "--seeds", "1", "--out", str(out)]
    at = words.index("--data")
    words = [*words[:at], "--data", str(tmp_path), *words[at + 2 :]]
    monkeypatch.setattr(run, "main", lambda *_: pytest.fail("a cell was run"))
    assert compare.main([*words, *more]) == 1
    assert frame(out)["error"].str.contains("--data").tolist() == [True, True]


def test_a_cell_whose_pool_cannot_be_fails_alone(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first cell's settings are those that a task's teacher is prepared with."""
    out = tmp_path / "out"
    more = ["--methods", "wrong=only:hidden/1-9", "right=response", "--baselines", "none"]
    assert compare.main([*words, *more, "--seeds", "2", "--out", str(out)]) == 1
    cells = frame(out)["status"]
    assert cells.loc[:, "right"].tolist() == ["complete", "complete"]
    assert cells.loc[:, "wrong"].tolist() == ["failed", "failed"]
    assert "rte: its data and teacher, see logs/teacher-rte-wrong-s0.log" in capsys.readouterr().out


@pytest.mark.usefixtures("drawn")
def test_where_all_fails_no_table_is_named(
    words: list[str], tmp_path: Path, failing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append("rte-response-s0")
    more = ["--methods", "response", "--baselines", "none", "--seeds", "1"]
    assert compare.main([*words, *more, "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "1 of 1 cells failed" in printed
    assert "table.md" not in printed


def test_a_run_of_another_plan_is_not_taken_for_one_of_this(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before a cell was finished, corrected, begun again in the same folder."""
    out = tmp_path / "out"
    more = ["--methods", "response", "--baselines", "none", "--seeds", "1", "--out", str(out)]
    update = Distiller.update

    def pressed(self: Distiller, *args: Any, **options: Any) -> Any:
        if self.cursor == 4:
            raise KeyboardInterrupt
        return update(self, *args, **options)

    monkeypatch.setattr(Distiller, "update", pressed)
    assert compare.main([*words, *more]) == 130
    assert (out / "runs" / "rte-response-s0" / "config.yaml").is_file()
    monkeypatch.undo()
    monkeypatch.setattr(leaving, "write_report", lambda folder: None)
    assert compare.main([*words, *more, "--optim.max_updates", "3"]) == 0
    assert frame(out)["updates"].tolist() == [3]


def test_going_on_finds_folder_and_files_from_anywhere(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("agent: static\nstatic: {mask: [response]}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    more = ["--methods", "mine.yaml,", "--baselines", "none", "--seeds", "1"]
    assert compare.main([*words, *more]) == 0
    assert [name for _, name, _ in frame(tmp_path / "compare" / "rte").index] == ["mine"]
    store = ["--store", str(tmp_path / "another")]
    assert compare.main([*words, *more, *store, "--resume"]) == 0  # the folder without --out
    monkeypatch.chdir("elsewhere")
    assert compare.main(["--resume", "../compare/rte", "--seeds", "2", "--executor", "inline"]) == 0
    assert len(frame(tmp_path / "compare" / "rte")) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "kd", "--task", "rte", "mrcp"], "Did you mean 'mrpc'?"),
        (["--methods", "kd", "--executor", "dask"], "unknown executor 'dask'"),
        (["--methods", "kd", "--workers", "2"], "--workers: not used with --executor inline"),
        (["--methods", "kd", "--ray_gpus", "1"], "--ray_gpus: not used with --executor inline"),
        (["--methods", "kd", "--executor", "local", "--workers", "0"], "--workers: 0 workers"),
        (["--methods", "kd", "--executor", "local", "--threads", "0"], "--threads: 0"),
        (["--methods", "kd", "--seeds", "0"], "--seeds: no seed"),
        (["--methods", "kd", "--optm.epochs", "3"], "Did you mean --optim.epochs"),
        (["--methods", "kd", "--ppo.gamma", "0.3"], "--ppo.gamma: no method of this comparison"),
        (["--methods", "kd", "--baselines", "none"], "--knowledge.pool: no method of this"),
        (["--methods", "all=kd"], "'all' is the name of a baseline"),
        (["--methods", "all=kd", "--baselines", "none"], "'all' is all types on"),
        (["--methods", "kd", "--seed", "3"], "--seed: the comparison sets it itself"),
        (["--methods", "dynamic", "--knowledge.pool", "[label]"], "dynamic: --agent dynamic"),
        (["--methods", "kd", "x_y=pkd_skip", "x/y=kd"], "two cells would share"),
        (["--methods", "kd", "--against", "kdd"], "kdd"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    words: list[str],
    more: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert guard(compare.main, [*words, *more, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not list(out.rglob("*.*")) if out.exists() else True


def test_a_part_of_a_files_methods_need_not_read_all_its_settings(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "study.yaml"
    plan = {"methods": {"response": {}, "a2c": {}}, "baselines": "none", "a2c": {"gamma": 0.5}}
    file.write_text(yaml.safe_dump(plan))
    monkeypatch.setattr(compare, "run_cells", lambda *_: 0)
    out = ["--out", str(tmp_path / "out")]
    for part in ([], ["--methods", "response"]):
        assert guard(compare.main, [str(file), *words, *part, *out]) == 0
    assert (
        guard(compare.main, [str(file), *words, "--methods", "response", "--a2c.gamma", "0.3"]) == 2
    )
    assert "--a2c.gamma: no method of this comparison" in capsys.readouterr().err
    file.write_text(yaml.safe_dump({**plan, "methods": ["response"]}))
    assert guard(compare.main, [str(file), *words, *out]) == 2
    assert "--a2c.gamma: no method of this comparison" in capsys.readouterr().err


def test_two_comparisons_in_one_folder_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ksel.locks import alone

    out = tmp_path / "out"
    out.mkdir()
    with alone(out):
        assert guard(compare.main, [*words, "--methods", "kd", "--out", str(out)]) == 2
    assert "another process is at work" in capsys.readouterr().err


def test_a_damaged_record_is_refused_by_name(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--methods", "response", "--baselines", "none", "--seeds", "1", "--out", str(out)]
    assert compare.main([*words, *more]) == 0
    (out / "cells" / "rte-response-s0.json").write_text('{"task": "rte"')
    with pytest.raises(UsageError, match=r"rte-response-s0\.json is damaged"):
        compare.main([*words, *more, "--resume"])


def test_slim_runs_have_no_student(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = [
        "--methods",
        "response",
        "--baselines",
        "none",
        "--seeds",
        "1",
        "--out",
        str(out),
        "--slim",
    ]
    assert compare.main([*words, *more]) == 0
    assert sorted(p.name for p in (out / "runs" / "rte-response-s0").iterdir() if p.is_dir()) == [
        "policy",
        "tensorboard",
    ]
    shutil.rmtree(out)


@pytest.mark.slow
def test_worker_processes_make_the_same_students(words: list[str], tmp_path: Path) -> None:
    more = [
        "--methods",
        "kd",
        "a2c",
        "--baselines",
        "none",
        "--seeds",
        "1",
        "--episodes.count",
        "1",
    ]
    here, there = tmp_path / "here", tmp_path / "there"
    assert compare.main([*words, *more, "--out", str(here)]) == 0
    assert (
        compare.main(
            [*words[2:], *more, "--executor", "local", "--workers", "2", "--out", str(there)]
        )
        == 0
    )
    for name in ("rte-kd-s0", "rte-a2c-s0"):
        students = [f / "runs" / name / "student/model.safetensors" for f in (here, there)]
        assert students[0].read_bytes() == students[1].read_bytes()
    assert "ksel" not in (there / "logs" / "workers.log").read_text()
