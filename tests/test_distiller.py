from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ksel.data import BatchOrder
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.knowledge import KINDS, KnowledgePool, mean_loss
from ksel.models import Tap, head_parameters, load_classifier, weights_fingerprint
from ksel.records import DivergedError, Update
from ksel.setup import Setup
from ksel.tasks import get_task
from ksel.types import Batch, Needs, Signals

UPDATES = 12
DATA_SEED = 3
PLAIN = {"balance": "none"}
PLAIN_OPTIM = {"max_grad_norm": 0.0, "warmup": 0.0}
Make = Callable[..., Setup]


@pytest.fixture(scope="module")
def lively_teacher(tmp_path_factory) -> Path:
    """A tiny teacher with opinions: its weights are large enough for answers to differ."""
    folder = tiny.write_teacher(tmp_path_factory.mktemp("lively"))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and "embeddings" not in name:
            tensors[name] = tensor * 8
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def make(tiny_data, lively_teacher, tmp_path_factory) -> Make:
    """Setups with a fresh student; one of the same settings is built once."""
    store, made = tmp_path_factory.mktemp("store"), {}

    def build(pool: list[str] | None = None, **changes: Any) -> Setup:
        if pool is not None:
            changes["knowledge"] = {"pool": pool, **changes.get("knowledge", {})}
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = tiny.make_setup(tiny.settings(tiny_data, lively_teacher, store, **changes))
        made[key].distiller.reset(DATA_SEED, UPDATES)
        return made[key]

    return build


def mask(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def weights(distiller: Distiller) -> list[Tensor]:
    return [t.detach().clone() for t in distiller.tensors]


def whole_state(distiller: Distiller) -> list[Tensor]:
    moments = [v.clone() for s in distiller.optimizer.state.values() for v in s.values()]
    return weights(distiller) + moments


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True))


def learned(setup: Setup, tensors: list[Tensor]) -> list[Tensor]:
    """The student's parameters but for attention's key biases.

    Their gradient vanishes, and AdamW turns its rounding noise into moves.
    """
    names = [name for name, _ in setup.student.named_parameters()]
    kept = zip(names, tensors[: len(names)], strict=True)
    return [tensor for name, tensor in kept if not name.endswith("key.bias")]


def after(distiller: Distiller, actions: list[np.ndarray], **keywords: Any) -> list[Tensor]:
    """The student's weights after these updates from the start."""
    distiller.reset(DATA_SEED, UPDATES)
    for action in actions:
        distiller.update(action, **keywords)
    return weights(distiller)


def first_gradient(distiller: Distiller, action: np.ndarray) -> tuple[list[Tensor], Update]:
    """What the optimiser gets in the first update, and that update's record."""
    distiller.reset(DATA_SEED, UPDATES)
    taken: list[Tensor] = []
    step = distiller.optimizer.step
    distiller.optimizer.step = lambda: taken.extend(  # type: ignore[method-assign]
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in distiller.parameters
    )
    try:
        record = distiller.update(action)
    finally:
        distiller.optimizer.step = step  # type: ignore[method-assign]
    return taken, record


