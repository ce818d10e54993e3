from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from envs.distillation import DistillationEnv
from ksel.balance import RunningSizes
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.knowledge import mean_loss
from ksel.records import Update
from ksel.setup import Setup

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


def test_what_was_never_seen_is_taken_to_be_what_is_given() -> None:
    sizes = RunningSizes.zeros(3, 0.9, 0.5)
    sizes.note_some({1: 3.0})
    assert sizes.values_or(np.array([2.0, 9.0, 0.1])) == pytest.approx([2.0, 3.0, 0.5])
    assert sizes.counts.tolist() == [0, 1, 0]


# --------------------------------------------------------------------------- balance: gradient

POOL = ["label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1"]
UPDATES = 9
Make = Callable[..., Setup]


@pytest.fixture
def make(tiny_setup: Make) -> Make:
    """Setups with balance gradient, whose student has no loss near 0."""

    def build(**changes: Any) -> Setup:
        knowledge = {
            "pool": POOL,
            "balance": "gradient",
            "balance_every": 3,
            "max_gain": 1e6,
            **changes.pop("knowledge", {}),
        }
        student = {"layers": 2, "init": "random", **changes.pop("student", {})}
        optim = {"learning_rate": 1e-2, "max_updates": UPDATES, **changes.pop("optim", {})}
        setup = tiny_setup(knowledge=knowledge, student=student, optim=optim, **changes)
        setup.distiller.reset(data_seed=3, updates=UPDATES)
        return setup

    return build


def masks(seed: int = 0) -> np.ndarray:
    """[updates, K]: types come and go, one of them first in between two measurements."""
    rng = np.random.default_rng(seed)
    actions = (rng.random((UPDATES, len(POOL))) < 0.7) * rng.uniform(0.2, 1.0, len(POOL))
    actions[:, 0] = 1.0
    actions[:4, 3], actions[4, 3] = 0.0, 0.5
    actions[5], actions[6, 3] = 0.0, 0.5
    return actions.astype(np.float32)


def leaves_of(distiller: Distiller) -> list[Tensor]:
    modules = (distiller.student, distiller.pool.projections)
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def norms_now(distiller: Distiller, leaves: Sequence[Tensor] = ()) -> np.ndarray:
    """[K] norms of the gradients of the next batch's losses, one backward pass each."""
    batch = distiller.next_batch()
    found = []
    for type in distiller.pool:
        student, teachers = distiller._signals(batch, range(len(POOL)), learning=False)
        loss = mean_loss(type, student, teachers[type.source], batch)
        grads = torch.autograd.grad(loss, leaves or leaves_of(distiller), allow_unused=True)
        squares = [float(g.double().square().sum()) for g in grads if g is not None]
        found.append(math.sqrt(sum(squares)))
    return np.array(found)


def trained(distiller: Distiller, actions: np.ndarray, **keywords: Any) -> list[Update]:
    return [distiller.update(action, **keywords) for action in actions]


def same_update(one: Update, other: Update) -> None:
    for field in fields(Update):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(a, b, err_msg=field.name)


@pytest.mark.parametrize("embeddings", ["train", "frozen"])
def test_weights_are_those_of_a_calculation_by_hand(make: Make, embeddings: str) -> None:
    knowledge = {"ema_decay": 0.8, "weights": {"label": 2.0, "hidden/skip": 0.5}}
    distiller = make(knowledge=knowledge, optim={"embeddings": embeddings}).distiller
    static = np.array([2.0, 1.0, 1.0, 0.5, 1.0])
    seen: list[list[float]] = [[] for _ in POOL]
    for number, action in enumerate(masks()):
        norms = norms_now(distiller)
        first = [k for k in np.flatnonzero(action) if not seen[k]]
        for k in first:
            seen[k].append(norms[k])
        scale = np.ones(len(POOL))
        for k, noted in enumerate(seen):
            shares = (0.8**3) ** np.arange(len(noted))[::-1]
            scale[k] = shares @ noted / shares.sum() if noted else 1.0
        record = distiller.update(action)
        if action.any():
            np.testing.assert_allclose(record.scale, scale, rtol=1e-4)
        np.testing.assert_allclose(record.weight, action * static / scale, rtol=1e-4)
        if number % 3 == 0:
            for k in np.flatnonzero(action):
                seen[k] += [] if k in first else [norms[k]]
    assert distiller.norms.counts.tolist() == [len(noted) for noted in seen]
    assert seen[3][1:], "a type that came in between two measurements was measured again"


