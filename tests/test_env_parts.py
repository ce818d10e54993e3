from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.distillation import DistillationEnv
from envs.observation import GLOBAL, PER_TYPE, Features, bounds, feature_names
from envs.reward import DropScale, Exploration
from ksel.observing import Observed, Watched
from ksel.records import Update, blank_update
from ksel.types import Batch, Signals

POOL = ("label", "response")


def seen(loss: list[float], entropy: float = math.nan, agreement: float = math.nan) -> Update:
    update = blank_update(len(loss))
    update.loss = np.array(loss, dtype=np.float64)
    update.entropy, update.agreement = entropy, agreement
    return update


def named(features: Features) -> dict[str, float]:
    return dict(zip(feature_names(POOL), map(float, features.training()), strict=True))


# --------------------------------------------------------------------------- features


def test_names_and_bounds_have_one_entry_for_each_number() -> None:
    for count in (1, 2, 7):
        pool = [f"type{k}" for k in range(count)]
        low, high = bounds(count)
        length = 6 + 5 * count
        assert len(feature_names(pool)) == len(set(feature_names(pool))) == length
        assert low.shape == high.shape == Features(count).training().shape == (length,)
        assert low.dtype == high.dtype == np.float32


WORDS = {
    "progress": "step budget",
    "learning_rate": "learning rate",
    "student_entropy": "entropy",
    "agreement": "agree",
    "objective_trend": "last scaled drop",
    "objective_level": "episode's start",
    "loss": "running size",
    "trend": "one decision ago",
    "credit": "credit",
    "last_action": "last action",
    "share": "mean action",
}


def test_the_documented_table_is_the_vector() -> None:
    rows = re.findall(
        r"^\s*\| (\d.*?) \| (.*?) \| (\S+) \| (\S+) \|$", DistillationEnv.__doc__, re.M
    )
    names = [*GLOBAL, *PER_TYPE]
    assert len(rows) == len(names)
    count = 3
    low, high = bounds(count)
    for number, (name, (where, text, least, most)) in enumerate(zip(names, rows, strict=True)):
        assert WORDS[name] in text, name
        if number < len(GLOBAL):
            first, last = int(where), int(where)
        else:
            block = number - len(GLOBAL)
            offset = {0: "6 ", 1: "6+K"}.get(block, f"6+{block}K")
            assert where.startswith(offset), where
            first = 6 + block * count
            last = first + count - 1
            spelled = feature_names([f"t{k}" for k in range(count)])
            assert spelled[first : last + 1] == tuple(f"{name}/t{k}" for k in range(count))
        assert (low[first : last + 1] == float(least)).all()
        assert (high[first : last + 1] == float(most)).all()


def test_features_before_anything_was_seen_are_zero() -> None:
    assert (Features(2).training() == 0).all()


def test_losses_and_trends_are_hand_worked() -> None:
    features = Features(2)
    features.see(seen([2.0, 0.5], entropy=0.9, agreement=0.75), np.array([1.0, 1.0]))
    first = named(features)
    # tanh(log x) = (x^2 - 1) / (x^2 + 1)
    assert first["loss/label"] == pytest.approx(3 / 5)
    assert first["loss/response"] == pytest.approx(-0.75 / 1.25)
    assert first["trend/label"] == first["trend/response"] == 0
    assert first["student_entropy"] == pytest.approx(0.9)
    assert first["agreement"] == pytest.approx(0.75)
    features.see(seen([1.0, math.nan]), np.array([2.0, 1.0]))
    second = named(features)
    assert second["loss/label"] == pytest.approx(-0.75 / 1.25)
    assert second["trend/label"] == pytest.approx(-0.75 / 1.25)
    for unseen in ("loss/response", "trend/response", "student_entropy", "agreement"):
        assert second[unseen] == first[unseen]


