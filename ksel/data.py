"""From a task's name to batches: load, split three ways, tokenise, pad."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ksel.batches import BatchOrder, updates_per_epoch
from ksel.config import CustomTaskConfig, RowsConfig, SpanConfig
from ksel.corpus import CORPUS_NAME, corpus
from ksel.errors import UsageError
from ksel.rows import Rows, read_rows
from ksel.sources import HubUnavailableError, custom_task, read_folder, read_hub
from ksel.spans import Spans, check_span, cut_windows
from ksel.tasks import Task, get_task
from ksel.types import Batch

__all__ = [
    "BatchOrder",
    "Rows",
    "Source",
    "Split",
    "evaluation_batches",
    "limit_train",
    "load_source",
    "read_rows",
    "three_way",
    "tokenize",
    "updates_per_epoch",
]

SCORE_BINS = 10
"""Quantile bins by which scores are stratified."""


@dataclass(frozen=True)
class Source:
    """What was loaded, and from where.

    Attributes:
        task: the task, with its columns and labels.
        train: all rows of the training file.
        dev: dev split name -> rows, the one reported first at the front.
        origin: where the rows come from, in words, e.g. ``folder glue/qnli``.
        builtin: True for the generated corpus.
    """

    task: Task
    train: Rows
    dev: dict[str, Rows]
    origin: str
    builtin: bool


def load_source(
    task_name: str, data: str | None, custom: CustomTaskConfig, say: Callable[[str], None]
) -> Source:
    """Load a task's rows: ``--data DIR``; else the hub or its cache; else the built-in corpus.

    Args:
        task_name: a name of the table of tasks, or ``custom``.
        data: a folder, ``hub``, ``builtin``, or None for the hub and then the built-in corpus.
        custom: the task's columns and labels where ``task_name`` is ``custom``.
        say: told which source stands in for one that could not be had.

    Raises:
        UsageError: unknown task, folder or file; unreadable, empty, unlabelled or one-class data;
            settings that contradict each other.
    """
    if task_name == "custom":
        task = custom_task(custom)
        if data in (None, "hub", "builtin"):
            raise UsageError(
                "--task custom: give --data DIR with your train and dev files; "
                "the hub and the built-in corpus have none."
            )
    else:
        task = get_task(task_name)
        if asdict(custom) != asdict(CustomTaskConfig()):
            raise UsageError(
                f"--custom: its settings have no effect on --task {task_name}; "
                f"leave them out, or use --task custom."
            )
    source = _load(task, data, say)
    _check_labels(source)
    return source


def _load(task: Task, data: str | None, say: Callable[[str], None]) -> Source:
    if data is not None and data not in ("hub", "builtin"):
        train, dev, folder = read_folder(task, data, say)
        return Source(task, train, dev, f"folder {folder}", builtin=False)
    if data != "builtin" and task.hub is not None:
        try:
            return Source(task, *read_hub(task, say), f"hub {task.hub[0]}", builtin=False)
        except HubUnavailableError as error:
            if data == "hub":
                raise
            say(
                f"{error} Using the built-in corpus {CORPUS_NAME}: "
                f"its figures are not scores of {task.name}."
            )
    return Source(task, *corpus(task), f"built-in corpus {CORPUS_NAME}", builtin=True)


def _check_labels(source: Source) -> None:
    for name, rows in {"train": source.train, **source.dev}.items():
        if rows.labels is None:
            none = "no answers" if source.task.is_span else "no labels (all are -1)"
            raise UsageError(
                f"--data: {source.origin}: split {name} has {none}, so it cannot "
                f"be trained on or scored. Give labelled files; label others with ksel.predict."
            )
    _check_classes(source.train, source.task, f"--data: {source.origin}: the train split")


def _check_classes(train: Rows, task: Task, where: str) -> None:
    assert train.labels is not None
    if task.is_span:
        if not train.labels.any():
            raise UsageError(
                f"{where} holds no question that has an answer; there is nothing to learn. Add "
                f"some."
            )
        return
    present = np.unique(train.labels)
    if len(present) < 2:
        only = f"score {present[0]:g}" if task.is_regression else f"class {task.labels[present[0]]}"
        raise UsageError(
            f"{where} holds only the {only}; there is nothing to learn. Add rows with other labels."
        )


def limit_train(source: Source, rows: RowsConfig) -> Source:
    """Keep at most ``rows.train`` training rows, a stratified draw that is the same for every seed.

    Raises:
        UsageError: ``rows.train`` is below 1, or leaves one class.
    """
    if rows.train is not None and rows.train < 1:
        raise UsageError(f"--rows.train: {rows.train} rows; give 1 or more.")
    train = _draw(source.train, rows.train, source.task, np.random.default_rng([0, 1]))
    _check_classes(train, source.task, f"--rows.train: a draw of {len(train)} rows")
    return replace(source, train=train)


def three_way(
    source: Source, rows: RowsConfig, seed: int, batch_size: int = 1
) -> tuple[Rows, Rows, dict[str, Rows]]:
    """Split into train, reward and dev rows.

    The reward rows are taken out of the training rows, so the two are disjoint; the dev rows are
    the benchmark's own. Draws are stratified by class, by score quantile for regression, and for
    spans by whether there is an answer.
    ``rows.train`` (see :func:`limit_train`) and ``rows.dev`` are upper bounds.

    Args:
        source: labelled rows.
        rows: sizes (rows); None = all.
        seed: seed of the reward draw; the dev rows are the same for every seed.
        batch_size: examples of one update; as many must be left to train on.

    Returns:
        Train rows, reward rows, dev split name -> rows; each in the order of its file.

    Raises:
        UsageError: a size below 1, a reward split that leaves less than one batch to train on, or
            a train split left with one class.
    """
    for name in ("train", "reward", "dev", "dev_on_the_way"):
        size = getattr(rows, name)
        if size is not None and size < 1:
            raise UsageError(f"--rows.{name}: {size} rows; give 1 or more.")
    pool = limit_train(source, rows).train
    left = len(pool) - rows.reward
    if left < batch_size:
        raise UsageError(
            f"--rows.reward: {rows.reward} of {len(pool)} training rows leave {max(left, 0)}, less "
            f"than one batch of {batch_size}. Lower --rows.reward or --batching.size, or raise "
            f"--rows.train."
        )
    assert pool.labels is not None
    strata = _strata(pool.labels, source.task)
    chosen = _stratified(strata, rows.reward, np.random.default_rng([seed, 2]))
    train = pool.take(np.setdiff1d(np.arange(len(pool)), chosen))
    _check_classes(
        train, source.task, f"--rows.train, --rows.reward: a train split of {len(train)}"
    )
    dev = {
        name: _draw(split, rows.dev, source.task, np.random.default_rng([0, 3]))
        for name, split in source.dev.items()
    }
    return train, pool.take(chosen), dev


def _draw(rows: Rows, size: int | None, task: Task, rng: np.random.Generator) -> Rows:
    if size is None or size >= len(rows):
        return rows
    assert rows.labels is not None
    return rows.take(_stratified(_strata(rows.labels, task), size, rng))


def _strata(labels: np.ndarray, task: Task) -> np.ndarray:
    if not task.is_regression:
        return labels
    edges = np.quantile(labels, np.linspace(0, 1, SCORE_BINS + 1)[1:-1])
    return np.digitize(labels, np.unique(edges))


def _stratified(strata: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted numbers of ``size`` rows, shares of the strata kept to the nearest row."""
    values, counts = np.unique(strata, return_counts=True)
    exact = counts * size / len(strata)
    quota = np.floor(exact).astype(np.int64)
    # largest remainders; the stable sort gives ties to the first stratum
    by_remainder = np.argsort(quota - exact, kind="stable")
    quota[by_remainder[: size - quota.sum()]] += 1
    parts = [
        rng.choice(np.flatnonzero(strata == value), number, replace=False)
        for value, number in zip(values, quota, strict=True)
    ]
    return np.sort(np.concatenate(parts))


