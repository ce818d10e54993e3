"""Rewards without measuring each decision: drops predicted from credit, checked over windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from envs.calibration import Calibration, Verdict
from ksel.records import Update
from ksel.trust import RECENT


@dataclass
class Amortized:
    """What an episode with predicted rewards keeps in mind.

    Attributes:
        count: number of knowledge types K.
        window: updates between two measurements of the true drop.
        memory: updates over which the credit that is observed is averaged.
        credit: [K] decaying mean of the credit of an update; nan before the first.
        predicted: predicted drops of the window so far.
        updates: updates of the window so far.
        rate: sum of their learning rates.
        last: predicted and true drop of the window that ended last, per unit of learning rate.
        calibration: of the windows that are over.
        verdict: the last judgement on them; None = too few windows.
    """

    count: int
    window: int
    memory: int
    credit: np.ndarray = field(default_factory=lambda: np.zeros(0))
    predicted: float = 0.0
    updates: int = 0
    rate: float = 0.0
    last: tuple[float, float] = (math.nan, math.nan)
    calibration: Calibration = field(default_factory=Calibration)
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        if self.credit.size == 0:
            self.credit = np.full(self.count, math.nan)

    def add(self, updates: list[Update]) -> tuple[float, np.ndarray]:
        """Take in a decision's updates.

        Returns:
            The drop predicted for the decision, and each type's part in it [K]; nan where unknown.
        """
        keep = 1.0 - 1.0 / self.memory
        for update in updates:
            fresh = np.isnan(self.credit)
            mean = keep * self.credit + (1.0 - keep) * update.credit
            self.credit = np.where(
                np.isnan(update.credit), self.credit, np.where(fresh, update.credit, mean)
            )
        self.updates += len(updates)
        self.rate += sum(update.learning_rate for update in updates)
        predicted = float(sum(update.predicted for update in updates))
        self.predicted += predicted
        return predicted, np.sum([update.credit for update in updates], axis=0)

    @property
    def due(self) -> bool:
        """True if the window is over."""
        return self.updates >= self.window

    def close(self, drop: float) -> dict[str, float]:
        """End the window, whose true drop was measured; judge the windows so far.

        Drops are taken per unit of learning rate: both shrink with the rate, which would make them
        go together whatever the predictions are worth.

        Returns:
            The window's two drops, for ``info``; nothing where one is not known.
        """
        rate = max(self.rate, 1e-12)
        self.last = (self.predicted / rate, drop / rate)
        self.judge([self.last])
        self.skip()
        predicted, true = self.last
        known = math.isfinite(predicted) and math.isfinite(true)
        return {"window_predicted": predicted, "window_drop": true} if known else {}

    def figures(self) -> dict[str, float]:
        """For ``info``: the windows looked at, and the judgement where they are enough."""
        windows = min(len(self.calibration.measured), RECENT)
        known = self.verdict.figures() if self.verdict else {}
        return {"windows": float(windows), **known}

    def judge(self, windows: list[tuple[float, float]]) -> None:
        """Take windows into the judgement."""
        for window in windows:
            self.calibration.add(*window)
        self.verdict = self.calibration.verdict()

    def skip(self) -> None:
        """Begin a window anew without judging the one before."""
        self.predicted, self.updates, self.rate = 0.0, 0, 0.0

    @property
    def trusted(self) -> bool:
        """False where the windows say that predictions do not go with true drops."""
        return self.verdict is None or self.verdict.trusted

    def copy(self) -> Amortized:
        """An independent copy."""
        return replace(self, credit=self.credit.copy(), calibration=self.calibration.copy())
