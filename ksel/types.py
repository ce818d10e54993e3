"""The plain records that travel between the rooms: a batch, a model's signals, a model's shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Architecture of an encoder: number of layers, hidden width, heads, feed-forward width."""

    layers: int
    width: int
    heads: int
    feed_forward: int


@dataclass
class Batch:
    """Tokenised examples padded to the longest of the batch.

    Attributes:
        ids: [b] int64, the examples' numbers within their split (row of the signal cache).
        input_ids: [b, n] int64.
        attention_mask: [b, n] int64, 1 for real tokens.
        token_type_ids: [b, n] int64, or None where the model has no segments.
        labels: [b] int64 class indices, or float32 scores for regression.
    """

    ids: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def model_inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a Hugging Face encoder."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        return inputs

    def to(self, device: torch.device | str) -> Batch:
        """A copy on another device (self if it is there already)."""
        moved = {
            f.name: value.to(device) if isinstance(value := getattr(self, f.name), Tensor) else None
            for f in fields(self)
        }
        return Batch(**moved)  # type: ignore[arg-type]

    def split(self, parts: int) -> list[Batch]:
        """Cut into at most ``parts`` micro-batches of nearly equal size, padding left as it is."""
        cuts = torch.arange(len(self)).tensor_split(min(parts, len(self)))
        return [
            Batch(
                *(
                    value[index] if isinstance(value := getattr(self, f.name), Tensor) else None  # type: ignore[arg-type]
                    for f in fields(self)
                )
            )
            for index in cuts
        ]


@dataclass
class Signals:
    """What a model gives for a batch, in float32 unless autocast says otherwise.

    Layers count from 1 = first transformer layer; 0 is the embedding output.

    Attributes:
        logits: [b, classes] (regression: [b, 1]), or None if not asked for.
        cls: layer -> [b, h], the first token's state.
        hidden: layer -> [b, n, h].
        query, key, value: layer -> [b, n, h], heads concatenated, before scaling.
    """

    logits: Tensor | None = None
    cls: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    query: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)


LAYERED = ("cls", "hidden", "query", "key", "value")
POOLED = ("cls",)


@dataclass(frozen=True)
class Needs:
    """Which signals are asked of a model; layer sets as in :class:`Signals`."""

    logits: bool = False
    cls: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    query: frozenset[int] = frozenset()
    key: frozenset[int] = frozenset()
    value: frozenset[int] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        layered = {name: getattr(self, name) | getattr(other, name) for name in LAYERED}
        return Needs(self.logits or other.logits, **layered)

    def __bool__(self) -> bool:
        return self.logits or any(getattr(self, name) for name in LAYERED)

    @staticmethod
    def union(needs: Iterable[Needs]) -> Needs:
        """All of several."""
        total = Needs()
        for one in needs:
            total = total | one
        return total
