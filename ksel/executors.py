"""Where the cells of a comparison run: in this process, or in worker processes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ksel.errors import UsageError, unknown_name

TRIES = 2
"""How often a piece of work is begun that a dying worker takes along."""
PATIENCE = 30.0
"""Seconds for a worker to write what there is after it is told to stop."""
NAMES = ("inline", "local", "ray")


@dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes:
        name: unique among the pieces.
        payload: what it is, as JSON.
    """

    name: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """What became of a piece of work.

    Attributes:
        work: the piece.
        result: what it gave, as JSON; None where it failed.
        error: why it failed, in a line.
        details: the traceback, where there is one.
    """

    work: Work
    result: dict[str, Any] | None
    error: str | None = None
    details: str | None = None


Do = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Does a piece of work: payload -> result; raises where it fails."""


class Executor(Protocol):
    """Takes pieces of work and gives back what became of them, in the order in which they end."""

    def submit(self, work: Work) -> None:
        """Take a piece; may be called while results are read."""

    def finished(self) -> Iterator[Done]:
        """What became of the pieces, until none is left."""
        ...

    def __enter__(self) -> Executor:
        """Start workers."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        """Stop what still runs: each piece is interrupted, and writes what there is."""


def failed(work: Work, error: Exception) -> Done:
    """What is said of a piece whose work raised this."""
    line = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
    details = "".join(traceback.format_exception(error))
    return Done(work, None, line, details)


def answer(do: Do, payload: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's answer to a piece, which can be sent: what it gave, or how it failed."""
    try:
        return {"result": do(payload)}
    except Exception as error:
        found = failed(Work("", dict(payload)), error)
        return {"error": found.error, "details": found.details}


def opened(work: Work, sent: Mapping[str, Any]) -> Done:
    """What a worker's answer to a piece says."""
    if "error" in sent:
        return Done(work, None, sent["error"], sent["details"])
    return Done(work, sent["result"])


def threads_environment(threads: int) -> dict[str, str]:
    """Variables that must be set before torch is imported: threads that do not spin while they wait."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**counts, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def check_executor(name: str) -> None:
    """Refuse a name that is no executor's.

    Raises:
        UsageError: with those there are.
    """
    if name not in NAMES:
        raise unknown_name("executor", name, NAMES, "--executor")


# --------------------------------------------------------------------------- in this process


@dataclass
class Inline:
    """One piece after the other, in this process.

    Attributes:
        do: does a piece.
    """

    do: Do
    _waiting: deque[Work] = field(default_factory=deque)

    def submit(self, work: Work) -> None:
        """Take a piece."""
        self._waiting.append(work)

    def finished(self) -> Iterator[Done]:
        """Do one piece after the other."""
        while self._waiting:
            work = self._waiting.popleft()
            yield opened(work, answer(self.do, work.payload))

    def __enter__(self) -> Inline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._waiting.clear()


# --------------------------------------------------------------------------- worker processes


class Local:
    """Worker processes of this machine, each with its own interpreter and a fixed number of threads.

    A worker reads payloads, one JSON line each, from its standard input and answers each with a
    line ``{"result": ...}`` or ``{"error": ..., "details": ...}``. It lives on for the next piece.
    Where its input ends it stops what it does. One that dies is replaced.

    Args:
        command: starts a worker.
        workers: how many.
        threads: of each.
        log: where they write what belongs to no piece.
    """

    def __init__(self, command: Sequence[str], workers: int, threads: int, log: Path) -> None:
        self.command = list(command)
        self.log = log
        self.environment = {**os.environ, **threads_environment(threads)}
        self._waiting: queue.Queue[Work | None] = queue.Queue()
        self._done: queue.Queue[Done] = queue.Queue()
        self._left = 0
        self._closing = threading.Event()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._seats = [
            threading.Thread(target=self._serve, args=(seat,), daemon=True)
            for seat in range(workers)
        ]

    def submit(self, work: Work) -> None:
        """Take a piece."""
        self._left += 1
        self._waiting.put(work)

    def finished(self) -> Iterator[Done]:
        """What became of the pieces, as they end."""
        while self._left:
            done = self._done.get()
            self._left -= 1
            yield done

    def __enter__(self) -> Local:
        for seat in self._seats:
            seat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._closing.set()
        processes = list(self._processes.values())
        for process in processes:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()  # a worker takes this as the order to stop
        for process in processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for _seat in self._seats:
            self._waiting.put(None)
        for seat in self._seats:
            seat.join()

    def _serve(self, seat: int) -> None:
        """One seat: a worker process, and a new one whenever it dies."""
        while (work := self._waiting.get()) is not None and not self._closing.is_set():
            done = None
            for _ in range(TRIES):
                if self._closing.is_set():
                    return
                done = self._ask(seat, work)
                if done.result is not None or done.details is not None:
                    break
            assert done is not None
            self._done.put(done)

    def _ask(self, seat: int, work: Work) -> Done:
        """Have the seat's worker do a piece; an error without details is the worker's death."""
        try:
            process = self._process(seat)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(work.payload) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):  # it died before, or its pipe was closed meanwhile
            line = ""
        if not line:
            return Done(work, None, self._death(seat))
        return opened(work, json.loads(line))

    def _process(self, seat: int) -> subprocess.Popen[str]:
        if seat not in self._processes:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as log:
                self._processes[seat] = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self.environment,
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches this process alone, which stops them
                )
        return self._processes[seat]

    def _death(self, seat: int) -> str:
        process = self._processes.pop(seat, None)
        if process is None:
            return "its worker process could not be started"
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        return f"its worker process died {TRIES} times ({_reason(code)})"


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    memory = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{memory}"


# --------------------------------------------------------------------------- the worker's side


def serve(do: Do) -> int:
    """Be a worker of :class:`Local`: do the pieces that come in, until the input ends.

    Standard output is for answers alone; what a piece prints goes where ``do`` sends it.

    Args:
        do: does a piece.

    Returns:
        The exit code.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pieces: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            pieces.put(line)
        pieces.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (line := pieces.get()) is not None:
            busy.set()
            sent = answer(do, json.loads(line))
            busy.clear()
            answers.write(json.dumps(sent) + "\n")
            answers.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    return 0


@contextlib.contextmanager
def into_log(path: Path) -> Iterator[None]:
    """Send all that this process prints, its libraries too, into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("a", encoding="utf-8") as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
