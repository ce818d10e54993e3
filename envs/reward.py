"""What a decision is paid: the drop of the reward-split objective, scaled, plus optional terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

LIMIT = 10.0
"""A scaled drop beyond this is cut, so that one outlier cannot dominate the critic."""
SMALLEST_SCALE = 1e-8
LOW_QUANTILE, HIGH_QUANTILE = 0.2, 0.8


@dataclass
class DropScale:
    """Brings drops to order 1 by the drops of this episode; starts anew with each.

    ``running`` divides by the root mean square of the drops so far, this one included.
    ``quantile`` maps the range between the 20 % and the 80 % quantile to [-1, 1] and cuts the
    rest (Graves et al. 2017). ``none`` leaves the drop.

    Attributes:
        mode: ``running``, ``quantile`` or ``none``.
        drops: the drops of the episode so far.
    """

    mode: str
    drops: list[float] = field(default_factory=list)

    def __call__(self, drop: float) -> tuple[float, float]:
        """Scale one drop.

        Returns:
            The scaled drop, and the scale: what a drop is divided by (after its offset, for
            ``quantile``).
        """
        if self.mode == "none":
            return drop, 1.0
        self.drops.append(drop)
        if self.mode == "running":
            scale = max(math.sqrt(float(np.mean(np.square(self.drops)))), SMALLEST_SCALE)
            return float(np.clip(drop / scale, -LIMIT, LIMIT)), scale
        low, high = np.quantile(self.drops, (LOW_QUANTILE, HIGH_QUANTILE))
        half = float(max((high - low) / 2, SMALLEST_SCALE))
        return float(np.clip((drop - (low + high) / 2) / half, -1.0, 1.0)), half

    def copy(self) -> DropScale:
        """An independent copy."""
        return DropScale(self.mode, list(self.drops))


@dataclass
class Exploration:
    """Exploration reward of the selection paper (arXiv 2302.00444), within an episode.

    Called once for each decision; the paper's phase is a decision, ``env.phase_steps`` updates
    long. Soft actions: minus the cosine similarity with the action of the phase before, 0 for
    the first one and beside an empty action. Hard actions: 1 / sqrt(how often this mask was
    taken so far, this time included); the paper's "falls with the count" leaves the form open.

    Attributes:
        soft: True if actions are weights.
        previous: the last soft action.
        counts: hard mask -> how often it was taken.
    """

    soft: bool
    previous: np.ndarray | None = None
    counts: dict[bytes, int] = field(default_factory=dict)

    def __call__(self, action: np.ndarray) -> float:
        """The bonus of one action [K], before its weight."""
        if not self.soft:
            key = action.astype(np.int8).tobytes()
            self.counts[key] = self.counts.get(key, 0) + 1
            return 1.0 / math.sqrt(self.counts[key])
        previous, self.previous = self.previous, action.copy()
        if previous is None:
            return 0.0
        norms = float(np.linalg.norm(previous) * np.linalg.norm(action))
        return -float(previous @ action) / norms if norms > 0 else 0.0

    def copy(self) -> Exploration:
        """An independent copy."""
        previous = None if self.previous is None else self.previous.copy()
        return Exploration(self.soft, previous, dict(self.counts))
