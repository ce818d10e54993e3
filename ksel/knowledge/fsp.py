"""Knowledge in the flow between two layers: FSP (Gram) matrices."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ksel.knowledge.base import Part, Request, real_states, student_layers, teacher_layers
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals


def build_fsp(request: Request) -> Part:
    """FSP matrices between consecutive matched layers.

    Raises:
        UsageError: widths differ, or fewer than two layers are matched.
    """
    student, teacher, pairs = request.student, request.teacher, request.pairs
    if student.width != teacher.width:
        raise request.refuse(
            "compares matrices of width x width, but the student's width is "
            f"{student.width} and the teacher's {teacher.width}",
            f"Use 'value_relation/{request.matching}', which takes any widths, or set "
            f"--student.width {teacher.width}.",
        )
    if len(pairs) < 2:
        raise request.refuse(
            "compares what happens between two matched layers, but only one is matched",
            f"Name two pairs ('fsp/0-0+{student.layers}-{teacher.layers}'; 0 is the embedding "
            f"output), or use 'hidden/{request.matching}'.",
        )
    return Part(
        partial(fsp_distance, pairs=pairs),
        Needs(hidden=student_layers(pairs)),
        Needs(hidden=teacher_layers(pairs)),
        pairs=pairs,
    )


def fsp_distance(student: Signals, teacher: Signals, batch: Batch, *, pairs: Pairs) -> Tensor:
    """MSE of FSP matrices summed over consecutive matched layers, per example [b].

    G_ij = F_i^T F_j / n over an example's n real tokens, F the states [n, h] of a layer; mean
    over the h x h entries (Yim et al. 2017, eq. 1; RelK of Wang et al. 2022).
    """
    total = torch.zeros((), device=batch.attention_mask.device)
    for (s1, t1), (s2, t2) in pairwise(pairs):
        x = fsp_matrix(student.hidden[s1], student.hidden[s2], batch)
        y = fsp_matrix(teacher.hidden[t1], teacher.hidden[t2], batch)
        total = total + (x - y).square().mean((-1, -2))
    return total


def fsp_matrix(first: Tensor, second: Tensor, batch: Batch) -> Tensor:
    """G = F_i^T F_j / n: states [b, n, h] of two layers -> [b, h, h], padding left out."""
    count = batch.attention_mask.sum(-1).clamp_min(1)[:, None, None]
    return real_states(first, batch).transpose(-1, -2) @ real_states(second, batch) / count
