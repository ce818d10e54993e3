"""The built-in corpus: generated examples for every task, so that ksel runs without any data.

Every text is made of a template and words drawn from the classes below. What a label depends on is
how the classes of two places agree, never a single word. Figures measured on it say nothing about
GLUE.
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

Words = tuple[str, ...]


def _words(text: str) -> Words:
    return tuple(text.split())


THINGS: dict[str, Words] = {
    "music": _words(
        "song opera symphony ballad concerto waltz melody anthem sonata choir violin piano "
        "trumpet flute guitar orchestra hymn duet chorus lullaby"
    ),
    "kitchen": _words(
        "soup bread cake stew pie salad omelette pudding sauce pizza roast curry noodle dumpling "
        "pancake broth pastry biscuit sandwich casserole"
    ),
    "medicine": _words(
        "patient disease fever infection wound vaccine tumor surgery clinic hospital injury virus "
        "medicine therapy drug diagnosis syndrome ulcer pill fracture"
    ),
    "space": _words(
        "planet comet star galaxy rocket satellite telescope moon asteroid orbit nebula probe "
        "meteor eclipse spacecraft observatory astronaut crater supernova constellation"
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

ADJECTIVES = _words(
    "old new famous small large first last strange second ancient modern local foreign royal "
    "popular secret"
)

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
        "Anna Peter Maria Henry Laura Thomas Julia Robert Alice Martin Clara Victor Emma Oscar "
        "Helen Walter Sofia Arthur Diana Edward Nora Felix Irene Hugo"
    ),
    "place": _words(
        "Paris London Berlin Madrid Rome Vienna Lisbon Dublin Athens Prague Oslo Warsaw Cairo "
        "Tokyo Boston Chicago Toronto Sydney Delhi Lima Geneva Naples Bergen Bristol"
    ),
    "time": _words(
        "January February March April June July August September October November December "
        "spring summer autumn winter Monday Tuesday Thursday Friday Sunday midnight noon dawn "
        "evening"
    ),
    "number": _words(
        "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty "
        "sixty seventy eighty ninety hundred thousand dozen million fifteen"
    ),
}
"""Kind of answer -> answers."""

CLAIMS: dict[str, Words] = {
    "person": ("person", "name"),
    "place": ("place", "city"),
    "time": ("date", "season"),
    "number": ("number", "quantity"),
}
"""Kind of answer -> what a hypothesis calls it."""

PRAISE = _words(
    "wonderful brilliant charming delightful superb excellent moving clever gripping funny "
    "beautiful masterful touching fresh elegant witty dazzling splendid inspired lovely"
)
BLAME = _words(
    "awful dull boring terrible clumsy tedious stale lifeless dreadful lazy bland ugly messy "
    "pointless shallow tiresome horrible weak annoying dismal"
)
SHOW = _words(
    "film plot cast script acting dialogue music ending story camera pace humor drama scenery "
    "opening editing hero villain costume finale"
)
PLAIN = ("is", "seems", "feels", "looks")
DENIED = ("is not", "is never", "is hardly", "is far from")

NOUNS = _words(
    "sailor teacher farmer driver singer painter dancer soldier lawyer doctor nurse pilot baker "
    "writer hunter banker student player worker poet"
)
VERBS = _words(
    "admire visit help follow greet watch like remember invite trust thank call praise join avoid "
    "ignore"
)
ONE = ("this", "that", "every", "each", "a")
LINKS = ("near", "behind", "beside", "with")
MANY = ("these", "those", "many", "several", "few")

SCENE: dict[str, dict[str, Words]] = {
    "mood": {
        "glad": _words("happily gladly cheerfully proudly eagerly kindly warmly calmly"),
        "grim": _words("angrily sadly bitterly rudely nervously fearfully coldly grimly"),
    },
    "who": {
        "family": _words("mother father uncle aunt sister brother cousin grandmother"),
        "office": _words("mayor judge minister senator president governor king ambassador"),
        "animal": _words("dog cat horse monkey parrot goat rabbit bear"),
    },
    "what": THINGS,
    "where": {
        "nature": _words("forest river valley desert meadow mountain beach island"),
        "house": _words("bedroom attic cellar hallway bathroom garage closet balcony"),
        "town": _words("market street station square bank museum theater library"),
    },
    "when": {
        "month": _words("January February March April June July August October"),
        "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday weekend"),
    },
}
"""Place in a sentence -> class -> words; the graded score counts the places whose classes agree."""

Row = tuple[str, str | None, float]
Rng = np.random.Generator


def _pick(rng: Rng, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _other(rng: Rng, items: Sequence[str], not_this: str) -> str:
    return _pick(rng, [item for item in items if item != not_this])


def _topic_and_kind(rng: Rng, agree: bool) -> tuple[str, str, str, str]:
    """Topic and kind of the one text, then of the other; one of the two differs unless agreeing.

    The kind differs three times as often as the topic, which takes more words to learn.
    """
    topic, kind = _pick(rng, tuple(THINGS)), _pick(rng, tuple(ANSWERS))
    if agree:
        return topic, kind, topic, kind
    if rng.random() < 0.25:
        return topic, kind, _other(rng, tuple(THINGS), topic), kind
    return topic, kind, topic, _other(rng, tuple(ANSWERS), kind)


def _noun_phrase(rng: Rng, topic: str) -> str:
    return f"the {_pick(rng, ADJECTIVES)} {_pick(rng, THINGS[topic])}"


def _statement(rng: Rng, topic: str, kind: str) -> str:
    answer = _pick(rng, PHRASES[kind]).format(_pick(rng, ANSWERS[kind]))
    return f"{_noun_phrase(rng, topic)} was {_pick(rng, DEEDS[topic])} {answer}."


def _question_pair(rng: Rng, label: int) -> Row:
    """1: the sentence is on the question's topic and holds an answer of the kind asked for."""
    topic, kind, other_topic, other_kind = _topic_and_kind(rng, agree=label == 1)
    ask = _pick(rng, QUESTIONS[kind])
    question = f"{ask} {_noun_phrase(rng, topic)} {_pick(rng, DEEDS[topic])}?"
    return question, _statement(rng, other_topic, other_kind), label


