"""Settings of the amortised search: credit, branches; part of :mod:`ksel.config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class CreditConfig:
    """Credit: the predicted drop of the objective on the reward split owed to each knowledge type."""

    rows: int | None = None
    """Rows of the reward split in one held-out gradient; null = half of --batching.size."""
    every: int = 4
    """Updates between two held-out gradients."""
    horizon: int = 40
    """Updates over which the running average of held-out gradients reaches."""
    batch: int | None = None
    """Rows of the training batch on which the derivatives of the K losses are taken; 0 = all; null = a
    quarter of --batching.size."""
    interval: int = 4
    """Updates between two passes for the derivatives; between them the last ones hold."""
    window: int = 10
    """Updates over which the credit that agents see is averaged."""
    method: Literal["auto", "jvp", "difference"] = "auto"
    """jvp: one forward-mode pass, exact; difference: two forwards, a finite difference, to about 1 % of
    the largest; auto: difference, which is faster."""
    preconditioner: Literal["adam", "none"] = "adam"
    """adam: the direction of an AdamW update; none: that of plain gradient descent."""
    embeddings: bool = False
    """Let the word embeddings take part in the direction; few of their rows are in a batch."""
    clip: bool = True
    """Take into account that gradients are clipped, so that types share a limited length."""
    clip_every: int = 50
    """Updates between two measurements of how the types' gradients lie to each other."""


@dataclass(frozen=True)
class CreditSizes:
    """How many rows credit looks at.

    Attributes:
        rows: of the reward split, in one held-out gradient.
        batch: of the training batch, for the derivatives; 0 = all.
    """

    rows: int
    batch: int


def credit_sizes(settings: CreditConfig, batch_size: int) -> CreditSizes:
    """What ``rows`` and ``batch`` stand for: as given, or half and a quarter of B (two rows at least).

    So the share of an update that credit costs does not depend on the size of the batch. Types that
    compare rows with each other need two.

    Args:
        settings: of credit.
        batch_size: B, rows of one update, ``batching.size``.
    """
    least = min(2, batch_size)
    rows = max(least, batch_size // 2) if settings.rows is None else settings.rows
    batch = max(least, batch_size // 4) if settings.batch is None else settings.batch
    return CreditSizes(rows, batch)


@dataclass
class BranchesConfig:
    """Branches: the student is forked, each fork holds one mask, and all are measured."""

    count: int = 4
    """Forks."""
    updates: int = 10
    """Updates for which each fork holds its mask."""
    every: int = 50
    """Updates from the start of one fork to that of the next."""
