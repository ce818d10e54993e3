"""Teacher signals of a training file: how their rows lie, and arrays of them in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ksel.types import LAYERED, POOLED, Needs

BLOCK = 8
"""Rows that the teacher reads together. On a CPU eight of like length were the cheapest for each row
(half of what 32 in any order cost), and the fewer they are, the less a short run computes in vain."""


@dataclass(frozen=True)
class Layout:
    """The rows of a whole training file, the shortest first, in blocks of :data:`BLOCK`.

    A block is always computed as one, so that a row's signals are a function of the file alone:
    whichever batch asks for a row first, it gets the same bits.

    Attributes:
        order: [N] int64, row numbers of the file in the order in which they are kept.
        place: [N] int64, where each row lies in that order.
        starts: [N + 1] int64, the first token of each place, and the end.
    """

    order: np.ndarray
    place: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray) -> Layout:
        """The layout of rows with these lengths [N] (tokens)."""
        order = np.argsort(lengths, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return cls(order, place, np.concatenate([[0], np.cumsum(lengths[order])]))

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-len(self.order) // BLOCK)

    def rows(self, block: int) -> np.ndarray:
        """The row numbers of a block."""
        return self.order[block * BLOCK : (block + 1) * BLOCK]

    def blocks_of(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the blocks that hold these rows, each once, ascending."""
        return np.unique(self.place[rows] // BLOCK)

    def size(self, slot: Slot) -> int:
        """How many vectors a signal has."""
        return int(self.starts[-1]) if slot.of_tokens else len(self.order)

    def extent(self, slot: Slot, block: int) -> slice:
        """Where a block's vectors lie."""
        first, end = block * BLOCK, min((block + 1) * BLOCK, len(self.order))
        if slot.of_tokens:
            return slice(int(self.starts[first]), int(self.starts[end]))
        return slice(first, end)


@dataclass(frozen=True)
class Slot:
    """The vectors of one signal: one for each token, or one for each row; and their width."""

    of_tokens: bool
    width: int


def signal_names(needs: Needs) -> list[str]:
    """``logits`` and ``<kind>/<layer>`` for each signal, those of whole rows first."""
    kinds = sorted(LAYERED, key=lambda kind: kind not in POOLED)
    layered = [f"{kind}/{layer}" for kind in kinds for layer in sorted(getattr(needs, kind))]
    return ["logits", *layered] if needs.logits else layered


def needs_of(names: Iterable[str]) -> Needs:
    """The signals with these names."""
    layers: dict[str, set[int]] = {}
    for name in names:
        kind, _, layer = name.partition("/")
        if layer:
            layers.setdefault(kind, set()).add(int(layer))
    chosen = {kind: frozenset(found) for kind, found in layers.items()}
    return Needs("logits" in set(names), **chosen)


def slots_of(needs: Needs, width: int, outputs: int, *, spans: bool) -> dict[str, Slot]:
    """The slot of each signal.

    Args:
        needs: the signals.
        width, outputs: of the teacher's states and of its logits.
        spans: True if the logits are of tokens.
    """
    return {
        name: Slot(spans, outputs)
        if name == "logits"
        else Slot(name.partition("/")[0] not in POOLED, width)
        for name in signal_names(needs)
    }


class SignalStore(Protocol):
    """Keeps signals block by block.

    Attributes:
        layout: of the rows.
        slots: name -> slot of each signal that is kept.
        arrays: name -> [vectors, width], in the layout's order; undefined where nothing is kept yet.
        dtype: of the arrays.
    """

    layout: Layout
    slots: dict[str, Slot]
    arrays: dict[str, np.ndarray]
    dtype: np.dtype

    def missing(self, names: Iterable[str], blocks: np.ndarray) -> np.ndarray:
        """Those of the blocks that lack one of these signals."""
        ...

    def keep(self, block: int, values: Mapping[str, np.ndarray]) -> None:
        """Take in a block's signals; what is there already stays."""
        ...

    def have_read(self, pieces: int, count: int) -> None:
        """Told that so many bytes were read, in so many pieces."""
        ...


class MemoryStore:
    """Signals in arrays; pages of rows that nobody asked for are never touched."""

    def __init__(self, layout: Layout, slots: dict[str, Slot], dtype: str) -> None:
        self.layout, self.slots, self.dtype = layout, slots, np.dtype(dtype)
        self.arrays = {
            name: np.empty((layout.size(slot), slot.width), self.dtype)
            for name, slot in slots.items()
        }
        self._filled = {name: np.zeros(layout.blocks, dtype=bool) for name in slots}

    def missing(self, names: Iterable[str], blocks: np.ndarray) -> np.ndarray:
        """Those of the blocks that lack one of these signals."""
        lacking = np.zeros(len(blocks), dtype=bool)
        for name in names:
            lacking |= ~self._filled[name][blocks]
        return blocks[lacking]

    def keep(self, block: int, values: Mapping[str, np.ndarray]) -> None:
        """Take in a block's signals; what is there already stays."""
        for name, value in values.items():
            if not self._filled[name][block]:
                self.arrays[name][self.layout.extent(self.slots[name], block)] = value
                self._filled[name][block] = True

    def have_read(self, pieces: int, count: int) -> None:
        """Nothing to do: these arrays are in memory anyway."""
