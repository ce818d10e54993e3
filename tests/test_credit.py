"""Credit against what it stands for: separate backward passes, AdamW's own steps, every mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ksel.credit import Credit, all_masks, few_rows, predict
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.knowledge import KINDS, mean_loss
from ksel.objectives import Fit, fit_objective, objective_loss, objective_value
from ksel.optim import set_rate
from ksel.search_config import CreditConfig, CreditSizes, credit_sizes
from ksel.setup import Setup
from ksel.tasks import get_task

Make = Callable[..., Setup]
AMORTIZED = {"reward": "amortized"}


def pool_of_all_kinds() -> list[str]:
    return [name if KINDS[name].lowest_layer is None else f"{name}/skip" for name in KINDS]


@pytest.fixture
def make(tiny_setup: Make) -> Make:
    def with_credit(**changes: Any) -> Setup:
        credit = {"batch": 0, **changes.pop("credit", {})}
        env = {**AMORTIZED, **changes.pop("env", {})}
        # all kinds have a gradient only while the student is not yet what it learns from
        student = {"layers": 2, "init": "random", **changes.pop("student", {})}
        return tiny_setup(env=env, credit=credit, student=student, **changes)

    return with_credit


def credit_of(distiller: Distiller) -> Credit:
    assert distiller.credit is not None
    return distiller.credit


def train(distiller: Distiller, updates: int, credit: bool = True) -> None:
    for _ in range(updates):
        distiller.update(np.ones(len(distiller.pool)), credit="hard" if credit else None)


def separate_derivatives(distiller: Distiller, direction: dict[str, Tensor], batch: Any) -> list:
    """<grad L_k, direction> by K backward passes."""
    named = dict(distiller.student.named_parameters())
    teachers = distiller._teach(batch)
    student = distiller.tap(batch, credit_of(distiller).needs)
    found = []
    for type in distiller.pool:
        loss = mean_loss(type, student, teachers[type.source], batch)
        grads = torch.autograd.grad(
            loss, [named[n] for n in direction], retain_graph=True, allow_unused=True
        )
        pairs = zip(grads, direction.values(), strict=True)
        found.append(sum(float((g * v).sum()) for g, v in pairs if g is not None))
    return found


@pytest.mark.parametrize(
    ("precision", "method", "tolerance"),
    [
        (torch.float64, "jvp", 1e-6),
        (torch.float32, "jvp", 1e-3),
        # its own error: the third derivative times the step squared, and rounding over the step
        (torch.float64, "difference", 2e-3),
        (torch.float32, "difference", 2e-2),
    ],
)
def test_all_derivatives_equal_those_of_separate_backward_passes(
    make: Make, precision: torch.dtype, method: str, tolerance: float
):
    setup = make(
        knowledge={"pool": pool_of_all_kinds()}, credit={"method": method}, optim={"max_updates": 9}
    )
    distiller, credit = setup.distiller, credit_of(setup.distiller)
    train(distiller, 4)
    batch = distiller.next_batch()
    distiller.student.to(precision)
    distiller.pool.projections.to(precision)
    direction = {n: t.to(precision) for n, t in credit.direction(distiller.optimizer).items()}
    slopes, losses = credit.derivatives(batch, distiller._teach(batch), direction)
    expected = separate_derivatives(distiller, direction, batch)
    assert all(value != 0 for value in expected)
    # a derivative near 0 is a difference of large parts: compare with the size of these
    size = np.abs(expected) + 1e-2 * np.abs(expected).max() * (precision == torch.float32)
    assert (np.abs(slopes - expected) / size).max() < tolerance
    # a difference gives the losses to second order in the step
    rounding = (
        1e-8 if precision == torch.float64 else 2e-7
    )  # losses are differences of parts around 1
    looser = {"rtol": 1e-4, "atol": rounding} if method == "jvp" else {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(losses, distiller.losses(batch).detach(), **looser)


def test_the_direction_without_a_preconditioner_has_the_heads_rate_too(make: Make):
    setup = make(credit={"preconditioner": "none"}, optim={"max_updates": 9, "head_rate": 5.0})
    credit = credit_of(setup.distiller)
    credit.add_held_out(0)
    direction = credit.direction(setup.distiller.optimizer)
    for name, v in direction.items():
        rate = 5.0 if name.startswith("classifier") or ".pooler." in name else 1.0
        torch.testing.assert_close(v, rate * credit.state.average[name] / credit.state.count)


@pytest.mark.parametrize("head_rate", [1.0, 5.0])
def test_the_direction_is_that_of_an_adamw_step(make: Make, head_rate: float):
    # a training gradient equal to the held-out one moves the weights along the direction
    plain = {"max_updates": 9, "weight_decay": 0.0, "max_grad_norm": 0.0}
    setup = make(optim={**plain, "head_rate": head_rate})
    distiller, credit = setup.distiller, credit_of(setup.distiller)
    credit.add_held_out(0)
    direction = credit.direction(distiller.optimizer)
    named = dict(distiller.student.named_parameters())
    before = {name: named[name].detach().clone() for name in direction}
    for name in direction:
        named[name].grad = credit.state.average[name] / credit.state.count
    rate = 1e-3
    set_rate(distiller.optimizer, rate)
    distiller.optimizer.step()
    for name, v in direction.items():
        moved = (before[name] - named[name].detach()) / rate
        torch.testing.assert_close(moved, v, rtol=1e-3, atol=1e-3)


def test_a_parameter_without_a_past_moves_no_further_than_adamw_lets_it(make: Make):
    distiller = make().distiller
    train(distiller, 3)
    credit = credit_of(distiller)
    name = next(n for n in credit.state.average if n.endswith("classifier.weight"))
    parameter = dict(distiller.student.named_parameters())[name]
    state = distiller.optimizer.state[parameter]
    state["exp_avg_sq"].zero_()
    largest = float(credit.direction(distiller.optimizer)[name].abs().max())
    assert 1.0 < largest < 1 / math.sqrt(1 - 0.999)


def test_the_running_average_is_the_mean_of_held_out_gradients(make: Make):
    setup = make(credit={"rows": 4, "horizon": 10_000_000})
    distiller, credit = setup.distiller, credit_of(setup.distiller)
    for number in range(6):  # 24 rows: each of the reward split once
        credit.add_held_out(number)
    split = setup.reward
    batch = split.batch(np.arange(len(split)))
    loss = torch.nn.functional.cross_entropy(
        setup.student(**batch.model_inputs()).logits, batch.labels
    )
    named = dict(distiller.student.named_parameters())
    names = list(credit.state.average)
    grads = torch.autograd.grad(loss, [named[n] for n in names])
    for name, grad in zip(names, grads, strict=True):
        mean = credit.state.average[name] / credit.state.count
        torch.testing.assert_close(mean, grad, rtol=1e-4, atol=1e-6)
    assert not any("word_embeddings" in name for name in names)
    with_words = make(credit={"embeddings": True}).distiller
    assert any("word_embeddings" in name for name in credit_of(with_words).state.average)


def test_the_gradient_products_are_those_of_the_gradients(make: Make, monkeypatch: Any):
    distiller = make(student={"width": 8, "heads": 2, "feed_forward": 16}).distiller
    assert len(distiller.pool.projections)
    train(distiller, 2)
    credit, batch = credit_of(distiller), distiller.next_batch()
    exact = credit.gradient_products(batch, distiller._teach(batch))
    rows = []
    for k in range(len(distiller.pool)):
        loss = distiller.losses(batch)[k]
        grads = torch.autograd.grad(
            loss, distiller.parameters, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    flat = torch.stack(rows).double()
    np.testing.assert_allclose(exact, flat @ flat.T, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("ksel.credit.SKETCH", 2000)
    sketched = credit.gradient_products(batch, distiller._teach(batch))
    np.testing.assert_allclose(sketched.diagonal(), exact.diagonal(), rtol=1e-6)
    assert not np.allclose(sketched, exact, rtol=1e-6)


# --------------------------------------------------------------------------- prediction


def random_problem(count: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(count, 30))
    held_out = rng.normal(size=30)
    return gradients, held_out, rng.uniform(0.5, 2.0, count)


@pytest.mark.parametrize("limit", [0.0, 1.0, 8.0, 1e6])
def test_the_prediction_is_the_first_order_drop_of_the_clipped_gradient(limit: float):
    gradients, held_out, weight = random_problem()
    slopes, gram = gradients @ held_out, gradients @ gradients.T

    def drop(mask: np.ndarray) -> float:
        step = (mask * weight) @ gradients
        norm = float(np.linalg.norm(step))
        share = min(1.0, limit / norm) if limit and norm else 1.0
        return 0.1 * share * float(step @ held_out)

    for mask in all_masks(4):
        found = predict(
            slopes, gram, weight, mask, rate=0.1, limit=limit, norm=math.nan, soft=False
        )
        assert found.drop == pytest.approx(drop(mask), abs=1e-9)
        for k in range(4):
            on, off = mask.copy(), mask.copy()
            on[k], off[k] = 1.0, 0.0
            assert found.credit[k] == pytest.approx(drop(on) - drop(off), abs=1e-9)
    weights = np.array([0.3, 0.9, 0.5, 0.1])
    found = predict(slopes, gram, weight, weights, rate=0.1, limit=limit, norm=math.nan, soft=True)
    for k in range(4):
        near = np.eye(4)[k] * 1e-6
        slope = (drop(weights + near) - drop(weights - near)) / 2e-6
        assert found.credit[k] == pytest.approx(slope, rel=1e-4)


def test_the_norm_that_was_measured_scales_the_others():
    gradients, held_out, weight = random_problem()
    slopes, gram, mask = gradients @ held_out, gradients @ gradients.T, np.array([1, 0, 1, 0.0])
    norm = float(np.linalg.norm((mask * weight) @ gradients))
    settings: dict[str, Any] = {"rate": 1.0, "limit": 0.5, "soft": False}
    plain = predict(slopes, gram, weight, mask, norm=norm, **settings)
    scaled = predict(slopes, gram / 9, weight, mask, norm=norm, **settings)
    assert scaled.drop == pytest.approx(plain.drop)
    np.testing.assert_allclose(scaled.credit, plain.credit)


def test_nothing_is_predicted_from_nothing():
    unknown = np.full(3, math.nan)
    found = predict(
        unknown, None, np.ones(3), np.ones(3), rate=1.0, limit=1.0, norm=1.0, soft=False
    )
    assert math.isnan(found.drop)
    assert np.isnan(found.credit).all()


# --------------------------------------------------------------------------- in the distiller


def weights_of(distiller: Distiller) -> list[Tensor]:
    return [t.detach().clone() for t in distiller.tensors]


def test_measuring_credit_does_not_change_the_student(make: Make):
    first, second = make().distiller, make().distiller
    train(first, 5, credit=True)
    train(second, 5, credit=False)
    for a, b in zip(weights_of(first), weights_of(second), strict=True):
        assert torch.equal(a, b)


def test_credit_goes_on_from_a_snapshot_to_the_bit(make: Make):
    distiller = make(optim={"max_updates": 12}).distiller
    train(distiller, 3)
    state = distiller.snapshot()
    mask = np.array([1, 0, 1, 1, 0.0])
    first = [distiller.update(mask, credit="hard") for _ in range(4)]
    train(distiller, 2)
    distiller.restore(state)
    second = [distiller.update(mask, credit="hard") for _ in range(4)]
    for a, b in zip(first, second, strict=True):
        assert a.predicted == b.predicted
        np.testing.assert_array_equal(a.credit, b.credit)
    assert np.isfinite(first[-1].credit).all()


def test_the_credit_of_an_update_is_its_first_order_effect(make: Make):
    # the whole reward split, no momentum to speak of: what one update does is what was predicted
    pool = ["label", "response", "hidden/skip"]
    setup = make(
        knowledge={"pool": pool, "balance": "none"},
        credit={"rows": 24, "horizon": 1, "every": 1, "interval": 1, "preconditioner": "none"},
        optim={"max_updates": 50, "warmup": 0.0},
    )
    distiller, credit = setup.distiller, credit_of(setup.distiller)
    train(distiller, 2)
    batch = distiller.next_batch()
    credit.add_held_out(5)
    slopes, _ = credit.derivatives(
        batch, distiller._teach(batch), credit.direction(distiller.optimizer)
    )

    def held_out() -> float:
        split = setup.reward
        whole = split.batch(np.arange(len(split)))
        with torch.no_grad():
            logits = setup.student(**whole.model_inputs()).logits.double()
        return float(torch.nn.functional.cross_entropy(logits, whole.labels))

    words = distiller.student.get_input_embeddings().weight
    before, state = held_out(), distiller.snapshot()
    for k in range(len(pool)):
        loss = distiller.losses(batch)[k]
        named = [p for p in distiller.student.parameters() if p is not words]
        grads = torch.autograd.grad(loss, named, allow_unused=True)
        rate = 1e-4 / float(sum((g**2).sum() for g in grads if g is not None).sqrt())
        with torch.no_grad():
            for p, g in zip(named, grads, strict=True):
                if g is not None:
                    p.sub_(g, alpha=rate)
        assert before - held_out() == pytest.approx(rate * slopes[k], rel=0.05), pool[k]
        distiller.restore(state)


def test_credit_is_weighted_as_the_update_is(make: Make):
    # the sizes that the update divides by are those of before it
    setup = make(credit={"interval": 1, "clip": False}, optim={"max_updates": 9})
    distiller, credit = setup.distiller, credit_of(setup.distiller)
    train(distiller, 3)
    record = distiller.update(np.ones(5), credit="hard")
    np.testing.assert_allclose(
        record.credit, record.learning_rate * record.weight * credit.state.slopes, rtol=1e-6
    )
    assert record.predicted == pytest.approx(record.credit.sum())


def test_without_clipping_nothing_is_spent_on_it(make: Make):
    distiller = make(optim={"max_updates": 9, "max_grad_norm": 0.0}).distiller
    train(distiller, 2)
    assert np.isnan(credit_of(distiller).state.gram).all()


def test_a_type_that_a_stage_does_not_allow_has_no_credit(make: Make):
    stages = [{"pool": ["response", "hidden/skip"], "share": 0.5}, {"pool": [], "share": 0.5}]
    distiller = make(stages=stages).distiller
    names = distiller.pool.names
    first = distiller.update(np.ones(5), credit="hard")
    known = {name for name, value in zip(names, first.credit, strict=True) if np.isfinite(value)}
    assert known == {"response", "hidden/skip"}
    train(distiller, 3)
    assert np.isfinite(distiller.update(np.ones(5), credit="hard").credit).all()


def test_an_empty_mask_has_credit_too(make: Make):
    distiller = make().distiller
    record = distiller.update(np.zeros(5), credit="hard")
    assert record.predicted == 0
    assert np.isfinite(record.credit).all()
    assert (record.credit != 0).all()


def test_few_rows_are_spread_and_trimmed(make: Make):
    distiller = make().distiller
    batch = distiller.next_batch()
    part = few_rows(batch, 3)
    assert part.ids.tolist() == [batch.ids[i].item() for i in (0, 4, 7)]
    assert part.input_ids.shape[1] == int(part.attention_mask.sum(1).max())
    assert few_rows(batch, 0) is batch
    assert few_rows(batch, 99) is batch


@pytest.mark.parametrize(
    ("size", "rows", "batch"), [(1, 1, 1), (2, 2, 2), (7, 3, 2), (16, 8, 4), (32, 16, 8)]
)
def test_rows_are_in_proportion_to_the_batch_unless_they_are_given(
    size: int, rows: int, batch: int
):
    assert credit_sizes(CreditConfig(), size) == CreditSizes(rows, batch)
    assert credit_sizes(CreditConfig(rows=5, batch=0), size) == CreditSizes(5, 0)
    assert credit_sizes(CreditConfig(rows=5), size) == CreditSizes(5, batch)
    assert credit_sizes(CreditConfig(batch=3), size) == CreditSizes(rows, 3)


@pytest.mark.parametrize(
    ("credit", "held_out", "part"),
    [({"batch": None}, 4, 2), ({"rows": 3, "batch": 5}, 3, 5), ({"batch": 0}, 4, 8)],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_so_many_rows_are_looked_at(
    make: Make, credit: dict, held_out: int, part: int, accumulate: int
):
    setup = make(credit=credit, optim={"accumulate": accumulate})
    assert setup.config.batching.size == 8
    train(setup.distiller, 1)
    # a held-out gradient; the derivatives; how the types' gradients lie to each other
    assert setup.ledger.examples["credit"] == held_out + 2 * part


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"credit": {"rows": 25}}, "--credit.rows: a held-out gradient of 25 rows is more"),
        (
            {"batching": {"size": 64}},
            r"--credit.rows: a held-out gradient of 32 rows \(half of --batching.size 64\)",
        ),
        ({"credit": {"embeddings": True}, "optim": {"embeddings": "frozen"}}, "--credit.embedd"),
        (
            {"credit": {"batch": 1}, "knowledge": {"pool": ["label", "sample_similarity"]}},
            "--credit.batch 1: sample_similarity",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Make, changes: dict, option: str):
    with pytest.raises(UsageError, match=option):
        make(**changes)


# --------------------------------------------------------------------------- objectives


@pytest.mark.parametrize("task", ["mnli", "stsb", "squad"])
@pytest.mark.parametrize("name", ["cross_entropy", "calibrated", "margin"])
def test_the_loss_of_an_objective_has_its_value_and_its_derivative(name: str, task: str):
    if name == "margin" and task == "stsb":
        pytest.skip("margin needs classes")
    generator = torch.Generator().manual_seed(0)
    shapes = {"mnli": (20, 3), "stsb": (20, 1), "squad": (20, 6, 2)}
    logits = torch.randn(shapes[task], generator=generator, dtype=torch.float64)
    if task == "stsb":
        labels = torch.rand(20, generator=generator) * 5
    else:
        size = (20, 2) if task == "squad" else (20,)
        labels = torch.randint(0, 3, size, generator=generator)
    known = get_task(task)
    fit = fit_objective(name, logits, labels, known)
    assert (fit == Fit()) is (name != "calibrated")
    logits.requires_grad_()
    loss = objective_loss(name, logits, labels, known, 0.7, fit)
    value = objective_value(name, logits.detach(), labels, known, 0.7)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-9)
    (slope,) = torch.autograd.grad(loss, logits)
    step = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    near = [
        objective_value(name, (logits + sign * 1e-4 * step).detach(), labels, known, 0.7)
        for sign in (1, -1)
    ]
    assert (near[0] - near[1]) / 2e-4 == pytest.approx(float((slope * step).sum()), rel=1e-3)
