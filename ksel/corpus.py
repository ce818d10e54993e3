"""The built-in corpus: generated examples for every task, so that ksel runs without any data.

Every text is made of a template and words drawn from the classes below. What a label depends on is
how the classes of two places agree; only an easy part of the rows is given away by single words.
Figures measured on it say nothing about GLUE.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from ksel.sources import Rows
from ksel.tasks import Task

CORPUS_NAME = "ksel-corpus-v1"
"""Name and version; a change of any generated row needs a new version."""

TRAIN_ROWS = 4000
DEV_ROWS = 800

TOPIC_DIFFERS = 0.1
"""Share of the pairs that do not fit in which the topic differs; in the others the kind does."""
NO_ANSWER_SHARE = 0.5
"""Share of the questions without a fitting sentence whose sentence holds no answer at all."""

Words = tuple[str, ...]


def _words(text: str) -> Words:
    return tuple(text.split())


THINGS: dict[str, Words] = {
    "music": _words(
        "song opera symphony ballad concerto waltz melody anthem sonata choir violin "
        "piano trumpet flute guitar orchestra"
    ),
    "kitchen": _words(
        "soup bread cake stew pie salad omelette pudding sauce pizza roast curry noodle "
        "dumpling pancake broth"
    ),
    "medicine": _words(
        "patient disease fever infection wound vaccine tumor surgery clinic hospital "
        "injury virus medicine therapy drug diagnosis"
    ),
    "space": _words(
        "planet comet star galaxy rocket satellite telescope moon asteroid orbit nebula "
        "probe meteor eclipse spacecraft observatory"
    ),
}
"""Topic -> things."""

DEEDS: dict[str, Words] = {
    "music": _words("composed sung performed rehearsed conducted tuned hummed played"),
    "kitchen": _words("cooked baked fried seasoned boiled tasted stirred grilled"),
    "medicine": _words("treated cured diagnosed examined vaccinated healed bandaged prescribed"),
    "space": _words("observed photographed orbited discovered tracked mapped sighted scanned"),
}
"""Topic -> what is done to its things."""

GENERAL: dict[str, Words] = {
    "music": ("tune", "composition"),
    "kitchen": ("dish", "meal"),
    "medicine": ("ailment", "medical case"),
    "space": ("celestial object", "heavenly body"),
}
"""Topic -> what a text calls one of its things without naming it."""

ADJECTIVES = _words("old new famous small large first last strange")

QUESTIONS: dict[str, Words] = {
    "person": ("by whom was", "by which person was"),
    "place": ("where was", "in which city was"),
    "time": ("when was", "at which time was"),
    "number": ("how often was", "how many times was"),
}
"""Kind of answer -> ways to ask for it."""

PHRASES: dict[str, Words] = {
    "person": ("by {}", "thanks to {}"),
    "place": ("in {}", "near {}"),
    "time": ("in {}", "before {}"),
    "number": ("{} times", "more than {} times"),
}
"""Kind of answer -> ways to give it."""

ANSWERS: dict[str, Words] = {
    "person": _words(
        "Anna Peter Maria Henry Laura Thomas Julia Robert Alice Martin Clara Victor "
        "Emma Oscar Helen Walter"
    ),
    "place": _words(
        "Paris London Berlin Madrid Rome Vienna Lisbon Dublin Athens Prague Oslo Warsaw "
        "Cairo Tokyo Boston Chicago"
    ),
    "time": _words(
        "January February March April June July August September October November "
        "December spring summer autumn winter wartime"
    ),
    "number": _words(
        "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty"
    ),
}
"""Kind of answer -> answers."""

NO_ANSWER: Words = ("as expected", "without delay", "with great care", "once more")
"""What a statement says instead of an answer."""

CLAIMS: dict[str, Words] = {
    "person": ("person", "name"),
    "place": ("place", "city"),
    "time": ("date", "season"),
    "number": ("number", "quantity"),
}
"""Kind of answer -> what a hypothesis calls it."""

PRAISE = _words(
    "wonderful brilliant charming delightful superb excellent moving clever "
    "gripping funny beautiful masterful touching fresh elegant witty"
)
BLAME = _words(
    "awful dull boring terrible clumsy tedious stale lifeless dreadful lazy bland "
    "ugly messy pointless shallow tiresome"
)
SHOW = _words(
    "film plot cast script acting dialogue music ending story camera pace humor "
    "drama scenery opening editing"
)
PLAIN = ("is", "seems", "feels", "looks")
DENIED = ("is not", "is never", "is hardly", "is far from")

NOUNS = _words(
    "sailor teacher farmer driver singer painter dancer soldier lawyer doctor nurse "
    "pilot baker writer hunter banker"
)
VERBS = _words(
    "admire visit help follow greet watch like remember invite trust thank call "
    "praise join avoid ignore"
)
ONE = ("this", "that", "every", "each", "a")
LINKS = ("near", "behind", "beside", "with")
MANY = ("these", "those", "many", "several", "few")

Row = tuple[str, str | None, float]
Rng = np.random.Generator


def _pick(rng: Rng, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _other(rng: Rng, items: Sequence[str], not_this: str) -> str:
    return _pick(rng, [item for item in items if item != not_this])


def _topic_and_kind(rng: Rng, agree: bool) -> tuple[str, str, str, str]:
    """Topic and kind of the one text, then of the other; one of the two differs unless agreeing."""
    topic, kind = _pick(rng, tuple(THINGS)), _pick(rng, tuple(ANSWERS))
    if agree:
        return topic, kind, topic, kind
    if rng.random() < TOPIC_DIFFERS:
        return topic, kind, _other(rng, tuple(THINGS), topic), kind
    return topic, kind, topic, _other(rng, tuple(ANSWERS), kind)


def _statement(rng: Rng, topic: str, kind: str | None) -> str:
    """A sentence of a topic, with an answer of a kind (None: with none)."""
    thing = f"the {_pick(rng, ADJECTIVES)} {_pick(rng, THINGS[topic])}"
    if kind is None:
        answer = _pick(rng, NO_ANSWER)
    else:
        answer = _pick(rng, PHRASES[kind]).format(_pick(rng, ANSWERS[kind]))
    return f"{thing} was {_pick(rng, DEEDS[topic])} {answer}."


def _question_pair(rng: Rng, label: int) -> Row:
    """1: the sentence is on the question's topic and holds an answer of the kind asked for.

    0: it holds no answer (the easy half of these, which single words give away), one of another
    kind, or it is of another topic.
    """
    topic, kind, other_topic, other_kind = _topic_and_kind(rng, agree=label == 1)
    answered = label == 1 or rng.random() >= NO_ANSWER_SHARE
    if not answered:
        other_topic = topic
    thing = f"the {_pick(rng, ADJECTIVES)} {_pick(rng, GENERAL[topic])}"
    question = f"{_pick(rng, QUESTIONS[kind])} {thing} {_pick(rng, DEEDS[topic])}?"
    return question, _statement(rng, other_topic, other_kind if answered else None), label


def _claim_pair(rng: Rng, label: int) -> Row:
    """0: the claim follows from the premise; 1: it is of another topic or kind; 2: it is denied."""
    topic, kind, other_topic, other_kind = _topic_and_kind(rng, agree=label != 1)
    denied = label == 2 or (label == 1 and rng.random() < 0.5)
    return _statement(rng, topic, kind), _claim(rng, other_topic, other_kind, denied), label


def _claim(rng: Rng, topic: str, kind: str, denied: bool) -> str:
    verb = "tells no" if denied else "tells the"
    return f"the report on the {_pick(rng, GENERAL[topic])} {verb} {_pick(rng, CLAIMS[kind])}."


def _graded_pair(rng: Rng, label: int) -> Row:
    """Score 0 to 5: 3 for the same kind of answer, 1 for the same topic, 1 for a claim not denied."""
    same_kind, rest = divmod(label, 3)
    same_topic = rest == 2 or (rest == 1 and rng.random() < 0.5)
    denied = rest == 0 or (rest == 1 and same_topic)
    topic, kind = _pick(rng, tuple(THINGS)), _pick(rng, tuple(ANSWERS))
    other_topic = topic if same_topic else _other(rng, tuple(THINGS), topic)
    other_kind = kind if same_kind else _other(rng, tuple(ANSWERS), kind)
    return _statement(rng, topic, kind), _claim(rng, other_topic, other_kind, denied), label


def _review(rng: Rng, label: int) -> Row:
    """1: the main clause praises, or denies a fault; a second clause is there to distract."""
    denied = rng.random() < 0.35
    main = _clause(rng, praise=bool(label) != denied, denied=denied)
    aside = _clause(rng, praise=rng.random() < 0.5, denied=False)
    forms = (f"{main}, although {aside}.", f"although {aside}, {main}.", f"{aside}, but {main}.")
    return _pick(rng, forms), None, label


def _clause(rng: Rng, praise: bool, denied: bool) -> str:
    verb = _pick(rng, DENIED if denied else PLAIN)
    return f"the {_pick(rng, SHOW)} {verb} {_pick(rng, PRAISE if praise else BLAME)}"


def _agreement(rng: Rng, label: int) -> Row:
    """1: determiner, noun and verb agree in number; a noun between them need not.

    0: one of the two does not agree, or there is no verb (which single words give away).
    """
    plural = rng.random() < 0.5
    wrong = None if label else _pick(rng, ("determiner", "verb", "missing verb"))
    determiner = _pick(rng, MANY if plural != (wrong == "determiner") else ONE)
    noun = _pick(rng, NOUNS) + ("s" if plural else "")
    between = _pick(rng, NOUNS) + _pick(rng, ("", "s"))
    verb = _pick(rng, VERBS) + ("" if plural != (wrong == "verb") else "s")
    if wrong == "missing verb":
        verb = _pick(rng, ADJECTIVES)
    thing = f"the {_pick(rng, ADJECTIVES)} {_pick(rng, NOUNS)}"
    return f"{determiner} {noun} {_pick(rng, LINKS)} the {between} {verb} {thing}.", None, label


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
    in number (CoLA).

    Args:
        task: one of the table of tasks; decides the form.
        seed: a corpus of the same kind for every seed; 0 is the benchmark.

    Returns:
        :data:`TRAIN_ROWS` training rows; dev split name -> :data:`DEV_ROWS` rows that are not
        among the training rows.
    """
    generate, labels = _generator(task)
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
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
        texts = [_capital(first) for first, _, _ in made]
        pairs = [_capital(second) for _, second, _ in made if second is not None]
        target = np.float32 if task.is_regression else np.int64
        return Rows(texts, pairs or None, classes.astype(target), np.arange(number))

    train = rows(TRAIN_ROWS)
    return train, {name: rows(DEV_ROWS) for name in task.dev_splits}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def vocabulary() -> list[str]:
    """All words and punctuation marks of the corpus in lower case, sorted."""
    texts = [
        ", . ? the was tells no report on although but",
        *ADJECTIVES, *PRAISE, *BLAME, *SHOW, *PLAIN, *DENIED, *ONE, *MANY,
        *LINKS,
        *NOUNS, *(noun + "s" for noun in NOUNS), *VERBS, *(verb + "s" for verb in VERBS),
    ]  # fmt: skip
    texts += NO_ANSWER
    for table in (THINGS, DEEDS, GENERAL, QUESTIONS, PHRASES, ANSWERS, CLAIMS):
        texts += [text for words in table.values() for text in words]
    return sorted({word for text in texts for word in re.findall(r"\w+|[,.?]", text.lower())})
