"""Everything an episode needs, built once from the settings: data, teacher, student, pool, distiller."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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
from ksel.models import StudentPlan, build_student, on_device, plan_student, shape_of
from ksel.signals import CachePlan, TeacherSource, open_source
from ksel.tasks import Task
from ksel.teachers import Located, Teacher, locate_teacher, open_teacher, open_tokenizer
from ksel.tracking import Progress, Silent
from ksel.types import Needs, Shape


@dataclass
class Setup:
    """What :func:`prepare` builds.

    Attributes:
        config: the settings it was built from.
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
    ledger = Ledger()
    fallbacks: list[str] = []
    source = load_source(config.task, config.data, config.custom, _loud(progress, fallbacks))
    check_objective(config.env.objective, source.task)
    source = limit_train(source, config.rows)
    train, reward, dev = three_way(source, config.rows, config.seed, config.batching.size)
    located = locate_teacher(config.teacher, progress.say)
    if located.fallback:
        fallbacks.append(located.fallback)
    tokenizer = open_tokenizer(located, _texts(source.train))

    def tokens(rows: Rows) -> Split:
        return tokenize(rows, source.task, tokenizer, config.batching.max_length)

    _say_data(progress, source, train, reward, dev)
    teacher = _teacher(config, located, source, tokens(source.train), tokenizer, device, progress)
    splits = tokens(train), tokens(reward), {name: tokens(rows) for name, rows in dev.items()}
    return _assemble(
        config, source, splits, tokenizer, teacher, fallbacks, ledger, device, progress
    )


def _assemble(
    config: RunConfig,
    source: Source,
    splits: tuple[Split, Split, dict[str, Split]],
    tokenizer: PreTrainedTokenizerBase,
    teacher: Teacher,
    fallbacks: list[str],
    ledger: Ledger,
    device: torch.device,
    progress: Progress | Silent,
) -> Setup:
    train, reward, dev = splits
    teacher_shape = shape_of(teacher.model.config)
    plan = plan_student(
        config.student, teacher_shape, has_pretrained=teacher.pretrained is not None
    )
    pool = build_pool(
        config.knowledge,
        task=source.task,
        student=plan.shape,
        teacher=teacher_shape,
        seed=config.seed,
    )
    student = build_student(
        plan,
        teacher.model,
        teacher.pretrained,
        source.task,
        dropout=config.student.dropout,
        seed=config.seed,
    )
    on_device(student, device)
    signals = _signals(config, teacher, teacher_shape, train, pool, ledger, device, progress)
    low, high = source.task.score_range
    parts = DistillerParts(
        student=student,
        pool=pool,
        source=signals,
        train=train,
        batch_size=config.batching.size,
        bucket=config.batching.bucket,
        optim=config.optim,
        knowledge=config.knowledge,
        student_layers=plan.shape.layers,
        teacher_layers=teacher_shape.layers,
        score_span=high - low if source.task.is_regression else 0.0,
        dropout=config.student.dropout,
        seed=config.seed,
        observe_cls=("student_cls" in config.env.observe, "teacher_cls" in config.env.observe),
        ledger=ledger,
    )
    return Setup(
        config=config,
        task=source.task,
        origin=source.origin,
        builtin=source.builtin,
        train=train,
        reward=reward,
        dev=dev,
        tokenizer=tokenizer,
        teacher=teacher,
        plan=plan,
        student_shape=plan.shape,
        teacher_shape=teacher_shape,
        pool=pool,
        distiller=Distiller(parts),
        updates=step_budget(config, len(train)),
        fallbacks=fallbacks,
        signals="cached" if signals.cached else "live",
        ledger=ledger,
        device=device,
    )


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
        UsageError: CUDA is asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device is in reach. Use --device cpu.")
    return torch.device(name)


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
