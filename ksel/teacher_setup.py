"""Teachers and their signals, opened with progress on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ksel.config import RunConfig
from ksel.data import Source, Split
from ksel.errors import UsageError
from ksel.knowledge import KnowledgePool
from ksel.ledger import Ledger
from ksel.machine import free_memory, store_folder
from ksel.signal_choice import Offer, Wish, check_budget, choose_kept, where_to_keep
from ksel.signal_files import FileStore
from ksel.signal_store import Layout, MemoryStore, SignalStore, signal_names
from ksel.signals import KeptTeacher, SignalPlan, TeacherSource
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
    everything: list[Split],
    index: np.ndarray,
    pool: KnowledgePool,
    ledger: Ledger,
    device: torch.device,
    progress: Progress | Silent,
) -> list[TeacherSource]:
    """Each teacher's signals for the training rows: what is kept and where is said in a line each.

    No teacher runs here: a row is computed when it is first asked for.

    Args:
        config: the run.
        teachers, views: the teachers, and what the pool knows of them.
        everything: for each teacher, all rows of the training file in its tokens.
        index: [n] int64, the row of the file for each row that is trained on.
        pool: decides which signals are needed.
        ledger: where teacher forwards are counted.
        device: where models live.
        progress: where to report.

    Raises:
        UsageError: the budget has no room for one batch, or for anything that is to be kept on
            disk or in memory; the disk is full; there is too little memory; or a type compares
            tokens with those of another tokenizer.
    """
    wishes = _wishes(config, views, pool)
    plans = [
        SignalPlan(
            teacher=teacher.model,
            split=everything[number],
            index=index,
            needs=Needs.union(wish.needs for wish in wishes if wish.teacher == number),
            batch_size=config.batching.eval_size,
            device=device,
            bf16=config.optim.bf16 and device.type == "cuda",
            own_tokens=not views[number].same_tokens,
        )
        for number, teacher in enumerate(teachers)
    ]
    for plan in plans:
        plan.check_tokens()
    if config.signals.source == "live":
        return [plan.live(ledger) for plan in plans]
    return _kept(config, plans, wishes, ledger, progress.say)


def _wishes(config: RunConfig, views: list[TeacherView], pool: KnowledgePool) -> list[Wish]:
    """What the observation and each type ask of the teachers."""
    last = frozenset([views[0].shape.layers])
    seen = last if "teacher_cls" in config.env.observe else frozenset[int]()
    wishes = [Wish(0, Needs(logits=True, cls=seen))]
    return wishes + [Wish(type.source, type.teacher) for type in pool if type.teacher]


def _kept(
    config: RunConfig,
    plans: list[SignalPlan],
    wishes: list[Wish],
    ledger: Ledger,
    say: Callable[[str], None],
) -> list[TeacherSource]:
    settings = config.signals
    offers = [Offer(Layout.of(plan.split.lengths), plan.slots()) for plan in plans]
    check_budget(offers, settings.dtype, settings.budget, config.batching.size)
    kept = choose_kept(wishes, offers, settings.dtype, settings.budget)
    sizes = [offer.bytes(n, settings.dtype) for offer, n in zip(offers, kept, strict=True)]
    if settings.source != "auto" and not any(kept):
        least = min(
            o.bytes(signal_names(w.needs), settings.dtype)
            for w in wishes
            for o in [offers[w.teacher]]
        )
        raise UsageError(
            f"--signals.budget {settings.budget}: nothing fits, the smallest signals take "
            f"{least / 1e6:,.1f} MB. Raise it, or use --signals.source live."
        )
    place = where_to_keep(settings.source, sum(sizes), free_memory())
    sources: list[TeacherSource] = []
    for number, (plan, offer, names) in enumerate(zip(plans, offers, kept, strict=True)):
        slots = {name: slot for name, slot in offer.slots.items() if name in names}
        title = "teacher signals" if len(plans) == 1 else f"signals of teacher {number + 1}"
        live = [name for name in offer.slots if name not in names]
        if not slots:
            say(
                f"{title}: live: {_listed(live)} (--signals.budget {settings.budget:,} MB is spent)"
            )
            sources.append(plan.live(ledger))
            continue
        store: SignalStore
        if place == "disk":
            key = plan.fingerprint()
            folder = store_folder(config) / "signals" / key[:24]
            store = FileStore(folder, key, offer.layout, slots, settings.dtype, say)
            where = f"on disk ({folder.name}, {store.share:.0%} there already)"
        else:
            store = MemoryStore(offer.layout, slots, settings.dtype)
            where = "in memory"
        rest = f"; live, beyond --signals.budget: {_listed(live)}" if live else ""
        say(f"{title}: kept {where}, {sizes[number] / 1e6:,.1f} MB: {_listed(slots)}{rest}")
        sources.append(KeptTeacher(plan, store, ledger))
    return sources


def _listed(names: Iterable[str]) -> str:
    """``logits, cls 2 4, hidden 4``."""
    layers: dict[str, list[str]] = {}
    for name in names:
        kind, _, layer = name.partition("/")
        layers.setdefault(kind, []).append(layer)
    return ", ".join(" ".join([kind, *found]).strip() for kind, found in layers.items())


def how_kept(sources: Sequence[TeacherSource]) -> str:
    """``cached``, ``partly cached`` and ``live``, as far as they hold, for people."""
    found = [
        "cached" if s.cached else "partly cached" if isinstance(s, KeptTeacher) else "live"
        for s in sources
    ]
    return ", ".join(dict.fromkeys(found))
