"""Teachers and their signals, opened with progress on the screen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase

from ksel.config import RunConfig
from ksel.data import Source, Split
from ksel.knowledge import KnowledgePool
from ksel.ledger import Ledger
from ksel.machine import store_folder
from ksel.signals import CachedTeacher, CachePlan, TeacherSource, open_source
from ksel.teachers import Located, Teacher, open_teachers
from ksel.tracking import Progress, Silent
from ksel.types import Needs, TeacherView


def prepare_teachers(
    config: RunConfig,
    located: list[Located],
    source: Source,
    splits: list[Split],
    tokenizers: list[PreTrainedTokenizerBase],
    device: torch.device,
    progress: Progress | Silent,
) -> list[Teacher]:
    """Open the teachers, see :func:`ksel.teachers.open_teachers`; fine-tuning shows a bar.

    Args:
        config: the run.
        located: where each teacher is.
        source: the task's rows.
        splits, tokenizers: for each teacher, all training rows in its tokens, and its tokenizer.
        device: where models live.
        progress: where to report.

    Raises:
        UsageError: see :func:`ksel.teachers.open_teachers`.
    """
    bar = None

    def advance(update: int, updates: int, loss: float) -> None:
        nonlocal bar
        if bar is None:
            bar = progress.stage("teacher", updates)
        bar.advance(loss=loss)
        if update == updates:
            bar.close()
            bar = None

    return open_teachers(
        located,
        source.task,
        tokenizers,
        splits,
        config.fine_tune,
        store_folder(config),
        device,
        progress.say,
        advance,
    )


def prepare_signals(
    config: RunConfig,
    teachers: list[Teacher],
    views: list[TeacherView],
    rows: list[Split],
    pool: KnowledgePool,
    ledger: Ledger,
    device: torch.device,
    progress: Progress | Silent,
) -> list[TeacherSource]:
    """Each teacher's signals for the training rows, live or computed once with a bar.

    Args:
        config: the run.
        teachers, views: the teachers, and what the pool knows of them.
        rows: for each teacher, the training rows in its tokens.
        pool: decides which signals are needed.
        ledger: where teacher forwards are counted.
        device: where models live.
        progress: where to report.

    Raises:
        UsageError: see :func:`ksel.signals.open_source`.
    """
    sources: list[TeacherSource] = []
    for number in range(len(teachers)):
        taken = sum(one.megabytes for one in sources if isinstance(one, CachedTeacher))
        plan = _cache_plan(
            config, number, teachers[number], views[number], rows[number], pool, device
        )
        name = "teacher signals" if len(teachers) == 1 else f"signals of teacher {number + 1}"
        source = open_source(
            config.signals.source,
            config.signals.limit_mb,
            plan,
            views[number].shape,
            store_folder(config),
            ledger,
            _bar(progress, name, len(plan.split)),
            progress.say,
            taken_mb=taken,
        )
        sources.append(source)
    return sources


def _bar(progress: Progress | Silent, name: str, rows: int) -> Callable[[int], None]:
    """Shows how far the signals are, from the first rows on."""
    bar = None

    def advance(done: int) -> None:
        nonlocal bar
        if bar is None:
            bar = progress.stage(name, rows)
        bar.advance(done)
        if bar.done >= rows:
            bar.close()

    return advance


def _cache_plan(
    config: RunConfig,
    number: int,
    teacher: Teacher,
    view: TeacherView,
    rows: Split,
    pool: KnowledgePool,
    device: torch.device,
) -> CachePlan:
    needs = Needs.union(t.teacher for t in pool.types if t.source == number)
    if number == 0:  # the one that is observed
        last = frozenset([view.shape.layers])
        seen = last if "teacher_cls" in config.env.observe else frozenset[int]()
        needs = needs | Needs(logits=True, cls=seen)
    return CachePlan(
        teacher=teacher.model,
        split=rows,
        needs=needs,
        dtype=config.signals.dtype,
        batch_size=config.batching.eval_size,
        device=device,
        bf16=config.optim.bf16 and device.type == "cuda",
        own_tokens=not view.same_tokens,
    )
