"""From scores of tokens to answers: n-best decoding over all windows of a question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ksel.config import SpanConfig
from ksel.spans import Spans
from ksel.tasks import Task

CHUNK = 512
"""Windows decoded at once."""

SURE = 1e6
"""Largest size of a difference of scores, where there is nothing to compare with."""


@dataclass(frozen=True)
class Candidate:
    """One possible answer.

    Attributes:
        text: the answer, cut from the context; empty = none.
        start, end: its first character and the one after its last; 0 and 0 for none.
        score: logit of the start plus logit of the end.
        probability: softmax of the scores over the question's candidates.
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class Decoded:
    """The candidates of E questions, the best of each question first.

    Attributes:
        spans: the questions.
        bounds: [E + 1] int64, where each question's candidates begin in the arrays below.
        starts, ends: [C] int64, first character of each candidate and the one after its last.
        scores: [C] float64.
        none: [E] float64, score of no answer: the smallest of the question's windows.
        threshold: no answer is given where ``none`` exceeds the best score by more; None: one is
            given wherever there is a candidate.
    """

    spans: Spans
    bounds: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    none: np.ndarray
    threshold: float | None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def best(self) -> np.ndarray:
        """[E] score of each question's best candidate, -inf where it has none."""
        scores = np.full(len(self), -np.inf)
        some = self.bounds[:-1] < self.bounds[1:]
        scores[some] = self.scores[self.bounds[:-1][some]]
        return scores

    def margins(self) -> np.ndarray:
        """[E] by how much the score of no answer exceeds that of the best, cut at :data:`SURE`."""
        return np.clip(self.none - self.best(), -SURE, SURE)

    def answers(self) -> list[str]:
        """The answers given; empty for none."""
        given = self.bounds[:-1] < self.bounds[1:]
        if self.threshold is not None:
            given &= self.margins() <= self.threshold
        return [self._text(e, self.bounds[e]) if given[e] else "" for e in range(len(self))]

    def candidates(self, example: int) -> Iterator[Candidate]:
        """A question's candidates, the best first; with none among them where that is allowed."""
        own = range(self.bounds[example], self.bounds[example + 1])
        places = [(self.scores[c], self.starts[c], self.ends[c]) for c in own]
        if self.threshold is not None:
            places.append((self.none[example], 0, 0))
            places.sort(key=lambda place: -place[0])
        if not places:
            return
        scores = np.array([score for score, _, _ in places])
        shares = np.exp(scores - scores.max())
        for (score, start, end), share in zip(places, shares / shares.sum(), strict=True):
            text = self.spans.contexts[example][start:end]
            yield Candidate(text, int(start), int(end), float(score), float(share))

    def _text(self, example: int, candidate: int) -> str:
        place = slice(self.starts[candidate], self.ends[candidate])
        return self.spans.contexts[example][place]


def decode(logits: Tensor, spans: Spans, task: Task, span: SpanConfig) -> Decoded:
    """Find the best answers of each question over all its windows.

    In each window the ``n_best`` highest starts are paired with the ``n_best`` highest ends; a
    pair counts if both are tokens of the context, the end is not before the start, and no more
    than ``max_answer`` tokens lie from one to the other. A question keeps its ``n_best`` best
    pairs. The score of no answer is that of the [CLS] token, the smallest over the windows
    (Devlin et al. 2019, section 4.3; the minimum as in their code).

    Args:
        logits: [W, L, 2], finite at all real tokens.
        spans: the windows.
        task: whether there may be no answer.
        span: ``n_best``, ``max_answer``, ``null_threshold``.
    """
    parts = [
        _pairs(logits[w : w + CHUNK].double(), spans.offsets[w : w + CHUNK], span)
        for w in range(0, len(spans.offsets), CHUNK)
    ]
    window = np.concatenate([part[0] + i * CHUNK for i, part in enumerate(parts)])
    scores, starts, ends = (np.concatenate([part[k] for part in parts]) for k in (1, 2, 3))
    example = spans.example[window]
    # windows overlap, so the same pair may come twice; the better comes first
    order = np.lexsort((ends, starts, -scores, example))
    _, first = np.unique(
        np.stack([example[order], starts[order], ends[order]]), axis=1, return_index=True
    )
    order = order[np.sort(first)]
    example = example[order]
    rank = np.arange(len(order)) - np.searchsorted(example, example)
    order = order[rank < span.n_best]
    bounds = np.searchsorted(spans.example[window[order]], np.arange(len(spans) + 1))
    none = np.full(len(spans), np.inf)
    np.minimum.at(none, spans.example, logits[:, 0].double().sum(-1).numpy())
    threshold = span.null_threshold if task.unanswerable else None
    return Decoded(spans, bounds, starts[order], ends[order], scores[order], none, threshold)


def _pairs(
    logits: Tensor, offsets: list[np.ndarray], span: SpanConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Window, score, first character and the one after the last, of the pairs that count."""
    windows, length, _ = logits.shape
    places = np.full((windows, length, 2), -1, dtype=np.int64)
    for w, one in enumerate(offsets):
        places[w, : len(one)] = one
    outside = torch.from_numpy(places[:, :, 0] < 0)
    scores, tokens = (
        logits.masked_fill(outside[..., None], -torch.inf)
        .transpose(1, 2)
        .topk(min(span.n_best, length))
    )
    total = scores[:, 0, :, None] + scores[:, 1, None, :]
    extent = tokens[:, 1, None, :] - tokens[:, 0, :, None]
    total.masked_fill_((extent < 0) | (extent >= span.max_answer), -torch.inf)
    ends = total.shape[2]
    best, pair = total.flatten(1).topk(min(span.n_best, total[0].numel()))
    window, rank = torch.nonzero(best > -torch.inf, as_tuple=True)
    start, end = pair[window, rank] // ends, pair[window, rank] % ends
    first, last = tokens[window, 0, start].numpy(), tokens[window, 1, end].numpy()
    number = window.numpy()
    return number, best[window, rank].numpy(), places[number, first, 0], places[number, last, 1]
