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


def stage_words(stage: str) -> str:
    """What a stage is called in a sentence: ``final`` is the final student."""
    if stage == "final":
        return "final student"
    return stage.replace("reference:", "reference ")


def trust_history(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """When each stage lost its trust in predictions and found it again, in lines.

    Args:
        lines: of ``metrics.jsonl``; ``step`` counts the updates of a stage.
    """
    changes: dict[str, list[tuple[bool, int]]] = {}
    for line in lines:
        trusted = line.get("reward/trusted")
        if trusted is None:
            continue
        found = changes.setdefault(str(line["stage"]), [(True, 0)])
        if bool(trusted) != found[-1][0]:
            found.append((bool(trusted), int(line["step"])))
    told = []
    for stage, found in changes.items():
        parts = [
            f"{'trusted again' if good else 'not trusted'} from update {at} on"
            for good, at in found[1:]
        ]
        if parts:
            told.append(f"{stage_words(stage)}: {', '.join(parts)}")
    return told


@dataclass
class TrustWatch:
    """Notices when a stage loses trust in its credit for the first time, and when it comes back."""

    lost: bool = False
    back: bool = False
    stage: str = ""

    def __call__(self, info: Mapping[str, Any], stage: str) -> str | None:
        """A line for the user, or None.

        Args:
            info: the environment's, of one decision.
            stage: what the decision belongs to: ``search``, ``final``.
        """
        if stage != self.stage:
            self.lost, self.back, self.stage = False, False, stage
        if "trusted" not in info:
            return None
        where = stage_words(stage)
        if not info["trusted"] and not self.lost:
            self.lost = True
            return (
                f"credit, {where}: NOT trusted from update {info['update']} on: true drops do not go with "
                f"predicted ones ({_figures(info)})"
            )
        if info["trusted"] and self.lost and not self.back:
            self.back = True
            figures = _figures(info)
            return f"credit, {where}: trusted again from update {info['update']} on ({figures})"
        return None


def _figures(values: Mapping[str, Any]) -> str:
    return (
        f"correlation {values['correlation']:.2f}, slope {values['slope']:.2g}, "
        f"same sign in {100 * values['sign_agreement']:.0f} %"
    )