def total_norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def with_loss(setup: Setup, index: int, change: Callable[..., Tensor]) -> Distiller:
    """The setup's distiller with the loss of one type replaced: change(loss [b], student)."""
    types = list(setup.pool.types)
    old = types[index].loss

    def loss(student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return change(old(student, teacher, batch), student)

    types[index] = replace(types[index], loss=loss)
    pool = replace(setup.pool, types=tuple(types))
    distiller = Distiller(replace(setup.distiller.parts, pool=pool))
    distiller.reset(DATA_SEED, UPDATES)
    return distiller


# --------------------------------------------------------------------------- losses


def test_losses_are_those_of_separate_forwards(make: Make) -> None:
    setup = make()
    batch = setup.distiller.next_batch()
    student, teacher = Tap(setup.student), Tap(setup.teacher.model)
    expected = []
    with torch.no_grad():
        for kind in setup.pool:
            expected.append(
                mean_loss(kind, student(batch, kind.student), teacher(batch, kind.teacher), batch)
            )
        mine = setup.student(**batch.model_inputs()).logits
        theirs = setup.teacher.model(**batch.model_inputs()).logits
    values = setup.distiller.losses(batch)
    assert values.requires_grad
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.detach(), torch.stack(expected), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(values[0].detach(), F.cross_entropy(mine, batch.labels))
    log_ratio = (theirs / 4).log_softmax(-1) - (mine / 4).log_softmax(-1)
    response = 16 * ((theirs / 4).softmax(-1) * log_ratio).sum() / len(batch)
    torch.testing.assert_close(values[1].detach(), response, rtol=1e-4, atol=1e-8)


def test_update_reports_the_losses_of_its_batch(make: Make) -> None:
    distiller = make().distiller
    expected = distiller.losses(distiller.next_batch()).tolist()
    selected = distiller.update(mask(1, 0, 0, 1, 0))
    assert selected.loss[[0, 3]] == pytest.approx([expected[0], expected[3]], rel=1e-5)
    assert np.isnan(selected.loss[[1, 2, 4]]).all()
    distiller.reset(DATA_SEED, UPDATES)
    everything = distiller.update(mask(1, 0, 0, 1, 0), observe=True)
    assert everything.loss == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------- the update


def hand_written_loop(
    setup: Setup, updates: int, *, factor: float, clip: float, decay: float | None
) -> list[Tensor]:
    """AdamW on ``factor`` x label loss / running size, written out anew."""
    student = copy.deepcopy(setup.student).eval()
    parameters = [p.requires_grad_(True) for p in student.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=False, foreach=False)
    order = BatchOrder(setup.train.lengths, 8, 4, DATA_SEED)
    seen: list[float] = []
    for update in range(updates):
        batch = setup.train.batch(order.rows(update))
        loss = F.cross_entropy(student(**batch.model_inputs()).logits, batch.labels)
        size = 1.0
        if decay is not None:
            seen = seen or [loss.item()]
            share = [decay ** (len(seen) - 1 - i) for i in range(len(seen))]
            size = sum(s * v for s, v in zip(share, seen, strict=True)) / sum(share)
        optimizer.zero_grad()
        (factor / size * loss).backward()
        present = [p for p in parameters if p.grad is not None]
        norm = total_norm([p.grad for p in present])
        for p in present:
            p.grad.mul_(min(1.0, clip / norm))
        # budget 12, a quarter of it rising: 1/4, 2/4, 3/4, then from 1 down in ninths
        rate = (update + 1) / 4 if update < 3 else (12 - update) / 9
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate
        optimizer.step()
        seen.append(loss.item())
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("balance", ["none", "ema"])
def test_one_type_moves_the_student_as_a_hand_written_loop(make: Make, balance: str) -> None:
    knowledge = {"balance": balance, "weights": {"label": 3.0}}
    if balance == "ema":
        knowledge["ema_decay"] = 0.7
    setup = make(
        ["label", "response"],
        knowledge=knowledge,
        optim={"learning_rate": 2e-3, "warmup": 0.25, "max_grad_norm": 7.0},
    )
    expected = hand_written_loop(
        setup, 6, factor=0.5 * 3.0, clip=7.0, decay=0.7 if balance == "ema" else None
    )
    start = weights(setup.distiller)
    norms = [setup.distiller.update(mask(0.5, 0)).clip_norm for _ in range(6)]
    assert max(norms) > 7 > min(norms)  # both clipped and unclipped updates
    moved = learned(setup, weights(setup.distiller))
    assert gap(moved, learned(setup, start)) > 5e-3
    assert gap(moved, learned(setup, expected)) < 1e-6


def test_every_kind_moves_the_student_its_own_way(make: Make) -> None:
    # a student that starts from the teacher's embeddings matches them already
    setup = make(list(KINDS), optim=PLAIN_OPTIM, student={"init": "random"})
    assert [kind.kind for kind in setup.pool] == list(KINDS)
    everything = np.ones(len(KINDS), np.float32)
    with_all, _ = first_gradient(setup.distiller, everything)
    start = weights(setup.distiller)
    for k, name in enumerate(KINDS):
        only = np.eye(len(KINDS), dtype=np.float32)[k]
        alone, record = first_gradient(setup.distiller, only)
        without, _ = first_gradient(setup.distiller, everything - only)
        assert record.grad_norm[k] == pytest.approx(total_norm(alone), rel=1e-5), name
        assert total_norm(alone) > 1e-5, name
        missing = [a - w for a, w in zip(with_all, without, strict=True)]
        rest = [m - a for m, a in zip(missing, alone, strict=True)]
        # gradients are differences of large sums: float32 leaves a millionth of all of it
        rounding = 1e-6 * max(1.0, total_norm(with_all))
        assert total_norm(rest) < 1e-3 * total_norm(alone) + rounding, name
        assert gap(after(setup.distiller, [only]), start) > 1e-4, name


def test_a_type_that_is_off_contributes_nothing(make: Make) -> None:
    few = make(["label", "response"], knowledge=PLAIN)
    expected = after(few.distiller, [mask(1, 1)] * 3)
    many = make(["label", "hidden/skip", "response", "fsp/skip"], knowledge=PLAIN)
    assert same(after(many.distiller, [mask(1, 0, 1, 0)] * 3), expected)
    observed = after(many.distiller, [mask(1, 0, 1, 0)] * 3, observe=True)
    assert same(observed, expected)


def test_projections_learn_with_their_type_only(make: Make) -> None:
    changes: dict[str, Any] = {"student": {"width": 8, "heads": 2, "init": "random"}}
    distiller = make(["label", "hidden/skip"], knowledge=PLAIN, **changes).distiller
    projections = list(distiller.pool.projections.parameters())
    assert projections
    start = [p.detach().clone() for p in projections]
    distiller.update(mask(1, 0))
    assert same([p.detach() for p in projections], start)
    distiller.update(mask(0, 1))
    assert not any(map(torch.equal, projections, start))


def test_the_empty_mask_spends_the_step_and_moves_nothing(make: Make) -> None:
    distiller = make().distiller
    distiller.update(np.ones(5))
    before, rows = whole_state(distiller), distiller.next_batch().ids
    rates = []
    for observe in (False, True):
        record = distiller.update(np.zeros(5), observe=observe)
        rates.append(record.learning_rate)
        assert record.clip_norm == 0
        assert (record.weight == 0).all()
        assert np.isfinite(record.loss).all() == observe
    assert same(whole_state(distiller), before)
    assert distiller.cursor == 3
    assert not torch.equal(distiller.next_batch().ids, rows)
    # budget 12, warm-up int(1.2) = 1 update
    assert rates == pytest.approx([1e-3 * 11 / 11, 1e-3 * 10 / 11])


def test_soft_weights_scale_the_gradient_linearly(make: Make) -> None:
    setup = make(["label", "response", "hidden/skip"], knowledge=PLAIN, optim=PLAIN_OPTIM)
    parts = [first_gradient(setup.distiller, row)[0] for row in np.eye(3, dtype=np.float32)]
    mixed, record = first_gradient(setup.distiller, mask(0.25, 0.5, 1.0))
    assert record.weight == pytest.approx([0.25, 0.5, 1.0])
    for got, a, b, c in zip(mixed, *parts, strict=True):
        torch.testing.assert_close(got, 0.25 * a + 0.5 * b + c, rtol=1e-4, atol=1e-8)


def test_static_weights_multiply_the_action(make: Make) -> None:
    setup = make(
        ["label", "response"], knowledge={**PLAIN, "weights": {"label": 3.0}}, optim=PLAIN_OPTIM
    )
    weighted, record = first_gradient(setup.distiller, mask(0.5, 0))
    assert record.weight == pytest.approx([1.5, 0])
    assert (record.scale == 1).all()
    plain = make(["label", "response"], knowledge=PLAIN, optim=PLAIN_OPTIM)
    expected, _ = first_gradient(plain.distiller, mask(1, 0))
    assert total_norm(weighted) == pytest.approx(1.5 * total_norm(expected), rel=1e-5)


def test_ema_balance_divides_by_the_running_size_before_the_update(make: Make) -> None:
    distiller = make(["label", "response"], knowledge={"ema_decay": 0.5, "max_gain": 1e9}).distiller
    first = distiller.update(mask(1, 0))
    second = distiller.update(mask(1, 0))
    third = distiller.update(mask(0.5, 1))
    size = [first.loss[0]] * 2  # the first loss sets the size and is then noted as usual
    assert first.scale[0] == pytest.approx(size[0], rel=1e-6)
    assert second.scale[0] == pytest.approx(size[0], rel=1e-6)
    expected = (0.25 * size[0] + 0.5 * size[1] + 1.0 * second.loss[0]) / 1.75
    assert third.scale == pytest.approx([expected, third.loss[1]], rel=1e-6)
    assert third.weight == pytest.approx([0.5 / expected, 1 / third.loss[1]], rel=1e-6)


def test_ema_balance_multiplies_no_loss_by_more_than_its_bound(make: Make) -> None:
    distiller = make(["label", "response"], knowledge={"max_gain": 2.0}).distiller
    record = distiller.update(mask(1, 1))
    assert record.loss[1] < 0.5 < record.loss[0]  # the tiny teacher's outputs are near uniform
    assert record.scale == pytest.approx([record.loss[0], 0.5], rel=1e-6)
    assert record.weight[1] == pytest.approx(2.0)


@pytest.mark.parametrize("pool", [["label", "response"], ["hidden/skip", "value_relation/last_1"]])
def test_gradient_accumulation_changes_nothing(make: Make, pool: list[str]) -> None:
    results = []
    for accumulate in (1, 4):
        changes = {"batching": {"bucket": 1}, "optim": {"accumulate": accumulate}}
        setup = make(pool, **changes)
        distiller = setup.distiller
        lengths = distiller.next_batch().attention_mask.sum(1)
        assert len(set(lengths.tolist())) > 1
        records = [distiller.update(mask(1, 0.5), observe=True) for _ in range(4)]
        results.append((records, learned(setup, weights(distiller))))
    (whole, one), (parts, four) = results
    for a, b in zip(whole, parts, strict=True):
        for name in ("loss", "scale", "weight", "clip_norm", "entropy", "agreement"):
            # the tiny teacher's response loss is 3e-4, a difference of numbers around 1 in float32
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-3, abs=1e-6), name
    assert gap(one, four) < 1e-5


