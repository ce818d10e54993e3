"""Which signals are kept within a budget, and what a run does with those that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import readers
import torch

from ksel import teacher_setup
from ksel.errors import UsageError
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare
from ksel.signal_choice import Offer, Wish, check_budget, choose_kept, where_to_keep
from ksel.signal_store import Layout, MemoryStore, slots_of
from ksel.signals import KeptTeacher, LiveTeacher
from ksel.types import Needs

LAYOUT = Layout.of(np.full(1000, 10))
OUT = Needs(logits=True)
CLS = Needs(cls=frozenset([1, 2]))
HIDDEN = Needs(hidden=frozenset([0, 2]))
VALUE = Needs(value=frozenset([2]))
BOTH = Needs(hidden=frozenset([2]), value=frozenset([2]))
# MB at width 25 in float32: a state of each row 0.1, of each token 1
WISHES = [Wish(0, OUT), Wish(0, HIDDEN), Wish(0, CLS), Wish(0, VALUE)]


def offer(*needs: Needs, spans: bool = False) -> Offer:
    return Offer(LAYOUT, slots_of(Needs.union(needs), 25, 2, spans=spans))


def chosen(budget: float, wishes: list[Wish] = WISHES, dtype: str = "float32") -> str:
    (kept,) = choose_kept(wishes, [offer(*(w.needs for w in wishes))], dtype, budget)
    return " ".join(sorted(kept))


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0.007, ""),
        (0.008, "logits"),
        (0.207, "logits"),
        (0.208, "cls/1 cls/2 logits"),
        (1.207, "cls/1 cls/2 logits"),
        (1.208, "cls/1 cls/2 logits value/2"),
        (3.207, "cls/1 cls/2 logits value/2"),
        (3.208, "cls/1 cls/2 hidden/0 hidden/2 logits value/2"),
    ],
)
def test_pooled_signals_come_first_then_types_whole_the_smallest_first(
    budget: float, kept: str
) -> None:
    assert chosen(budget) == kept
    assert chosen(budget, list(reversed(WISHES))) == kept
    assert chosen(budget / 2, dtype="float16") == kept


def test_what_is_kept_already_makes_a_type_cheaper() -> None:
    wishes = [Wish(0, HIDDEN), Wish(0, VALUE), Wish(0, BOTH)]
    # value (1), then both for 1 more, then hidden for 1 more: two of hidden alone would be dearer
    assert chosen(2.0, wishes) == "hidden/2 value/2"
    assert chosen(3.0, wishes) == "hidden/0 hidden/2 value/2"


def test_of_the_same_size_the_first_in_the_pool_is_taken() -> None:
    key = Needs(key=frozenset([2]))
    assert chosen(1.0, [Wish(0, VALUE), Wish(0, key)]) == "value/2"
    assert chosen(1.0, [Wish(0, key), Wish(0, VALUE)]) == "key/2"


def test_one_budget_serves_all_teachers() -> None:
    wishes = [Wish(0, VALUE), Wish(1, CLS), Wish(0, OUT)]
    offers = [offer(VALUE, OUT), offer(CLS)]
    first, second = choose_kept(wishes, offers, "float32", 0.3)
    assert (first, second) == ({"logits"}, {"cls/1", "cls/2"})
    first, second = choose_kept(wishes, offers, "float32", 1.3)
    assert first == {"logits", "value/2"}


def test_the_size_is_that_of_the_arrays() -> None:
    for spans in (False, True):
        one = offer(OUT, CLS, HIDDEN, spans=spans)
        arrays = MemoryStore(LAYOUT, one.slots, "float16").arrays.values()
        assert one.bytes(one.slots, "float16") == sum(array.nbytes for array in arrays)
    assert offer(OUT, spans=True).bytes(["logits"], "float32") == 10_000 * 2 * 4


def test_a_budget_without_room_for_a_batch_is_refused() -> None:
    offers = [offer(OUT, CLS, HIDDEN), offer(CLS)]
    # (2 + 50 + 50) x 4 bytes x 32 rows
    with pytest.raises(UsageError, match=r"--signals\.budget 0\.013: .*of 32 rows take 0\.0 MB"):
        check_budget(offers, "float32", 0.013, 32)
    check_budget(offers, "float32", 0.0131, 32)
    check_budget(offers, "float16", 0.0066, 32)


def test_memory_where_there_is_room_else_disk() -> None:
    assert where_to_keep("auto", 50, 100) == "memory"
    assert where_to_keep("auto", 51, 100) == "disk"
    assert where_to_keep("auto", 51, None) == "memory"
    assert where_to_keep("disk", 1, 100) == "disk"
    assert where_to_keep("memory", 100, 100) == "memory"
    with pytest.raises(UsageError, match=r"--signals\.source memory: .*--signals\.source disk"):
        where_to_keep("memory", 101, 100)


# --------------------------------------------------------------------------- in a run


class Said:
    """Takes the lines of a setup."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def stage(self, name: str, _: int) -> Any:
        assert name == "teacher"  # signals have no pass of their own
        return mock.Mock()


