"""What a run leaves behind besides its schedule: folder, student, records; everything whole or absent."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import ksel
from ksel.config import OptimConfig, RunConfig
from ksel.data import Split
from ksel.errors import UsageError
from ksel.files import atomic_folder, write_json, write_text
from ksel.methods import read_method
from ksel.settings import config_to_yaml
from ksel.setup import Setup
from ksel.tasks import Task

VERSIONS_OF = (
    "ksel",
    "torch",
    "transformers",
    "datasets",
    "gymnasium",
    "stable-baselines3",
    "numpy",
    "tokenizers",
    "torchmetrics",
)
TIMING_BATCH = 32
TIMING_REPEATS = 5
TIMING_WARM_UP = 2


def make_run_folder(config: RunConfig) -> Path:
    """Make the run's own folder and write its settings and versions into it.

    Raises:
        UsageError: the folder exists already, or cannot be written.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    way = config.agent
    if config.method is not None:
        own = way == str(read_method(config.method).get("agent", RunConfig.agent))
        way = config.method.replace("/", "_") + ("" if own else f"-{way}")
    name = config.name or f"{config.task}-{way}-s{config.seed}-{now}"
    folder = Path(config.out) / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(
            f"--out, --name: {folder} exists already and is left as it is. Choose another --name."
        ) from None
    except OSError as error:
        raise UsageError(f"--out: cannot make {folder}: {error.strerror}.") from error
    try:
        write_settings(folder, config, "not loaded yet")
        write_json(folder / "versions.json", {**versions(), "threads": config.threads})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def write_settings(folder: Path, config: RunConfig, data: str) -> None:
    """Write all settings as ``config.yaml``.

    Args:
        folder: the run's folder.
        config: the settings.
        data: where the data came from, for people.

    Raises:
        UsageError: the file cannot be written.
    """
    header = (
        "# All settings of this run. Repeat it:  python -m ksel.run --config RUN/config.yaml\n"
        f"# Data: {data}\n"
    )
    # The name is this folder's; a run repeated from the file makes its own.
    write_text(folder / "config.yaml", header + config_to_yaml(replace(config, name=None)))


def versions() -> dict[str, Any]:
    """Versions of Python, ksel and what it stands on; the kind of machine."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
    }
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ksel.__version__ if name == "ksel" else None
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def save_student(folder: Path, setup: Setup, card: Mapping[str, Any]) -> None:
    """Write the student as a plain Hugging Face model with tokenizer, label names and model card.

    Args:
        folder: new folder; a student that is there already is an error of the caller.
        setup: holds the student with the weights to save.
        card: for the model card: ``agent``, ``teacher``, ``metrics`` (name -> value; empty if it
            was not measured) and ``updates`` (optimiser updates done).
    """
    with atomic_folder(folder) as temporary:
        setup.student.save_pretrained(temporary)
        setup.tokenizer.save_pretrained(temporary)
        write_text(temporary / "README.md", model_card(setup, card))


def model_card(setup: Setup, card: Mapping[str, Any]) -> str:
    """The model card: what the student is, how it was made, what it scored."""
    shape, task = setup.student_shape, setup.task
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in card["metrics"].items())
    metrics = metrics or "| not measured: the run was stopped | |"
    warning = (
        "\n> Trained and measured on ksel's built-in generated corpus: its figures are **not** "
        f"{task.name} scores.\n"
        if setup.builtin
        else ""
    )
    windows = f" in {len(setup.train):,} windows" if task.is_span else ""
    start = (
        f"layers {', '.join(str(t) for _, t in setup.plan.layer_map)} of the {setup.plan.source} "
        f"model ({setup.plan.init})"
        if setup.plan.layer_map
        else setup.plan.init
    )
    return f"""---
library_name: transformers
pipeline_tag: {"question-answering" if task.is_span else "text-classification"}
tags: [knowledge-distillation, ksel]
---
# {task.name} student, distilled by ksel
{warning}
A {setup.student.config.model_type} encoder of {shape.layers} layers, width {shape.width}, {shape.heads} heads, distilled from
{card["teacher"]}. {_choice(setup, card["agent"])}

* Task: {task.name}; output: {_output(task)}.
* Data: {setup.origin}; {setup.train.num_examples:,} training rows{windows}, {setup.reward.num_examples:,} rows of the training file kept for rewards.
* Start: {start}.
* Updates: {_updates(card["updates"], setup.updates)}, batch {setup.config.batching.size}, learning rate {_rate(setup.config.optim)}, seed {setup.config.seed}.

| dev metric | value |
| --- | --- |
{metrics}

The settings of the run are in `config.yaml` beside this folder, the schedule in `schedule.parquet`.
"""


def _choice(setup: Setup, agent: str) -> str:
    """Who chose among which signals."""
    method = setup.config.method
    by = f" Method: `{method}`." if method else ""
    names = ", ".join(setup.pool.names)
    if agent == "static":
        return f"Knowledge types: {names}; the mask was fixed: {', '.join(setup.config.static.mask)}.{by}"
    return f"At each decision the agent `{agent}` chose which signals to transfer, out of: {names}.{by}"


def _rate(optim: OptimConfig) -> str:
    head = f" (head: {optim.head_rate:g} times that)" if optim.head_rate != 1 else ""
    return f"{optim.learning_rate:g}{head}"


def _output(task: Task) -> str:
    if task.is_span:
        none = "; the first token stands for no answer" if task.unanswerable else ""
        return f"for each token, how well the answer starts and ends there{none}"
    return ", ".join(task.labels) or f"a score in {list(task.score_range)}"


def _updates(done: int, budget: int) -> str:
    return f"{done}" if done == budget else f"{done} of {budget}: the run ended early"


def seconds_per_example(
    model: PreTrainedModel, split: Split, device: torch.device, batch_size: int = TIMING_BATCH
) -> float:
    """Median inference time on one batch of the split's first rows, per example (seconds)."""
    batch = split.batch(torch.arange(min(batch_size, len(split))).numpy()).to(device)
    was_training = model.training
    model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(TIMING_WARM_UP + TIMING_REPEATS):
            start = time.perf_counter()
            model(**batch.model_inputs())
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    model.train(was_training)
    return statistics.median(times[TIMING_WARM_UP:]) / len(batch)
