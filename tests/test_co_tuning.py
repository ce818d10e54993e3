"""Several teachers: fine-tuned together under shared layers, or each for itself."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import readers
import tiny
import torch
from torch import nn
from transformers import PreTrainedModel

from ksel import fine_tuning
from ksel.co_tuning import HEADS, co_fine_tune, share_heads, shared_layers
from ksel.config import FineTuneConfig
from ksel.data import Split, tokenize
from ksel.errors import UsageError
from ksel.fine_tuning import gold_loss, train
from ksel.knowledge.outputs import gold_cross_entropy, squared_error
from ksel.models import FAMILIES, load_classifier, load_tokenizer, weights_fingerprint
from ksel.optim import RATE
from ksel.rows import Rows
from ksel.sources import read_folder
from ksel.tasks import Task, get_task
from ksel.teachers import (
    Located,
    Teacher,
    locate_teachers,
    open_teacher,
    open_teachers,
    same_tokens,
)
from ksel.types import Batch, Signals

RTE, STSB, SQUAD = (get_task(name) for name in ("rte", "stsb", "squad"))
CPU = torch.device("cpu")
QUICK = FineTuneConfig(max_updates=4, batch_size=8, learning_rate=1e-3)
TINY = tuple(tiny.FAMILIES)


def silent(*_: Any) -> None:
    return None


@pytest.fixture(scope="module")
def rows(tiny_data: Path) -> Rows:
    return read_folder(RTE, str(tiny_data))[0].take(np.arange(64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoders of four families; roberta has a tokenizer of its own."""
    root = tmp_path_factory.mktemp("encoders")
    return {
        family: readers.write_encoder(
            root / family,
            family,
            readers.spelling_tokenizer() if family == "roberta" else None,
            seed=number,
        )
        for number, family in enumerate(TINY)
    }


def classifiers(folders: dict[str, Path], families: Sequence[str], task: Task) -> list[Any]:
    return [load_classifier(str(folders[family]), task, seed=3) for family in families]


def splits_for(rows: Rows, folders: dict[str, Path], families: Sequence[str]) -> list[Split]:
    return [tokenize(rows, RTE, load_tokenizer(str(folders[f])), 64) for f in families]


def vector(layers: Sequence[nn.Module]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for layer in layers for p in layer.parameters()])


# --------------------------------------------------------------------------- sharing


def test_every_architecture_has_its_shared_layers() -> None:
    assert HEADS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("task", [RTE, STSB, SQUAD], ids=lambda task: task.name)
def test_pooling_and_prediction_layers_have_the_same_shapes_in_all_families(
    folders: dict[str, Path], family: str, task: Task
) -> None:
    (model,) = classifiers(folders, [family], task)
    layers = shared_layers(model, task)
    prediction = {"rte": 2, "stsb": 1, "squad": 2}[task.name]
    shapes = [(16, 16)] if task is not SQUAD else []
    assert [tuple(layer.weight.shape) for layer in layers] == [*shapes, (prediction, 16)]
    # nothing of the head is left out: the rest is the encoder
    rest = {name.split(".")[0] for name, _ in model.named_parameters()}
    head = {name.split(".")[0] for name, module in model.named_modules() if module in layers}
    assert rest - head <= {model.base_model_prefix}


@pytest.mark.parametrize("task", [RTE, SQUAD], ids=lambda task: task.name)
def test_shared_layers_are_one_and_the_same_tensors(folders: dict[str, Path], task: Task) -> None:
    models = classifiers(folders, TINY, task)
    alone = sum(p.numel() for model in models for p in model.parameters())
    shared = sum(p.numel() for layer in shared_layers(models[0], task) for p in layer.parameters())
    share_heads(models, task)
    together = sum(p.numel() for p in nn.ModuleList(models).parameters())
    assert together == alone - (len(models) - 1) * shared
    for model in models[1:]:
        for own, first in zip(
            shared_layers(model, task), shared_layers(models[0], task), strict=True
        ):
            assert own.weight is first.weight
            assert own.bias is first.bias


