"""Layer matching: which teacher layer each student layer learns from."""

from __future__ import annotations

import re

from ksel.errors import UsageError, unknown_name

Pairs = tuple[tuple[int, int], ...]

DEFAULT_MATCHING = "skip"
"""The matching of a layered kind that names none."""

MATCHINGS: dict[str, str] = {
    "skip": "student layer i learns from teacher layer floor(i T / S): evenly spread, ending at the "
    "last (elsewhere called uniform, or gap)",
    "first": "student layer i learns from teacher layer i",
    "last": "student layer i learns from teacher layer i + T - S",
    "spread": "student layer i learns from teacher layer 1 + round((i - 1)(T - 1) / (S - 1)): evenly "
    "spread from the first to the last (DistilBERT); one student layer: the last",
    "first_<k>": "the first k layers of both, in order",
    "last_<k>": "the last k layers of both, in order",
    "1-2+3-6": "pairs of your own, student-teacher, joined by +; 0 is the embedding output",
}
"""Matching (or its pattern) -> what it does; S and T are the numbers of layers."""

_NUMBER = "(?:0|[1-9][0-9]*)"
_PAIRS = re.compile(rf"{_NUMBER}-{_NUMBER}(?:\+{_NUMBER}-{_NUMBER})*")
_COUNTED = re.compile(rf"(first|last)_({_NUMBER})")


def is_explicit(matching: str) -> bool:
    """True if the matching is a list of pairs rather than a name."""
    return matching[:1].isdigit()


def match_layers(
    matching: str,
    student_layers: int,
    teacher_layers: int,
    *,
    spec: str | None = None,
    option: str = "--knowledge.pool",
) -> Pairs:
    """Resolve a layer matching.

    ``skip`` is the uniform mapping g(i) = i T / S (rounded down where S does not divide T; with
    layers counted from 0 it is (i + 1) T / S - 1, the gap of Lu et al. 2022), ``last`` is
    i + T - S; both as in Patient KD (Sun et al. 2019). ``spread`` has both ends: 12 -> 6 layers
    gives {1, 3, 5, 8, 10, 12}, from which DistilBERT starts (Sanh et al. 2019).

    Args:
        matching: a name or a list of pairs, see :data:`MATCHINGS`.
        student_layers: S, the student's number of transformer layers.
        teacher_layers: T, the teacher's.
        spec: the knowledge type that asked, for the error messages.
        option: the option it was given to, for the error messages.

    Returns:
        (student layer, teacher layer) pairs in ascending order, counted from 1; 0, the
        embedding output, occurs in explicit pairs only.

    Raises:
        UsageError: unknown matching, malformed or repeated pairs, layers that do not exist.
    """
    asked = f"{option}: '{spec or matching}'"
    if is_explicit(matching):
        return _explicit(matching, student_layers, teacher_layers, asked)
    if counted := _COUNTED.fullmatch(matching):
        k = int(counted[2])
        most = min(student_layers, teacher_layers)
        if not 1 <= k <= most:
            raise UsageError(
                f"{asked} matches {k} layers, but the student has {student_layers} and the "
                f"teacher {teacher_layers}. Use {counted[1]}_1 to {counted[1]}_{most}."
            )
        if counted[1] == "first":
            return tuple((i, i) for i in range(1, k + 1))
        return tuple((student_layers - i, teacher_layers - i) for i in reversed(range(k)))
    if matching not in MATCHINGS:
        what = f"layer matching in '{spec}':" if spec else "layer matching"
        raise unknown_name(what, matching, MATCHINGS, option)
    if student_layers > teacher_layers:
        raise UsageError(
            f"{asked} gives each student layer a teacher layer of its own, but the student has "
            f"{student_layers} layers and the teacher {teacher_layers}. Use first_{teacher_layers} "
            f"or last_{teacher_layers}, name the pairs (such as {student_layers}-{teacher_layers}),"
            f" or set --student.layers to {teacher_layers} or fewer."
        )
    layers = range(1, student_layers + 1)
    if matching == "skip":
        return tuple((i, i * teacher_layers // student_layers) for i in layers)
    if matching == "first":
        return tuple((i, i) for i in layers)
    if matching == "spread":
        return tuple((i, _spread(i, student_layers, teacher_layers)) for i in layers)
    return tuple((i, i + teacher_layers - student_layers) for i in layers)


def _spread(layer: int, student_layers: int, teacher_layers: int) -> int:
    """Of T layers the one at the place of layer i of S, halves rounded up."""
    if student_layers == 1:
        return teacher_layers
    steps = 2 * (student_layers - 1)
    return 1 + (2 * (layer - 1) * (teacher_layers - 1) + student_layers - 1) // steps


def _explicit(matching: str, student_layers: int, teacher_layers: int, asked: str) -> Pairs:
    if not _PAIRS.fullmatch(matching):
        raise UsageError(
            f"{asked} has malformed layer pairs '{matching}'. Write student-teacher, joined by +, "
            "such as 1-2+3-6."
        )
    pairs = [(int(s), int(t)) for s, t in (pair.split("-") for pair in matching.split("+"))]
    for s, t in pairs:
        if s > student_layers or t > teacher_layers:
            raise UsageError(
                f"{asked} names the pair {s}-{t}, but the student has layers 0 to "
                f"{student_layers} and the teacher 0 to {teacher_layers} (student-teacher). "
                "Name layers that exist, or use skip."
            )
        if pairs.count((s, t)) > 1:
            raise UsageError(f"{asked} names the pair {s}-{t} twice. Name it once.")
    return tuple(sorted(pairs))
