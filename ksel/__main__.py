"""``python -m ksel`` (installed: ``ksel``): lists the commands and hands over to one of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ksel.cli import USAGE_EXIT, guard
from ksel.errors import unknown_name

COMMANDS = {
    "run": "distil a student while an agent selects the teacher's signals",
    "replay": "validate a run, or play its schedule or policy on another seed, student or task",
    "predict": "write a run's predictions for a file of examples",
    "compare": "run methods x tasks x seeds, paired; tables with intervals and one page",
    "sweep": "run a grid of settings; one table and one plot",
    "report": "write a run's report.html",
    "offline": "estimate what other policies would have earned on logged runs",
    "export": "write recorded decisions as a data set: Minari, or plain arrays",
}
"""Command -> one line; each is a module of this package with a ``main(argv)``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a command; returns its exit code, 2 if there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        print(f"ksel: error: {unknown_name('command', name, COMMANDS, 'ksel')}", file=sys.stderr)
        return USAGE_EXIT
    return guard(importlib.import_module(f"ksel.{name}").main, rest)


def usage() -> str:
    """The commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "ksel: distil a teacher into a small student; an agent selects what to transfer.",
            "",
            "usage: ksel COMMAND ...   (or python -m ksel.COMMAND ...)",
            "",
            *lines,
            "",
            "ksel COMMAND --help explains a command; --debug shows the traceback of an error.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
