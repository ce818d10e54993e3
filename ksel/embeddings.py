"""The student's word embeddings: trained with the rest, only where the batch has tokens, or never."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class LazyRows:
    """Word embeddings of which an update moves the rows of the batch's tokens and no others.

    A small matrix with these rows stands in for the whole while the student learns, so that no
    gradient, norm or moment of the whole vocabulary is ever formed: lazy Adam. A row's moments and
    weight decay rest while its token is in no batch; the step count goes on for all rows together,
    as in TensorFlow's LazyAdam and torch's SparseAdam.

    Args:
        words: the embedding module; its own weight no longer asks for a gradient.
        group: the parameter group of the student's AdamW for weights that decay; learning rate, betas,
            eps and weight decay are read from it at each step.

    Attributes:
        rows: [u, h] the stand-in of this update, a leaf; takes part in clipping.
        moments: step count and both moments of the whole matrix.
    """

    def __init__(self, words: nn.Embedding, group: dict[str, Any]) -> None:
        self.words = words
        self.group = group
        weight = words.weight
        self.moments = [
            torch.zeros((), dtype=torch.float32, device=weight.device),
            torch.zeros_like(weight),
            torch.zeros_like(weight),
        ]
        self._place = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self._tokens = self._place[:0]
        self.rows = weight.detach()[:0]

    @contextmanager
    def of(self, input_ids: Tensor) -> Iterator[None]:
        """Inside, forward passes on (parts of) these tokens [b, n] use, and reach, ``rows``."""
        self._tokens = tokens = input_ids.unique()
        self.rows = self.words.weight.detach()[tokens].requires_grad_()
        self._place[tokens] = torch.arange(len(tokens), device=tokens.device)
        padding = self.words.padding_idx
        handle = self.words.register_forward_hook(self._stand_in(tokens, padding))
        try:
            yield
        finally:
            handle.remove()

    def _stand_in(self, tokens: Tensor, padding: int | None) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = self.rows
            if padding is not None:  # nn.Embedding gives its padding row no gradient either
                rows = torch.where((tokens == padding)[:, None], rows.detach(), rows)
            return F.embedding(self._place[inputs[0]], rows)

        return hook

    @torch.no_grad()
    def step(self) -> None:
        """AdamW (Loshchilov & Hutter 2019, algorithm 2) on the rows of this update."""
        grad = self.rows.grad
        if grad is None:
            return
        group, tokens = self.group, self._tokens
        rate, (beta1, beta2) = group["lr"], group["betas"]
        count, first, second = self.moments
        count += 1
        mean = first[tokens].lerp_(grad, 1 - beta1)
        square = second[tokens].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        first.index_copy_(0, tokens, mean)
        second.index_copy_(0, tokens, square)
        steps = count.double()
        length = (rate / (1 - beta1**steps)).float()
        root = square.sqrt().div_((1 - beta2**steps).sqrt().float()).add_(group["eps"])
        moved = self.rows.detach() * (1 - rate * group["weight_decay"])
        moved.sub_(mean.mul_(length).div_(root))
        self.words.weight.index_copy_(0, tokens, moved)


def trains(student: PreTrainedModel, how: Literal["train", "lazy", "frozen"]) -> None:
    """Let the word embeddings ask for a gradient, or not; call before the optimiser is made."""
    word_embeddings(student).weight.requires_grad_(how == "train")


def word_embeddings(student: PreTrainedModel) -> nn.Embedding:
    """The module that turns token ids into vectors."""
    return cast(nn.Embedding, student.get_input_embeddings())
