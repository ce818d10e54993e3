"""Teacher signals: cached and live agree, and a cache that is stale or damaged is never used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import readers
import torch

from ksel import signals
from ksel.data import Split, tokenize
from ksel.errors import UsageError
from ksel.ledger import Ledger
from ksel.models import load_classifier, load_tokenizer, shape_of
from ksel.signals import (
    CachedTeacher,
    CachePlan,
    LiveTeacher,
    build_in_memory,
    build_on_disk,
    cache_megabytes,
    open_source,
)
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


@pytest.fixture(scope="module")
def split(tiny_data: Path, tiny_teacher: Path) -> Split:
    rows = read_folder(RTE, str(tiny_data))[0].take(np.arange(60))
    return tokenize(rows, RTE, load_tokenizer(str(tiny_teacher)), 32)


@pytest.fixture
def plan(split: Split, tiny_teacher: Path) -> CachePlan:
    teacher = load_classifier(str(tiny_teacher), RTE).eval()
    return CachePlan(teacher, split, SOME, "float32", 16, CPU, bf16=False)


@pytest.fixture
def spans(tmp_path: Path) -> CachePlan:
    """A teacher of question answering, whose rows are windows."""
    folder = readers.write_encoder(tmp_path / "reader")
    teacher = load_classifier(str(folder), SQUAD, seed=1).eval()
    return CachePlan(teacher, readers.span_split(), EVERYTHING, "float32", 5, CPU, bf16=False)


@pytest.fixture(scope="module")
def foreign(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> CachePlan:
    """A RoBERTa with a tokenizer of its own, for the same rows as ``split``."""
    folder = tmp_path_factory.mktemp("foreign")
    readers.write_encoder(folder, "roberta", readers.spelling_tokenizer(), seed=4)
    rows = read_folder(RTE, str(tiny_data))[0].take(np.arange(60))
    own = tokenize(rows, RTE, load_tokenizer(str(folder)), 64)
    teacher = load_classifier(str(folder), RTE, seed=2).eval()
    return CachePlan(teacher, own, POOLED, "float32", 16, CPU, bf16=False, own_tokens=True)


@dataclass
class Builder:
    """Builds or reopens a cache on disk, and notes teacher forwards and messages."""

    store: Path
    said: list[str] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    def __call__(self, plan: CachePlan) -> CachedTeacher:
        self.said, self.finished, self.ledger = [], [], Ledger()
        return build_on_disk(plan, self.store, self.ledger, self.finished.append, self.said.append)

    @property
    def forwards(self) -> int:
        return self.ledger.examples.get("teacher", 0)

    @property
    def caches(self) -> list[Path]:
        return sorted((self.store / "signals").iterdir())


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "store")


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


# --------------------------------------------------------------------------- cached equals live


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_cached_signals_of_every_kind_equal_the_live_ones_for_shuffled_rows(
    plan: CachePlan, builder: Builder, dtype: str, tolerance: float, where: str
) -> None:
    plan = replace(plan, needs=EVERYTHING, dtype=dtype)
    cached = builder(plan) if where == "disk" else build_in_memory(plan, Ledger(), lambda _: None)
    live = LiveTeacher(plan.teacher, Ledger())
    rng = np.random.default_rng(1)
    for _ in range(4):
        batch = plan.split.batch(rng.permutation(len(plan.split))[:7])
        assert_agree(cached(batch, EVERYTHING), live(batch, EVERYTHING), batch, tolerance)
    if dtype == "float16":
        exact = live(batch, EVERYTHING).logits
        assert not torch.equal(cached(batch, EVERYTHING).logits, exact)


def test_signals_follow_the_examples_id_in_any_order_and_more_than_once(plan: CachePlan) -> None:
    cached = build_in_memory(plan, Ledger(), lambda _: None)
    rows = np.array([41, 3, 3, 17])
    together = cached(plan.split.batch(rows), SOME)
    for place, row in enumerate(rows):
        alone = cached(plan.split.batch(np.array([row])), SOME)
        n = plan.split.lengths[row]
        assert torch.equal(together.logits[place], alone.logits[0])
        assert torch.equal(together.cls[2][place], alone.cls[2][0])
        assert torch.equal(together.hidden[4][place, :n], alone.hidden[4][0])
    assert not torch.equal(together.logits[0], together.logits[1])


def test_padded_positions_are_zero(plan: CachePlan) -> None:
    cached = build_in_memory(plan, Ledger(), lambda _: None)
    short, long = np.argmin(plan.split.lengths), np.argmax(plan.split.lengths)
    n = plan.split.lengths[short]
    states = cached(plan.split.batch(np.array([short, long])), SOME).hidden[4]
    assert states.shape[1] == plan.split.lengths[long] > n
    assert not states[0, n:].any()
    assert states[0, :n].abs().sum(-1).min() > 0
    assert states[1].abs().sum(-1).min() > 0


def test_only_what_is_asked_for_is_looked_up(plan: CachePlan) -> None:
    cached = build_in_memory(plan, Ledger(), lambda _: None)
    found = cached(plan.split.batch(np.arange(3)), Needs(query=frozenset([3])))
    assert list(flat(found)) == ["query/3"]
    assert flat(cached(plan.split.batch(np.arange(3)), Needs())) == {}


def test_changing_what_was_looked_up_does_not_change_the_cache(plan: CachePlan) -> None:
    cached = build_in_memory(plan, Ledger(), lambda _: None)
    batch = plan.split.batch(np.arange(3))
    before = cached(batch, SOME)
    kept = {name: t.clone() for name, t in flat(before).items()}
    for tensor in flat(before).values():
        tensor.zero_()
    for name, tensor in flat(cached(batch, SOME)).items():
        assert torch.equal(tensor, kept[name])


# --------------------------------------------------------------------------- spans


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_scores_of_every_token_are_cached_for_spans(
    spans: CachePlan, builder: Builder, dtype: str, tolerance: float, where: str
) -> None:
    plan = replace(spans, dtype=dtype)
    cached = builder(plan) if where == "disk" else build_in_memory(plan, Ledger(), lambda _: None)
    live = LiveTeacher(plan.teacher, Ledger())
    rng = np.random.default_rng(1)
    for _ in range(3):
        batch = plan.split.batch(rng.permutation(len(plan.split))[:7])
        found = cached(batch, EVERYTHING)
        assert_agree(found, live(batch, EVERYTHING), batch, tolerance)
        assert found.logits.shape == (*batch.input_ids.shape, 2)
        padding = ~batch.attention_mask.bool()
        assert padding.any()
        assert not found.logits[padding].any()
        assert found.logits[~padding].all()
    tokens = int(plan.split.lengths.sum())
    assert cached.arrays["logits"].shape == (tokens, 2)
    assert cached.arrays["attention_output/2"].shape == (tokens, 16)


def test_the_windows_of_spans_are_found_by_their_numbers(spans: CachePlan) -> None:
    cached = build_in_memory(spans, Ledger(), lambda _: None)
    together = cached(spans.split.batch(np.array([11, 3, 3])), Needs(logits=True)).logits
    for place, row in enumerate([11, 3, 3]):
        n = spans.split.lengths[row]
        alone = cached(spans.split.batch(np.array([row])), Needs(logits=True)).logits
        assert torch.equal(together[place, :n], alone[0])
    assert not torch.equal(together[0, :6], together[1, :6])


def test_the_estimated_size_holds_for_spans(spans: CachePlan) -> None:
    for needs in (EVERYTHING, Needs(logits=True)):
        plan = replace(spans, needs=needs)
        cached = build_in_memory(plan, Ledger(), lambda _: None)
        shape = shape_of(plan.teacher.config)
        estimate = cache_megabytes(plan.split, needs, shape, SQUAD.num_outputs, "float32")
        assert estimate == pytest.approx(cached.megabytes, rel=1e-12)
    assert estimate == pytest.approx(plan.split.lengths.sum() * 2 * 4 / 1e6)


# --------------------------------------------------------------------------- tokens of its own


@pytest.mark.parametrize("where", ["memory", "disk", "live"])
def test_a_teacher_with_its_own_tokens_answers_for_the_students_rows(
    split: Split, foreign: CachePlan, tmp_path: Path, where: str
) -> None:
    opened, _ = chosen(foreign, where, 1e-9, tmp_path)
    assert len(split) == len(foreign.split)
    assert not np.array_equal(split.lengths, foreign.split.lengths)
    plain = LiveTeacher(foreign.teacher, Ledger())
    rng = np.random.default_rng(2)
    for _ in range(3):
        rows = rng.permutation(len(split))[:9]
        batch, own = split.batch(rows), foreign.split.batch(rows)
        assert torch.equal(batch.labels, own.labels)
        assert batch.input_ids.shape != own.input_ids.shape
        found, expected = opened(batch, POOLED), plain(own, POOLED)
        assert_agree(found, expected, own, 1e-6)
        # micro-batches are rows too
        parts = [opened(part, POOLED).logits for part in batch.split(3)]
        torch.testing.assert_close(torch.cat(parts), expected.logits, atol=1e-6, rtol=1e-6)


def test_only_the_teachers_own_tokens_decide_its_fingerprint(
    split: Split, foreign: CachePlan
) -> None:
    assert replace(foreign, own_tokens=False).fingerprint() == foreign.fingerprint()
    assert replace(foreign, split=split).fingerprint() != foreign.fingerprint()


@pytest.mark.parametrize("source", ["auto", "memory", "disk", "live"])
@pytest.mark.parametrize("kind", ["hidden", "query", "key", "value", "attention_output"])
def test_signals_of_tokens_are_refused_where_the_tokens_are_others(
    foreign: CachePlan, tmp_path: Path, source: str, kind: str
) -> None:
    plan = replace(foreign, needs=Needs(True, **{kind: frozenset([2])}))
    with pytest.raises(UsageError, match=rf"--knowledge\.pool: {kind} of each token.*cls_hidden"):
        chosen(plan, source, 10, tmp_path)
    assert chosen(replace(plan, own_tokens=False), "live", 10, tmp_path)


def test_scores_of_tokens_are_refused_too(spans: CachePlan, tmp_path: Path) -> None:
    plan = replace(spans, needs=POOLED, own_tokens=True)
    with pytest.raises(UsageError, match=r"--knowledge\.pool: logits of each token"):
        chosen(plan, "memory", 10, tmp_path)
    assert chosen(replace(plan, needs=Needs(cls=ALL)), "memory", 10, tmp_path)


# --------------------------------------------------------------------------- live


def test_the_live_teacher_sleeps_gives_plain_tensors_and_is_counted(plan: CachePlan) -> None:
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


def test_asking_for_nothing_costs_no_forward(plan: CachePlan) -> None:
    ledger = Ledger()
    assert flat(LiveTeacher(plan.teacher, ledger)(plan.split.batch(np.arange(2)), Needs())) == {}
    assert ledger.examples == {}


# --------------------------------------------------------------------------- the store


def test_each_example_passes_the_teacher_once_and_progress_adds_up(
    plan: CachePlan, builder: Builder
) -> None:
    builder(plan)
    assert builder.forwards == 60 == sum(builder.finished)
    ledger = Ledger()
    cached = build_in_memory(plan, ledger, lambda _: None)
    assert ledger.examples == {"teacher": 60}
    cached(plan.split.batch(np.arange(9)), SOME)
    assert ledger.examples == {"teacher": 60}


def test_the_second_time_no_teacher_runs(plan: CachePlan, builder: Builder) -> None:
    first = builder(plan)
    second = builder(plan)
    assert builder.forwards == 0
    assert any("reused from the store" in line for line in builder.said)
    batch = plan.split.batch(np.array([5, 2]))
    assert_agree(first(batch, SOME), second(batch, SOME), batch, 0.0)
    assert all(isinstance(array, np.memmap) for array in second.arrays.values())
    assert not any(array.flags.writeable for array in second.arrays.values())


def spoil(folder: Path, how: str) -> str:
    target = folder / "hidden-4.npy"
    if how == "truncated":
        target.write_bytes(target.read_bytes()[:-8])
    elif how == "modified":
        data = bytearray(target.read_bytes())
        data[-1] ^= 1
        target.write_bytes(bytes(data))
    elif how == "missing":
        target.unlink()
    elif how == "broken index":
        (folder / "index.json").write_text('{"format": ')
    elif how == "strange index":
        (folder / "index.json").write_text("[]")
    elif how == "no index":
        (folder / "index.json").unlink()
    elif how == "index of others":
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(index | {"key": "0"}))
    return "index.json" if "index" in how else "hidden-4.npy"


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "modified",
        "missing",
        "broken index",
        "strange index",
        "no index",
        "index of others",
    ],
)
def test_a_damaged_cache_is_rebuilt_with_a_message(
    plan: CachePlan, builder: Builder, how: str
) -> None:
    builder(plan)
    (folder,) = builder.caches
    named = spoil(folder, how)
    again = builder(plan)
    assert builder.forwards == 60
    assert any("damaged" in line and named in line for line in builder.said)
    assert builder.caches == [folder]
    batch = plan.split.batch(np.array([5, 2]))
    assert_agree(again(batch, SOME), LiveTeacher(plan.teacher, Ledger())(batch, SOME), batch, 1e-6)
    builder(plan)
    assert builder.forwards == 0


def other_token(split: Split) -> Split:
    rows = [row.copy() for row in split.input_ids]
    rows[0][1] += 1
    return replace(split, input_ids=rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, split=other_token(plan.split)),
        lambda plan: replace(plan, split=plan.split.take(np.arange(59))),
        lambda plan: replace(plan, split=plan.split.take(np.arange(60)[::-1].copy())),
        lambda plan: replace(plan, needs=plan.needs | Needs(value=frozenset([1]))),
        lambda plan: replace(plan, needs=plan.needs | Needs(attention_output=frozenset([1]))),
        lambda plan: replace(plan, needs=replace(plan.needs, logits=False)),
        lambda plan: replace(plan, dtype="float16"),
        lambda plan: replace(plan, bf16=True),
    ],
    ids=[
        "token",
        "fewer rows",
        "other order",
        "one more layer",
        "one more kind",
        "no logits",
        "dtype",
        "bf16",
    ],
)
def test_what_decides_the_signals_decides_the_fingerprint(
    plan: CachePlan, change: Callable[[CachePlan], CachePlan]
) -> None:
    assert plan.fingerprint() == replace(plan, batch_size=3).fingerprint()
    assert change(plan).fingerprint() != plan.fingerprint()


def test_the_teachers_weights_and_heads_decide_the_fingerprint(plan: CachePlan) -> None:
    before = plan.fingerprint()
    plan.teacher.config.num_attention_heads = 2
    assert plan.fingerprint() != before
    plan.teacher.config.num_attention_heads = 4
    assert plan.fingerprint() == before
    with torch.no_grad():
        plan.teacher.classifier.bias += 1e-3
    assert plan.fingerprint() != before


def test_another_teacher_gets_its_own_cache(plan: CachePlan, builder: Builder) -> None:
    builder(plan)
    with torch.no_grad():
        plan.teacher.classifier.bias += 1.0
    builder(plan)
    assert builder.forwards == 60
    assert len(builder.caches) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_half_written_cache_leaves_nothing_and_is_built_the_next_time(
    plan: CachePlan, builder: Builder, error: type[BaseException]
) -> None:
    def stop(finished: int) -> None:
        raise error

    with pytest.raises(error):
        build_on_disk(plan, builder.store, Ledger(), stop, lambda _: None)
    assert builder.caches == []
    builder(plan)
    assert builder.forwards == 60


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_a_full_disk_is_noticed_before_the_teacher_runs(
    plan: CachePlan, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match=r"cannot write .*No space left.*--store"):
        builder(plan)
    assert builder.forwards == 0
    assert builder.caches == []


def test_numbers_too_large_for_float16_are_refused(plan: CachePlan) -> None:
    with torch.no_grad():
        plan.teacher.classifier.bias += 1e5
    with pytest.raises(UsageError, match=r"--signals\.dtype: .*logits.* float16 cannot hold"):
        build_in_memory(replace(plan, dtype="float16"), Ledger(), lambda _: None)
    build_in_memory(plan, Ledger(), lambda _: None)


# --------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("needs", [SOME, EVERYTHING, Needs(logits=True), Needs(cls=ALL)])
def test_the_estimated_size_is_the_actual_one(plan: CachePlan, dtype: str, needs: Needs) -> None:
    plan = replace(plan, needs=needs, dtype=dtype)
    cached = build_in_memory(plan, Ledger(), lambda _: None)
    estimate = cache_megabytes(plan.split, needs, shape_of(plan.teacher.config), 2, dtype)
    assert estimate == pytest.approx(cached.megabytes, rel=1e-12)
    assert estimate > 0


def chosen(
    plan: CachePlan, source: str, limit: float, store: Path, taken: float = 0.0
) -> tuple[Any, list[str]]:
    said: list[str] = []
    opened = open_source(
        source,
        limit,
        plan,
        shape_of(plan.teacher.config),
        store,
        Ledger(),
        lambda _: None,
        said.append,
        taken_mb=taken,
    )
    return opened, said


def test_auto_keeps_in_memory_what_fits_and_says_aloud_what_does_not(
    plan: CachePlan, tmp_path: Path
) -> None:
    size = cache_megabytes(plan.split, plan.needs, shape_of(plan.teacher.config), 2, "float32")
    fits, said = chosen(plan, "auto", size, tmp_path)
    assert isinstance(fits, CachedTeacher)
    assert fits.cached
    assert said == []
    live, said = chosen(plan, "auto", size * 0.999, tmp_path)
    assert isinstance(live, LiveTeacher)
    assert not live.cached
    assert len(said) == 1
    assert "--signals.limit_mb" in said[0]
    assert "live" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_the_signals_of_other_teachers_count_against_the_limit(
    plan: CachePlan, tmp_path: Path
) -> None:
    size = cache_megabytes(plan.split, plan.needs, shape_of(plan.teacher.config), 2, "float32")
    fits, _ = chosen(plan, "auto", 1.001 * size + 1, tmp_path, taken=1.0)
    assert fits.cached
    live, said = chosen(plan, "auto", 0.999 * size + 1, tmp_path, taken=1.0)
    assert not live.cached
    assert "--signals.limit_mb" in said[0]


@pytest.mark.parametrize("source", ["memory", "disk", "live"])
def test_a_source_that_is_asked_for_is_taken_whatever_the_size(
    plan: CachePlan, tmp_path: Path, source: str
) -> None:
    opened, _ = chosen(plan, source, 1e-9, tmp_path)
    assert opened.cached == (source != "live")
    assert (tmp_path / "signals").exists() == (source == "disk")


def test_a_limit_of_nothing_is_refused(plan: CachePlan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--signals\.limit_mb"):
        chosen(plan, "auto", 0, tmp_path)


# --------------------------------------------------------------------------- in a run


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_a_student_learns_the_same_from_cached_and_from_live_signals(
    tiny_setup: Callable[..., Any], source: str
) -> None:
    ends = []
    for name in ("live", source):
        setup = tiny_setup(signals={"source": name})
        assert setup.signals == ("live" if name == "live" else "cached")
        setup.distiller.reset(data_seed=3, updates=4)
        before = setup.ledger.examples.get("teacher", 0)
        for _ in range(4):
            setup.distiller.update(np.ones(len(setup.pool)))
        ran = setup.ledger.examples.get("teacher", 0) - before
        assert (ran > 0) == (name == "live")
        ends.append(torch.cat([p.detach().flatten() for p in setup.student.parameters()]))
    torch.testing.assert_close(*ends, atol=2e-5, rtol=1e-4)


def test_a_run_reads_its_signals_back_from_the_store(tiny_setup: Callable[..., Any]) -> None:
    assert tiny_setup(signals={"source": "disk"}).ledger.examples["teacher"] == 176
    assert "teacher" not in tiny_setup(signals={"source": "disk"}).ledger.examples
    # another seed has other training rows
    assert tiny_setup(signals={"source": "disk"}, seed=1).ledger.examples["teacher"] == 176


def test_format_is_part_of_the_fingerprint(
    plan: CachePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan.fingerprint()
    monkeypatch.setattr(signals, "FORMAT", signals.FORMAT + 1)
    assert plan.fingerprint() != before
