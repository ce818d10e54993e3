"""A plain PyTorch loop and TextBrewer at the distillation of :mod:`peers`, which runs them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import get_linear_schedule_with_warmup

from ksel.setup import Setup
from ksel.types import Batch

TEMPERATURE = 4.0
LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP = 5e-5, 0.01, 0.1, 1.0
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
    clock: str

    def now(self) -> float:
        """Seconds, once the device has done all that it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.process_time() if self.clock == "process" else time.perf_counter()


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
    start = work.now()
    for inputs in over(loader, work):
        with torch.no_grad():
            taught = teacher(**inputs)
        losses = loop_losses(setup, student(**inputs), taught, inputs["attention_mask"])
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return work.now() - start


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
    start = work.now()
    with distiller:
        distiller.train(
            optimizer,
            loader,
            num_epochs=work.epochs,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={"num_warmup_steps": warmup, "num_training_steps": updates},
            max_grad_norm=CLIP,
        )
    return work.now() - start


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
