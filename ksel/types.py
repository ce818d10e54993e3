"""The plain records that travel between the rooms: a batch, a model's signals, a model's shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Architecture of an encoder: number of layers, hidden width, heads, feed-forward width."""

    layers: int
    width: int
    heads: int
    feed_forward: int


@dataclass(frozen=True)
class TeacherView:
    """What a knowledge pool has to know of a teacher.

    Attributes:
        shape: its shape.
        same_tokens: True if it reads the student's tokens; False if it has a tokenizer of its own,
            so that only outputs and [CLS] states can be compared.
    """

    shape: Shape
    same_tokens: bool = True


@dataclass
class Batch:
    """Tokenised examples padded to the longest of the batch.

    Attributes:
        ids: [b] int64, the examples' numbers within their split (row of the signal cache).
        input_ids: [b, n] int64.
        attention_mask: [b, n] int64, 1 for real tokens.
        token_type_ids: [b, n] int64, or None where the model has no segments.
        labels: [b] int64 class indices, float32 scores for regression, or [b, 2] int64 first and
            last token of the answer for spans.
        progress: share of the stage's updates done, in [0, 1); for schedules that move with it.
    """

    ids: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor
    progress: float = 0.0

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
        return self._each(lambda tensor: tensor.to(device))

    def split(self, parts: int) -> list[Batch]:
        """Cut into at most ``parts`` micro-batches of nearly equal size, padding left as it is."""
        cuts = torch.arange(len(self)).tensor_split(min(parts, len(self)))
        return [self._each(lambda tensor, index=index: tensor[index]) for index in cuts]  # type: ignore[misc]

    def take(self, rows: Tensor) -> Batch:
        """The examples with these places in the batch."""
        return self._each(lambda tensor: tensor[rows])

    def trim(self, length: int) -> Batch:
        """Cut to the first ``length`` tokens; what is cut off must be padding."""
        types = self.token_type_ids
        return replace(
            self,
            input_ids=self.input_ids[:, :length],
            attention_mask=self.attention_mask[:, :length],
            token_type_ids=None if types is None else types[:, :length],
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


@dataclass
class Signals:
    """What a model gives for a batch, in float32 unless autocast says otherwise.

    Layers count from 1 = first transformer layer; 0 is the embedding output.

    Attributes:
        logits: [b, classes] (regression: [b, 1]; spans: [b, n, 2], the first and the last token
            of the answer), or None if not asked for.
        cls: layer -> [b, h], the first token's state.
        hidden: layer -> [b, n, h].
        query, key, value: layer -> [b, n, h], heads concatenated, before scaling.
        attention_output: layer -> [b, n, h], each head's weighted sum of values, heads
            concatenated, before the output projection.
    """

    logits: Tensor | None = None
    cls: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    query: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)
    attention_output: dict[int, Tensor] = field(default_factory=dict)


LAYERED = ("cls", "hidden", "query", "key", "value", "attention_output")
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
    attention_output: frozenset[int] = frozenset()

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
