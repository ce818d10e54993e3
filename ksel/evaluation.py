"""What a model scores: its outputs over a split, and the metrics of the tasks."""

from __future__ import annotations

import math
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import (
    accuracy,
    f1_score,
    matthews_corrcoef,
    pearson_corrcoef,
    spearman_corrcoef,
)
from torchmetrics.functional.text import squad

from ksel.config import SpanConfig
from ksel.data import Split, evaluation_batches
from ksel.decoding import decode
from ksel.errors import UsageError
from ksel.models import model_logits
from ksel.tasks import Task
from ksel.types import Batch


def predict_logits(
    model: Any, split: Split, *, batch_size: int, device: torch.device | str
) -> Tensor:
    """Run a model over a split without gradients.

    Args:
        model: a Hugging Face model with a head for classes, scores or spans, on ``device``.
        split: the tokenised rows.
        batch_size: rows of one forward pass.
        device: where the model is.

    Returns:
        [N, C] float32 on the CPU, in the order of the rows; for spans [N, L, 2], L tokens of the
        longest window, -inf where there is no token. Each module's training mode is as before.
    """

    def logits_of(batch: Batch) -> Tensor:
        logits = model_logits(model(**batch.model_inputs())).float()
        if split.spans is not None:
            logits = _padded(logits, batch.attention_mask, int(split.lengths.max()))
        return logits

    return _predict(logits_of, model, split, batch_size, device)


def predict_states(
    model: Any, split: Split, *, batch_size: int, device: torch.device | str
) -> Tensor:
    """The [CLS] states of a model's last layer over a split, without gradients.

    Arguments as of :func:`predict_logits`.

    Returns:
        [N, h] float32 on the CPU, in the order of the rows.
    """

    def states_of(batch: Batch) -> Tensor:
        inputs = {**batch.model_inputs(), "output_hidden_states": True}
        return cast(Tensor, model(**inputs).hidden_states[-1][:, 0].float())

    return _predict(states_of, model, split, batch_size, device)


def _predict(
    outputs: Callable[[Batch], Tensor],
    model: Any,
    split: Split,
    batch_size: int,
    device: torch.device | str,
) -> Tensor:
    """The outputs of all rows of a split, in their order."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    parts, order = [], []
    try:
        with torch.no_grad():
            for rows in evaluation_batches(split, batch_size):
                parts.append(outputs(split.batch(rows).to(device)).cpu())
                order.append(rows)
    finally:
        for module in training:
            module.training = True
    values = torch.cat(parts)
    in_order = torch.empty_like(values)
    in_order[torch.from_numpy(np.concatenate(order))] = values
    return in_order


def _padded(logits: Tensor, mask: Tensor, length: int) -> Tensor:
    """Scores of tokens [b, n, 2] as [b, length, 2], -inf where there is no token."""
    masked = logits.masked_fill(mask[..., None] == 0, -torch.inf)
    return F.pad(masked, (0, 0, 0, length - masked.shape[1]), value=-torch.inf)


def _accuracy(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    return accuracy(predicted, labels, task="multiclass", num_classes=classes, average="micro")


def _f1(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    return f1_score(predicted, labels, task="binary")


def _matthews(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    return matthews_corrcoef(predicted, labels, task="multiclass", num_classes=classes)


def _pearson(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    return pearson_corrcoef(predicted, labels)


def _spearman(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    return spearman_corrcoef(predicted, labels)


METRICS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""Metric name -> function of predictions [N], labels [N] and the number of classes."""


