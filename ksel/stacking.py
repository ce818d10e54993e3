"""Several students in one forward pass: their weights lie in stacked tensors, vmap maps over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from transformers import PreTrainedModel

from ksel.distiller import Distiller
from ksel.models import model_logits
from ksel.observing import Observed
from ksel.types import Batch, Needs, Signals

Weights = Mapping[str, Tensor]
"""Parameter name, as :class:`SideBySide` has it -> [N, ...], one slice for each student."""


@dataclass
class MaskedBatch(Batch):
    """A batch that hands the model its attention mask ready-made.

    Models form it from the padding mask by asking what the values are, which vmap cannot map.

    Attributes:
        additive: [b, 1, 1, n], 0 for real tokens and the least number of the dtype for padding.
    """

    additive: Tensor | None = None

    def model_inputs(self) -> dict[str, Tensor]:
        """As :meth:`ksel.types.Batch.model_inputs`, with the mask of four dimensions."""
        assert self.additive is not None
        return {**super().model_inputs(), "attention_mask": self.additive}


def masked(batch: Batch, dtype: torch.dtype) -> MaskedBatch:
    """The batch with the additive mask of a model whose weights are of this dtype."""
    additive = additive_mask(batch.attention_mask, dtype)
    return MaskedBatch(**{f.name: getattr(batch, f.name) for f in fields(Batch)}, additive=additive)


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[b, n], 1 for real tokens -> [b, 1, 1, n], what is added to the attention scores."""
    real = attention_mask.bool()[:, None, None, :]
    zeros = torch.zeros(real.shape, dtype=dtype, device=real.device)
    return zeros.masked_fill(~real, torch.finfo(dtype).min)


class WordEmbeddings:
    """Looks the words of N students up at once, outside vmap.

    vmap would turn the N matrices into one with N times as many columns, and their gradient back
    again: copies of what is most of a small student.

    Args:
        student: the model.
        named: the module whose names the weights have.
    """

    def __init__(self, student: PreTrainedModel, named: nn.Module) -> None:
        self.module: Any = student.get_input_embeddings()
        places = {id(p): name for name, p in named.named_parameters()}
        self.name = places[id(self.module.weight)]

    def taken_from(self, weights: Weights) -> tuple[dict[str, Tensor], Tensor | None]:
        """All other weights, and the stacked embedding matrix [N, V, h]; None where it is frozen."""
        others = dict(weights)
        return others, others.pop(self.name, None)

    def look_up(self, stack: Tensor | None, input_ids: Tensor) -> Tensor | None:
        """[N, V, h] and [b, n] -> [N, b, n, h]; None without the former."""
        if stack is None:
            return None
        count, words, _ = stack.shape
        first = words * torch.arange(count, device=stack.device)
        found = F.embedding(input_ids + first[:, None, None], stack.flatten(0, 1))
        padding = self.module.padding_idx
        if padding is None:
            return found
        # as in the module itself, the vector of the padding word gets no gradient
        return torch.where((input_ids == padding)[..., None], found.detach(), found)

    @contextmanager
    def given(self, embedded: Tensor | None) -> Iterator[None]:
        """Inside, the module gives these [b, n, h], whatever it is asked; None = its own."""
        if embedded is None:
            yield
            return
        self.module.forward = lambda input_ids: embedded
        try:
            yield
        finally:
            del self.module.forward


@dataclass
class Seen:
    """What one forward pass of N students gives.

    Attributes:
        learned: type -> [N] shares of the loss of the whole batch, with the graph behind them.
        looked: the same, without.
        sums: of :class:`ksel.observing.Observed`, [N, ...].
    """

    learned: dict[int, Tensor]
    looked: dict[int, Tensor]
    sums: dict[str, Tensor]


