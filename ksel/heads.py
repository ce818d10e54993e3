"""Heads: whether a checkpoint has one, and whether its labels are the task's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ksel.errors import UsageError
from ksel.models import label_settings, own_generator
from ksel.tasks import Task

SEQUENCE, SPAN = "ForSequenceClassification", "ForQuestionAnswering"


def has_head(config: PreTrainedConfig, task: Task) -> bool:
    """True if the checkpoint was saved with the kind of head that the task needs.

    A head for classes or scores is none for spans, and the other way round.
    """
    return _is_for(config, SPAN if task.is_span else SEQUENCE)


def other_head(config: PreTrainedConfig, task: Task) -> str | None:
    """What is lost where the checkpoint has a head of the wrong kind, for people; else None."""
    if task.is_span and _is_for(config, SEQUENCE):
        return "its head gives one answer per text, not the start and end of a span"
    if not task.is_span and _is_for(config, SPAN):
        return "its head gives the start and end of a span, not one answer per text"
    return None


def _is_for(config: PreTrainedConfig, head: str) -> bool:
    return any(name.endswith(head) for name in config.architectures or ())


def check_head(
    config: PreTrainedConfig, task: Task, say: Callable[[str], None], option: str = "--teacher"
) -> list[int]:
    """Compare a ready teacher head's labels with the task's, by name.

    Args:
        config: of the teacher.
        task: the task.
        say: told what is assumed or changed.
        option: the option the teacher came from, for messages.

    Returns:
        For each label of the task, the teacher's output that stands for it.

    Raises:
        UsageError: another number of labels, or other names.
    """
    if config.num_labels != task.num_outputs:
        raise UsageError(
            f"{option} has {config.num_labels} labels and task {task.name} has "
            f"{task.num_outputs}. Use a teacher fine-tuned on {task.name}, or an encoder without "
            f"a head, which ksel fine-tunes."
        )
    same = list(range(task.num_outputs))
    if not task.labels:
        return same
    names = _names(config)
    if is_unnamed(config):
        say(
            "teacher: its labels have no names (LABEL_0, ...); their order is taken to be "
            f"{', '.join(task.labels)}"
        )
        return same
    order = named_order(config, task)
    if order is None:
        raise UsageError(
            f"{option} names its labels {names}, task {task.name} names them "
            f"{[_plain(name) for name in task.labels]}. Rename id2label in the teacher's "
            f"config.json, or use a teacher of this task."
        )
    if order != same:
        say(f"teacher: its labels come in the order {', '.join(names)}; its head is reordered")
    return order


def is_unnamed(config: PreTrainedConfig) -> bool:
    """True if the labels are called LABEL_0, LABEL_1, ..., which says nothing about them."""
    return all(name == f"label_{i}" for i, name in enumerate(_names(config)))


def student_order(config: PreTrainedConfig, task: Task) -> list[int] | None:
    """For each output of the task, that of a student's checkpoint; None if its head is no such.

    Scores, spans and labels without names are taken as they come.
    """
    if config.num_labels != task.num_outputs:
        return None
    if not task.labels or is_unnamed(config):
        return list(range(task.num_outputs))
    return named_order(config, task)


def named_order(config: PreTrainedConfig, task: Task) -> list[int] | None:
    """For each label of the task, the output of that name; None where the names differ."""
    names = _names(config)
    wanted = [_plain(name) for name in task.labels]
    if sorted(names) != sorted(wanted):
        return None
    return [names.index(name) for name in wanted]


def renew_head(model: PreTrainedModel, seed: int) -> None:
    """Give a model a head with random weights; torch's generator is not touched."""
    with own_generator(seed):
        fresh = type(model)(model.config)
    encoder = f"{model.base_model_prefix}."
    head = {k: v for k, v in fresh.state_dict().items() if not k.startswith(encoder)}
    model.load_state_dict(head, strict=False)


def _names(config: PreTrainedConfig) -> list[str]:
    given: Any = config.id2label or {}
    return [_plain(given[i]) for i in sorted(given)]


def _plain(name: Any) -> str:
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def reorder_head(model: PreTrainedModel, order: list[int], task: Task) -> None:
    """Permute the rows of the head's last layer, and name the labels as the task does."""
    head: Any = model.qa_outputs if task.is_span else model.classifier
    last = head if isinstance(head, nn.Linear) else head.out_proj
    with torch.no_grad():
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    for name, value in label_settings(task).items():
        setattr(model.config, name, value)
