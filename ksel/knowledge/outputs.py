"""Knowledge in the outputs: the gold label and the teacher's response."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ksel.knowledge.base import Part, Request, at_least_float32
from ksel.types import Batch, Needs, Signals


def build_label(request: Request) -> Part:
    """The gold label; needs no teacher."""
    loss = squared_error if request.task.is_regression else cross_entropy
    return Part(loss, Needs(logits=True), Needs())


def build_response(request: Request) -> Part:
    """The teacher's prediction."""
    if request.task.is_regression:
        return Part(squared_difference, Needs(logits=True), Needs(logits=True))
    loss = partial(response_divergence, temperature=request.settings.temperature)
    return Part(loss, Needs(logits=True), Needs(logits=True))


def cross_entropy(student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Cross-entropy of the gold class, per example [b] (FinK of Wang et al. 2022)."""
    return F.cross_entropy(_logits(student), batch.labels, reduction="none")


def squared_error(student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Squared difference to the gold score, per example [b] (regression)."""
    return (_logits(student).squeeze(-1) - batch.labels).square()


def response_divergence(
    student: Signals, teacher: Signals, batch: Batch, *, temperature: float
) -> Tensor:
    """T^2 KL(teacher || student) of softmax(logits / T), per example [b].

    Hinton et al. 2015; ResK of Wang et al. 2022. T^2 keeps the gradient's size when T grows.
    Divided by the number of examples this is torch's ``batchmean``, not its ``mean``.
    """
    log_student = (_logits(student) / temperature).log_softmax(-1)
    log_teacher = (_logits(teacher) / temperature).log_softmax(-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return temperature**2 * divergence


def squared_difference(student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Squared difference to the teacher's score, per example [b] (regression; no temperature)."""
    return (_logits(student) - _logits(teacher)).squeeze(-1).square()


def _logits(signals: Signals) -> Tensor:
    assert signals.logits is not None
    return at_least_float32(signals.logits)
