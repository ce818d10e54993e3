"""What each loss is divided by: running sizes of the losses (``ema``), or norms of their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ksel.config import KnowledgeConfig

if TYPE_CHECKING:
    from ksel.records import Update


@dataclass
class RunningSizes:
    """Bias-corrected exponential mean of one number of each loss: its value, or its gradient's norm.

    Attributes:
        decay: decay per observation.
        least: no size is taken to be below this, so that a loss near 0 (the student matches
            already) is not blown up.
        totals: [K] uncorrected means.
        counts: [K] observations so far.
    """

    decay: float
    least: float
    totals: np.ndarray
    counts: np.ndarray

    @classmethod
    def zeros(cls, count: int, decay: float, least: float) -> RunningSizes:
        """For ``count`` losses, none of them seen yet."""
        return cls(decay, least, np.zeros(count), np.zeros(count, dtype=np.int64))

    def note(self, size: np.ndarray) -> None:
        """Add one observation of each loss; nan = not observed."""
        seen = np.isfinite(size)
        self.totals[seen] = self.decay * self.totals[seen] + (1.0 - self.decay) * size[seen]
        self.counts[seen] += 1

    def note_some(self, sizes: dict[int, float]) -> None:
        """Add one observation of some losses, by their number."""
        every = np.full(len(self.counts), np.nan)
        every[list(sizes)] = list(sizes.values())
        self.note(every)

    def values(self) -> np.ndarray:
        """[K] running sizes; 1 where nothing was seen yet."""
        seen = self.counts > 0
        correction = np.where(seen, 1.0 - self.decay**self.counts, 1.0)
        return np.where(seen, np.maximum(self.totals / correction, self.least), 1.0)

    def values_or(self, first: np.ndarray) -> np.ndarray:
        """[K] running sizes; where nothing was seen yet what they would be after ``first`` [K]."""
        return np.where(self.counts > 0, self.values(), np.maximum(first, self.least))

    def copy(self) -> RunningSizes:
        """An independent copy."""
        return RunningSizes(self.decay, self.least, self.totals.copy(), self.counts.copy())


def new_sizes(knowledge: KnowledgeConfig, count: int) -> RunningSizes:
    """Running sizes of ``count`` losses, noted in each update in which a loss is selected."""
    return RunningSizes.zeros(count, knowledge.ema_decay, 1.0 / knowledge.max_gain)


def new_norms(knowledge: KnowledgeConfig, count: int) -> RunningSizes:
    """Running norms of ``count`` losses' gradients, noted every ``balance_every`` updates."""
    decay = knowledge.ema_decay**knowledge.balance_every
    return RunningSizes.zeros(count, decay, 1.0 / knowledge.max_gain)


def divisor(
    knowledge: KnowledgeConfig, sizes: RunningSizes, norms: RunningSizes
) -> RunningSizes | None:
    """Which of the two the losses are divided by; None = neither."""
    return {"ema": sizes, "gradient": norms, "none": None}[knowledge.balance]


def unseen(running: RunningSizes | None, active: list[int]) -> list[int]:
    """Selected types that there is nothing yet to divide by; none without balance."""
    return [] if running is None else [k for k in active if running.counts[k] == 0]


def is_due(knowledge: KnowledgeConfig, update: int) -> bool:
    """True where the norms of the selected losses' gradients are to be noted after this update."""
    return knowledge.balance == "gradient" and update % knowledge.balance_every == 0


def set_weights(
    record: Update,
    action: np.ndarray,
    static: np.ndarray,
    active: list[int],
    running: RunningSizes | None,
) -> None:
    """Write down the scale of each loss and the weight of each selected one.

    weight_k = action_k * static_k / scale_k, with scale_k from the updates before this one.

    Args:
        record: of the update.
        action: [K] what is learned from, stage and schedule applied.
        static: [K] static weights.
        active: the selected types.
        running: see :func:`divisor`.
    """
    if running is not None:
        record.scale[:] = running.values()
    for k in active:
        record.weight[k] = action[k] * static[k] / record.scale[k]