def score(task: Task, logits: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Score logits of classes or scores with the task's metrics; spans: :func:`score_split`.

    ``f1`` is the F1 of class 1, as in GLUE. A correlation (Matthews, Pearson, Spearman)
    with a constant is undefined; it counts as 0, since constant predictions say nothing about the
    order of the labels. Logits that are not all finite score nan by every metric.

    Args:
        task: names the metrics.
        logits: [N, C], or [N, 1] for regression.
        labels: [N] int64 class ids or float scores.

    Returns:
        Metric -> value, the headline first.

    Raises:
        UsageError: the split has no labels.
    """
    assert not task.is_span
    if labels is None:
        raise UsageError(
            f"--data: this split of task {task.name} has no labels, so it cannot be scored. "
            f"Use a labelled file, or write predictions with ksel.predict."
        )
    if not bool(torch.isfinite(logits).all()):
        return dict.fromkeys(task.metrics, math.nan)
    predicted = logits[:, 0].double() if task.is_regression else logits.argmax(dim=1)
    truth = labels.double() if task.is_regression else labels
    return {name: _measure(name, predicted, truth, task.num_outputs) for name in task.metrics}


def score_split(
    task: Task, logits: Tensor, split: Split, span: SpanConfig | None = None
) -> dict[str, float]:
    """Score a split's logits with the task's metrics, whatever its kind.

    Args:
        task: names the metrics.
        logits: from :func:`predict_logits` on this split.
        split: has the labels; for spans whole examples, all their windows.
        span: how answers are decoded; None = as by default.

    Returns:
        Metric -> value, the headline first; all nan if the logits are not finite.

    Raises:
        UsageError: the split has no labels.
    """
    if split.spans is None:
        return score(task, logits, split.labels)
    if split.spans.golds is None:
        raise UsageError(
            f"--data: this split of task {task.name} has no answers, so it cannot be scored. "
            f"Use a file with answers, or write predictions with ksel.predict."
        )
    if not finite_spans(logits, split):
        return dict.fromkeys(task.metrics, math.nan)
    answers = decode(logits, split.spans, task, span or SpanConfig()).answers()
    return score_answers(task, answers, split.spans.golds)


def finite_spans(logits: Tensor, split: Split) -> bool:
    """True if the scores [N, L, 2] of all tokens are finite; padding is -inf and does not count."""
    real = torch.arange(logits.shape[1])[None] < torch.from_numpy(split.lengths)[:, None]
    return bool(torch.isfinite(logits[real]).all())


def score_answers(
    task: Task, answers: Sequence[str], golds: Sequence[tuple[str, ...]]
) -> dict[str, float]:
    """Exact match and F1 of answers, 0 to 1 (Rajpurkar et al. 2016, 2018).

    Both take the gold answer that fits best, after lower-casing and without articles, punctuation
    and superfluous blanks. Where there may be none, gold answers of which nothing is left then do
    not count, no answer is the right one to a question without any, and the wrong one elsewhere.

    Args:
        task: names the metrics, and says whether there may be no answer.
        answers: E predictions, empty for none.
        golds: E tuples of gold answers.
    """
    # numbered anew: torchmetrics looks answers up by id, and files may use an id twice
    predicted = [{"id": str(i), "prediction_text": text} for i, text in enumerate(answers)]
    truth = [
        {"id": str(i), "answers": {"text": _counting(gold, task)}} for i, gold in enumerate(golds)
    ]
    values = squad(predicted, truth)  # type: ignore[arg-type]
    return {name: float(values[name]) / 100 for name in task.metrics}


def _counting(gold: tuple[str, ...], task: Task) -> list[str]:
    if not task.unanswerable:
        return list(gold)
    return [text for text in gold if _has_words(text)] or [""]


def _has_words(text: str) -> bool:
    """True if the metrics see more of it than articles and punctuation."""
    bare = "".join(mark for mark in text.lower() if mark not in string.punctuation)
    return bool(re.sub(r"\b(a|an|the)\b", " ", bare).strip())


def _measure(name: str, predicted: Tensor, labels: Tensor, classes: int) -> float:
    correlation = name in ("matthews", "pearson", "spearman")
    # torchmetrics gives nan for pearson here, and up to 0.7 for matthews, where GLUE gives 0
    if correlation and (_is_constant(predicted) or _is_constant(labels)):
        return 0.0
    with warnings.catch_warnings():
        # torchmetrics warns of correlations of nearly constant values, which early students give
        warnings.filterwarnings("ignore", message="The variance of predictions or target")
        value = float(METRICS[name](predicted, labels, classes))
    return 0.0 if math.isnan(value) else value  # nearly constant


def constant_score(task: Task, labels: Tensor | None) -> float | None:
    """What one constant answer scores in the headline metric; None for spans and without labels.

    Args:
        task: decides the metric.
        labels: [N] of the split.
    """
    if task.is_span or labels is None:
        return None
    if task.metrics[0] == "accuracy":
        return float(labels.bincount().max()) / len(labels)
    return 0.0  # correlations


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def evaluate_dev(
    model: Any,
    task: Task,
    dev: dict[str, Split],
    *,
    rows: int | None,
    batch_size: int,
    device: torch.device | str,
    span: SpanConfig | None = None,
) -> dict[str, float]:
    """Metrics on the dev splits; those of a further split carry its name (``accuracy_mismatched``).

    Args:
        model: on ``device``.
        task: which metrics.
        dev: dev split name -> tokenised rows; the first is the headline's.
        rows: score at most this many rows of each split, evenly spaced; None = all. For spans
            these are questions, with all their windows.
        batch_size: rows of one forward pass.
        device: where the model is.
        span: how answers are decoded; None = as by default.

    Raises:
        UsageError: a split has no labels.
    """
    metrics: dict[str, float] = {}
    for number, (name, split) in enumerate(dev.items()):
        count = split.num_examples
        part = split if rows is None or rows >= count else split.examples(_spaced(count, rows))
        logits = predict_logits(model, part, batch_size=batch_size, device=device)
        suffix = f"_{name.removeprefix('dev_')}" if number else ""
        metrics |= {
            f"{key}{suffix}": value for key, value in score_split(task, logits, part, span).items()
        }
    return metrics


def _spaced(count: int, rows: int) -> np.ndarray:
    return np.linspace(0, count - 1, rows).astype(np.int64)
