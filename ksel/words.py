"""The words of the built-in corpora, in classes, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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

Rng = np.random.Generator


def pick(rng: Rng, items: Sequence[str]) -> str:
    """One of them, each as likely."""
    return items[int(rng.integers(len(items)))]


def other(rng: Rng, items: Sequence[str], not_this: str) -> str:
    """One of the others."""
    return pick(rng, [item for item in items if item != not_this])


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]
