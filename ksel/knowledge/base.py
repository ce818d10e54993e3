"""What every knowledge type is made of: the records, the units, and the care for precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from ksel.config import KnowledgeConfig
from ksel.errors import UsageError
from ksel.matching import Pairs
from ksel.tasks import Task
from ksel.types import Batch, Needs, Shape, Signals

Unit = Literal["example", "token"]
Loss = Callable[[Signals, Signals, Batch], Tensor]
"""(student, teacher, batch) -> [b], each example's sum over its units."""


@dataclass(frozen=True)
class KnowledgeType:
    """One kind of teacher signal with its loss.

    Attributes:
        spec: its name, ``kind[/matching][@teacher]``.
        kind: name in the table of kinds.
        pairs: matched (student, teacher) layers; empty for kinds without layers.
        unit: what the loss is a mean over: examples, or real tokens.
        student: signals asked of the student.
        teacher: signals asked of the teacher; empty where no teacher is needed.
        loss: (student, teacher, batch) -> [b], each example's sum over its units, in float32
            (float64 for float64 signals), whatever the signals' precision and autocast.
        source: number of the teacher whose signals it takes, from 0.
        couples: True if an example's loss depends on the other examples of its batch, so that
            micro-batches would change it.
    """

    spec: str
    kind: str
    pairs: Pairs
    unit: Unit
    student: Needs
    teacher: Needs
    loss: Loss
    source: int = 0
    couples: bool = False


@dataclass(frozen=True)
class Request:
    """What a kind is given to build one knowledge type from.

    Attributes:
        spec: the type's name.
        matching: its matching; empty for kinds without layers.
        pairs: the matched layers; empty for kinds without layers.
        explicit: True if the user named the pairs.
        pool_kinds: kinds of all types in the pool that learn from the same teacher.
        settings, task: of the run.
        student, teacher: shapes of the two models.
        same_tokens: True if the teacher reads the student's tokens.
        source: number of the teacher, from 0.
        seed: seed of learned projections.
    """

    spec: str
    matching: str
    pairs: Pairs
    explicit: bool
    pool_kinds: frozenset[str]
    settings: KnowledgeConfig
    task: Task
    student: Shape
    teacher: Shape
    same_tokens: bool
    source: int
    seed: int

    def refuse(self, reason: str, alternative: str) -> UsageError:
        """The error for a type that this student, teacher or pool does not allow."""
        return UsageError(f"--knowledge.pool: '{self.spec}' {reason}. {alternative}")

    def other(self, kind: str, matching: str | None = None) -> str:
        """The quoted name of another kind of the same teacher; its matching is this one's."""
        return f"'{spec_name(kind, self.matching if matching is None else matching, self.source)}'"


@dataclass(frozen=True)
class Part:
    """What a kind builds: the loss, what it needs, the layers it ended up with.

    Attributes:
        loss, student, teacher, pairs, couples: as in :class:`KnowledgeType`.
        projections: learned maps from student to teacher width, by name.
    """

    loss: Loss
    student: Needs
    teacher: Needs
    pairs: Pairs = ()
    projections: dict[str, nn.Module] = field(default_factory=dict)
    couples: bool = False


@dataclass(frozen=True)
class Kind:
    """A row of the table of kinds.

    Attributes:
        description: one line for help and docs.
        unit: as in :class:`KnowledgeType`.
        build: makes a type's loss; raises UsageError where shapes do not allow it.
        lowest_layer: lowest layer number it can match (0 = embedding output); None for kinds
            without a choice of layers.
        settings: fields of KnowledgeConfig that it, and not every kind, reads.
        pooled: True if it compares only outputs and [CLS] states, so that the teacher may have a
            tokenizer of its own.
    """

    description: str
    unit: Unit
    build: Callable[[Request], Part]
    lowest_layer: int | None = None
    settings: tuple[str, ...] = ()
    pooled: bool = False


def spec_name(kind: str, matching: str, source: int) -> str:
    """A type's name ``kind[/matching][@teacher]``; the first teacher's number is left out.

    Args:
        kind: name in the table of kinds.
        matching: empty for kinds without a choice of layers.
        source: number of the teacher, from 0.
    """
    layers = f"/{matching}" if matching else ""
    return f"{kind}{layers}" + (f"@{source + 1}" if source else "")


def units(unit: Unit, batch: Batch) -> Tensor:
    """The number of examples, or of real tokens, of a batch (scalar float32)."""
    if unit == "example":
        return torch.tensor(float(len(batch)), device=batch.attention_mask.device)
    return batch.attention_mask.sum().float()


def mean_loss(type: KnowledgeType, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """The scalar loss of a batch: the sum over its examples divided by its units.

    Micro-batches add up to the loss of the whole batch exactly if their sums are divided by
    the units of the whole batch.
    """
    return type.loss(student, teacher, batch).sum() / units(type.unit, batch)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 if its precision is lower, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def real_tokens(batch: Batch) -> Tensor:
    """[b, n] bool, True for real (non-padding) tokens."""
    return batch.attention_mask.bool()


def real_states(states: Tensor, batch: Batch) -> Tensor:
    """States [b, n, h] in at least float32 with padding set to zero.

    Zeroing comes before any arithmetic: whatever a model leaves in padded positions (not even
    infinities and NaN) then reaches neither the loss nor the gradient.
    """
    # where is one pass over the numbers; masked_fill copies first, then fills
    return torch.where(real_tokens(batch)[..., None], at_least_float32(states), 0.0)


def log_probabilities(scores: Tensor, real: Tensor | None = None) -> Tensor:
    """Logarithm of the softmax over the last dimension, 0 where an entry does not count.

    Args:
        scores: [..., c].
        real: bool, broadcasts to ``scores``; False = the entry does not count. None = all do.

    Returns:
        [..., c], ready for :func:`divergence`. What does not count gets no gradient.
    """
    if real is None:
        return scores.log_softmax(-1)
    return masked_log_softmax(torch.where(real, scores, -inf), real)


def masked_log_softmax(scores: Tensor, real: Tensor) -> Tensor:
    """As :func:`log_probabilities`, for scores at minus infinity already where ``real`` is False."""
    # Two entries at minus infinity would give 0 (-inf + inf) = NaN in the divergence; with both
    # logarithms at 0 they add 1 (0 - 0).
    return torch.where(real, scores.log_softmax(-1), 0.0)


def divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """KL(teacher || student) over the last dimension, [..., c] -> [...], from log-probabilities."""
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def zero(batch: Batch) -> Tensor:
    """The start of a sum over layers (scalar)."""
    return torch.zeros((), device=batch.attention_mask.device)


def student_layers(pairs: Pairs) -> frozenset[int]:
    """The student's side of matched layers."""
    return frozenset(s for s, _ in pairs)


def teacher_layers(pairs: Pairs) -> frozenset[int]:
    """The teacher's side of matched layers."""
    return frozenset(t for _, t in pairs)
