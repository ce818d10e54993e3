"""Knowledge in the relations among queries, keys or values; widths and heads may differ."""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Literal

import torch
from torch import Tensor

from ksel.knowledge.attention import map_scores, row_divergence
from ksel.knowledge.base import Part, Request, student_layers, teacher_layers
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals

Vectors = Literal["query", "key", "value"]


def build_relation(request: Request, *, vectors: Vectors) -> Part:
    """Self-attention relations of matched layers.

    Raises:
        UsageError: the number of relation heads does not divide both widths.
    """
    student, teacher, pairs = request.student, request.teacher, request.pairs
    heads = request.settings.relation_heads
    if heads is None:
        heads = teacher.heads
    common = gcd(student.width, teacher.width)
    if common % heads:
        fitting = ", ".join(str(r) for r in range(1, common + 1) if common % r == 0)
        raise request.refuse(
            f"splits the vectors into {heads} relation heads, which does not divide both the "
            f"student's width {student.width} and the teacher's {teacher.width}",
            f"Set --knowledge.relation_heads to one of {fitting}.",
        )
    s, t = student_layers(pairs), teacher_layers(pairs)
    return Part(
        partial(relation_divergence, pairs=pairs, heads=heads, vectors=vectors),
        Needs(**{vectors: s}),  # type: ignore[arg-type]
        Needs(**{vectors: t}),  # type: ignore[arg-type]
        pairs=pairs,
    )


def relation_divergence(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    heads: int,
    vectors: Vectors,
) -> Tensor:
    """KL of self-relations summed over matched layers and real tokens, per example [b].

    MiniLMv2 (Wang et al. 2021, eq. 5-7): the heads' vectors are concatenated and split anew into
    R relation heads of width d_r; the relation of a token is softmax(x x^T / sqrt(d_r)) over the
    real tokens; mean over relation heads of KL(teacher || student). With the values and R = the
    teacher's heads it is MiniLM's value relation (Wang et al. 2020, eq. 7-8).
    """
    total = torch.zeros((), device=batch.attention_mask.device)
    for s, t in pairs:
        x, y = getattr(student, vectors)[s], getattr(teacher, vectors)[t]
        total = total + row_divergence(
            map_scores(x, x, heads, batch), map_scores(y, y, heads, batch), batch
        )
    return total
