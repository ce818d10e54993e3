"""Students: their shape, their initial weights, and where these come from."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ksel.config import StudentConfig
from ksel.errors import UsageError, unknown_name
from ksel.heads import (
    has_head,
    is_unnamed,
    other_head,
    renew_head,
    reorder_head,
    student_order,
)
from ksel.matching import Pairs, match_layers
from ksel.models import (
    Family,
    family_of,
    label_settings,
    load_classifier,
    load_config,
    load_tokenizer,
    new_model,
    own_generator,
    shape_of,
)
from ksel.shapes import named_shape
from ksel.tasks import Task
from ksel.types import Shape


@dataclass(frozen=True)
class StudentPlan:
    """A student's shape and start, resolved from the settings.

    Attributes:
        shape: the student's shape.
        init: one of :data:`COPIES`, pairs of layers, ``random``, or a folder.
        source: whose weights are copied: ``pretrained``, ``teacher``, or ``none``.
        layer_map: student layer -> source layer; empty where no layers are copied.
    """

    shape: Shape
    init: str
    source: str
    layer_map: Pairs

    @property
    def is_checkpoint(self) -> bool:
        """True if shape and weights come from a folder."""
        return not self.layer_map and self.init != "random"


COPIES = ("first", "skip", "last", "spread")
"""Starts that copy teacher layers, named like the layer matchings that choose them."""
INITS = ("auto", *COPIES, "random")
SIZES = ("layers", "width", "heads", "feed_forward")
_PAIRS = re.compile(r"[0-9][0-9+-]*-[0-9+-]*")


def plan_student(settings: StudentConfig, teacher: Shape, *, has_pretrained: bool) -> StudentPlan:
    """Resolve the student's shape and start.

    Args:
        settings: ``--student``.
        teacher: shape of the teacher; what the settings leave open is taken from it.
        has_pretrained: True if the checkpoint the teacher was fine-tuned from is at hand.

    Raises:
        UsageError: a size is not positive, heads do not divide the width, the start does not fit
            the shape, or a setting has no effect.
    """
    if not 0 <= settings.dropout < 1:
        raise UsageError(f"--student.dropout must be in [0, 1), not {settings.dropout}.")
    pairs = _PAIRS.fullmatch(settings.init)
    if settings.init not in INITS and not pairs:
        return _plan_from_checkpoint(settings)
    shape = _shape(settings, teacher, _layers_of(settings.init) if pairs else teacher.layers // 2)
    init = settings.init
    if init == "auto":
        fits = _same_widths(shape, teacher) and shape.layers <= teacher.layers
        init = "first" if fits else "random"
    if init == "random":
        _check_no_source(settings, "a random start")
        return StudentPlan(shape, "random", "none", ())
    _check_copy(shape, teacher, init)
    layer_map = match_layers(init, shape.layers, teacher.layers, option="--student.init")
    if pairs:
        _check_pairs(layer_map, shape, init)
    source = settings.source
    if source == "auto":
        source = "pretrained" if has_pretrained else "teacher"
    if source == "pretrained" and not has_pretrained:
        raise UsageError(
            "--student.source pretrained: the checkpoint this teacher was fine-tuned from is not "
            "known. Use --student.source teacher."
        )
    return StudentPlan(shape, init, source, layer_map)


def _layers_of(pairs: str) -> int:
    """The highest student layer in student-teacher pairs."""
    return max(int(layer) for layer in re.findall(r"(\d+)-", pairs))


def _shape(settings: StudentConfig, teacher: Shape, layers: int) -> Shape:
    """The shape as the settings ask for it; what they leave open is ``layers`` and the teacher's."""
    if settings.shape is None:
        shape = Shape(
            settings.layers if settings.layers is not None else max(1, layers),
            settings.width if settings.width is not None else teacher.width,
            settings.heads if settings.heads is not None else teacher.heads,
            settings.feed_forward if settings.feed_forward is not None else teacher.feed_forward,
        )
        _check_shape(shape)
        return shape
    shape = named_shape(settings.shape)
    if settings.heads is not None:
        shape = replace(shape, heads=settings.heads)
        _check_shape(shape)
    others = [name for name in SIZES if name != "heads"]
    given = [f"--student.{name}" for name in others if getattr(settings, name) is not None]
    if given:
        sizes = ", ".join(f"--student.{name} {getattr(shape, name)}" for name in SIZES)
        raise UsageError(
            f"{', '.join(given)}: --student.shape {settings.shape} sets all four sizes. Leave the "
            f"others out, or write them all in its place: {sizes}."
        )
    return shape


