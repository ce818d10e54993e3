"""Is a replayed student the saved one? If not: which tensor, which decision, and why perhaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from ksel.artifacts import versions
from ksel.errors import UsageError
from ksel.replays import STAGE, Replay
from ksel.saved import SavedRun
from ksel.setup import Setup
from ksel.trajectory import DecisionRow, Schedule

TOLERANCE = 0.05
"""On CUDA: largest distance between the students, as a share of the way the saved one went."""
VECTORS = ("loss", "scale", "grad_norm")
SCALARS = ("update", "objective", "drop", "reward")


@dataclass(frozen=True)
class WeightDifference:
    """Where two students differ.

    Attributes:
        tensor: the first tensor that differs, in the order of the model.
        largest: its largest absolute difference; nan if one of the numbers is not finite.
        differing: how many tensors differ.
        tensors: how many there are.
    """

    tensor: str
    largest: float
    differing: int
    tensors: int

    def __str__(self) -> str:
        return (
            f"{self.differing} of {self.tensors} tensors differ, the first is {self.tensor} "
            f"(largest difference {self.largest:.3g})"
        )


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved student.

    Raises:
        UsageError: the file is cut short or damaged.
    """
    path = folder / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(
            f"RUN: {path} is damaged or half-written ({error}). Copy the run again, or make it "
            f"again with `python -m ksel.run --config`."
        ) from error


def copy_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights on the CPU, in the model's order."""
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}


