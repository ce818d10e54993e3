"""Knowledge types on random signals: the cases that the rules of ``ksel.knowledge`` are tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ksel.config import KnowledgeConfig
from ksel.knowledge import KnowledgePool, KnowledgeType, build_pool, mean_loss
from ksel.knowledge.specs import kind_of
from ksel.tasks import Task, get_task
from ksel.types import LAYERED, Batch, Needs, Shape, Signals, TeacherView

KL_3_1 = 0.130812
"""KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287"""

SMALL = Shape(layers=2, width=8, heads=2, feed_forward=8)
LARGE = Shape(layers=4, width=8, heads=2, feed_forward=8)
WIDE = Shape(layers=4, width=12, heads=4, feed_forward=8)


@dataclass(frozen=True)
class Case:
    """A pool with one type, and for whom it is built."""

    spec: str
    teacher: Shape = LARGE
    student: Shape = SMALL
    task: str = "mnli"
    settings: dict[str, Any] = field(default_factory=dict)
    progress: float = 0.0

    def __str__(self) -> str:
        extra = [f"{k}={v}" for k, v in self.settings.items()]
        return "-".join([self.spec.replace("/", ":"), self.task, f"w{self.teacher.width}", *extra])

    @property
    def kind(self) -> str:
        return kind_of(self.spec)

    @property
    def own_temperatures(self) -> bool:
        """True if each example's temperature depends on the student, but its gradient does not."""
        return self.settings.get("temperature_schedule") in ("flsw", "cwsm")

    def pool(self, student: Shape | None = None, teacher: Shape | None = None, seed: int = 0):
        return build_pool(
            KnowledgeConfig(pool=[self.spec], **self.settings),
            task=get_task(self.task),
            student=student or self.student,
            teachers=[TeacherView(teacher or self.teacher)],
            seed=seed,
        )


def _response(task: str = "mnli", progress: float = 0.0, **settings: Any) -> Case:
    return Case("response", task=task, settings=settings, progress=progress)


CASES = [
    Case("label"),
    Case("label", task="stsb"),
    Case("label", task="squad"),
    _response(temperature=3.0),
    _response("stsb"),
    _response("squad", temperature=2.0),
    _response(confidence=True),
    _response("squad", confidence=True),
    _response(progress=0.5, temperature_schedule="linear"),
    _response(temperature_schedule="flsw", temperature_power=2.0),
    _response("squad", temperature_schedule="flsw", temperature_range=0.5),
    _response(temperature_schedule="cwsm"),
    Case("logits"),
    Case("logits", task="stsb"),
    Case("logits", task="squad", settings={"logit_annealing": 4}, progress=0.3),
    Case("cls_hidden/skip"),
    Case("cls_hidden/last", settings={"normalize_cls": False}),
    Case("cls_hidden/first", teacher=WIDE),
    Case("cls_hidden/skip", settings={"cls_reduction": "mean", "projection": "always"}),
    Case("hidden/0-0+2-3"),
    Case("hidden/skip", teacher=WIDE),
    Case("hidden/last", settings={"projection": "always"}),
    Case("embedding"),
    Case("embedding", teacher=WIDE),
    Case("cosine/last"),
    Case("cosine/skip", teacher=WIDE),
    Case("attention/last"),
    Case("attention/skip", settings={"attention_loss": "kl"}),
    Case("attention/first", settings={"attention_on": "scores"}),
    Case("attention_mean/skip", teacher=WIDE),
    Case("attention_mean/skip", teacher=WIDE, settings={"attention_loss": "kl"}),
    Case("attention_mean/last", teacher=WIDE, settings={"attention_on": "scores"}),
    Case("attention_sum/skip", teacher=WIDE),
    Case("attention_sum/last", settings={"attention_on": "scores"}),
    Case("query_relation/first"),
    Case("key_relation/skip", teacher=WIDE, settings={"relation_heads": 1}),
    Case("value_relation/last_1", teacher=WIDE),
    Case("attention_output_relation/skip", teacher=WIDE),
    Case("token_similarity", teacher=WIDE),
    Case("fsp/skip"),
    Case("fsp/0-0+1-2+2-4"),
    Case("fsp/last", teacher=WIDE),
    Case("nst/skip", teacher=WIDE),
    Case("sample_similarity", teacher=WIDE),
    Case("sample_contrastive"),
    Case("sample_contrastive", teacher=WIDE, settings={"contrastive_temperature": 0.5}),
]

NO_ZERO = ("label", "sample_contrastive")
"""Kinds whose loss does not vanish where student and teacher agree."""


def make_batch(
    lengths: Sequence[int], task: Task, seed: int = 0, padding: int = 0, progress: float = 0.0
) -> Batch:
    """A batch with real lengths, and ``padding`` columns more than the longest needs."""
    rng = np.random.default_rng(seed)
    longest = max(lengths) + padding
    mask = torch.tensor([[int(i < length) for i in range(longest)] for length in lengths])
    if task.is_span:
        ends = [rng.integers(max(length, 1), size=2) for length in lengths]
        labels = torch.from_numpy(np.array(ends))
    elif task.is_regression:
        labels = torch.tensor(rng.uniform(0, 5, len(lengths)), dtype=torch.float32)
    else:
        labels = torch.tensor(rng.integers(task.num_outputs, size=len(lengths)))
    ids = torch.arange(len(lengths))
    return Batch(ids, torch.ones_like(mask), mask, None, labels, progress)


