"""Knowledge in the states of matched layers: of the [CLS] token, or of all tokens."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ksel.knowledge.base import (
    Part,
    Request,
    at_least_float32,
    real_states,
    real_tokens,
    student_layers,
    teacher_layers,
    zero,
)
from ksel.knowledge.projections import Projections, learned_projections, projected
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals

EMBEDDINGS: Pairs = ((0, 0),)
"""The embedding output of both models."""

Reduction = Literal["sum", "width", "mean"]


def build_cls_hidden(request: Request) -> Part:
    """[CLS] states, with Patient KD's layer sets; with learned projections if the widths differ.

    Where ``response`` of the same teacher is in the pool it already teaches the last student
    layer, which is therefore left out unless the user named the pairs or set ``cls_last`` to
    keep: 12 -> 6 layers gives teacher layers {2, 4, 6, 8, 10} for ``skip`` and {7, ..., 11} for
    ``last`` (Sun et al. 2019, section 3.2).

    Raises:
        UsageError: no layer is left.
    """
    student, teacher, settings = request.student, request.teacher, request.settings
    pairs = request.pairs
    covered = settings.cls_last == "auto" and "response" in request.pool_kinds
    if covered and not request.explicit:
        pairs = tuple((s, t) for s, t in pairs if s != student.layers)
    if not pairs:
        named = request.other("cls_hidden", f"{student.layers}-{teacher.layers}")
        raise request.refuse(
            f"leaves out the last student layer because {request.other('response', '')[1:-1]} is "
            "in the pool, and no other layer is matched",
            f"Name the pair ({named}), set --knowledge.cls_last keep, use "
            f"{request.other('hidden')}, or take response out of the pool.",
        )
    projections = learned_projections(request, pairs)
    loss = partial(
        cls_distance,
        pairs=pairs,
        projections=projections,
        normalize=settings.normalize_cls,
        reduction=settings.cls_reduction,
    )
    return Part(
        loss,
        Needs(cls=student_layers(pairs)),
        Needs(cls=teacher_layers(pairs)),
        pairs,
        projections,
    )


def build_hidden(request: Request) -> Part:
    """All token states: MSE, with learned projections if the widths differ."""
    return _token_states(request, request.pairs, cosine=False)


def build_embedding(request: Request) -> Part:
    """The embedding output: MSE, with a learned projection if the widths differ."""
    return _token_states(request, EMBEDDINGS, cosine=False)


def build_cosine(request: Request) -> Part:
    """All token states: their angles, with learned projections if the widths differ."""
    return _token_states(request, request.pairs, cosine=True)


def _token_states(request: Request, pairs: Pairs, *, cosine: bool) -> Part:
    projections = learned_projections(request, pairs)
    loss = partial(
        cosine_distance if cosine else hidden_distance, pairs=pairs, projections=projections
    )
    return Part(
        loss,
        Needs(hidden=student_layers(pairs)),
        Needs(hidden=teacher_layers(pairs)),
        pairs,
        projections,
    )


def cls_distance(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    projections: Projections,
    normalize: bool,
    reduction: Reduction,
) -> Tensor:
    """Squared distance of [CLS] states over matched layers, per example [b].

    PT of Patient KD (Sun et al. 2019, eq. 7): states are brought to unit length if
    ``normalize``, after the projection where there is one. The paper *sums* the squared
    differences over layers and width (``sum``); the authors' code divides by layers x width
    (``mean``). A weight beta of the code is a weight beta / (layers x width) of the sum.
    ``width`` divides by the width only: the MSE of :func:`hidden_distance` on one token, for
    MT-BERT's hidden loss (Wu et al. 2021) on [CLS] states. The width is the teacher's.
    """
    total = zero(batch)
    for s, t in pairs:
        x, y = at_least_float32(student.cls[s]), at_least_float32(teacher.cls[t])
        x = projected(x, projections, s, t)
        if normalize:
            x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        width = y.shape[-1]
        counts = {"sum": 1, "width": width, "mean": len(pairs) * width}
        total = total + (x - y).square().sum(-1) / counts[reduction]
    return total


def hidden_distance(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    projections: Projections,
) -> Tensor:
    """MSE of token states summed over matched layers and real tokens, per example [b].

    MSE(H_S W, H_T) of TinyBERT (Jiao et al. 2020, eq. 8; eq. 9 for the embeddings), the
    feed-forward loss of MLKD-BERT (Zhang et al. 2024), the hidden loss of MT-BERT (Wu et al.
    2021) and FeaK of Wang et al. 2022: mean over the teacher's width. Without projections W is
    left out.
    """
    total = zero(batch)
    for s, t in pairs:
        x, y = real_states(student.hidden[s], batch), real_states(teacher.hidden[t], batch)
        x = projected(x, projections, s, t)
        total = total + (x - y).square().mean(-1).sum(-1)
    return total


def cosine_distance(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    projections: Projections,
) -> Tensor:
    """1 - cosine of token states summed over matched layers and real tokens, per example [b].

    The cosine loss of DistilBERT (Sanh et al. 2019) and of Lu et al. 2022; blind to the states'
    lengths.
    """
    total = zero(batch)
    for s, t in pairs:
        x, y = real_states(student.hidden[s], batch), real_states(teacher.hidden[t], batch)
        x = projected(x, projections, s, t)
        cosines = (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1)
        total = total + (1 - cosines).masked_fill(~real_tokens(batch), 0.0).sum(-1)
    return total
