"""Teachers and their signals, opened with progress on the screen."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from ksel.config import RunConfig
from ksel.data import Source, Split
from ksel.knowledge import KnowledgePool
from ksel.ledger import Ledger
from ksel.machine import store_folder
from ksel.signals import CachePlan, TeacherSource, open_source
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
    number: int,
    teachers: list[Teacher],
    views: list[TeacherView],
    rows: list[Split],
    pool: KnowledgePool,
    ledger: Ledger,
    device: torch.device,
    progress: Progress | Silent,
    taken: float,
) -> TeacherSource:
    """The signals of teacher ``number`` for the training rows; ``taken``: MB of those before it."""
    shape = views[number].shape
    needs = Needs.union(t.teacher for t in pool.types if t.source == number)
    if number == 0:  # the one that is observed
        cls = frozenset([shape.layers]) if "teacher_cls" in config.env.observe else frozenset()
        needs = needs | Needs(logits=True, cls=cls)
    plan = CachePlan(
        teacher=teachers[number].model,
        split=rows[number],
        needs=needs,
        dtype=config.signals.dtype,
        batch_size=config.batching.eval_size,
        device=device,
        bf16=config.optim.bf16 and device.type == "cuda",
        own_tokens=not views[number].same_tokens,
    )
    name = "teacher signals" if len(teachers) == 1 else f"signals of teacher {number + 1}"
    bar = None

    def advance(done: int) -> None:
        nonlocal bar
        if bar is None:
            bar = progress.stage(name, len(plan.split))
        bar.advance(done)
        if bar.done >= len(plan.split):
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
        taken_mb=taken,
    )
