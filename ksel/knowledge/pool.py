"""The table of kinds, and the knowledge pool of a run, checked when it is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from ksel.config import KnowledgeConfig
from ksel.errors import UsageError, unknown_name
from ksel.knowledge.attention import build_attention
from ksel.knowledge.base import Kind, KnowledgeType, Loss, Request
from ksel.knowledge.fsp import build_fsp
from ksel.knowledge.outputs import build_label, build_response
from ksel.knowledge.relations import build_relation
from ksel.knowledge.states import build_cls_hidden, build_hidden
from ksel.matching import DEFAULT_MATCHING, Pairs, is_explicit, match_layers
from ksel.tasks import Task
from ksel.types import Batch, Shape, Signals

KINDS: dict[str, Kind] = {
    "label": Kind("the gold label: cross-entropy, or squared error", "example", build_label),
    "response": Kind(
        "the teacher's output: T^2 KL(teacher || student), or squared difference",
        "example",
        build_response,
        settings=("temperature",),
    ),
    "cls_hidden": Kind(
        "[CLS] states of matched layers: squared distance (Patient KD)",
        "example",
        build_cls_hidden,
        lowest_layer=0,
        settings=("normalize_cls",),
    ),
    "hidden": Kind(
        "token states of matched layers: MSE, with a learned projection if widths differ",
        "token",
        build_hidden,
        lowest_layer=0,
    ),
    "attention": Kind(
        "attention maps of matched layers: MSE or KL",
        "token",
        build_attention,
        lowest_layer=1,
        settings=("attention_loss",),
    ),
    "query_relation": Kind(
        "relations among the queries of matched layers: KL (MiniLMv2)",
        "token",
        partial(build_relation, vectors="query"),
        lowest_layer=1,
        settings=("relation_heads",),
    ),
    "key_relation": Kind(
        "relations among the keys of matched layers: KL (MiniLMv2)",
        "token",
        partial(build_relation, vectors="key"),
        lowest_layer=1,
        settings=("relation_heads",),
    ),
    "value_relation": Kind(
        "relations among the values of matched layers: KL (MiniLM, MiniLMv2)",
        "token",
        partial(build_relation, vectors="value"),
        lowest_layer=1,
        settings=("relation_heads",),
    ),
    "fsp": Kind(
        "Gram matrices between consecutive matched layers: MSE",
        "example",
        build_fsp,
        lowest_layer=0,
    ),
}
"""Kind -> how to build it. A new kind is one file and one row."""


@dataclass(frozen=True)
class KnowledgePool:
    """The ordered knowledge types of a run.

    Attributes:
        types: the K types, in the order of the action.
        projections: learned projections; a type's are under :func:`projection_key` of its spec,
            one for each pair of layers ("1_2"). The losses hold these modules: move and load
            them in place.
        weights: the K static weights.
    """

    types: tuple[KnowledgeType, ...]
    projections: nn.ModuleDict
    weights: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The types' specs, with the matching written out."""
        return tuple(type.spec for type in self.types)

    def __len__(self) -> int:
        return len(self.types)

    def __iter__(self) -> Iterator[KnowledgeType]:
        return iter(self.types)


def projection_key(spec: str) -> str:
    """A type's key in ``KnowledgePool.projections``."""
    return re.sub(r"\W", "_", spec)


def build_pool(
    settings: KnowledgeConfig, *, task: Task, student: Shape, teacher: Shape, seed: int
) -> KnowledgePool:
    """Build the knowledge pool, or say why it cannot be.

    Args:
        settings: the pool and how its losses are formed.
        task: decides between classification and regression.
        student, teacher: shapes of the two models.
        seed: seed of the learned projections (float32, on the CPU).

    Raises:
        UsageError: an unknown kind or matching, a type named twice, a type that these shapes do
            not allow, a setting out of range or one that no type in the pool uses.
    """
    _check_settings(settings)
    specs = [_canonical(spec) for spec in settings.pool]
    _check_distinct(settings.pool, specs)
    kinds = frozenset(spec.partition("/")[0] for spec in specs)
    _check_used(settings, kinds)
    types, projections = [], nn.ModuleDict()
    for spec in specs:
        request = _request(spec, kinds, settings, task, student, teacher, seed)
        name = spec.partition("/")[0]
        part = KINDS[name].build(request)
        if part.projections:
            projections[projection_key(spec)] = nn.ModuleDict(part.projections)
        types.append(
            KnowledgeType(
                spec=spec,
                kind=name,
                pairs=part.pairs,
                unit=KINDS[name].unit,
                student=part.student,
                teacher=part.teacher,
                loss=partial(_outside_autocast, part.loss),
            )
        )
    return KnowledgePool(tuple(types), projections, _weights(settings, specs))


