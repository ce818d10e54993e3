"""How a policy responds to what it observes: partial dependence, over the observations of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Respond = Callable[[np.ndarray], np.ndarray]
"""Observations [N, F] to mean actions [N, K]."""

POINTS = 11
"""Values of a feature at which the response is looked at."""
ROWS = 128
"""Observations that the response is averaged over, spread evenly over those of the run."""
TAIL = 0.02
"""Share of the observations left out at each end of a feature's range."""
STILL = 1e-3
"""A feature whose range is no wider is said not to have changed."""


@dataclass(frozen=True)
class Response:
    """Partial dependence of K mean actions on F features (Friedman, Annals of Statistics 2001, 8.2).

    Attributes:
        features: names of the F features.
        grid: [F, P] values of each feature, over the range that was observed.
        curves: [F, P, K] mean action with the feature at that value and all others as observed.
        observed: [N, F] the observations it is averaged over.
        varied: [F] bool, features that changed.
    """

    features: tuple[str, ...]
    grid: np.ndarray
    curves: np.ndarray
    observed: np.ndarray
    varied: np.ndarray

    def effects(self) -> np.ndarray:
        """[F, K] by how much the mean action differs between the ends of each feature's range."""
        return self.curves[:, -1] - self.curves[:, 0]

    def strength(self) -> np.ndarray:
        """[F, K] largest less smallest mean action over each feature's range."""
        return np.ptp(self.curves, axis=1)


def partial_dependence(
    respond: Respond, observations: np.ndarray, features: Sequence[str]
) -> Response:
    """Vary one feature at a time, leave the others as they were observed, and average.

    Args:
        respond: the policy.
        observations: [N, F].
        features: names of the F features.
    """
    rows = spread_rows(observations, ROWS)
    low, high = np.quantile(observations, [TAIL, 1 - TAIL], axis=0)
    # a feature with rare values, such as a bit that is seldom on, is looked at all the same
    flat = high <= low
    low[flat], high[flat] = observations.min(0)[flat], observations.max(0)[flat]
    grid = np.linspace(low, high, POINTS, axis=1)
    curves = []
    for f in range(observations.shape[1]):
        varied = np.repeat(rows[None], POINTS, 0)
        varied[:, :, f] = grid[f][:, None]
        means = respond(varied.reshape(-1, rows.shape[1]))
        curves.append(means.reshape(POINTS, len(rows), -1).mean(1))
    return Response(tuple(features), grid, np.stack(curves), rows, high - low > STILL)


def spread_rows(observations: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, evenly spread, the first and the last among them."""
    if len(observations) <= most:
        return observations.copy()
    return observations[np.linspace(0, len(observations) - 1, most).round().astype(int)]


def same_observations(responds: Sequence[Respond], observations: np.ndarray) -> np.ndarray:
    """How alike policies act where they see the same: 1 - mean distance of their mean actions, [R, R]."""
    means = [respond(observations) for respond in responds]
    return np.array([[1 - float(np.abs(a - b).mean()) for b in means] for a in means])