def _check_shape(shape: Shape) -> None:
    for name in SIZES:
        if getattr(shape, name) < 1:
            raise UsageError(f"--student.{name} must be at least 1, not {getattr(shape, name)}.")
    if shape.width % shape.heads:
        raise UsageError(
            f"--student.heads {shape.heads} does not divide the width {shape.width}. "
            f"Set --student.heads to a divisor, or change --student.width."
        )


def _same_widths(student: Shape, teacher: Shape) -> bool:
    return (student.width, student.feed_forward) == (teacher.width, teacher.feed_forward)


def _check_copy(shape: Shape, teacher: Shape, init: str) -> None:
    if not _same_widths(shape, teacher):
        raise UsageError(
            f"--student.init {init} copies teacher layers, which needs the teacher's width "
            f"{teacher.width} and feed-forward width {teacher.feed_forward}; the student has "
            f"{shape.width} and {shape.feed_forward}. Use --student.init random or a checkpoint."
        )
    if init in COPIES and shape.layers > teacher.layers:
        raise UsageError(
            f"--student.layers {shape.layers} is more than the teacher's {teacher.layers}, so "
            f"--student.init {init} has nothing to copy for the rest. Use fewer layers or "
            f"--student.init random."
        )


def _check_pairs(pairs: Pairs, shape: Shape, init: str) -> None:
    """Each student layer once, and no embeddings, which are always copied."""
    if [s for s, _ in pairs] != list(range(1, shape.layers + 1)) or any(t < 1 for _, t in pairs):
        layers = ", ".join(str(layer) for layer in range(1, shape.layers + 1))
        raise UsageError(
            f"--student.init {init}: pairs (student-teacher) must name each student layer once "
            f"({layers}) and teacher layers from 1 on. Write such pairs, or one of: "
            f"{', '.join(COPIES)}."
        )


def _check_no_source(settings: StudentConfig, start: str) -> None:
    if settings.source != "auto":
        raise UsageError(
            f"--student.source {settings.source}: {start} copies no teacher layers. Leave it out, "
            f"or set --student.init to one of: {', '.join(COPIES)}."
        )


def _plan_from_checkpoint(settings: StudentConfig) -> StudentPlan:
    if difflib.get_close_matches(settings.init, INITS, n=1) and not Path(settings.init).is_dir():
        raise unknown_name("start", settings.init, INITS, "--student.init")
    given = [
        f"--student.{name}" for name in ("shape", *SIZES) if getattr(settings, name) is not None
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)}: the shape comes from the checkpoint --student.init "
            f"{settings.init}. Leave the shape out, or use one of: {', '.join(INITS)}."
        )
    _check_no_source(settings, "a checkpoint")
    config = load_config(settings.init, "--student.init")
    return StudentPlan(shape_of(config), settings.init, "none", ())


