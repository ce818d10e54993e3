"""Co-fine-tuning: several teachers trained together under one pooling and prediction layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ksel.config import FineTuneConfig
from ksel.data import Split
from ksel.errors import UsageError
from ksel.fine_tuning import Advance, train
from ksel.models import on_device, shape_of
from ksel.tasks import Task

_ROBERTA = ("classifier.dense", "classifier.out_proj")
HEADS: dict[str, tuple[str, str]] = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": _ROBERTA,
    "distilbert": ("pre_classifier", "classifier"),
}
"""Architecture -> its pooling layer on the [CLS] state, and its prediction layer.

The two are the same in all families: a square matrix and one with a row per class. What lies
between them stays each family's own: tanh in BERT and RoBERTa, GELU in ELECTRA, ReLU in DistilBERT.
"""
SPAN_HEAD = ("qa_outputs",)
"""The prediction layer of question answering, which has no pooling layer."""

ALONE = "Set --fine_tune.together false to fine-tune each teacher for itself"


def check_together(
    configs: Mapping[str, PreTrainedConfig], splits: Sequence[Split], task: Task
) -> None:
    """Refuse teachers that cannot share a head, before any of them is loaded.

    Args:
        configs: label for people -> configuration of the teacher, in order.
        splits: for each teacher the training rows in its own tokens.
        task: the task.

    Raises:
        UsageError: widths differ, or (spans) texts fall into other windows for each teacher.
    """
    widths = {label: shape_of(config).width for label, config in configs.items()}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{label} has {width}" for label, width in widths.items())
        raise UsageError(
            f"--teachers: fine-tuned together they share the pooling and the prediction layer, "
            f"which takes teachers of one width; {listed}. {ALONE}, or choose teachers of one "
            f"width."
        )
    if task.is_span and len({split.fingerprint() for split in splits}) > 1:
        raise UsageError(
            f"--teachers: fine-tuned together they train on the same windows of text, but their "
            f"tokenizers cut the contexts of task {task.name} differently. {ALONE}, or choose "
            f"teachers with one tokenizer."
        )


def co_fine_tune(
    pretrained: Sequence[PreTrainedModel],
    splits: Sequence[Split],
    task: Task,
    settings: FineTuneConfig,
    device: torch.device,
    advance: Advance,
) -> list[PreTrainedModel]:
    """Fine-tune copies of several encoders together, under layers that they share.

    MT-BERT (Wu et al. 2021), co-fine-tuning: the loss is sum_i CE(y, y_i) over the teachers, on
    the same examples, and the pooling and prediction layers are one and the same in all of them,
    so that their outputs come to lie in one space. The shared layers start from the first
    teacher's.

    Args:
        pretrained: classifiers of equal width, their heads new.
        splits: for each the same rows in its own tokens.
        task: decides the gold loss.
        settings: of the training.
        device: where to train; all models and their moments are there at once.
        advance: told the progress; the loss is the sum.

    Returns:
        The trained copies, each complete in itself (equal shared layers, but tensors of its own);
        ``pretrained`` are left as they were.

    Raises:
        UsageError: the settings leave no update, or a loss is not finite.
    """
    models = [on_device(copy.deepcopy(model), device) for model in pretrained]
    share_heads(models, task)
    train(models, splits, task, settings, device, advance)
    _part_heads(models, task)
    return models


def shared_layers(model: PreTrainedModel, task: Task) -> list[nn.Linear]:
    """The layers that a model shares with others: pooling and prediction; spans: prediction."""
    names = SPAN_HEAD if task.is_span else HEADS[model.config.model_type]
    return [model.get_submodule(name) for name in names]  # type: ignore[misc]


def share_heads(models: Sequence[PreTrainedModel], task: Task) -> None:
    """Make the first model's pooling and prediction layers those of all, in place."""
    first = shared_layers(models[0], task)
    for model in models[1:]:
        for own, common in zip(shared_layers(model, task), first, strict=True):
            own.weight, own.bias = common.weight, common.bias


def _part_heads(models: Sequence[PreTrainedModel], task: Task) -> None:
    """Give each model tensors of its own again, so that a change to one is none to another."""
    for model in models[1:]:
        for layer in shared_layers(model, task):
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            layer.bias = nn.Parameter(layer.bias.detach().clone())