@dataclass
class Split:
    """Tokenised examples; for spans their windows, of which an example may have several.

    Attributes:
        input_ids: N arrays [n] int64, special tokens in, no padding.
        token_type_ids: N arrays [n] int64, or None where the model has no segments.
        labels: [N] int64 class ids or float32 scores, [N, 2] int64 first and last token of the
            answer for spans ((0, 0) where the window has none), or None.
        lengths: [N] int64, tokens of each.
        pad_token_id: what :meth:`batch` fills up with.
        regression: True if labels are scores.
        spans: spans: how windows, examples and characters belong together; else None.
    """

    input_ids: list[np.ndarray]
    token_type_ids: list[np.ndarray] | None
    labels: Tensor | None
    lengths: np.ndarray
    pad_token_id: int
    regression: bool = False
    spans: Spans | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_examples(self) -> int:
        """Raw rows behind it: for spans the questions, else as many as there are examples."""
        return len(self) if self.spans is None else len(self.spans)

    def batch(self, index: np.ndarray) -> Batch:
        """Pad the rows with these numbers to the longest of them.

        Without labels the batch has -1 for each class or position, nan for each score.
        """
        index = np.ascontiguousarray(index, dtype=np.int64)
        lengths = self.lengths[index]
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]
        types = self.token_type_ids
        if self.labels is not None:
            labels = self.labels[torch.from_numpy(index)]
        elif self.regression:
            labels = torch.full((len(index),), float("nan"))
        else:
            labels = torch.full((len(index),) if self.spans is None else (len(index), 2), -1)
        return Batch(
            ids=torch.from_numpy(index.copy()),
            input_ids=_fill(mask, [self.input_ids[i] for i in index], self.pad_token_id),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            token_type_ids=None if types is None else _fill(mask, [types[i] for i in index], 0),
            labels=labels,
        )

    def take(self, index: np.ndarray) -> Split:
        """The rows with these numbers, numbered anew from 0."""
        # torch takes no views that run backwards, nor plain lists
        index = np.ascontiguousarray(np.arange(len(self))[index])
        types = self.token_type_ids
        return replace(
            self,
            input_ids=[self.input_ids[i] for i in index],
            token_type_ids=None if types is None else [types[i] for i in index],
            labels=None if self.labels is None else self.labels[torch.from_numpy(index)],
            lengths=self.lengths[index],
            spans=None if self.spans is None else self.spans.take(index),
        )

    def examples(self, rows: np.ndarray) -> Split:
        """What was made of the raw rows with these numbers: for spans all their windows."""
        return self.take(self.numbers(rows))

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of what was made of these raw rows: for spans of all their windows."""
        if self.spans is None:
            return np.arange(len(self))[rows]
        return self.spans.windows(np.arange(len(self.spans))[rows])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all lengths, token ids and segments; labels do not count."""
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
        for part in (self.input_ids, self.token_type_ids):
            digest.update(b"none" if part is None else b"rows")
            for row in part or ():
                digest.update(row.astype("<i8").tobytes())
        return digest.hexdigest()


