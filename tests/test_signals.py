"""Teacher signals: kept and live agree, each row is computed once, whoever asks for it first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import readers
import torch
from knowledge_cases import CASES, Case, each_tensor, gradients, setting_of

from ksel import signals
from ksel.data import Split, tokenize
from ksel.errors import UsageError
from ksel.knowledge.kinds import KINDS
from ksel.ledger import Ledger
from ksel.models import load_classifier, load_tokenizer
from ksel.signal_ahead import Ahead
from ksel.signal_files import FileStore
from ksel.signal_store import BLOCK, Layout, MemoryStore, needs_of, signal_names
from ksel.signals import KeptTeacher, LiveTeacher, SignalPlan
from ksel.sources import read_folder
from ksel.tasks import get_task
from ksel.types import LAYERED, Needs, Signals

RTE, SQUAD = get_task("rte"), get_task("squad")
ALL = frozenset(range(5))
INSIDE = frozenset(range(1, 5))
EVERYTHING = Needs(
    True, cls=ALL, hidden=ALL, query=INSIDE, key=INSIDE, value=INSIDE, attention_output=INSIDE
)
POOLED = Needs(True, cls=ALL)
SOME = Needs(True, cls=frozenset([2]), hidden=frozenset([0, 4]), query=frozenset([3]))
CPU = torch.device("cpu")
KEPT = [("memory", "float32", 1e-6), ("disk", "float32", 1e-6), ("disk", "float16", 1e-3)]


@pytest.fixture(scope="module")
def split(tiny_data: Path, tiny_teacher: Path) -> Split:
    rows = read_folder(RTE, str(tiny_data))[0].take(np.arange(61))
    return tokenize(rows, RTE, load_tokenizer(str(tiny_teacher)), 32)


@pytest.fixture
def plan(split: Split, tiny_teacher: Path) -> SignalPlan:
    """A teacher and 61 rows, of which 50 in another order are trained on."""
    teacher = load_classifier(str(tiny_teacher), RTE).eval()
    index = np.random.default_rng(0).permutation(61)[:50]
    return SignalPlan(teacher, split, index, EVERYTHING, 16, CPU)


@pytest.fixture
def spans(tmp_path: Path) -> SignalPlan:
    """A teacher of question answering, whose rows are windows."""
    folder = readers.write_encoder(tmp_path / "reader")
    teacher = load_classifier(str(folder), SQUAD, seed=1).eval()
    return SignalPlan(teacher, readers.span_split(), np.arange(24)[::-1], EVERYTHING, 5, CPU)


@pytest.fixture(scope="module")
def foreign(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SignalPlan:
    """A RoBERTa with a tokenizer of its own, for the same rows as ``split``."""
    folder = tmp_path_factory.mktemp("foreign")
    readers.write_encoder(folder, "roberta", readers.spelling_tokenizer(), seed=4)
    rows = read_folder(RTE, str(tiny_data))[0].take(np.arange(61))
    own = tokenize(rows, RTE, load_tokenizer(str(folder)), 64)
    teacher = load_classifier(str(folder), RTE, seed=2).eval()
    index = np.random.default_rng(0).permutation(61)[:50]
    return SignalPlan(teacher, own, index, POOLED, 16, CPU, own_tokens=True)


def kept(
    plan: SignalPlan,
    needs: Needs = EVERYTHING,
    dtype: str = "float32",
    folder: Path | None = None,
    **options: Any,
) -> KeptTeacher:
    """A teacher whose signals ``needs`` are kept in memory, or in a folder."""
    layout = Layout.of(plan.split.lengths)
    slots = {name: slot for name, slot in plan.slots().items() if name in signal_names(needs)}
    if folder is None:
        return KeptTeacher(plan, MemoryStore(layout, slots, dtype), Ledger(), **options)
    store = FileStore(folder, plan.fingerprint(), layout, slots, dtype, lambda _: None)
    return KeptTeacher(plan, store, Ledger(), **options)


def batch_of(plan: SignalPlan, ids: Any) -> Any:
    """The batch with these numbers among the rows that are trained on."""
    return plan.split.take(plan.index).batch(np.asarray(ids))


def forwards(source: KeptTeacher) -> int:
    return source.ledger.examples.get("teacher", 0)


def flat(found: Signals) -> dict[str, torch.Tensor]:
    tensors = {f"{kind}/{i}": t for kind in LAYERED for i, t in getattr(found, kind).items()}
    return tensors if found.logits is None else {"logits": found.logits, **tensors}


def assert_agree(first: Signals, second: Signals, batch: Any, tolerance: float) -> None:
    one, two = flat(first), flat(second)
    assert one.keys() == two.keys()
    real = batch.attention_mask.bool()
    for name in one:
        a, b = one[name], two[name]
        assert a.dtype == b.dtype == torch.float32
        assert a.shape == b.shape
        if a.ndim == 3:
            a, b = a[real], b[real]
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def assert_same(first: Signals, second: Signals) -> None:
    one, two = flat(first), flat(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# --------------------------------------------------------------------------- kept equals live


@pytest.mark.parametrize(("where", "dtype", "tolerance"), KEPT)
def test_signals_of_every_kind_equal_the_live_ones_for_shuffled_rows(
    plan: SignalPlan, tmp_path: Path, where: str, dtype: str, tolerance: float
) -> None:
    source = kept(plan, EVERYTHING, dtype, tmp_path / "s" if where == "disk" else None)
    live = LiveTeacher(plan.teacher, Ledger())
    rng = np.random.default_rng(1)
    for _ in range(4):
        batch = batch_of(plan, rng.permutation(50)[:7])
        exact = live(batch, EVERYTHING)
        assert_agree(source(batch, EVERYTHING), exact, batch, tolerance)
    if dtype == "float16":
        assert not torch.equal(source(batch, EVERYTHING).logits, exact.logits)


def test_a_batchs_numbers_are_those_of_the_rows_that_are_trained_on(plan: SignalPlan) -> None:
    source = kept(plan)
    rows = np.array([41, 3, 3, 17])
    together = source(batch_of(plan, rows), SOME)
    for place, row in enumerate(rows):
        alone = source(batch_of(plan, [row]), SOME)
        n = plan.split.lengths[plan.index[row]]
        assert torch.equal(together.logits[place], alone.logits[0])
        assert torch.equal(together.cls[2][place], alone.cls[2][0])
        assert torch.equal(together.hidden[4][place, :n], alone.hidden[4][0])
    assert not torch.equal(together.logits[0], together.logits[1])


def test_padded_positions_are_zero(plan: SignalPlan) -> None:
    lengths = plan.split.lengths[plan.index]
    short, long = np.argmin(lengths), np.argmax(lengths)
    n = lengths[short]
    states = kept(plan)(batch_of(plan, [short, long]), SOME).hidden[4]
    assert states.shape[1] == lengths[long] > n
    assert not states[0, n:].any()
    assert states[0, :n].abs().sum(-1).min() > 0
    assert states[1].abs().sum(-1).min() > 0


def test_micro_batches_get_their_rows(plan: SignalPlan) -> None:
    source, batch = kept(plan), batch_of(plan, np.arange(9))
    whole = source(batch, SOME)
    parts = [source(part, SOME) for part in batch.split(2)]
    assert torch.equal(torch.cat([part.hidden[4] for part in parts]), whole.hidden[4])


def test_changing_what_was_looked_up_does_not_change_what_is_kept(plan: SignalPlan) -> None:
    source, batch = kept(plan), batch_of(plan, np.arange(3))
    before = source(batch, SOME)
    copies = {name: t.clone() for name, t in flat(before).items()}
    for tensor in flat(before).values():
        tensor.zero_()
    for name, tensor in flat(source(batch, SOME)).items():
        assert torch.equal(tensor, copies[name])


@pytest.mark.parametrize(("where", "dtype", "tolerance"), KEPT)
def test_scores_of_every_token_are_kept_for_spans(
    spans: SignalPlan, tmp_path: Path, where: str, dtype: str, tolerance: float
) -> None:
    source = kept(spans, EVERYTHING, dtype, tmp_path / "s" if where == "disk" else None)
    live = LiveTeacher(spans.teacher, Ledger())
    rng = np.random.default_rng(1)
    for _ in range(3):
        batch = batch_of(spans, rng.permutation(24)[:7])
        found = source(batch, EVERYTHING)
        assert_agree(found, live(batch, EVERYTHING), batch, tolerance)
        assert found.logits.shape == (*batch.input_ids.shape, 2)
        padding = ~batch.attention_mask.bool()
        assert padding.any()
        assert not found.logits[padding].any()
        assert found.logits[~padding].all()


@pytest.mark.parametrize("where", ["memory", "disk", "live"])
def test_a_teacher_with_its_own_tokens_answers_for_the_students_rows(
    split: Split, foreign: SignalPlan, tmp_path: Path, where: str
) -> None:
    opened: Any = foreign.live(Ledger())
    if where != "live":
        folder = tmp_path / "s" if where == "disk" else None
        opened = kept(foreign, POOLED, folder=folder)
    assert not np.array_equal(split.lengths, foreign.split.lengths)
    plain = LiveTeacher(foreign.teacher, Ledger())
    rng = np.random.default_rng(2)
    for _ in range(3):
        ids = rng.permutation(50)[:9]
        batch, own = split.take(foreign.index).batch(ids), batch_of(foreign, ids)
        assert torch.equal(batch.labels, own.labels)
        assert batch.input_ids.shape != own.input_ids.shape
        found, expected = opened(batch, POOLED), plain(own, POOLED)
        assert_agree(found, expected, own, 1e-6)
        parts = [opened(part, POOLED).logits for part in batch.split(3)]
        torch.testing.assert_close(torch.cat(parts), expected.logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["hidden", "query", "key", "value", "attention_output"])
def test_signals_of_tokens_are_refused_where_the_tokens_are_others(
    foreign: SignalPlan, kind: str
) -> None:
    plan = replace(foreign, needs=Needs(True, **{kind: frozenset([2])}))
    with pytest.raises(UsageError, match=rf"--knowledge\.pool: {kind} of each token.*cls_hidden"):
        plan.check_tokens()
    replace(plan, own_tokens=False).check_tokens()


def test_scores_of_tokens_are_refused_too(spans: SignalPlan) -> None:
    plan = replace(spans, needs=POOLED, own_tokens=True)
    with pytest.raises(UsageError, match=r"--knowledge\.pool: logits of each token"):
        plan.check_tokens()
    replace(plan, needs=Needs(cls=ALL)).check_tokens()


# --------------------------------------------------------------------------- once for each row


def test_only_what_is_missing_is_computed_and_each_row_once(plan: SignalPlan) -> None:
    source = kept(plan)
    assert forwards(source) == 0
    source(batch_of(plan, [7]), Needs())
    assert forwards(source) == 0
    first = np.arange(5)
    source(batch_of(plan, first), Needs(logits=True))
    blocks = Layout.of(plan.split.lengths).blocks_of(plan.index[first])
    # 61 rows: seven blocks of eight and one of five
    expected = sum(5 if block == 7 else BLOCK for block in blocks)
    assert forwards(source) == expected <= 5 * BLOCK
    # everything that is kept was computed in passing
    source(batch_of(plan, first), EVERYTHING)
    assert forwards(source) == expected
    for ids in np.arange(50).reshape(10, 5):
        source(batch_of(plan, ids), SOME)
        source(batch_of(plan, ids), POOLED)
    assert forwards(source) == 61


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_the_bits_of_a_row_do_not_depend_on_who_asked_first(
    plan: SignalPlan, tmp_path: Path, where: str
) -> None:
    def go(name: str) -> KeptTeacher:
        return kept(plan, SOME, folder=tmp_path / name if where == "disk" else None)

    one, two = go("one"), go("two")
    rng = np.random.default_rng(3)
    for ids in rng.permutation(50).reshape(10, 5):
        one(batch_of(plan, ids), SOME)
    two(batch_of(plan, rng.permutation(50)[:23]), Needs(cls=frozenset([2])))
    batch = batch_of(plan, np.arange(50))
    assert_same(one(batch, SOME), two(batch, SOME))
    # a forward of the whole batch gives others: the blocks are what makes them equal
    assert not torch.equal(
        one(batch, SOME).hidden[4], LiveTeacher(plan.teacher, Ledger())(batch, SOME).hidden[4]
    )


def test_what_is_not_kept_is_live_and_the_rest_keeps_its_bits(plan: SignalPlan) -> None:
    source, batch = kept(plan, POOLED), batch_of(plan, np.arange(6))
    assert not source.cached
    assert source.keeps(POOLED)
    assert source.keeps(Needs())
    assert not source.keeps(SOME)
    before = source(batch, POOLED)
    ran = forwards(source)
    source(batch, POOLED)
    assert forwards(source) == ran
    mixed = source(batch, SOME)
    assert forwards(source) == ran + 6
    assert_agree(mixed, LiveTeacher(plan.teacher, Ledger())(batch, SOME), batch, 1e-6)
    assert torch.equal(mixed.logits, before.logits)
    assert torch.equal(mixed.cls[2], before.cls[2])
    assert kept(plan).cached


def test_numbers_too_large_for_float16_are_refused(plan: SignalPlan) -> None:
    with torch.no_grad():
        plan.teacher.classifier.bias += 1e5
    batch = batch_of(plan, [0])
    with pytest.raises(UsageError, match=r"--signals\.dtype: .*logits.* float16 cannot hold"):
        kept(plan, POOLED, "float16")(batch, POOLED)
    kept(plan, POOLED)(batch, POOLED)


def test_names_and_needs_are_the_same_thing() -> None:
    for needs in (EVERYTHING, POOLED, SOME, Needs(), Needs(value=frozenset([12]))):
        assert needs_of(signal_names(needs)) == needs
    assert signal_names(SOME) == ["logits", "cls/2", "hidden/0", "hidden/4", "query/3"]


# --------------------------------------------------------------------------- ahead


def test_the_expected_batch_is_read_once_and_no_other(plan: SignalPlan) -> None:
    source = kept(plan, SOME, ahead=True)
    batch, ids = batch_of(plan, [4, 9, 2]), np.array([4, 9, 2])
    source.expect(ids, SOME)  # nothing is there yet: the teacher is not run for a hint
    assert forwards(source) == 0
    expected = source(batch, SOME)
    reads: list[tuple[list[int], list[str]]] = []
    read = source._read

    def noted(rows: np.ndarray, length: int, names: Any) -> Any:
        if names:
            reads.append((rows.tolist(), list(names)))
        return read(rows, length, names)

    source._read = noted  # type: ignore[method-assign]
    source.ahead = Ahead(noted, CPU)
    pooled = Needs(True, cls=frozenset([2]))
    source.expect(ids, pooled)
    source.expect(ids, pooled)  # the same again is not read again
    source(batch_of(plan, [4, 9]), pooled)  # another batch in between leaves it
    assert_same(source(batch, SOME), expected)
    rows = plan.index[ids].tolist()
    assert reads.count((rows, ["logits", "cls/2"])) == 1
    assert reads[-1] == (rows, ["hidden/0", "hidden/4", "query/3"])
    source(batch, pooled)  # it was given once
    assert reads[-1] == (rows, ["logits", "cls/2"])


# --------------------------------------------------------------------------- live


def test_the_live_teacher_sleeps_gives_plain_tensors_and_is_counted(plan: SignalPlan) -> None:
    ledger = Ledger()
    live = LiveTeacher(plan.teacher.train(), ledger)
    assert not plan.teacher.training
    modes: list[bool] = []
    plan.teacher.bert.encoder.register_forward_pre_hook(
        lambda module, _: modes.append(module.training or torch.is_grad_enabled())
    )
    batch = plan.split.batch(np.arange(6))
    plan.teacher.train()
    found = live(batch, SOME)
    assert modes == [False]
    assert ledger.examples == {"teacher": 6}
    for tensor in flat(found).values():
        assert not tensor.requires_grad
        assert not tensor.is_inference()
    weight = torch.ones((), requires_grad=True)
    (weight * found.logits).square().sum().backward()
    assert weight.grad is not None


def test_asking_for_nothing_costs_no_forward(plan: SignalPlan) -> None:
    ledger = Ledger()
    assert flat(LiveTeacher(plan.teacher, ledger)(plan.split.batch(np.arange(2)), Needs())) == {}
    assert ledger.examples == {}


# --------------------------------------------------------------------------- float16


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "label"], ids=str)
def test_float16_moves_losses_and_gradients_little(case: Case) -> None:
    type, batch, student, teacher = setting_of(case)
    rounded = each_tensor(teacher, lambda x: x.half().float())
    loss, grads = gradients(type, batch, student, teacher)
    other, others = gradients(type, batch, student, rounded)
    assert other != loss
    assert other.item() == pytest.approx(loss.item(), rel=1e-3)
    one, two = (torch.cat([g.flatten() for g in gs]) for gs in (grads, others))
    assert (one - two).norm() < 3e-3 * one.norm()


def test_every_kind_is_among_the_cases() -> None:
    assert {case.kind for case in CASES} == set(KINDS)


# --------------------------------------------------------------------------- the key


def other_token(split: Split) -> Split:
    rows = [row.copy() for row in split.input_ids]
    rows[0][1] += 1
    return replace(split, input_ids=rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, split=other_token(plan.split)),
        lambda plan: replace(plan, split=plan.split.take(np.arange(60))),
        lambda plan: replace(plan, split=plan.split.take(np.arange(61)[::-1].copy())),
        lambda plan: replace(plan, bf16=True),
    ],
    ids=["token", "fewer rows", "other order", "bf16"],
)
def test_what_decides_the_signals_decides_the_fingerprint(
    plan: SignalPlan, change: Callable[[SignalPlan], SignalPlan]
) -> None:
    assert change(plan).fingerprint() != plan.fingerprint()


def test_seed_pool_and_batch_size_do_not_decide_it(plan: SignalPlan) -> None:
    for other in (
        replace(plan, index=np.arange(40)),
        replace(plan, needs=SOME),
        replace(plan, batch_size=3),
    ):
        assert other.fingerprint() == plan.fingerprint()


def test_the_teachers_weights_and_heads_decide_the_fingerprint(plan: SignalPlan) -> None:
    before = plan.fingerprint()
    plan.teacher.config.num_attention_heads = 2
    assert plan.fingerprint() != before
    plan.teacher.config.num_attention_heads = 4
    assert plan.fingerprint() == before
    with torch.no_grad():
        plan.teacher.classifier.bias += 1e-3
    assert plan.fingerprint() != before


def test_format_and_blocks_are_part_of_the_fingerprint(
    plan: SignalPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan.fingerprint()
    for name in ("FORMAT", "BLOCK"):
        with monkeypatch.context() as patch:
            patch.setattr(signals, name, getattr(signals, name) + 1)
            assert plan.fingerprint() != before