@pytest.mark.parametrize("limit", [0.05, 0.0])
def test_clipping(make: Make, limit: float) -> None:
    distiller = make(["label", "response"], optim={"max_grad_norm": limit}).distiller
    gradient, record = first_gradient(distiller, mask(1, 1))
    assert record.clip_norm > 0.1
    expected = limit if limit else record.clip_norm
    assert total_norm(gradient) == pytest.approx(expected, rel=1e-3)


def test_learning_rate_rises_then_falls(make: Make) -> None:
    distiller = make(["label", "response"], optim={"warmup": 0.2}).distiller
    distiller.reset(DATA_SEED, 10)
    rates = [distiller.update(mask(i % 2, 0)).learning_rate for i in range(10)]
    expected = [1 / 3, 2 / 3, 8 / 8, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rates == pytest.approx([1e-3 * rate for rate in expected])
    with pytest.raises(RuntimeError, match="10 updates is spent"):
        distiller.update(mask(1, 0))


# --------------------------------------------------------------------------- teacher


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_the_head_is_all_behind_the_last_layer(family: str, tmp_path: Path) -> None:
    student = load_classifier(
        str(tiny.write_teacher(tmp_path, family)), get_task("rte"), seed=0, option="--teacher"
    )
    names = {id(p): name for name, p in student.named_parameters()}
    found = {names[id(p)] for p in head_parameters(student)}
    inside = {name for name in names.values() if ".encoder." in name or ".embeddings." in name}
    inside |= {name for name in names.values() if ".transformer." in name}
    assert found
    assert not found & inside
    assert {n for n in names.values() if n not in inside} - found <= {
        "electra.embeddings_project.weight",
        "electra.embeddings_project.bias",
    }


def test_the_head_moves_at_its_own_multiple_of_the_rate(make: Make) -> None:
    """AdamW's first step is as long as the rate, whatever the gradient."""
    steps = []
    for head_rate in (1.0, 4.0):
        optim = {**PLAIN_OPTIM, "weight_decay": 0.0, "head_rate": head_rate}
        distiller = make(["label"], knowledge=PLAIN, optim=optim).distiller
        before = {n: p.detach().clone() for n, p in distiller.student.named_parameters()}
        distiller.update(mask(1))
        steps.append({n: p.detach() - before[n] for n, p in distiller.student.named_parameters()})
    head = {n for n in steps[0] if n.startswith("classifier") or ".pooler." in n}
    assert head
    for name, plain in steps[0].items():
        factor = 4.0 if name in head else 1.0
        torch.testing.assert_close(steps[1][name], factor * plain, rtol=1e-3, atol=1e-6)


def test_a_live_teacher_runs_only_where_it_is_needed_and_once(make: Make) -> None:
    setup = make(
        ["label", "response", "hidden/skip", "value_relation/last_1"],
        signals={"source": "live"},
        batching={"size": 8},
    )
    distiller = setup.distiller

    def forwards(action: np.ndarray, **keywords: Any) -> int:
        before = distiller.ledger.examples.get("teacher", 0)
        distiller.update(action, **keywords)
        return distiller.ledger.examples.get("teacher", 0) - before

    distiller.observe()
    assert distiller.ledger.examples.get("teacher", 0) == 0
    assert forwards(mask(0, 0, 0, 0)) == 0
    assert forwards(mask(0, 0, 0, 0), observe=True) == 0
    assert forwards(mask(1, 0, 0, 0)) == 0
    assert forwards(mask(1, 0, 0, 0), observe=True) == 0
    forwards(mask(0, 1, 1, 1))  # the first use of a type looks at its size beforehand
    assert forwards(mask(0, 1, 1, 1)) == 8
    assert forwards(mask(0, 0, 1, 0), observe=True) == 8


def test_updates_cost_one_student_forward(make: Make) -> None:
    distiller = make().distiller
    distiller.update(np.ones(5))
    rows = distiller.parts.train
    distiller.sources[0](rows.batch(np.arange(len(rows))), Needs(logits=True))
    before = distiller.ledger.copy()
    distiller.update(np.ones(5), observe=True)
    spent = distiller.ledger.since(before).examples
    assert spent["student_forward"] == 8
    assert spent["student_backward"] == 8
    assert spent.get("teacher", 0) == 0


def test_live_and_cached_teachers_give_the_same_student(make: Make) -> None:
    actions = [mask(1, 1, 1, 1, 1), mask(0, 1, 0, 0, 0), mask(0, 0, 1, 1, 0)]
    cached = after(make().distiller, actions)
    live = after(make(signals={"source": "live"}).distiller, actions)
    assert gap(cached, live) < 1e-5


def test_only_student_and_projections_learn(make: Make) -> None:
    setup = make(
        ["label", "response", "hidden/skip"],
        student={"width": 8, "heads": 2, "init": "random"},
        signals={"source": "live"},
    )
    teacher = setup.teacher.model
    before = weights_fingerprint(teacher)
    setup.student.train()
    for _ in range(3):
        setup.distiller.update(np.ones(3), observe=True)
    assert weights_fingerprint(teacher) == before
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    trained = {id(p) for g in setup.distiller.optimizer.param_groups for p in g["params"]}
    own = [*setup.student.parameters(), *setup.pool.projections.parameters()]
    assert trained == {id(p) for p in own}
    assert not {id(p) for p in teacher.parameters()} & trained


# --------------------------------------------------------------------------- random numbers


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_global_generator_is_neither_used_nor_moved(make: Make, dropout: float) -> None:
    distiller = make(student={"dropout": dropout}).distiller
    torch.manual_seed(1)
    state = torch.get_rng_state()
    quiet = after(distiller, [np.ones(5)] * 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    distiller.reset(DATA_SEED, UPDATES)
    for _ in range(3):
        torch.rand(7)
        distiller.update(np.ones(5))
    assert same(weights(distiller), quiet)
    distiller.reset(DATA_SEED + 1, UPDATES)
    for _ in range(3):
        distiller.update(np.ones(5))
    assert not same(weights(distiller), quiet)


def test_dropout_draws_anew_for_each_update_and_from_the_data_seed(make: Make) -> None:
    actions = [mask(1, 0)] * 2
    plain = after(make(["label", "response"]).distiller, actions)
    distiller = make(["label", "response"], student={"dropout": 0.1}).distiller
    assert gap(after(distiller, actions), plain) > 1e-4
    distiller.reset(DATA_SEED, UPDATES)
    state = distiller.generator.state
    record = distiller.update(mask(1, 0))
    assert not torch.equal(distiller.generator.state, state)
    # the same rows under other dropout masks give another loss
    distiller.reset(DATA_SEED, UPDATES)
    distiller.generator.seed(99)
    assert distiller.update(mask(1, 0)).loss[0] != record.loss[0]


def test_losses_are_without_dropout(make: Make) -> None:
    dropped = make(["label", "response"], student={"dropout": 0.3}).distiller
    batch = dropped.next_batch()
    dropped.update(mask(1, 1))
    dropped.reset(DATA_SEED, UPDATES)
    plain = make(["label", "response"]).distiller
    assert dropped.losses(batch).tolist() == plain.losses(batch).tolist()


# --------------------------------------------------------------------------- snapshot, reset

SOFT = [np.random.default_rng(i).random(5).astype(np.float32) for i in range(8)]


def same_record(a: Update, b: Update) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in ("loss", "scale", "weight", "grad_norm", "clip_norm", "entropy", "agreement")
    )


@pytest.mark.parametrize(
    ("dropout", "accumulate"), [(0.0, 1), (0.1, 1), (0.1, 3)], ids=["plain", "dropout", "both"]
)
def test_a_snapshot_goes_on_to_the_bit(make: Make, dropout: float, accumulate: int) -> None:
    changes = {"student": {"dropout": dropout}, "optim": {"accumulate": accumulate}}
    distiller = make(**changes).distiller
    for action in SOFT[:3]:
        distiller.update(action)
    state = distiller.snapshot()
    records = [distiller.update(action, observe=True) for action in SOFT[3:]]
    end, sizes = whole_state(distiller), distiller.sizes
    distiller.reset(77, 5)
    distiller.update(np.ones(5))
    distiller.restore(state)
    assert (distiller.cursor, distiller.updates) == (3, UPDATES)
    again = [distiller.update(action, observe=True) for action in SOFT[3:]]
    assert same(whole_state(distiller), end)
    assert all(map(same_record, records, again))
    assert np.array_equal(distiller.sizes.totals, sizes.totals)
    # the snapshot itself was not touched, so it can be used once more
    distiller.restore(state)
    distiller.update(SOFT[3])
    assert distiller.update(SOFT[4]).clip_norm == records[1].clip_norm


def test_a_snapshot_into_an_old_one_reuses_its_tensors(make: Make) -> None:
    distiller = make().distiller
    distiller.update(np.ones(5))
    old = distiller.snapshot()
    places = [t.data_ptr() for t in old.weights + old.moments]
    distiller.update(np.ones(5))
    new = distiller.snapshot(into=old)
    now = whole_state(distiller)
    assert [t.data_ptr() for t in new.weights + new.moments] == places
    distiller.update(np.ones(5))
    distiller.restore(new)
    assert same(whole_state(distiller), now)
    assert distiller.cursor == 2


def test_reset_gives_back_the_initial_student(make: Make) -> None:
    distiller = make(student={"dropout": 0.1}).distiller
    start = weights(distiller)

    def episode(seed: int, updates: int) -> tuple[list[Tensor], list[Update]]:
        distiller.reset(seed, updates)
        assert same(weights(distiller), start)
        assert all((m == 0).all() for m in whole_state(distiller)[len(start) :])
        records = [distiller.update(action) for action in SOFT[:4]]
        return whole_state(distiller), records

    first, first_records = episode(5, 10)
    other, _ = episode(6, 7)
    again, again_records = episode(5, 10)
    assert not same(first, other)
    assert same(first, again)
    assert all(map(same_record, first_records, again_records))


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_names_its_type_and_applies_nothing(
    make: Make, value: float
) -> None:
    setup = make(knowledge=PLAIN)
    distiller = with_loss(setup, 3, lambda loss, student: loss * value)
    distiller.update(mask(1, 0, 0, 0, 0))
    before = whole_state(distiller)
    with pytest.raises(DivergedError, match=r"the loss of hidden/skip is"):
        distiller.update(np.ones(5))
    assert same(whole_state(distiller), before)
    assert distiller.cursor == 1


def test_a_gradient_that_is_not_finite_applies_nothing(make: Make) -> None:
    def kinked(loss: Tensor, student: Signals) -> Tensor:
        assert student.logits is not None
        return (student.logits - student.logits.detach()).sum(-1).abs().sqrt() + 1.0

    distiller = with_loss(make(["label", "response"], knowledge=PLAIN), 1, kinked)
    before = whole_state(distiller)
    with pytest.raises(DivergedError, match="gradient of response is not finite"):
        distiller.update(mask(0, 1))
    assert same(whole_state(distiller), before)


def test_a_huge_learning_rate_ends_in_a_named_divergence(make: Make) -> None:
    distiller = make(["label", "response"], optim={"learning_rate": 1e30}).distiller
    distiller.update(mask(1, 0))
    before = whole_state(distiller)
    with pytest.raises(DivergedError, match=r"of label"):
        distiller.update(mask(1, 0))
    assert same(whole_state(distiller), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda loss, student: loss.detach(),
        lambda loss, student: 0.0 * loss + 1.0,
    ],
    ids=["detached", "zero"],
)
def test_a_selected_type_without_gradient_is_named(make: Make, change: Any) -> None:
    distiller = with_loss(make(), 2, change)
    before = whole_state(distiller)
    distiller.update(mask(1, 1, 0, 1, 1))
    before = whole_state(distiller)
    with pytest.raises(UsageError, match=r"--knowledge.pool: 'cls_hidden/skip' is selected"):
        distiller.update(np.ones(5))
    assert same(whole_state(distiller), before)


