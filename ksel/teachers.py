"""Teachers: check or train their heads, and say what is known of them before they are loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ksel.co_tuning import ALONE, check_together, co_fine_tune
from ksel.config import FineTuneConfig
from ksel.data import Split
from ksel.errors import UsageError
from ksel.fine_tuning import (
    Advance,
    Say,
    fine_tune,
    resolve_settings,
    say_without_effect,
    training_settings,
)
from ksel.heads import check_head, has_head, other_head, reorder_head
from ksel.locating import Located, locate_teacher, locate_teachers
from ksel.models import (
    check_inputs,
    load_classifier,
    load_config,
    load_tokenizer,
    on_device,
    shape_of,
)
from ksel.store import (
    WHOLE,
    from_store,
    group_key,
    making,
    store_place,
    teacher_key,
    to_store,
)
from ksel.tasks import Task
from ksel.tiny_teacher import tiny_config, tiny_model, tiny_tokenizer
from ksel.types import Shape

__all__ = [
    "Located",
    "Outline",
    "Teacher",
    "locate_teacher",
    "locate_teachers",
    "open_teacher",
    "open_teachers",
    "open_tokenizer",
    "outline_teacher",
    "same_tokens",
    "tiny_tokenizer",
]


def open_tokenizer(located: Located, texts: list[str]) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer; for the tiny teacher one is trained on ``texts``."""
    return tiny_tokenizer(texts) if located.is_tiny else load_tokenizer(located.name, located.asked)


PROBES = (
    "The quick brown fox, aged 3.5 years, doesn't jump over 12,345 lazy dogs!",
    "  TWO  spaces\tand a tab\nand a line; UPPER and lower CaSe: naïve Über-café",
    "e-mail: someone@example.org (see section 4) - “quoted”… 50 % of $7 & more",
    "日本語 русский العربية 😀 antidisestablishmentarianism xqzzy",
    "",
)
"""Texts that tokenizers of different making split differently."""


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """True if two tokenizers have one vocabulary and give the same inputs for the same texts.

    Compared are ids and segments of :data:`PROBES`, alone, in pairs and cut short, with the
    special tokens that come with them.
    """
    return first is second or (
        first.get_vocab() == second.get_vocab()
        and first.pad_token_id == second.pad_token_id
        and _probed(first) == _probed(second)
    )


