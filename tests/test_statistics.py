from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ksel.statistics import (
    EXACT_PAIRS,
    bootstrap_interval,
    finite,
    holm,
    improvement,
    interquartile_mean,
    mean,
    mean_of_means,
    sign_flip_test,
    smallest_p,
    stratified_interval,
    t_interval,
)

# --------------------------------------------------------------------------- one number


def test_means_leave_out_what_is_no_number() -> None:
    assert mean([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(mean([]))
    assert finite([1, math.inf, math.nan]).tolist() == [1.0]
    # of eight, two are cut off at either end; of four, one; of three, none
    assert interquartile_mean([9, 1, 2, 3, 4, 5, 6, -80]) == 3.5
    assert interquartile_mean([1, 2, 4, 100]) == 3.0
    assert interquartile_mean([0, 0, 9]) == 3.0
    assert math.isnan(interquartile_mean([math.nan]))
    assert mean_of_means([np.array([1.0, 3.0]), np.array([10.0])]) == 6.0


# --------------------------------------------------------------------------- intervals


def test_the_interval_is_scipys_bca() -> None:
    values = np.random.default_rng(5).normal(size=9)
    found = bootstrap_interval(values)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.method == "BCa"
    assert found == bootstrap_interval([*values, math.nan])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_too_few_seeds_give_no_interval(count: int) -> None:
    values = np.arange(count) * 1.0
    for found in (bootstrap_interval(values), t_interval([values]), improvement(values)[1]):
        assert not found.known
        assert not found.above_zero
        assert f"too few seeds for an interval: {count}" in found.note
        assert math.isnan(found.low)


def test_what_does_not_vary_gives_no_interval() -> None:
    # three tenths are not exactly one tenth thrice
    for values in ([0.3] * 6, [0.1 * 3] * 5 + [0.3], [0.0] * 8):
        for found in (bootstrap_interval(values), t_interval([np.array(values)])):
            assert not found.known
            assert "nothing varies" in found.note


def test_one_task_that_does_not_vary_leaves_the_other_ones_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 3.0, 2.5, 1.5])
    both = stratified_interval([values, np.zeros(6)])
    alone = bootstrap_interval(values)
    assert both.method == "BCa"
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2, rel=0.05)


def test_where_bca_is_not_defined_the_percentile_interval_says_so() -> None:
    found = bootstrap_interval([0, 0, 0, 0, 0, 0, 1], iqm=True)
    assert (found.method, found.low) == ("percentile", 0.0)
    assert 0 < found.high < 1
    assert "BCa is not defined" in found.note
    # here the resamples' interval is one point
    found = bootstrap_interval([0.0] * 39 + [1.0], iqm=True)
    assert not found.known


def test_seeds_are_drawn_within_their_task() -> None:
    rng = np.random.default_rng(1)
    near, far = rng.normal(0, 0.1, 8), rng.normal(100, 0.1, 8)
    found = stratified_interval([near, far])
    assert found.high - found.low < 0.2  # drawn over both it would be about 50
    assert found.low < 50 < found.high
    # each task draws seeds of its own: their luck partly evens out
    twice, once = stratified_interval([near, near + 1]), bootstrap_interval(near)
    assert twice.high - twice.low == pytest.approx((once.high - once.low) / 2**0.5, rel=0.1)
    assert stratified_interval([near, far[:6]]).known
    four = stratified_interval([near, far[:4]])
    assert "too few seeds for an interval: 4" in four.note


def test_t_is_students() -> None:
    values = np.random.default_rng(3).normal(size=7)
    found = t_interval([values])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_coverage_is_what_the_docs_say() -> None:
    # docs/statistics.md: BCa 0.85 at five seeds, 0.90 at ten; t 0.95
    rng = np.random.default_rng(0)
    inside = {(method, n): 0 for method in ("BCa", "t") for n in (5, 10)}
    trials = 300
    for (method, n), _ in itertools.product(inside, range(trials)):
        values = rng.normal(2.0, 1.0, n)
        found = bootstrap_interval(values) if method == "BCa" else t_interval([values])
        inside[method, n] += found.low <= 2.0 <= found.high
    share = {key: count / trials for key, count in inside.items()}
    assert 0.79 < share["BCa", 5] < 0.90
    assert 0.86 < share["BCa", 10] < 0.945
    assert all(0.915 < share["t", n] < 0.985 for n in (5, 10))


