"""Knowledge in the states of matched layers: of the [CLS] token, or of all tokens."""

from __future__ import annotations

import hashlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ksel.knowledge.base import (
    Part,
    Request,
    at_least_float32,
    real_states,
    student_layers,
    teacher_layers,
)
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals


def build_cls_hidden(request: Request) -> Part:
    """[CLS] states, with Patient KD's layer sets.

    Where ``response`` is in the pool it already teaches the last student layer, which is
    therefore left out unless the user named the pairs: 12 -> 6 layers gives teacher layers
    {2, 4, 6, 8, 10} for ``skip`` and {7, ..., 11} for ``last`` (Sun et al. 2019, section 3.2).

    Raises:
        UsageError: widths differ, or no layer is left.
    """
    student, teacher = request.student, request.teacher
    if student.width != teacher.width:
        raise request.refuse(
            f"compares [CLS] states of equal width, but the student's width is {student.width} "
            f"and the teacher's {teacher.width}",
            f"Use 'hidden/{request.matching}', which learns a projection, or set "
            f"--student.width {teacher.width}.",
        )
    pairs = request.pairs
    if "response" in request.pool_kinds and not request.explicit:
        pairs = tuple((s, t) for s, t in pairs if s != student.layers)
    if not pairs:
        raise request.refuse(
            "leaves out the last student layer because response is in the pool, and no other "
            "layer is matched",
            f"Name the pair ('cls_hidden/{student.layers}-{teacher.layers}'), use "
            f"'hidden/{request.matching}', or take response out of the pool.",
        )
    loss = partial(cls_distance, pairs=pairs, normalize=request.settings.normalize_cls)
    return Part(
        loss, Needs(cls=student_layers(pairs)), Needs(cls=teacher_layers(pairs)), pairs=pairs
    )


def build_hidden(request: Request) -> Part:
    """All token states; with a learned projection per pair where the widths differ."""
    pairs, student, teacher = request.pairs, request.student, request.teacher
    projections: dict[str, nn.Module] = {}
    if student.width != teacher.width:
        for s, t in pairs:
            projections[f"{s}_{t}"] = _projection(
                student.width, teacher.width, f"{request.seed}/{request.spec}/{s}-{t}"
            )
    return Part(
        partial(hidden_distance, pairs=pairs, projections=projections),
        Needs(hidden=student_layers(pairs)),
        Needs(hidden=teacher_layers(pairs)),
        pairs=pairs,
        projections=projections,
    )


def cls_distance(
    student: Signals, teacher: Signals, batch: Batch, *, pairs: Pairs, normalize: bool
) -> Tensor:
    """Squared distance of [CLS] states summed over matched layers, per example [b].

    PT of Patient KD (Sun et al. 2019, eq. 7): states are brought to unit length if
    ``normalize``; the squared distance is *summed* over the width. The authors' code averages
    over the width too, so their beta is this loss's weight times (layers x width).
    """
    total = torch.zeros((), device=batch.attention_mask.device)
    for s, t in pairs:
        x, y = at_least_float32(student.cls[s]), at_least_float32(teacher.cls[t])
        if normalize:
            x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        total = total + (x - y).square().sum(-1)
    return total


def hidden_distance(
    student: Signals,
    teacher: Signals,
    batch: Batch,
    *,
    pairs: Pairs,
    projections: dict[str, nn.Module],
) -> Tensor:
    """MSE of token states summed over matched layers and real tokens, per example [b].

    MSE(H_S W, H_T) of TinyBERT (Jiao et al. 2020, eq. 8) and FeaK of Wang et al. 2022: mean
    over the teacher's width. W is left out where the widths are equal.
    """
    total = torch.zeros((), device=batch.attention_mask.device)
    for s, t in pairs:
        x, y = real_states(student.hidden[s], batch), real_states(teacher.hidden[t], batch)
        if projections:
            x = projections[f"{s}_{t}"](x)
        total = total + (x - y).square().mean(-1).sum(-1)
    return total


def _projection(student_width: int, teacher_width: int, name: str) -> nn.Linear:
    """W of TinyBERT: no bias (so that zeroed padding stays zero), and of the size that keeps
    the states' variance. Drawn from a generator of its own, seeded by ``name``: neither torch's
    global generator nor the other types in the pool play a part.
    """
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    weight = torch.empty(teacher_width, student_width)
    weight.normal_(std=student_width**-0.5, generator=generator)
    layer = nn.utils.skip_init(nn.Linear, student_width, teacher_width, bias=False)
    layer.weight = nn.Parameter(weight)
    return layer
