"""Rules of a race: which masks challenge which, how many heats there are, and how long they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agents.fixed import ANSWERS, LABEL, kind_of

Mask = tuple[int, ...]
STATES = ("cls_hidden", "hidden", "embedding", "cosine")
"""Kinds that compare states as they are; those between texts begin with ``sample``; the rest compare
relations within a text."""
OUTPUT = "answers"
FAMILIES = ("relations", "samples", "states")
"""In the order in which they are challenged: those whose loss moves a student most come first."""


def family(name: str) -> str:
    """The family of a knowledge type: ``answers``, ``states``, ``relations`` or ``samples``."""
    kind = kind_of(name)
    if kind == LABEL or kind in ANSWERS:
        return OUTPUT
    if kind in STATES:
        return "states"
    return "samples" if kind.startswith("sample") else "relations"


def challengers(mask: Mask, pool: Sequence[str], allowed: np.ndarray) -> list[Mask]:
    """Masks to race against ``mask``, the most promising first.

    The answers alone; the mask without one of its families; the mask with a family that it lacks;
    all on; the mask without the answers; each type in or out by itself. Types that cannot be selected stay as they are.

    Args:
        mask: K bits.
        pool: names of the knowledge types.
        allowed: [K] bool, which can be selected now.

    Returns:
        Different from each other and from the mask in what can be selected; none selects nothing.
    """
    now, free = np.array(mask), np.asarray(allowed, dtype=bool)
    found: dict[tuple[int, ...], Mask] = {tuple(now[free]): mask}
    for wanted in _wishes(now, pool):
        full = np.where(free, wanted, now)
        if full[free].any():
            found.setdefault(tuple(full[free]), tuple(int(bit) for bit in full))
    return list(found.values())[1:]


def by_family(mask: np.ndarray, pool: Sequence[str]) -> Iterator[np.ndarray]:
    """Masks that differ from one by whole families, [K] bits each, some of them equal to it or to others.

    The answers alone; it without a family, but for the answers; with a family; all on; it without
    the answers.
    """
    families = [family(name) for name in pool]
    members = {name: np.array([one == name for one in families]) for name in (OUTPUT, *FAMILIES)}
    yield np.where(members[OUTPUT], 1, 0)
    for name in FAMILIES:
        yield np.where(members[name], 0, mask)
    for name in (*reversed(FAMILIES), OUTPUT):
        yield np.where(members[name], 1, mask)
    yield np.ones_like(mask)
    yield np.where(members[OUTPUT], 0, mask)


def _wishes(mask: np.ndarray, pool: Sequence[str]) -> Iterator[np.ndarray]:
    yield from by_family(mask, pool)
    for k in range(len(mask)):
        yield np.where(np.arange(len(mask)) == k, 1 - mask, mask)


@dataclass(frozen=True)
class Heats:
    """How many heats a race has, their length in updates, and the challengers of each."""

    count: int
    updates: int
    challengers: int = 1


def plan_heats(
    updates: int, share: float, least: int, held: int = 1, challengers: int = 1
) -> Heats:
    """Heats one after the other from the start of the student's life.

    Args:
        updates: step budget of the student.
        share: of it, for the lanes that are given up: as many in each heat as it has challengers.
        least: updates of a heat where the share has room for that.
        held: updates of a decision; heats are whole decisions.
        challengers: of a heat at most; fewer where they have no room for ``least`` updates each.

    Returns:
        As many heats as fit, at least one, that use up the share; no heats (of 0 updates) where the
        share has no room for a decision.
    """
    decisions = int(share * updates + 1e-9) // held
    if decisions == 0:
        return Heats(0, 0)
    shortest = math.ceil(least / held)
    lanes = max(1, min(challengers, decisions // shortest))
    count = max(1, decisions // (lanes * shortest))
    return Heats(count, decisions // (count * lanes) * held, lanes)
