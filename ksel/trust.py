"""Does credit tell the truth? What a run says of it: in ``summary.json``, in a line, on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RECENT = 20
"""Windows that are looked at, the last ones."""
FEWEST = 8
"""Windows from which on the correlation is judged."""
FIGURES = ("slope", "correlation", "sign_agreement", "trusted")


def calibration(lines: Iterable[Mapping[str, Any]], stage: str = "final") -> dict[str, Any]:
    """The last judgement of a stage with amortised rewards, for ``summary.json``.

    Args:
        lines: of ``metrics.jsonl``.
        stage: whose lines to read.

    Returns:
        ``windows`` looked at; ``slope``, ``correlation``, ``sign_agreement`` and ``trusted`` (True or
        False), all None with a ``reason`` where there are too few windows.
    """
    last: dict[str, Any] = {}
    for line in lines:
        if line["stage"] == stage:
            found = {name: line.get(f"reward/{name}") for name in ("windows", *FIGURES)}
            last |= {name: value for name, value in found.items() if value is not None}
    windows = int(last.get("windows", 0))
    figures = {name: last.get(name) for name in FIGURES}
    reason = None
    if figures["trusted"] is None:
        over = "1 window is" if windows == 1 else f"{windows} windows are"
        reason = f"{over} over, and {FEWEST} are needed"
    else:
        figures["trusted"] = bool(figures["trusted"])
    return {"windows": windows, **figures, "reason": reason}


def trust_line(calibration: Mapping[str, Any]) -> str:
    """What :func:`calibration` found, in a line."""
    windows = calibration["windows"]
    if calibration["trusted"] is None:
        return f"credit: too few windows ({windows} of {FEWEST}) to judge"
    how, verdict = ("go", "trusted") if calibration["trusted"] else ("do not go", "NOT trusted")
    return (
        f"credit: over {windows} windows true drops {how} with predicted ones, "
        f"{_figures(calibration)}: {verdict}"
    )


@dataclass
class TrustWatch:
    """Notices when a run loses trust in its credit for the first time, and when it comes back."""

    lost: bool = False
    back: bool = False

    def __call__(self, info: Mapping[str, Any]) -> str | None:
        """A line for the user, or None.

        Args:
            info: the environment's, of one decision.
        """
        if "trusted" not in info:
            return None
        if not info["trusted"] and not self.lost:
            self.lost = True
            return (
                f"credit: NOT trusted from update {info['update']} on: true drops do not go with "
                f"predicted ones ({_figures(info)})"
            )
        if info["trusted"] and self.lost and not self.back:
            self.back = True
            return f"credit: trusted again from update {info['update']} on ({_figures(info)})"
        return None


def _figures(values: Mapping[str, Any]) -> str:
    return (
        f"correlation {values['correlation']:.2f}, slope {values['slope']:.2g}, "
        f"same sign in {100 * values['sign_agreement']:.0f} %"
    )
