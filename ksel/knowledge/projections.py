"""Learned maps from the student's width to the teacher's; trained with the student, then dropped."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from ksel.knowledge.base import Request
from ksel.matching import Pairs

Projections = dict[str, nn.Module]
"""Matched layers ("1_2") -> a map from the student's width to the teacher's; empty = none."""


def learned_projections(request: Request, pairs: Pairs, *, optional: bool = True) -> Projections:
    """One projection per type and pair of layers, where the widths differ.

    Args:
        optional: the kind has them for equal widths too, where the user wants them.
    """
    student, teacher = request.student.width, request.teacher.width
    wanted = optional and request.settings.projection == "always"
    if student == teacher and not wanted:
        return {}
    names = {f"{s}_{t}": f"{request.seed}/{request.spec}/{s}-{t}" for s, t in pairs}
    return {key: projection(student, teacher, name) for key, name in names.items()}


def projected(states: Tensor, projections: Projections, student: int, teacher: int) -> Tensor:
    """Student states [..., h_S] -> [..., h_T]; as they are where there is no projection.

    Args:
        student, teacher: the matched layers.
    """
    return projections[f"{student}_{teacher}"](states) if projections else states


def projection(student_width: int, teacher_width: int, name: str) -> nn.Linear:
    """W of TinyBERT (Jiao et al. 2020, eq. 8), without bias, so that zeroed padding stays zero.

    Equal widths start at the identity: a student made of the teacher's layers keeps its good
    start, which a random W would first have to learn again. Other widths start at random, at the
    size that keeps the states' variance, from a generator of their own, seeded by ``name``:
    neither torch's global generator nor the other types in the pool play a part.
    """
    if student_width == teacher_width:
        weight = torch.eye(student_width)
    else:
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        weight = torch.empty(teacher_width, student_width)
        weight.normal_(std=student_width**-0.5, generator=generator)
    layer = nn.utils.skip_init(nn.Linear, student_width, teacher_width, bias=False)
    layer.weight = nn.Parameter(weight)
    return layer
