"""Raw examples from files and from the Hugging Face hub, and the task that a user describes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ksel.config import CustomTaskConfig
from ksel.errors import UsageError, unknown_name
from ksel.hub import offline_switch
from ksel.tasks import Task

CLASS_METRICS = ("accuracy", "f1", "matthews")
"""Metrics of class labels."""
SCORE_METRICS = ("pearson", "spearman")
"""Metrics of scores."""

HUB_TIMEOUT = 5.0
"""Seconds that the hub has to answer before the cache is tried."""


@dataclass(frozen=True)
class Rows:
    """The raw examples of one split.

    Attributes:
        texts: the text, or the first text of the pair.
        pairs: the second texts, or None for single texts.
        labels: [N] int64 class ids or float32 scores; None where the split has no labels.
        idx: [N] int64, the ``idx`` column where the file has one, else the row number in the file.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray | None
    idx: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: np.ndarray) -> Rows:
        """The rows with these numbers, in this order."""
        return Rows(
            [self.texts[i] for i in index],
            None if self.pairs is None else [self.pairs[i] for i in index],
            None if self.labels is None else self.labels[index],
            self.idx[index],
        )


class HubUnavailableError(UsageError):
    """The data set is neither on a hub that answers nor in its cache."""


def custom_task(settings: CustomTaskConfig) -> Task:
    """Turn the ``--custom`` settings into a task.

    Raises:
        UsageError: an unknown metric, a metric that does not fit the kind of label, fewer than two
            classes or classes of the same name, no text column, an empty score range or one beside classes.
    """
    labels, metrics = tuple(settings.labels), tuple(settings.metrics)
    if not settings.text or not settings.label:
        raise UsageError("--custom.text, --custom.label: name the columns of text and label.")
    if len(labels) == 1 or len(set(labels)) < len(labels):
        raise UsageError(
            f"--custom.labels: {list(labels)} is not a list of two or more different class names; "
            f"leave it empty if the label is a score."
        )
    if not metrics or len(set(metrics)) < len(metrics):
        raise UsageError("--custom.metrics: name at least one metric, and none twice.")
    for metric in metrics:
        _check_metric(metric, len(labels))
    low, high = settings.score_range
    if labels and (low, high) != CustomTaskConfig().score_range:
        raise UsageError(
            f"--custom.score_range: {low:g} to {high:g} has no effect beside --custom.labels, "
            f"which means that the label is a class. Leave one of the two out."
        )
    if not labels and not low < high:
        raise UsageError(
            f"--custom.score_range: {low} to {high} is empty; give the smallest score, "
            f"then the largest."
        )
    return Task(
        name="custom",
        text=settings.text,
        text_pair=settings.text_pair,
        labels=labels,
        metrics=metrics,
        label=settings.label,
        score_range=(0.0, 0.0) if labels else (float(low), float(high)),
    )


def _check_metric(metric: str, classes: int) -> None:
    if metric not in CLASS_METRICS + SCORE_METRICS:
        raise unknown_name("metric", metric, CLASS_METRICS + SCORE_METRICS, "--custom.metrics")
    if classes == 0 and metric in CLASS_METRICS:
        raise UsageError(
            f"--custom.metrics: {metric} needs classes, but --custom.labels is empty, which means "
            f"that the label is a score. Name the classes in --custom.labels, or use "
            f"{' or '.join(SCORE_METRICS)}."
        )
    if classes and metric in SCORE_METRICS:
        raise UsageError(
            f"--custom.metrics: {metric} needs scores, but --custom.labels names classes. Empty "
            f"--custom.labels, or use {', '.join(CLASS_METRICS)}."
        )
    if metric == "f1" and classes > 2:
        raise UsageError(
            f"--custom.metrics: f1 is the F1 of class 1 of two, but there are {classes} classes. "
            f"Use accuracy or matthews."
        )


def _read_parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _table(csv.reader(file, strict=True))


