"""What paired scores say: means, intervals, probability of improvement, tests, corrections.

Seeds are the units: two students of one seed start from the same weights and see the same batches,
so their difference is one observation. Seeds are few, and the functions say what that costs: see
``docs/statistics.md``, and ``benchmarks/intervals.py`` for the measured coverage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST_SEEDS = 5
"""Below this many seeds no interval is printed."""
LEVEL = 0.95
TRIM = 0.25
"""Share that the interquartile mean cuts off at either end."""
RESAMPLES = 9_999
EXACT_PAIRS = 36
"""Up to this many pairs the permutation test goes through all 2^n signs."""
FLIPS = 199_999
"""Random signs of the permutation test beyond that."""
TIE = 1e-9
"""Relative difference below which two statistics of a permutation test are the same."""
EQUAL = 1e-12
"""Relative spread below which values are all the same: what subtraction leaves of rounding."""

Groups = Sequence[np.ndarray]
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Interval:
    """A confidence interval, or why there is none.

    Attributes:
        low, high: its ends; nan where there is none.
        method: ``BCa``, ``percentile``, ``t``, ``exact``, or ``none``.
        note: why there is none, or why it is not the usual one; else empty.
    """

    low: float
    high: float
    method: str
    note: str = ""

    @property
    def known(self) -> bool:
        """True if there is an interval."""
        return self.method != "none"

    @property
    def above_zero(self) -> bool:
        """True if all of it is above zero."""
        return self.known and self.low > 0

    @property
    def below_zero(self) -> bool:
        """True if all of it is below zero."""
        return self.known and self.high < 0


@dataclass(frozen=True)
class SignFlip:
    """A two-sided sign-flip permutation test.

    Attributes:
        p: share of the sign patterns whose statistic is at least as far from zero; nan without data.
        smallest: the least p that this many pairs could have given, 2 / 2^n.
        exact: all patterns were counted, none drawn.
    """

    p: float
    smallest: float
    exact: bool


# --------------------------------------------------------------------------- one number


def finite(values: np.ndarray | Sequence[float]) -> np.ndarray:
    """The values that are numbers, as float64 [n]."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def mean(values: np.ndarray | Sequence[float]) -> float:
    """Mean of the values that are numbers; nan if there is none."""
    known = finite(values)
    return float(known.mean()) if len(known) else float("nan")


def interquartile_mean(values: np.ndarray | Sequence[float]) -> float:
    """Mean of the middle half (:func:`scipy.stats.trim_mean`, a quarter cut off at either end).

    Of n values int(n / 4) are cut off at either end: none of up to three, one of four to seven.
    """
    known = finite(values)
    return float(stats.trim_mean(known, TRIM)) if len(known) else float("nan")


def mean_of_means(groups: Groups) -> float:
    """Mean over groups (tasks) of the mean within each; nan if one has no number."""
    means = [mean(group) for group in groups]
    return float(np.mean(means)) if means else float("nan")


def all_equal(values: np.ndarray) -> bool:
    """True if the values differ by rounding at most."""
    if not len(values):
        return True
    return bool(np.ptp(values) <= EQUAL * max(1.0, float(np.abs(values).max())))


# --------------------------------------------------------------------------- intervals


def bootstrap_interval(values: np.ndarray | Sequence[float], *, iqm: bool = False) -> Interval:
    """95 % bootstrap interval of a mean over seeds (:func:`scipy.stats.bootstrap`, BCa).

    For a paired comparison give the differences: resampling them is resampling seeds.

    Args:
        values: [n] one number a seed; those that are not numbers are left out.
        iqm: of the interquartile mean instead.
    """
    return stratified_interval([finite(values)], iqm=iqm)


def stratified_interval(groups: Groups, *, iqm: bool = False) -> Interval:
    """95 % bootstrap interval of the mean over tasks of means over seeds.

    Seeds are drawn anew within each task and tasks are kept, so the interval is about these tasks,
    not about tasks in general. BCa (Efron 1987); where it is not defined, the percentile interval.

    Args:
        groups: per task [n_t] one number a seed.
        iqm: of the interquartile mean over all numbers together instead.

    Returns:
        No interval if a task has fewer than :data:`FEWEST_SEEDS` numbers, or if nothing varies.
    """
    samples = [finite(group) for group in groups]
    counts = [len(sample) for sample in samples]
    if not counts or min(counts) < FEWEST_SEEDS:
        return _none(too_few(min(counts, default=0)))
    if all(all_equal(sample) for sample in samples):
        return _none(f"no interval: nothing varies over {_seeds(min(counts))}")
    if iqm:

        def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
            return np.asarray(stats.trim_mean(np.concatenate(parts, axis=axis), TRIM, axis=axis))

    else:

        def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
            return np.asarray(np.mean([part.mean(axis=axis) for part in parts], axis=0))

    found = _bootstrap(samples, statistic, "BCa")
    if found is not None:
        return Interval(*found, "BCa")
    found = _bootstrap(samples, statistic, "percentile")
    if found is None or found[0] == found[1]:
        return _none("no interval: its resamples do not vary")
    return Interval(*found, "percentile", "percentile interval: BCa is not defined for these data")


