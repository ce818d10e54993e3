"""Models that answer questions: their heads, their signals, and what becomes of other heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from ksel.errors import UsageError
from ksel.heads import check_head, has_head, other_head, renew_head, reorder_head, student_order
from ksel.models import (
    Tap,
    family_of,
    label_settings,
    load_classifier,
    load_config,
    model_class,
    model_logits,
    new_model,
    own_generator,
    weights_fingerprint,
)
from ksel.tasks import get_task
from ksel.types import Batch, Needs

SQUAD, RTE, STSB = get_task("squad"), get_task("rte"), get_task("stsb")
FAMILIES = tuple(tiny.FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family with a head for spans."""
    root = tmp_path_factory.mktemp("spans")
    return {name: tiny.write_teacher(root / name, name, "squad") for name in FAMILIES}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family with a head for classes."""
    root = tmp_path_factory.mktemp("classes")
    return {name: tiny.write_teacher(root / name, name, "rte") for name in FAMILIES}


def make_batch() -> Batch:
    mask = np.arange(7)[None] < np.array([7, 3, 5])[:, None]
    ids = np.where(mask, np.random.default_rng(0).integers(5, 40, mask.shape), 0)
    return Batch(
        torch.arange(3),
        torch.from_numpy(ids),
        torch.from_numpy(mask.astype(np.int64)),
        None,
        torch.zeros(3, 2, dtype=torch.int64),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_span_model_gives_a_start_and_an_end_for_each_token(
    folders: dict[str, Path], family: str
) -> None:
    model = load_classifier(str(folders[family]), SQUAD, own_head=True).eval()
    plain = AutoModelForQuestionAnswering.from_pretrained(folders[family]).eval()
    batch = make_batch()
    with torch.no_grad():
        signals = Tap(model)(batch, Needs(logits=True, hidden=frozenset([0, 4])))
        output = plain(**batch.model_inputs(), output_hidden_states=True)
    assert signals.logits is not None
    assert signals.logits.shape == (3, 7, 2)
    assert signals.logits.dtype == torch.float32
    assert torch.equal(signals.logits[..., 0], output.start_logits)
    assert torch.equal(signals.logits[..., 1], output.end_logits)
    assert torch.equal(signals.logits, model_logits(output))
    assert torch.equal(signals.hidden[4], output.hidden_states[4])
    assert not torch.equal(signals.logits[..., 0], signals.logits[..., 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_reaches_head_and_embeddings(folders: dict[str, Path], family: str) -> None:
    model = load_classifier(str(folders[family]), SQUAD)
    logits = Tap(model)(make_batch(), Needs(logits=True)).logits
    assert logits is not None
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_another_kind_is_none(
    folders: dict[str, Path], classifiers: dict[str, Path], family: str
) -> None:
    spans, classes = load_config(str(folders[family])), load_config(str(classifiers[family]))
    assert [has_head(spans, task) for task in (SQUAD, RTE, STSB)] == [True, False, False]
    assert [has_head(classes, task) for task in (SQUAD, RTE, STSB)] == [False, True, True]
    assert other_head(spans, SQUAD) is None
    assert other_head(classes, RTE) is None
    assert "one answer per text, not the start" in (other_head(classes, SQUAD) or "")
    assert "the start and end of a span, not one" in (other_head(spans, RTE) or "")


def test_an_encoder_has_no_head_of_any_kind(classifiers: dict[str, Path], tmp_path: Path) -> None:
    load_classifier(str(classifiers["bert"]), RTE).bert.save_pretrained(tmp_path)
    config = load_config(str(tmp_path))
    assert not has_head(config, SQUAD)
    assert other_head(config, SQUAD) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_lends_its_encoder_and_gets_a_new_head(
    classifiers: dict[str, Path], family: str
) -> None:
    folder = str(classifiers[family])
    state = torch.random.get_rng_state()
    first, same, other = (load_classifier(folder, SQUAD, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    heads = [model.qa_outputs.weight for model in (first, same, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    source = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    prefix = f"{first.base_model_prefix}."
    for name, tensor in first.state_dict().items():
        assert not name.startswith(prefix) or torch.equal(tensor, source[name])
    with pytest.raises(UsageError, match=r"do not fit its config\.json"):
        load_classifier(folder, SQUAD, own_head=True)


def test_a_span_model_lends_its_encoder_to_a_classifier(folders: dict[str, Path]) -> None:
    model = load_classifier(str(folders["bert"]), RTE)
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert model(**make_batch().model_inputs()).logits.shape == (3, 2)


def test_outputs_are_named_start_and_end(folders: dict[str, Path]) -> None:
    config = load_classifier(str(folders["bert"]), SQUAD).config
    assert config.id2label == {0: "start", 1: "end"}
    assert label_settings(SQUAD)["num_labels"] == SQUAD.num_outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_new_models_are_of_the_tasks_kind(folders: dict[str, Path], family: str) -> None:
    config = load_config(str(folders[family]))
    assert model_class(SQUAD) is AutoModelForQuestionAnswering
    assert model_class(STSB) is AutoModelForSequenceClassification
    with own_generator(3):
        first = new_model(config, SQUAD)
    with own_generator(3):
        again = new_model(config, SQUAD)
    assert type(first).__name__.endswith("ForQuestionAnswering")
    assert weights_fingerprint(first) == weights_fingerprint(again)


def test_dropout_before_the_head_follows_the_settings(folders: dict[str, Path]) -> None:
    config = load_config(str(folders["distilbert"]))
    changes = dict.fromkeys(family_of(config).dropouts, 0.0)
    model = load_classifier(str(folders["distilbert"]), SQUAD, changes=changes).train()
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.0}


def test_a_ready_head_is_taken_as_it_is(folders: dict[str, Path]) -> None:
    said: list[str] = []
    config = load_config(str(folders["bert"]))
    order = check_head(config, SQUAD, said.append)
    assert (order, said) == ([0, 1], [])
    assert student_order(config, SQUAD) == [0, 1]
    model = load_classifier(str(folders["bert"]), SQUAD, own_head=True)
    before = weights_fingerprint(model)
    reorder_head(model, order, SQUAD)
    assert weights_fingerprint(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_renewing_a_head_leaves_the_encoder(folders: dict[str, Path], family: str) -> None:
    model = load_classifier(str(folders[family]), SQUAD)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    renew_head(model, seed=5)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"qa_outputs.weight"}