def _read_tsv(path: Path) -> pd.DataFrame:
    # GLUE's .tsv files hold bare quotation marks inside the texts
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _table(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _table(lines: Any) -> pd.DataFrame:
    """A frame of strings; unlike pandas' reader it refuses lines of the wrong width."""
    header = next(lines, None)
    if header is None:
        return pd.DataFrame()
    rows = []
    for row in lines:
        if len(row) not in (0, len(header)):
            raise ValueError(
                f"line {lines.line_num} has {len(row)} fields where the header has {len(header)}"
            )
        if row:
            rows.append(row)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _read_jsonl(path: Path) -> pd.DataFrame:
    records = []
    # not splitlines, which cuts at U+2028 and U+0085 inside strings too
    for number, line in enumerate(path.read_bytes().decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is not a JSON object with one entry per column")
        records.append(record)
    # dtype=object keeps 1 an int beside a missing value
    return pd.DataFrame(records, dtype=object)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
}
"""File name ending -> reader; .json holds JSON lines."""


def read_rows(path: Path, task: Task, labelled: bool, option: str = "--data") -> Rows:
    """Read one file of examples.

    Args:
        path: a parquet, csv, tsv or jsonl file with the task's columns.
        task: names the columns and the classes.
        labelled: read the labels; False ignores the label column and does not ask for one.
        option: the option that named the file, for error messages.

    Returns:
        The rows; ``labels`` is None if not asked for, or if every label is -1 (GLUE's test sets).

    Raises:
        UsageError: no such file, an unreadable, half-written or empty one, a missing column, a
            missing text, a label outside the task's table.
    """
    where = f"{option}: {path}"
    if path.suffix.lower() not in READERS:
        raise UsageError(f"{where} ends in none of {', '.join(READERS)}; convert it to one.")
    if not path.is_file():
        raise UsageError(f"{where} is not there, or is not a file; check the path.")
    try:
        frame = READERS[path.suffix.lower()](path)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UsageError(
            f"{where} cannot be read as {path.suffix[1:]} (damaged, or half-written?): {error}. "
            f"Make or copy the file anew."
        ) from error
    return frame_rows(frame, task, labelled, where)


def frame_rows(frame: pd.DataFrame, task: Task, labelled: bool, where: str) -> Rows:
    """Take a table's text and label columns; arguments and errors as :func:`read_rows`."""
    if frame.empty:
        raise UsageError(f"{where} has no rows; supply a file with at least one.")
    wanted = [task.text, task.text_pair, task.label if labelled else None]
    missing = [name for name in wanted if name is not None and name not in frame.columns]
    if missing:
        if not labelled:
            fix = "rename the columns to those that the student was trained on"
        elif task.name == "custom":
            fix = "set --custom.text, --custom.text_pair, --custom.label"
        else:
            fix = (
                "rename the columns, or use --task custom with --custom.text, --custom.text_pair, "
                "--custom.label"
            )
        raise UsageError(
            f"{where} has no column {', '.join(map(repr, missing))} for task {task.name}. "
            f"It has: {', '.join(map(str, frame.columns))}; {fix}."
        )
    return Rows(
        _texts(frame, task.text, where),
        None if task.text_pair is None else _texts(frame, task.text_pair, where),
        _labels(frame[task.label].tolist(), task, where) if labelled else None,
        _idx(frame),
    )


def _texts(frame: pd.DataFrame, column: str, where: str) -> list[str]:
    texts = frame[column].tolist()
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            what = "is missing" if _is_missing(text) else f"is not text but {text!r}"
            raise UsageError(
                f"{where}: column '{column}' {what} in data row {number}; fill or remove the row."
            )
    return texts


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _labels(values: Sequence[Any], task: Task, where: str) -> np.ndarray | None:
    low, high = task.score_range
    names = {name: float(number) for number, name in enumerate(task.labels)}
    parsed = np.array([_label_number(value, names) for value in values], dtype=np.float64)
    if task.is_regression:
        # written so that nan counts as wrong
        wrong = ~((parsed >= low) & (parsed <= high))
        valid = f"scores from {low:g} to {high:g}"
    else:
        wrong = ~np.isin(parsed, np.arange(len(task.labels)))
        valid = f"{', '.join(task.labels)}, or their numbers 0 to {len(task.labels) - 1}"
    if wrong.all() and (parsed == -1).all():
        return None
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        option = "--custom.labels or --custom.score_range" if task.name == "custom" else "--task"
        raise UsageError(
            f"{where}: label {values[row]!r} in data row {row + 1} is outside task {task.name}'s "
            f"labels ({valid}); correct the file, or {option}."
        )
    return parsed.astype(np.float32 if task.is_regression else np.int64)


def _label_number(value: Any, names: dict[str, float]) -> float:
    text = str(value).strip()
    if text in names:
        return names[text]
    try:
        return float(text) if not isinstance(value, bool) else float(value)
    except ValueError:
        return math.nan


def _idx(frame: pd.DataFrame) -> np.ndarray:
    if "idx" in frame.columns:
        numbers = pd.to_numeric(frame["idx"], errors="coerce")
        if bool(numbers.notna().all()) and bool((numbers % 1 == 0).all()):
            return numbers.to_numpy().astype(np.int64)
    return np.arange(len(frame), dtype=np.int64)


def read_folder(task: Task, data: str) -> tuple[Rows, dict[str, Rows], Path]:
    """Read a task's train and dev files from a folder given as ``--data``.

    Looks in ``DIR/glue/TASK``, ``DIR/TASK`` and ``DIR``, in this order, for ``train`` with one of
    the endings in :data:`READERS`.

    Returns:
        Train rows, dev split name -> rows, and the folder that held them.

    Raises:
        UsageError: the folder or a file in it is missing or there twice; or as :func:`read_rows`.
    """
    root = Path(data)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(
            f"--data {data}: {what}. Give a folder with train and dev files, hub, or builtin."
        )
    places = (
        [root] if task.name == "custom" else [root / "glue" / task.name, root / task.name, root]
    )
    found = next((place for place in places if _file(place, "train")), None)
    if found is None:
        raise UsageError(
            f"--data {data}: no train file (one of {', '.join(READERS)}) in "
            f"{', '.join(map(str, places))}. Give the folder that has it, hub, or builtin."
        )
    train_file = _file(found, "train")
    assert train_file is not None
    files = {name: _file(found, *_dev_names(name)) for name in task.dev_splits}
    if not any(files.values()):
        names = [stem for name in task.dev_splits for stem in _dev_names(name)]
        raise UsageError(
            f"--data {data}: {found} has a train file but no dev file; "
            f"add one named {' or '.join(names)}, with an ending of {', '.join(READERS)}."
        )
    dev = {name: read_rows(path, task, True) for name, path in files.items() if path is not None}
    return read_rows(train_file, task, True), dev, found


def _dev_names(split: str) -> tuple[str, str]:
    """The file's name here and its name on the hub."""
    return split, split.replace("dev", "validation", 1)


def _file(folder: Path, *stems: str) -> Path | None:
    paths = [folder / f"{stem}{ending}" for stem in stems for ending in READERS]
    paths = [path for path in paths if path.is_file()]
    if len(paths) > 1:
        raise UsageError(f"--data: {' and '.join(map(str, paths))} hold the same split; keep one.")
    return paths[0] if paths else None


def read_hub(task: Task, say: Callable[[str], None]) -> tuple[Rows, dict[str, Rows]]:
    """Load a task's train and dev splits from the Hugging Face hub, or from its cache.

    The hub is asked once whether it answers; if not, the ``datasets`` cache is used with that
    library's offline switch on, since its own retries last some twenty seconds.

    Raises:
        HubUnavailableError: the task has no hub name; the hub does not answer and the cache has no
            copy; or the download failed.
        UsageError: as :func:`read_rows`.
    """
    import datasets
    import huggingface_hub

    if task.hub is None:
        raise HubUnavailableError(f"--data hub: task {task.name} is not on the hub; give a folder.")
    repository, configuration = task.hub
    trouble = None
    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=HUB_TIMEOUT)
    except Exception as error:
        # the class depends on huggingface_hub's http library; the reason is passed on
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    offline = datasets.config.HF_HUB_OFFLINE or trouble is not None
    try:
        with offline_switch(datasets.config, offline):
            loaded = datasets.load_dataset(repository, configuration)
    except Exception as error:
        reason = trouble or f"{type(error).__name__}: {error}".splitlines()[0]
        raise HubUnavailableError(
            f"--data hub: cannot load {repository} ({configuration}) from the hub, and its cache "
            f"has no copy ({reason}). Give --data DIR with train and dev files, or --data builtin."
        ) from error
    if trouble is not None:
        say(f"The Hugging Face hub does not answer ({trouble}); using its cached {repository}.")

    def rows(split: str) -> Rows:
        if split not in loaded:
            raise UsageError(f"--data hub: {repository} has no split {split}; give --data DIR.")
        where = f"--data hub: {repository} {split}"
        return frame_rows(loaded[split].to_pandas(), task, True, where)

    return rows("train"), {name: rows(_dev_names(name)[1]) for name in task.dev_splits}
