"""The knowledge pool of a run, checked when it is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ksel.config import KnowledgeConfig
from ksel.errors import UsageError, unknown_name
from ksel.knowledge.base import KnowledgeType, Loss, Request
from ksel.knowledge.kinds import KINDS
from ksel.knowledge.options import check_settings
from ksel.knowledge.specs import Spec, find_name, read_specs
from ksel.matching import Pairs, is_explicit, match_layers
from ksel.tasks import Task
from ksel.types import Batch, Shape, Signals, TeacherView

Schedule = Literal["constant", "growth", "decay"]
T = TypeVar("T")


@dataclass(frozen=True)
class KnowledgePool:
    """The ordered knowledge types of a run.

    Attributes:
        types: the K types, in the order of the action.
        projections: learned projections; a type's are under :func:`projection_key` of its spec,
            one for each pair of layers ("1_2"). The losses hold these modules: move and load
            them in place.
        weights: the K static weights.
        schedules: how each weight moves over a stage, see :func:`schedule_factor`.
    """

    types: tuple[KnowledgeType, ...]
    projections: nn.ModuleDict
    weights: tuple[float, ...]
    schedules: tuple[Schedule, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The types' specs, with the matching written out."""
        return tuple(type.spec for type in self.types)

    def factors(self, progress: float) -> tuple[float, ...]:
        """The K factors of the weights at this share of the stage."""
        return tuple(schedule_factor(schedule, progress) for schedule in self.schedules)

    def __len__(self) -> int:
        return len(self.types)

    def __iter__(self) -> Iterator[KnowledgeType]:
        return iter(self.types)


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """What a static weight is multiplied with.

    ``growth`` is the progress itself and ``decay`` what is left of it, so that the two add up to 1
    (the linear weight schedules of Lu et al. 2022). The very first update of a stage has progress
    0: a growing type is off in it.

    Args:
        schedule: constant, growth or decay.
        progress: share of the stage's updates done, in [0, 1).
    """
    if schedule == "growth":
        return progress
    return 1.0 - progress if schedule == "decay" else 1.0


def projection_key(spec: str) -> str:
    """A type's key in ``KnowledgePool.projections``."""
    return re.sub(r"\W", "_", spec.replace("@", "_at_"))


def build_pool(
    settings: KnowledgeConfig,
    *,
    task: Task,
    student: Shape,
    teachers: Sequence[TeacherView],
    seed: int,
) -> KnowledgePool:
    """Build the knowledge pool, or say why it cannot be.

    Args:
        settings: the pool and how its losses are formed.
        task: decides between classes, scores and spans.
        student: its shape.
        teachers: in the order of their numbers; the student reads the tokens of the first.
        seed: seed of the learned projections (float32, on the CPU).

    Raises:
        UsageError: an unknown kind, matching or teacher, a type named twice, a type that these
            models or this task do not allow, a setting out of range or one that no type in the
            pool uses.
    """
    specs = read_specs(settings.pool, len(teachers))
    check_settings(settings, frozenset(spec.kind for spec in specs))
    types, projections = [], nn.ModuleDict()
    for spec in specs:
        same_teacher = frozenset(other.kind for other in specs if other.source == spec.source)
        view = teachers[spec.source]
        request = _request(spec, same_teacher, settings, task, student, view, seed)
        part = KINDS[spec.kind].build(request)
        if part.projections:
            projections[projection_key(spec.name)] = nn.ModuleDict(part.projections)
        types.append(
            KnowledgeType(
                spec=spec.name,
                kind=spec.kind,
                pairs=part.pairs,
                unit=KINDS[spec.kind].unit,
                student=part.student,
                teacher=part.teacher,
                loss=partial(_outside_autocast, part.loss),
                source=spec.source,
                couples=part.couples,
            )
        )
    names = [spec.name for spec in specs]
    return KnowledgePool(
        tuple(types), projections, _weights(settings, names), _schedules(settings, names)
    )


def _outside_autocast(loss: Loss, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Casting the inputs is not enough: autocast lowers matrix products whatever they are given."""
    with torch.autocast(batch.attention_mask.device.type, enabled=False):
        return loss(student, teacher, batch)


def _request(
    spec: Spec,
    same_teacher: frozenset[str],
    settings: KnowledgeConfig,
    task: Task,
    student: Shape,
    view: TeacherView,
    seed: int,
) -> Request:
    kind, teacher = KINDS[spec.kind], view.shape
    pairs: Pairs = ()
    if kind.lowest_layer is not None:
        pairs = match_layers(spec.matching, student.layers, teacher.layers, spec=spec.name)
    request = Request(
        spec=spec.name,
        matching=spec.matching,
        pairs=pairs,
        explicit=is_explicit(spec.matching),
        pool_kinds=same_teacher,
        settings=settings,
        task=task,
        student=student,
        teacher=teacher,
        same_tokens=view.same_tokens,
        source=spec.source,
        seed=seed,
    )
    if any(layer < (kind.lowest_layer or 0) for pair in pairs for layer in pair):
        raise request.refuse(
            "matches layer 0, but the embedding output has no attention",
            f"Use layers from {kind.lowest_layer} on, or {request.other('hidden')}.",
        )
    if not (kind.pooled or view.same_tokens):
        _refuse_tokens(request)
    return request


def _refuse_tokens(request: Request) -> None:
    kinds = ["cls_hidden", "sample_similarity"] + ["response"] * (not request.task.is_span)
    matching = {"cls_hidden": request.matching or "skip"}
    others = ", ".join(request.other(kind, matching.get(kind, "")) for kind in kinds)
    raise request.refuse(
        "takes signals of single tokens, but teacher "
        f"{request.source + 1} has a tokenizer of its own, so its tokens do not line up with the "
        "student's",
        f"Use one of {others}, or a teacher with the first one's tokenizer.",
    )


def _weights(settings: KnowledgeConfig, names: list[str]) -> tuple[float, ...]:
    """The static weights in the order of the pool."""
    for key, weight in settings.weights.items():
        if not (weight > 0 and isfinite(weight)):
            raise UsageError(
                f"--knowledge.weights: {weight} for '{key}' is no weight. Give a number above 0; "
                "to leave a type out, take it out of --knowledge.pool."
            )
    given = _by_name(settings.weights, names, "--knowledge.weights", "weight")
    return tuple(given.get(name, 1.0) for name in names)


def _schedules(settings: KnowledgeConfig, names: list[str]) -> tuple[Schedule, ...]:
    """How the weights move, in the order of the pool."""
    option = "--knowledge.weight_schedules"
    for schedule in settings.weight_schedules.values():
        if schedule not in ("growth", "decay"):
            raise unknown_name("weight schedule", schedule, ["growth", "decay"], option)
    given = _by_name(settings.weight_schedules, names, option, "schedule")
    return tuple(given.get(name, "constant") for name in names)


def _by_name(given: dict[str, T], names: list[str], option: str, what: str) -> dict[str, T]:
    """Settings of single types under the types' full names."""
    found: dict[str, T] = {}
    for key, value in given.items():
        name = find_name(key, names, option)
        if name in found:
            raise UsageError(
                f"{option}: '{name}' has two {what}s, under its full name and under a shorter "
                "one. Give one."
            )
        found[name] = value
    return found