def test_a_tiny_weight_is_not_mistaken_for_no_gradient(make: Make) -> None:
    distiller = make(["label", "response"], knowledge=PLAIN).distiller
    record = distiller.update(mask(1e-30, 0))
    assert record.grad_norm[0] == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("balance", ["none", "ema"])
def test_a_perfect_match_is_not_an_error(make: Make, balance: str) -> None:
    setup = make(
        ["hidden/first", "response", "label"],
        student={"layers": 4, "init": "first", "source": "teacher"},
        knowledge={"balance": balance},
        signals={"source": "live"},
    )
    record = setup.distiller.update(mask(1, 1, 0))
    assert record.loss[:2] == pytest.approx([0, 0], abs=1e-9)
    learned = setup.distiller.update(mask(1, 1, 1))
    assert np.isfinite(learned.loss).all()
    assert all(torch.isfinite(t).all() for t in setup.distiller.tensors)


# --------------------------------------------------------------------------- gradient norms


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradient_norms_are_measured_at_the_cadence(make: Make, accumulate: int) -> None:
    setup = make(optim={"grad_norm_every": 3, "accumulate": accumulate})
    distiller = setup.distiller
    batch = distiller.next_batch()
    parameters = list(distiller.parameters)
    raw = [
        total_norm([g for g in torch.autograd.grad(loss, parameters, retain_graph=True,
                                                    allow_unused=True) if g is not None])
        for loss in distiller.losses(batch)
    ]  # fmt: skip
    records = [distiller.update(mask(1, 1, 0.5, 0, 1)) for _ in range(7)]
    first = records[0]
    on = [0, 1, 2, 4]
    assert first.grad_norm[on] == pytest.approx(np.array(raw)[on] * first.weight[on], rel=5e-3)
    measured = [bool(np.isfinite(r.grad_norm[on]).all()) for r in records]
    assert measured == [True, False, False, True, False, False, True]
    assert all(np.isnan(r.grad_norm[3]) for r in records)