def _fill(mask: np.ndarray, rows: list[np.ndarray], padding: int) -> Tensor:
    filled = np.full(mask.shape, padding, dtype=np.int64)
    filled[mask] = np.concatenate(rows)
    return torch.from_numpy(filled)


def tokenize(
    rows: Rows, task: Task, tokenizer: Any, max_length: int, span: SpanConfig | None = None
) -> Split:
    """Turn rows into token ids.

    Args:
        rows: raw examples.
        task: decides between class ids, scores and spans.
        tokenizer: a Hugging Face tokenizer with a padding token.
        max_length: longest sequence (tokens, special ones included); longer texts are cut, of a
            pair the longer text first; long contexts of questions are cut into windows instead.
        span: how windows are cut; None = as by default.

    Raises:
        UsageError: ``max_length`` has no room for text, the tokenizer has no padding token or (for
            spans) no offsets, or ``span`` is out of range or without effect.
    """
    span = SpanConfig() if span is None else span
    check_span(span, task)
    if tokenizer.pad_token_id is None:
        raise UsageError("--teacher: its tokenizer has no padding token; choose an encoder's.")
    if task.is_span:
        return _tokenize_spans(rows, tokenizer, max_length, span)
    special = tokenizer.num_special_tokens_to_add(pair=rows.pairs is not None)
    texts = 1 if rows.pairs is None else 2
    if max_length < special + texts:
        raise UsageError(
            f"--batching.max_length: {max_length} tokens leave no room beside {special} special "
            f"ones; give {special + texts} or more."
        )
    encoded = tokenizer(
        rows.texts,
        rows.pairs,
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,
    )
    input_ids = [np.asarray(row, dtype=np.int64) for row in encoded["input_ids"]]
    types = encoded.get("token_type_ids")
    return Split(
        input_ids=input_ids,
        token_type_ids=types and [np.asarray(row, dtype=np.int64) for row in types],
        labels=None if rows.labels is None else torch.from_numpy(rows.labels.copy()),
        lengths=np.array([len(row) for row in input_ids], dtype=np.int64),
        pad_token_id=int(tokenizer.pad_token_id),
        regression=task.is_regression,
    )


def _tokenize_spans(rows: Rows, tokenizer: Any, max_length: int, span: SpanConfig) -> Split:
    windows = cut_windows(rows, tokenizer, max_length, span)
    return Split(
        input_ids=windows.input_ids,
        token_type_ids=windows.token_type_ids,
        labels=None if windows.labels is None else torch.from_numpy(windows.labels),
        lengths=np.array([len(row) for row in windows.input_ids], dtype=np.int64),
        pad_token_id=int(tokenizer.pad_token_id),
        spans=windows.spans,
    )


def evaluation_batches(split: Split, size: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of like length, the longest first; every row once.

    Raises:
        UsageError: ``size`` below 1.
    """
    if size < 1:
        raise UsageError(f"--batching.eval_size: {size}; give 1 or more.")
    order = np.argsort(-split.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