# --------------------------------------------------------------------------- improvement


def test_the_probability_of_improvement_has_the_exact_interval() -> None:
    share, interval = improvement([1, 2, 3, -1, 0.5, 2, 1, 1, -2, 1])
    expected = stats.binomtest(8, 10).proportion_ci(method="exact")
    assert share == 0.8
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_tie_counts_half_and_all_wins_are_not_certainty() -> None:
    share, interval = improvement([1.0, 0.0, -1.0, 0.0, 2.0])
    assert share == 0.6
    assert 0 < interval.low < 0.6 < interval.high < 1
    share, interval = improvement([1.0] * 5)
    assert (share, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(0.025 ** (1 / 5))
    assert improvement([-1.0] * 5)[1].low == 0.0
    assert improvement([0.0] * 5)[0] == 0.5
    assert math.isnan(improvement([])[0])


# --------------------------------------------------------------------------- tests


@pytest.mark.parametrize("groups", [[6], [3, 4], [1], [2, 2, 5]])
def test_the_permutation_test_counts_all_signs(groups: list[int]) -> None:
    rng = np.random.default_rng(len(groups))
    samples = [np.round(rng.normal(0.3, 1, n), 1) for n in groups]
    weights = np.concatenate([np.full(n, 1 / (n * len(groups))) for n in groups])
    terms = np.concatenate(samples) * weights
    sums = [abs(np.dot(signs, terms)) for signs in itertools.product((-1, 1), repeat=len(terms))]
    expected = np.mean([one >= abs(terms.sum()) - 1e-9 for one in sums])
    found = sign_flip_test(samples)
    assert found.p == pytest.approx(expected)
    assert found.exact


def test_five_pairs_cannot_be_below_a_sixteenth() -> None:
    found = sign_flip_test([np.array([5.0, 4.0, 6.0, 5.5, 7.0])])
    assert found.p == found.smallest == 0.0625 == smallest_p(5)
    assert sign_flip_test([np.zeros(5)]).p == 1.0
    assert sign_flip_test([np.array([1.0])]).p == 1.0
    assert math.isnan(sign_flip_test([]).p)
    assert math.isnan(sign_flip_test([np.array([math.nan])]).p)
    # what rounding leaves of equal sums is a tie: all signs are as far from zero as (+, +, -)
    assert sign_flip_test([np.array([0.1, 0.2, -0.3])]).p == 1.0


def test_many_pairs_are_drawn_and_agree_with_the_exact_test() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(0.35, 1, EXACT_PAIRS)
    exact = sign_flip_test([values])
    drawn = sign_flip_test([np.append(values, 0.0)])  # a zero changes the count of pairs alone
    assert exact.exact
    assert not drawn.exact
    assert drawn.p == pytest.approx(exact.p * 1.0, rel=0.1)
    assert stats.ttest_1samp(values, 0).pvalue == pytest.approx(exact.p, rel=0.25)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([math.nan, 0.02, 0.04])  # what is not tested counts for none
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([0.04, 0.04])


def test_tables_without_an_effect_make_false_claims_in_one_of_twenty_at_most() -> None:
    rng = np.random.default_rng(4)
    trials, wrong, uncorrected = 400, 0, 0
    for _ in range(trials):
        baseline = rng.normal(size=(2, 5))
        found = [sign_flip_test(list(rng.normal(size=(2, 5)) - baseline)).p for _ in range(4)]
        wrong += min(holm(found)) < 0.05
        uncorrected += min(found) < 0.05
    assert wrong / trials < 0.075
    assert uncorrected / trials > 0.09  # without the correction the same tables claim too often
