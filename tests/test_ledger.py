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


def test_work_timed_elsewhere_can_be_added() -> None:
    ledger = Ledger()
    ledger.add("agent", 1.5, 3)
    ledger.add("agent", 0.5)
    assert (ledger.seconds, ledger.examples) == ({"agent": 2.0}, {"agent": 3})


class Device:
    """Takes work and marks in turn; ``advance`` works some of it off. Times in seconds."""

    def __init__(self) -> None:
        self.queue: list[float | Mark] = []
        self.now = 0.0
        self.waited = 0

    def mark(self) -> Mark:
        return Mark(self)

    def advance(self, entries: int) -> None:
        for entry in self.queue[:entries]:
            if isinstance(entry, Mark):
                entry.at = self.now
            else:
                self.now += entry
        del self.queue[:entries]


class Mark:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.at: float | None = None

    def record(self) -> None:
        self.device.queue.append(self)

    def query(self) -> bool:
        return self.at is not None

    def synchronize(self) -> None:
        if self.at is None:
            self.device.waited += 1
            self.device.advance(self.device.queue.index(self) + 1)

    def elapsed_time(self, end_event: Mark) -> float:
        assert self.at is not None
        assert end_event.at is not None
        return 1000 * (end_event.at - self.at)


def test_on_a_device_nothing_waits_before_the_figures_are_read() -> None:
    device = Device()
    ledger = Ledger(event=device.mark)
    for part, seconds in (("teacher", 2.0), ("optimizer", 0.5), ("teacher", 3.0)):
        with ledger.time(part, 4):
            device.queue.append(seconds)
        device.queue.append(10.0)  # work that belongs to no part
    assert device.waited == 0
    assert device.now == 0.0
    assert ledger.examples == {"teacher": 8, "optimizer": 4}
    assert ledger.seconds == {"teacher": 5.0, "optimizer": 0.5}
    assert ledger.seconds == {"teacher": 5.0, "optimizer": 0.5}
    earlier, waited = ledger.copy(), device.waited
    with ledger.time("teacher"):
        device.queue.append(1.0)
    assert device.waited == waited
    assert ledger.since(earlier).seconds == {"teacher": 1.0, "optimizer": 0.0}


def test_marks_of_a_long_run_are_added_up_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WAITING", 3)
    device = Device()
    ledger = Ledger(event=device.mark)
    for _ in range(10):
        with ledger.time("teacher", 1):
            device.queue.append(1.0)
    assert len(ledger._marks) == 10  # the device has done nothing yet, and was not waited for
    assert device.waited == 0
    device.advance(len(device.queue))
    with ledger.time("teacher", 1):
        device.queue.append(1.0)
    assert len(ledger._marks) == 1
    assert device.waited == 0
    assert ledger.seconds == {"teacher": 11.0}


def test_work_that_fails_on_a_device_is_counted_too() -> None:
    device = Device()
    ledger = Ledger(event=device.mark)
    with pytest.raises(ZeroDivisionError), ledger.time("teacher", 3):
        device.queue.append(1 / 0)
    assert (ledger.seconds, ledger.examples) == ({"teacher": 0.0}, {"teacher": 3})
    assert not device.queue


def test_work_that_fails_is_counted_too() -> None:
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.time("teacher", 3):
        1 / 0  # noqa: B018
    assert ledger.examples == {"teacher": 3}
