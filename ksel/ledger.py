"""The ledger of cost: how many examples each part of the work took, and how many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

PARTS = (
    "data",
    "teacher",
    "student_forward",
    "student_backward",
    "optimizer",
    "credit",
    "held_out",
    "agent",
    "dev",
)
"""Parts of the work, in the order in which they are shown."""

WAITING = 4096
"""Measurements in flight above which those that are through are added up."""


class Event(Protocol):
    """A mark in the work of a device, such as ``torch.cuda.Event(enable_timing=True)``."""

    def record(self) -> None:
        """Set the mark behind all work given to the device so far."""

    def query(self) -> bool:
        """True if the device has come past the mark."""
        ...

    def synchronize(self) -> None:
        """Wait until it has."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this mark to another; both must be past."""
        ...


class Ledger:
    """Counts and seconds per part of the work.

    On a CPU seconds are wall-clock. On a device that works on its own they are the time between
    two marks in its work, so that nothing waits for it before the figures are read; a part that
    the device has not come to yet while the next is handed over costs what the device takes for
    it, and time in which the device waits for the CPU counts for the part that keeps it waiting.

    Args:
        seconds, examples: figures to begin with.
        event: makes a mark of the device; None = wall-clock.

    Attributes:
        examples: part -> examples worked on.
    """

    def __init__(
        self,
        seconds: dict[str, float] | None = None,
        examples: dict[str, int] | None = None,
        event: Callable[[], Event] | None = None,
    ) -> None:
        self.examples = examples or {}
        self._seconds = seconds or {}
        self._event = event
        self._marks: list[tuple[str, Event, Event]] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Part -> seconds; waits for the device if it has not come past all marks."""
        if self._marks:
            for _, _, end in self._marks:
                end.synchronize()
            self._add_up()
        return self._seconds

    @contextmanager
    def time(self, part: str, examples: int = 0) -> Iterator[None]:
        """Add the time spent inside, and ``examples``, to a part."""
        begin = self._begin()
        try:
            yield
        finally:
            self._end(part, begin)
            self.examples[part] = self.examples.get(part, 0) + examples

    def add(self, part: str, seconds: float, examples: int = 0) -> None:
        """Add work that was timed elsewhere, by wall-clock."""
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds
        self.examples[part] = self.examples.get(part, 0) + examples

    def _begin(self) -> float | Event:
        if self._event is None:
            return time.perf_counter()
        mark = self._event()
        mark.record()
        return mark

    def _end(self, part: str, begin: float | Event) -> None:
        self._seconds.setdefault(part, 0.0)
        if isinstance(begin, float):
            self._seconds[part] += time.perf_counter() - begin
            return
        assert self._event is not None
        end = self._event()
        end.record()
        self._marks.append((part, begin, end))
        if len(self._marks) > WAITING:
            self._add_up()

    def _add_up(self) -> None:
        """Turn the marks that the device has come past into seconds; waits for none."""
        waiting = []
        for part, begin, end in self._marks:
            if end.query():
                self._seconds[part] += begin.elapsed_time(end) / 1000.0
            else:
                waiting.append((part, begin, end))
        self._marks = waiting

    def copy(self) -> Ledger:
        """The figures as they stand."""
        return Ledger(dict(self.seconds), dict(self.examples))

    def since(self, earlier: Ledger) -> Ledger:
        """What came after an earlier copy."""
        seconds, before = self.seconds, earlier.seconds
        return Ledger(
            {k: v - before.get(k, 0.0) for k, v in seconds.items()},
            {k: v - earlier.examples.get(k, 0) for k, v in self.examples.items()},
        )

    def flat(self) -> dict[str, float]:
        """The figures as ``cost/<part>_seconds`` and ``cost/<part>_examples``."""
        figures: dict[str, float] = {}
        for part, seconds in self.seconds.items():
            figures[f"cost/{part}_seconds"] = seconds
            figures[f"cost/{part}_examples"] = float(self.examples.get(part, 0))
        return figures
