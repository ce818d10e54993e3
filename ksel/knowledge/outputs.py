"""Knowledge in the outputs: the gold label, the teacher's response, its logits."""

from __future__ import annotations

from functools import partial
from math import floor, inf

import torch.nn.functional as F
from torch import Tensor

from ksel.knowledge.base import (
    Part,
    Request,
    at_least_float32,
    divergence,
    log_probabilities,
    real_tokens,
)
from ksel.knowledge.temperatures import EACH_ITS_OWN, Temperature, temperature_rule
from ksel.types import Batch, Needs, Signals

LOGITS = Needs(logits=True)


def build_label(request: Request) -> Part:
    """The gold label; needs no teacher."""
    if request.task.is_span:
        return Part(partial(cross_entropy, span=True), LOGITS, Needs())
    loss = squared_error if request.task.is_regression else partial(cross_entropy, span=False)
    return Part(loss, LOGITS, Needs())


def build_response(request: Request) -> Part:
    """The teacher's prediction.

    Raises:
        UsageError: a span task with a teacher of other tokens; a schedule or confidence for
            scores, which have no distribution.
    """
    _check_positions(request)
    settings = request.settings
    if request.task.is_regression:
        for option, off in (("temperature_schedule", "constant"), ("confidence", False)):
            if getattr(settings, option) != off:
                raise request.refuse(
                    f"compares scores in {request.task.name}, which have no probabilities for "
                    f"--knowledge.{option} to work on",
                    f"Set --knowledge.{option} {str(off).lower()}.",
                )
        return Part(squared_difference, LOGITS, LOGITS)
    loss = partial(
        response_divergence,
        span=request.task.is_span,
        temperature=temperature_rule(settings),
        confidence=settings.confidence,
    )
    return Part(loss, LOGITS, LOGITS, couples=settings.temperature_schedule in EACH_ITS_OWN)


def build_logits(request: Request) -> Part:
    """The teacher's logits.

    Raises:
        UsageError: a span task with a teacher of other tokens.
    """
    _check_positions(request)
    loss = partial(
        logit_distance, span=request.task.is_span, steps=request.settings.logit_annealing
    )
    return Part(loss, LOGITS, LOGITS)


def _check_positions(request: Request) -> None:
    if request.task.is_span and not request.same_tokens:
        raise request.refuse(
            f"compares scores of positions in {request.task.name}, but teacher "
            f"{request.source + 1} has a tokenizer of its own, so its positions do not line up "
            "with the student's",
            f"Use {request.other('cls_hidden', 'skip')} or "
            f"{request.other('sample_similarity', '')}, or a teacher with the first one's "
            "tokenizer.",
        )


def cross_entropy(student: Signals, teacher: Signals, batch: Batch, *, span: bool) -> Tensor:
    """Cross-entropy of the gold class, per example [b] (FinK of Wang et al. 2022).

    Spans: the average of the cross-entropies of start and end over the real tokens. A label in
    the padding has an infinite loss.
    """
    return gold_cross_entropy(student, batch, span)


def gold_cross_entropy(signals: Signals, batch: Batch, span: bool) -> Tensor:
    """A model's cross-entropy with the gold label, per example [b]; as in :func:`cross_entropy`."""
    logits = _logits(signals)
    if span:
        logits = logits.masked_fill(~real_tokens(batch)[..., None], -inf)
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    return losses.mean(-1) if span else losses


def squared_error(student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Squared difference to the gold score, per example [b] (regression)."""
    return (_logits(student).squeeze(-1) - batch.labels).square()


def response_divergence(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    span: bool,
    temperature: Temperature,
    confidence: bool,
) -> Tensor:
    """T^2 KL(teacher || student) of softmax(logits / T), per example [b].

    Hinton et al. 2015; ResK of Wang et al. 2022. T^2 keeps the gradient's size when T grows.
    Divided by the number of examples this is torch's ``batchmean``, not its ``mean``. Spans: the
    average over start and end, each a distribution over the real tokens. ``confidence``: times
    1 / (1 + the teacher's cross-entropy with the gold label) (MT-BERT, Wu et al. 2021).
    """
    real = real_tokens(batch)[:, None] if span else None
    x, y = _rows(student, real), _rows(teacher, real)
    t = temperature(x, y, real, batch)
    rows = divergence(log_probabilities(x / t, real), log_probabilities(y / t, real))
    loss = (t**2 * rows[..., None]).mean((-1, -2))
    return loss / (1 + gold_cross_entropy(teacher, batch, span)) if confidence else loss


def squared_difference(student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Squared difference to the teacher's score, per example [b] (regression; no temperature)."""
    return (_logits(student) - _logits(teacher)).squeeze(-1).square()


def logit_distance(
    student: Signals, teacher: Signals, batch: Batch, *, span: bool, steps: int
) -> Tensor:
    """Squared difference of the logits, mean over the classes, per example [b].

    (z_S - phi z_T)^2 of Annealing-KD (Jafari et al. 2021): phi grows in ``steps`` equal
    steps from 1 / steps to 1 over a stage; 0 steps = 1 throughout. Spans: mean over start and end
    and the real tokens.
    """
    phi = min(1.0, (floor(batch.progress * steps) + 1) / steps) if steps else 1.0
    real = real_tokens(batch)[:, None] if span else None
    squares = (_rows(student, real) - phi * _rows(teacher, real)).square()
    if real is None:
        return squares.mean((-1, -2))
    return squares.sum((-1, -2)) / (2 * real.sum((-1, -2)).clamp_min(1))


def _rows(signals: Signals, real: Tensor | None) -> Tensor:
    """Logits with a row for each distribution: classes [b, 1, c]; start and end [b, 2, n].

    Entries of spans that are not real are 0.
    """
    logits = _logits(signals)
    if real is None:
        return logits[:, None]
    return logits.transpose(-1, -2).masked_fill(~real, 0.0)


def _logits(signals: Signals) -> Tensor:
    assert signals.logits is not None
    return at_least_float32(signals.logits)
