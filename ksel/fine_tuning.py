"""Fine-tuning: the settings that hold, the gold loss, and the loop for one teacher or several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ksel import tiny_teacher
from ksel.batches import BatchOrder, updates_per_epoch
from ksel.config import FineTuneConfig
from ksel.data import Split
from ksel.errors import UsageError
from ksel.methods import QUICK, packaged, read_yaml
from ksel.models import model_logits, on_device, own_generator
from ksel.optim import adamw, linear_schedule, set_rate
from ksel.tasks import Task
from ksel.types import Batch

Say = Callable[[str], None]
Advance = Callable[[int, int, float], None]
"""Called as ``advance(update, updates, loss)`` while training."""


def resolve_settings(settings: FineTuneConfig, *, tiny: bool, say: Say) -> FineTuneConfig:
    """The settings that hold for this kind of teacher; the others are as by default.

    Args:
        settings: ``--fine_tune``.
        tiny: True for the tiny teacher, which has passes and a learning rate of its own.
        say: told which of the given settings have no effect.
    """
    default = FineTuneConfig()
    if tiny:
        say_without_effect(settings, ["epochs", "learning_rate"], "it is the tiny one", say)
        settings = replace(
            settings,
            epochs=settings.tiny_epochs,
            learning_rate=settings.tiny_learning_rate,
            max_updates=settings.max_updates or tiny_teacher.MAX_UPDATES,
        )
    else:
        unused = ["tiny_epochs", "tiny_learning_rate"]
        say_without_effect(settings, unused, "it is not the tiny one", say)
    return replace(
        settings, tiny_epochs=default.tiny_epochs, tiny_learning_rate=default.tiny_learning_rate
    )


def say_without_effect(
    settings: FineTuneConfig, unused: Iterable[str], reason: str, say: Say
) -> None:
    """Say which of these settings were given although they do nothing.

    Values of ksel's own files, which lie under a command line unasked, were not given by anybody.
    """
    default, quick = FineTuneConfig(), read_yaml(Path(packaged(QUICK)))["fine_tune"]
    given = [
        name
        for name in unused
        if getattr(settings, name) not in (getattr(default, name), quick.get(name))
    ]
    if given:
        options = ", ".join(f"--fine_tune.{name}" for name in given)
        say(f"teacher: {reason}, so without effect: {options}")


def training_settings(settings: FineTuneConfig) -> dict[str, Any]:
    """What decides the training of one teacher: all but whether others are trained with it."""
    return {name: value for name, value in asdict(settings).items() if name != "together"}


def fine_tune(
    pretrained: PreTrainedModel,
    split: Split,
    task: Task,
    settings: FineTuneConfig,
    device: torch.device,
    advance: Advance,
) -> PreTrainedModel:
    """Fine-tune a copy of an encoder with a new head: AdamW, warm-up, linear decay, dropout on.

    Returns:
        The trained copy; ``pretrained`` is left as it was.

    Raises:
        UsageError: the settings leave no update, or the loss is not finite.
    """
    model = on_device(copy.deepcopy(pretrained), device)
    train([model], [split], task, settings, device, advance)
    return model


def train(
    models: Sequence[PreTrainedModel],
    splits: Sequence[Split],
    task: Task,
    settings: FineTuneConfig,
    device: torch.device,
    advance: Advance,
) -> None:
    """Train models in place on the sum of their gold losses, all on the same rows at each update.

    Parameters that several models share are one to the optimiser, and the gradient is clipped
    as a whole; apart from that and from dropout's random numbers, the models do not meet.

    Args:
        models: on ``device``; left in training mode.
        splits: for each model the same rows in its own tokens; the first decides the batches.
        task: decides the gold loss.
        settings: of the training.
        device: where to train.
        advance: told the progress.

    Raises:
        UsageError: the settings leave no update, or a loss is not finite.
    """
    everything = nn.ModuleList(models).train()
    updates = int(settings.epochs * updates_per_epoch(len(splits[0]), settings.batch_size))
    if settings.max_updates is not None:
        updates = min(updates, settings.max_updates)
    if updates < 1:
        raise UsageError(
            "--fine_tune.epochs and --fine_tune.max_updates leave no update for the teacher. "
            "Raise them."
        )
    optimizer = adamw([everything], settings.learning_rate, settings.weight_decay)
    order = BatchOrder(splits[0].lengths, settings.batch_size, 16, settings.seed)
    with own_generator(settings.seed):
        for update in range(updates):
            factor = linear_schedule(update, updates, settings.warmup)
            set_rate(optimizer, settings.learning_rate * factor)
            rows, total = order.rows(update), 0.0
            for model, split in zip(models, splits, strict=True):
                batch = split.batch(rows).to(device)
                loss = gold_loss(model_logits(model(**batch.model_inputs())), batch, task)
                if not torch.isfinite(loss):
                    raise UsageError(
                        f"--fine_tune.learning_rate {settings.learning_rate:g}: the teacher's loss "
                        f"is {loss.item()} at update {update + 1} of {updates}. Lower the learning "
                        f"rate."
                    )
                loss.backward()  # one after the other: only one model's activations are held
                total += float(loss.detach())
            nn.utils.clip_grad_norm_(everything.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            advance(update + 1, updates, total)


def gold_loss(logits: Tensor, batch: Batch, task: Task) -> Tensor:
    """The task's own loss on the gold labels of a batch, a scalar in float32.

    * classes: mean cross-entropy (nats);
    * scores: mean squared error;
    * spans: mean of the cross-entropies of the first and the last token of the answer, among the
      real tokens (Devlin et al. 2019, section 4.2).

    Args:
        logits: [b, classes], [b, 1] for scores, [b, n, 2] for spans.
        batch: labels, and which tokens are real.
        task: its kind.
    """
    logits = logits.float()
    if task.is_span:
        padding = ~batch.attention_mask.bool()
        masked = logits.masked_fill(padding[..., None], -torch.inf)
        # [b, n, 2] scores of tokens against [b, 2] numbers of tokens
        return nn.functional.cross_entropy(masked, batch.labels)
    if task.is_regression:
        return nn.functional.mse_loss(logits.squeeze(-1), batch.labels)
    return nn.functional.cross_entropy(logits, batch.labels)
