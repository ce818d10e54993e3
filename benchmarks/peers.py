"""Examples per second of ksel, of TextBrewer and of a plain PyTorch loop at one and the same distillation.

    python benchmarks/peers.py --data DIR --teacher FOLDER [--rows 128] [--repeats 3] [--only peers]
    python benchmarks/peers.py --data DIR --teacher FOLDER --only levers

Soft labels, hidden states of all student layers and value relations of the last, at most 128 tokens, three
epochs, computing and keeping the teacher's signals included. TextBrewer (pip install textbrewer) and the loop
pad to the limit and run the teacher on each batch; ksel does as it does by default, and once more with their
padding. `levers` turns one thing at a time on in a ksel that has all of them off. The head of the teacher
is random where the folder has none: speed does not depend on it. Contestants take turns; figures are medians.
The losses of the first batch must agree before anything is timed. On a GPU all run in float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

os.environ.update(TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
from peer_loops import (
    CLIP,
    LEARNING_RATE,
    POOL,
    TEMPERATURE,
    WARMUP,
    WEIGHT_DECAY,
    Padded,
    Work,
    brewer_seconds,
    check_losses,
    loop_seconds,
    padded,
)

from ksel.distiller import Distiller
from ksel.models import load_classifier, load_tokenizer
from ksel.optim import RATE
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare
from ksel.tasks import get_task
from ksel.types import Batch

TASK = "qnli"
DEFAULT, LIMIT, NONE = "ksel's defaults", "ksel, padding to the limit", "none"
LOOP, BREWER = "plain PyTorch loop", "TextBrewer"
HELD_OUT = 32
"""Rows that ksel wants for rewards and dev; it trains on none of them, and nothing is measured."""


@dataclass(frozen=True)
class Levers:
    """What of ksel is on."""

    short: bool = True
    """Pad to the longest of the batch, not to the limit."""
    buckets: bool = True
    kept: bool = True
    fused: bool = True
    embeddings: str = "train"
    one_type: bool = False
    """One type on at each update, in turn."""
    settled: bool = False
    """Leave out what is done only when a type is on for the first time."""


OFF = Levers(short=False, buckets=False, kept=False, fused=False, settled=True)
ALONE = {
    NONE: OFF,
    "padding to the longest of the batch": replace(OFF, short=True),
    "length buckets": replace(OFF, short=True, buckets=True),
    "teacher signals kept": replace(OFF, kept=True),
    "fused AdamW": replace(OFF, fused=True),
    "lazy embeddings": replace(OFF, embeddings="lazy"),
    "frozen embeddings": replace(OFF, embeddings="frozen"),
    "two of three types off": replace(OFF, one_type=True),
    "two of three types off, teacher signals kept": replace(OFF, one_type=True, kept=True),
    DEFAULT: Levers(settled=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with glue/qnli")
    parser.add_argument("--teacher", required=True, help="folder of a BERT-like encoder")
    parser.add_argument("--rows", type=int, default=128, help="training rows")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128, help="longest sequence (tokens)")
    parser.add_argument("--layers", type=int, default=3, help="of the student")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "process"], default="wall", help="process: on a busy machine"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["peers", "levers"], help="one table; default both")
    given = vars(parser.parse_args())
    repeats, only = given.pop("repeats"), given.pop("only")
    torch.set_num_threads(given["threads"])
    work = Work(**given)
    with tempfile.TemporaryDirectory() as folder:
        work = replace(work, teacher=with_head(work.teacher, Path(folder) / "teacher"))
        setup = prepared(work, Levers(), Path(folder) / "first")
        tokens = setup.train.lengths.mean()
        print(
            f"{work.rows} rows of {TASK} ({tokens:.0f} tokens on average, at most {work.length}), "
            f"{work.epochs} epochs, batches of {work.batch}; teacher {setup.teacher_shape.layers} x "
            f"{setup.teacher_shape.width}, student {work.layers} layers; torch {torch.__version__}, "
            f"{work.device}, {work.threads} threads, {work.clock} clock; median of {repeats}"
        )
        if only != "levers":
            check_losses(work, setup, folder)
            print_ratios(times(peers(work, setup, Path(folder)), work, repeats))
        if only != "peers":
            runs = {
                name: lambda levers=levers: ksel_seconds(work, levers, Path(folder))
                for name, levers in ALONE.items()
            }
            print_gains(times(runs, work, repeats))


def times(runs: dict[str, Callable[[], float]], work: Work, repeats: int) -> dict[str, float]:
    """Time all in turns; print examples per second, and give the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    print("\n| | examples per second | slowest to fastest |\n| --- | --- | --- |")
    done = work.rows * work.epochs
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        span = f"{done / max(seconds[name]):.1f} to {done / min(seconds[name]):.1f}"
        print(f"| {name} | {done / median:.1f} | {span} |", flush=True)
    return medians