def test_the_first_use_of_a_type_is_always_measured(make: Make) -> None:
    distiller = make(["label", "response"], optim={"grad_norm_every": 0}).distiller
    start = distiller.snapshot()
    distiller.update(mask(1, 1))
    distiller.restore(start)
    records = [distiller.update(a) for a in (mask(1, 0), mask(1, 0), mask(1, 1), mask(1, 1))]
    assert [np.isfinite(r.grad_norm).tolist() for r in records] == [
        [True, False],
        [False, False],
        [True, True],
        [False, False],
    ]


def test_measuring_norms_does_not_change_the_student(make: Make) -> None:
    rate = 1e-5  # of AdamW's moves, rounding noise makes up a few per cent where gradients vanish
    ends, gradients = [], []
    for every in (0, 1):
        optim = {"grad_norm_every": every, "learning_rate": rate}
        distiller = make(optim=optim).distiller
        start = weights(distiller)
        ends.append(after(distiller, SOFT[:5]))
        distiller.checked[:] = True
        gradients.append(distiller.update(SOFT[5]).clip_norm)
    assert gap(*ends) < 2e-6
    assert gap(ends[0], start) > 3 * rate
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)


def test_the_pool_names_what_the_records_hold(make: Make) -> None:
    setup = make()
    assert isinstance(setup.pool, KnowledgePool)
    record = setup.distiller.update(np.ones(len(setup.pool.names)))
    for name in ("loss", "scale", "weight", "grad_norm"):
        assert getattr(record, name).shape == (len(setup.pool.names),)
