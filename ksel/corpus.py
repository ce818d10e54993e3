"""The built-in corpus: generated examples for every task, so that ksel runs without any data.

Every text is made of a template and words drawn from the classes below. What a label depends on is
how the classes of two places agree; only an easy part of the rows is given away by single words.
Figures measured on it say nothing about GLUE.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import numpy as np

from ksel.rows import Rows
from ksel.span_corpus import span_rows
from ksel.tasks import Task
from ksel.words import (
    ADJECTIVES,
    ANSWERS,
    BLAME,
    CLAIMS,
    DEEDS,
    DENIED,
    GENERAL,
    LINKS,
    MANY,
    NO_ANSWER,
    NOUNS,
    ONE,
    PHRASES,
    PLAIN,
    PRAISE,
    QUESTIONS,
    SHOW,
    THINGS,
    VERBS,
    Rng,
    capital,
    other,
    pick,
)

CORPUS_NAME = "ksel-corpus-v1"
"""Name and version; a change of any generated row needs a new version."""

TRAIN_ROWS = 4000
DEV_ROWS = 800

TOPIC_DIFFERS = 0.1
"""Share of the pairs that do not fit in which the topic differs; in the others the kind does."""
NO_ANSWER_SHARE = 0.5
"""Share of the questions without a fitting sentence whose sentence holds no answer at all."""

Row = tuple[str, str | None, float]


def _topic_and_kind(rng: Rng, agree: bool) -> tuple[str, str, str, str]:
    """Topic and kind of the one text, then of the other; one of the two differs unless agreeing."""
    topic, kind = pick(rng, tuple(THINGS)), pick(rng, tuple(ANSWERS))
    if agree:
        return topic, kind, topic, kind
    if rng.random() < TOPIC_DIFFERS:
        return topic, kind, other(rng, tuple(THINGS), topic), kind
    return topic, kind, topic, other(rng, tuple(ANSWERS), kind)


def _statement(rng: Rng, topic: str, kind: str | None) -> str:
    """A sentence of a topic, with an answer of a kind (None: with none)."""
    thing = f"the {pick(rng, ADJECTIVES)} {pick(rng, THINGS[topic])}"
    if kind is None:
        answer = pick(rng, NO_ANSWER)
    else:
        answer = pick(rng, PHRASES[kind]).format(pick(rng, ANSWERS[kind]))
    return f"{thing} was {pick(rng, DEEDS[topic])} {answer}."


def _question_pair(rng: Rng, label: int) -> Row:
    """1: the sentence is on the question's topic and holds an answer of the kind asked for.

    0: it holds no answer (the easy half of these, which single words give away), one of another
    kind, or it is of another topic.
    """
    topic, kind, other_topic, other_kind = _topic_and_kind(rng, agree=label == 1)
    answered = label == 1 or rng.random() >= NO_ANSWER_SHARE
    if not answered:
        other_topic = topic
    thing = f"the {pick(rng, ADJECTIVES)} {pick(rng, GENERAL[topic])}"
    question = f"{pick(rng, QUESTIONS[kind])} {thing} {pick(rng, DEEDS[topic])}?"
    return question, _statement(rng, other_topic, other_kind if answered else None), label


def _claim_pair(rng: Rng, label: int) -> Row:
    """0: the claim follows from the premise; 1: it is of another topic or kind; 2: it is denied."""
    topic, kind, other_topic, other_kind = _topic_and_kind(rng, agree=label != 1)
    denied = label == 2 or (label == 1 and rng.random() < 0.5)
    return _statement(rng, topic, kind), _claim(rng, other_topic, other_kind, denied), label


def _claim(rng: Rng, topic: str, kind: str, denied: bool) -> str:
    verb = "tells no" if denied else "tells the"
    return f"the report on the {pick(rng, GENERAL[topic])} {verb} {pick(rng, CLAIMS[kind])}."


def _graded_pair(rng: Rng, label: int) -> Row:
    """Score 0 to 5: 3 for the same kind of answer, 1 for the same topic, 1 for a claim not denied."""
    same_kind, rest = divmod(label, 3)
    same_topic = rest == 2 or (rest == 1 and rng.random() < 0.5)
    denied = rest == 0 or (rest == 1 and same_topic)
    topic, kind = pick(rng, tuple(THINGS)), pick(rng, tuple(ANSWERS))
    other_topic = topic if same_topic else other(rng, tuple(THINGS), topic)
    other_kind = kind if same_kind else other(rng, tuple(ANSWERS), kind)
    return _statement(rng, topic, kind), _claim(rng, other_topic, other_kind, denied), label


def _review(rng: Rng, label: int) -> Row:
    """1: the main clause praises, or denies a fault; a second clause is there to distract."""
    denied = rng.random() < 0.35
    main = _clause(rng, praise=bool(label) != denied, denied=denied)
    aside = _clause(rng, praise=rng.random() < 0.5, denied=False)
    forms = (f"{main}, although {aside}.", f"although {aside}, {main}.", f"{aside}, but {main}.")
    return pick(rng, forms), None, label


def _clause(rng: Rng, praise: bool, denied: bool) -> str:
    verb = pick(rng, DENIED if denied else PLAIN)
    return f"the {pick(rng, SHOW)} {verb} {pick(rng, PRAISE if praise else BLAME)}"


def _agreement(rng: Rng, label: int) -> Row:
    """1: determiner, noun and verb agree in number; a noun between them need not.

    0: one of the two does not agree, or there is no verb (which single words give away).
    """
    plural = rng.random() < 0.5
    wrong = None if label else pick(rng, ("determiner", "verb", "missing verb"))
    determiner = pick(rng, MANY if plural != (wrong == "determiner") else ONE)
    noun = pick(rng, NOUNS) + ("s" if plural else "")
    between = pick(rng, NOUNS) + pick(rng, ("", "s"))
    verb = pick(rng, VERBS) + ("" if plural != (wrong == "verb") else "s")
    if wrong == "missing verb":
        verb = pick(rng, ADJECTIVES)
    thing = f"the {pick(rng, ADJECTIVES)} {pick(rng, NOUNS)}"
    return f"{determiner} {noun} {pick(rng, LINKS)} the {between} {verb} {thing}.", None, label


def _generator(task: Task) -> tuple[Callable[[Rng, int], Row], tuple[int, ...]]:
    """The task's generator, and the generator's label for each of the task's classes."""
    if task.is_regression:
        return _graded_pair, tuple(range(6))
    if task.text_pair is None:
        return (_agreement if "acceptable" in task.labels else _review), (0, 1)
    if len(task.labels) == 3:
        return _claim_pair, (0, 1, 2)
    positive_first = task.labels[1].startswith("not_")
    return _question_pair, (1, 0) if positive_first else (0, 1)


