"""A student's shape, start and dropout."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import PreTrainedModel

from ksel.config import StudentConfig
from ksel.errors import UsageError
from ksel.models import family_of, load_classifier, load_tokenizer, shape_of
from ksel.students import StudentPlan, build_student, check_vocabulary, plan_student
from ksel.tasks import get_task
from ksel.teachers import tiny_tokenizer
from ksel.types import Shape

RTE, MNLI, STSB = (get_task(name) for name in ("rte", "mnli", "stsb"))
FAMILIES = tuple(tiny.FAMILIES)
TWELVE = Shape(12, 768, 12, 3072)
TINY = Shape(4, 16, 4, 32)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedModel]:
    root = tmp_path_factory.mktemp("students")
    return {
        family: load_classifier(str(tiny.write_teacher(root / family, family)), RTE)
        for family in FAMILIES
    }


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("pretrained")
    return load_classifier(str(tiny.write_teacher(folder, seed=9)), RTE)


def planned(teacher: Shape = TINY, pretrained: bool = True, **settings: Any) -> StudentPlan:
    return plan_student(StudentConfig(**settings), teacher, has_pretrained=pretrained)


def built(
    teacher: PreTrainedModel,
    pretrained: PreTrainedModel | None = None,
    *,
    task: Any = RTE,
    seed: int = 0,
    said: list[str] | None = None,
    **settings: Any,
) -> PreTrainedModel:
    plan = plan_student(
        StudentConfig(**settings), shape_of(teacher.config), has_pretrained=pretrained is not None
    )
    dropout = settings.get("dropout", 0.0)
    say = ([] if said is None else said).append
    return build_student(plan, teacher, pretrained, task, dropout=dropout, seed=seed, say=say)


def encoder(model: PreTrainedModel) -> nn.Module:
    return getattr(model, model.base_model_prefix)


def layers(model: PreTrainedModel) -> list[nn.Module]:
    return list(encoder(model).get_submodule(family_of(model.config).layers))


def equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --------------------------------------------------------------------------- plan


def test_default_is_half_the_layers_from_the_first_ones_of_the_pretrained_model() -> None:
    plan = planned(TWELVE)
    assert plan.shape == Shape(6, 768, 12, 3072)
    assert (plan.init, plan.source) == ("first", "pretrained")
    assert plan.layer_map == tuple((i, i) for i in range(1, 7))
    assert planned(TWELVE, pretrained=False).source == "teacher"
    assert planned(Shape(1, 16, 4, 32)).shape.layers == 1


def test_starts_of_six_layers_out_of_twelve() -> None:
    skip = planned(TWELVE, init="skip").layer_map
    last = planned(TWELVE, init="last").layer_map
    assert [t for _, t in skip] == [2, 4, 6, 8, 10, 12]
    assert [t for _, t in last] == [7, 8, 9, 10, 11, 12]
    assert [s for s, _ in skip] == [1, 2, 3, 4, 5, 6]
    spread = planned(TWELVE, init="spread").layer_map
    assert [t - 1 for _, t in spread] == [0, 2, 4, 7, 9, 11]  # DistilBERT's


@pytest.mark.parametrize(
    ("pairs", "settings", "layer_map"),
    [
        ("1-1+2-3", {}, ((1, 1), (2, 3))),
        ("2-3+1-1", {"layers": 2}, ((1, 1), (2, 3))),
        ("1-4+2-4+3-2", {}, ((1, 4), (2, 4), (3, 2))),
        ("1-1+2-1+3-2+4-3+5-4", {"layers": 5}, ((1, 1), (2, 1), (3, 2), (4, 3), (5, 4))),
        ("1-2", {}, ((1, 2),)),
    ],
)
def test_a_start_from_pairs_of_layers(
    pairs: str, settings: dict[str, int], layer_map: tuple[tuple[int, int], ...]
) -> None:
    plan = planned(init=pairs, **settings)
    assert plan.layer_map == layer_map
    assert plan.shape == Shape(len(layer_map), 16, 4, 32)
    assert (plan.init, plan.source, plan.is_checkpoint) == (pairs, "pretrained", False)


def test_a_named_shape_sets_all_four_sizes_but_its_heads_are_free() -> None:
    assert planned(TWELVE, shape="4x312", heads=3).shape == Shape(4, 312, 3, 1200)
    plan = planned(TWELVE, shape="4x312")
    assert plan.shape == Shape(4, 312, 12, 1200)
    assert (plan.init, plan.layer_map) == ("random", ())
    plan = planned(TWELVE, shape="6x768", init="spread")
    assert plan.shape == Shape(6, 768, 12, 3072)
    assert [t for _, t in plan.layer_map] == [1, 3, 5, 8, 10, 12]
    assert planned(TWELVE, shape="6x768").init == "first"
    assert planned(Shape(6, 384, 12, 1536), shape="3x384").init == "first"


@pytest.mark.parametrize("change", [{"width": 8}, {"feed_forward": 64}, {"layers": 5}])
def test_auto_is_random_where_teacher_layers_do_not_fit(change: dict[str, int]) -> None:
    plan = planned(**change)
    assert (plan.init, plan.source, plan.layer_map) == ("random", "none", ())


def test_other_heads_still_copy_layers() -> None:
    assert planned(heads=2).init == "first"


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"layers": 0}, r"--student\.layers"),
        ({"width": 0}, r"--student\.width"),
        ({"heads": 0}, r"--student\.heads"),
        ({"heads": -1}, r"--student\.heads"),
        ({"feed_forward": 0}, r"--student\.feed_forward"),
        ({"heads": 3}, r"--student\.heads 3 does not divide the width 16"),
        ({"dropout": 1.0}, r"--student\.dropout"),
        ({"dropout": -0.1}, r"--student\.dropout"),
        ({"init": "skip", "width": 8}, r"--student\.init skip .*width 16.*random"),
        ({"init": "last", "feed_forward": 8}, r"--student\.init last .*feed-forward width 32"),
        ({"init": "spread", "width": 8}, r"--student\.init spread .*width 16.*random"),
        ({"init": "1-1+2-2", "width": 8}, r"--student\.init 1-1\+2-2 .*width 16.*random"),
        ({"init": "1-1+3-2"}, r"--student\.init 1-1\+3-2: .* each student layer once \(1, 2, 3\)"),
        ({"init": "1-1+1-2+2-3"}, r"each student layer once \(1, 2\)"),
        ({"init": "0-0+1-1"}, r"each student layer once \(1\)"),
        ({"init": "1-0"}, r"teacher layers from 1 on"),
        ({"init": "1-1", "layers": 2}, r"each student layer once \(1, 2\)"),
        ({"init": "1-1+2-5"}, r"--student\.init: '1-1\+2-5' names the pair 2-5"),
        ({"init": "1-1+2-2", "layers": 1}, r"--student\.init: .*pair 2-2, but the student has"),
        ({"init": "1-1+2-"}, r"--student\.init: .* malformed layer pairs '1-1\+2-'"),
        ({"init": "1-1+1-1"}, r"--student\.init: .*pair 1-1 twice"),
        ({"init": "sprad"}, r"--student\.init: unknown start 'sprad'\. Did you mean 'spread'"),
        ({"shape": "4x313"}, r"--student\.shape: unknown shape '4x313'.*4x312"),
        (
            {"shape": "4x312", "heads": 6, "layers": 2},
            r"--student\.layers: --student\.shape 4x312 .*--student\.heads 6",
        ),
        ({"shape": "4x312", "heads": 5}, r"--student\.heads 5 does not divide the width 312"),
        ({"shape": "4x312", "width": 312}, r"--student\.width: --student\.shape 4x312 sets all"),
        ({"shape": "4x312", "feed_forward": 8}, r"--student\.feed_forward: --student\.shape"),
        ({"shape": "4x312", "init": "first"}, r"--student\.init first .*the student has 312"),
        ({"shape": "4x312", "init": "some/folder"}, r"--student\.shape: the shape comes from"),
        ({"init": "first", "layers": 5}, r"--student\.layers 5 is more than the teacher's 4"),
        ({"init": "random", "source": "teacher"}, r"--student\.source teacher"),
        ({"width": 8, "source": "pretrained"}, r"--student\.source pretrained"),
        ({"init": "frist"}, r"--student\.init: unknown start 'frist'\. Did you mean 'first'"),
        ({"init": "nobody/nothing"}, r"--student\.init: 'nobody/nothing' is no folder"),
        ({"init": "some/folder", "layers": 2}, r"--student\.layers: the shape comes from"),
        ({"init": "some/folder", "source": "teacher"}, r"--student\.source teacher"),
        ({"init": "some/folder", "dropout": 2.0}, r"--student\.dropout"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_option(settings: dict, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        planned(**settings)


def test_an_unknown_pretrained_checkpoint_is_refused_as_a_source() -> None:
    with pytest.raises(UsageError, match=r"--student\.source pretrained"):
        planned(pretrained=False, source="pretrained")


# --------------------------------------------------------------------------- weights


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("init", "copied"),
    [
        ("first", (0, 1)),
        ("skip", (1, 3)),
        ("last", (2, 3)),
        ("spread", (0, 3)),
        ("1-2+2-3", (1, 2)),
    ],
)
def test_the_right_layers_and_the_embeddings_are_copied(
    teachers: dict[str, PreTrainedModel], family: str, init: str, copied: tuple[int, int]
) -> None:
    teacher = teachers[family]
    student = built(teacher, init=init, source="teacher", layers=2)
    assert len(layers(student)) == 2
    for own, source in enumerate(copied):
        matches = [equal(layers(student)[own], layer) for layer in layers(teacher)]
        assert matches == [i == source for i in range(4)]
    assert equal(encoder(student).embeddings, encoder(teacher).embeddings)
    for part in ("pooler", "embeddings_project"):
        if (origin := getattr(encoder(teacher), part, None)) is not None:
            assert equal(getattr(encoder(student), part), origin)
    # from the fine-tuned teacher, its head comes along
    assert equal(student.classifier, teacher.classifier)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", [2, 1])
def test_with_fewer_heads_the_weights_are_copied_and_the_heads_regrouped(
    teachers: dict[str, PreTrainedModel], family: str, heads: int
) -> None:
    teacher = copy.deepcopy(teachers[family])
    for name, parameter in teacher.named_parameters():
        if re.search(r"query|value|[qv]_lin", name):
            parameter.data *= 100.0  # random weights hardly attend to anything
    same, fewer = (built(teacher, source="teacher", layers=4, heads=h) for h in (4, heads))
    assert shape_of(fewer.config) == Shape(4, 16, heads, 32)
    assert equal(fewer, teacher)
    batch = {"input_ids": torch.arange(5, 17).view(2, 6), "output_hidden_states": True}
    expected, regrouped = teacher.eval()(**batch), fewer.eval()(**batch)
    torch.testing.assert_close(same.eval()(**batch).logits, expected.logits, rtol=0, atol=0)
    # the heads change nothing below the first attention and something in every layer above it
    assert torch.equal(regrouped.hidden_states[0], expected.hidden_states[0])
    for own, others in zip(regrouped.hidden_states[1:], expected.hidden_states[1:], strict=True):
        assert not torch.allclose(own, others, atol=1e-4)


def test_two_student_layers_from_one_teacher_layer_are_two(
    teachers: dict[str, PreTrainedModel],
) -> None:
    student = built(teachers["bert"], init="1-2+2-2+3-4", source="teacher")
    first, second, third = layers(student)
    assert equal(first, second)
    assert equal(first, layers(teachers["bert"])[1])
    assert equal(third, layers(teachers["bert"])[3])
    assert first.output.dense.weight.data_ptr() != second.output.dense.weight.data_ptr()


def test_a_copy_is_not_a_view_of_the_teacher(teachers: dict[str, PreTrainedModel]) -> None:
    teacher = teachers["bert"]
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    student = built(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    student.config.num_hidden_layers = 99
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert teacher.config.num_hidden_layers == 4


def test_from_the_pretrained_model_the_head_is_new(
    teachers: dict[str, PreTrainedModel], pretrained: PreTrainedModel
) -> None:
    teacher = teachers["bert"]
    student = built(teacher, pretrained)
    assert equal(layers(student)[0], layers(pretrained)[0])
    assert not equal(layers(student)[0], layers(teacher)[0])
    assert equal(student.bert.pooler, pretrained.bert.pooler)
    for model in (teacher, pretrained):
        assert not torch.equal(student.classifier.weight, model.classifier.weight)


def test_what_is_not_copied_is_seeded_and_leaves_the_global_generator_alone(
    teachers: dict[str, PreTrainedModel], pretrained: PreTrainedModel
) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    first, again, other = (built(teachers["bert"], pretrained, seed=seed) for seed in (1, 1, 2))
    random, random_again = (built(teachers["bert"], init="random", seed=3) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert equal(first, again)
    assert equal(first.bert, other.bert)
    assert not equal(first.classifier, other.classifier)
    assert equal(random, random_again)
    assert not equal(random.bert.embeddings, teachers["bert"].bert.embeddings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_another_shape(teachers: dict[str, PreTrainedModel], family: str) -> None:
    student = built(teachers[family], layers=3, width=24, heads=2, feed_forward=40)
    assert shape_of(student.config) == Shape(3, 24, 2, 40)
    ids = torch.arange(5, 11)[None]
    output = student(input_ids=ids, output_hidden_states=True)
    assert output.logits.shape == (1, 2)
    assert [s.shape[-1] for s in output.hidden_states] == [24] * 4


@pytest.mark.parametrize(("task", "outputs"), [(MNLI, 3), (STSB, 1)])
def test_the_head_follows_the_task(
    teachers: dict[str, PreTrainedModel], task: Any, outputs: int
) -> None:
    student = built(teachers["bert"], init="random", task=task)
    assert student.num_labels == outputs
    assert student.classifier.out_features == outputs
    if task is MNLI:
        assert student.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
        assert student.config.label2id["contradiction"] == 2


# --------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_reaches_every_module_of_every_family(
    teachers: dict[str, PreTrainedModel], family: str, dropout: float
) -> None:
    student = built(teachers[family], dropout=dropout)
    given = {name: m.p for name, m in student.named_modules() if isinstance(m, nn.Dropout)}
    # fused attention takes its probability from a number, not from a module
    given |= {
        f"{name}.{attribute}": getattr(module, attribute)
        for name, module in student.named_modules()
        for attribute in ("attention_dropout", "dropout_p")
        if isinstance(getattr(module, attribute, None), float)
    }
    assert any("attention" in name for name in given)
    outside = [n for n in given if not n.startswith(f"{student.base_model_prefix}.")]
    assert outside, "the head has a dropout of its own"
    assert set(given.values()) == {dropout}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_training_mode_changes_nothing(
    teachers: dict[str, PreTrainedModel], family: str
) -> None:
    ids = torch.arange(5, 25)[None]
    outputs = {}
    for dropout in (0.0, 0.5):
        student = built(teachers[family], dropout=dropout)
        outputs[dropout] = [student.train(mode)(input_ids=ids).logits for mode in (True, False)]
    assert torch.equal(*outputs[0.0])
    assert not torch.equal(*outputs[0.5])


# --------------------------------------------------------------------------- checkpoint


def test_a_checkpoint_brings_its_shape_weights_and_head(
    teachers: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    saved = built(teachers["bert"], layers=3, width=8, init="random", seed=5)
    saved.save_pretrained(tmp_path)
    student = built(teachers["bert"], init=str(tmp_path), dropout=0.2)
    assert shape_of(student.config) == Shape(3, 8, 4, 32)
    assert equal(student, saved)
    assert {m.p for m in student.modules() if isinstance(m, nn.Dropout)} == {0.2}


def test_a_checkpoints_head_for_other_labels_is_replaced_by_a_seeded_one(
    teachers: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    saved = built(teachers["bert"], init="random", task=MNLI)
    saved.save_pretrained(tmp_path)
    first, again = (built(teachers["bert"], init=str(tmp_path), seed=2) for _ in range(2))
    assert first.classifier.out_features == 2
    assert equal(first, again)
    assert equal(first.bert, saved.bert)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_another_task_with_as_many_labels_is_replaced_by_a_seeded_one(
    teachers: dict[str, PreTrainedModel], tmp_path: Path, family: str
) -> None:
    saved = built(teachers[family], init="random", task=get_task("sst2"))
    saved.save_pretrained(tmp_path)
    said: list[str] = []
    state = torch.get_rng_state()
    first = built(teachers[family], init=str(tmp_path), seed=2, said=said)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(said) == 1
    assert f"the head of {tmp_path} is not one of task rte" in said[0]
    again, other = (built(teachers[family], init=str(tmp_path), seed=seed) for seed in (2, 3))
    assert equal(first, again)
    assert equal(encoder(first), encoder(saved))
    heads = [
        {k: v for k, v in model.state_dict().items() if not k.startswith(model.base_model_prefix)}
        for model in (first, saved, other)
    ]
    weights = [name for name in heads[0] if name.endswith("weight")]
    assert weights
    for name in weights:
        assert not torch.equal(heads[0][name], heads[1][name])
        assert not torch.equal(heads[0][name], heads[2][name])
    assert first.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_a_checkpoints_head_without_label_names_is_kept_aloud(
    teachers: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    saved = built(teachers["bert"])
    saved.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    saved.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    saved.save_pretrained(tmp_path)
    said: list[str] = []
    student = built(teachers["bert"], init=str(tmp_path), said=said)
    assert equal(student, saved)
    assert "order is taken to be entailment, not_entailment" in said[0]
    assert student.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_a_checkpoints_head_for_scores_is_kept(
    teachers: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    saved = built(teachers["bert"], init="random", task=STSB)
    saved.save_pretrained(tmp_path)
    said: list[str] = []
    assert equal(built(teachers["bert"], init=str(tmp_path), task=STSB, said=said), saved)
    assert said == []


def test_a_checkpoints_head_with_swapped_labels_is_put_in_the_tasks_order(
    teachers: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    saved = built(teachers["bert"])
    saved.config.id2label = {0: "not_entailment", 1: "entailment"}
    saved.config.label2id = {"not_entailment": 0, "entailment": 1}
    saved.save_pretrained(tmp_path)
    student = built(teachers["bert"], init=str(tmp_path))
    assert torch.equal(student.classifier.weight, saved.classifier.weight.flip(0))
    assert student.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_a_checkpoint_with_a_vocabulary_of_another_size_is_refused(
    teachers: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    other = built(teachers["bert"], init="random")
    other.resize_token_embeddings(other.config.vocab_size + 7)
    other.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"--student\.init .* vocabulary of"):
        built(teachers["bert"], init=str(tmp_path))


def test_a_checkpoint_with_other_words_is_refused(
    teachers: dict[str, PreTrainedModel], tiny_teacher: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_teacher))
    plan = StudentPlan(TINY, str(tmp_path), "none", ())
    built(teachers["bert"]).save_pretrained(tmp_path)
    check_vocabulary(plan, tokenizer)  # weights alone say nothing of words
    tokenizer.save_pretrained(tmp_path)
    check_vocabulary(plan, tokenizer)
    tiny_tokenizer(["entirely other words", "than those of the teacher"]).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"--student\.init .* another tokenizer"):
        check_vocabulary(plan, tokenizer)
