"""The table of tasks: which columns hold the text, what the labels are called, what is measured."""

from __future__ import annotations

from dataclasses import dataclass

from ksel.errors import unknown_name


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: short name, as in ``--task``.
        text: column of the text, or of the first text of a pair.
        text_pair: column of the second text, or None.
        labels: names of the classes in the order of their ids; empty for regression.
        metrics: names of the metrics (see ``ksel.evaluation``); the first is the headline.
        label: column of the label.
        hub: repository and configuration on the Hugging Face hub, or None.
        dev_splits: names of the dev files; the first is the one reported first.
        score_range: smallest and largest score of a regression task.
        leaderboard: file name that the GLUE leaderboard expects, or None.
    """

    name: str
    text: str
    text_pair: str | None
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    label: str = "label"
    hub: tuple[str, str] | None = None
    dev_splits: tuple[str, ...] = ("dev",)
    score_range: tuple[float, float] = (0.0, 0.0)
    leaderboard: str | None = None

    @property
    def is_regression(self) -> bool:
        """True if the label is a score rather than a class."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Width of the model's output: number of classes, or 1 for regression."""
        return len(self.labels) or 1


def _glue(
    name: str,
    text: str,
    text_pair: str | None,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    leaderboard: str,
    dev_splits: tuple[str, ...] = ("dev",),
    score_range: tuple[float, float] = (0.0, 0.0),
) -> Task:
    return Task(
        name=name,
        text=text,
        text_pair=text_pair,
        labels=labels,
        metrics=metrics,
        hub=("nyu-mll/glue", name),
        dev_splits=dev_splits,
        score_range=score_range,
        leaderboard=leaderboard,
    )


_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", "sentence", None, ("unacceptable", "acceptable"), ("matthews",), "CoLA.tsv"),
        _glue("sst2", "sentence", None, ("negative", "positive"), ("accuracy",), "SST-2.tsv"),
        _glue(
            "mrpc",
            "sentence1",
            "sentence2",
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            "MRPC.tsv",
        ),
        _glue(
            "qqp",
            "question1",
            "question2",
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            "QQP.tsv",
        ),
        _glue(
            "stsb",
            "sentence1",
            "sentence2",
            (),
            ("pearson", "spearman"),
            "STS-B.tsv",
            score_range=(0.0, 5.0),
        ),
        _glue(
            "mnli",
            "premise",
            "hypothesis",
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            "MNLI-m.tsv",
            dev_splits=("dev_matched", "dev_mismatched"),
        ),
        _glue("qnli", "question", "sentence", _ENTAILMENT, ("accuracy",), "QNLI.tsv"),
        _glue("rte", "sentence1", "sentence2", _ENTAILMENT, ("accuracy",), "RTE.tsv"),
        _glue(
            "wnli",
            "sentence1",
            "sentence2",
            ("not_entailment", "entailment"),
            ("accuracy",),
            "WNLI.tsv",
        ),
    )
}


def get_task(name: str) -> Task:
    """Look a task up by name.

    Raises:
        UsageError: the name is not in the table.
    """
    if name not in TASKS:
        raise unknown_name("task", name, [*TASKS, "custom"], "--task")
    return TASKS[name]
