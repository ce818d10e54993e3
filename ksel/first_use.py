"""Types selected for the first time: what their losses are divided by is measured before the update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ksel.gradients import SeparateGradients
from ksel.types import Batch

if TYPE_CHECKING:
    from ksel.distiller import Distiller


def first_losses(
    student: Distiller, fresh: list[int], micro: list[Batch], amounts: list[Tensor]
) -> dict[int, float]:
    """Losses of a whole batch, with the dropout masks that its update will draw.

    Args:
        student: which is to learn from the batch.
        fresh: the types.
        micro: the batch's micro-batches.
        amounts: [K] units of each type in the whole batch.

    Returns:
        type -> loss.
    """
    losses = dict.fromkeys(fresh, 0.0)
    with torch.no_grad(), student._own_dropout(keep=False):
        for part in micro:
            for k, value in student._shares(fresh, part, amounts).items():
                losses[k] += value.item()
    return losses


def first_norms(
    student: Distiller, fresh: list[int], batch: Batch, micro: list[Batch], amounts: list[Tensor]
) -> dict[int, float]:
    """Norms of the losses' gradients on a whole batch; otherwise as :func:`first_losses`.

    Raises:
        UsageError: a loss has no gradient.
    """
    with student._own_dropout(keep=False), student._own_rows(batch):
        separate = SeparateGradients(student._leaves, len(micro))
        for part in micro:
            values = student._shares(fresh, part, amounts)
            student._check_graphs(values)
            with student.ledger.time("student_backward", len(part)):
                separate.add(values, None)
    return separate.norms
