"""Knowledge in how alike an example's tokens are: n x n Gram matrices; widths may differ."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ksel.knowledge.base import Part, Request, real_states, student_layers, teacher_layers, zero
from ksel.matching import Pairs
from ksel.types import Batch, Needs, Signals


def build_nst(request: Request) -> Part:
    """Gram matrices of the tokens of matched layers."""
    pairs = request.pairs
    return Part(
        partial(nst_distance, pairs=pairs),
        Needs(hidden=student_layers(pairs)),
        Needs(hidden=teacher_layers(pairs)),
        pairs,
    )


def nst_distance(student: Signals, teacher: Signals, batch: Batch, *, pairs: Pairs) -> Tensor:
    """MSE of Gram matrices summed over matched layers, per example [b].

    K = H H^T / h of an example's n real tokens, h each model's own width; mean over the n x n
    entries (the polynomial kernel of neuron selectivity transfer, Huang and Wang 2017, turned to
    tokens as in Lu et al. 2022).
    """
    entries = batch.attention_mask.sum(-1).clamp_min(1).square()
    total = zero(batch)
    for s, t in pairs:
        x, y = (gram_matrix(real_states(h, batch)) for h in (student.hidden[s], teacher.hidden[t]))
        total = total + (x - y).square().sum((-1, -2)) / entries
    return total


def gram_matrix(states: Tensor) -> Tensor:
    """K = H H^T / h: states [b, n, h], padding at 0 -> [b, n, n]."""
    return states @ states.transpose(-1, -2) / states.shape[-1]
