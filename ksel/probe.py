"""What the student's states know of the task, whatever its head makes of them: ridge regression on them.

A head that starts from random numbers, or lags behind, hides the worth of the states below it. A linear probe
(Alain & Bengio 2017, arXiv 1610.01644) looks past the head: each row is predicted from all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = tuple(10.0**power for power in torch.arange(-3.0, 3.5, 0.5).tolist())
"""Penalties that are tried, in multiples of the mean squared singular value of the states."""


@dataclass(frozen=True)
class Ridge:
    """A ridge regression from states to targets.

    Attributes:
        weight: [h, C].
        bias: [C].
        mean: [h] mean of the states.
        penalty: c, where the penalty of all rows together is c |weight|^2 sum |x_i - mean|^2; it grows
            with the states, so that their size does not matter.
        rows: [N] squared error of each row as the others predict it, averaged over the C targets.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    penalty: float
    rows: Tensor

    def to(self, device: torch.device) -> Ridge:
        """The same on a device."""
        tensors = (self.weight, self.bias, self.mean)
        weight, bias, mean = (tensor.to(device) for tensor in tensors)
        return Ridge(weight, bias, mean, self.penalty, self.rows.to(device))


def fit_ridge(states: Tensor, targets: Tensor) -> Ridge:
    """The ridge regression whose leave-one-out error is least over :data:`RIDGES`.

    With the hat matrix H the error of row i as the others predict it is (y_i - y^_i) / (1 - H_ii)
    (Allen 1974, PRESS), so no regression is made twice. The bias is not penalised.

    Args:
        states: [N, h], N at least 3.
        targets: [N, C].

    Returns:
        In float64, on the device of the states.

    Raises:
        ValueError: fewer than three rows.
    """
    if len(states) < 3:
        raise ValueError("a probe needs three rows or more")
    x, y = states.double(), targets.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = y - y_mean
    left, sizes, right = torch.linalg.svd(x - x_mean, full_matrices=False)
    squares, known = sizes.square(), left.T @ centred
    scale = squares.mean().clamp_min(1e-30)
    best: tuple[float, float, Tensor, Tensor] | None = None
    for ridge in RIDGES:
        kept = squares / (squares + ridge * scale)
        leverage = (left.square() * kept).sum(1) + 1.0 / len(x)
        errors = (centred - left @ (kept[:, None] * known)) / (1.0 - leverage)[:, None]
        rows = errors.square().mean(1)
        mean = float(rows.mean())
        if best is None or mean < best[0]:
            shrunk = sizes / (squares + ridge * scale)
            best = mean, ridge, rows, right.T @ (shrunk[:, None] * known)
    assert best is not None
    _, ridge, rows, weight = best
    return Ridge(weight, y_mean - x_mean @ weight, x_mean, ridge / len(sizes), rows)


def ridge_rows(states: Tensor, targets: Tensor, ridge: Ridge) -> Tensor:
    """What a regression held still makes of rows: squared error and each row's part of the penalty.

    Its mean over the rows that it was made of is what it minimises, so its derivative with respect to their
    states needs no derivative of the regression. Stretching the states, which the regression would
    undo, changes nothing to first order.

    Args:
        states: [N, h].
        targets: [N, C].
        ridge: from :func:`fit_ridge`, of these or other rows.

    Returns:
        [N], in the precision of the regression.
    """
    x = states.to(ridge.weight.dtype)
    errors = (x @ ridge.weight + ridge.bias - targets).square().mean(-1)
    spread = (x - ridge.mean).square().sum(-1)
    return errors + ridge.penalty / targets.shape[-1] * ridge.weight.square().sum() * spread