def _bootstrap(
    samples: list[np.ndarray], statistic: Callable[..., np.ndarray], method: str
) -> tuple[float, float] | None:
    """The two ends, or None where they are not numbers."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # degenerate data: nan, which the caller looks for
        found = stats.bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            vectorized=True,
            paired=False,
            confidence_level=LEVEL,
            method=method,
            rng=np.random.default_rng(0),
        ).confidence_interval
    ends = float(found.low), float(found.high)
    return ends if np.isfinite(ends).all() else None


def t_interval(groups: Groups) -> Interval:
    """95 % interval of the mean over tasks of means over seeds by Student's t.

    Degrees of freedom over several tasks by Welch and Satterthwaite. Right for normal differences
    at any number of seeds, where the bootstrap is too narrow with few.
    """
    samples = [finite(group) for group in groups]
    counts = np.array([len(sample) for sample in samples])
    if not len(counts) or counts.min() < FEWEST_SEEDS:
        return _none(too_few(int(counts.min()) if len(counts) else 0))
    parts = np.array([s.var(ddof=1) / len(s) for s in samples]) / len(samples) ** 2
    variance = float(parts.sum())
    if all(all_equal(sample) for sample in samples):
        return _none(f"no interval: nothing varies over {_seeds(int(counts.min()))}")
    freedom = variance**2 / float((parts**2 / (counts - 1)).sum())
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * variance**0.5
    centre = mean_of_means(samples)
    return Interval(centre - half, centre + half, "t")


def too_few(count: int) -> str:
    """The line that stands for an interval that this many seeds do not give."""
    return f"too few seeds for an interval: {count}, at least {FEWEST_SEEDS} are needed"


def _none(note: str) -> Interval:
    return Interval(float("nan"), float("nan"), "none", note)


def _seeds(count: int) -> str:
    return f"{count} seeds"


# --------------------------------------------------------------------------- improvement


def improvement(differences: np.ndarray | Sequence[float]) -> tuple[float, Interval]:
    """Probability that a method beats a baseline on the same seed, with its exact interval.

    The share of pairs with a positive difference; a tie counts half. The interval is Clopper and
    Pearson's, since the bootstrap of five wins out of five would be the point 1. With ties, or with
    pairs of several tasks, it is rather too wide than too narrow.

    Args:
        differences: [n] method minus baseline, positive = better.

    Returns:
        The share (nan without pairs), and the interval.
    """
    known = finite(differences)
    count = len(known)
    if not count:
        return float("nan"), _none(too_few(0))
    wins = float((known > 0).sum() + 0.5 * (known == 0).sum())
    if count < FEWEST_SEEDS:
        return wins / count, _none(too_few(count))
    tail = (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, wins, count - wins + 1)) if wins > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, wins + 1, count - wins)) if wins < count else 1.0
    return wins / count, Interval(low, high, "exact")


# --------------------------------------------------------------------------- tests


def sign_flip_test(groups: Groups) -> SignFlip:
    """Two-sided permutation test of the mean over tasks of mean differences.

    If method and baseline were alike, each difference could as well have the other sign. The test
    counts the sign patterns that give a mean at least as far from zero as the one found: all 2^n
    for up to :data:`EXACT_PAIRS` pairs, else drawn ones (Phipson and Smyth 2010: the pattern found
    counts among them). No pattern is rarer than 2 in 2^n, so five pairs give p = 0.0625 at best.

    Args:
        groups: per task [n_t] paired differences; one task is one group.
    """
    samples = [finite(group) for group in groups]
    samples = [sample for sample in samples if len(sample)]
    if not samples:
        return SignFlip(float("nan"), float("nan"), True)
    terms = np.concatenate([sample / (len(sample) * len(samples)) for sample in samples])
    count = len(terms)
    smallest = smallest_p(count)
    found = abs(float(terms.sum()))
    size = float(np.abs(terms).sum())
    if size == 0:
        return SignFlip(1.0, smallest, True)
    bar = found - TIE * size
    if count <= EXACT_PAIRS:
        return SignFlip(_share_beyond(terms, bar), smallest, True)
    rng = np.random.default_rng(0)
    beyond = 1
    for start in range(0, FLIPS, 10_000):
        signs = rng.integers(0, 2, (min(10_000, FLIPS - start), count)) * 2.0 - 1.0
        beyond += int((np.abs(signs @ terms) >= bar).sum())
    return SignFlip(beyond / (FLIPS + 1), smallest, False)


def smallest_p(pairs: int) -> float:
    """The least two-sided p that this many pairs can give: 2 / 2^n; nan without pairs."""
    return 2.0 ** (1 - pairs) if pairs else float("nan")


def _share_beyond(terms: np.ndarray, bar: float) -> float:
    """Share of all sign patterns whose sum is at least ``bar`` away from zero.

    Each half of the terms has few sums (2^18 at most); for each of the first half's, those of the
    second, sorted, are counted by bisection.
    """
    half = len(terms) // 2
    first, second = _signed_sums(terms[:half]), np.sort(_signed_sums(terms[half:]))
    if bar <= 0:
        return 1.0
    above = len(second) - np.searchsorted(second, bar - first, side="left")
    below = np.searchsorted(second, -bar - first, side="right")
    return float(above.sum() + below.sum()) / (len(first) * len(second))


def _signed_sums(terms: np.ndarray) -> np.ndarray:
    """Sums of the terms under all sign patterns, [2^n]."""
    sums = np.zeros(1)
    for term in terms:
        sums = np.concatenate([sums + term, sums - term])
    return sums


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): controls the chance of even one false claim.

    Args:
        p_values: of the comparisons of one table; nan (not tested) stays nan and counts for none.

    Returns:
        The corrected ones, in the same order.
    """
    values = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(values), np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    highest = 0.0
    for place, index in enumerate(tested[np.argsort(values[tested], kind="stable")]):
        highest = max(highest, min(1.0, (len(tested) - place) * values[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]
