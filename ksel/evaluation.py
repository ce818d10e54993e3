"""What a model scores: metrics of the tasks, and the objectives that rewards are drops of."""

from __future__ import annotations

import math
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
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
from ksel.errors import UsageError, unknown_name
from ksel.models import model_logits
from ksel.tasks import Task

OBJECTIVES = ("cross_entropy", "calibrated", "margin")
"""Names of the objectives; see :func:`objective_value`."""

LOG_TEMPERATURE = (-5.0, 5.0)
"""Natural logarithms of the smallest and largest temperature that ``calibrated`` may choose."""


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
    training = [module for module in model.modules() if module.training]
    model.eval()
    parts, order = [], []
    try:
        with torch.no_grad():
            for rows in evaluation_batches(split, batch_size):
                batch = split.batch(rows).to(device)
                logits = model_logits(model(**batch.model_inputs())).float()
                if split.spans is not None:
                    logits = _padded(logits, batch.attention_mask, int(split.lengths.max()))
                parts.append(logits.cpu())
                order.append(rows)
    finally:
        for module in training:
            module.training = True
    logits = torch.cat(parts)
    in_order = torch.empty_like(logits)
    in_order[torch.from_numpy(np.concatenate(order))] = logits
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


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def objective_value(
    name: str, logits: Tensor, labels: Tensor, task: Task, margin_width: float
) -> float:
    """The number whose drop is a reward; lower is better; nan for logits that are not all finite.

    For spans start and end count alike: each is a choice among the real tokens of its window.

    * ``cross_entropy``: mean cross-entropy (nats); for regression the mean squared error.
    * ``calibrated``: mean cross-entropy at the temperature that makes it least; for regression the
      mean squared error after the best affine fit. Both ignore over- and under-confidence.
    * ``margin``: mean ``sigmoid(-(logit of the label - largest other logit) / margin_width)``, a
      smooth share of errors. Not for regression.

    Args:
        name: one of :data:`OBJECTIVES`.
        logits: [N, C], [N, 1] for regression, or [N, L, 2] for spans, padded with -inf.
        labels: [N] int64 class ids or float scores, or [N, 2] int64 tokens.
        task: decides between classes, scores and spans.
        margin_width: width of the smooth step of ``margin`` (logits).

    Raises:
        UsageError: unknown name, ``margin`` for regression, a width that is not positive.
    """
    check_objective(name, task)
    if task.is_span:
        logits, labels = logits.transpose(1, 2).flatten(0, 1), labels.flatten()
    padded = logits == -torch.inf if task.is_span else torch.zeros_like(logits, dtype=torch.bool)
    if not bool((torch.isfinite(logits) | padded).all()):
        return math.nan
    logits = logits.double()
    if task.is_regression:
        return _regression_objective(name, logits[:, 0], labels.double())
    if name == "cross_entropy":
        return float(F.cross_entropy(logits, labels))
    if name == "calibrated":
        return _calibrated(logits, labels)
    if margin_width <= 0:
        raise UsageError(f"--env.margin_width: {margin_width}; give a width above 0 (logits).")
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return float(torch.sigmoid((others - own) / margin_width).mean())


def _calibrated(logits: Tensor, labels: Tensor) -> float:
    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits * np.exp(-log_temperature), labels))

    # convex in 1/T, so it has one minimum in log T as well
    fit = minimize_scalar(loss, bounds=LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-6})
    return min(float(fit.fun), *map(loss, LOG_TEMPERATURE))


def check_objective(name: str, task: Task) -> None:
    """Refuse an objective that the task has none of.

    Raises:
        UsageError: unknown name, or ``margin`` for regression.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES, "--env.objective")
    if name == "margin" and task.is_regression:
        raise UsageError(
            f"--env.objective margin: task {task.name} has scores, not classes; use cross_entropy "
            f"(mean squared error) or calibrated (after the best affine fit)."
        )


def _regression_objective(name: str, predicted: Tensor, scores: Tensor) -> float:
    if name == "cross_entropy":
        return float(F.mse_loss(predicted, scores))
    x, y = predicted - predicted.mean(), scores - scores.mean()
    spread = (x * x).mean()
    slope = (x * y).mean() / spread if spread > 0 else torch.zeros_like(spread)
    return float(((y - slope * x) ** 2).mean())


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
