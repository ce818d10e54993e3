"""The next batch's signals, read and copied to the device while this batch is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Read = Callable[[np.ndarray, int, Iterable[str]], dict[str, Tensor]]
"""(rows, padded length, names) -> name -> tensor in pinned memory (CUDA) or in plain memory."""


@dataclass(frozen=True)
class _Expected:
    rows: np.ndarray
    length: int
    names: list[str]
    result: Future[tuple[dict[str, Tensor], Any]]

    def is_of(self, rows: np.ndarray, length: int) -> bool:
        """True if this is the batch of these rows, padded to this length."""
        return self.length == length and np.array_equal(self.rows, rows)


class Ahead:
    """Holds one expected batch.

    On a GPU the copies run on a stream of their own; whoever takes them waits for them on the GPU,
    not on the CPU.

    Args:
        read: gives signals of a batch on the CPU.
        device: where they are wanted.
    """

    def __init__(self, read: Read, device: torch.device) -> None:
        self._read, self._device = read, device
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="signals")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._expected: _Expected | None = None

    def expect(self, rows: np.ndarray, length: int, names: list[str]) -> None:
        """Begin to read a batch in place of the one that was expected before, unless it is that one.

        Args:
            rows: [b] row numbers.
            length: tokens that it will be padded to.
            names: of the signals.
        """
        expected = self._expected
        if expected is not None:
            if expected.is_of(rows, length) and expected.names == names:
                return
            expected.result.cancel()
        result = self._worker.submit(self._copied, rows, length, names)
        self._expected = _Expected(rows, length, names, result)

    def take(self, rows: np.ndarray, length: int) -> dict[str, Tensor]:
        """What was read for this batch; nothing if another one is expected. It is given once."""
        expected = self._expected
        if expected is None or not expected.is_of(rows, length):
            return {}
        self._expected = None
        tensors, copied = expected.result.result()
        if self._stream is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for tensor in tensors.values():
                tensor.record_stream(stream)
        return tensors

    def _copied(
        self, rows: np.ndarray, length: int, names: list[str]
    ) -> tuple[dict[str, Tensor], Any]:
        tensors = self._read(rows, length, names)
        if self._stream is None:
            return tensors, None
        with torch.cuda.stream(self._stream):
            on_device = {name: t.to(self._device, non_blocking=True) for name, t in tensors.items()}
            return on_device, self._stream.record_event()
