"""Windows over long contexts: questions and contexts as tokens, and where each token stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ksel.config import SpanConfig
from ksel.errors import UsageError
from ksel.rows import Rows
from ksel.tasks import Task

MIN_CONTEXT = 16
"""Tokens of the context that a window must have room for beside the longest question."""

WHITESPACE = np.array([c for c in range(0x10000) if chr(c).isspace()], dtype=np.uint32)
"""Numbers of the characters that show nothing."""


@dataclass(frozen=True)
class Spans:
    """What it takes to turn scores of tokens into answers: E examples cut into W windows.

    Attributes:
        example: [W] int64, number of each window's example, from 0.
        offsets: W arrays [n, 2] int32: first character of each token in the context, and the one
            after its last; -1 for tokens that are not of the context, or that show nothing.
        ids: E names of the examples.
        idx: [E] int64, numbers of the examples in their file.
        contexts: E texts.
        golds: E tuples of gold answers, empty where there is none; None where they are unknown.
    """

    example: np.ndarray
    offsets: list[np.ndarray]
    ids: list[str]
    idx: np.ndarray
    contexts: list[str]
    golds: list[tuple[str, ...]] | None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.contexts)

    def windows(self, examples: np.ndarray) -> np.ndarray:
        """The numbers of all windows of these examples, one example after the other."""
        order = np.argsort(self.example, kind="stable")
        bounds = np.searchsorted(self.example[order], np.stack([examples, examples + 1]))
        parts = [order[low:high] for low, high in bounds.T]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def take(self, windows: np.ndarray) -> Spans:
        """These windows; their examples are numbered anew in the order of their first window."""
        found, first, inverse = np.unique(
            self.example[windows], return_index=True, return_inverse=True
        )
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        kept = found[order]
        return Spans(
            example=rank[inverse],
            offsets=[self.offsets[w] for w in windows],
            ids=[self.ids[e] for e in kept],
            idx=self.idx[kept],
            contexts=[self.contexts[e] for e in kept],
            golds=None if self.golds is None else [self.golds[e] for e in kept],
        )


@dataclass(frozen=True)
class Windows:
    """Tokenised windows.

    Attributes:
        input_ids, token_type_ids: W arrays [n] int64 each; no token types where the model has none.
        labels: [W, 2] int64, first and last token of the answer, or (0, 0); None where unknown.
        spans: how they belong together.
    """

    input_ids: list[np.ndarray]
    token_type_ids: list[np.ndarray] | None
    labels: np.ndarray | None
    spans: Spans


def check_span(span: SpanConfig, task: Task) -> None:
    """Refuse settings of spans that are out of range, or that the task does not use.

    Raises:
        UsageError: naming the setting.
    """
    default = SpanConfig()
    used = {"stride", "max_question", "max_answer", "n_best"} if task.is_span else set()
    used |= {"null_threshold"} if task.unanswerable else set()
    for name, value in vars(span).items():
        if name not in used and value != getattr(default, name):
            why = "in it every question has an answer" if task.is_span else "it has no spans"
            raise UsageError(
                f"--span.{name} has no effect on task {task.name}: {why}. Leave it out."
            )
    for name, least in (("stride", 0), ("max_question", 1), ("max_answer", 1), ("n_best", 1)):
        if getattr(span, name) < least:
            raise UsageError(f"--span.{name}: {getattr(span, name)}; give {least} or more.")
    if math.isnan(span.null_threshold):
        raise UsageError("--span.null_threshold: nan is no score; give a number.")


def cut_windows(rows: Rows, tokenizer: Any, max_length: int, span: SpanConfig) -> Windows:
    """Tokenise questions and contexts, long contexts in windows that overlap.

    A window is ``[CLS] question [SEP] part of the context [SEP]``. Two windows that follow each
    other share ``span.stride`` tokens, or half of the room that the question leaves where
    that is less. A window that does not hold the whole answer is labelled (0, 0), the [CLS] token.

    Args:
        rows: questions in ``texts``, contexts in ``pairs``.
        tokenizer: a Hugging Face tokenizer that knows the characters of its tokens.
        max_length: longest window (tokens, special ones included).
        span: stride and longest question.

    Raises:
        UsageError: the tokenizer has no offsets, or ``max_length`` has no room for the context.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            "--teacher: its tokenizer does not say which characters its tokens stand for, which "
            "extractive question answering needs. Use a model with a tokenizer.json."
        )
    assert rows.pairs is not None
    special = tokenizer.num_special_tokens_to_add(pair=True)
    _check_room(max_length, special, span)
    questions, lengths = _questions(rows.texts, tokenizer, span.max_question)
    overlaps = np.minimum(span.stride, (max_length - special - lengths) // 2)
    pieces: list[tuple[int, np.ndarray, np.ndarray | None, np.ndarray]] = []
    for overlap in np.unique(overlaps):
        chosen = np.flatnonzero(overlaps == overlap)
        encoded = tokenizer(
            [questions[i] for i in chosen],
            [rows.pairs[i] for i in chosen],
            truncation="only_second",
            max_length=max_length,
            stride=int(overlap),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        pieces += _pieces(encoded, chosen)
    pieces.sort(key=lambda piece: piece[0])
    return _assemble(pieces, rows)


def _check_room(max_length: int, special: int, span: SpanConfig) -> None:
    room = max_length - special - span.max_question
    if room < MIN_CONTEXT:
        fixes = [f"--batching.max_length {special + span.max_question + MIN_CONTEXT} or more"]
        if max_length - special > MIN_CONTEXT:
            fixes.append(f"--span.max_question {max_length - special - MIN_CONTEXT} or less")
        raise UsageError(
            f"--batching.max_length: {max_length} tokens leave {max(room, 0)} for the context "
            f"beside a question of --span.max_question {span.max_question} and {special} special "
            f"tokens. Set {', or '.join(fixes)}."
        )


def _questions(texts: list[str], tokenizer: Any, longest: int) -> tuple[list[str], np.ndarray]:
    """The questions, cut to ``longest`` tokens, and their lengths [N] int64 (tokens)."""
    questions = [text.strip() for text in texts]
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)
    lengths = np.array([len(row) for row in encoded["input_ids"]], dtype=np.int64)
    for i in np.flatnonzero(lengths > longest):
        ends = [end for _, end in encoded["offset_mapping"][i]]
        keep = longest
        # half a word may have more tokens than it had within the whole
        while lengths[i] > longest:
            cut = questions[i][: ends[keep - 1]] if keep else ""
            lengths[i] = len(tokenizer(cut, add_special_tokens=False)["input_ids"])
            keep -= 1
        questions[i] = cut
    return questions, lengths


def _pieces(
    encoded: Any, chosen: np.ndarray
) -> list[tuple[int, np.ndarray, np.ndarray | None, np.ndarray]]:
    """For each window: its row, token ids, token types, and offsets (-1 outside the context)."""
    types = encoded.get("token_type_ids")
    found = []
    for w, row in enumerate(encoded["overflow_to_sample_mapping"]):
        offsets = np.array(encoded["offset_mapping"][w], dtype=np.int32).reshape(-1, 2)
        outside = [part != 1 for part in encoded.sequence_ids(w)]
        offsets[outside] = -1
        ids = np.asarray(encoded["input_ids"][w], dtype=np.int64)
        kinds = None if types is None else np.asarray(types[w], dtype=np.int64)
        found.append((int(chosen[row]), ids, kinds, offsets))
    return found


def _assemble(
    pieces: list[tuple[int, np.ndarray, np.ndarray | None, np.ndarray]], rows: Rows
) -> Windows:
    assert rows.pairs is not None
    types = [kinds for _, _, kinds, _ in pieces if kinds is not None]
    offsets = [one for _, _, _, one in pieces]
    spans = Spans(
        example=np.array([row for row, *_ in pieces], dtype=np.int64),
        offsets=offsets,
        ids=[str(number) for number in rows.idx] if rows.ids is None else rows.ids,
        idx=rows.idx,
        contexts=rows.pairs,
        golds=None if rows.answers is None else [one.texts for one in rows.answers],
    )
    labels = None if rows.answers is None else _labels(spans, rows)
    seen = _shown(spans)
    for one, shows in zip(offsets, seen, strict=True):
        one[~shows] = -1
    return Windows(
        input_ids=[ids for _, ids, _, _ in pieces],
        token_type_ids=types or None,
        labels=labels,
        spans=replace(spans, offsets=offsets),
    )


def _shown(spans: Spans) -> list[np.ndarray]:
    """For each window which of its tokens show a character of the context."""
    shown, number, ink = [], -1, np.zeros(1, np.int64)
    for example, offsets in zip(spans.example, spans.offsets, strict=True):
        if example != number:
            number = example
            text = spans.contexts[number].encode("utf-32-le", "surrogatepass")
            visible = ~np.isin(np.frombuffer(text, np.uint32), WHITESPACE)
            ink = np.concatenate([[0], np.cumsum(visible)])
        inside = offsets.clip(min=0)
        shown.append((ink[inside[:, 1]] > ink[inside[:, 0]]) & (offsets[:, 0] >= 0))
    return shown


def _labels(spans: Spans, rows: Rows) -> np.ndarray:
    """[W, 2] first and last token of the first gold answer, (0, 0) where the window lacks it."""
    assert rows.answers is not None
    labels = np.zeros((len(spans.offsets), 2), dtype=np.int64)
    last = np.append(spans.example[1:] != spans.example[:-1], True)
    first = np.append(True, last[:-1])
    for w, (example, offsets) in enumerate(zip(spans.example, spans.offsets, strict=True)):
        gold = rows.answers[example]
        inside = np.flatnonzero(offsets[:, 0] >= 0)
        if not len(gold) or not len(inside):
            continue
        text = gold.texts[0]
        start = gold.starts[0] + len(text) - len(text.lstrip())
        end = gold.starts[0] + len(text.rstrip())
        # what the tokenizer drops at the ends of the context belongs to the outermost windows
        low = 0 if first[w] else offsets[inside[0], 0]
        high = len(spans.contexts[example]) if last[w] else offsets[inside[-1], 1]
        held = inside[(offsets[inside, 1] > start) & (offsets[inside, 0] < end)]
        if low <= start and end <= high and len(held):
            labels[w] = held[0], held[-1]
    return labels