@pytest.fixture
def go(
    tiny_settings: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Setup, str]]:
    """A setup and its lines about signals; ``budget`` may be a part of a megabyte here."""

    def make(budget: float | None = None, **changes: Any) -> tuple[Setup, str]:
        values, said = tiny_settings(**changes), Said()
        if "teachers" in values:
            del values["teacher"]
        config = config_from_dict(values)
        if budget is not None:
            object.__setattr__(config.signals, "budget", budget)
        setup = prepare(config, said)  # type: ignore[arg-type]
        return setup, "\n".join(line for line in said.lines if "signals" in line)

    return make


def learn(setup: Setup, updates: int = 6, mask: Any = 1.0, observe: bool = False) -> np.ndarray:
    setup.distiller.reset(data_seed=3, updates=updates)
    for _ in range(updates):
        setup.distiller.update(np.ones(len(setup.pool)) * mask, observe=observe)
    return torch.cat([p.detach().flatten() for p in setup.student.parameters()]).numpy()


def examples(setup: Setup) -> int:
    return setup.ledger.examples.get("teacher", 0)


def test_what_is_kept_and_what_is_not_is_said_in_a_line(go: Callable[..., Any]) -> None:
    setup, line = go()
    assert line.startswith("teacher signals: kept in memory, ")
    assert line.endswith("MB: logits, cls 2, hidden 2 4, value 4")
    assert setup.signals == "cached"
    # 200 rows: logits 2 and one [CLS] state of 16 numbers
    setup, line = go(budget=200 * 18 * 4 / 1e6)
    assert line == (
        "teacher signals: kept in memory, 0.0 MB: logits, cls 2; "
        "live, beyond --signals.budget: hidden 2 4, value 4"
    )
    assert setup.signals == "partly cached"
    setup, line = go(signals={"source": "live"})
    assert (setup.signals, line) == ("live", "")


