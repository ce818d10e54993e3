"""Knowledge in attention maps, formed from queries and keys so that fused attention stays on."""

from __future__ import annotations

from functools import partial
from math import inf

import torch
from torch import Tensor

from ksel.knowledge.base import (
    Part,
    Request,
    real_states,
    real_tokens,
    student_layers,
    teacher_layers,
)
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals


def build_attention(request: Request) -> Part:
    """Attention maps of matched layers.

    Raises:
        UsageError: the numbers of heads differ.
    """
    student, teacher, pairs = request.student, request.teacher, request.pairs
    if student.heads != teacher.heads:
        raise request.refuse(
            f"compares attention maps head by head, but the student has {student.heads} heads and "
            f"the teacher {teacher.heads}",
            f"Use 'value_relation/{request.matching}', whose --knowledge.relation_heads may differ "
            f"from both, or set --student.heads {teacher.heads}.",
        )
    loss = partial(
        attention_distance,
        pairs=pairs,
        heads=teacher.heads,
        divergence=request.settings.attention_loss == "kl",
    )
    s, t = student_layers(pairs), teacher_layers(pairs)
    return Part(loss, Needs(query=s, key=s), Needs(query=t, key=t), pairs=pairs)


def attention_distance(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    heads: int,
    divergence: bool,
) -> Tensor:
    """Distance of attention maps summed over matched layers and real query tokens [b].

    ``divergence`` False: mean over heads and real keys of the squared difference (TinyBERT,
    Jiao et al. 2020, eq. 7, on the maps); True: mean over heads of KL(teacher || student) of a
    token's row (MiniLM, Wang et al. 2020, eq. 6).
    """
    total = torch.zeros((), device=batch.attention_mask.device)
    for s, t in pairs:
        x = map_scores(student.query[s], student.key[s], heads, batch)
        y = map_scores(teacher.query[t], teacher.key[t], heads, batch)
        total = total + (row_divergence if divergence else row_mse)(x, y, batch)
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
    return scores.masked_fill(_padded_keys(batch), -inf)


def row_divergence(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Sum over real query tokens of the mean over heads of KL(teacher row || student row) [b].

    Args:
        student, teacher: [b, heads, n, n] from :func:`map_scores`.
    """
    # Padded keys have probability 0 and log-probability -inf: 0 (-inf + inf) would be NaN. With
    # both logarithms at 0 they add 1 (0 - 0), and no gradient passes.
    padded = _padded_keys(batch)
    log_student = student.log_softmax(-1).masked_fill(padded, 0.0)
    log_teacher = teacher.log_softmax(-1).masked_fill(padded, 0.0)
    rows = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return _sum_real(rows.mean(-2), batch)


def row_mse(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Sum over real query tokens of the squared difference, mean over heads and real keys [b].

    Args:
        student, teacher: [b, heads, n, n] from :func:`map_scores`.
    """
    rows = (student.softmax(-1) - teacher.softmax(-1)).square().sum(-1).mean(-2)
    return _sum_real(rows, batch) / batch.attention_mask.sum(-1).clamp_min(1)


def _padded_keys(batch: Batch) -> Tensor:
    return ~real_tokens(batch)[:, None, None, :]


def _sum_real(rows: Tensor, batch: Batch) -> Tensor:
    """[b, n] -> [b], real tokens only."""
    return rows.masked_fill(~real_tokens(batch), 0.0).sum(-1)