def make_signals(
    batch: Batch, shape: Shape, task: Task, seed: int, dtype: torch.dtype = torch.float32
) -> Signals:
    """Every signal of every layer, from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    b, n = batch.attention_mask.shape
    h = shape.width
    hidden = {layer: draw(b, n, h) for layer in range(shape.layers + 1)}
    parts = {
        name: {layer: draw(b, n, h) for layer in range(1, shape.layers + 1)}
        for name in LAYERED
        if name not in ("cls", "hidden")
    }
    cls = {layer: x[:, 0] for layer, x in hidden.items()}
    logits = draw(b, n, 2) if task.is_span else draw(b, task.num_outputs)
    return Signals(logits, cls, hidden, **parts)


def each_tensor(signals: Signals, change: Callable[[Tensor], Any]) -> Signals:
    """The signals with ``change(tensor)`` for each tensor."""
    parts = {
        name: {layer: change(x) for layer, x in getattr(signals, name).items()} for name in LAYERED
    }
    return Signals(None if signals.logits is None else change(signals.logits), **parts)


def only(signals: Signals, needs: Needs) -> Signals:
    """The signals that are needed and no others."""
    parts = {name: {i: getattr(signals, name)[i] for i in getattr(needs, name)} for name in LAYERED}
    return Signals(signals.logits if needs.logits else None, **parts)


def tensors(signals: Signals) -> list[Tensor]:
    """All tensors, in a fixed order."""
    layered = [x for name in LAYERED for x in getattr(signals, name).values()]
    return [*([] if signals.logits is None else [signals.logits]), *layered]


class Setting(NamedTuple):
    """A case's only type, a batch, and what the type needs of student and teacher for it."""

    type: KnowledgeType
    batch: Batch
    student: Signals
    teacher: Signals


def setting_of(
    case: Case,
    lengths: Sequence[int] = (5, 3, 1),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    padding: int = 0,
    pool: KnowledgePool | None = None,
) -> Setting:
    """Random signals for a case."""
    task = get_task(case.task)
    pool = pool or case.pool()
    pool.projections.to(torch.promote_types(dtype, torch.float32))
    (type,) = pool.types
    batch = make_batch(lengths, task, seed, padding, case.progress)
    student = only(make_signals(batch, case.student, task, 2 * seed + 1, dtype), type.student)
    teacher = only(make_signals(batch, case.teacher, task, 2 * seed + 2, dtype), type.teacher)
    return Setting(type, batch, student, teacher)


def gradients(
    type: KnowledgeType, batch: Batch, student: Signals, teacher: Signals
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The mean loss, and its gradient for each of the student's signals."""
    student = each_tensor(student, lambda x: x.detach().clone().requires_grad_())
    loss = mean_loss(type, student, teacher, batch)
    return loss.detach(), torch.autograd.grad(loss, tensors(student))


def crop(signals: Signals, rows: slice, length: int) -> Signals:
    """Some examples' signals, cut to a length."""
    return each_tensor(signals, lambda x: x[rows, :length] if x.dim() == 3 else x[rows])


def crop_batch(batch: Batch, rows: slice, length: int) -> Batch:
    """Some examples of a batch, cut to a length."""
    return replace(
        batch,
        ids=batch.ids[rows],
        labels=batch.labels[rows],
        input_ids=batch.input_ids[rows, :length],
        attention_mask=batch.attention_mask[rows, :length],
    )


def orthogonal(size: int, seed: int) -> Tensor:
    """A random rotation, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(x)[0]


# For values worked out by hand.


def batch_of(lengths: Sequence[int], labels: Tensor | None = None, progress: float = 0.0) -> Batch:
    """A batch with these numbers of real tokens."""
    longest = max(lengths)
    mask = torch.tensor([[int(i < length) for i in range(longest)] for length in lengths])
    labels = torch.zeros(len(lengths), dtype=torch.long) if labels is None else labels
    ids = torch.arange(len(lengths))
    return Batch(ids, torch.ones_like(mask), mask, None, labels, progress)


def pool_of(
    spec: str, student: Shape, teacher: Shape, task: str = "qnli", **settings: Any
) -> KnowledgePool:
    """A pool with one type."""
    return Case(spec, teacher, student, task, settings).pool()


def type_of(
    spec: str,
    student: Shape | None = None,
    teacher: Shape | None = None,
    task: str = "qnli",
    **settings: Any,
) -> KnowledgeType:
    """A pool's only type; student and teacher have one layer of width 2 by default."""
    student = student or Shape(layers=1, width=2, heads=1, feed_forward=4)
    (type,) = pool_of(spec, student, teacher or student, task, **settings).types
    return type


def near(expected: Any) -> Any:
    """Equal up to the digits written down."""
    return pytest.approx(expected, abs=2e-6)
