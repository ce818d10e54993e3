"""Everything an episode needs, built once from the settings: data, teacher, student, pool, distiller."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ksel.config import RunConfig
from ksel.credit import Credit
from ksel.data import (
    Rows,
    Source,
    Split,
    limit_train,
    load_source,
    three_way,
    tokenize,
)
from ksel.distiller import Distiller
from ksel.knowledge import KnowledgePool
from ksel.ledger import Ledger
from ksel.machine import pick_device
from ksel.models import Tap, check_inputs, on_device
from ksel.objectives import check_objective, of_heats, of_rewards
from ksel.observing import Watched
from ksel.parts import DistillerParts
from ksel.planning import (
    check_credit,
    check_stage_budgets,
    check_students_memory,
    plan_models,
    step_budget,
)
from ksel.search_config import credit_sizes
from ksel.signals import TeacherSource
from ksel.stages import Stage, build_stages
from ksel.students import StudentPlan, build_student, check_vocabulary
from ksel.tasks import Task
from ksel.teacher_setup import how_kept, prepare_signals, prepare_teachers
from ksel.teachers import (
    Located,
    Outline,
    Teacher,
    locate_teachers,
    open_tokenizer,
    outline_teacher,
    same_tokens,
)
from ksel.tracking import Progress, Silent
from ksel.types import Shape, TeacherView


@dataclass
class Setup:
    """What :func:`prepare` builds.

    Attributes:
        config: the settings it was built from, with the data and the teacher that were found.
        task: the task.
        origin: where the data came from, for people.
        builtin: True if the data are the generated corpus.
        train, reward: tokenised slices of the training file; disjoint.
        dev_as_read: for each teacher, dev split name -> the rows in its tokens.
        tokenizer: of the student and the first teacher.
        teachers: the teachers, in the order of the settings.
        plan: shape and start of the student.
        student_shape, teacher_shapes: shapes of the models.
        pool: the knowledge pool.
        distiller: the student in training; all environments of this setup share it.
        updates: the step budget of a full distillation (optimiser updates).
        fallbacks: what was used instead of what was looked for first.
        signals: how teacher signals are kept, for people.
        ledger: where the work is counted.
        device: where models live.
    """

    config: RunConfig
    task: Task
    origin: str
    builtin: bool
    train: Split
    reward: Split
    dev_as_read: list[dict[str, Split]]
    tokenizer: PreTrainedTokenizerBase
    teachers: list[Teacher]
    plan: StudentPlan
    student_shape: Shape
    teacher_shapes: tuple[Shape, ...]
    pool: KnowledgePool
    distiller: Distiller
    updates: int
    fallbacks: list[str]
    signals: str
    ledger: Ledger
    device: torch.device

    @property
    def student(self) -> PreTrainedModel:
        """The student, with the weights it has now."""
        return self.distiller.student

    @property
    def dev(self) -> dict[str, Split]:
        """Dev split name -> the rows in the student's tokens."""
        return self.dev_as_read[0]

    @property
    def teacher(self) -> Teacher:
        """The first teacher: the student has its tokenizer and architecture."""
        return self.teachers[0]

    @property
    def teacher_shape(self) -> Shape:
        """Shape of the first teacher."""
        return self.teacher_shapes[0]


Check = Callable[[KnowledgePool, tuple[Stage, ...], int], None]
"""(pool, stages, step budget): raises UsageError where who asked cannot work with them."""


