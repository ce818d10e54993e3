"""Running sizes of the losses: what ``balance: ema`` divides by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class RunningSizes:
    """Bias-corrected exponential mean of each raw loss.

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

    def note(self, loss: np.ndarray) -> None:
        """Add one observation of each loss; nan = not observed."""
        seen = np.isfinite(loss)
        self.totals[seen] = self.decay * self.totals[seen] + (1.0 - self.decay) * loss[seen]
        self.counts[seen] += 1

    def values(self) -> np.ndarray:
        """[K] running sizes; 1 where nothing was seen yet."""
        seen = self.counts > 0
        correction = np.where(seen, 1.0 - self.decay**self.counts, 1.0)
        return np.where(seen, np.maximum(self.totals / correction, self.least), 1.0)

    def copy(self) -> RunningSizes:
        """An independent copy."""
        return RunningSizes(self.decay, self.least, self.totals.copy(), self.counts.copy())