def test_actions_and_objective_are_hand_worked() -> None:
    features = Features(2)
    features.act(np.array([1.0, 0.0], np.float32), 0.25, 0.5)
    features.act(np.array([0.5, 0.0], np.float32), 0.5, 0.75)
    features.judge(0.5, objective=0.6, initial=0.8)
    got = named(features)
    assert (got["progress"], got["learning_rate"]) == (0.5, 0.75)
    assert (got["last_action/label"], got["share/label"]) == (0.5, 0.75)
    assert (got["last_action/response"], got["share/response"]) == (0.0, 0.0)
    assert got["objective_trend"] == pytest.approx(math.tanh(0.5))
    assert got["objective_level"] == pytest.approx(-0.25)
    assert got["credit/label"] == 0


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
REAL = st.floats(allow_nan=False, allow_infinity=False)
UNIT = st.floats(0, 1)


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, st.floats(0, 1e300), NUMBERS, UNIT, REAL), max_size=5),
    st.data(),
)
def test_bounds_always_hold(
    steps: list[tuple[float, float, float, float, float, float]], data: st.DataObject
) -> None:
    features = Features(2)
    low, high = bounds(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for first, second, size, share, action, objective in steps:
            features.see(seen([first, second], share, share), np.array([size, 1.0]))
            features.act(np.array([action, 1 - action], np.float32), action, action)
            if data.draw(st.booleans()):
                features.judge(objective, objective, data.draw(st.floats(-1e9, 1e9)))
            vector = features.training()
            assert vector.dtype == np.float32
            assert ((low <= vector) & (vector <= high)).all()


def test_a_copy_of_features_is_independent() -> None:
    features = Features(2)
    features.see(seen([2.0, 1.0]), np.ones(2))
    copy = features.copy()
    before = copy.training()
    features.see(seen([5.0, 5.0]), np.ones(2))
    features.act(np.ones(2, np.float32), 1.0, 1.0)
    assert (copy.training() == before).all()
    assert not (features.training() == before).all()


# --------------------------------------------------------------------------- reward


def test_no_scale_leaves_the_drop() -> None:
    scale = DropScale("none")
    assert scale(0.3) == (0.3, 1.0)
    assert scale(-5.0) == (-5.0, 1.0)


def test_running_scale_is_the_root_mean_square_so_far() -> None:
    scale = DropScale("running")
    assert scale(0.3) == pytest.approx((1.0, 0.3))
    rms = math.sqrt((0.3**2 + 0.4**2) / 2)
    assert scale(-0.4) == pytest.approx((-0.4 / rms, rms))
    assert DropScale("running")(0.0) == (0.0, 1e-8)


def test_running_scale_cuts_outliers() -> None:
    scale = DropScale("running")
    for _ in range(400):
        scale(0.0)
    assert scale(1.0)[0] == 10.0


def test_quantile_scale_maps_the_middle_to_the_unit_range() -> None:
    scale = DropScale("quantile")
    assert scale(0.5) == pytest.approx((0.0, 1e-8))
    for drop in (0.0, 0.25, 0.75):
        scale(drop)
    # of 0, 1/4, 1/2, 3/4, 1 the 20 % and 80 % quantiles are 0.2 and 0.8
    assert scale(1.0) == pytest.approx((1.0, 0.3))
    # of those and 0.6 they are 1/4 and 3/4
    assert scale(0.6) == pytest.approx((0.1 / 0.25, 0.25))


def test_exploration_of_bits_falls_with_the_count_of_the_mask() -> None:
    bonus = Exploration(soft=False)
    a, b = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert [bonus(x) for x in (a, a, b, a)] == pytest.approx(
        [1.0, 1 / math.sqrt(2), 1.0, 1 / math.sqrt(3)]
    )


def test_exploration_of_weights_is_minus_the_cosine_with_the_action_before() -> None:
    bonus = Exploration(soft=True)
    actions = ([0.6, 0.8], [0.3, 0.4], [0.8, 0.6], [0, 0], [1, 0])
    got = [bonus(np.array(x, np.float32)) for x in actions]
    assert got == pytest.approx([0.0, -1.0, -0.96, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_copies_of_scale_and_exploration_are_independent(soft: bool) -> None:
    scale, bonus, action = DropScale("running"), Exploration(soft), np.ones(2, np.float32)
    scale(0.5)
    bonus(action)
    twins = scale.copy(), bonus.copy()
    expected = twins[0].copy()(2.0)[0], twins[1].copy()(action)
    scale(9.0)
    bonus(np.array([1, 0], np.float32))
    assert (twins[0](2.0)[0], twins[1](action)) == pytest.approx(expected)


# --------------------------------------------------------------------------- what is observed


def some_rows(*lengths: int) -> Batch:
    """A batch of examples of these lengths; a single number: that many of one token."""
    lengths = lengths if len(lengths) > 1 else (1,) * lengths[0]
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    rows = torch.arange(len(lengths))
    return Batch(rows, mask, mask, None, rows)


def test_entropy_and_agreement_of_spans_count_real_tokens_half_each() -> None:
    logits = torch.full((2, 3, 2), 7.0)  # whatever stands in padding
    logits[0, :, 0] = torch.tensor([0.0, 0.0, 0.0])  # start: uniform over three tokens
    logits[0, :, 1] = torch.tensor([0.0, 0.0, 50.0])  # end: sure
    logits[1, :2, 0] = torch.tensor([math.log(3), 0.0])  # 3/4, 1/4
    logits[1, :2, 1] = torch.tensor([0.0, 50.0])
    teacher = torch.zeros(2, 3, 2)
    teacher[0, 2, 1] = teacher[1, 1, 1] = teacher[1, 1, 0] = 1.0
    teacher[1, 2] = 99.0
    observed, record = Observed(Watched(0.0, None, None)), blank_update(1)
    observed.add(Signals(logits), Signals(teacher), some_rows(3, 2))
    observed.write(record)
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert record.entropy == pytest.approx((1.0 + 0.0 + quarter + 0.0) / 4, abs=1e-6)
    assert record.agreement == pytest.approx(3 / 4)


def test_entropy_and_agreement_of_classes_are_hand_worked() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, 9.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    observed, record = Observed(Watched(0.0, None, None)), blank_update(1)
    observed.add(Signals(logits[:1]), Signals(teacher[:1]), some_rows(1))
    observed.add(Signals(logits[1:]), Signals(teacher[1:]), some_rows(2))
    observed.write(record)
    p = 1 / (1 + math.exp(9))
    entropies = [
        1.0,
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2),
        -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2),
    ]
    assert record.entropy == pytest.approx(np.mean(entropies), rel=1e-5)
    assert record.agreement == pytest.approx(2 / 3)  # equal logits count as the first class
    assert record.student_cls is None


def test_agreement_of_scores_is_one_minus_the_distance() -> None:
    student, teacher = torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]])
    observed, record = Observed(Watched(5.0, None, None)), blank_update(1)
    observed.add(Signals(student), Signals(teacher), some_rows(2))
    observed.write(record)
    assert record.agreement == pytest.approx(1 - (0.2 + 0.6) / 2)
    assert math.isnan(record.entropy)
    far = blank_update(1)
    observed = Observed(Watched(5.0, None, None))
    observed.add(Signals(student + 100), Signals(teacher), some_rows(2))
    observed.write(far)
    assert far.agreement == 0


def test_states_are_averaged_over_the_whole_batch() -> None:
    states = torch.arange(6.0).reshape(3, 2)
    observed, record = Observed(Watched(0.0, 2, 4)), blank_update(1)
    for rows in (slice(0, 1), slice(1, 3)):
        student = Signals(torch.zeros(3, 2)[rows], cls={2: states[rows]})
        observed.add(student, Signals(cls={4: 10 * states[rows]}), some_rows(len(states[rows])))
    observed.write(record)
    assert record.student_cls == pytest.approx([2.0, 3.0])
    assert record.teacher_cls == pytest.approx([20.0, 30.0])
    assert math.isnan(record.agreement)


def test_nothing_seen_leaves_the_record_alone() -> None:
    record = blank_update(2)
    Observed(Watched(0.0, None, None)).write(record)
    assert math.isnan(record.entropy)
    assert math.isnan(record.agreement)
