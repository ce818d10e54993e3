"""Where rows come from: a folder or the Hugging Face hub; and the task that a user describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ksel.config import CustomTaskConfig
from ksel.errors import UsageError, unknown_name
from ksel.hub import offline_switch
from ksel.readers import READERS
from ksel.rows import Rows, frame_rows, read_rows
from ksel.tasks import SPAN_METRICS, Task, label_kind

CLASS_METRICS = ("accuracy", "f1", "matthews")
"""Metrics of class labels."""
SCORE_METRICS = ("pearson", "spearman")
"""Metrics of scores."""

HUB_TIMEOUT = 5.0
"""Seconds that the hub has to answer before the cache is tried."""


class HubUnavailableError(UsageError):
    """The data set is neither on a hub that answers nor in its cache."""


def custom_task(settings: CustomTaskConfig) -> Task:
    """Turn the ``--custom`` settings into a task.

    Raises:
        UsageError: an unknown metric, a metric that does not fit the kind of label, fewer than two
            classes or classes of the same name, no text column, an empty score range or one beside
            classes; a setting of classes or scores beside a kind of spans.
    """
    labels, metrics = tuple(settings.labels), tuple(settings.metrics)
    if not settings.text or not settings.label:
        raise UsageError("--custom.text, --custom.label: name the columns of text and label.")
    if settings.kind != "auto":
        return _custom_span(settings)
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
        kind=label_kind(settings.text_pair, labels),
        text=settings.text,
        text_pair=settings.text_pair,
        labels=labels,
        metrics=metrics,
        label=settings.label,
        score_range=(0.0, 0.0) if labels else (float(low), float(high)),
    )


def _custom_span(settings: CustomTaskConfig) -> Task:
    default = CustomTaskConfig()
    for name in ("labels", "metrics", "score_range"):
        if getattr(settings, name) != getattr(default, name):
            raise UsageError(
                f"--custom.{name} has no effect beside --custom.kind {settings.kind}, whose labels "
                f"are answers and whose metrics are {' and '.join(SPAN_METRICS)}. Leave it out."
            )
    if not settings.text_pair:
        raise UsageError(
            f"--custom.kind {settings.kind}: name the column of the context in --custom.text_pair; "
            f"--custom.text is that of the question, --custom.label that of the answers."
        )
    return Task(
        name="custom",
        kind="span",
        text=settings.text,
        text_pair=settings.text_pair,
        labels=(),
        metrics=SPAN_METRICS,
        label=settings.label,
        unanswerable=settings.kind == "span_v2",
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


def read_folder(
    task: Task, data: str, say: Callable[[str], None] | None = None
) -> tuple[Rows, dict[str, Rows], Path]:
    """Read a task's train and dev files from a folder given as ``--data``.

    Looks in ``DIR/glue/TASK``, ``DIR/TASK`` and ``DIR``, in this order, for ``train`` with one of
    the endings in :data:`READERS`, or for an original file such as ``train-v1.1.json``.

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
    found = next((place for place in places if _file(place, *_names("train", task))), None)
    if found is None:
        raise UsageError(
            f"--data {data}: no train file (one of {', '.join(READERS)}) in "
            f"{', '.join(map(str, places))}. Give the folder that has it, hub, or builtin."
        )
    train_file = _file(found, *_names("train", task))
    assert train_file is not None
    files = {name: _file(found, *_names(name, task)) for name in task.dev_splits}
    if not any(files.values()):
        names = [stem for name in task.dev_splits for stem in _names(name, task)]
        raise UsageError(
            f"--data {data}: {found} has a train file but no dev file; "
            f"add one named {' or '.join(names)}, with an ending of {', '.join(READERS)}."
        )
    dev = {
        name: read_rows(path, task, True, say=say)
        for name, path in files.items()
        if path is not None
    }
    return read_rows(train_file, task, True, say=say), dev, found


def _names(split: str, task: Task) -> list[str]:
    """The split's file name here, on the hub, and among the original files; none twice."""
    names = [split, _hub_name(split)]
    return list(dict.fromkeys([*names, f"{split}{task.version}"]))


def _hub_name(split: str) -> str:
    return split.replace("dev", "validation", 1)


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
        return frame_rows(loaded[split].to_pandas(), task, True, where, say)

    return rows("train"), {name: rows(_hub_name(name)) for name in task.dev_splits}
