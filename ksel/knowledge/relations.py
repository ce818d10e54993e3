"""Knowledge in the relations among an example's tokens; widths and heads may differ."""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Literal

from torch import Tensor

from ksel.knowledge.attention import map_scores, row_divergence
from ksel.knowledge.base import Part, Request, student_layers, teacher_layers, zero
from ksel.knowledge.states import EMBEDDINGS
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals

Vectors = Literal["query", "key", "value", "attention_output", "hidden"]


def build_relation(request: Request, *, vectors: Vectors) -> Part:
    """Self-attention relations of matched layers.

    Raises:
        UsageError: the number of relation heads does not divide both widths.
    """
    student, teacher = request.student, request.teacher
    heads = request.settings.relation_heads
    if heads is None:
        heads = teacher.heads
    common = gcd(student.width, teacher.width)
    if common % heads:
        fitting = ", ".join(str(r) for r in _divisors(common))
        raise request.refuse(
            f"splits the vectors into {heads} relation heads, which does not divide both the "
            f"student's width {student.width} and the teacher's {teacher.width}",
            f"Set --knowledge.relation_heads to one of {fitting}.",
        )
    return _part(request.pairs, vectors, heads)


def build_attention_output_relation(request: Request) -> Part:
    """Relations among the attention output vectors, split into the student's number of heads.

    Raises:
        UsageError: the student's number of heads does not divide the teacher's.
    """
    student, teacher = request.student, request.teacher
    if teacher.heads % student.heads:
        fitting = ", ".join(str(r) for r in _divisors(teacher.heads))
        raise request.refuse(
            f"groups the teacher's {teacher.heads} heads into as many parts as the student has "
            f"heads, but {student.heads} does not divide {teacher.heads}",
            f"Set --student.heads to one of {fitting}, or use {request.other('value_relation')} "
            "with a --knowledge.relation_heads that divides both widths.",
        )
    return _part(request.pairs, "attention_output", student.heads)


def build_token_similarity(request: Request) -> Part:
    """Relations among the embeddings."""
    return _part(EMBEDDINGS, "hidden", 1)


def _part(pairs: Pairs, vectors: Vectors, heads: int) -> Part:
    return Part(
        partial(relation_divergence, pairs=pairs, heads=heads, vectors=vectors),
        Needs(**{vectors: student_layers(pairs)}),  # type: ignore[arg-type]
        Needs(**{vectors: teacher_layers(pairs)}),  # type: ignore[arg-type]
        pairs,
    )


def _divisors(number: int) -> list[int]:
    return [r for r in range(1, number + 1) if number % r == 0]


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
    teacher's heads it is MiniLM's value relation (Wang et al. 2020, eq. 7-8). With the attention
    output and R = the student's heads it is the attention relation of MLKD-BERT (Zhang et al.
    2024); with the embeddings and R = 1 its token similarity.
    """
    total = zero(batch)
    for s, t in pairs:
        x, y = getattr(student, vectors)[s], getattr(teacher, vectors)[t]
        total = total + row_divergence(
            map_scores(x, x, heads, batch), map_scores(y, y, heads, batch), batch
        )
    return total
