"""Everything an episode needs, built once from the settings: data, teacher, student, pool, distiller."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ksel.config import RunConfig
from ksel.data import (
    Rows,
    Source,
    Split,
    limit_train,
    load_source,
    three_way,
    tokenize,
    updates_per_epoch,
)
from ksel.distiller import Distiller, DistillerParts
from ksel.errors import UsageError
from ksel.evaluation import check_objective
from ksel.knowledge import KnowledgePool, build_pool
from ksel.ledger import Ledger
from ksel.models import check_inputs, on_device
from ksel.observing import Watched
from ksel.signals import CachePlan, TeacherSource, open_source
from ksel.students import StudentPlan, build_student, check_vocabulary, plan_student
from ksel.tasks import Task
from ksel.teachers import (
    Located,
    Outline,
    Teacher,
    locate_teacher,
    open_teacher,
    open_tokenizer,
    outline_teacher,
)
from ksel.tracking import Progress, Silent
from ksel.types import Needs, Shape


@dataclass
class Setup:
    """What :func:`prepare` builds.

    Attributes:
        config: the settings it was built from, with the data and the teacher that were found.
        task: the task.
        origin: where the data came from, for people.
        builtin: True if the data are the generated corpus.
        train, reward: tokenised slices of the training file; disjoint.
        dev: dev split name -> tokenised rows.
        tokenizer: of teacher and student.
        teacher: the teacher.
        plan: shape and start of the student.
        student_shape, teacher_shape: shapes of the two models.
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
    dev: dict[str, Split]
    tokenizer: PreTrainedTokenizerBase
    teacher: Teacher
    plan: StudentPlan
    student_shape: Shape
    teacher_shape: Shape
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


def prepare(config: RunConfig, progress: Progress | Silent | None = None) -> Setup:
    """Load data and teacher, build student, pool and distiller.

    Args:
        config: checked settings.
        progress: where to report; None = nowhere.

    Raises:
        UsageError: anything the settings or the files do not allow.
    """
    progress = progress or Silent()
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ledger = Ledger(synchronize=torch.cuda.synchronize if device.type == "cuda" else None)
    fallbacks: list[str] = []
    source, (train, reward, dev) = _rows(config, _loud(progress, fallbacks))
    _say_data(progress, source, train, reward, dev)
    located = locate_teacher(config.teacher, progress.say)
    if located.fallback:
        fallbacks.append(located.fallback)
    if isinstance(progress, Silent):
        for fallback in fallbacks:
            warnings.warn(fallback, stacklevel=2)
    config = _as_found(config, source, located)
    tokenizer = open_tokenizer(located, _texts(source.train))
    outline = outline_teacher(located, tokenizer, config.batching.max_length)
    updates = step_budget(config, len(train))
    plan, pool = _plan(config, source.task, outline)
    tokens = partial(
        tokenize, task=source.task, tokenizer=tokenizer, max_length=config.batching.max_length
    )
    everything = tokens(source.train)
    teacher = _teacher(config, located, source, everything, tokenizer, device, progress)
    student = _student(config, plan, teacher, source.task, tokenizer, device, progress.say)
    rows = everything.take(train.idx)
    signals = _signals(config, teacher, outline.shape, rows, pool, ledger, device, progress)
    watched = _watched(config, source.task, plan.shape, outline.shape)
    return Setup(
        config=config,
        task=source.task,
        origin=source.origin,
        builtin=source.builtin,
        train=rows,
        reward=everything.take(reward.idx),
        dev={name: tokens(split) for name, split in dev.items()},
        tokenizer=tokenizer,
        teacher=teacher,
        plan=plan,
        student_shape=plan.shape,
        teacher_shape=outline.shape,
        pool=pool,
        distiller=_distiller(config, student, pool, signals, rows, watched, ledger),
        updates=updates,
        fallbacks=fallbacks,
        signals="cached" if signals.cached else "live",
        ledger=ledger,
        device=device,
    )


def _rows(
    config: RunConfig, say: Callable[[str], None]
) -> tuple[Source, tuple[Rows, Rows, dict[str, Rows]]]:
    """The source, and its train, reward and dev rows; train and reward carry their row numbers."""
    source = load_source(config.task, config.data, config.custom, say)
    check_objective(config.env.objective, source.task)
    source = limit_train(source, config.rows)
    # numbered from 0, so that each training row is tokenised only once
    train = replace(source.train, idx=np.arange(len(source.train)))
    numbered = replace(source, train=train)
    return source, three_way(numbered, config.rows, config.seed, config.batching.size)


