"""Knowledge in attention maps, formed from queries and keys so that fused attention stays on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log
from typing import Literal

import torch
from torch import Tensor

from ksel.knowledge.base import (
    Part,
    Request,
    divergence,
    masked_log_softmax,
    real_states,
    real_tokens,
    student_layers,
    teacher_layers,
    zero,
)
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals

On = Literal["maps", "scores"]
Compare = Callable[[Tensor, Tensor, Batch], Tensor]
"""(student, teacher, batch) -> [b]; scores [b, heads, n, n] from :func:`map_scores`."""


def build_attention(request: Request) -> Part:
    """Attention of matched layers, head by head.

    Raises:
        UsageError: the numbers of heads differ.
    """
    student, teacher, settings = request.student, request.teacher, request.settings
    if student.heads != teacher.heads:
        raise request.refuse(
            f"compares attention maps head by head, but the student has {student.heads} heads and "
            f"the teacher {teacher.heads}",
            f"Use {request.other('attention_mean')}, or {request.other('value_relation')} with a "
            "--knowledge.relation_heads that divides both widths, or set "
            f"--student.heads {teacher.heads}.",
        )
    if settings.attention_loss == "kl":
        return _part(request, row_divergence)
    return _part(request, partial(row_mse, on=settings.attention_on))


def build_attention_mean(request: Request) -> Part:
    """Attention of matched layers, averaged over the heads."""
    settings = request.settings
    if settings.attention_loss == "kl":
        return _part(request, mean_row_divergence)
    return _part(request, partial(mean_row_mse, on=settings.attention_on))


def build_attention_sum(request: Request) -> Part:
    """Attention of matched layers, summed over the heads."""
    heads = request.teacher.heads
    return _part(request, partial(mean_row_mse, on=request.settings.attention_on, factor=heads))


def _part(request: Request, compare: Compare) -> Part:
    pairs = request.pairs
    s, t = student_layers(pairs), teacher_layers(pairs)
    loss = partial(
        attention_distance,
        pairs=pairs,
        heads=(request.student.heads, request.teacher.heads),
        compare=compare,
    )
    return Part(loss, Needs(query=s, key=s), Needs(query=t, key=t), pairs)


def attention_distance(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    heads: tuple[int, int],
    compare: Compare,
) -> Tensor:
    """Distance of attention summed over matched layers and real query tokens, per example [b].

    Args:
        heads: of student and teacher.
        compare: how the scores of two layers are compared.
    """
    total = zero(batch)
    for s, t in pairs:
        x = map_scores(student.query[s], student.key[s], heads[0], batch)
        y = map_scores(teacher.query[t], teacher.key[t], heads[1], batch)
        total = total + compare(x, y, batch)
    return total


def map_scores(query: Tensor, key: Tensor, heads: int, batch: Batch) -> Tensor:
    """Scaled dot products per head, padded keys at minus infinity.

    Args:
        query, key: [b, n, h], heads concatenated.
        heads: number of heads, a divisor of h.

    Returns:
        [b, heads, n, n], the maps before the softmax.
    """
    q, k = (
        real_states(x, batch).unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (query, key)
    )
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5)
    return torch.where(_real_keys(batch), scores, -inf)


def row_divergence(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Sum over real query tokens of the mean over heads of KL(teacher row || student row) [b].

    MiniLM (Wang et al. 2020, eq. 6). The cross-entropy of Lu et al. 2022 has the same gradient:
    it is larger by the entropy of the teacher's rows.

    Args:
        student, teacher: [b, heads, n, n] from :func:`map_scores`.
    """
    real = _real_keys(batch)
    rows = divergence(masked_log_softmax(student, real), masked_log_softmax(teacher, real))
    return _sum_real(rows.mean(-2), batch)


def row_mse(student: Tensor, teacher: Tensor, batch: Batch, *, on: On = "maps") -> Tensor:
    """Sum over real query tokens of the squared difference, mean over heads and real keys [b].

    TinyBERT (Jiao et al. 2020, eq. 7), on the maps or on the scores before the softmax.

    Args:
        student, teacher: [b, heads, n, n] from :func:`map_scores`.
    """
    return _squares(_entries(student, batch, on), _entries(teacher, batch, on), batch)


def mean_row_divergence(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Sum over real query tokens of KL(teacher || student) of rows averaged over the heads [b].

    The cross-entropy averaged over heads of Lu et al. 2022, less the teacher's entropy.

    Args:
        student, teacher: [b, heads, n, n] from :func:`map_scores`; heads may differ.
    """
    x, y = (_log_mean_maps(scores, batch) for scores in (student, teacher))
    return _sum_real(divergence(x, y), batch)


def mean_row_mse(
    student: Tensor, teacher: Tensor, batch: Batch, *, on: On = "maps", factor: int = 1
) -> Tensor:
    """Sum over real query tokens of the squared difference of ``factor`` times head means [b].

    Mean over real keys. With ``factor`` = the number of heads these are sums over the heads
    (Lu et al. 2022). Where the numbers of heads differ, the student's sum is thereby brought to
    the teacher's number: plain sums would differ even between equal maps.

    Args:
        student, teacher: [b, heads, n, n] from :func:`map_scores`; heads may differ.
    """
    x, y = (_entries(scores, batch, on).mean(1, keepdim=True) for scores in (student, teacher))
    return _squares(factor * x, factor * y, batch)


def _entries(scores: Tensor, batch: Batch, on: On) -> Tensor:
    """Maps, or scores with padded keys at 0."""
    return scores.softmax(-1) if on == "maps" else scores.masked_fill(~_real_keys(batch), 0.0)


def _log_mean_maps(scores: Tensor, batch: Batch) -> Tensor:
    """Logarithm of the mean over heads of the maps, 0 at padded keys [b, n, n]."""
    real = _real_keys(batch)
    mean = masked_log_softmax(scores, real).logsumexp(1) - log(scores.shape[1])
    return mean.masked_fill(~real[:, 0], 0.0)


def _squares(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    rows = (student - teacher).square().sum(-1).mean(-2)
    return _sum_real(rows, batch) / batch.attention_mask.sum(-1).clamp_min(1)


def _real_keys(batch: Batch) -> Tensor:
    return real_tokens(batch)[:, None, None, :]


def _sum_real(rows: Tensor, batch: Batch) -> Tensor:
    """[b, n] -> [b], real tokens only."""
    return rows.masked_fill(~real_tokens(batch), 0.0).sum(-1)