def prepare(
    config: RunConfig,
    progress: Progress | Silent | None = None,
    check: Check | None = None,
) -> Setup:
    """Load data and teacher, build student, pool and distiller.

    Args:
        config: checked settings; ``env.objective`` auto is cross_entropy, the main job has settled it.
        progress: where to report; None = nowhere.
        check: called before any teacher is trained.

    Raises:
        UsageError: anything the settings or the files do not allow.
    """
    progress = progress or Silent()
    config = replace(config, env=replace(config.env, objective=of_rewards(config.env.objective)))
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mark = partial(torch.cuda.Event, enable_timing=True) if device.type == "cuda" else None
    ledger = Ledger(event=mark)
    fallbacks: list[str] = []
    source, (train, reward, dev) = _rows(config, _loud(progress, fallbacks))
    _say_data(progress, source, train, reward, dev)
    located = locate_teachers(config.teachers or [config.teacher], progress.say)
    fallbacks += [one.fallback for one in located if one.fallback]
    if isinstance(progress, Silent):
        for fallback in fallbacks:
            warnings.warn(fallback, stacklevel=2)
    config, task = _as_found(config, source, located), source.task
    tokenizers, outlines, views = _readers(config, source, located)
    plan, pool = plan_models(config, task, outlines[0], views)
    stages = build_stages(config.stages, pool.names, config.optim.learning_rate)
    everything = _tokenized(config, task, source.train, tokenizers, views)
    read = {name: _tokenized(config, task, split, tokenizers, views) for name, split in dev.items()}
    index = everything[0].numbers(train.idx)
    rows = [split.take(index) for split in everything]
    updates = step_budget(config, len(rows[0]))
    check_stage_budgets(config, updates)
    if config.env.reward == "amortized":
        check_credit(config, pool, len(reward))
    check_students_memory(config, plan.shape, len(tokenizers[0]))
    check_vocabulary(plan, tokenizers[0])
    if check is not None:
        check(pool, stages, updates)
    teachers = prepare_teachers(config, located, source, everything, tokenizers, device, progress)
    student = _student(config, plan, teachers[0], task, tokenizers[0], device, progress.say)
    sources = prepare_signals(
        config, teachers, views, everything, index, pool, ledger, device, progress
    )
    watched = _watched(config, task, plan.shape, views[0].shape)
    held_out = everything[0].examples(reward.idx)
    return Setup(
        config=config,
        task=task,
        origin=source.origin,
        builtin=source.builtin,
        train=rows[0],
        reward=held_out,
        dev_as_read=[
            {name: splits[i] for name, splits in read.items()} for i in range(len(located))
        ],
        tokenizer=tokenizers[0],
        teachers=teachers,
        plan=plan,
        student_shape=plan.shape,
        teacher_shapes=tuple(view.shape for view in views),
        pool=pool,
        distiller=_distiller(
            config,
            student,
            pool,
            sources,
            rows[0],
            held_out,
            task,
            stages,
            updates,
            watched,
            ledger,
        ),
        updates=updates,
        fallbacks=fallbacks,
        signals=how_kept(sources),
        ledger=ledger,
        device=device,
    )


def _readers(
    config: RunConfig, source: Source, located: list[Located]
) -> tuple[list[PreTrainedTokenizerBase], list[Outline], list[TeacherView]]:
    """Each teacher's tokenizer and outline, and what the pool has to know of it."""
    tokenizers = [open_tokenizer(one, _texts(source.train)) for one in located]
    outlines = [
        outline_teacher(one, source.task, tokenizer, config.batching.max_length)
        for one, tokenizer in zip(located, tokenizers, strict=True)
    ]
    views = [
        TeacherView(outline.shape, same_tokens(tokenizers[0], tokenizer))
        for outline, tokenizer in zip(outlines, tokenizers, strict=True)
    ]
    return tokenizers, outlines, views


def _rows(
    config: RunConfig, say: Callable[[str], None]
) -> tuple[Source, tuple[Rows, Rows, dict[str, Rows]]]:
    """The source, and its train, reward and dev rows; train and reward carry their row numbers."""
    source = load_source(config.task, config.data, config.custom, say)
    check_objective(config.env.objective, source.task)
    check_objective(of_heats(config.race.objective, source.task), source.task, "--race.objective")
    source = limit_train(source, config.rows)
    # numbered from 0, so that each training row is tokenised only once
    train = replace(source.train, idx=np.arange(len(source.train)))
    numbered = replace(source, train=train)
    return source, three_way(numbered, config.rows, config.seed, config.batching.size)


