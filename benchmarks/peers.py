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
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

os.environ.update(TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import get_linear_schedule_with_warmup

from ksel.distiller import Distiller
from ksel.models import load_classifier, load_tokenizer
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare
from ksel.tasks import get_task
from ksel.types import Batch

TASK = "qnli"
TEMPERATURE = 4.0
LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP = 5e-5, 0.01, 0.1, 1.0
HELD_OUT = 32
"""Rows that ksel wants for rewards and dev; it trains on none of them, and nothing is measured."""
POOL = ("response", "hidden/skip", "value_relation/last_1")


@dataclass(frozen=True)
class Work:
    """What everyone does."""

    data: str
    teacher: str
    rows: int
    epochs: int
    batch: int
    length: int
    layers: int
    threads: int
    device: str


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


OFF = Levers(short=False, buckets=False, kept=False, fused=False)
ALONE = {
    "none": OFF,
    "padding to the longest of the batch": replace(OFF, short=True),
    "length buckets": replace(OFF, short=True, buckets=True),
    "teacher signals kept": replace(OFF, kept=True),
    "fused AdamW": replace(OFF, fused=True),
    "lazy embeddings": replace(OFF, embeddings="lazy"),
    "frozen embeddings": replace(OFF, embeddings="frozen"),
    "two of three types off": replace(OFF, one_type=True),
    "the same, signals kept": replace(OFF, one_type=True, kept=True),
    "ksel's defaults": Levers(),
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
            f"{work.device}, {work.threads} threads; median of {repeats}"
        )
        if only != "levers":
            check_losses(work, setup, folder)
            table(
                peers(work, setup, Path(folder)), work, repeats, "ksel's defaults", "is faster by"
            )
        if only != "peers":
            runs = {
                name: lambda levers=levers: ksel_seconds(work, levers, Path(folder))
                for name, levers in ALONE.items()
            }
            table(runs, work, repeats, "none", "gain", inverse=True)


def table(
    runs: dict[str, Callable[[], float]],
    work: Work,
    repeats: int,
    unit: str,
    title: str,
    *,
    inverse: bool = False,
) -> None:
    """Time all in turns and print medians; the last column compares with ``unit``."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n| | examples per second | range | {title} |\n| --- | --- | --- | --- |")
    done = work.rows * work.epochs
    for name, median in medians.items():
        ratio = medians[unit] / median if inverse else median / medians[unit]
        span = f"{done / max(seconds[name]):.1f} to {done / min(seconds[name]):.1f}"
        print(f"| {name} | {done / median:.1f} | {span} | {ratio:.2f} x |", flush=True)


def peers(work: Work, setup: Setup, folder: Path) -> dict[str, Callable[[], float]]:
    """Name -> one whole training, giving its seconds."""
    rows = Padded(setup, work.length)
    same = Levers(short=False, buckets=False)
    return {
        "ksel's defaults": lambda: ksel_seconds(work, Levers(), folder),
        "ksel, padding to the limit": lambda: ksel_seconds(work, same, folder),
        "plain PyTorch loop": lambda: loop_seconds(work, setup, rows),
        "TextBrewer": lambda: brewer_seconds(work, setup, rows, folder),
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
        "knowledge": {"pool": list(POOL), "temperature": TEMPERATURE},
        "optim": {
            "epochs": work.epochs,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "warmup": WARMUP,
            "max_grad_norm": CLIP,
            "embeddings": levers.embeddings,
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
        if not levers.short:
            pad_to_limit(distiller, work.length, setup.train.pad_token_id)
        if not levers.fused:
            groups = [
                {"params": group["params"], "weight_decay": group["weight_decay"]}
                for group in distiller.optimizer.param_groups
            ]
            distiller.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
        masks = np.eye(len(POOL)) if levers.one_type else np.ones((1, len(POOL)))
        start = time.perf_counter()
        for update in range(setup.updates):
            distiller.update(masks[update % len(masks)])
        wait(work)
        return time.perf_counter() - start


def pad_to_limit(distiller: Distiller, length: int, padding: int) -> None:
    """Let this distiller's batches be as long as the limit."""
    shorter = distiller.next_batch

    def next_batch(self: Distiller) -> Batch:
        return padded(shorter(), length, padding)

    distiller.next_batch = MethodType(next_batch, distiller)  # type: ignore[method-assign]


def padded(batch: Batch, length: int, padding: int) -> Batch:
    """The batch with each row filled up to the limit."""
    more = (0, length - batch.input_ids.shape[1])
    types = batch.token_type_ids
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, more, value=padding),
        attention_mask=F.pad(batch.attention_mask, more),
        token_type_ids=None if types is None else F.pad(types, more),
    )