def _probed(tokenizer: PreTrainedTokenizerBase) -> list[tuple[Any, Any]]:
    texts, others = list(PROBES), list(reversed(PROBES))
    found = [
        tokenizer(texts),
        tokenizer(texts, others),
        tokenizer(texts, others, truncation="longest_first", max_length=12),
    ]
    return [(one["input_ids"], one.get("token_type_ids")) for one in found]


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
    located: Located, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Outline:
    """Read the teacher's shape, and check that it can read the tokens.

    Args:
        located: from :func:`ksel.locating.locate_teacher`.
        task: decides whether the checkpoint's head is one for it.
        tokenizer: the teacher's.
        max_length: longest sequence (tokens).

    Raises:
        UsageError: unreadable, or it has no embeddings for so many tokens or positions.
    """
    tiny = located.is_tiny
    config = tiny_config(len(tokenizer)) if tiny else load_config(located.name, located.asked)
    check_inputs(config, len(tokenizer), max_length, located.asked)
    return Outline(shape_of(config), not tiny and not has_head(config, task))


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
    advance: Advance,
) -> Teacher:
    """Load the teacher; where it has no head for the task, fine-tune it or take it from the store.

    Args:
        located: from :func:`ksel.locating.locate_teacher`.
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
    if _is_ready(located, task):
        model = _with_own_head(located, task, say)
        say_without_effect(settings, [f.name for f in fields(settings)], "it has its own head", say)
        record["head"] = "its own"
        return Teacher(_frozen(on_device(model, device)), None, record)
    say_without_effect(settings, ["together"], "it is trained alone", say)
    settings = resolve_settings(settings, tiny=located.is_tiny, say=say)
    if located.is_tiny:
        pretrained = tiny_model(len(tokenizer), task, settings.seed)
    else:
        _say_lost_head(located, task, say)
        pretrained = load_classifier(located.name, task, seed=settings.seed, option=located.asked)
    record["head"] = "fine-tuned by ksel"
    record["fine_tune"] = training_settings(settings)
    key = teacher_key(pretrained, task, tokenizer, split, settings)
    folder = store_place(store, task, key)
    stored = from_store(folder, key, [WHOLE], task, say)
    if stored is None:
        with making(folder, say):
            stored = from_store(folder, key, [WHOLE], task, say)
            if stored is None:
                say(f"teacher: fine-tuning {located.label} on {task.name} ({len(split):,} rows)")
                start = time.perf_counter()
                model = fine_tune(pretrained, split, task, settings, device, advance)
                record["fine_tune_seconds"] = time.perf_counter() - start
                to_store(folder, key, {WHOLE: (model, tokenizer)}, record)
    if stored is not None:
        (model,) = stored
        say(f"teacher: {located.label} fine-tuned on {task.name}, from the store")
    base = None if located.is_tiny else pretrained
    return Teacher(_frozen(on_device(model, device)), base, record)


def open_teachers(
    located: Sequence[Located],
    task: Task,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    splits: Sequence[Split],
    settings: FineTuneConfig,
    store: Path,
    device: torch.device,
    say: Say,
    advance: Advance,
) -> list[Teacher]:
    """Load several teachers; those without a head for the task are fine-tuned, or come from the store.

    Under ``--fine_tune.together`` two or more without a head are trained together, see
    :func:`ksel.co_tuning.co_fine_tune`; otherwise each as :func:`open_teacher` trains it, and kept
    in the store at the same place. One teacher is opened as :func:`open_teacher` does.

    Args:
        located: from :func:`ksel.locating.locate_teachers`.
        tokenizers: of each teacher.
        splits: for each teacher all training rows in its own tokens.
        task, settings, store, device, say, advance: as in :func:`open_teacher`.

    Returns:
        The teachers, in the order of ``located``.

    Raises:
        UsageError: an unreadable checkpoint, a head for other labels, or teachers that cannot be
            fine-tuned together.
    """
    if len(located) == 1:
        only = (located[0], task, tokenizers[0], splits[0])
        return [open_teacher(*only, settings, store, device, say, advance)]
    ready = [_is_ready(one, task) for one in located]
    bare = [i for i, has_one in enumerate(ready) if not has_one]
    together = settings.together and len(bare) > 1
    if len(bare) < 2:
        say_without_effect(settings, ["together"], "fewer than two of them lack a head", say)
    alone = replace(settings, together=FineTuneConfig.together)
    opened: dict[int, Teacher] = {}
    # heads that do not fit are found before anything is trained
    for i in sorted(range(len(located)), key=lambda i: not ready[i]):
        if ready[i] or not together:
            parts = (located[i], task, tokenizers[i], splits[i], alone, store, device)
            opened[i] = open_teacher(*parts, partial(_say_of, i + 1, say), advance)
    if together:
        group = [(located[i], tokenizers[i], splits[i]) for i in bare]
        trained = _open_together(group, task, settings, store, device, say, advance)
        opened |= dict(zip(bare, trained, strict=True))
    return [opened[i] for i in range(len(located))]


def _open_together(
    group: Sequence[tuple[Located, PreTrainedTokenizerBase, Split]],
    task: Task,
    settings: FineTuneConfig,
    store: Path,
    device: torch.device,
    say: Say,
    advance: Advance,
) -> list[Teacher]:
    located, tokenizers, splits = zip(*group, strict=True)
    _check_group(located, splits, task)
    settings = resolve_settings(settings, tiny=False, say=say)
    pretrained = []
    for one in located:
        _say_lost_head(one, task, say)
        pretrained.append(load_classifier(one.name, task, seed=settings.seed, option=one.asked))
    parts = zip(pretrained, tokenizers, splits, strict=True)
    key = group_key([teacher_key(p, task, t, split, settings) for p, t, split in parts])
    folder = store_place(store, task, key)
    places = [str(number) for number in range(1, len(group) + 1)]
    labels = [one.label for one in located]
    names = ", ".join(labels)
    record: dict[str, Any] = {
        "head": "fine-tuned by ksel, together",
        "together": labels,
        "fine_tune": training_settings(settings),
    }
    stored = from_store(folder, key, places, task, say)
    if stored is None:
        with making(folder, say):
            stored = from_store(folder, key, places, task, say)
            if stored is None:
                rows = f"{len(splits[0]):,} rows"
                say(f"teachers: fine-tuning {names} together on {task.name} ({rows})")
                start = time.perf_counter()
                models = co_fine_tune(pretrained, splits, task, settings, device, advance)
                record["fine_tune_seconds"] = time.perf_counter() - start
                kept = zip(models, tokenizers, strict=True)
                to_store(folder, key, dict(zip(places, kept, strict=True)), record)
    if stored is not None:
        models = stored
        say(f"teachers: {names} fine-tuned together on {task.name}, from the store")
    opened = []
    for one, model, base in zip(located, models, pretrained, strict=True):
        own = {"name": one.label, "fallback": one.fallback, **record}
        opened.append(Teacher(_frozen(on_device(model, device)), base, own))
    return opened


def _check_group(located: Sequence[Located], splits: Sequence[Split], task: Task) -> None:
    """Refuse teachers that cannot be trained together, before any of them is loaded."""
    if any(one.is_tiny for one in located):
        names = ", ".join(one.label for one in located)
        raise UsageError(
            f"--teachers: tiny starts from random weights and has passes of its own, so it cannot "
            f"be fine-tuned together with others ({names}). {ALONE}, or leave tiny out."
        )
    configs = {one.label: load_config(one.name, one.asked) for one in located}
    check_together(configs, splits, task)


def _is_ready(located: Located, task: Task) -> bool:
    """True if the checkpoint comes with a head of the task's kind."""
    return not located.is_tiny and has_head(load_config(located.name, located.asked), task)


def _say_lost_head(located: Located, task: Task, say: Say) -> None:
    """A head of another kind is not used, which nobody should have to find out."""
    lost = other_head(load_config(located.name, located.asked), task)
    if lost is not None:
        say(f"teacher: {located.label} gets a new head: {lost}")


def _with_own_head(located: Located, task: Task, say: Say) -> PreTrainedModel:
    config = load_config(located.name, located.asked)
    order = check_head(config, task, say, located.asked)
    model = load_classifier(located.name, task, own_head=True, option=located.asked)
    reorder_head(model, order, task)
    say(f"teacher: {located.label}, with its own head")
    return model


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval().requires_grad_(False)


def _say_of(number: int, say: Say, line: str) -> None:
    """Say a line of one of several teachers."""
    say(line.replace("teacher:", f"teacher {number}:", 1))
