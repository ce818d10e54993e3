"""Raw examples: the texts, labels and answers of a table, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ksel.answers import NEAR, Answers, parse_answers, place_answers
from ksel.errors import UsageError
from ksel.readers import read_frame
from ksel.tasks import Task


@dataclass(frozen=True)
class Rows:
    """The raw examples of one split.

    Attributes:
        texts: the text, the first text of the pair, or the question.
        pairs: the second texts, or the contexts of the questions; None for single texts.
        labels: [N] int64 class ids or float32 scores, for spans int64 1 where there is an answer
            and 0 where there is none; None where the split has no labels.
        idx: [N] int64, the ``idx`` column where the file has one, else the row number in the file.
        answers: spans: the gold answers; None where the split has no labels.
        ids: spans: the ``id`` column, with the row's ``idx`` where it is missing; None = all ``idx``.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray | None
    idx: np.ndarray
    answers: list[Answers] | None = None
    ids: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: np.ndarray) -> Rows:
        """The rows with these numbers, in this order."""

        def some(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[i] for i in index]

        return Rows(
            [self.texts[i] for i in index],
            some(self.pairs),
            None if self.labels is None else self.labels[index],
            self.idx[index],
            some(self.answers),
            some(self.ids),
        )


def read_rows(
    path: Path,
    task: Task,
    labelled: bool,
    option: str = "--data",
    say: Callable[[str], None] | None = None,
) -> Rows:
    """Read one file of examples.

    Args:
        path: a parquet, csv, tsv or jsonl file with the task's columns, or one of SQuAD's
            original JSON files.
        task: names the columns and the classes.
        labelled: read the labels; False ignores the label column and does not ask for one.
        option: the option that named the file, for error messages.
        say: told what was mended; None = nobody.

    Returns:
        The rows; ``labels`` is None if not asked for, or if every label is -1 (GLUE's test sets).

    Raises:
        UsageError: no such file, an unreadable, half-written or empty one, a missing column, a
            missing text, a label outside the task's table, an answer that is not in its context.
    """
    return frame_rows(read_frame(path, option), task, labelled, f"{option}: {path}", say)


def frame_rows(
    frame: pd.DataFrame,
    task: Task,
    labelled: bool,
    where: str,
    say: Callable[[str], None] | None = None,
) -> Rows:
    """Take a table's text and label columns; arguments and errors as :func:`read_rows`."""
    if frame.empty:
        raise UsageError(f"{where} has no rows; supply a file with at least one.")
    _check_columns(frame, task, labelled, where)
    rows = Rows(
        _texts(frame, task.text, where),
        None if task.text_pair is None else _texts(frame, task.text_pair, where),
        None,
        _idx(frame),
    )
    if task.is_span:
        rows = replace(rows, ids=_ids(frame, rows.idx))
    if not labelled:
        return rows
    values = frame[task.label].tolist()
    if not task.is_span:
        return replace(rows, labels=_labels(values, task, where))
    answers = _answers(values, rows, task, where, say)
    has_answer = None if answers is None else np.array([len(a) > 0 for a in answers], np.int64)
    return replace(rows, labels=has_answer, answers=answers)


def _check_columns(frame: pd.DataFrame, task: Task, labelled: bool, where: str) -> None:
    wanted = [task.text, task.text_pair, task.label if labelled else None]
    missing = [name for name in wanted if name is not None and name not in frame.columns]
    if not missing:
        return
    if not labelled:
        fix = "rename the columns to those that the student was trained on"
    elif task.name == "custom":
        fix = "set --custom.text, --custom.text_pair, --custom.label"
    else:
        fix = (
            "rename the columns, or use --task custom with --custom.text, --custom.text_pair, "
            "--custom.label"
        )
    raise UsageError(
        f"{where} has no column {', '.join(map(repr, missing))} for task {task.name}. "
        f"It has: {', '.join(map(str, frame.columns))}; {fix}."
    )


def _texts(frame: pd.DataFrame, column: str, where: str) -> list[str]:
    texts = frame[column].tolist()
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            what = "is missing" if _is_missing(text) else f"is not text but {text!r}"
            raise UsageError(
                f"{where}: column '{column}' {what} in data row {number}; fill or remove the row."
            )
    return texts


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _labels(values: Sequence[Any], task: Task, where: str) -> np.ndarray | None:
    low, high = task.score_range
    names = {name: float(number) for number, name in enumerate(task.labels)}
    parsed = np.array([_label_number(value, names) for value in values], dtype=np.float64)
    if task.is_regression:
        # written so that nan counts as wrong
        wrong = ~((parsed >= low) & (parsed <= high))
        valid = f"scores from {low:g} to {high:g}"
    else:
        wrong = ~np.isin(parsed, np.arange(len(task.labels)))
        valid = f"{', '.join(task.labels)}, or their numbers 0 to {len(task.labels) - 1}"
    if wrong.all() and (parsed == -1).all():
        return None
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        option = "--custom.labels or --custom.score_range" if task.name == "custom" else "--task"
        raise UsageError(
            f"{where}: label {values[row]!r} in data row {row + 1} is outside task {task.name}'s "
            f"labels ({valid}); correct the file, or {option}."
        )
    return parsed.astype(np.float32 if task.is_regression else np.int64)


def _label_number(value: Any, names: dict[str, float]) -> float:
    text = str(value).strip()
    if text in names:
        return names[text]
    try:
        return float(text) if not isinstance(value, bool) else float(value)
    except ValueError:
        return math.nan


def _answers(
    values: Sequence[Any], rows: Rows, task: Task, where: str, say: Callable[[str], None] | None
) -> list[Answers] | None:
    assert rows.pairs is not None
    found, moved = [], 0
    for number, (value, context) in enumerate(zip(values, rows.pairs, strict=True), start=1):
        try:
            given = parse_answers(value)
            placed = place_answers(given, context)
        except ValueError as error:
            raise UsageError(
                f"{where}: column '{task.label}' in data row {number}: {error}. Correct or remove "
                f"the row."
            ) from error
        moved += placed is not given
        found.append(placed)
    if task.unanswerable or all(found):
        if moved and say is not None:
            say(
                f"{where}: in {moved:,} rows an answer stands up to {NEAR} characters beside its "
                f"answer_start; it is taken where it stands"
            )
        return found
    if not any(found):
        return None
    row = next(number for number, one in enumerate(found, start=1) if not one)
    fix = "--custom.kind span_v2" if task.name == "custom" else "--task squad_v2"
    raise UsageError(
        f"{where}: column '{task.label}' in data row {row} has no answer, and in task {task.name} "
        f"every question has one. Remove the row, or use {fix}, where questions may have none."
    )


def _ids(frame: pd.DataFrame, idx: np.ndarray) -> list[str]:
    given = frame["id"].tolist() if "id" in frame.columns else [None] * len(frame)
    return [
        str(number) if _is_missing(value) else str(value)
        for value, number in zip(given, idx, strict=True)
    ]


def _idx(frame: pd.DataFrame) -> np.ndarray:
    if "idx" in frame.columns:
        numbers = pd.to_numeric(frame["idx"], errors="coerce")
        if bool(numbers.notna().all()) and bool((numbers % 1 == 0).all()):
            return numbers.to_numpy().astype(np.int64)
    return np.arange(len(frame), dtype=np.int64)