def wait(work: Work) -> None:
    """Until the device has done all that it was given."""
    if work.device != "cpu":
        torch.cuda.synchronize()


# --------------------------------------------------------------------------- the plain loop


class Padded(Dataset):
    """The rows that ksel trains on, padded to the limit beforehand, in memory."""

    def __init__(self, setup: Setup, length: int) -> None:
        split = setup.train
        whole = padded(split.batch(np.arange(len(split))), length, split.pad_token_id)
        self.inputs = whole.model_inputs()

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: tensor[row] for name, tensor in self.inputs.items()}


class Tapped(nn.Module):
    """A BERT with logits, hidden states and the last layer's values as outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.heads = model.config.num_attention_heads
        model.bert.encoder.layer[-1].attention.self.value.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.value = output

    def forward(self, **inputs: Tensor) -> dict[str, Any]:
        output = self.model(**inputs, output_hidden_states=True)
        return {"logits": output.logits, "hidden": output.hidden_states, "value": self.value}


def models(setup: Setup) -> tuple[Tapped, Tapped]:
    """Teacher and a fresh student with ksel's initial weights."""
    student = copy.deepcopy(setup.student).requires_grad_(True)
    return Tapped(copy.deepcopy(setup.teacher.model).eval()), Tapped(student)


def soft_labels(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 KL(teacher || student)."""
    rows = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    return temperature**2 * F.kl_div(*rows, reduction="batchmean", log_target=True)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference over real tokens."""
    real = mask.to(student)
    squares = F.mse_loss(student, teacher, reduction="none") * real[..., None]
    return squares.sum() / (real.sum() * student.shape[-1])


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL between the self-relations of two sets of vectors [b, n, h], per real token."""

    def relations(x: Tensor) -> Tensor:
        split = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
        return F.log_softmax(scores + (1.0 - mask[:, None, None].to(x)) * -1e9, -1)

    rows = F.kl_div(relations(student), relations(teacher), reduction="none", log_target=True)
    real = mask.to(student)
    return (rows.sum(-1).mean(1) * real).sum() / real.sum()


def pairs(setup: Setup) -> list[tuple[int, int]]:
    """Matched layers (student, teacher), every so many of the teacher's."""
    step = setup.teacher_shape.layers // setup.student_shape.layers
    return [(layer, layer * step) for layer in range(1, setup.student_shape.layers + 1)]


def loop_losses(
    setup: Setup, student: dict[str, Any], teacher: dict[str, Any], mask: Tensor
) -> list[Tensor]:
    """The three losses of a batch, in the order of the pool."""
    hidden = [hidden_mse(student["hidden"][s], teacher["hidden"][t], mask) for s, t in pairs(setup)]
    heads = setup.teacher_shape.heads
    return [
        soft_labels(student["logits"], teacher["logits"]),
        torch.stack(hidden).sum(),
        relation_kl(student["value"], teacher["value"], mask, heads),
    ]


def batches(work: Work, rows: Padded) -> DataLoader:
    """Shuffled batches, as anyone would make them."""
    shuffle = torch.Generator().manual_seed(0)
    return DataLoader(rows, work.batch, shuffle=True, drop_last=True, generator=shuffle)


def loop_seconds(work: Work, setup: Setup, rows: Padded) -> float:
    """One training as a page of PyTorch, written straight down."""
    teacher, student = models(setup)
    loader = batches(work, rows)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = get_linear_schedule_with_warmup(optimizer, *schedule_of(work, loader))
    start = time.perf_counter()
    for inputs in over(loader, work):
        with torch.no_grad():
            taught = teacher(**inputs)
        losses = loop_losses(setup, student(**inputs), taught, inputs["attention_mask"])
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    wait(work)
    return time.perf_counter() - start


def schedule_of(work: Work, loader: DataLoader) -> tuple[int, int]:
    """Updates of the warm-up, and of all."""
    updates = work.epochs * len(loader)
    return int(WARMUP * updates), updates


def over(loader: DataLoader, work: Work) -> Iterator[dict[str, Tensor]]:
    for _ in range(work.epochs):
        for inputs in loader:
            yield {name: tensor.to(work.device) for name, tensor in inputs.items()}


# --------------------------------------------------------------------------- TextBrewer


def brewer(work: Work, setup: Setup, folder: Path | str) -> tuple[Any, Tapped]:
    """TextBrewer's distiller for these losses, and its student.

    It knows KL-like soft labels and the hidden states by itself. Value relations are handed to it as
    one more "hidden state", with a loss registered for them.
    """
    import textbrewer
    from textbrewer.presets import KD_LOSS_MAP, MATCH_LOSS_MAP

    teacher, student = models(setup)
    heads = setup.teacher_shape.heads

    def relation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return relation_kl(student, teacher, mask, heads)

    MATCH_LOSS_MAP["value_relation"] = relation
    KD_LOSS_MAP["kl"] = soft_labels
    matches = [
        {"layer_S": s, "layer_T": t, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for s, t in pairs(setup)
    ]
    values = {"feature": "hidden", "loss": "value_relation", "weight": 1}
    matches.append({"layer_S": -1, "layer_T": -1, **values})

    def adaptor(batch: dict[str, Tensor], output: dict[str, Any]) -> dict[str, Any]:
        hidden = [*output["hidden"], output["value"]]
        mask = batch["attention_mask"]
        return {"logits": output["logits"], "hidden": hidden, "inputs_mask": mask}

    training = textbrewer.TrainingConfig(
        output_dir=str(folder), log_dir=None, device=torch.device(work.device)
    )
    distillation = textbrewer.DistillationConfig(
        temperature=TEMPERATURE,
        kd_loss_type="kl",
        kd_loss_weight=1,
        hard_label_weight=0,
        intermediate_matches=matches,
    )
    made = textbrewer.GeneralDistiller(training, distillation, teacher, student, adaptor, adaptor)
    made.save_and_callback = lambda *_: None  # writing checkpoints is left out for everyone
    return made, student


def brewer_seconds(work: Work, setup: Setup, rows: Padded, folder: Path) -> float:
    """One training by TextBrewer."""
    distiller, student = brewer(work, setup, folder)
    loader = batches(work, rows)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    warmup, updates = schedule_of(work, loader)
    start = time.perf_counter()
    with distiller:
        distiller.train(
            optimizer,
            loader,
            num_epochs=work.epochs,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={"num_warmup_steps": warmup, "num_training_steps": updates},
            max_grad_norm=CLIP,
        )
    wait(work)
    return time.perf_counter() - start


def check_losses(work: Work, setup: Setup, folder: Path | str) -> None:
    """The first batch must cost everyone the same, or no figure would mean anything."""
    split = setup.train
    batch = padded(split.batch(np.arange(work.batch)), work.length, split.pad_token_id)
    batch = batch.to(work.device)
    inputs, mask = batch.model_inputs(), batch.attention_mask
    teacher, student = models(setup)
    distiller, brewed = brewer(work, setup, folder)
    with torch.no_grad():
        ours = setup.distiller.losses(batch)
        plain = torch.stack(loop_losses(setup, student(**inputs), teacher(**inputs), mask))
        brewed.eval()
        _, named = distiller.train_on_batch(inputs, {})
    hidden = [value for name, value in named.items() if "hidden_mse" in name]
    (values,) = (value for name, value in named.items() if "value_relation" in name)
    theirs = torch.stack([named["unweighted_kd_loss"], sum(hidden), values])
    for name, losses in (("ksel", ours), ("plain loop", plain), ("TextBrewer", theirs)):
        row = ", ".join(f"{kind} {x:.6f}" for kind, x in zip(POOL, losses.tolist(), strict=True))
        print(f"first batch, {name}: {row}")
        torch.testing.assert_close(losses, ours, rtol=1e-4, atol=1e-7)


if __name__ == "__main__":
    main()
