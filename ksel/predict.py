"""``python -m ksel.predict RUN --input FILE``: what a run's student says of other examples."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ksel.answer_files import check_ids, odds_file, write_answers
from ksel.cli import guard, quiet_libraries
from ksel.data import Split, tokenize
from ksel.decoding import decode
from ksel.errors import UsageError, unknown_name
from ksel.evaluation import finite_spans, predict_logits, score_split
from ksel.files import atomic_path
from ksel.machine import pick_device
from ksel.models import load_classifier, load_tokenizer, on_device
from ksel.readers import READERS, read_frame
from ksel.rows import Rows, frame_rows
from ksel.saved import STUDENT, SavedRun, open_run
from ksel.sources import custom_task
from ksel.tasks import Task, get_task
from ksel.tracking import Progress

FORMATS = ("auto", "tsv", "jsonl", "json", "glue")
GLUE_BY_NAME = ("mnli", "qnli", "rte")
"""Tasks whose classes the leaderboard wants by name; those of the others by number."""
MISMATCHED = "MNLI-mm.tsv"


@dataclass(frozen=True)
class Predictions:
    """What a student says of N examples.

    Attributes:
        idx: [N] numbers of the examples.
        classes: names of the C classes; empty for regression.
        values: [N, C] probabilities, or [N, 1] scores; float64.
    """

    idx: np.ndarray
    classes: tuple[str, ...]
    values: np.ndarray

    def chosen(self) -> np.ndarray:
        """[N] numbers of the most probable classes."""
        return self.values.argmax(axis=1)


def main(argv: list[str]) -> int:
    """Predict, write the file, say what was written; score where there are labels."""
    quiet_libraries()
    arguments = _parse(argv)
    run = open_run(arguments.run)
    task = (
        custom_task(run.config.custom) if run.config.task == "custom" else get_task(run.config.task)
    )
    source = arguments.input
    form, target = _target(arguments, run, task)
    rows = _rows(source, task, must=arguments.score)
    if form == "json":
        check_ids(rows, f"--input: {source}")
    size = arguments.batch if arguments.batch is not None else run.config.batching.eval_size
    with Progress() as progress:
        if run.summary.get("builtin_data"):
            progress.say(
                f"note: this student was trained on the {run.summary['data']}, not on {task.name}'s "
                f"own data"
            )
        logits, split = predict(run, task, rows, batch_size=size, device=arguments.device)
    if split.spans is not None:
        decoded = decode(logits, split.spans, task, run.config.span)
        write_answers(decoded, form, target)
    else:
        write(to_predictions(rows, task, logits), task, form, target)
    print(f"written: {target} ({len(rows):,} predictions, format {form})")
    if rows.labels is not None:
        for name, value in score_split(task, logits, split, run.config.span).items():
            print(f"{name}: {value:.4f} on {source.name}")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ksel.predict",
        description="Write the predictions of a run's student for the examples of a file.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        help=f"file with the task's text columns ({', '.join(READERS)}); labels are optional",
    )
    parser.add_argument(
        "--output",
        help="file or folder to write to; default RUN/predictions/INPUT.tsv, of questions "
        "INPUT.json",
    )
    parser.add_argument(
        "--format",
        default="auto",
        help="tsv or jsonl: idx, prediction, probability of each class; glue: the leaderboard's "
        "two columns under its file name. Questions: json, SQuAD's own format, one object of id "
        "and answer (and, where there may be none, FILE.null_odds.json with the margin of none); "
        "tsv: idx, id, answer, score; jsonl: also the n best. auto: by the ending of --output, "
        "else json for questions and tsv for the rest",
    )
    parser.add_argument("--batch", type=int, help="examples of one batch; default the run's")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--score", action="store_true", help="insist on the metrics: the input must have labels"
    )
    arguments = parser.parse_args(list(argv))
    if arguments.format not in FORMATS:
        raise unknown_name("format", arguments.format, FORMATS, "--format")
    if arguments.batch is not None and arguments.batch < 1:
        raise UsageError(f"--batch: {arguments.batch} examples; give 1 or more.")
    return arguments


def _target(arguments: argparse.Namespace, run: SavedRun, task: Task) -> tuple[str, Path]:
    """The format and the file to write."""
    given = arguments.output
    path = run.folder / "predictions" if given is None else Path(given)
    folder = given is None or path.is_dir() or given.endswith("/")
    form = arguments.format
    usual = ("json", "tsv", "jsonl") if task.is_span else ("tsv", "jsonl")
    if form == "auto":
        form = usual[0] if folder else path.suffix[1:].lower()
        if form not in usual:
            raise UsageError(
                f"--output: {given} does not end in {' or '.join(f'.{name}' for name in usual)}. "
                f"Change the ending, or name the format with --format."
            )
    if form == "glue" and task.leaderboard is None:
        raise UsageError(
            f"--format glue: task {task.name} is not on the GLUE leaderboard. Use "
            f"{' or '.join(usual)}."
        )
    if form == "json" and not task.is_span:
        raise UsageError(
            f"--format json is for answers to questions; task {task.name} has none. Use jsonl."
        )
    if folder:
        stem = arguments.input.stem
        path /= leaderboard_file(task, stem) if form == "glue" else f"{stem}.{form}"
    written = [path, odds_file(path)] if form == "json" and task.unanswerable else [path]
    for one in written:
        if one.exists() and not arguments.overwrite:
            raise UsageError(
                f"--output: {one} exists already and is left as it is. Choose another name, or "
                f"give --overwrite."
            )
    if path.resolve() == arguments.input.resolve():
        raise UsageError(f"--output: {path} is the input itself. Choose another name.")
    return form, path


def leaderboard_file(task: Task, stem: str) -> str:
    """The leaderboard's file name; MNLI's second one where the input's name says mismatched."""
    assert task.leaderboard is not None
    mismatched = task.name == "mnli" and ("mismatched" in stem or stem.endswith("-mm"))
    return MISMATCHED if mismatched else task.leaderboard


