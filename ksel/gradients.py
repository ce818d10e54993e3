"""Gradients of the selected losses: all in one backward, or type by type with the norm of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def add_together(losses: dict[int, Tensor], weight: np.ndarray) -> None:
    """Add the gradient of the weighted sum of losses to the parameters, in one backward pass.

    Args:
        losses: type -> scalar.
        weight: [K] factor of each type's loss.
    """
    torch.stack([float(weight[k]) * loss for k, loss in losses.items()]).sum().backward()


class SeparateGradients:
    """Does what :func:`add_together` does, but type by type, and keeps the norm of each.

    Norms are of the losses as they are, so that a small weight is not mistaken for no gradient.

    Args:
        parameters: where gradients go.
        parts: micro-batches of the update; a norm is known once the last of them was added.

    Attributes:
        norms: type -> norm of the gradient of its unweighted loss of the whole batch.
    """

    def __init__(self, parameters: Sequence[Tensor], parts: int) -> None:
        self.parameters = parameters
        self.parts = parts
        self.norms: dict[int, float] = {}
        self._sums: dict[int, list[Tensor | None]] = {}
        self._added: dict[int, int] = {}

    def add(self, losses: dict[int, Tensor], weight: np.ndarray | None) -> None:
        """Add the gradients of one micro-batch; arguments as of :func:`add_together`.

        Without weights the norms are measured, and the parameters' own gradients left alone.
        """
        for k, loss in losses.items():
            grads = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            if weight is not None:
                self._put(grads, float(weight[k]))
            self._note(k, list(grads))

    def _put(self, grads: Sequence[Tensor | None], weight: float) -> None:
        for parameter, grad in zip(self.parameters, grads, strict=True):
            if grad is None:
                continue
            if parameter.grad is None:
                parameter.grad = grad * weight
            else:
                parameter.grad.add_(grad, alpha=weight)

    def _note(self, k: int, grads: list[Tensor | None]) -> None:
        before = self._sums.pop(k, [None] * len(grads))
        total = [_sum(a, b) for a, b in zip(before, grads, strict=True)]
        self._added[k] = self._added.get(k, 0) + 1
        if self._added[k] < self.parts:
            self._sums[k] = total
        else:
            present = [grad for grad in total if grad is not None]
            self.norms[k] = float(nn.utils.get_total_norm(present))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