def test_norms_are_measured_at_the_cadence_and_at_the_first_use(make: Make) -> None:
    distiller = make(optim={"grad_norm_every": 0}).distiller
    counts, measured = [], []
    for number in range(8):
        record = distiller.update(np.array([1, number >= 4, 0, 0, 0]))
        counts.append(distiller.norms.counts[:3].tolist())
        measured.append(np.isfinite(record.grad_norm[:2]).tolist())
    # the first use at update 0 is not noted a second time there
    assert [one[0] for one in counts] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert [one[1] for one in counts] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert all(one[2] == 0 for one in counts)
    assert [one[0] for one in measured] == [n % 3 == 0 or n == 4 for n in range(8)]
    assert [one[1] for one in measured] == [n in (4, 6) for n in range(8)]


def test_recording_norms_more_often_does_not_change_what_is_divided_by(make: Make) -> None:
    ends = []
    for every in (0, 1):
        distiller = make(optim={"grad_norm_every": every, "learning_rate": 1e-5}).distiller
        trained(distiller, masks())
        ends.append(distiller.norms)
    assert ends[0].counts.tolist() == ends[1].counts.tolist()
    np.testing.assert_allclose(ends[0].totals, ends[1].totals, rtol=1e-3)


def test_micro_batches_change_nothing(make: Make) -> None:
    found = []
    for accumulate in (1, 2):
        distiller = make(optim={"accumulate": accumulate}, batching={"bucket": 1}).distiller
        found.append(trained(distiller, masks()[:5]))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two.scale, one.scale, rtol=5e-3)
        np.testing.assert_allclose(two.weight, one.weight, rtol=5e-3)
    np.testing.assert_allclose(found[1][0].scale, found[0][0].scale, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("embeddings", ["train", "lazy"])
def test_at_its_first_use_a_gradient_has_the_norm_of_its_action(
    make: Make, accumulate: int, dropout: float, embeddings: str
) -> None:
    # so the first pass sees what the update sees: masks, rows of words, the whole batch
    optim = {"accumulate": accumulate, "embeddings": embeddings}
    distiller = make(optim=optim, student={"dropout": dropout}).distiller
    record = distiller.update(np.array([1, 0.5, 0, 0, 0]))
    np.testing.assert_allclose(record.grad_norm[:2], [1.0, 0.5], rtol=1e-5)
    record = distiller.update(np.array([1, 0, 0.3, 0.2, 1.0]))
    np.testing.assert_allclose(record.grad_norm[2:], [0.3, 0.2, 1.0], rtol=1e-5)
    assert record.grad_norm[0] != pytest.approx(1.0, rel=1e-5)


def test_lazy_rows_of_words_take_part(make: Make) -> None:
    found = {}
    for embeddings in ("train", "lazy", "frozen"):
        record = make(optim={"embeddings": embeddings}).distiller.update(np.ones(5))
        found[embeddings] = record.scale
    np.testing.assert_allclose(found["lazy"], found["train"], rtol=1e-5)
    assert (found["frozen"] < 0.999 * found["train"]).any()


def test_measuring_leaves_dropout_and_the_optimiser_alone(make: Make) -> None:
    # weights of 1 over the norms, given by hand, lead to the same student
    balanced = make(student={"dropout": 0.3}).distiller
    record = balanced.update(np.ones(5))
    plain = {"balance": "none", "max_gain": 100.0, "balance_every": 10}
    other = make(student={"dropout": 0.3}, knowledge=plain).distiller
    found = other.update(1.0 / record.scale)
    np.testing.assert_array_equal(found.weight, record.weight)
    np.testing.assert_array_equal(found.loss, record.loss)
    assert torch.equal(other.generator.state, balanced.generator.state)
    for one, two in zip(balanced.tensors, other.tensors, strict=True):
        assert torch.equal(one, two)


def test_no_loss_is_multiplied_by_more_than_the_bound(make: Make) -> None:
    free = make().distiller.update(np.ones(5))
    bound = float(np.median(free.weight))
    record = make(knowledge={"max_gain": bound}).distiller.update(np.ones(5))
    np.testing.assert_allclose(record.weight, np.minimum(free.weight, bound), rtol=1e-6)
    assert (free.weight > bound).any()


def test_a_perfect_match_stays_small(make: Make) -> None:
    setup = make(
        student={"layers": 4, "init": "first", "source": "teacher"},
        knowledge={"pool": ["hidden/first", "response", "label"], "max_gain": 50.0},
        signals={"source": "live"},
    )
    record = setup.distiller.update(np.ones(3))
    assert record.scale[0] == pytest.approx(1 / 50)
    assert all(torch.isfinite(t).all() for t in setup.distiller.tensors)


def test_a_type_without_gradient_is_named_before_anything_moves(make: Make) -> None:
    setup = make()
    types = list(setup.pool.types)
    old = types[2].loss
    types[2] = replace(types[2], loss=lambda *signals: old(*signals).detach())
    pool = replace(setup.pool, types=tuple(types))
    distiller = Distiller(replace(setup.distiller.parts, pool=pool))
    distiller.reset(data_seed=3, updates=UPDATES)
    before = [t.clone() for t in distiller.tensors]
    with pytest.raises(UsageError, match=r"--knowledge.pool: 'cls_hidden/skip' is selected"):
        distiller.update(np.ones(5))
    assert all(map(torch.equal, distiller.tensors, before))
    assert distiller.norms.counts.sum() == 0


@pytest.mark.parametrize("balance", ["gradient", "none"])
def test_observations_compare_a_loss_with_its_own_size(tiny_setup: Make, balance: str) -> None:
    setup = tiny_setup(
        knowledge={"pool": POOL, "balance": balance}, student={"layers": 2, "init": "random"}
    )
    env = DistillationEnv(setup=setup)
    env.reset(seed=3)
    losses = []
    for _ in range(3):
        observation, *_, info = env.step(np.ones(5))
        losses.append([info[f"loss/{name}"] for name in POOL])
    shares = 0.98 ** np.arange(3)[::-1]
    sizes = np.maximum(shares @ np.array(losses) / shares.sum(), 0.01)
    expected = np.tanh(np.log(np.array(losses[-1]) / sizes))
    found = observation["training"][6 : 6 + len(POOL)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(observation["training"]).all()


def test_a_snapshot_repeats_to_the_bit(make: Make) -> None:
    distiller = make().distiller
    actions = masks()
    trained(distiller, actions[:4])
    state = distiller.snapshot()
    ends = []
    for _ in range(2):
        distiller.restore(state)
        ends.append((trained(distiller, actions[4:]), distiller.snapshot()))
    for one, two in zip(ends[0][0], ends[1][0], strict=True):
        same_update(one, two)
    assert all(map(torch.equal, ends[0][1].weights, ends[1][1].weights))
    np.testing.assert_array_equal(ends[0][1].norms.totals, ends[1][1].norms.totals)
    assert (ends[0][1].norms.counts > state.norms.counts).any()
    distiller.reset(data_seed=3, updates=UPDATES)
    assert distiller.norms.counts.sum() == 0


def test_credit_is_weighted_as_an_update_would_be(make: Make) -> None:
    distiller = make(
        env={"reward": "amortized"},
        credit={"batch": 0, "interval": 1, "clip_every": 1},
        knowledge={"weights": {"response": 3.0}},
    ).distiller
    distiller.update(np.array([1, 0, 0, 0, 0]), credit="hard")
    norms = norms_now(distiller)
    noted = distiller.norms.values()[0]
    action = np.array([1, 0, 0, 0, 0])
    record = distiller.update(action, credit="hard")
    credit = distiller.credit
    assert credit is not None
    expected = np.array([1.0, 3.0, 1.0, 1.0, 1.0]) / np.array([noted, *norms[1:]])
    distiller.cursor -= 1  # as it stood before the update, whose norms are not due
    np.testing.assert_allclose(distiller._unit_weights(credit), expected, rtol=1e-4)
    assert np.isfinite(record.credit).all()
    # alone, a type's credit is its own drop, as far as clipping leaves it
    share = min(1.0, 1.0 / record.clip_norm)
    drop = share * record.learning_rate * expected[0] * credit.state.slopes[0]
    assert record.credit[0] == pytest.approx(drop, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"credit": {"clip": False}}, "--credit.clip false"),
        ({"optim": {"max_grad_norm": 0.0}}, "--optim.max_grad_norm 0"),
    ],
)
def test_credit_without_clipping_is_refused(make: Make, changes: dict, option: str) -> None:
    with pytest.raises(UsageError) as error:
        make(env={"reward": "amortized"}, **changes)
    message = str(error.value)
    assert message.startswith("--knowledge.balance gradient: credit")
    assert option in message
    assert "--env.reward measured" in message
    make(**changes)
    make(env={"reward": "amortized"}, knowledge={"balance": "ema", "balance_every": 10}, **changes)
