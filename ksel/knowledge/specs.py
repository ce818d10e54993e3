"""The names of knowledge types: ``kind[/matching][@teacher]``, read and looked up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ksel.errors import UsageError, unknown_name
from ksel.knowledge.base import spec_name
from ksel.knowledge.kinds import KINDS
from ksel.matching import DEFAULT_MATCHING

_NUMBER = re.compile("[1-9][0-9]*")


@dataclass(frozen=True)
class Spec:
    """A name taken apart.

    Attributes:
        kind: name in the table of kinds.
        matching: with the default written out; empty for kinds without a choice of layers.
        source: number of the teacher, from 0.
    """

    kind: str
    matching: str
    source: int

    @property
    def name(self) -> str:
        """The canonical name: matching written out, the first teacher's number left out."""
        return spec_name(self.kind, self.matching, self.source)

    @property
    def key(self) -> tuple[str, frozenset[str], int]:
        """Equal for two names of the same type."""
        # Pairs are compared as sets, names as they are: skip and last may give the same layers
        # for one student and not for the next, and a pool has to fit both.
        return self.kind, frozenset(self.matching.split("+")), self.source


def kind_of(spec: str) -> str:
    """The kind that a name begins with; it need not exist."""
    return re.split("[/@]", spec, maxsplit=1)[0]


def read_specs(pool: Sequence[str], teachers: int) -> list[Spec]:
    """Read the names of a pool.

    Args:
        pool: the names as the user wrote them.
        teachers: how many teachers there are.

    Raises:
        UsageError: an unknown kind, a malformed name, a teacher that does not exist, a type named
            twice.
    """
    if not pool:
        raise UsageError(
            "--knowledge.pool: the pool is empty. Name at least one knowledge type, such as "
            f"'response'. Kinds: {', '.join(KINDS)}."
        )
    specs = [_read(written, teachers) for written in pool]
    seen: dict[tuple[str, frozenset[str], int], str] = {}
    for written, spec in zip(pool, specs, strict=True):
        if spec.key in seen:
            raise UsageError(
                f"--knowledge.pool: '{seen[spec.key]}' and '{written}' are the same knowledge "
                "type. Name each type once; for more of it set its --knowledge.weights."
            )
        seen[spec.key] = written
    return specs


def find_name(given: str, names: Sequence[str], option: str) -> str:
    """The type of a pool that a name means; the default matching and @1 may be left out.

    Args:
        given: the name as the user wrote it.
        names: the pool's types.
        option: the option the name came from.

    Raises:
        UsageError: the pool has no such type.
    """
    head, _, teacher = given.partition("@")
    at = f"@{teacher}" if teacher and teacher != "1" else ""
    for name in (given, f"{head}{at}", f"{head}/{DEFAULT_MATCHING}{at}"):
        if name in names:
            return name
    raise unknown_name("knowledge type in this pool:", given, names, option)


def _read(written: str, teachers: int) -> Spec:
    head, at, number = written.partition("@")
    kind, slash, matching = head.partition("/")
    if kind not in KINDS:
        raise unknown_name("knowledge kind", kind, KINDS, "--knowledge.pool")
    layered = KINDS[kind].lowest_layer is not None
    if slash and not layered:
        raise UsageError(
            f"--knowledge.pool: '{written}' has a layer matching, but {kind} has no layers to "
            f"choose. Write '{kind}{at}{number}'."
        )
    if at:
        _check_teacher(written, head, number, teachers)
    if layered and not slash:
        matching = DEFAULT_MATCHING
    return Spec(kind, matching, int(number) - 1 if at else 0)


def _check_teacher(written: str, head: str, number: str, teachers: int) -> None:
    if head == "label":
        raise UsageError(
            f"--knowledge.pool: '{written}' names a teacher, but the gold label needs none. "
            "Write 'label'."
        )
    if not _NUMBER.fullmatch(number):
        raise UsageError(
            f"--knowledge.pool: '{written}' is malformed: what follows '@' at the end is the "
            f"number of a teacher, from 1. Write '{head}', or '{head}@2' for the second teacher."
        )
    if int(number) > teachers:
        there = "is 1 teacher" if teachers == 1 else f"are {teachers} teachers"
        known = "no @" if teachers == 1 else f"@1 to @{teachers}"
        raise UsageError(
            f"--knowledge.pool: '{written}' names teacher {number}, but there {there}. Use "
            f"{known}, or name more teachers with --teachers."
        )
