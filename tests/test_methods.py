"""Published methods: each file gives exactly its pool, matching, stages and weights, and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from agents.make import check_settings, get_agent
from ksel.config import FineTuneConfig, RunConfig
from ksel.data import tokenize
from ksel.errors import UsageError
from ksel.fine_tuning import fine_tune
from ksel.knowledge import build_pool
from ksel.methods import merged, method_names, read_yaml
from ksel.models import load_classifier, load_tokenizer, weights_fingerprint
from ksel.settings import (
    build_parser,
    config_from_dict,
    config_from_file,
    config_to_yaml,
    layer_names,
    parse_run,
)
from ksel.setup import Setup, prepare
from ksel.sources import read_rows
from ksel.tasks import TASKS
from ksel.types import Shape, TeacherView

UPDATES = 80
ROOT = Path(__file__).resolve().parents[1]
BASE = Shape(12, 768, 12, 3072)
RELATIONS = ["query_relation/last_1", "key_relation/last_1", "value_relation/last_1"]
KS = ["label", "response", "hidden/skip", "fsp/skip"]
MLKD = (
    ["token_similarity", "attention_output_relation/skip", "hidden/skip"],
    ["sample_similarity", "sample_contrastive", "response"],
)
MLKD_SPAN = (MLKD[0], ["sample_similarity", "response"])
TINYBERT = (["embedding", "attention/skip", "hidden/skip"], ["response"])
TINYBERT_SHARES = [0.75, 0.25]

# name -> agent, pool, weights, stages (pool, share)
METHODS: dict[str, tuple[str, list[str], dict[str, float], list[tuple[list[str], float]]]] = {
    "finetune": ("static", ["label"], {}, []),
    "kd": ("static", ["label", "response"], {"label": 0.5, "response": 0.5}, []),
    "pkd_skip": (
        "static",
        ["label", "response", "cls_hidden/skip"],
        {"label": 0.5, "response": 0.5, "cls_hidden/skip": 100.0},
        [],
    ),
    "pkd_last": (
        "static",
        ["label", "response", "cls_hidden/last"],
        {"label": 0.5, "response": 0.5, "cls_hidden/last": 100.0},
        [],
    ),
    "mlkd_bert": ("static", [*MLKD[0], *MLKD[1]], {}, [(MLKD[0], 0.5), (MLKD[1], 0.5)]),
    "mlkd_bert_span": (
        "static",
        [*MLKD_SPAN[0], *MLKD_SPAN[1]],
        {},
        [(MLKD_SPAN[0], 0.5), (MLKD_SPAN[1], 0.5)],
    ),
    "mt_bert": (
        "static",
        [
            "label",
            "hidden/skip",
            "hidden/skip@2",
            "hidden/skip@3",
            "response",
            "response@2",
            "response@3",
        ],
        {},
        [],
    ),
    "mt_bert_cls": (
        "static",
        [
            "label",
            "cls_hidden/skip",
            "cls_hidden/skip@2",
            "cls_hidden/skip@3",
            "response",
            "response@2",
            "response@3",
        ],
        {},
        [],
    ),
    "ks_hard": ("ddpg", KS, {}, []),
    "ks_soft": ("ddpg", KS, {}, []),
    "random_hard": ("random_hard", KS, {}, []),
    "random_soft": ("random_soft", KS, {}, []),
    "dynamic_kd": ("dynamic", ["label", "response", "hidden/skip"], {}, []),
    "distilbert": (
        "static",
        ["label", "response", "cosine/last_1"],
        {"label": 2.0, "response": 5.0, "cosine/last_1": 1.0},
        [],
    ),
    "tinybert": (
        "static",
        [*TINYBERT[0], *TINYBERT[1]],
        {},
        [(TINYBERT[0], 0.75), (TINYBERT[1], 0.25)],
    ),
    "minilm": (
        "static",
        ["label", "attention/last_1", "value_relation/last_1"],
        {},
        [(["attention/last_1", "value_relation/last_1"], 0.5), (["label"], 0.5)],
    ),
    "minilmv2": ("static", ["label", *RELATIONS], {}, [(RELATIONS, 0.5), (["label"], 0.5)]),
    "annealing_kd": ("static", ["logits", "label"], {}, [(["logits"], 0.7), (["label"], 0.3)]),
    **{
        f"revisited/{name}": ("static", ["label", "response", *specs], {}, [])
        for name, specs in {
            "attention_mse": ["attention/skip"],
            "attention_mse_sum": ["attention_sum/skip"],
            "attention_ce": ["attention/skip"],
            "attention_ce_mean": ["attention_mean/skip"],
            "hidden_mse": ["embedding", "hidden/skip"],
            "cosine": ["cosine/skip"],
            "pkd": ["cls_hidden/skip"],
            "fsp": ["fsp/skip"],
            "nst": ["nst/skip"],
            "query_relation": ["query_relation/skip"],
            "key_relation": ["key_relation/skip"],
            "value_relation": ["value_relation/skip"],
            "schedules": ["hidden/skip"],
        }.items()
    },
}
KNOWLEDGE: dict[str, dict[str, Any]] = {
    "kd": {"temperature": 10.0},
    "pkd_skip": {"temperature": 10.0, "normalize_cls": True, "cls_reduction": "mean"},
    "pkd_last": {"temperature": 10.0, "normalize_cls": True, "cls_reduction": "mean"},
    "mlkd_bert": {"temperature": 1.0, "projection": "always"},
    "mlkd_bert_span": {"temperature": 1.0, "projection": "always"},
    "mt_bert": {"temperature": 1.0, "projection": "always", "confidence": True},
    "mt_bert_cls": {
        "temperature": 1.0,
        "projection": "always",
        "confidence": True,
        "normalize_cls": False,
        "cls_reduction": "width",
        "cls_last": "keep",
    },
    "distilbert": {"temperature": 2.0},
    "tinybert": {
        "temperature": 1.0,
        "attention_on": "scores",
        "attention_loss": "mse",
        "projection": "always",
    },
    "minilm": {"attention_loss": "kl"},
    "minilmv2": {"relation_heads": 48},
    "annealing_kd": {"logit_annealing": 7},
    "revisited/attention_ce": {"attention_loss": "kl"},
    "revisited/attention_ce_mean": {"attention_loss": "kl"},
    "revisited/attention_mse": {"attention_loss": "mse", "attention_on": "maps"},
    "revisited/schedules": {
        "temperature_schedule": "linear",
        "weight_schedules": {"label": "growth", "response": "decay"},
    },
}


def parsed(name: str, *more: str) -> RunConfig:
    teachers = ["--teachers", "a", "b", "c"] if name.startswith("mt_bert") else []
    return parse_run(["--method", name, "--task", "rte", "--data", "folder", *teachers, *more])


def test_the_table_has_every_method() -> None:
    assert set(METHODS) == set(method_names())


@pytest.mark.parametrize("name", METHODS)
def test_the_file_gives_exactly_its_pool_weights_and_stages(name: str) -> None:
    config = parsed(name)
    agent, pool, weights, stages = METHODS[name]
    assert config.method == name
    assert config.agent == agent
    assert config.knowledge.pool == pool
    assert config.knowledge.balance == "none"
    assert config.knowledge.weights == weights
    assert [(stage.pool, stage.share) for stage in config.stages] == stages
    for setting, value in KNOWLEDGE.get(name, {}).items():
        assert getattr(config.knowledge, setting) == value, setting
    check_settings(config)


@pytest.mark.parametrize("name", METHODS)
def test_the_path_of_the_file_gives_the_same_as_its_name(name: str) -> None:
    by_name = parsed(name)
    teachers = ["--teachers", "a", "b", "c"] if name.startswith("mt_bert") else []
    path = str(ROOT / "configs" / "methods" / f"{name}.yaml")
    assert parse_run(["--config", path, "--task", "rte", "--data", "folder", *teachers]) == by_name


@pytest.mark.parametrize("name", METHODS)
def test_the_pool_can_be_built_for_bert_base(name: str) -> None:
    config = parsed(name)
    student = Shape(6, 768, 12, 3072)
    views = [TeacherView(BASE)] * (len(config.teachers) or 1)
    pool = build_pool(config.knowledge, task=TASKS["rte"], student=student, teachers=views, seed=0)
    assert list(pool.names) == METHODS[name][1]


@pytest.mark.parametrize(
    ("name", "layers", "teacher", "taught"),
    [
        ("pkd_skip", 6, 12, (2, 4, 6, 8, 10)),
        ("pkd_last", 6, 12, (7, 8, 9, 10, 11)),
        ("pkd_skip", 3, 12, (4, 8)),
        ("pkd_last", 3, 12, (10, 11)),
        ("pkd_skip", 3, 6, (2, 4)),
        ("pkd_last", 3, 6, (4, 5)),
    ],
)
def test_patient_kd_takes_the_published_layers(
    name: str, layers: int, teacher: int, taught: tuple[int, ...]
) -> None:
    config = parsed(name)
    pool = build_pool(
        config.knowledge,
        task=TASKS["rte"],
        student=Shape(layers, 768, 12, 3072),
        teachers=[TeacherView(Shape(teacher, 768, 12, 3072))],
        seed=0,
    )
    assert pool.types[2].pairs == tuple(zip(range(1, layers), taught, strict=True))


def test_mt_bert_on_cls_states_sums_over_the_layers_of_mt_bert() -> None:
    student, views = Shape(6, 768, 12, 3072), [TeacherView(BASE)] * 3
    pools = [
        build_pool(
            parsed(name).knowledge, task=TASKS["rte"], student=student, teachers=views, seed=0
        )
        for name in ("mt_bert", "mt_bert_cls")
    ]
    tokens, cls = ([type.pairs for type in pool if type.pairs] for pool in pools)
    assert cls == tokens == [((1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12))] * 3


@pytest.mark.parametrize("task", ["squad", "stsb"])
def test_mlkd_bert_without_classes_is_mlkd_bert_span(task: str) -> None:
    plain, span = parsed("mlkd_bert", "--task", task), parsed("mlkd_bert_span", "--task", task)
    about: dict[str, Any] = {
        "task": TASKS[task],
        "student": Shape(4, 312, 12, 1200),
        "teachers": [TeacherView(BASE)],
        "seed": 0,
    }
    with pytest.raises(
        UsageError, match=r"out of --knowledge\.pool and of --stages \(MLKD-BERT"
    ) as e:
        build_pool(plain.knowledge, **about)
    assert "sample_similarity" not in str(e.value)  # it is there already
    assert len(build_pool(span.knowledge, **about)) == 5
    plain.knowledge.pool.remove("sample_contrastive")
    plain.stages[1].pool.remove("sample_contrastive")
    assert (plain.knowledge, plain.stages) == (span.knowledge, span.stages)


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_knowledge_selection_is_as_published(form: str) -> None:
    config = parsed(f"ks_{form}")
    assert config.env.observe == ["student_cls", "teacher_cls"]
    assert config.env.actions == form
    assert config.env.reward_scale == "none"
    assert config.env.phase_steps > 1
    assert config.env.exploration > 0


def test_an_agent_can_select_among_a_methods_signals() -> None:
    config = parsed("mlkd_bert", "--agent", "a2c")
    check_settings(config)
    assert get_agent(config.agent).learns
    assert config.knowledge.pool == METHODS["mlkd_bert"][1]
    assert config.a2c.start == RunConfig().a2c.start


def test_one_weight_given_leaves_the_methods_others(tmp_path: Path) -> None:
    alpha = {"label": 0.5, "response": 0.5}
    config = parsed("pkd_skip", "--knowledge.weights", "{cls_hidden: 500}")
    assert config.knowledge.weights == {**alpha, "cls_hidden": 500.0}
    assert parsed("pkd_skip", "--knowledge.weights", "{}").knowledge.weights == {}
    kept = parsed(
        "pkd_skip", "--knowledge.pool", "[label, cls_hidden]", "--knowledge.weights", "{label: 2}"
    )
    assert kept.knowledge.weights == {"label": 2.0}
    saved = tmp_path / "config.yaml"
    saved.write_text(config_to_yaml(config))
    assert parse_run(["--config", str(saved)]) == config
    assert config_from_file(saved) == config


def test_a_dictionary_that_names_a_method_gets_it() -> None:
    config = config_from_dict({"method": "mlkd_bert", "data": "folder", "task": "rte"})
    assert config == parsed("mlkd_bert")
    with pytest.raises(UsageError, match="--method: unknown method 'nonsense'"):
        config_from_dict({"method": "nonsense"})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--knowledge.pool", "[label@*]"], "the gold label needs no teacher"),
        (
            ["--knowledge.weights", "{response@2: 5, response@*: 1}"],
            "'response@2' is named twice",
        ),
        (["--teacher", "a"], "--teacher and --teachers: give one"),
        (["--stages", "[{share: null}]"], "--stages: number 1: share: null is not valid"),
        (["--stages", "[{pol: [label]}]"], "--stages: 'pol' is no setting of a stage"),
    ],
)
def test_mistakes_about_teachers_and_stages_are_explained(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_run(["--data", "d", "--teachers", "a", "b", *argv])
    assert words in str(caught.value)


def test_every_teacher_stands_for_itself_under_a_star() -> None:
    two = parse_run(["--method", "mt_bert", "--data", "d", "--teachers", "a", "b"])
    assert two.knowledge.pool == ["label", "hidden/skip", "hidden/skip@2", "response", "response@2"]
    with pytest.raises(UsageError, match=r"--teachers: 'hidden/skip@\*' stands for several"):
        parse_run(["--method", "mt_bert", "--data", "d"])


def test_the_method_lies_over_quick_and_agent_and_under_the_users_file(tmp_path: Path) -> None:
    layers = layer_names(["--method", "dynamic_kd"])
    assert layers == ["quick.yaml", "agents/dynamic.yaml", "methods/dynamic_kd.yaml"]
    own = tmp_path / "own.yaml"
    own.write_text("method: kd\nknowledge: {temperature: 3.0}\n")
    config = parse_run(["--config", str(own), "--data", "d"])
    assert (config.agent, config.knowledge.temperature) == ("static", 3.0)
    assert config.knowledge.pool == ["label", "response"]


def test_help_and_an_unknown_name_list_the_methods() -> None:
    with pytest.raises(UsageError, match="Did you mean 'pkd_skip'") as caught:
        parse_run(["--method", "pkdskip"])
    text = "".join(build_parser().format_help().split())
    for name in METHODS:
        assert name in str(caught.value)
        assert name in text


@pytest.mark.parametrize("name", METHODS)
def test_a_page_tells_of_every_method(name: str) -> None:
    pages = [page.read_text() for page in (ROOT / "docs" / "methods").glob("*.md")]
    about = [page for page in pages if f"`{name}`" in page or f"`{name.split('/')[0]}/..." in page]
    assert about
    header = (ROOT / "configs" / "methods" / f"{name}.yaml").read_text().split("method:")[0]
    page = next(word for word in header.replace("\n", " ").split() if word.startswith("docs/"))
    assert (ROOT / page.rstrip(".,;")).is_file()


# --------------------------------------------------------------------------- they train


@pytest.fixture(scope="module")
def easy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose label one word gives away."""
    folder = tmp_path_factory.mktemp("easy")
    rng = np.random.default_rng(0)
    for name, count in (("train", 160), ("dev", 20)):
        label = np.arange(count) % 2
        things = [str(rng.choice(tiny.THINGS)) for _ in label]
        pairs = zip(label, things, strict=True)
        first = [f"the {'red' if value else 'blue'} {thing} was there" for value, thing in pairs]
        second = [f"a {thing} stayed in the {rng.choice(tiny.PLACES)}" for thing in things]
        table = {"sentence1": first, "sentence2": second, "label": label, "idx": np.arange(count)}
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def teachers(easy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tiny teachers that know the easy task, so that labels and teachers agree."""
    folders = []
    rows = read_rows(easy_data / "train.parquet", TASKS["rte"], True)
    for seed in range(3):
        folder = tiny.write_teacher(tmp_path_factory.mktemp(f"teacher{seed}"), seed=seed)
        split = tokenize(rows, TASKS["rte"], load_tokenizer(str(folder)), 32)
        model = load_classifier(str(folder), TASKS["rte"])
        for layer in model.bert.encoder.layer:
            # as large as a real teacher's, whose maps and relations are far from uniform
            for part, factor in (("query", 8), ("key", 8), ("value", 12)):
                layer.attention.self.get_submodule(part).weight.data *= factor
        model = fine_tune(
            model,
            split,
            TASKS["rte"],
            FineTuneConfig(epochs=12, learning_rate=3e-3, batch_size=16),
            torch.device("cpu"),
            lambda update, updates, loss: None,
        )
        model.save_pretrained(folder)
        folders.append(folder)
    return folders


def tiny_method(name: str, data: Path, teachers: list[Path], store: Path, **changes: Any) -> Setup:
    values = tiny.settings(data, teachers[0], store)
    del values["knowledge"]
    values = merged(values, read_yaml(ROOT / "configs" / "methods" / f"{name}.yaml"))
    if name.startswith("mt_bert"):
        values["teacher"] = None
        values["teachers"] = [str(folder) for folder in teachers]
    if name == "minilmv2":
        values["knowledge"]["relation_heads"] = 4
    # A start that copies the teacher's embeddings would match them from the first update on.
    values["student"] = {**values["student"], "init": "random"}
    return prepare(config_from_dict(merged(values, changes)))


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_every_selected_loss_and_leaves_the_teacher_alone(
    name: str, easy_data: Path, teachers: list[Path], tmp_path: Path
) -> None:
    # FSP matrices push a model this tiny over at the rate at which the others learn in time.
    rate = 1e-3 if name == "revisited/fsp" else 3e-3
    setup = tiny_method(
        name,
        easy_data,
        teachers,
        tmp_path,
        optim={"max_updates": UPDATES, "learning_rate": rate, "weight_decay": 0.0},
    )
    before = [weights_fingerprint(teacher.model) for teacher in setup.teachers]
    distiller = setup.distiller
    distiller.reset(0, UPDATES)
    everything = setup.train.batch(np.arange(len(setup.train)))
    on = np.ones(len(setup.pool))

    def losses() -> torch.Tensor:
        everything.progress = 1.0 - 1e-6  # where schedules have come to their end
        with torch.no_grad():
            return distiller.losses(everything)

    for end in distiller.ends:
        selected = np.flatnonzero(distiller.allowed)
        if setup.config.knowledge.weight_schedules:
            selected = np.flatnonzero(
                distiller.allowed & (np.array(setup.pool.names) == "hidden/skip")
            )
        first = losses()
        while distiller.cursor < end:
            distiller.update(on)
        last = losses()
        for k in selected:
            assert last[k] < first[k], setup.pool.names[k]
    assert [weights_fingerprint(teacher.model) for teacher in setup.teachers] == before
    assert not any(p.requires_grad for t in setup.teachers for p in t.model.parameters())