def _rows(path: Path, task: Task, must: bool) -> Rows:
    """The rows of the input, with their labels where it has them.

    Raises:
        UsageError: the input is unreadable, or labels are asked for and absent or invalid.
    """
    where = f"--input: {path}"
    frame = read_frame(path, "--input")
    rows = frame_rows(frame, task, False, where)
    if task.label in frame.columns:
        try:
            rows = frame_rows(frame, task, True, where, print)
        except UsageError as error:
            if must:
                raise
            print(f"no metrics: {error}")
    if rows.labels is None and must:
        absent = "all without an answer" if task.is_span else "all -1"
        raise UsageError(
            f"--score: {path} has no labels (no column '{task.label}', or {absent}), so there is "
            f"nothing to score against. Leave --score out, or give a labelled file."
        )
    return rows


def predict(
    run: SavedRun, task: Task, rows: Rows, *, batch_size: int, device: str
) -> tuple[Tensor, Split]:
    """The student's logits, and the tokens they are for.

    Returns:
        [N, C] float32 (regression: [N, 1] scores) in the order of the rows, or [W, L, 2] for the
        windows of questions; and the tokenised rows.

    Raises:
        UsageError: the student is missing, unreadable, not of this task, or gives no finite
            numbers.
    """
    folder = str(run.needs_student())
    tokenizer = load_tokenizer(folder, f"RUN/{STUDENT}")
    model = load_classifier(folder, task, option=f"RUN/{STUDENT}", own_head=True)
    _check_head(model.config, task)
    where = pick_device(device)
    split = tokenize(rows, task, tokenizer, run.config.batching.max_length, run.config.span)
    logits = predict_logits(on_device(model, where), split, batch_size=batch_size, device=where)
    finite = finite_spans(logits, split) if task.is_span else bool(torch.isfinite(logits).all())
    if not finite:
        raise UsageError(
            f"RUN: the student in {folder} gives numbers that are not finite: its training "
            f"diverged. Train again with a lower --optim.learning_rate."
        )
    return logits, split


def _check_head(config: Any, task: Task) -> None:
    names = [config.id2label[i] for i in range(config.num_labels)]
    if config.num_labels != task.num_outputs or (task.labels and tuple(names) != task.labels):
        raise UsageError(
            f"RUN: the student's labels ({', '.join(names)}) are not those of task {task.name} "
            f"({', '.join(task.labels) or 'one score'}); config.yaml and {STUDENT}/config.json do "
            f"not belong together. Restore the one that was changed."
        )


def to_predictions(rows: Rows, task: Task, logits: Tensor) -> Predictions:
    """Probabilities from logits; scores stay as they are."""
    values = logits.double() if task.is_regression else logits.double().softmax(-1)
    return Predictions(rows.idx, task.labels, values.numpy())


def write(predictions: Predictions, task: Task, form: str, path: Path) -> None:
    """Write the file whole or not at all.

    Args:
        predictions: what to write.
        task: how the leaderboard wants it.
        form: ``tsv``, ``jsonl`` or ``glue``.
        path: the file.
    """
    if form == "glue":
        columns = ["index", "prediction"]
        cells = [
            list(pair) for pair in zip(predictions.idx, glue_values(predictions, task), strict=True)
        ]
    else:
        columns = ["idx", "prediction", *(f"p_{name}" for name in predictions.classes)]
        cells = _cells(predictions)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if form == "jsonl":
            for row in cells:
                record = dict(zip(columns, row, strict=True))
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(cells)


def _cells(predictions: Predictions) -> list[list[Any]]:
    rounded = [[float(f"{value:.8g}") for value in row] for row in predictions.values]
    if not predictions.classes:
        return [[int(i), *row] for i, row in zip(predictions.idx, rounded, strict=True)]
    names = [predictions.classes[k] for k in predictions.chosen()]
    return [
        [int(i), name, *row] for i, name, row in zip(predictions.idx, names, rounded, strict=True)
    ]


def glue_values(predictions: Predictions, task: Task) -> list[str]:
    """The leaderboard's column ``prediction``: names, numbers, or scores cut to their range."""
    if task.is_regression:
        return [f"{value:.5f}" for value in np.clip(predictions.values[:, 0], *task.score_range)]
    chosen = predictions.chosen()
    if task.name in GLUE_BY_NAME:
        return [task.labels[k] for k in chosen]
    return [str(k) for k in chosen]


if __name__ == "__main__":
    sys.exit(guard(main))
