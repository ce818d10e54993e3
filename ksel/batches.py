"""The order of batches: a function of lengths, seed and update number alone."""

from __future__ import annotations

import numpy as np

from ksel.errors import UsageError


def updates_per_epoch(rows: int, size: int) -> int:
    """Whole batches of one pass over the rows; 1 if there are fewer rows than one batch."""
    return max(rows // size, 1)


class BatchOrder:
    """Which rows each update trains on; a function of seed and update number alone.

    Every epoch draws a permutation, sorts it by length within windows of ``bucket`` batches, cuts
    it into batches and shuffles these. Rows that do not fill a batch sit the epoch out; fewer rows
    than one batch make a batch of all of them.

    Args:
        lengths: [N] tokens of each example.
        size: examples of one update.
        bucket: batches of one window; 1 = no sorting by length.
        seed: seed of all epochs.

    Raises:
        UsageError: ``size`` or ``bucket`` below 1.
    """

    def __init__(self, lengths: np.ndarray, size: int, bucket: int, seed: int) -> None:
        for name, value in (("size", size), ("bucket", bucket)):
            if value < 1:
                raise UsageError(f"--batching.{name}: {value}; give 1 or more.")
        self.lengths = lengths
        self.size = min(size, len(lengths))
        self.bucket = bucket
        self.seed = seed
        self.batches = updates_per_epoch(len(lengths), size)
        self._epoch = -1
        self._order = np.empty((0, 0), dtype=np.int64)

    def rows(self, update: int) -> np.ndarray:
        """The row numbers [size] int64 of update ``update`` (0 = the first)."""
        epoch, batch = divmod(update, self.batches)
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffle(epoch), epoch
        return self._order[batch].copy()

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        # cut before sorting: cutting after it would always leave out the longest
        order = rng.permutation(len(self.lengths))[: self.batches * self.size]
        if self.bucket > 1:
            window = self.bucket * self.size
            for start in range(0, len(order), window):
                part = order[start : start + window]
                order[start : start + window] = part[np.argsort(self.lengths[part], kind="stable")]
        return order.reshape(self.batches, self.size)[rng.permutation(self.batches)]
