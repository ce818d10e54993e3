"""The temperature of the response: one number, or each example's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ksel.config import KnowledgeConfig
from ksel.knowledge.base import log_probabilities
from ksel.types import Batch

Temperature = Callable[[Tensor, Tensor, Tensor | None, Batch], float | Tensor]
"""(student, teacher, real, batch) -> a number, or one for each row [b, r, 1].

student, teacher: logits [b, r, c], 0 where an entry does not count; real: bool [b, 1, c], False
where it does not, or None.
"""

EACH_ITS_OWN = ("flsw", "cwsm")
"""Schedules that compare an example with the rest of its batch."""


def temperature_rule(settings: KnowledgeConfig) -> Temperature:
    """The rule that ``temperature_schedule`` names."""
    start, schedule = settings.temperature, settings.temperature_schedule
    if schedule == "linear":
        return partial(linear, start=start, end=settings.temperature_end)
    if schedule == "flsw":
        return partial(
            flsw, base=start, spread=settings.temperature_range, power=settings.temperature_power
        )
    if schedule == "cwsm":
        return partial(cwsm, base=start, spread=settings.temperature_range)
    return partial(linear, start=start, end=start)


def linear(
    student: Tensor,
    teacher: Tensor,
    real: Tensor | None,
    batch: Batch,
    *,
    start: float,
    end: float,
) -> float:
    """From ``start`` to ``end`` over a stage, by the batch's progress."""
    return start + (end - start) * batch.progress


def flsw(
    student: Tensor,
    teacher: Tensor,
    real: Tensor | None,
    batch: Batch,
    *,
    base: float,
    spread: float,
    power: float,
) -> Tensor:
    """Lower where student and teacher point apart: w = (1 - cos(z_S, z_T))^power [b, r, 1].

    Focal-loss style weights of dynamic temperature distillation (Wen et al. 2019).
    """
    x, y = (F.normalize(z.detach(), dim=-1) for z in (student, teacher))
    # Rounding can take a cosine above 1, whose power would be NaN.
    weights = (1 - (x * y).sum(-1, keepdim=True)).clamp_min(0) ** power
    return _around(weights, base, spread)


def cwsm(
    student: Tensor,
    teacher: Tensor,
    real: Tensor | None,
    batch: Batch,
    *,
    base: float,
    spread: float,
) -> Tensor:
    """Lower where the student is unsure: w = 1 / max softmax(z_S) [b, r, 1].

    Confidence-weighted by student max, of dynamic temperature distillation (Wen et al. 2019).
    """
    log_share = log_probabilities(student.detach(), real)
    if real is not None:
        log_share = log_share.masked_fill(~real, float("-inf"))
    return _around(1 / log_share.exp().amax(-1, keepdim=True), base, spread)


def _around(weights: Tensor, base: float, spread: float) -> Tensor:
    """base + (mean(w) - w) spread, the mean over the batch; not below 1, or base if that is lower.

    The paper's temperatures can reach 0 and below; at 1 the answers stand as the models gave them.
    """
    return (base + (weights.mean(0) - weights) * spread).clamp_min(min(base, 1.0))