def _outside_autocast(loss: Loss, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    """Casting the inputs is not enough: autocast lowers matrix products whatever they are given."""
    with torch.autocast(batch.attention_mask.device.type, enabled=False):
        return loss(student, teacher, batch)


def _request(
    spec: str,
    kinds: frozenset[str],
    settings: KnowledgeConfig,
    task: Task,
    student: Shape,
    teacher: Shape,
    seed: int,
) -> Request:
    name, _, matching = spec.partition("/")
    lowest = KINDS[name].lowest_layer
    pairs: Pairs = ()
    if lowest is not None:
        pairs = match_layers(matching, student.layers, teacher.layers, spec=spec)
    request = Request(
        spec=spec,
        matching=matching,
        pairs=pairs,
        explicit=is_explicit(matching),
        pool_kinds=kinds,
        settings=settings,
        task=task,
        student=student,
        teacher=teacher,
        seed=seed,
    )
    if lowest is not None and any(layer < lowest for pair in pairs for layer in pair):
        raise request.refuse(
            "matches layer 0, but the embedding output has no attention",
            f"Use layers from {lowest} on, or 'hidden/{matching}'.",
        )
    return request


def _canonical(spec: str) -> str:
    """Check a spec's form and kind; write out the default matching."""
    if "@" in spec:
        raise UsageError(
            f"--knowledge.pool: '{spec}' names a teacher with '@', but one teacher is supported "
            f"so far. Write '{spec.partition('@')[0]}'."
        )
    name, slash, matching = spec.partition("/")
    if name not in KINDS:
        raise unknown_name("knowledge kind", name, KINDS, "--knowledge.pool")
    if KINDS[name].lowest_layer is None:
        if slash:
            raise UsageError(
                f"--knowledge.pool: '{spec}' has a layer matching, but {name} compares outputs, "
                f"not layers. Write '{name}'."
            )
        return name
    return f"{name}/{matching if slash else DEFAULT_MATCHING}"


def _check_distinct(given: list[str], specs: list[str]) -> None:
    # Pairs are compared as sets, names as they are: skip and last may give the same layers for
    # one student and not for the next, and a pool has to fit both.
    seen: dict[tuple[str, frozenset[str]], str] = {}
    for written, spec in zip(given, specs, strict=True):
        name, _, matching = spec.partition("/")
        key = (name, frozenset(matching.split("+")))
        if key in seen:
            raise UsageError(
                f"--knowledge.pool: '{seen[key]}' and '{written}' are the same knowledge type. "
                "Name each type once; for more of it set its --knowledge.weights."
            )
        seen[key] = written


def _check_settings(settings: KnowledgeConfig) -> None:
    if not settings.pool:
        raise UsageError(
            "--knowledge.pool: the pool is empty. Name at least one knowledge type, such as "
            f"'response'. Kinds: {', '.join(KINDS)}."
        )
    if not (settings.temperature > 0 and isfinite(settings.temperature)):
        raise UsageError(
            f"--knowledge.temperature: {settings.temperature} is no temperature. Give a number "
            "above 0; published runs use 2 to 20."
        )
    if not 0 <= settings.ema_decay < 1:
        raise UsageError(
            f"--knowledge.ema_decay: {settings.ema_decay} is out of range. Give a number from 0 "
            "up to, but not including, 1, such as 0.98."
        )
    if settings.relation_heads is not None and settings.relation_heads < 1:
        raise UsageError(
            f"--knowledge.relation_heads: {settings.relation_heads} is out of range. Give 1 or "
            "more, or null for the teacher's heads."
        )


def _check_used(settings: KnowledgeConfig, kinds: frozenset[str]) -> None:
    default = KnowledgeConfig()
    for option in ("ema_decay", "max_gain"):
        if settings.balance == "none" and getattr(settings, option) != getattr(default, option):
            raise UsageError(
                f"--knowledge.{option}: not used with --knowledge.balance none. Leave it out, or "
                "set --knowledge.balance ema."
            )
    for option in dict.fromkeys(option for kind in KINDS.values() for option in kind.settings):
        readers = [name for name, kind in KINDS.items() if option in kind.settings]
        if getattr(settings, option) != getattr(default, option) and not kinds & set(readers):
            raise UsageError(
                f"--knowledge.{option}: only {', '.join(readers)} use it, and the pool has none. "
                "Leave it out, or add such a type to --knowledge.pool."
            )


def _weights(settings: KnowledgeConfig, specs: list[str]) -> tuple[float, ...]:
    """The static weights in the order of the pool; keys may leave the default matching out."""
    given: dict[str, float] = {}
    for key, weight in settings.weights.items():
        spec = f"{key}/{DEFAULT_MATCHING}" if key not in specs else key
        if spec not in specs:
            raise unknown_name("knowledge type in this pool:", key, specs, "--knowledge.weights")
        if spec in given:
            raise UsageError(
                f"--knowledge.weights: '{spec}' has two weights, under its name and under the "
                "name without the matching. Give one."
            )
        if not (weight > 0 and isfinite(weight)):
            raise UsageError(
                f"--knowledge.weights: {weight} for '{key}' is no weight. Give a number above 0; "
                "to leave a type out, take it out of --knowledge.pool."
            )
        given[spec] = weight
    return tuple(given.get(spec, 1.0) for spec in specs)
