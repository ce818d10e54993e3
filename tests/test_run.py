"""The whole job: what it leaves behind, whether its figures agree, and what it prints."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import yaml
from job import Outcome, leftovers, run_job, small
from rich.console import Console
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import ksel.run
from agents.policy import load_policy
from envs.observation import feature_names
from ksel.artifacts import model_card
from ksel.config import CustomTaskConfig, RowsConfig
from ksel.data import tokenize
from ksel.evaluation import predict_logits, score
from ksel.job_stages import evaluation_marks
from ksel.models import weights_fingerprint
from ksel.settings import config_from_file
from ksel.setup import Setup
from ksel.sources import custom_task, read_rows
from ksel.summary import print_summary
from ksel.tasks import Task, get_task
from ksel.tracking import read_metrics

AGENTS: dict[str, dict[str, Any]] = {
    "a2c": {"agent": "a2c"},
    "ppo": {"agent": "ppo", "env": {"phase_steps": 2}, "episodes": {"count": 4, "share": 0.4}},
    "a2c_soft": {"agent": "a2c", "env": {"actions": "soft"}, "references": ["all", "hidden/skip"]},
    "static": {"agent": "static", "static": {"mask": ["response", "hidden/skip"]}},
    "random_hard": {"agent": "random_hard", "env": {"phase_steps": 4}},
    "random_soft": {"agent": "random_soft", "references": ["finetune"]},
    "annealed": {"agent": "annealed", "references": []},
    "round_robin": {"agent": "round_robin"},
    "ddpg": {"agent": "ddpg", "ddpg": {"learning_starts": 2}},
    "ddpg_soft": {
        "agent": "ddpg",
        "ddpg": {"learning_starts": 2},
        "env": {"actions": "soft", "exploration": 0.1},
    },
    "exp3s": {"agent": "bandit"},
    "linucb": {"agent": "bandit", "bandit": {"algorithm": "linucb"}},
    "dynamic": {"agent": "dynamic"},
}
SOFT = {"a2c_soft", "random_soft", "annealed", "ddpg_soft", "dynamic"}
SEARCHING = {"a2c", "ppo", "a2c_soft", "ddpg", "ddpg_soft", "exp3s", "linucb"}
CONTENTS = {
    "config.yaml",
    "versions.json",
    "metrics.jsonl",
    "tensorboard",
    "schedule.parquet",
    "policy",
    "student",
    "teacher.json",
    "summary.json",
    "report.html",
}


Runner = Callable[..., Outcome]


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Path
) -> Callable[[str], Outcome]:
    """The finished job of an agent of the table, run once for all tests."""
    done: dict[str, Outcome] = {}
    store = tmp_path_factory.mktemp("store")

    def get(name: str) -> Outcome:
        if name not in done:
            settings = tiny.settings(tiny_data, tiny_teacher, store)
            values = small(settings, AGENTS[name])
            done[name] = run_job(tmp_path_factory.mktemp(name), values, report=name == "a2c")
        return done[name]

    return get


@pytest.fixture
def run(tmp_path: Path, tiny_data: Path, tiny_teacher: Path) -> Runner:
    """Run a job with changed settings: ``run(task=..., argv=[...], name=...)``."""

    def go(argv: tuple[str, ...] = (), name: str = "run", **changes: Any) -> Outcome:
        settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
        return run_job(tmp_path, small(settings, changes), *argv, name=name)

    return go


def column(outcome: Outcome, stage: str, name: str) -> np.ndarray:
    return outcome.schedule.stage(stage)[name].to_numpy()


def student_of(outcome: Outcome, name: str) -> dict[str, Any]:
    return next(one for one in outcome.summary["students"] if one["name"] == name)


def evaluated(outcome: Outcome, task: Task, file: Path) -> dict[str, float]:
    """Metrics of the saved student, by a way that shares only the metrics with the job."""
    folder = outcome.folder / "student"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    split = tokenize(read_rows(file, task, True), task, tokenizer, 32)
    return score(task, predict_logits(model, split, batch_size=7, device="cpu"), split.labels)


# ------------------------------------------------------------------------ every agent


@pytest.mark.parametrize("name", AGENTS)
def test_the_folder_holds_what_a_run_leaves_behind(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    assert outcome.code == 0, outcome.err
    assert outcome.names() == CONTENTS
    assert leftovers(outcome.folder) == []
    policy = {path.name for path in (outcome.folder / "policy").iterdir()}
    learned = {"policy.safetensors"} if name in SEARCHING else set()
    own = {"stable_baselines3.zip"} if learned and AGENTS[name]["agent"] != "bandit" else set()
    assert policy == {"policy.json", *learned, *own}
    student = {path.name for path in (outcome.folder / "student").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= student
    assert not list(outcome.folder.rglob("*.bin"))
    assert outcome.json("versions.json")["threads"] == 1
    assert config_from_file(outcome.folder / "config.yaml").agent == AGENTS[name]["agent"]


@pytest.mark.parametrize("name", AGENTS)
def test_the_summary_agrees_with_the_schedule(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    summary, schedule = outcome.summary, outcome.schedule
    config = config_from_file(outcome.folder / "config.yaml")
    assert (summary["status"], summary["error"]) == ("complete", None)
    assert summary["actions"] == ("soft" if name in SOFT else "hard")
    stages = ["final", *(f"reference:{reference}" for reference in config.references)]
    names = ["selected", *config.references]
    assert [student["name"] for student in summary["students"]] == names
    per_student = -(-6 // config.env.phase_steps)
    for stage, student in zip(stages, summary["students"], strict=True):
        rows = schedule.stage(stage)
        assert student["decisions"] == len(rows) == summary["decisions"][stage] == per_student
        assert student["updates"] == 6
        assert rows["decision"].tolist() == list(range(per_student))
        assert rows["update"].tolist() == [config.env.phase_steps * d for d in range(per_student)]
        assert rows["terminated"].tolist() == [False] * (per_student - 1) + [True]
        shares = schedule.actions(stage).mean(0)
        assert list(student["shares"]) == list(schedule.pool) == summary["pool"]
        np.testing.assert_allclose(list(student["shares"].values()), shares, rtol=1e-6)
    means = np.mean(summary["shares_over_time"], axis=0)
    np.testing.assert_allclose(
        means, list(student_of(outcome, "selected")["shares"].values()), 1e-5
    )


@pytest.mark.parametrize("name", AGENTS)
def test_the_search_adds_up(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    summary = outcome.summary
    config = config_from_file(outcome.folder / "config.yaml")
    if name not in SEARCHING:
        assert summary["search"] is None
        assert "search" not in summary["decisions"]
        assert summary["cost"]["search_seconds"] == 0.0
        assert np.isnan(column(outcome, "final", "objective")).all(), "rewards cost, and serve none"
        return
    episode = round(6 * config.episodes.share)
    per_episode = -(-episode // config.env.phase_steps)
    rows = outcome.schedule.stage("search")
    counts = rows.groupby("episode").size()
    assert counts.tolist() == [per_episode] * config.episodes.count
    search = summary["search"]
    assert search["episodes"] == config.episodes.count
    assert search["decisions"] == len(rows) == summary["decisions"]["search"]
    assert search["updates"] == episode * config.episodes.count
    np.testing.assert_allclose(search["rewards"], rows.groupby("episode")["reward"].sum(), 1e-5)
    assert [life.budget for life in outcome.lives].count(episode) == config.episodes.count
    assert np.isfinite(column(outcome, "search", "objective")).all()


@pytest.mark.parametrize("name", AGENTS)
def test_cost_is_a_multiple_of_one_plain_distillation(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    cost = outcome.summary["cost"]
    seconds = {one["name"]: one["seconds"] for one in outcome.summary["students"]}
    assert all(value > 0 for value in seconds.values())
    assert cost["final_seconds"] == seconds["selected"]
    if "all" not in seconds:
        assert cost["plain_seconds"] is None
        assert "not among --references" in outcome.summary["search_cost"]["reason"]
        assert cost["search_multiple"] is None
        assert cost["total_multiple"] is None
        assert "as multiples of one plain distillation" in outcome.out
        return
    search = outcome.summary["search"]
    assert cost["search_seconds"] == (search["seconds"] if search else 0.0)
    stages = cost["stages"]
    paid = [
        stages[stage]["parts"].get("teacher", {})
        for stage in ("search", "final")
        if stage in stages
    ]
    computed = sum(part.get("examples", 0) for part in paid)
    asked = stages["reference:all"]["parts"]["student_forward"]["examples"]
    share = min(asked / computed, 1.0) if search and computed else 1.0
    plain = seconds["all"] + share * sum(part.get("seconds", 0.0) for part in paid)
    assert cost["plain_seconds"] == pytest.approx(plain)
    assert cost["search_multiple"] == pytest.approx(cost["search_seconds"] / plain)
    total = (cost["search_seconds"] + seconds["selected"]) / plain
    assert cost["total_multiple"] == pytest.approx(total)
    assert outcome.summary["search_cost"]["multiple"] == cost["total_multiple"]
    assert f"= {total:.2f} x plain" in outcome.out


@pytest.mark.parametrize("name", AGENTS)
def test_metrics_are_those_of_the_saved_student(
    job: Callable[[str], Outcome], name: str, tiny_data: Path
):
    outcome = job(name)
    metrics = evaluated(outcome, get_task("rte"), tiny_data / "dev.parquet")
    assert student_of(outcome, "selected")["metrics"] == pytest.approx(metrics)


@pytest.mark.parametrize("name", AGENTS)
def test_students_start_alike_and_see_the_same_batches(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    assert len({life.start for life in outcome.lives}) == 1
    students = [life for life in outcome.lives if life.budget == 6]
    assert len(students) == len(outcome.summary["students"])
    assert all(life.batches == students[0].batches for life in students)
    assert len(students[0].batches) == 6
    searched = [life.batches for life in outcome.lives if life.budget != 6]
    assert all(batches != students[0].batches[: len(batches)] for batches in searched)


@pytest.mark.parametrize("name", AGENTS)
def test_the_policy_loads_and_fits(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    pool = outcome.schedule.pool
    shape = {"training": (len(feature_names(pool)),)}
    policy = load_policy(outcome.folder / "policy", pool=pool, observation=shape)
    assert (policy.name, policy.soft) == (AGENTS[name]["agent"], name in SOFT)
    rows = outcome.schedule.stage("final")
    policy.reset(np.random.default_rng([0, 5]))
    for row in rows.itertuples():
        choice = policy.act({"training": row.observation})
        np.testing.assert_array_equal(choice.action, row.action)
        np.testing.assert_allclose(choice.probabilities, row.probabilities, rtol=1e-5)


def test_what_each_rule_selects(job: Callable[[str], Outcome]):
    static = job("static").schedule
    assert static.actions("final").tolist() == [[0, 1, 0, 1, 0]] * 6
    robin = job("round_robin").schedule.actions("final")
    np.testing.assert_array_equal(robin, np.eye(5)[[0, 1, 2, 3, 4, 0]])
    fading = job("annealed").schedule.actions("final")
    np.testing.assert_allclose(fading[:, 0], np.arange(6) / 6, rtol=1e-6)
    np.testing.assert_allclose(fading[:, 1:], np.tile(1 - np.arange(6) / 6, (4, 1)).T, rtol=1e-6)
    assert np.isin(job("random_hard").schedule.actions("final"), (0, 1)).all()
    assert not np.isin(job("random_soft").schedule.actions("final"), (0, 1)).any()


@pytest.mark.parametrize("name", AGENTS)
def test_references_hold_their_mask(job: Callable[[str], Outcome], name: str):
    schedule = job(name).schedule
    masks = {
        "reference:finetune": [1, 0, 0, 0, 0],
        "reference:all": [1, 1, 1, 1, 1],
        "reference:hidden/skip": [0, 0, 0, 1, 0],
    }
    for stage, _ in schedule.stages():
        if stage.startswith("reference:"):
            actions = schedule.actions(stage)
            assert (actions == masks[stage]).all(), stage


# ------------------------------------------------------------------------ the student


def test_the_student_has_learned(job: Callable[[str], Outcome], tmp_path: Path):
    outcome = job("a2c")
    saved = AutoModelForSequenceClassification.from_pretrained(outcome.folder / "student")
    assert weights_fingerprint(saved) != outcome.lives[0].start
    other = AutoModelForSequenceClassification.from_pretrained(job("static").folder / "student")
    assert weights_fingerprint(saved) != weights_fingerprint(other)


def test_the_student_answers_with_label_names(job: Callable[[str], Outcome]):
    classify = pipeline("text-classification", model=str(job("a2c").folder / "student"))
    answer = classify({"text": "the red box was there", "text_pair": "a red box was there"})
    assert answer["label"] in get_task("rte").labels
    assert 0 <= answer["score"] <= 1


def test_the_model_card_says_how_the_student_was_made(job: Callable[[str], Outcome]):
    outcome = job("a2c")
    card = (outcome.folder / "student" / "README.md").read_text(encoding="utf-8")
    metrics = student_of(outcome, "selected")["metrics"]
    for part in (
        "pipeline_tag: text-classification",
        "`a2c`",
        "entailment, not_entailment",
        "* Updates: 6, batch 8",
        f"| accuracy | {metrics['accuracy']:.4f} |",
        "layers 1, 2 of the teacher model",
    ):
        assert part in card


def test_the_card_of_a_student_that_was_stopped_says_so(tiny_setup: Callable[..., Setup]):
    card = {"agent": "a2c", "metrics": {}, "teacher": "t", "updates": 2}
    text = model_card(tiny_setup(), card)
    assert "2 of 6: the run ended early" in text
    assert "not measured" in text


def test_a_narrower_student_is_a_plain_model(run: Runner):
    outcome = run(
        student={"layers": 2, "width": 8, "heads": 2, "feed_forward": 16},
        knowledge={"pool": ["label", "response", "hidden/skip"]},
        agent="static",
        references=["hidden/skip"],
    )
    assert outcome.code == 0, outcome.err
    weights = load_file(outcome.folder / "student" / "model.safetensors")
    own = AutoModelForSequenceClassification.from_pretrained(outcome.folder / "student")
    assert set(weights) <= set(own.state_dict())
    assert max(w.shape[-1] for w in weights.values()) <= 16, "a projection is 16 wide on one side"
    assert own.config.hidden_size == 8
    assert "2 layers, width 8, 2 heads" in outcome.out
    assert "starts from random weights" in outcome.out
    # the projections are part of the start: hidden/skip alone teaches every student layer
    reference = outcome.schedule.vectors("loss", "reference:hidden/skip")[:, 2]
    assert (reference > 0).all()


# ------------------------------------------------------------------------ repeated


def test_a_saved_config_repeats_the_run(job: Callable[[str], Outcome], tmp_path: Path):
    first = job("a2c")
    saved = yaml.safe_load((first.folder / "config.yaml").read_text(encoding="utf-8"))
    assert saved["name"] is None
    again = run_job(tmp_path, saved, name="again")
    assert again.code == 0, again.err
    one, two = (
        load_file(outcome.folder / "student" / "model.safetensors") for outcome in (first, again)
    )
    assert set(one) == set(two)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    pd.testing.assert_frame_equal(first.schedule.frame, again.schedule.frame, check_exact=True)
    for name in ("policy.json", "policy.safetensors"):
        files = [(outcome.folder / "policy" / name).read_bytes() for outcome in (first, again)]
        assert files[0] == files[1]


def test_a_config_without_a_name_makes_its_own_folder(job: Callable[[str], Outcome]):
    config = job("static").folder / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert text.startswith("# All settings of this run.")
    parsed = ksel.run.parse_run(["--config", str(config)])
    assert parsed == config_from_file(config)


def test_another_seed_is_another_run(run: Runner):
    one = run(agent="random_hard", seed=1, name="one")
    two = run(agent="random_hard", seed=2, name="two")
    assert one.lives[0].batches != two.lives[0].batches
    assert one.schedule.actions("final").tolist() != two.schedule.actions("final").tolist()


# ------------------------------------------------------------------------ what one can look at


def tags(folder: Path) -> tuple[set[str], set[str], set[str]]:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    found = events.Tags()
    return set(found["scalars"]), set(found["images"]), set(found["tensors"])


def test_tensorboard_has_every_type(job: Callable[[str], Outcome]):
    outcome = job("a2c")
    pool = outcome.schedule.pool
    types = {f"{group}/{name}" for group in ("schedule", "loss", "grad_norm") for name in pool}
    board = outcome.folder / "tensorboard"
    scalars, images, tensors = tags(board / "final")
    schedule = outcome.schedule.actions("final")
    selected = {f"grad_norm/{name}" for k, name in enumerate(pool) if schedule[:, k].any()}
    assert {tag for tag in types if not tag.startswith("grad_norm/")} | selected <= scalars
    assert {"reward/measured", "student/accuracy", "dev/accuracy"} <= scalars
    assert images == {"schedule/heat_map"}
    assert "custom_scalars__config__" in tensors
    assert "student/accuracy" in tags(board / "reference-finetune")[0]
    assert types <= tags(board / "reference-all")[0]
    search = tags(board / "search")[0]
    assert {"reward/measured", "reward/objective"} <= search
    agent = tags(board / "agent")[0]
    for group in ("rollout/", "train/", "time/"):
        assert any(tag.startswith(group) for tag in agent), group


def test_metrics_on_the_way_are_recorded(job: Callable[[str], Outcome]):
    outcome = job("random_hard")  # a decision every 4 updates: measured at 4 (for 3) and 6
    lines = read_metrics(outcome.folder / "metrics.jsonl")
    for stage in ("final", "reference:finetune"):
        steps = [x["step"] for x in lines if x["stage"] == stage and "student/accuracy" in x]
        assert steps == [4, 6]
    (end,) = [x for x in lines if x["stage"] == "final" and "dev/accuracy" in x]
    assert end["dev/accuracy"] == student_of(outcome, "selected")["metrics"]["accuracy"]
    (teacher,) = [x for x in lines if x["stage"] == "teacher"]
    assert teacher["teacher/accuracy"] == outcome.json("teacher.json")["metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("updates", "count", "marks"),
    [(10, 2, [5, 10]), (6, 4, [2, 3, 4, 6]), (2, 4, [1, 2]), (1, 4, [1]), (9, 0, [])],
)
def test_evaluation_marks(updates: int, count: int, marks: list[int]):
    assert evaluation_marks(updates, count) == marks


def test_students_of_one_shape_have_one_speed(run: Runner, monkeypatch: pytest.MonkeyPatch):
    measured: list[object] = []

    def clock(model: object, *_: object) -> float:
        measured.append(model)
        return float(len(measured))

    monkeypatch.setattr("ksel.job_stages.seconds_per_example", clock)
    outcome = run(agent="static", references=["finetune", "all"])
    assert outcome.json("teacher.json")["ms_per_example"] == 1000.0
    assert [one["ms_per_example"] for one in outcome.summary["students"]] == [2000.0] * 3
    assert len(measured) == 2


def test_no_measurement_on_the_way(run: Runner):
    rows = {"dev_on_the_way": RowsConfig().dev_on_the_way}
    outcome = run(agent="static", evaluations=0, references=[], rows=rows)
    assert outcome.code == 0, outcome.err
    lines = read_metrics(outcome.folder / "metrics.jsonl")
    assert not [line for line in lines if "student/accuracy" in line]
    assert student_of(outcome, "selected")["metrics"]


def test_the_report_is_of_this_run(job: Callable[[str], Outcome]):
    page = (job("a2c").folder / "report.html").read_text(encoding="utf-8")
    assert "complete" in page
    assert page.count("<svg") >= 5


# ------------------------------------------------------------------------ what it prints


def test_the_first_lines_say_what_will_be_done(job: Callable[[str], Outcome]):
    outcome = job("ppo")
    lines = outcome.out.splitlines()
    start = [line.partition(":")[0] for line in lines[:10]]
    assert start == [
        "run",
        "settings",
        "data",
        "teacher",
        "teacher signals",
        "student",
        "pool",
        "budget",
        "search",
        "teacher",
    ]
    run, layers, data, teacher, signals, student, pool, budget, search, measured = lines[:10]
    own = outcome.folder.parent / f"{outcome.folder.name}.yaml"
    assert own.is_file()
    files = f"configs/agents/ppo.yaml, {own}"
    assert layers == f"settings: {files}, the command line, each over the one before"
    assert run.startswith("run: rte, agent ppo (hard masks), seed 0; folder ")
    assert run.endswith(str(outcome.folder))
    assert "176 train, 24 reward (cut from train), 40 dev" in data
    assert teacher.endswith("with its own head")
    assert signals.startswith("teacher signals: kept in memory, ")
    parameters = student_of(outcome, "selected")["parameters"]
    assert f"2 layers, width 16, 4 heads, {parameters:,} parameters" in student
    assert student.endswith("starts from layers 1, 2 of the fine-tuned teacher")
    assert pool == f"pool: {', '.join(outcome.summary['pool'])}"
    assert budget == "budget: 6 updates of 8 rows, a decision every 2"
    assert search == "search: 4 episodes of 2 updates = 1.33 x the budget"
    metrics = outcome.json("teacher.json")["metrics"]
    assert measured.startswith("teacher: 4 layers, width 16, 4 heads, ")
    assert measured.endswith(f"dev accuracy {metrics['accuracy']:.4f}")
    # half of the dev rows have one label, half the other
    clueless = "note: teacher is no better than one constant answer, which has accuracy 0.500"
    assert (clueless in outcome.out) == (metrics["accuracy"] <= 0.51)


def test_an_agent_that_does_not_learn_has_no_search(job: Callable[[str], Outcome]):
    assert "search: none, static does not learn" in job("static").out
    assert "cost of the search: none" in job("static").out


def test_the_last_lines_say_where_things_are(job: Callable[[str], Outcome]):
    outcome = job("a2c")
    folder = outcome.folder
    assert outcome.out.splitlines()[-3:] == [
        f"student: {folder}/student",
        f"report: {folder}/report.html",
        f"curves: tensorboard --logdir {folder}/tensorboard",
    ]


@pytest.mark.parametrize("name", AGENTS)
def test_the_output_fits_in_100_columns(job: Callable[[str], Outcome], name: str):
    outcome = job(name)
    table = outcome.out[outcome.out.index("\nrte, agent ") + 1 :].replace(
        str(outcome.folder), "RUN"
    )
    tables = [line for line in table.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(tables) > 8
    assert max(map(len, table.splitlines()[1:])) <= 100
    for student in outcome.summary["students"]:
        assert any(line.startswith(f"│ {student['name']} ") for line in tables)


def test_a_wide_summary_fits_as_well(job: Callable[[str], Outcome]):
    summary = job("a2c").summary
    metrics = {"accuracy": 0.5, "f1": 0.25, "matthews": -0.125}
    for one in (summary["teacher"], *summary["students"]):
        one.update(metrics=metrics, parameters=334_000_000, updates=120_000, seconds=86_400.0)
    summary["students"][0]["reason"] = "the loss of response is nan"
    summary["agent"] = "random_hard"
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=100))
    table = text.getvalue()
    assert max(map(len, table.splitlines())) <= 100
    assert "│ selected*" in table
    assert "* selected ended early: the loss of response is nan" in table
    for part in ("-0.1250", "334,000,000", "120,000", "86400.0", "…"):
        assert (part in table) is (part != "…"), part


def test_built_in_data_is_said_loudly(run: Runner):
    outcome = run(
        data="builtin",
        agent="static",
        references=[],
        rows={"train": 120, "reward": 16, "dev": 20},
    )
    assert outcome.code == 0, outcome.err
    assert outcome.summary["builtin_data"] is True
    assert "NOTE: this is the generated built-in corpus" in outcome.out
    assert "generated data, NOT a rte score" in outcome.out
    card = (outcome.folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "**not** rte scores" in card
    assert outcome.schedule.meta["builtin_data"] is True


def test_an_episode_that_diverges_is_told(run: Runner):
    outcome = run(
        agent="static",
        static={"mask": ["label"]},
        references=["response"],
        optim={"max_updates": 6, "learning_rate": 1e30, "warmup": 0.0},
    )
    assert outcome.code == 0, outcome.err
    selected = student_of(outcome, "selected")
    assert 1 <= selected["updates"] < 6
    assert "label" in selected["reason"]
    assert f"ended after {selected['updates']} updates: {selected['reason']}" in outcome.out
    assert f"* selected ended early: {selected['reason']}" in outcome.out
    card = (outcome.folder / "student" / "README.md").read_text(encoding="utf-8")
    assert f"{selected['updates']} of 6: the run ended early" in card


# ------------------------------------------------------------------------ tasks and sources


def write_task(folder: Path, name: str, rows: dict[str, int], make: Callable[[int], dict]) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    for split, count in rows.items():
        pd.DataFrame([make(i) for i in range(count)]).to_parquet(place / f"{split}.parquet")
    return folder


def sentence(i: int) -> str:
    return f"the {tiny.COLOURS[i % 6]} {tiny.THINGS[i % 8]} was in the {tiny.PLACES[i % 5]}"


def test_a_regression_task(run: Runner, tmp_path: Path):
    data = write_task(
        tmp_path / "data",
        "stsb",
        {"train": 120, "dev": 30},
        lambda i: {
            "sentence1": sentence(i),
            "sentence2": sentence(i * 7),
            "label": float(i % 11) / 2,
        },
    )
    teacher = tiny.write_teacher(tmp_path / "scorer", task="stsb")
    outcome = run(task="stsb", data=str(data), teacher=str(teacher))
    assert outcome.code == 0, outcome.err
    metrics = evaluated(outcome, get_task("stsb"), data / "stsb" / "dev.parquet")
    assert student_of(outcome, "selected")["metrics"] == pytest.approx(metrics, abs=1e-3)
    assert set(metrics) == {"pearson", "spearman"}
    assert outcome.summary["headline"] == "pearson"
    assert f"dev pearson {metrics['pearson']:.3f}"[:-1] in outcome.out


def test_a_task_with_two_dev_files(run: Runner, tmp_path: Path):
    data = write_task(
        tmp_path / "data",
        "mnli",
        {"train": 120, "dev_matched": 30, "dev_mismatched": 24},
        lambda i: {"premise": sentence(i), "hypothesis": sentence(i * 7), "label": i % 3},
    )
    teacher = tiny.write_teacher(tmp_path / "three", task="mnli")
    outcome = run(task="mnli", data=str(data), teacher=str(teacher))
    assert outcome.code == 0, outcome.err
    task, metrics = get_task("mnli"), student_of(outcome, "selected")["metrics"]
    for split, name in (("dev_matched", "accuracy"), ("dev_mismatched", "accuracy_mismatched")):
        found = evaluated(outcome, task, data / "mnli" / f"{split}.parquet")
        assert metrics[name] == pytest.approx(found["accuracy"])
    assert "30 dev_matched, 24 dev_mismatched" in outcome.out


def test_a_task_of_ones_own(run: Runner, tmp_path: Path):
    folder = tmp_path / "own"
    folder.mkdir()
    for split, count in (("train", 90), ("dev", 30)):
        rows = [{"body": sentence(i), "kind": ["no", "yes"][i % 2]} for i in range(count)]
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    custom = {
        "text": "body",
        "label": "kind",
        "labels": ["no", "yes"],
        "metrics": ["matthews", "f1"],
    }
    outcome = run(task="custom", data=str(folder), custom=custom, teacher="tiny", **FAST_TEACHER)
    assert outcome.code == 0, outcome.err
    task = custom_task(CustomTaskConfig(**custom))
    metrics = evaluated(outcome, task, folder / "dev.csv")
    assert student_of(outcome, "selected")["metrics"] == pytest.approx(metrics)
    assert outcome.json("teacher.json")["head"] == "fine-tuned by ksel"
    classify = pipeline("text-classification", model=str(outcome.folder / "student"))
    assert classify("the red box was in the attic")[0]["label"] in ("no", "yes")


FAST_TEACHER = {"fine_tune": {"max_updates": 4, "batch_size": 8}, "agent": "static"}


def test_teacher_signals_live(run: Runner):
    outcome = run(signals={"source": "live"}, agent="static")
    assert outcome.code == 0, outcome.err
    assert outcome.summary["teacher_signals"] == "live"
    cached = run(agent="static", name="cached")
    assert cached.summary["teacher_signals"] == "cached"
    one, two = (
        load_file(one.folder / "student" / "model.safetensors") for one in (outcome, cached)
    )
    assert all(np.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_teacher_signals_on_disk_are_reused(run: Runner):
    first = run(signals={"source": "disk"}, agent="static", references=[])
    assert first.code == 0, first.err
    assert " 0% there already" in first.out
    second = run(signals={"source": "disk"}, agent="static", references=[], name="second")
    assert "% there already" in second.out
    assert " 0% there already" not in second.out
    assert first.summary["cost"]["cost/teacher_examples"] > 0
    assert "cost/teacher_examples" not in second.summary["cost"]
    one, two = (load_file(x.folder / "student" / "model.safetensors") for x in (first, second))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("observation", ["dict", "flat"])
def test_cls_states_are_observed(run: Runner, observation: str):
    outcome = run(
        env={"observe": ["training", "student_cls", "teacher_cls"]},
        a2c={"observation": observation},
        student={"layers": 2, "width": 8, "heads": 2, "feed_forward": 16},
        knowledge={"pool": ["label", "response"]},
        references=[],
    )
    assert outcome.code == 0, outcome.err
    pool = outcome.schedule.pool
    parts = {"training": (6 + 5 * 2,), "student_cls": (8,), "teacher_cls": (16,)}
    policy = load_policy(outcome.folder / "policy", pool=pool, observation=parts)
    policy.reset(np.random.default_rng(0))
    zeros = {name: np.zeros(shape, np.float32) for name, shape in parts.items()}
    states = {**zeros, "teacher_cls": np.full(16, 3, np.float32)}
    assert not np.array_equal(policy.act(zeros).probabilities, policy.act(states).probabilities)
