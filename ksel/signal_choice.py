"""Which teacher signals are kept, within a budget of bytes, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ksel.errors import UsageError
from ksel.signal_store import Layout, Slot, signal_names
from ksel.types import Needs

MEMORY_SHARE = 0.5
"""Share of the free memory that signals may take."""


@dataclass(frozen=True)
class Wish:
    """Signals of one teacher that are of use together: those of a knowledge type, say."""

    teacher: int
    needs: Needs


@dataclass(frozen=True)
class Offer:
    """What one teacher could have kept: rows, and the slot of each signal that is needed."""

    layout: Layout
    slots: dict[str, Slot]

    def bytes(self, names: Iterable[str], dtype: str) -> int:
        """Size of these signals for all rows."""
        slots = [self.slots[name] for name in names]
        numbers = sum(self.layout.size(slot) * slot.width for slot in slots)
        return numbers * np.dtype(dtype).itemsize


def choose_kept(
    wishes: Sequence[Wish], offers: Sequence[Offer], dtype: str, budget_mb: float
) -> list[frozenset[str]]:
    """The names of the signals to keep, for each teacher.

    A type is free of the teacher only if all its signals are kept, so signals are taken wish by
    wish: first those of whole rows alone, then those of tokens. Within each, what takes least beside
    what is kept already comes first; of the same size, what stands first in ``wishes``. What does
    not fit as a whole stays live.

    Args:
        wishes: what is of use, of the observation and of each knowledge type in the pool's order.
        offers: of each teacher.
        dtype: of what is kept.
        budget_mb: largest size of all together (MB).
    """
    kept: list[set[str]] = [set() for _ in offers]
    left = budget_mb * 1e6
    open_wishes = list(wishes)
    while open_wishes:
        sizes = [
            (_of_tokens(wish, offers), _added(wish, offers, kept, dtype)) for wish in open_wishes
        ]
        nearest = min(range(len(sizes)), key=sizes.__getitem__)
        wish, (_, size) = open_wishes.pop(nearest), sizes[nearest]
        if size <= left:
            kept[wish.teacher] |= set(signal_names(wish.needs))
            left -= size
    return [frozenset(names) for names in kept]


def _of_tokens(wish: Wish, offers: Sequence[Offer]) -> bool:
    slots = offers[wish.teacher].slots
    return any(slots[name].of_tokens for name in signal_names(wish.needs) if name != "logits")


def _added(wish: Wish, offers: Sequence[Offer], kept: Sequence[set[str]], dtype: str) -> int:
    new = set(signal_names(wish.needs)) - kept[wish.teacher]
    return offers[wish.teacher].bytes(new, dtype)


def check_budget(offers: Sequence[Offer], dtype: str, budget_mb: float, batch_size: int) -> None:
    """Refuse a budget that has no room for the pooled signals of one batch.

    Raises:
        UsageError: naming the budget.
    """
    numbers = sum(
        batch_size * slot.width
        for offer in offers
        for slot in offer.slots.values()
        if not slot.of_tokens
    )
    size = numbers * np.dtype(dtype).itemsize / 1e6
    if size > budget_mb:
        raise UsageError(
            f"--signals.budget {budget_mb:g}: the teacher's outputs and [CLS] states of one batch "
            f"of {batch_size} rows take {size:.1f} MB. Raise it, or use --signals.source live."
        )


def where_to_keep(source: str, size: int, free: int | None) -> str:
    """``memory`` or ``disk``.

    Args:
        source: ``--signals.source``: auto, memory or disk.
        size: of all that is kept (bytes).
        free: memory that is free (bytes); None = not known.

    Raises:
        UsageError: memory is asked for and there is too little.
    """
    if source == "auto":
        return "memory" if free is None or size <= MEMORY_SHARE * free else "disk"
    if source == "memory" and free is not None and size > free:
        raise UsageError(
            f"--signals.source memory: {size / 1e6:,.0f} MB of signals are more than the "
            f"{free / 1e6:,.0f} MB of memory that are free. Use --signals.source disk, or lower "
            f"--signals.budget."
        )
    return source
