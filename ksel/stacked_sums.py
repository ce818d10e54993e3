"""What one batched update of N students is asked for, and the sums it gathers over micro-batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ksel.records import Update
from ksel.stacking import Seen
from ksel.types import Batch, Signals

Gradients = list[Tensor | None]
"""For each parameter [n, ...]; None = nothing that is learned depends on it."""


@dataclass
class Job:
    """One update of all students.

    Attributes:
        parts: micro-batches with each teacher's signals.
        amounts: [K] units of each type in the whole batch.
        actions: [N, K] what each student learns from, stage and schedule applied.
        off: for each student the types that are only looked at.
        records: what each student's update leaves behind.
        observe: also look at entropy, agreement and the rest.
        fresh: for each student the types selected for the first time, where that matters.
        norms: for each student type -> norm of its gradient, where the balance needs it.
    """

    parts: list[tuple[Batch, list[Signals]]]
    amounts: list[Tensor]
    actions: np.ndarray
    off: list[list[int]]
    records: list[Update]
    observe: bool
    fresh: list[list[int]] = field(init=False)
    norms: list[dict[int, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.fresh = [[] for _ in self.records]
        self.norms = [{} for _ in self.records]

    def active(self, n: int) -> list[int]:
        """Types that student ``n`` learns from."""
        return [int(k) for k in np.flatnonzero(self.actions[n] > 0)]


@dataclass
class Totals:
    """Sums over the micro-batches, for some students.

    Attributes:
        losses: type -> [n].
        sums: of :class:`ksel.observing.Observed`, [n, ...].
        examples: examples so far.
        grads: gradients of the weighted losses.
        each: type -> gradients of its own loss, where they are measured.
    """

    losses: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0
    grads: Gradients = field(default_factory=list)
    each: dict[int, Gradients] = field(default_factory=dict)

    def add(self, seen: Seen, examples: int) -> None:
        """Take in a micro-batch."""
        for k, value in (*seen.learned.items(), *seen.looked.items()):
            _add(self.losses, k, value.detach())
        for name, value in seen.sums.items():
            _add(self.sums, name, value)
        self.examples += examples


def _add(sums: dict[Any, Tensor], key: Any, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value


def add_gradients(into: Gradients, found: Iterable[Tensor | None]) -> None:
    """Add the gradients of a micro-batch, in place."""
    for i, g in enumerate(found):
        before = into[i]
        if g is not None:
            into[i] = g if before is None else before + g


def along(values: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n, 1, ...], to go with [n, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def norms_of(grads: Gradients) -> Tensor:
    """Each student's norm over all parameters [n]."""
    parts = [g.flatten(1).norm(dim=1) for g in grads if g is not None]
    return torch.stack(parts).norm(dim=0)
