"""The ledger of cost: how many examples each part of the work took, and how many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Counts and seconds per part of the work.

    Parts: ``teacher``, ``student_forward``, ``student_backward``, ``optimizer``, ``held_out``,
    ``data``, ``dev``.

    Args:
        synchronize: waits until the device has done what it was given (CUDA); without it a part's
            seconds would be those of handing work over.

    Attributes:
        seconds: part -> wall-clock seconds.
        examples: part -> examples worked on.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    synchronize: Callable[[], None] | None = None

    @contextmanager
    def time(self, part: str, examples: int = 0) -> Iterator[None]:
        """Add the time spent inside, and ``examples``, to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.synchronize is not None:
                self.synchronize()
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            self.examples[part] = self.examples.get(part, 0) + examples

    def copy(self) -> Ledger:
        """The figures as they stand."""
        return Ledger(dict(self.seconds), dict(self.examples))

    def since(self, earlier: Ledger) -> Ledger:
        """What came after an earlier copy."""
        return Ledger(
            {k: v - earlier.seconds.get(k, 0.0) for k, v in self.seconds.items()},
            {k: v - earlier.examples.get(k, 0) for k, v in self.examples.items()},
        )

    def flat(self) -> dict[str, float]:
        """The figures as ``cost/<part>_seconds`` and ``cost/<part>_examples``."""
        figures: dict[str, float] = {}
        for part, seconds in self.seconds.items():
            figures[f"cost/{part}_seconds"] = seconds
            figures[f"cost/{part}_examples"] = float(self.examples.get(part, 0))
        return figures
