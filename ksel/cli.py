"""What all entry points share: mistakes end with one message and exit code 2, not a traceback."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ksel.errors import UsageError

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


def guard(main: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run an entry point.

    Args:
        main: takes the arguments without ``--debug``, gives the exit code.
        argv: the arguments; None = those of the process. ``--debug`` anywhere among them shows
            the traceback of a mistake.

    Returns:
        What ``main`` gives; 2 after a :class:`UsageError`, a full disk, a file that may not be
        written, or a full GPU; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return main(arguments)
    except UsageError as error:
        return _refuse(str(error), debug)
    except OSError as error:
        message = _about_files(error)
        if message is None:
            raise
        return _refuse(message, debug)
    except RuntimeError as error:
        if not _is_full_gpu(error):
            raise
        return _refuse(
            "the GPU's memory is full. Raise --optim.accumulate (smaller parts of the same "
            "batch), or lower --batching.size.",
            debug,
        )
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("ksel: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED_EXIT


@contextmanager
def shielded() -> Iterator[None]:
    """Let Ctrl-C wait while a run writes what there is; a second one inside breaks it off.

    Whatever breaks off leaves no half-written file: see :mod:`ksel.files`.

    Raises:
        KeyboardInterrupt: Ctrl-C came twice.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        print("ksel: still writing what there is; Ctrl-C again gives up", file=sys.stderr)

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def quiet_libraries() -> None:
    """Keep transformers' and datasets' own bars and load reports out of ksel's output."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _about_files(error: OSError) -> str | None:
    """The message for a full disk or a forbidden file; None for other errors."""
    file = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"cannot write{file}: {error.strerror}. Free space or choose another folder "
            f"(--out, --store)."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"no access to{file or ' a file'}: {error.strerror}. Correct the permissions or choose "
            f"another folder (--out, --store)."
        )
    return None


def _is_full_gpu(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")  # not imported for this alone; that takes seconds
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def _refuse(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"ksel: error: {message}", file=sys.stderr)
    return USAGE_EXIT