def build_student(
    plan: StudentPlan,
    teacher: PreTrainedModel,
    pretrained: PreTrainedModel | None,
    task: Task,
    *,
    dropout: float,
    seed: int,
    say: Callable[[str], None],
) -> PreTrainedModel:
    """Build the student and give it its initial weights.

    Args:
        plan: from :func:`plan_student`.
        teacher: the fine-tuned teacher; the student takes its architecture and vocabulary.
        pretrained: the checkpoint the teacher came from, where known.
        task: the head's width and label names.
        dropout: dropout probability of the student.
        seed: seed of whatever is not copied; torch's generator is not touched.
        say: told what becomes of a checkpoint's head.

    Raises:
        UsageError: a checkpoint's vocabulary is not the teacher's.
    """
    if plan.is_checkpoint:
        return _from_checkpoint(plan.init, teacher, task, dropout=dropout, seed=seed, say=say)
    family = family_of(teacher.config)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = plan.shape.layers
    config.hidden_size = plan.shape.width
    config.num_attention_heads = plan.shape.heads
    setattr(config, family.feed_forward, plan.shape.feed_forward)
    for name, value in label_settings(task).items():
        setattr(config, name, value)
    for name in family.dropouts:
        setattr(config, name, dropout)
    config._attn_implementation = "sdpa"
    with own_generator(seed):
        student = new_model(config, task)
    if plan.layer_map:
        source = teacher if plan.source == "teacher" else pretrained
        assert source is not None
        _copy_layers(source, student, plan.layer_map, family, head=plan.source == "teacher")
    return student


def _from_checkpoint(
    name: str,
    teacher: PreTrainedModel,
    task: Task,
    *,
    dropout: float,
    seed: int,
    say: Callable[[str], None],
) -> PreTrainedModel:
    """A student with a checkpoint's weights; its head too where it is one for these labels."""
    config = load_config(name, "--student.init")
    if config.vocab_size != teacher.config.vocab_size:
        raise UsageError(
            f"--student.init {name} has a vocabulary of {config.vocab_size} tokens and the "
            f"teacher one of {teacher.config.vocab_size}; student and teacher read the same "
            f"tokens. Use a checkpoint with the teacher's tokenizer."
        )
    dropouts = dict.fromkeys(family_of(config).dropouts, dropout)
    student = load_classifier(name, task, seed=seed, option="--student.init", changes=dropouts)
    if not has_head(config, task):
        if (lost := other_head(config, task)) is not None:
            say(f"student: {name} gets a new head: {lost}")
        return student
    order = student_order(config, task)
    if order is None:
        renew_head(student, seed)
        say(f"student: the head of {name} is not one of task {task.name}; it gets a new one")
        return student
    if task.labels and is_unnamed(config):
        say(
            f"student: the labels of {name} have no names (LABEL_0, ...); their order is taken to "
            f"be {', '.join(task.labels)}"
        )
    reorder_head(student, order, task)
    return student


def check_vocabulary(plan: StudentPlan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a checkpoint that comes with another tokenizer than the teacher's.

    Raises:
        UsageError: the vocabularies differ.
    """
    if not plan.is_checkpoint:
        return
    try:
        own = load_tokenizer(plan.init, "--student.init")
    except UsageError:  # weights alone; their vocabulary's size is compared in build_student
        return
    if own.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"--student.init {plan.init} comes with another tokenizer than the teacher's; student "
            f"and teacher read the same tokens. Use a checkpoint with the teacher's tokenizer."
        )


def _copy_layers(
    source: PreTrainedModel,
    student: PreTrainedModel,
    layer_map: tuple[tuple[int, int], ...],
    family: Family,
    *,
    head: bool,
) -> None:
    """Copy embeddings, matched layers, pooler and (``head``) the classifier."""
    weights = source.state_dict()
    prefix = f"{student.base_model_prefix}."
    layers = f"{prefix}{family.layers}."
    origin = {f"{layers}{s - 1}.": f"{layers}{t - 1}." for s, t in layer_map}
    copied = {}
    for name in student.state_dict():
        if not name.startswith(prefix) and not head:
            continue
        old = name
        if name.startswith(layers):
            own = layers + name[len(layers) :].split(".")[0] + "."
            old = origin[own] + name[len(own) :]
        copied[name] = weights[old]
    student.load_state_dict(copied, strict=False)