def weight_difference(
    saved: Mapping[str, Tensor], replayed: Mapping[str, Tensor]
) -> WeightDifference | None:
    """Compare two sets of weights bit by bit; None if they are identical.

    Raises:
        UsageError: the two do not have the same tensors.
    """
    if set(saved) != set(replayed) or any(
        saved[n].shape != replayed[n].shape or saved[n].dtype != replayed[n].dtype for n in saved
    ):
        odd = sorted(set(saved) ^ set(replayed)) or [
            n for n in saved if saved[n].shape != replayed[n].shape
        ]
        raise UsageError(
            f"RUN: the saved student is not of the shape that the run's settings give: it differs "
            f"in {', '.join(odd[:3]) or 'the precision of its weights'}. Was the folder student replaced?"
        )
    different = [name for name in replayed if not _same_bits(saved[name], replayed[name])]
    if not different:
        return None
    gap = (saved[different[0]].double() - replayed[different[0]].double()).abs().max()
    return WeightDifference(different[0], float(gap), len(different), len(replayed))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # bytes, so that equal nan count as equal, and 0 and -0 as different
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def relative_distance(
    saved: Mapping[str, Tensor], replayed: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> float:
    """Distance between two students over the distance that the saved one went from its start."""

    def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        return math.sqrt(sum(float((a[n].double() - b[n].double()).square().sum()) for n in a))

    apart, way = distance(saved, replayed), distance(saved, start)
    return 0.0 if apart == 0 else apart / way if way else math.inf


@dataclass(frozen=True)
class DecisionDifference:
    """The first decision that went otherwise.

    Attributes:
        decision: its number, from 0.
        update: optimiser updates done before it.
        what: column and type, e.g. ``loss of response``.
        logged, replayed: the two numbers.
    """

    decision: int
    update: int
    what: str
    logged: float
    replayed: float

    def __str__(self) -> str:
        return (
            f"decision {self.decision} (after {self.update} updates): {self.what} was logged as "
            f"{_number(self.logged)} and is {_number(self.replayed)} in the re-run"
        )


def _number(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else "not there"


def decision_difference(
    logged: pd.DataFrame, replayed: Sequence[DecisionRow], pool: Sequence[str]
) -> DecisionDifference | None:
    """The first logged decision whose losses, scales or rewards are not those of the re-run.

    Args:
        logged: the decisions of one episode, as :class:`ksel.trajectory.Schedule` gives them.
        replayed: those of the re-run.
        pool: names of the knowledge types.
    """
    for number, (_, old) in enumerate(logged.iterrows()):
        update = int(old["update"])
        if number >= len(replayed):
            return DecisionDifference(number, update, "the decision", update, math.nan)
        new = replayed[number]
        for column in VECTORS:
            a, b = np.asarray(old[column]), getattr(new, column)
            odd = np.flatnonzero(~((a == b) | (np.isnan(a) & np.isnan(b))))
            if len(odd):
                k = int(odd[0])
                what = f"{column} of {pool[k]}"
                return DecisionDifference(number, update, what, float(a[k]), float(b[k]))
        for column in SCALARS:
            x, y = np.float32(old[column]), np.float32(getattr(new, column))
            if not (x == y or (np.isnan(x) and np.isnan(y))):
                return DecisionDifference(number, update, column, float(x), float(y))
    return None


def likely_causes(
    packages: tuple[Mapping[str, Any], Mapping[str, Any]],
    threads: tuple[int, int],
    inputs: tuple[Mapping[str, str], Mapping[str, str]],
) -> list[str]:
    """What is not as it was when the run was made; each pair is (then, now)."""
    causes = [
        f"the {name} {'is' if name.startswith(('teacher', 'student')) else 'are'} not the run's "
        f"(files, settings or libraries changed)"
        for name, value in inputs[0].items()
        if inputs[1].get(name) != value
    ]
    if threads[0] != threads[1]:
        causes.append(f"threads: {threads[0]} then, {threads[1]} now")
    then, now = packages
    causes += [
        f"{name}: {then.get(name)} then, {now.get(name)} now"
        for name in dict.fromkeys([*then, *now])
        if name != "threads" and then and then.get(name) != now.get(name)
    ]
    return causes


def judge(
    replay: Replay,
    run: SavedRun,
    schedule: Schedule,
    setup: Setup,
    found: Mapping[str, str],
    start: Mapping[str, Tensor],
) -> None:
    """Compare a re-run with the run's saved student; note verdict and details in the replay.

    Args:
        replay: of the run's own seed; its student is the one in ``setup``.
        run: the run.
        schedule: the run's schedule.
        setup: what the re-run was made in.
        found: its inputs, see :func:`ksel.saved.inputs`.
        start: the student's initial weights.

    Raises:
        UsageError: the run has no saved student, or a damaged one, or one of another shape.
    """
    saved, weights = load_weights(run.needs_student()), copy_weights(setup.student)
    difference = weight_difference(saved, weights)
    replay.compared, replay.identical = "the saved student", difference is None
    if difference is None:
        return
    replay.details.append(str(difference))
    if setup.device.type == "cuda" or ("gpu" in run.versions and run.config.device != "cpu"):
        _judge_by_distance(replay, saved, weights, start)
    logged = schedule.stage(STAGE, 0)
    moved = decision_difference(logged, replay.rows, schedule.pool)
    replay.details.append(
        f"they went apart at {moved}"
        if moved is not None
        else f"all {len(logged)} logged decisions agree with the re-run's"
    )
    updates = schedule.meta.get("student_updates", replay.updates)
    if updates != replay.updates:
        replay.details.append(
            f"the run was stopped inside a decision: its student has had {updates} updates, the "
            f"schedule covers {replay.updates}"
        )
    causes = likely_causes(
        (run.versions, versions()),
        (run.config.threads, setup.config.threads),
        (schedule.meta.get("inputs", {}), found),
    )
    if moved is None and not causes and updates == replay.updates:
        causes = ["student/model.safetensors was changed or replaced"]
    replay.details += [f"possible cause: {cause}" for cause in causes]


def judge_twice(
    replay: Replay,
    once: Mapping[str, Tensor],
    again: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    device: torch.device,
) -> None:
    """Compare two students of the same seed and actions; note the verdict in the replay.

    Args:
        replay: of this seed.
        once, again: the weights after the first play and after the second.
        start: the initial weights of both.
        device: where both were trained; on CUDA the comparison is with a tolerance.
    """
    difference = weight_difference(once, again)
    replay.compared, replay.identical = "itself, played twice", difference is None
    if difference is None:
        return
    replay.details.append(str(difference))
    if device.type == "cuda":
        _judge_by_distance(replay, once, again, start)


def _judge_by_distance(
    replay: Replay,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
) -> None:
    apart = relative_distance(first, second, start)
    replay.identical = apart <= TOLERANCE
    replay.details.append(
        f"on CUDA bitwise equality is not promised; the two students are apart by {apart:.2%} of "
        f"the way the first one went (tolerance {TOLERANCE:.0%})"
    )
