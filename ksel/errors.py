"""The one exception a user's mistake raises, and the search for the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake in what the user asked for or supplied.

    The message names the option (or file) and the fix. Entry points print it without a
    traceback and end with exit code 2.
    """


def unknown_name(what: str, given: str, known: Iterable[str], option: str) -> UsageError:
    """Build the error for a name that is not in a table.

    Args:
        what: what the name stands for, e.g. ``"task"``.
        given: the name the user gave.
        known: the valid names.
        option: the option the name came from, e.g. ``"--task"``.

    Returns:
        An error that lists the valid names and, where one is near, the likely one.
    """
    names = list(known)
    lower = {name.lower(): name for name in reversed(names)}  # of two alike the first
    near = difflib.get_close_matches(given.lower(), lower, n=1, cutoff=0.5)
    hint = f" Did you mean '{lower[near[0]]}'?" if near else ""
    return UsageError(f"{option}: unknown {what} '{given}'.{hint} Known: {', '.join(names)}.")