def _claim_pair(rng: Rng, label: int) -> Row:
    """0: the claim follows from the premise; 1: it is of another topic or kind; 2: it is denied."""
    topic, kind, other_topic, other_kind = _topic_and_kind(rng, agree=label != 1)
    denied = label == 2 or (label == 1 and rng.random() < 0.5)
    thing = _pick(rng, THINGS[other_topic])
    verb = "names no" if denied else "names a"
    claim = f"the report on the {thing} {verb} {_pick(rng, CLAIMS[other_kind])}."
    return _statement(rng, topic, kind), claim, label


def _graded_pair(rng: Rng, label: int) -> Row:
    """Score 0 to 5: the number of places (mood, who, what, where, when) whose classes agree."""
    places = list(SCENE)
    agreeing = set(rng.permutation(len(places))[:label].tolist())
    first, second = {}, {}
    for number, place in enumerate(places):
        classes = tuple(SCENE[place])
        one = _pick(rng, classes)
        other = one if number in agreeing else _other(rng, classes, one)
        first[place] = _pick(rng, SCENE[place][one])
        second[place] = _pick(rng, SCENE[place][other])
    template = "the {who} {mood} showed the {what} in the {where} in {when}."
    return template.format(**first), template.format(**second), label


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
    """1: determiner, noun and verb agree in number; a noun between them need not."""
    plural = rng.random() < 0.5
    wrong = None if label else _pick(rng, ("determiner", "verb"))
    determiner = _pick(rng, MANY if plural != (wrong == "determiner") else ONE)
    verb = _pick(rng, VERBS) + ("" if plural != (wrong == "verb") else "s")
    noun = _pick(rng, NOUNS) + ("s" if plural else "")
    between = _pick(rng, NOUNS) + _pick(rng, ("", "s"))
    link = _pick(rng, LINKS)
    thing = f"the {_pick(rng, ADJECTIVES)} {_pick(rng, NOUNS)}"
    return f"{determiner} {noun} {link} the {between} {verb} {thing}.", None, label


def _generator(task: Task) -> tuple[Callable[[Rng, int], Row], tuple[int, ...]]:
    """The task's generator, and the generator's label for each of the task's classes."""
    if task.is_regression:
        return _graded_pair, tuple(range(len(SCENE) + 1))
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
    and a claim (MNLI), two scenes with a score (STS-B). Single texts: reviews (SST-2), agreement
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
        ", . ? the was showed in names no report on although but",
        *ADJECTIVES, *PRAISE, *BLAME, *SHOW, *PLAIN, *DENIED, *ONE, *MANY,
        *LINKS,
        *NOUNS, *(noun + "s" for noun in NOUNS), *VERBS, *(verb + "s" for verb in VERBS),
    ]  # fmt: skip
    for table in (THINGS, DEEDS, QUESTIONS, PHRASES, ANSWERS, CLAIMS, *SCENE.values()):
        texts += [text for words in table.values() for text in words]
    return sorted({word for text in texts for word in re.findall(r"\w+|[,.?]", text.lower())})
