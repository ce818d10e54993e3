"""Knowledge in how the examples of a batch relate to each other, by their last [CLS] states."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ksel.knowledge.base import (
    Part,
    Request,
    at_least_float32,
    divergence,
    log_probabilities,
    student_layers,
    teacher_layers,
)
from ksel.knowledge.projections import Projections, learned_projections, projected
from ksel.types import Batch, Needs, Signals


def build_sample_similarity(request: Request) -> Part:
    """Relations among the examples of a batch; widths may differ."""
    layers = _last(request)
    loss = partial(sample_divergence, layers=layers)
    return _part(layers, loss, {})


def build_sample_contrastive(request: Request) -> Part:
    """Examples of a class drawn together, others apart, with the teacher's views among them.

    Raises:
        UsageError: the task has no classes.
    """
    if request.task.is_span or request.task.is_regression:
        kind = "spans of text" if request.task.is_span else "scores"
        leave_out = (
            "Leave it out of --knowledge.pool and of --stages (MLKD-BERT: --method mlkd_bert_span)"
        )
        instead = (
            f"put {request.other('sample_similarity', '')}, which needs no labels, in its place"
        )
        known = "sample_similarity" in request.pool_kinds
        raise request.refuse(
            f"draws examples of one class together, but the labels of {request.task.name} are "
            f"{kind}",
            f"{leave_out}." if known else f"{leave_out}, or {instead}.",
        )
    layers = _last(request)
    projections = learned_projections(request, (layers,), optional=False)
    loss = partial(
        contrastive_loss,
        layers=layers,
        projections=projections,
        temperature=request.settings.contrastive_temperature,
    )
    return _part(layers, loss, projections)


def _last(request: Request) -> tuple[int, int]:
    return request.student.layers, request.teacher.layers


def _part(layers: tuple[int, int], loss: partial[Tensor], projections: Projections) -> Part:
    return Part(
        loss,
        Needs(cls=student_layers((layers,))),
        Needs(cls=teacher_layers((layers,))),
        (layers,),
        projections,
        couples=True,
    )


def sample_divergence(
    student: Signals, teacher: Signals, batch: Batch, *, layers: tuple[int, int]
) -> Tensor:
    """KL(R_T || R_S) of an example's relation to all of its batch, itself included [b].

    R = softmax(C C^T / sqrt(h)), C the [CLS] states [b, h], h each model's own width: sample
    similarity of MLKD-BERT (Zhang et al. 2024).
    """
    x, y = (
        log_probabilities(c @ c.transpose(-1, -2) * c.shape[-1] ** -0.5)
        for c in _cls(student, teacher, layers)
    )
    return divergence(x, y)


def contrastive_loss(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    layers: tuple[int, int],
    projections: Projections,
    temperature: float,
) -> Tensor:
    """Supervised InfoNCE over 2b views, mean of an example's two views [b].

    The views are the student's [CLS] states (projected where the widths differ) and the
    teacher's, at unit length. For each view: minus the mean, over all other views of the same
    class, of log softmax(cosine / temperature) over all views but itself (Khosla et al. 2020,
    eq. 2; MLKD-BERT, Zhang et al. 2024). The teacher's views are constants.
    """
    x, y = _cls(student, teacher, layers)
    x = projected(x, projections, *layers)
    views = torch.cat([F.normalize(x, dim=-1), F.normalize(y.detach(), dim=-1)])
    labels = batch.labels.repeat(2)
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    log_share = log_probabilities(views @ views.T / temperature, others)
    positive = (labels[:, None] == labels) & others
    losses = -log_share.masked_fill(~positive, 0.0).sum(-1) / positive.sum(-1)
    return losses.unflatten(0, (2, -1)).mean(0)


def _cls(student: Signals, teacher: Signals, layers: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return at_least_float32(student.cls[layers[0]]), at_least_float32(teacher.cls[layers[1]])
