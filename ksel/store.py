"""The store of fine-tuned teachers: keyed by all that decided their training, checked on reading."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ksel.config import FineTuneConfig
from ksel.data import Split
from ksel.errors import UsageError
from ksel.files import atomic_folder, file_sum, write_json
from ksel.fine_tuning import training_settings
from ksel.locks import turn
from ksel.models import architecture, load_classifier, weights_fingerprint
from ksel.tasks import Task

FORMAT = 2
ABOUT = "ksel.json"
LONGEST_WAIT = 1800.0
"""Longest wait for another process that fine-tunes the same teacher (seconds)."""
WHOLE = "."
"""Where in its folder a teacher lies that was trained alone."""


def teacher_key(
    pretrained: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    settings: FineTuneConfig,
) -> str:
    """SHA-256 (hex) of all that decides what fine-tuning this teacher alone gives."""
    assert split.labels is not None
    labels = hashlib.sha256(split.labels.numpy().tobytes()).hexdigest()
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    content = [
        FORMAT,
        weights_fingerprint(pretrained),
        architecture(pretrained.config),
        asdict(task),
        vocabulary.hexdigest(),
        split.fingerprint(),
        labels,
        training_settings(settings),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def group_key(keys: Sequence[str]) -> str:
    """The key of teachers that were trained together: of theirs, in this order."""
    return hashlib.sha256(json.dumps([FORMAT, "together", *keys]).encode()).hexdigest()


def store_place(store: Path, task: Task, key: str) -> Path:
    """The folder of the teacher, or of the teachers, with this key."""
    return store / "teachers" / f"{task.name}-{key[:24]}"


def to_store(
    folder: Path,
    key: str,
    teachers: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    record: dict[str, Any],
) -> None:
    """Write teachers and their tokenizers, all of them or nothing.

    Args:
        folder: from :func:`store_place`.
        key: of the teachers.
        teachers: place within the folder -> model and tokenizer; :data:`WHOLE` for a single one.
        record: what is said of them beside the weights.

    Raises:
        UsageError: the disk is full or the folder cannot be written.
    """
    with atomic_folder(folder) as temporary:
        for place, (model, tokenizer) in teachers.items():
            model.save_pretrained(temporary / place)
            tokenizer.save_pretrained(temporary / place)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {path.relative_to(temporary).as_posix(): file_sum(path) for path in files}
        write_json(temporary / ABOUT, {"key": key, "sha256": sums, **record})


@contextmanager
def making(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, it is this process's turn to make the teachers of a folder: look again, they may be there.

    A process that has waited for :data:`LONGEST_WAIT` makes them itself; whoever is the first keeps
    its own. The lock of a process that has died is free.

    Args:
        folder: from :func:`store_place`.
        say: called with a line for the user while another process is at it.
    """
    lock = folder.parent.with_name("locks") / folder.name
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--store: cannot make {lock.parent}: {error.strerror}. Choose another folder."
        ) from error
    with turn(lock, LONGEST_WAIT, say, f"teacher: {folder.name} is being fine-tuned"):
        yield


def from_store(
    folder: Path, key: str, places: Sequence[str], task: Task, say: Callable[[str], None]
) -> list[PreTrainedModel] | None:
    """The stored teachers, or None where there are none or they are damaged (said aloud)."""
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        sums: dict[str, str] = about["sha256"]
        if about["key"] == key and all(file_sum(folder / f) == v for f, v in sums.items()):
            return [load_classifier(str(folder / p), task, own_head=True) for p in places]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        pass
    say(f"teacher: the stored one ({folder.name}) is damaged; it is set aside and made again")
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process has set it aside
        folder.rename(aside)
    return None
