"""Teacher signals in memory-mapped files that several runs read and fill at once."""

from __future__ import annotations

import io
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ksel.errors import UsageError
from ksel.files import reserve, write_json
from ksel.locks import holder, locked, sign
from ksel.signal_store import Layout, Slot

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

RECORD = np.dtype("<u8")
FILLED = 1 << 32
LONGEST_WAIT = 120.0
"""Longest wait for another process that writes a block (seconds)."""
RESIDENT_MB = 512
"""Largest part of the files that stays in this process's memory (MB)."""
AROUND = 1 << 18
"""Bytes that the system was seen to map around each piece that is touched (Linux, ext4)."""


class FileStore:
    """Signals in the files of one folder, one pair of files for each signal.

    ``<signal>.<dtype>.data`` holds the vectors. ``<signal>.<dtype>.filled`` holds 8 bytes for each
    block: 0, or 2^32 + the CRC-32 of its data. A block's record is written after its data, so a run
    that dies while writing leaves a block that counts as absent. A block is checked against its
    record when this process reads it for the first time. Writers take turns by a lock on the
    folder's file ``lock``, for one block at a time, and a block that is there stays: runs that use
    one cache at once fill it together.

    Args:
        folder: of these signals alone.
        key: of the teacher and the rows that the signals belong to.
        layout, slots, dtype: see :class:`ksel.signal_store.SignalStore`.
        say: called with a line for the user.
        resident_mb: largest part of the files that stays in memory (MB).

    Raises:
        UsageError: the disk is full, the folder cannot be written, or files cannot be locked.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        layout: Layout,
        slots: dict[str, Slot],
        dtype: str,
        say: Callable[[str], None],
        *,
        resident_mb: float = RESIDENT_MB,
    ) -> None:
        self.folder, self.layout, self.slots = folder, layout, slots
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._say, self._limit, self._touched = say, resident_mb * 1e6, 0.0
        self._maps: dict[str, mmap.mmap] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self._records: dict[str, np.ndarray] = {}
        self._checked = {name: np.zeros(layout.blocks, dtype=bool) for name in slots}
        with _writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = _opened(folder / "lock")
            with self._lock():
                self._claim(key)
                self._make_files()
        for name, slot in slots.items():
            self._records[name] = np.frombuffer(_mapped(self._path(name, "filled")), RECORD)
            self._maps[name] = _mapped(self._path(name, "data"))
            flat = np.frombuffer(self._maps[name], self.dtype)
            self.arrays[name] = flat.reshape(layout.size(slot), slot.width)

    @property
    def share(self) -> float:
        """Share of the blocks that is there already."""
        counts = [np.count_nonzero(record) for record in self._records.values()]
        return sum(counts) / max(self.layout.blocks * len(counts), 1)

    def missing(self, names: Iterable[str], blocks: np.ndarray) -> np.ndarray:
        """Those of the blocks that lack one of these signals, or whose files were damaged."""
        lacking = np.zeros(len(blocks), dtype=bool)
        for name in names:
            there = self._records[name][blocks] != 0
            for i in np.flatnonzero(there & ~self._checked[name][blocks]):
                there[i] = self._sound(name, blocks[i]) or self._looked_again(name, blocks[i])
            lacking |= ~there
        return blocks[lacking]

    def keep(self, block: int, values: Mapping[str, np.ndarray]) -> None:
        """Take in a block's signals; what is there already stays.

        Raises:
            UsageError: the disk is full.
        """
        with _writable(self.folder), self._lock():
            for name, value in values.items():
                if self._records[name][block]:
                    continue
                data = np.ascontiguousarray(value, self.dtype).tobytes()
                start = self.layout.extent(self.slots[name], block).start
                width = self.slots[name].width * self.dtype.itemsize
                _write(self._path(name, "data"), start * width, data)
                self._record(name, block, FILLED | zlib.crc32(data))
                self._checked[name][block] = True

    def have_read(self, pieces: int, count: int) -> None:
        """Give pages back to the system once enough of them were touched."""
        self._touched += count + pieces * AROUND
        if self._touched < self._limit or not hasattr(mmap, "MADV_DONTNEED"):
            return
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)
        self._touched = 0.0

    # ----------------------------------------------------------------- checks

    def _sound(self, name: str, block: int) -> bool:
        """True if a block's data are what its record says."""
        data = self.arrays[name][self.layout.extent(self.slots[name], block)].data
        good = int(self._records[name][block]) == FILLED | zlib.crc32(data)
        self._checked[name][block] = good
        self.have_read(1, data.nbytes)
        return good

    def _looked_again(self, name: str, block: int) -> bool:
        """Look again while nobody writes; a block that is damaged indeed is forgotten."""
        with _writable(self.folder), self._lock():
            if not self._records[name][block] or self._sound(name, block):
                return bool(self._records[name][block])
            self._say(
                f"teacher signals: rows of {name} in the store are damaged "
                f"({self._path(name, 'data').name}); computing them again"
            )
            self._record(name, block, 0)
        return False

    # ----------------------------------------------------------------- files

    def _path(self, name: str, what: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.{self.dtype.name}.{what}"

    def _record(self, name: str, block: int, value: int) -> None:
        data = np.array(value, RECORD).tobytes()
        _write(self._path(name, "filled"), block * RECORD.itemsize, data)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if fcntl is None:
            raise UsageError(
                "--signals.source: this system cannot lock files, which signals on disk need. "
                "Use --signals.source memory or live."
            )
        handle = self._lock_file.fileno()

        def waiting() -> None:
            self._say(f"teacher signals: waiting for {holder(handle)}, which writes to the store")

        if not locked(handle, LONGEST_WAIT, waiting):
            raise UsageError(
                f"--store: {holder(handle)} has been writing to the teacher signals in {self.folder} "
                f"for {LONGEST_WAIT:g} s, where a moment is enough: it may have been stopped. Let it go "
                f"on or end it, or use another --store, or --signals.source memory or live."
            )
        try:
            sign(handle)
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)

    def _claim(self, key: str) -> None:
        """Write whose signals these are; what belongs to others, or to nobody, is removed."""
        path = self.folder / "key.json"
        if _read_key(path) == key:
            return
        old = [one for one in self.folder.iterdir() if one.suffix in (".data", ".filled")]
        if old:
            self._say("teacher signals: key.json in the store is damaged; computing them again")
        for one in sorted(old, key=lambda one: one.suffix == ".data"):
            one.unlink()
        write_json(path, {"key": key})

    def _make_files(self) -> None:
        """Make what is absent or has another size, and take its room on the disk."""
        made: list[Path] = []
        try:
            for name, slot in self.slots.items():
                data, record = self._path(name, "data"), self._path(name, "filled")
                sizes = {
                    data: self.layout.size(slot) * slot.width * self.dtype.itemsize,
                    record: self.layout.blocks * RECORD.itemsize,
                }
                if all(_size(path) == size for path, size in sizes.items()):
                    continue
                if data.exists() and record.exists():
                    self._say(
                        f"teacher signals: {name} in the store is damaged (a file has another "
                        f"size); computing it again"
                    )
                record.unlink(missing_ok=True)  # first: a record must not outlive its data
                for path, size in sizes.items():
                    made.append(path)
                    _new_file(path, size)
        except BaseException:
            for path in reversed(made):
                path.unlink(missing_ok=True)
            raise


def _opened(path: Path) -> io.FileIO:
    """A file to lock, made if it is missing and left as it is."""
    return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")


def _new_file(path: Path, size: int) -> None:
    """A file of zeros under its name only when it is whole."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.truncate(size)
        reserve(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, offset: int, data: bytes) -> None:
    # Not through the mapping: a page that the disk has no room for would kill the process.
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _read_key(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write teacher signals to {folder}: {error.strerror or error}. Free space, "
            f"lower --signals.budget, choose another folder (--store), or use --signals.source "
            f"memory or live; what was kept before stays good."
        ) from error
