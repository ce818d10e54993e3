"""The built-in corpus of extractive question answering: contexts of a few statements, and questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ksel.answers import Answers
from ksel.rows import Rows
from ksel.tasks import Task
from ksel.words import (
    ADJECTIVES,
    ANSWERS,
    DEEDS,
    PHRASES,
    QUESTIONS,
    THINGS,
    Rng,
    capital,
    pick,
)

STATEMENTS = (3, 4)
"""Fewest and most statements of a context."""

SAME_TOPIC = 0.2
"""Share of the contexts in which two statements are on one topic; else each has its own."""

KINDS = 2
"""Kinds of answers of a context, so that the kind asked for rarely points to one statement."""

WHAT = 0.25
"""Share of the questions with an answer that ask for the thing, not for what is said of it."""

NO_ANSWER_SHARE = 1 / 3
"""Share of the questions without an answer, where a task has such."""

ELSEWHERE = 0.5
"""Share of these that ask of a thing what is said of another one; the others ask about a thing that
the context does not name."""


@dataclass(frozen=True)
class Fact:
    """One statement of a context: ``the old song was sung by Anna.``

    Attributes:
        topic: what thing and deed have in common.
        thing: what it is about, with article and adjective.
        deed: what was done to it.
        kind: the kind of its answer.
        answer: the answer.
        phrase: how the answer is given.
    """

    topic: str
    thing: str
    deed: str
    kind: str
    answer: str
    phrase: str

    def text(self) -> str:
        """The statement."""
        return capital(f"{self.thing} was {self.deed} {self.phrase}.")

    def place(self) -> int:
        """Where the answer starts in the statement (characters)."""
        return len(self.text()) - len(f"{self.phrase}.") + self.phrase.index(self.answer)


def _facts(rng: Rng) -> list[Fact]:
    """Statements about different things; no deed and no answer comes twice."""
    count = int(rng.integers(STATEMENTS[0], STATEMENTS[1] + 1))
    topics = [str(topic) for topic in rng.permutation(list(THINGS))[:count]]
    if rng.random() < SAME_TOPIC:
        topics[int(rng.integers(1, count))] = topics[0]
    things = {topic: list(rng.permutation(THINGS[topic])) for topic in topics}
    deeds = {topic: list(rng.permutation(DEEDS[topic])) for topic in topics}
    answers = {kind: list(rng.permutation(ANSWERS[kind])) for kind in ANSWERS}
    kinds = [str(kind) for kind in rng.permutation(list(ANSWERS))[:KINDS]]
    facts = []
    for topic in topics:
        kind = pick(rng, kinds)
        answer = str(answers[kind].pop())
        facts.append(
            Fact(
                topic,
                f"the {pick(rng, ADJECTIVES)} {things[topic].pop()}",
                str(deeds[topic].pop()),
                kind,
                answer,
                pick(rng, PHRASES[kind]).format(answer),
            )
        )
    return facts


def _row(rng: Rng, answered: bool) -> tuple[str, str, Answers]:
    """Question, context, and the answer or none."""
    facts = _facts(rng)
    number = int(rng.integers(len(facts)))
    fact = facts[number]
    context = " ".join(one.text() for one in facts)
    if not answered:
        return capital(_impossible(rng, facts, fact)), context, Answers()
    begin = sum(len(one.text()) + 1 for one in facts[:number])
    if rng.random() < WHAT:
        question = f"what was {fact.deed} {fact.phrase}?"
        answer = Answers((capital(fact.thing),), (begin,))
    else:
        question = f"{pick(rng, QUESTIONS[fact.kind])} {fact.thing} {fact.deed}?"
        answer = Answers((fact.answer,), (begin + fact.place(),))
    return capital(question), context, answer


def _impossible(rng: Rng, facts: list[Fact], fact: Fact) -> str:
    """A question that the context does not answer: of a fact, or of something it does not name."""
    elsewhere = sorted({one.kind for one in facts} - {fact.kind})
    if elsewhere and rng.random() < ELSEWHERE:
        return f"{pick(rng, QUESTIONS[pick(rng, elsewhere)])} {fact.thing} {fact.deed}?"
    absent = [topic for topic in THINGS if all(one.topic != topic for one in facts)]
    topic = pick(rng, absent or tuple(THINGS))
    named = {one.thing.split()[-1] for one in facts}
    thing = pick(rng, [one for one in THINGS[topic] if one not in named])
    done = {one.deed for one in facts}
    deed = pick(rng, [one for one in DEEDS[topic] if one not in done])
    return f"{pick(rng, QUESTIONS[fact.kind])} the {pick(rng, ADJECTIVES)} {thing} {deed}?"


def span_rows(task: Task, rng: Rng, train: int, dev: int) -> tuple[Rows, dict[str, Rows]]:
    """Generate questions on contexts.

    A context holds 3 or 4 statements, each about another thing and with one answer (a person, a
    place, a time or a number; two of these kinds in a context). A question asks for one of the answers, or for a thing. Of a task
    whose questions may have no answer, a third have none.

    Args:
        task: of kind span; decides whether questions may have no answer.
        rng: decides everything else.
        train, dev: numbers of rows.

    Returns:
        Training rows; dev split name -> rows that are not among the training rows.
    """
    seen: set[tuple[str, str]] = set()

    def rows(split: str, number: int) -> Rows:
        none = int(number * NO_ANSWER_SHARE) if task.unanswerable else 0
        has_answer = rng.permutation(np.arange(number) >= none).astype(np.int64)
        made = []
        for answered in has_answer:
            row = _row(rng, bool(answered))
            while row[:2] in seen:
                row = _row(rng, bool(answered))
            seen.add(row[:2])
            made.append(row)
        return Rows(
            [question for question, _, _ in made],
            [context for _, context, _ in made],
            has_answer,
            np.arange(number),
            [answer for _, _, answer in made],
            [f"{split}-{i}" for i in range(number)],
        )

    return rows("train", train), {name: rows(name, dev) for name in task.dev_splits}