class SideBySide(nn.Module):
    """Student and projections as one module, whose parameters give way to stacked ones.

    Args:
        distiller: its model, pool and taps are used, never its weights.
    """

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.student = distiller.student
        self.projections = distiller.pool.projections
        self.distiller = distiller

    @property
    def names(self) -> list[str]:
        """Names of what is trained, in the order of ``Distiller.parameters``."""
        return [name for name, p in self.named_parameters() if p.requires_grad]

    def look(
        self,
        weights: Weights,
        batch: Batch,
        teachers: list[Signals],
        amounts: list[Tensor],
        learn: Iterable[int],
        look: Iterable[int],
        *,
        observe: bool,
    ) -> Seen:
        """The losses of N students on a micro-batch.

        Args:
            weights: of the N students.
            batch: the micro-batch.
            teachers: each teacher's signals for it.
            amounts: [K] units of each type in the whole batch.
            learn, look: types whose losses are wanted with and without a graph.
            observe: also entropy, agreement and what else is watched.
        """
        learn, look = list(learn), list(look)
        dtype = next(iter(weights.values())).dtype
        ready = masked(batch, dtype)
        words = WordEmbeddings(self.student, self)
        others, stack = words.taken_from(weights)

        embedded = words.look_up(stack, batch.input_ids)

        def one(own: Weights, embedded: Tensor | None) -> Any:
            with words.given(embedded):
                return functional_call(
                    self, dict(own), (ready, teachers, amounts, learn, look, observe)
                )

        with _mappable(self.student, self.distiller.tap.bf16):
            mapped = vmap(one, in_dims=(0, None if embedded is None else 0))
            learned, looked, sums = mapped(others, embedded)
        return Seen(
            dict(zip(learn, learned, strict=True)), dict(zip(look, looked, strict=True)), sums
        )

    def forward(
        self,
        batch: MaskedBatch,
        teachers: list[Signals],
        amounts: list[Tensor],
        learn: list[int],
        look: list[int],
        observe: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], dict[str, Tensor]]:
        """One student's part of :meth:`look`, seen by vmap."""
        core = self.distiller
        needs = Needs.union(core.pool.types[k].student for k in learn + look)
        if observe:
            needs = needs | core.watched.student
        signals = core.tap(batch, needs)
        learned = tuple(core._share(k, signals, teachers, batch, amounts[k]) for k in learn)
        with torch.no_grad():
            looked = tuple(core._share(k, signals, teachers, batch, amounts[k]) for k in look)
        observed = Observed(core.watched)
        if observe:
            observed.add(signals, teachers[0], batch)
        return learned, looked, observed.sums


@dataclass
class _Output:
    logits: Tensor


class StackedModel:
    """N students as one model whose logits lie side by side in the last dimension.

    Made for :func:`ksel.evaluation.predict_logits`, which then gives [rows, N C] (spans: [rows, L,
    2 N]).

    Args:
        student: the model whose parameters give way.
        weights: parameter name of the student -> [N, ...].
    """

    def __init__(self, student: PreTrainedModel, weights: Weights) -> None:
        self.student = student
        self.weights = weights

    def modules(self) -> Iterator[nn.Module]:
        """As of any module."""
        return self.student.modules()

    def eval(self) -> None:
        """Dropout off."""
        self.student.eval()

    def __call__(self, **inputs: Tensor) -> _Output:
        """The logits of all students on a batch."""
        dtype = next(iter(self.weights.values())).dtype
        inputs["attention_mask"] = additive_mask(inputs["attention_mask"], dtype)
        words = WordEmbeddings(self.student, self.student)
        others, stack = words.taken_from(self.weights)

        embedded = words.look_up(stack, inputs["input_ids"])

        def one(own: Weights, embedded: Tensor | None) -> Tensor:
            with words.given(embedded):
                return model_logits(functional_call(self.student, dict(own), (), inputs))

        with _mappable(self.student, bf16=False):
            logits = vmap(one, in_dims=(0, None if embedded is None else 0))(others, embedded)
        return _Output(logits.movedim(0, -2).flatten(-2))


@contextmanager
def _mappable(model: PreTrainedModel, bf16: bool) -> Iterator[None]:
    """Inside, attention is computed step by step: the fused kernels cannot be mapped everywhere."""
    config: Any = model.config
    before, cache = config._attn_implementation, torch.is_autocast_cache_enabled()
    config._attn_implementation = "eager"
    if bf16:  # the cache would keep weights cast inside vmap beyond it
        torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        config._attn_implementation = before
        torch.set_autocast_cache_enabled(cache)


def why_not(distiller: Distiller) -> str | None:
    """Why students of this distiller cannot train in one step; None = they can.

    Tried on the first batch of the training rows, with all types of the pool.
    """
    parts = distiller.parts
    if parts.dropout > 0:
        return f"dropout {parts.dropout:g} is on, and each student draws its own"
    if parts.optim.embeddings == "lazy":
        return "lazy embeddings (--optim.embeddings lazy) update rows of their own in each student"
    step = SideBySide(distiller)
    everything = range(len(distiller.pool))
    batch = parts.train.batch(distiller.order.rows(0)).to(distiller.device)
    ones = [torch.ones((), device=distiller.device) for _ in everything]
    weights = {
        name: p.detach().expand(2, *p.shape).clone().requires_grad_()
        for name, p in step.named_parameters()
        if p.requires_grad
    }
    try:
        teachers = distiller._taught(batch, everything)
        seen = step.look(weights, batch, teachers, ones, everything, (), observe=True)
        losses = torch.stack([loss.sum() for loss in seen.learned.values()])
        torch.autograd.grad(losses.sum(), list(weights.values()), allow_unused=True)
    except torch.OutOfMemoryError:
        return None
    # vmap raises RuntimeError and ValueError for what it cannot map, models whatever they like
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