def _tokenized(
    config: RunConfig,
    task: Task,
    rows: Rows,
    tokenizers: list[PreTrainedTokenizerBase],
    views: list[TeacherView],
) -> list[Split]:
    """The rows as each teacher reads them; those with the student's tokenizer share them."""
    splits: list[Split] = []
    for tokenizer, view in zip(tokenizers, views, strict=True):
        if splits and view.same_tokens:
            splits.append(splits[0])
            continue
        length = config.batching.max_length
        splits.append(tokenize(rows, task, tokenizer, length, config.span))
    return splits


def _student(
    config: RunConfig,
    plan: StudentPlan,
    teacher: Teacher,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    say: Callable[[str], None],
) -> PreTrainedModel:
    student = build_student(
        plan,
        teacher.model,
        teacher.pretrained,
        task,
        dropout=config.student.dropout,
        seed=config.seed,
        say=say,
    )
    check_inputs(student.config, len(tokenizer), config.batching.max_length, "--student.init")
    return on_device(student, device)


def _watched(config: RunConfig, task: Task, student: Shape, teacher: Shape) -> Watched:
    low, high = task.score_range
    observe = config.env.observe
    return Watched(
        score_span=high - low if task.is_regression else 0.0,
        student_layer=student.layers if "student_cls" in observe else None,
        teacher_layer=teacher.layers if "teacher_cls" in observe else None,
    )


def _make_credit(
    config: RunConfig, pool: KnowledgePool, reward: Split, task: Task, ledger: Ledger
) -> Callable[[Tap], Credit]:
    """What makes the measure of a student's credit."""
    env, limit = config.env, config.optim.max_grad_norm
    sizes = credit_sizes(config.credit, config.batching.size)

    def make(tap: Tap) -> Credit:
        return Credit(
            tap,
            pool,
            reward,
            task,
            env.objective,
            env.margin_width,
            config.credit,
            sizes,
            config.batching.bucket,
            ledger,
            limit,
        )

    return make


def _distiller(
    config: RunConfig,
    student: PreTrainedModel,
    pool: KnowledgePool,
    sources: list[TeacherSource],
    train: Split,
    reward: Split,
    task: Task,
    stages: tuple[Stage, ...],
    updates: int,
    watched: Watched,
    ledger: Ledger,
) -> Distiller:
    amortized = config.env.reward == "amortized"
    parts = DistillerParts(
        student=student,
        pool=pool,
        sources=tuple(sources),
        train=train,
        batch_size=config.batching.size,
        bucket=config.batching.bucket,
        optim=config.optim,
        knowledge=config.knowledge,
        stages=stages,
        updates=updates,
        watched=watched,
        dropout=config.student.dropout,
        seed=config.seed,
        ledger=ledger,
        make_credit=_make_credit(config, pool, reward, task, ledger) if amortized else None,
    )
    return Distiller(parts)


def _loud(progress: Progress | Silent, fallbacks: list[str]) -> Callable[[str], None]:
    """Say a fallback aloud and remember it for ``summary.json``."""

    def say(message: str) -> None:
        progress.say(message)
        fallbacks.append(message)

    return say


def _as_found(config: RunConfig, source: Source, located: list[Located]) -> RunConfig:
    """The settings with data and teachers named, so that a repeat takes the same again."""
    data = config.data or ("builtin" if source.builtin else "hub")
    options = [one.option for one in located]
    if config.teachers:
        return replace(config, data=data, teachers=options)
    return replace(config, data=data, teacher=options[0])


def _texts(rows: Rows) -> list[str]:
    return [*rows.texts, *(rows.pairs or [])]


def _say_data(
    progress: Progress | Silent,
    source: Source,
    train: Rows,
    reward: Rows,
    dev: dict[str, Rows],
) -> None:
    sizes = [f"{len(train):,} train", f"{len(reward):,} reward (cut from train)"]
    sizes += [f"{len(rows):,} {name}" for name, rows in dev.items()]
    progress.say(f"data: {source.task.name} from {source.origin}: {', '.join(sizes)}")