def test_the_gradient_of_a_shared_tensor_is_the_sum_over_the_teachers(
    rows: Rows, folders: dict[str, Path]
) -> None:
    families = ("bert", "roberta", "electra")
    models = [model.eval() for model in classifiers(folders, families, RTE)]
    share_heads(models, RTE)
    alone = [copy.deepcopy(model) for model in models]  # equal values, tensors of their own
    splits = splits_for(rows, folders, families)
    for group in (models, alone):
        for model, split in zip(group, splits, strict=True):
            batch = split.batch(np.arange(8))
            gold_loss(model(**batch.model_inputs()).logits, batch, RTE).backward()
    for number in range(2):
        grads = [shared_layers(model, RTE)[number].weight.grad for model in alone]
        assert all(grad.abs().max() > 0 for grad in grads)
        common = shared_layers(models[0], RTE)[number].weight.grad
        torch.testing.assert_close(common, torch.stack(grads).sum(0))
    for own, other in zip(models, alone, strict=True):  # and of the others the teacher's own
        a = own.get_submodule(own.base_model_prefix).embeddings.word_embeddings.weight.grad
        b = other.get_submodule(other.base_model_prefix).embeddings.word_embeddings.weight.grad
        torch.testing.assert_close(a, b)


def test_training_follows_the_sum_of_the_losses_clipped_as_a_whole(
    rows: Rows, folders: dict[str, Path]
) -> None:
    families = ("roberta", "bert")
    scores = torch.linspace(0, 50, len(rows))  # far off, so that the gradient is clipped
    splits = [
        replace(split, labels=scores, regression=True)
        for split in splits_for(rows, folders, families)
    ]
    settings = replace(QUICK, max_updates=3, batch_size=64, warmup=0.0, learning_rate=1e-2)
    models = classifiers(folders, families, STSB)
    losses: list[float] = []
    trained = co_fine_tune(models, splits, STSB, settings, CPU, lambda *a: losses.append(a[2]))

    # the same by hand: one loss, plain AdamW over every tensor once
    reference = [copy.deepcopy(model) for model in models]
    share_heads(reference, STSB)
    parameters = list({id(p): p for model in reference for p in model.parameters()}.values())
    decay = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": d, "weight_decay": w} for d, w in zip(decay, (0.01, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    expected = []
    for update in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (3 - update) / 3
        batches = [split.batch(np.arange(64)) for split in splits]
        loss = sum(
            (model(**batch.model_inputs()).logits[:, 0] - batch.labels).square().mean()
            for model, batch in zip(reference, batches, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        assert nn.utils.clip_grad_norm_(parameters, 1.0) > 1.0
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    for own, other in zip(trained, reference, strict=True):
        torch.testing.assert_close(vector([own]), vector([other]), atol=2e-5, rtol=1e-3)


def test_an_update_goes_down_the_gradient_of_the_sum(
    rows: Rows, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # AdamW does not see the size of a gradient that is not clipped; plain descent does
    monkeypatch.setattr(
        fine_tuning,
        "adamw",
        lambda modules, lr, decay: torch.optim.SGD(
            [{"params": list(modules[0].parameters()), RATE: 1.0}], lr
        ),
    )
    families = ("bert", "electra")
    splits = splits_for(rows, folders, families)
    settings = replace(QUICK, max_updates=1, batch_size=64, warmup=0.0, learning_rate=0.5)
    models = classifiers(folders, families, RTE)
    trained = co_fine_tune(models, splits, RTE, settings, CPU, silent)
    share_heads(models, RTE)
    for model, split in zip(models, splits, strict=True):
        batch = split.batch(np.arange(64))
        nn.functional.cross_entropy(model(**batch.model_inputs()).logits, batch.labels).backward()
    squares = [p.grad.square().sum() for p in nn.ModuleList(models).parameters()]
    assert 1e-3 < torch.stack(squares).sum().sqrt() < 1.0, "not clipped"
    for model, after in zip(models, trained, strict=True):
        for (name, p), q in zip(model.named_parameters(), after.parameters(), strict=True):
            torch.testing.assert_close(q, p - 0.5 * p.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("task", [RTE, STSB, SQUAD], ids=lambda task: task.name)
def test_after_co_tuning_the_shared_layers_are_equal_and_the_rest_is_not(
    rows: Rows, folders: dict[str, Path], task: Task
) -> None:
    if task is SQUAD:
        families: tuple[str, ...] = ("bert", "distilbert", "electra")
        splits = [readers.span_split()] * 3
    else:
        families = ("bert", "roberta", "distilbert", "electra")
        splits = splits_for(rows.take(np.arange(8)), folders, families)
    if task is STSB:
        scores = torch.linspace(0, 2, 8)
        splits = [replace(split, labels=scores, regression=True) for split in splits]
    models = classifiers(folders, families, task)
    before = [weights_fingerprint(model) for model in models]
    encoders = [vector([model.base_model]) for model in models]
    heads = vector(shared_layers(models[0], task))
    losses: list[float] = []
    settings = replace(QUICK, epochs=40, max_updates=40, learning_rate=5e-3)
    trained = co_fine_tune(models, splits, task, settings, CPU, lambda *a: losses.append(a[2]))
    common = [vector(shared_layers(model, task)) for model in trained]
    assert all(torch.equal(common[0], one) for one in common[1:])
    assert not torch.equal(common[0], heads)
    for model, encoder in zip(trained, encoders, strict=True):
        assert not torch.equal(vector([model.base_model]), encoder)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert [weights_fingerprint(model) for model in models] == before
    # complete models of their own: a change to one is none to another
    with torch.no_grad():
        shared_layers(trained[0], task)[-1].weight.add_(1.0)
    assert all(
        torch.equal(vector(shared_layers(m, task)), one)
        for m, one in zip(trained[1:], common[1:], strict=True)
    )


def test_co_tuning_is_seeded_and_leaves_torchs_generator_alone(
    rows: Rows, folders: dict[str, Path]
) -> None:
    families = ("bert", "roberta")
    models = classifiers(folders, families, RTE)
    splits = splits_for(rows, folders, families)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again = (co_fine_tune(models, splits, RTE, QUICK, CPU, silent) for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert [weights_fingerprint(m) for m in first] == [weights_fingerprint(m) for m in again]
    other = co_fine_tune(models, splits, RTE, replace(QUICK, seed=1), CPU, silent)
    assert weights_fingerprint(other[0]) != weights_fingerprint(first[0])


# --------------------------------------------------------------------------- the gold loss


def batch_of(labels: torch.Tensor, mask: list[list[int]]) -> Batch:
    attention = torch.tensor(mask)
    return Batch(torch.arange(len(mask)), attention, attention, None, labels)


def test_gold_losses_by_hand() -> None:
    log2 = torch.tensor(2.0).log()
    logits = torch.tensor([[0.0, 0.0], [log2, 0.0]])
    batch = batch_of(torch.tensor([0, 1]), [[1], [1]])
    # -log(1/2) and -log(1/3)
    assert gold_loss(logits, batch, RTE).item() == pytest.approx(np.log([2, 3]).mean())
    batch = batch_of(torch.tensor([1.0, 3.0]), [[1], [1]])
    assert gold_loss(torch.tensor([[2.0], [5.0]]), batch, STSB).item() == pytest.approx(2.5)


def test_the_gold_loss_of_spans_is_the_mean_of_both_ends_over_real_tokens() -> None:
    logits = torch.zeros(2, 3, 2)
    logits[0, 2] = 9.0  # padding
    logits[1, 0, 1] = float(np.log(2))
    batch = batch_of(torch.tensor([[0, 1], [1, 0]]), [[1, 1, 0], [1, 1, 1]])
    # starts: -log(1/2), -log(1/3); ends: -log(1/2), -log(2/4)
    expected = np.log([2, 3, 2, 2]).mean()
    assert gold_loss(logits, batch, SQUAD).item() == pytest.approx(expected)


@pytest.mark.parametrize("task", [RTE, STSB, SQUAD], ids=lambda task: task.name)
def test_teachers_are_trained_on_the_loss_that_students_have_as_label(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6) < torch.tensor([6, 4, 5, 6])[:, None]).long().tolist()
    shape = {"rte": (4, 2), "stsb": (4, 1), "squad": (4, 6, 2)}[task.name]
    logits = torch.randn(shape, generator=generator)
    labels = {
        "rte": torch.tensor([0, 1, 1, 0]),
        "stsb": torch.tensor([0.5, 1.0, 4.0, 2.0]),
        "squad": torch.tensor([[0, 3], [1, 1], [2, 4], [5, 5]]),
    }[task.name]
    batch, signals = batch_of(labels, mask), Signals(logits=logits)
    each = (
        squared_error(signals, Signals(), batch)
        if task.is_regression
        else gold_cross_entropy(signals, batch, task.is_span)
    )
    torch.testing.assert_close(gold_loss(logits, batch, task), each.mean())


# --------------------------------------------------------------------------- opened and stored


@dataclass
class Opener:
    """Opens teachers as the main job does, and notes what is said and how often it trains."""

    rows: Rows
    store: Path
    said: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __call__(
        self,
        *folders: Path,
        settings: FineTuneConfig = QUICK,
        task: Task = RTE,
        change: Callable[[list[Split]], list[Split]] = lambda splits: splits,
    ) -> list[Teacher]:
        self.said, self.losses = [], []
        located = locate_teachers([str(folder) for folder in folders], self.said.append)
        tokenizers = [load_tokenizer(str(folder)) for folder in folders]
        splits = change([tokenize(self.rows, RTE, t, 64) for t in tokenizers])
        return open_teachers(
            located,
            task,
            tokenizers,
            splits,
            settings,
            self.store,
            CPU,
            self.said.append,
            self.note,
        )

    def note(self, update: int, updates: int, loss: float) -> None:
        self.losses.append(loss)

    def alone(self, folder: Path, settings: FineTuneConfig = QUICK) -> Teacher:
        """As one teacher of ``--teacher``."""
        self.said, self.losses = [], []
        tokenizer = load_tokenizer(str(folder))
        located = Located(str(folder), str(folder))
        split = tokenize(self.rows, RTE, tokenizer, 64)
        return open_teacher(
            located, RTE, tokenizer, split, settings, self.store, CPU, self.said.append, self.note
        )

    @property
    def stored(self) -> list[Path]:
        return sorted((self.store / "teachers").glob("*"))

    def heard(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.said)


@pytest.fixture
def opener(rows: Rows, tmp_path: Path) -> Opener:
    return Opener(rows, tmp_path / "store")


def prints(teachers: Sequence[Teacher]) -> list[str]:
    return [weights_fingerprint(teacher.model) for teacher in teachers]


def test_what_is_loaded_from_the_store_is_exactly_what_was_trained(
    opener: Opener, folders: dict[str, Path]
) -> None:
    pair = folders["bert"], folders["roberta"]
    first = opener(*pair)
    assert len(opener.losses) == 4
    assert opener.heard("fine-tuning", str(pair[0]), str(pair[1]), "together on rte (64 rows)")
    assert len(opener.stored) == 1
    second = opener(*pair)
    assert opener.losses == []
    assert opener.heard("together on rte, from the store")
    assert prints(second) == prints(first)
    assert len(set(prints(first))) == 2
    for teacher, folder in zip(second, pair, strict=True):
        assert torch.equal(
            vector(shared_layers(teacher.model, RTE)), vector(shared_layers(first[0].model, RTE))
        )
        assert not teacher.model.training
        assert not any(p.requires_grad for p in teacher.model.parameters())
        assert teacher.pretrained is not None
        assert weights_fingerprint(teacher.pretrained) == weights_fingerprint(
            load_classifier(str(folder), RTE)
        )
        assert teacher.record["name"] == str(folder)
        assert teacher.record["head"] == "fine-tuned by ksel, together"
        assert teacher.record["together"] == [str(one) for one in pair]
        assert teacher.record["fine_tune"]["learning_rate"] == 1e-3
    assert json.dumps(first[0].record)
    # each stored part is itself a ready teacher, with its own tokenizer
    for number, teacher in enumerate(first, 1):
        part = opener.stored[0] / str(number)
        assert weights_fingerprint(opener.alone(part).model) == weights_fingerprint(teacher.model)
        assert opener.losses == []
    assert not same_tokens(*(load_tokenizer(str(opener.stored[0] / n)) for n in "12"))


def test_the_teachers_are_good_ones_that_read_their_own_tokens(
    opener: Opener, folders: dict[str, Path]
) -> None:
    settings = replace(QUICK, epochs=60, max_updates=None, batch_size=16, learning_rate=1e-2)
    pair = folders["bert"], folders["roberta"]
    opener.rows = opener.rows.take(np.arange(32))
    teachers = opener(*pair, settings=settings)
    assert opener.losses[-1] < 0.4 < opener.losses[0] / 2
    for teacher, folder in zip(teachers, pair, strict=True):
        split = tokenize(opener.rows, RTE, load_tokenizer(str(folder)), 64)
        batch = split.batch(np.arange(32))
        with torch.no_grad():
            found = teacher.model(**batch.model_inputs()).logits.argmax(-1)
        assert (found == batch.labels).float().mean() > 0.8


def change_token(splits: list[Split]) -> list[Split]:
    rows = [row.copy() for row in splits[1].input_ids]
    rows[3][1] += 1
    return [splits[0], replace(splits[1], input_ids=rows)]


def test_all_that_decides_any_of_them_decides_their_place(
    opener: Opener, folders: dict[str, Path], tmp_path: Path
) -> None:
    bert, roberta, electra = (folders[name] for name in ("bert", "roberta", "electra"))
    opener(bert, roberta)
    for number, (group, changes) in enumerate(
        [
            ((roberta, bert), {}),
            ((bert, electra), {}),
            ((bert, roberta, electra), {}),
            ((bert, roberta), {"settings": replace(QUICK, weight_decay=0.1)}),
            ((bert, roberta), {"change": change_token}),
        ],
        2,
    ):
        opener(*group, **changes)
        assert len(opener.losses) == 4
        assert len(opener.stored) == number
    moved = Path(shutil.copytree(roberta, tmp_path / "moved"))
    opener(bert, moved)
    assert opener.losses == []  # a folder's name does not matter


def test_each_for_itself_is_what_a_single_teacher_is(
    opener: Opener, folders: dict[str, Path]
) -> None:
    pair = folders["bert"], folders["roberta"]
    alone = [opener.alone(folder) for folder in pair]
    apart = opener(*pair, settings=replace(QUICK, together=False))
    assert opener.losses == []
    assert prints(apart) == prints(alone)
    assert opener.heard("teacher 1:", "from the store")
    assert opener.heard("teacher 2:", "from the store")
    assert not opener.heard("without effect")
    assert [teacher.record["head"] for teacher in apart] == ["fine-tuned by ksel"] * 2
    assert not torch.equal(*(vector(shared_layers(t.model, RTE)) for t in apart))
    together = opener(*pair)
    assert len(opener.losses) == 4
    assert prints(together)[0] != prints(alone)[0]


def test_one_of_several_is_opened_as_ever(opener: Opener, folders: dict[str, Path]) -> None:
    (teacher,) = opener(folders["bert"])
    assert opener.heard("teacher: fine-tuning")
    assert prints([teacher]) == prints([opener.alone(folders["bert"])])
    assert opener.losses == []
    opener.alone(folders["bert"], replace(QUICK, together=False))
    assert opener.losses == []
    assert opener.heard("trained alone", "without effect: --fine_tune.together")


def test_teachers_with_a_head_keep_it_and_the_others_are_trained_together(
    opener: Opener, folders: dict[str, Path], tiny_teacher: Path
) -> None:
    mixed = folders["bert"], tiny_teacher, folders["roberta"]
    teachers = opener(*mixed)
    assert len(opener.losses) == 4
    assert opener.heard("teacher 2:", "with its own head")
    assert opener.heard("fine-tuning", str(mixed[0]), str(mixed[2]), "together")
    assert not opener.heard("together", str(mixed[1]))
    ready = load_classifier(str(tiny_teacher), RTE, own_head=True)
    assert weights_fingerprint(teachers[1].model) == weights_fingerprint(ready)
    assert teachers[1].record["head"] == "its own"
    assert prints([teachers[0], teachers[2]]) == prints(opener(mixed[0], mixed[2]))
    assert opener.losses == []


def test_a_single_one_without_a_head_is_trained_alone(
    opener: Opener, folders: dict[str, Path], tiny_teacher: Path
) -> None:
    alone = opener.alone(folders["bert"])
    teachers = opener(tiny_teacher, folders["bert"])
    assert opener.losses == []
    assert prints(teachers)[1] == prints([alone])[0]
    assert not opener.heard("--fine_tune.together")
    opener(tiny_teacher, folders["bert"], settings=replace(QUICK, together=False))
    (line,) = [line for line in opener.said if "--fine_tune.together" in line]
    assert line == (
        "teacher: fewer than two of them lack a head, so without effect: --fine_tune.together"
    )


@pytest.mark.parametrize("part", ["1/model.safetensors", "2/config.json", "2/tokenizer.json"])
def test_a_damaged_group_is_set_aside_and_made_again(
    opener: Opener, folders: dict[str, Path], part: str
) -> None:
    pair = folders["bert"], folders["roberta"]
    first = opener(*pair)
    (folder,) = opener.stored
    data = bytearray((folder / part).read_bytes())
    data[-3] ^= 1
    (folder / part).write_bytes(bytes(data))
    again = opener(*pair)
    assert len(opener.losses) == 4
    assert opener.heard("damaged", folder.name)
    assert prints(again) == prints(first)
    assert [path.name for path in opener.stored] == [folder.name, f"{folder.name}.damaged"]


# --------------------------------------------------------------------------- refusals


def test_teachers_of_different_widths_are_refused_before_anything_is_loaded(
    opener: Opener, folders: dict[str, Path], tmp_path: Path
) -> None:
    wide = readers.write_encoder(tmp_path / "wide", width=32)
    (wide / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"--teachers: .*one width.*has 16.*has 32") as error:
        opener(folders["bert"], wide)
    assert "--fine_tune.together false" in str(error.value)
    wide = readers.write_encoder(tmp_path / "wide", width=32)
    assert len(opener(folders["bert"], wide, settings=replace(QUICK, together=False))) == 2
    assert opener.stored != []


def test_tiny_is_trained_alone_or_not_at_all(opener: Opener, folders: dict[str, Path]) -> None:
    located = locate_teachers(["tiny", str(folders["bert"])], silent)
    tokenizers = [readers.word_tokenizer(), load_tokenizer(str(folders["bert"]))]
    splits = [tokenize(opener.rows, RTE, t, 64) for t in tokenizers]

    def opened(settings: FineTuneConfig) -> list[Teacher]:
        parts = (located, RTE, tokenizers, splits, settings, opener.store, CPU)
        return open_teachers(*parts, silent, opener.note)

    with pytest.raises(UsageError, match=r"--teachers: tiny .*--fine_tune\.together false"):
        opened(QUICK)
    assert opener.losses == []
    teachers = opened(replace(QUICK, max_updates=2, together=False))
    assert [t.model.config.hidden_size for t in teachers] == [128, 16]
    assert len(opener.losses) == 4


def test_spans_that_fall_into_other_windows_are_refused(
    opener: Opener, folders: dict[str, Path]
) -> None:
    pair = folders["bert"], folders["roberta"]
    with pytest.raises(UsageError, match=r"--teachers: .*windows.*--fine_tune\.together false"):
        opener(*pair, task=SQUAD, change=lambda _: [readers.span_split(), readers.span_split(20)])
    teachers = opener(*pair, task=SQUAD, change=lambda _: [readers.span_split()] * 2)
    assert [type(t.model).__name__ for t in teachers] == [
        "BertForQuestionAnswering",
        "RobertaForQuestionAnswering",
    ]
    assert torch.equal(teachers[0].model.qa_outputs.weight, teachers[1].model.qa_outputs.weight)


def test_a_head_of_another_kind_is_replaced_aloud(
    opener: Opener, folders: dict[str, Path], tiny_teacher: Path
) -> None:
    teachers = opener(
        tiny_teacher, folders["bert"], task=SQUAD, change=lambda _: [readers.span_split()] * 2
    )
    assert opener.heard(str(tiny_teacher), "gets a new head", "one answer per text")
    assert len(opener.losses) == 4
    assert torch.equal(teachers[0].model.qa_outputs.weight, teachers[1].model.qa_outputs.weight)


def test_the_same_teacher_twice_is_refused(folders: dict[str, Path]) -> None:
    bert = folders["bert"]
    roundabout = f"{bert.parent}/../{bert.parent.name}/bert"
    for names in ([str(bert), str(bert)], [str(bert), roundabout], ["tiny", "tiny"]):
        with pytest.raises(UsageError, match=r"--teachers: .* are the same teacher") as error:
            locate_teachers([str(folders["electra"]), *names], silent)
        assert names[1] in str(error.value)


def test_errors_say_which_teacher_they_are_about(
    opener: Opener, folders: dict[str, Path], tmp_path: Path
) -> None:
    other = tiny.write_teacher(tmp_path / "other", task="mnli")
    with pytest.raises(UsageError, match=rf"--teachers {other}.* has 3 labels"):
        opener(folders["bert"], other)
    assert opener.losses == []  # heads are checked before anything is trained
    with pytest.raises(UsageError, match=r"--teachers no/such: 'no/such' is no folder"):
        locate_teachers([str(folders["bert"]), "no/such"], silent)
    with pytest.raises(UsageError, match=r"--teacher: 'no/such' is no folder"):
        locate_teachers(["no/such"], silent)


def test_a_loss_that_is_not_finite_is_refused_and_nothing_is_stored(
    opener: Opener, folders: dict[str, Path]
) -> None:
    settings = replace(QUICK, learning_rate=1e38, warmup=0.0, epochs=9, max_updates=20)
    with pytest.raises(UsageError, match=r"--fine_tune\.learning_rate 1e\+38"):
        opener(folders["bert"], folders["roberta"], settings=settings)
    assert opener.stored == []


def test_models_that_share_nothing_are_trained_as_if_alone_but_for_the_clipping(
    rows: Rows, folders: dict[str, Path]
) -> None:
    settings = replace(QUICK, max_updates=2, learning_rate=1e-6, warmup=0.0)
    (split,) = splits_for(rows, folders, ["bert"])
    pair: list[PreTrainedModel] = classifiers(folders, ["bert", "bert"], RTE)
    totals: list[float] = []
    train(pair, [split, split], RTE, settings, CPU, lambda *a: totals.append(a[2]))
    assert weights_fingerprint(pair[0]) == weights_fingerprint(pair[1])
    (alone,) = classifiers(folders, ["bert"], RTE)
    losses: list[float] = []
    train([alone], [split], RTE, settings, CPU, lambda *a: losses.append(a[2]))
    assert totals == pytest.approx([2 * loss for loss in losses], rel=1e-4)


# --------------------------------------------------------------------------- tokens


def test_a_tokenizer_and_its_copy_read_the_same_tokens(folders: dict[str, Path]) -> None:
    one, two = (load_tokenizer(str(folders[name])) for name in ("bert", "electra"))
    assert one is not two
    assert same_tokens(one, one)
    assert same_tokens(one, two)
    assert not same_tokens(one, load_tokenizer(str(folders["roberta"])))


def edited(folder: Path, target: Path, change: Callable[[dict], None]) -> Any:
    shutil.copytree(folder, target)
    values = json.loads((target / "tokenizer.json").read_text())
    change(values)
    (target / "tokenizer.json").write_text(json.dumps(values))
    return load_tokenizer(str(target))


def keep_case(values: dict) -> None:
    values["normalizer"]["lowercase"] = False


def other_special_tokens(values: dict) -> None:
    values["post_processor"]["single"][0]["SpecialToken"]["id"] = "[SEP]"


def no_second_segment(values: dict) -> None:
    for part in values["post_processor"]["pair"]:
        next(iter(part.values()))["type_id"] = 0


@pytest.mark.parametrize("change", [keep_case, other_special_tokens, no_second_segment])
def test_one_vocabulary_is_not_enough(
    folders: dict[str, Path], tmp_path: Path, change: Callable[[dict], None]
) -> None:
    one = load_tokenizer(str(folders["bert"]))
    other = edited(folders["bert"], tmp_path / "edited", change)
    assert other.get_vocab() == one.get_vocab()
    assert not same_tokens(one, other)
    assert same_tokens(other, edited(folders["bert"], tmp_path / "again", change))


@pytest.mark.parametrize("setting", ["truncation_side", "padding token", "one more word"])
def test_cutting_padding_and_vocabulary_count_too(folders: dict[str, Path], setting: str) -> None:
    one, two = (load_tokenizer(str(folders["bert"])) for _ in range(2))
    if setting == "truncation_side":
        two.truncation_side = "left"
    elif setting == "padding token":
        two.pad_token = "[UNK]"
    else:
        two.add_tokens(["zebra"])
    assert not same_tokens(one, two)
