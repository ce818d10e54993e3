"""When all_action believes its credit: means of blocks of decisions, shrunk by what their spread allows.

The credit of one decision is mostly noise (a few held-out rows, a few rows of the batch), and what is near in
time goes together. So gradients are averaged over blocks, and the mean of the last blocks counts as
far as it stands out from their spread: multiplied by 1 - (doubt / t)^2 where t = mean / standard
error exceeds ``doubt``, and by 0 where it does not (positive-part shrinkage, James and Stein 1961).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

FEWEST = 4
"""Blocks without which nothing is believed: the spread of fewer is not known."""


class Evidence:
    """Remembers the gradients of the logits, type by type.

    Args:
        count: K.
        block: decisions of a block; 0 = each gradient counts as it is.
        memory: blocks that are remembered.
        doubt: t from which on a type's gradient counts.
    """

    def __init__(self, count: int, block: int, memory: int, doubt: float) -> None:
        self.block, self.memory, self.doubt = block, memory, doubt
        self.blocks: list[np.ndarray] = []
        self.sums, self.counts = np.zeros(count), np.zeros(count)
        self.decisions = 0

    def weigh(self, gradient: Tensor) -> Tensor:
        """Take in gradients, and give what is to be climbed in their place.

        Args:
            gradient: [T, n, K] of T decisions of n students; 0 = the type cannot be selected now.

        Returns:
            [T, n, K]; 0 stays 0.
        """
        if not self.block:
            return gradient
        for step in gradient.double().numpy():
            self._add(step)
        believed = torch.as_tensor(self.believed(), dtype=gradient.dtype)
        return torch.where(gradient == 0, torch.zeros_like(gradient), believed)

    def _add(self, step: np.ndarray) -> None:
        self.sums += step.sum(0) / len(step)
        self.counts += (step != 0).any(0)
        self.decisions += 1
        if self.decisions == self.block:
            with np.errstate(invalid="ignore", divide="ignore"):
                self.blocks.append(self.sums / self.counts)  # nan: nothing known of the type
            self.blocks = self.blocks[-self.memory :]
            self.sums, self.counts = np.zeros_like(self.sums), np.zeros_like(self.counts)
            self.decisions = 0

    def believed(self) -> np.ndarray:
        """[K] mean of the blocks, shrunk; 0 where too little is known."""
        found = np.zeros_like(self.sums)
        if not self.blocks:
            return found
        for k, column in enumerate(np.stack(self.blocks).T):
            known = column[np.isfinite(column)]
            if len(known) < FEWEST:
                continue
            mean, error = known.mean(), known.std(ddof=1) / np.sqrt(len(known))
            least = self.doubt * error
            if abs(mean) > least:
                found[k] = mean * (1.0 - (least / mean) ** 2)
        return found

    def get_state(self) -> dict[str, Any]:
        """All that is remembered, as JSON values."""
        return {
            "blocks": [[None if np.isnan(x) else float(x) for x in one] for one in self.blocks],
            "sums": self.sums.tolist(),
            "counts": self.counts.tolist(),
            "decisions": self.decisions,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Return to what :meth:`get_state` gave."""
        self.blocks = [np.array(one, dtype=np.float64) for one in state["blocks"]]
        self.sums, self.counts = np.array(state["sums"]), np.array(state["counts"])
        self.decisions = int(state["decisions"])


def pull(logits: Tensor, gradient: Tensor, start: float, anchor: float) -> Tensor:
    """The gradient with the pull of the start: that of - anchor x KL(bits now || bits at the start).

    Its maximum beside a constant credit d is logit(start) + d / anchor; without credit, the start.

    Args:
        logits, gradient: [b, K].
        start: probability that a type is on before anything is learned.
        anchor: weight.
    """
    p = torch.sigmoid(logits)
    away = logits - float(np.log(start / (1.0 - start)))
    return gradient - anchor * p * (1 - p) * away
