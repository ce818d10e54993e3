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
        rows: [N] squared error of each row as the others predict it, averaged over the C targets.
    """

    weight: Tensor
    bias: Tensor
    rows: Tensor


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
    best: tuple[float, Tensor, Tensor] | None = None
    for ridge in RIDGES:
        kept = squares / (squares + ridge * scale)
        leverage = (left.square() * kept).sum(1) + 1.0 / len(x)
        errors = (centred - left @ (kept[:, None] * known)) / (1.0 - leverage)[:, None]
        rows = errors.square().mean(1)
        mean = float(rows.mean())
        if best is None or mean < best[0]:
            shrunk = sizes / (squares + ridge * scale)
            best = mean, rows, right.T @ (shrunk[:, None] * known)
    assert best is not None
    _, rows, weight = best
    return Ridge(weight, y_mean - x_mean @ weight, rows)
