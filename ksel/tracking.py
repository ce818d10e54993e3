"""What one can watch while a run goes on: metrics.jsonl, TensorBoard, and progress bars.

Progress bars and progress lines go to stderr; messages (:meth:`Progress.say`) go to stdout, so
that ``> log.txt`` keeps the messages and leaves the bars on the terminal.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from torch.utils.tensorboard import SummaryWriter

from ksel.errors import UsageError
from ksel.plots import heat_map_image

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

# The environment's plain names and the tags they are logged under.
TAGS = {
    "reward": "reward/measured",
    "objective": "reward/objective",
    "drop": "reward/drop",
    "predicted": "reward/predicted",
    "correlation": "reward/correlation",
    "slope": "reward/slope",
    "sign_agreement": "reward/sign_agreement",
    "trusted": "reward/trusted",
    "windows": "reward/windows",
    "window_predicted": "reward/window_predicted",
    "window_drop": "reward/window_drop",
    "reward_scale": "reward/scale",
    "clip_norm": "grad_norm/total",
}
CHARTS = ("schedule", "loss", "grad_norm", "credit")


class Tracker:
    """Writes a run's measurements to ``metrics.jsonl`` and to TensorBoard, under the same names.

    Tags: ``schedule/<type>`` (action), ``loss/<type>``, ``grad_norm/<type>``, ``credit/<type>``,
    ``reward/measured``, ``student/<metric>``, ``cost/*``; the environment's plain names are
    renamed as in :data:`TAGS`. Every line of ``metrics.jsonl`` is one write of a whole line.

    Args:
        folder: the run's folder; it exists.
        pool: names of the K knowledge types.
        purge: stage -> step from which on TensorBoard forgets what it was told (missing = 0);
            None = there is nothing to forget.

    Raises:
        UsageError: ``metrics.jsonl`` cannot be opened.
    """

    def __init__(
        self, folder: Path, pool: Sequence[str], purge: Mapping[str, int] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.pool = tuple(pool)
        self._purge = purge
        self._writers: dict[str, SummaryWriter] = {}
        self._with_layout = False
        path = self.folder / METRICS_FILE
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")
        except OSError as error:
            raise _cannot_write(path, error) from error

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, stage: str, step: int, values: Mapping[str, float | str]) -> None:
        """Record measurements.

        Args:
            stage: ``search``, ``final``, ``reference:<name>``, ``teacher``, ...
            step: optimiser updates done; grows within a stage.
            values: tag -> number. A number that is not finite becomes null and is no point in
                TensorBoard; a text goes to ``metrics.jsonl`` only; ``update`` is left out, being
                the step.

        Raises:
            UsageError: the disk is full.
            RuntimeError: the tracker is closed.
        """
        line: dict[str, float | str | None] = {"stage": stage, "step": int(step)}
        for key, value in values.items():
            if key == "update":
                continue
            tag = TAGS.get(key, key)
            if isinstance(value, str):
                line[tag] = value
                continue
            number = float(value)
            finite = math.isfinite(number)
            line[tag] = number if finite else None
            if finite:
                self.writer(stage).add_scalar(tag, number, step)
        self._append(line)

    def log_decision(
        self,
        stage: str,
        step: int,
        *,
        action: np.ndarray,
        reward: float,
        info: Mapping[str, Any],
    ) -> None:
        """Record one decision: action [K], reward, the environment's ``info``.

        A reward made from a predicted drop is ``reward/paid``, one from a true drop ``reward/measured``.

        Raises:
            UsageError: the disk is full.
        """
        values = {f"schedule/{name}": float(a) for name, a in zip(self.pool, action, strict=True)}
        values["reward/paid" if "predicted" in info else "reward"] = float(reward)
        self.log(stage, step, {**values, **info})

    def heat_map(
        self, stage: str, actions: np.ndarray, updates: np.ndarray, ends: Sequence[int] = ()
    ) -> None:
        """Add the picture of a schedule (types x time) to TensorBoard as ``schedule/heat_map``.

        Args:
            stage: as in :meth:`log`.
            actions: [D, K] bits or weights.
            updates: [D] optimiser updates done before each decision.
            ends: update after the last one of each stage of the run.
        """
        image = heat_map_image(actions, self.pool, updates, f"Schedule: {stage}", ends)
        step = int(updates[-1])
        self.writer(stage).add_image("schedule/heat_map", image, step, dataformats="HWC")
        self.writer(stage).flush()

    def layout(self) -> None:
        """Have TensorBoard's custom-scalar page show all types in one chart, in every stage."""
        if not self._with_layout:
            self._with_layout = True
            for writer in self._writers.values():
                writer.add_custom_scalars(_layout(self.pool))

    def writer(self, stage: str) -> SummaryWriter:
        """The stage's TensorBoard writer, opened at first use.

        Whoever else has scalars for a stage (Stable-Baselines3) must write through it:
        TensorBoard reads one event file of a folder at a time.

        Raises:
            RuntimeError: the tracker is closed.
        """
        if self._file is None:
            raise RuntimeError("the tracker is closed")
        if stage not in self._writers:
            folder = self.folder / TENSORBOARD_FOLDER / stage_folder(stage)
            step = None if self._purge is None else self._purge.get(stage, 0)
            self._writers[stage] = SummaryWriter(str(folder), purge_step=step)
            if self._with_layout:
                self._writers[stage].add_custom_scalars(_layout(self.pool))
        return self._writers[stage]

    def close(self) -> None:
        """Write everything out; may be called twice."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError("the tracker is closed")
        content = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            # One system call per line: Ctrl-C cannot come between its halves.
            while content:
                content = content[os.write(self._file, content) :]
        except OSError as error:
            raise _cannot_write(self.folder / METRICS_FILE, error) from error


def stage_folder(stage: str) -> str:
    """The stage's name as a folder: ``reference:hidden/skip`` -> ``reference-hidden-skip``."""
    return re.sub(r"[^\w.-]+", "-", stage)


def training_loss(info: Mapping[str, Any]) -> float:
    """What the decision's updates minimised: the weighted sum of the selected losses."""
    weights = {k.removeprefix("weight/"): v for k, v in info.items() if k.startswith("weight/")}
    return float(sum(w * info.get(f"loss/{name}", 0.0) for name, w in weights.items() if w))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a line cut off by a crash is left out.

    Raises:
        UsageError: the file does not exist or cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"RUN: cannot read {path}: {error.strerror or error}.") from error
    lines = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "stage" in line and "step" in line:
            lines.append(line)
    return lines


def _layout(pool: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    # TensorBoard takes the tags of a chart for regular expressions matched from the start.
    charts: dict[str, list[Any]] = {
        group: ["Multiline", [f"{re.escape(f'{group}/{name}')}$" for name in pool]]
        for group in CHARTS
    }
    return {"knowledge types": charts}


def _cannot_write(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write {path}: {error.strerror or error}. Free space or choose another folder "
        f"with --out; what was written before is whole."
    )


class Stage:
    """One bar (or one sequence of lines) of a :class:`Progress`; made by :meth:`Progress.stage`."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self._progress = progress
        self._fields: dict[str, float] = {}
        self._began = self._said = progress.clock()
        self._open = True
        self._task = progress.live.add_task(name, total=total, text="") if progress.live else None

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, n: int = 1, **fields: float) -> None:
        """Count ``n`` steps as done and show ``fields`` (loss, reward, a metric) beside the bar."""
        self.done += n
        self._fields.update(fields)
        progress = self._progress
        if progress.live and self._task is not None:
            progress.live.update(self._task, completed=self.done, text=self._text())
        elif self.done < self.total and progress.clock() - self._said >= progress.every:
            self._line()

    def close(self) -> None:
        """End the stage: the bar stays as it is, or the last line is printed."""
        if not self._open:
            return
        self._open = False
        if self._progress.live and self._task is not None:
            self._progress.live.update(self._task, text=self._text())
            self._progress.live.stop_task(self._task)
        else:
            self._line()

    def _line(self) -> None:
        self._said = self._progress.clock()
        text = f"{self.name}  {self.done}/{self.total}  {self._text()}"
        print(text.rstrip(), file=sys.stderr, flush=True)

    def _text(self) -> str:
        parts = [f"{name} {_number(name, value)}" for name, value in self._fields.items()]
        elapsed = self._progress.clock() - self._began
        if not self._open:
            parts.append(f"{_duration(elapsed)} taken")
        elif self.done:
            left = elapsed / self.done * max(self.total - self.done, 0)
            parts.append(f"{_duration(left)} left")
        return "  ".join(parts)


class Progress:
    """Progress of the stages of a run, on stderr.

    On a terminal each stage is a live bar. Elsewhere (a pipe, a CI log) a stage prints at most a
    line every ``every`` seconds and one at its end.

    Args:
        live: draw bars; None = if stderr is a terminal.
        every: least time between two lines of a stage without bars (seconds).
        clock: gives the time (seconds).
    """

    def __init__(
        self,
        live: bool | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every = every
        self.clock = clock
        self.live: RichProgress | None = None
        self._stages: list[Stage] = []
        console = Console(stderr=True)
        if console.is_terminal if live is None else live:
            self.live = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=console,
                # A stdout that is a file or pipe must not end up among the bars.
                redirect_stdout=sys.stdout.isatty(),
                refresh_per_second=4,
            )

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        for stage in self._stages:
            stage.close()
        if self.live:
            self.live.stop()

    def stage(self, name: str, total: int) -> Stage:
        """Begin a stage of ``total`` steps; use it with ``with``, or close it."""
        stage = Stage(self, name, total)
        self._stages.append(stage)
        return stage

    def say(self, message: str) -> None:
        """Print a line on stdout without breaking the bars."""
        print(message, flush=True)


class SilentStage:
    """A :class:`Stage` that counts and shows nothing."""

    def __init__(self) -> None:
        self.done = 0

    def __enter__(self) -> SilentStage:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, n: int = 1, **_: float) -> None:
        """Count ``n`` steps as done."""
        self.done += n

    def close(self) -> None:
        """End the stage."""


class Silent:
    """In the place of a :class:`Progress` where nothing is to be shown (an environment's set-up)."""

    def stage(self, name: str, total: int) -> SilentStage:
        """Begin a stage."""
        return SilentStage()

    def say(self, message: str) -> None:
        """Keep the message to itself."""


def _number(name: str, value: float) -> str:
    return f"{value:+.2f}" if name in ("reward", "drop") else f"{value:.3g}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
