"""Locks between processes: held by the system, so that those of a dead process are free."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ksel.errors import UsageError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

SHORTEST, LONGEST = 0.001, 0.2
"""Between two looks at a lock that another process holds; each pause is twice the one before (seconds)."""
SOON = 1.0
"""Waiting longer than this is told of (seconds)."""
HOLDER_BYTES = 200


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process works on this run. Systems that cannot lock folders are trusted.

    Raises:
        UsageError: another process does.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"RUN: another process is at work on {folder}. Wait until it has ended, or end it; "
                f"then use --resume."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


@contextmanager
def turn(path: Path, wait: float, say: Callable[[str], None], what: str) -> Iterator[bool]:
    """Take turns with other processes at something.

    Args:
        path: the lock's file; made if it is missing, and removed at the end.
        wait: longest time to wait (seconds).
        say: called with a line for the user where waiting takes longer than :data:`SOON`.
        what: what it is about, for people.

    Yields:
        True if it is this process's turn; False if the time was up, or this system has no locks.
    """
    if fcntl is None:
        yield False
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + wait
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        mine = _have_turn(handle, end, say, what)
        if not mine or _is_there(handle, path):
            break
        os.close(handle)  # whoever was before has removed it
    try:
        if mine:
            sign(handle)
        yield mine
    finally:
        if mine:
            path.unlink(missing_ok=True)
        os.close(handle)


def _have_turn(handle: int, end: float, say: Callable[[str], None], what: str) -> bool:
    wait = max(end - time.monotonic(), 0.0)
    try:
        mine = locked(handle, wait, lambda: say(f"{what}: waiting for {holder(handle)}"))
    except OSError:  # a file system without locks
        return False
    if not mine:
        say(f"{what}: {holder(handle)} is still at it after {wait:.0f} s; not waiting longer")
    return mine


def _is_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def locked(handle: int, wait: float, waiting: Callable[[], None] | None = None) -> bool:
    """Lock an open file; False if another process still held it after ``wait`` seconds.

    ``waiting`` is called once, if it takes longer than :data:`SOON`.
    """
    assert fcntl is not None
    began, told, pause = time.monotonic(), waiting is None, SHORTEST
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            passed = time.monotonic() - began
        if passed >= wait:
            return False
        if not told and passed >= SOON and waiting is not None:
            told = True
            waiting()
        time.sleep(min(pause, max(wait - passed, 0.0)))
        pause = min(2 * pause, LONGEST)


def sign(handle: int) -> None:
    """Write into a lock's file who holds it."""
    text = f"process {os.getpid()} on {socket.gethostname()}"[:HOLDER_BYTES]
    os.pwrite(handle, text.ljust(HOLDER_BYTES).encode(), 0)


def holder(handle: int) -> str:
    """Who has signed a lock last."""
    return os.pread(handle, HOLDER_BYTES, 0).decode(errors="replace").strip() or "another process"
