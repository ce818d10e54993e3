"""Checkpoints of a run in its folder ``checkpoint/``: when they are due, written whole, read with checks.

``checkpoint/NNNNNN/`` holds ``state.json`` (all that is no tensor), ``state.safetensors``, and
``checkpoint.json``: format, version of ksel, and sums of the two. A new one is written beside the old
one under another name, forced to the disk and renamed; only then the old one goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import ksel
from ksel.checkpoint_config import CheckpointConfig
from ksel.errors import UsageError
from ksel.files import atomic_folder
from ksel.packing import Records, State, pack, unpack

FORMAT = 2
FOLDER = "checkpoint"
HEADER, VALUES, TENSORS = "checkpoint.json", "state.json", "state.safetensors"

EXPECTED_RATE = 2e8
"""At which a disk is expected to write before one checkpoint was timed (bytes a second)."""

Say = Callable[[str], None]


class Checkpoints:
    """Decides when a run's checkpoints are due, and writes them.

    Args:
        run: the run's folder.
        settings: how often.
        known: the dataclasses that a state may hold.
        size: of one, about (bytes); what the first is expected to cost follows from it.
        clock: gives the time (seconds).

    Attributes:
        seconds: spent on writing so far.
        count: written so far.
    """

    def __init__(
        self,
        run: Path,
        settings: CheckpointConfig,
        known: Records,
        size: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder, self.settings, self.known = run / FOLDER, settings, known
        self.clock = clock
        self.seconds, self.count = 0.0, 0
        self._began = clock()
        self._last: int | None = 0
        self._cost = size / EXPECTED_RATE

    @property
    def on(self) -> bool:
        """False with ``checkpoint.every`` 0."""
        return self.settings.every > 0

    def begin(self, *, resumed: bool) -> None:
        """A stage begins, or goes on from a checkpoint."""
        self._last = None if resumed else 0

    def offer(self, decisions: int, state: Callable[[], State]) -> None:
        """Write a checkpoint if one is due after so many decisions of the stage.

        Raises:
            UsageError: it cannot be written; the one before is whole.
        """
        if self._last is None:
            self._last = decisions
        if not self.on or decisions - self._last < self.settings.every:
            return
        passed = self.clock() - self._began
        if self.seconds + self._cost > self.settings.share * passed and self.settings.share < 1:
            return
        self.write(state())
        self._last = decisions

    def clear(self) -> None:
        """Remove them all: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, state: State) -> None:
        """Write a checkpoint now, unless there are to be none.

        Raises:
            UsageError: as :meth:`offer`.
        """
        if not self.on:
            return
        start = self.clock()
        write_checkpoint(self.folder, state, self.known)
        cost = self.clock() - start
        if (
            state["inside"] is not None
        ):  # one of a beginning holds no student and costs next to nothing
            self._cost = cost
        self.seconds += cost
        self.count += 1


def write_checkpoint(folder: Path, state: State, known: Records) -> Path:
    """Write a state as the newest checkpoint, then drop the older ones.

    Returns:
        Its folder.

    Raises:
        UsageError: the disk is full or the folder cannot be written; the one before is whole.
        TypeError: the state holds something that has no form, see :func:`ksel.packing.pack`.
    """
    before = _numbered(folder)
    values, tensors = pack(state, known)
    text = json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    header = {
        "format": FORMAT,
        "ksel": ksel.__version__,
        "state_sha256": hashlib.sha256(text).hexdigest(),
        "tensors_crc32": _sum_of(tensors),
    }
    place = folder / f"{_number(before[-1]) + 1 if before else 1:06d}"
    try:
        with atomic_folder(place) as temporary:
            save_file(tensors, temporary / TENSORS)
            (temporary / VALUES).write_bytes(text)
            (temporary / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
            for name in (TENSORS, VALUES, HEADER):
                _to_disk(temporary / name)
            _to_disk(temporary)
        _to_disk(folder)
    except UsageError as error:
        kept = f"The one before it ({before[-1].name}) is whole" if before else "None is before it"
        raise UsageError(
            f"checkpoint: {error} {kept}; once there is room, "
            f"`python -m ksel.run --resume {folder.parent}` goes on."
        ) from error
    for old in before:
        shutil.rmtree(old, ignore_errors=True)
    return place


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        state: what was written.
        folder: where.
        when: seconds since the epoch at which it was written.
    """

    state: State
    folder: Path
    when: float


def read_checkpoint(
    folder: Path, known: Records, device: torch.device, say: Say
) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all.

    A damaged one is told of by ``say`` before the one before it is taken.

    Args:
        folder: a run's ``checkpoint/``.
        known: the dataclasses that a state may hold.
        device: where tensors go that were on a device.
        say: called with a line for the user.

    Raises:
        UsageError: all there are are damaged, or one is of another format or version of ksel.
    """
    found = list(reversed(_numbered(folder)))
    for place in found:
        try:
            return _read(place, known, device)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            say(f"checkpoint: {place} is damaged ({_reason(error)})")
            if place is not found[-1]:
                say("checkpoint: going back to the one before it")
    if not found:
        return None
    raise UsageError(
        f"--resume: each checkpoint in {folder} is damaged, and nothing can be gone on from. Restore "
        f"it, or remove {folder}: --resume then begins the run anew."
    )


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing; call it where no other one writes."""
    for place in folder.glob(".*"):
        shutil.rmtree(place, ignore_errors=True)


def _read(place: Path, known: Records, device: torch.device) -> Checkpoint:
    header = json.loads((place / HEADER).read_text(encoding="utf-8"))
    if not isinstance(header, Mapping):
        raise ValueError(f"{HEADER} is no header")
    _refuse_other_version(place, header)
    text = (place / VALUES).read_bytes()
    if hashlib.sha256(text).hexdigest() != header["state_sha256"]:
        raise ValueError(f"{VALUES} is not what was written")
    tensors = load_file(place / TENSORS)
    if _sum_of(tensors) != header["tensors_crc32"]:
        raise ValueError(f"{TENSORS} is not what was written")
    state = unpack(json.loads(text), tensors, known, device)
    return Checkpoint(state, place, (place / HEADER).stat().st_mtime)


def _refuse_other_version(place: Path, header: Mapping[str, Any]) -> None:
    found, version = header["format"], header["ksel"]
    if found == FORMAT and version == ksel.__version__:
        return
    what = f"format {found}" if found != FORMAT else f"version {version} of ksel"
    mine = FORMAT if found != FORMAT else ksel.__version__
    run = place.parent.parent
    raise UsageError(
        f"--resume: the checkpoint of {run} is of {what}; this is {mine}, which would not go on to "
        f"the bit. Install ksel {version} to go on, or begin anew with `python -m ksel.run --config "
        f"{run / 'config.yaml'}`."
    )


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=_number)


def _number(place: Path) -> int:
    return int(place.name)


def _sum_of(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        flat = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(flat.numpy().data, zlib.crc32(name.encode(), total))
    return total


def _to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # some file systems refuse this for folders
        if path.is_file():
            raise
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(str(error.filename)).name} is missing"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(getattr(error, "strerror", None) or error)
