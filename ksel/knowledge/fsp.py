"""Knowledge in the flow between two layers: FSP (Gram) matrices."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor

from ksel.knowledge.base import Part, Request, real_states, student_layers, teacher_layers, zero
from ksel.knowledge.projections import Projections, learned_projections, projected
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals


def build_fsp(request: Request) -> Part:
    """FSP matrices between consecutive matched layers; learned projections if the widths differ.

    Raises:
        UsageError: fewer than two layers are matched.
    """
    student, teacher, pairs = request.student, request.teacher, request.pairs
    if len(pairs) < 2:
        named = request.other("fsp", f"0-0+{student.layers}-{teacher.layers}")
        raise request.refuse(
            "compares what happens between two matched layers, but only one is matched",
            f"Name two pairs ({named}; 0 is the embedding output), or use "
            f"{request.other('hidden')}.",
        )
    projections = learned_projections(request, pairs)
    return Part(
        partial(fsp_distance, pairs=pairs, projections=projections),
        Needs(hidden=student_layers(pairs)),
        Needs(hidden=teacher_layers(pairs)),
        pairs,
        projections,
    )


def fsp_distance(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    projections: Projections,
) -> Tensor:
    """MSE of FSP matrices summed over consecutive matched layers, per example [b].

    G_ij = F_i^T F_j / n over an example's n real tokens, F the states [n, h] of a layer; mean
    over the h x h entries (Yim et al. 2017, eq. 1; RelK of Wang et al. 2022). The student's
    states are projected to the teacher's width where the widths differ.
    """
    x = [projected(real_states(student.hidden[s], batch), projections, s, t) for s, t in pairs]
    y = [real_states(teacher.hidden[t], batch) for _, t in pairs]
    total = zero(batch)
    for (x1, x2), (y1, y2) in zip(pairwise(x), pairwise(y), strict=True):
        difference = fsp_matrix(x1, x2, batch) - fsp_matrix(y1, y2, batch)
        total = total + difference.square().mean((-1, -2))
    return total


def fsp_matrix(first: Tensor, second: Tensor, batch: Batch) -> Tensor:
    """G = F_i^T F_j / n: states [b, n, h] of two layers, padding at 0 -> [b, h, h]."""
    count = batch.attention_mask.sum(-1).clamp_min(1)[:, None, None]
    return first.transpose(-1, -2) @ second / count
