"""What one update leaves behind, and a student's whole state as a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ksel.balance import RunningSizes
from ksel.credit import CreditState


class DivergedError(Exception):
    """A loss or gradient is not finite; the update was not applied. The message names the type."""


@dataclass
class Update:
    """What one update saw and did; arrays have length K, nan where not measured.

    Attributes:
        loss: raw losses of the batch.
        scale: running size each loss was divided by, under ``balance: gradient`` the running norm
            of its gradient (1 without balance).
        weight: what each loss was multiplied with in all: action x static weight / scale.
        grad_norm: norm of each selected type's own gradient of the weighted loss, where measured.
        clip_norm: norm of the whole gradient before clipping; 0 if nothing was selected.
        learning_rate, peak: of this update, and the largest of its stage.
        entropy: mean entropy of the student's outputs over its largest value; nan if unknown.
        agreement: share of examples where student and teacher answer alike (regression: 1 - mean
            absolute difference over the score range); nan if unknown.
        predicted: predicted drop of the objective on the reward split; nan where not asked for.
        credit: [K] part of it owed to each type, see :class:`ksel.credit.Prediction`; nan where not
            asked for, and for types that the stage does not allow.
        student_cls, teacher_cls: [h] mean last-layer [CLS] state, where asked for.
    """

    loss: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    grad_norm: np.ndarray
    credit: np.ndarray
    predicted: float = math.nan
    clip_norm: float = 0.0
    learning_rate: float = 0.0
    peak: float = 1.0
    entropy: float = math.nan
    agreement: float = math.nan
    student_cls: np.ndarray | None = None
    teacher_cls: np.ndarray | None = None


@dataclass
class Snapshot:
    """A student's whole state, copied: weights, optimiser, schedule, data cursor, generators."""

    weights: list[Tensor]
    moments: list[Tensor]
    rng: Tensor
    sizes: RunningSizes
    norms: RunningSizes
    checked: np.ndarray
    cursor: int
    updates: int
    data_seed: int
    plain: bool
    credit: CreditState | None = None


def blank_update(count: int) -> Update:
    """An update that saw and did nothing yet, for ``count`` knowledge types."""
    nothing = np.full(count, math.nan)
    return Update(nothing.copy(), np.ones(count), np.zeros(count), nothing.copy(), nothing.copy())