def test_auto_goes_to_the_disk_where_memory_is_short(
    go: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(teacher_setup, "free_memory", lambda: 1000)
    _, line = go()
    assert "kept on disk (" in line
    assert "0% there already" in line
    assert list((tmp_path / "store" / "signals").iterdir())
    with pytest.raises(UsageError, match=r"--signals\.source memory"):
        go(signals={"source": "memory"})


def test_a_budget_for_nothing_is_live_under_auto_and_refused_where_keeping_is_asked_for(
    go: Callable[..., Any],
) -> None:
    # room for one batch's pooled signals, not for those of the file
    setup, line = go(budget=0.001)
    assert isinstance(setup.distiller.sources[0], LiveTeacher)
    assert "teacher signals: live: logits, cls 2" in line
    for source in ("memory", "disk"):
        with pytest.raises(UsageError, match=r"--signals\.budget 0\.001: nothing fits"):
            go(budget=0.001, signals={"source": source})
    with pytest.raises(UsageError, match=r"--signals\.budget 0\.0001: .*one batch of 8 rows"):
        go(budget=0.0001)


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_a_student_learns_the_same_from_kept_and_from_live_signals(
    go: Callable[..., Any], source: str
) -> None:
    ends = [learn(go(signals={"source": name})[0]) for name in ("live", source)]
    np.testing.assert_allclose(*ends, atol=2e-5, rtol=1e-4)


def test_all_that_keep_signals_make_the_same_student_bit_for_bit(go: Callable[..., Any]) -> None:
    """In memory, on disk, read back, partly live; after other students and other looks."""
    disk = {"signals": {"source": "disk"}}
    first = learn(go()[0])
    used, _ = go()
    learn(used, mask=[1, 1, 0, 0, 0], observe=True)
    used.distiller.reset(data_seed=8, updates=3)
    used.distiller.update(np.array([0, 0, 1, 0, 0]))
    for other in (used, go(**disk)[0], go(**disk)[0]):
        assert np.array_equal(learn(other), first)


def test_the_price_is_one_forward_for_each_row_of_the_file(go: Callable[..., Any]) -> None:
    setup, _ = go()
    assert examples(setup) == 0
    learn(setup, updates=50, observe=True)
    assert 176 <= examples(setup) <= 200
    before = examples(setup)
    learn(setup, updates=50)
    assert examples(setup) == before


def test_seeds_and_pools_share_what_is_on_disk(go: Callable[..., Any]) -> None:
    disk = {"signals": {"source": "disk"}}
    everything = np.arange(176)
    first, _ = go(**disk)
    first.distiller.sources[0](first.train.batch(everything), Needs(logits=True))
    assert examples(first) >= 176
    again, line = go(**disk)
    assert "100% there already" in line or "96% there already" in line
    learn(again)
    assert examples(again) == 0
    seed, _ = go(seed=1, **disk)
    assert not np.array_equal(seed.train.lengths, first.train.lengths)
    batch = seed.train.batch(everything)
    found = seed.distiller.sources[0](batch, Needs(logits=True)).logits
    assert examples(seed) <= 200 - examples(first)
    live = LiveTeacher(seed.teacher.model, seed.ledger)(batch, Needs(logits=True)).logits
    torch.testing.assert_close(found, live, atol=1e-6, rtol=1e-6)
    pool, line = go(knowledge={"pool": ["label", "response", "hidden/skip"]}, **disk)
    learn(pool)
    assert examples(pool) == 0


def test_a_teacher_that_nothing_needs_runs_not_and_one_that_is_live_serves_all(
    go: Callable[..., Any],
) -> None:
    setup, _ = go(budget=200 * 18 * 4 / 1e6)
    distiller = setup.distiller
    source = distiller.sources[0]
    assert isinstance(source, KeptTeacher)
    source(setup.train.batch(np.arange(176)), Needs(logits=True))
    for _ in range(2):  # beyond the first use of each type
        learn(setup, mask=[1, 1, 1, 1, 1])

    def spent(*mask: int) -> tuple[int, list[bool]]:
        before = examples(setup)
        distiller.reset(data_seed=3, updates=6)
        distiller.sizes.counts[:] = 1
        record = distiller.update(np.array(mask, float), observe=True)
        return examples(setup) - before, np.isfinite(record.loss).tolist()

    kept_only = [True, True, True, False, False]
    assert spent(1, 0, 0, 0, 0) == (0, kept_only)
    assert spent(0, 1, 1, 0, 0) == (0, kept_only)
    assert spent(0, 0, 0, 1, 0) == (8, [True] * 5)


def test_teachers_with_their_own_tokens_keep_theirs(go: Callable[..., Any], tmp_path: Path) -> None:
    for name, family, tokenizer in (
        ("a", "bert", readers.word_tokenizer()),
        ("b", "roberta", readers.spelling_tokenizer()),
    ):
        readers.write_encoder(tmp_path / name, family, tokenizer, seed=len(name))
    ends = []
    for source in ("live", "disk"):
        setup, lines = go(
            teachers=[str(tmp_path / "a"), str(tmp_path / "b")],
            fine_tune={"max_updates": 2, "together": False},
            knowledge={"pool": ["label", "response", "response@2", "cls_hidden/skip@2"]},
            batching={"max_length": 64},
            signals={"source": source},
        )
        assert len(setup.distiller.sources) == 2
        assert ("signals of teacher 2: kept on disk" in lines) == (source == "disk")
        ends.append(learn(setup))
    np.testing.assert_allclose(*ends, atol=2e-5, rtol=1e-4)
