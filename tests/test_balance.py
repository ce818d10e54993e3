from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksel.balance import RunningSizes

DECAYS = st.floats(0.0, 0.999)
LOSSES = st.lists(
    st.lists(st.one_of(st.just(float("nan")), st.floats(0, 1e6)), min_size=2, max_size=2),
    max_size=12,
)


@given(DECAYS, LOSSES)
def test_sizes_are_weighted_means_of_what_was_seen(decay: float, losses: list[list[float]]) -> None:
    sizes = RunningSizes.zeros(2, decay, 1e-9)
    for loss in losses:
        sizes.note(np.array(loss))
    for k in range(2):
        seen = [loss[k] for loss in losses if not np.isnan(loss[k])]
        assert sizes.counts[k] == len(seen)
        share = [decay ** (len(seen) - 1 - i) for i in range(len(seen))]
        expected = np.dot(share, seen) / sum(share) if seen else 1.0
        assert sizes.values()[k] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_hand_worked() -> None:
    sizes = RunningSizes.zeros(1, 0.5, 1e-9)
    assert sizes.values() == pytest.approx([1.0])
    sizes.note(np.array([4.0]))
    assert sizes.values() == pytest.approx([4.0])
    sizes.note(np.array([1.0]))
    assert sizes.values() == pytest.approx([(0.5 * 4 + 1) / 1.5])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_noted(value: float) -> None:
    sizes = RunningSizes.zeros(2, 0.9, 1e-9)
    sizes.note(np.array([2.0, value]))
    assert sizes.values() == pytest.approx([2.0, 1.0])
    assert sizes.counts.tolist() == [1, 0]


def test_a_copy_is_independent() -> None:
    sizes = RunningSizes.zeros(1, 0.9, 1e-9)
    sizes.note(np.array([3.0]))
    copy = sizes.copy()
    sizes.note(np.array([9.0]))
    assert copy.values() == pytest.approx([3.0])
    assert copy.counts.tolist() == [1]