def print_ratios(medians: dict[str, float]) -> None:
    """How many times as many examples per second ksel does."""
    print(f"\n| | than the {LOOP} | than {BREWER} |\n| --- | --- | --- |")
    for name in (DEFAULT, LIMIT):
        ratios = (medians[other] / medians[name] for other in (LOOP, BREWER))
        print(f"| {name} | {' | '.join(f'{ratio:.2f} x' for ratio in ratios)} |", flush=True)


def print_gains(medians: dict[str, float]) -> None:
    """What each lever alone gains over none."""
    print("\n| lever alone | gain |\n| --- | --- |")
    for name, seconds in medians.items():
        print(f"| {name} | {medians[NONE] / seconds:.2f} x |", flush=True)


def peers(work: Work, setup: Setup, folder: Path) -> dict[str, Callable[[], float]]:
    """Name -> one whole training, giving its seconds."""
    rows = Padded(setup, work.length)
    same = Levers(short=False, buckets=False)
    return {
        DEFAULT: lambda: ksel_seconds(work, Levers(), folder),
        LIMIT: lambda: ksel_seconds(work, same, folder),
        LOOP: lambda: loop_seconds(work, setup, rows),
        BREWER: lambda: brewer_seconds(work, setup, rows, folder),
    }


# --------------------------------------------------------------------------- ksel


def with_head(teacher: str, folder: Path) -> str:
    """The teacher with a head for the task, so that nobody fine-tunes it first."""
    load_classifier(teacher, get_task(TASK)).save_pretrained(folder)
    load_tokenizer(teacher).save_pretrained(folder)
    return str(folder)


def prepared(work: Work, levers: Levers, store: Path) -> Setup:
    """Data, models and distiller by ksel's public settings."""
    settings: dict[str, Any] = {
        "task": TASK,
        "data": work.data,
        "teacher": work.teacher,
        "store": str(store),
        "device": work.device,
        "threads": work.threads,
        "rows": {"train": work.rows + HELD_OUT, "reward": HELD_OUT, "dev": HELD_OUT},
        "batching": {
            "size": work.batch,
            "max_length": work.length,
            "bucket": 16 if levers.buckets else 1,
        },
        "student": {"layers": work.layers},
        "signals": {"source": "auto" if levers.kept else "live"},
        "knowledge": {
            "pool": list(POOL),
            "temperature": TEMPERATURE,
            "balance": "none" if levers.settled else "ema",
        },
        "optim": {
            "epochs": work.epochs,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "warmup": WARMUP,
            "max_grad_norm": CLIP,
            "embeddings": levers.embeddings,
            "grad_norm_every": 0 if levers.settled else 50,
            "bf16": False,
        },
    }
    return prepare(config_from_dict(settings))


def ksel_seconds(work: Work, levers: Levers, folder: Path) -> float:
    """Seconds of one training; the teacher has run on nothing before it."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        setup = prepared(work, levers, Path(store))
        distiller = setup.distiller
        assert not setup.ledger.examples.get("teacher"), "signals were computed before the clock"
        assert setup.updates == work.epochs * (work.rows // work.batch), "another amount of work"
        if not levers.short:
            pad_to_limit(distiller, work.length, setup.train.pad_token_id)
        if not levers.fused:
            groups = [
                {name: group[name] for name in ("params", "weight_decay", RATE)}
                for group in distiller.optimizer.param_groups
            ]
            distiller.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
        if levers.settled:
            distiller.checked[:] = True
        masks = np.eye(len(POOL)) if levers.one_type else np.ones((1, len(POOL)))
        start = work.now()
        for update in range(setup.updates):
            distiller.update(masks[update % len(masks)])
        return work.now() - start


def pad_to_limit(distiller: Distiller, length: int, padding: int) -> None:
    """Let this distiller's batches be as long as the limit."""
    shorter = distiller.next_batch

    def next_batch(self: Distiller) -> Batch:
        return padded(shorter(), length, padding)

    distiller.next_batch = MethodType(next_batch, distiller)  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