def _plan(config: RunConfig, task: Task, outline: Outline) -> tuple[StudentPlan, KnowledgePool]:
    """Student and pool as the settings ask, checked before any weights are loaded."""
    plan = plan_student(config.student, outline.shape, has_pretrained=outline.has_pretrained)
    pool = build_pool(
        config.knowledge,
        task=task,
        student=plan.shape,
        teacher=outline.shape,
        seed=config.seed,
    )
    return plan, pool


def _student(
    config: RunConfig,
    plan: StudentPlan,
    teacher: Teacher,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    say: Callable[[str], None],
) -> PreTrainedModel:
    check_vocabulary(plan, tokenizer)
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


def _distiller(
    config: RunConfig,
    student: PreTrainedModel,
    pool: KnowledgePool,
    signals: TeacherSource,
    train: Split,
    watched: Watched,
    ledger: Ledger,
) -> Distiller:
    parts = DistillerParts(
        student=student,
        pool=pool,
        source=signals,
        train=train,
        batch_size=config.batching.size,
        bucket=config.batching.bucket,
        optim=config.optim,
        knowledge=config.knowledge,
        watched=watched,
        dropout=config.student.dropout,
        seed=config.seed,
        ledger=ledger,
    )
    return Distiller(parts)


def step_budget(config: RunConfig, rows: int) -> int:
    """Optimiser updates of one full distillation.

    Raises:
        UsageError: the settings leave no update.
    """
    if config.optim.max_updates is not None:
        return config.optim.max_updates
    updates = int(config.optim.epochs * updates_per_epoch(rows, config.batching.size))
    if updates < 1:
        raise UsageError(
            f"--optim.epochs: {config.optim.epochs} of {rows} rows make no whole update. "
            f"Raise it, or set --optim.max_updates."
        )
    return updates


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        UsageError: CUDA is asked for and absent, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device is in reach. Use --device cpu.")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device. Use cpu, cuda or cuda:0.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0."
        )
    return device


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_threads(config: RunConfig) -> RunConfig:
    """Fix the number of threads, so that the saved settings say how many there were."""
    return replace(config, threads=config.threads or available_cores())


def store_folder(config: RunConfig) -> Path:
    """Folder of fine-tuned teachers and cached signals."""
    chosen = config.store or os.environ.get("KSEL_STORE") or "~/.cache/ksel"
    return Path(chosen).expanduser()


def _loud(progress: Progress | Silent, fallbacks: list[str]) -> Callable[[str], None]:
    """Say a fallback aloud and remember it for ``summary.json``."""

    def say(message: str) -> None:
        progress.say(message)
        fallbacks.append(message)

    return say


def _as_found(config: RunConfig, source: Source, located: Located) -> RunConfig:
    """The settings with data and teacher named, so that a repeat takes the same again."""
    data = config.data or ("builtin" if source.builtin else "hub")
    return replace(config, data=data, teacher=located.option)


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


def _teacher(
    config: RunConfig,
    located: Located,
    source: Source,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    progress: Progress | Silent,
) -> Teacher:
    bar = None

    def advance(update: int, updates: int, loss: float) -> None:
        nonlocal bar
        if bar is None:
            bar = progress.stage("teacher", updates)
        bar.advance(loss=loss)
        if update == updates:
            bar.close()

    return open_teacher(
        located,
        source.task,
        tokenizer,
        split,
        config.fine_tune,
        store_folder(config),
        device,
        progress.say,
        advance,
    )


def _signals(
    config: RunConfig,
    teacher: Teacher,
    shape: Shape,
    train: Split,
    pool: KnowledgePool,
    ledger: Ledger,
    device: torch.device,
    progress: Progress | Silent,
) -> TeacherSource:
    cls = frozenset([shape.layers]) if "teacher_cls" in config.env.observe else frozenset()
    needs = Needs.union(t.teacher for t in pool.types) | Needs(logits=True, cls=cls)
    plan = CachePlan(
        teacher=teacher.model,
        split=train,
        needs=needs,
        dtype=config.signals.dtype,
        batch_size=config.batching.eval_size,
        device=device,
        bf16=config.optim.bf16 and device.type == "cuda",
    )
    bar = None

    def advance(rows: int) -> None:
        nonlocal bar
        if bar is None:
            bar = progress.stage("teacher signals", len(train))
        bar.advance(rows)
        if bar.done >= len(train):
            bar.close()

    return open_source(
        config.signals.source,
        config.signals.limit_mb,
        plan,
        shape,
        store_folder(config),
        ledger,
        advance,
        progress.say,
    )
