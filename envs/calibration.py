"""Does credit tell the truth? True drops over windows against the predicted ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import pearsonr

from ksel.trust import FEWEST, RECENT

CONFIDENCE = 0.9
"""Of the interval of the correlation (two-sided)."""


@dataclass(frozen=True)
class Verdict:
    """How measured drops went with predicted ones over the recent windows.

    Attributes:
        windows: how many were looked at.
        slope: of the least-squares line of measured on predicted.
        correlation: Pearson's; low, high: its interval by Fisher's transformation.
        sign_agreement: share of windows in which both have the same sign.
        trusted: True if the interval lies above 0.
    """

    windows: int
    slope: float
    correlation: float
    low: float
    high: float
    sign_agreement: float
    trusted: bool

    def figures(self) -> dict[str, float]:
        """For ``info``: slope, correlation, sign_agreement, trusted (1 or 0)."""
        return {
            "slope": self.slope,
            "correlation": self.correlation,
            "sign_agreement": self.sign_agreement,
            "trusted": float(self.trusted),
        }


@dataclass
class Calibration:
    """Predicted and measured drops of the windows of an episode so far, one after the other."""

    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)

    def add(self, predicted: float, measured: float) -> None:
        """Take in one window; one without a prediction (nan) is left out."""
        if math.isfinite(predicted) and math.isfinite(measured):
            self.predicted.append(predicted)
            self.measured.append(measured)

    def verdict(self) -> Verdict | None:
        """The judgement over the recent windows; None while there are too few."""
        x, y = np.array(self.predicted[-RECENT:]), np.array(self.measured[-RECENT:])
        if len(x) < FEWEST:
            return None
        agreement = float((np.sign(x) == np.sign(y)).mean())
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            return Verdict(len(x), 0.0, 0.0, -1.0, 1.0, agreement, trusted=False)
        result = pearsonr(x, y)
        interval = result.confidence_interval(CONFIDENCE)
        correlation = float(result.statistic)
        slope = correlation * float(y.std() / x.std())
        low, high = float(interval.low), float(interval.high)
        return Verdict(len(x), slope, correlation, low, high, agreement, trusted=low > 0)

    def copy(self) -> Calibration:
        """An independent copy."""
        return Calibration(list(self.predicted), list(self.measured))