def corpus(task: Task, seed: int = 0) -> tuple[Rows, dict[str, Rows]]:
    """Generate a task's rows.

    Classes are equally frequent, texts of 8 to 30 words. Pairs: a question and a sentence that
    may answer it (two classes; 1 of MRPC, QQP and their like is the pair that fits), a statement
    and a claim (MNLI), the same with a score (STS-B). Single texts: reviews (SST-2), agreement
    in number (CoLA). Spans: see :mod:`ksel.span_corpus`.

    Args:
        task: one of the table of tasks; decides the form.
        seed: a corpus of the same kind for every seed; 0 is the benchmark.

    Returns:
        :data:`TRAIN_ROWS` training rows; dev split name -> :data:`DEV_ROWS` rows that are not
        among the training rows.
    """
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
    if task.is_span:
        return span_rows(task, rng, TRAIN_ROWS, DEV_ROWS)
    generate, labels = _generator(task)
    seen: set[tuple[str, str | None]] = set()

    def rows(number: int) -> Rows:
        """The next ``number`` rows, none of them a row made before."""
        classes = rng.permutation(np.arange(number) % len(labels))
        made = []
        for one in classes:
            row = generate(rng, labels[one])
            while row[:2] in seen:
                row = generate(rng, labels[one])
            seen.add(row[:2])
            made.append(row)
        texts = [capital(first) for first, _, _ in made]
        pairs = [capital(second) for _, second, _ in made if second is not None]
        target = np.float32 if task.is_regression else np.int64
        return Rows(texts, pairs or None, classes.astype(target), np.arange(number))

    train = rows(TRAIN_ROWS)
    return train, {name: rows(DEV_ROWS) for name in task.dev_splits}


def vocabulary() -> list[str]:
    """All words and punctuation marks of the corpus in lower case, sorted."""
    texts = [
        ", . ? the was what tells no report on although but",
        *ADJECTIVES, *PRAISE, *BLAME, *SHOW, *PLAIN, *DENIED, *ONE, *MANY,
        *LINKS,
        *NOUNS, *(noun + "s" for noun in NOUNS), *VERBS, *(verb + "s" for verb in VERBS),
    ]  # fmt: skip
    texts += NO_ANSWER
    for table in (THINGS, DEEDS, GENERAL, QUESTIONS, PHRASES, ANSWERS, CLAIMS):
        texts += [text for words in table.values() for text in words]
    return sorted({word for text in texts for word in re.findall(r"\w+|[,.?]", text.lower())})
