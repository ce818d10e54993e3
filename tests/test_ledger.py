"""The ledger of cost."""

from __future__ import annotations

import pytest

from ksel import ledger as room
from ksel.ledger import Ledger


def test_examples_and_seconds_add_up_per_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 25.0])
    monkeypatch.setattr(room.time, "perf_counter", lambda: next(clock))
    ledger = Ledger()
    for examples in (8, 4):
        with ledger.time("teacher", examples):
            pass
    earlier = ledger.copy()
    with ledger.time("agent"):
        pass
    assert ledger.seconds == {"teacher": 3.0, "agent": 5.0}
    assert ledger.examples == {"teacher": 12, "agent": 0}
    assert earlier.seconds == {"teacher": 3.0}
    assert ledger.since(earlier).seconds == {"teacher": 0.0, "agent": 5.0}
    assert ledger.since(earlier).examples == {"teacher": 0, "agent": 0}
    assert ledger.flat() == {
        "cost/teacher_seconds": 3.0,
        "cost/teacher_examples": 12.0,
        "cost/agent_seconds": 5.0,
        "cost/agent_examples": 0.0,
    }


def test_work_that_fails_is_counted_too() -> None:
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.time("teacher", 3):
        1 / 0  # noqa: B018
    assert ledger.examples == {"teacher": 3}
