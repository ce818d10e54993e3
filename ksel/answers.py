"""Gold answers of extractive question answering: read them, and check that they stand in their texts."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

NEAR = 2
"""An answer this many characters beside its ``answer_start`` is taken where it stands."""

COLUMNS = ("id", "title", "context", "question", "answers")
"""Columns of the tables made of SQuAD's original files."""


@dataclass(frozen=True)
class Answers:
    """The gold answers of one question; none if it cannot be answered.

    Attributes:
        texts: the answers.
        starts: for each the number of its first character in the context.
    """

    texts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)


def parse_answers(value: Any) -> Answers:
    """Read one cell of a column of answers.

    Args:
        value: ``{"text": [...], "answer_start": [...]}`` as on the hub, a list of
            ``{"text": ..., "answer_start": ...}`` as in the original files, or either as JSON text.

    Raises:
        ValueError: it is none of these; the message says what is wrong.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{_short(value)} is not JSON ({error})") from None
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, list | tuple | np.ndarray) and all(isinstance(v, dict) for v in value):
        texts, starts = [v.get("text") for v in value], [v.get("answer_start") for v in value]
    else:
        raise ValueError(_needed(value))
    if not (_is_list(texts) and _is_list(starts)) or len(texts) != len(starts):  # type: ignore[arg-type]
        raise ValueError(_needed(value))
    assert texts is not None
    assert starts is not None
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the answer {text!r} is not text, or is empty")
        if not _is_count(start):
            raise ValueError(f"answer_start is {start!r}, not the number of a character")
    return Answers(tuple(texts), tuple(int(start) for start in starts))


def _needed(value: Any) -> str:
    return f'{_short(value)} is not of the form {{"text": [...], "answer_start": [...]}}'


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 80, placeholder="...")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_count(value: Any) -> bool:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return False
    return math.isfinite(value) and bool(value == int(value)) and bool(value >= 0)


def place_answers(answers: Answers, context: str) -> Answers:
    """Make sure that each answer stands in the context where it says it does.

    Some files count characters a little differently; an answer that stands at most :data:`NEAR`
    characters beside its start is moved there.

    Returns:
        The answers; the same object if nothing had to be moved.

    Raises:
        ValueError: an answer is not where it should be; the message says where it is, if anywhere.
    """
    starts = tuple(map(lambda t, s: _place(t, s, context), answers.texts, answers.starts))
    return answers if starts == answers.starts else replace(answers, starts=starts)


def _place(text: str, start: int, context: str) -> int:
    for near in sorted(range(max(0, start - NEAR), start + NEAR + 1), key=lambda s: abs(s - start)):
        if context.startswith(text, near):
            return near
    found = context.find(text)
    where = f"it stands at {found}" if found >= 0 else "it stands nowhere in the context"
    there = context[start : start + len(text)]
    raise ValueError(f"the answer {text!r} is not at character {start} ({there!r} is); {where}")


def official_table(articles: Sequence[Any]) -> pd.DataFrame:
    """The questions of one of SQuAD's original JSON files as a table with :data:`COLUMNS`.

    Questions marked ``is_impossible`` have no answers, whatever is plausible. A file without any
    answers has no such column.

    Args:
        articles: what stands under ``data``.

    Raises:
        ValueError: it is not of that form.
    """
    rows = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    rows.append(_official_row(article, paragraph, question))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"it is not of SQuAD's form, data: [paragraphs: [context, qas: [id, question, answers]]] "
            f"({type(error).__name__}: {error})"
        ) from error
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    return table.drop(columns="answers") if table["answers"].isna().all() else table


def _official_row(article: Any, paragraph: Any, question: Any) -> tuple[Any, ...]:
    answers = [] if question.get("is_impossible") else question.get("answers")
    title = article.get("title", "")
    return question["id"], title, paragraph["context"], question["question"], answers
