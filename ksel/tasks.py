"""The table of tasks: which columns hold the text, what the labels are called, what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ksel.errors import unknown_name

Kind = Literal["single", "pair", "regression", "span"]
"""single, pair: classes of one text or of two; regression: a score; span: the part of the second
text that answers the first."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: short name, as in ``--task``.
        kind: what its labels are.
        text: column of the text, of the first text of a pair, or of the question.
        text_pair: column of the second text, of the context that holds the answer, or None.
        labels: names of the classes in the order of their ids; empty for regression and spans.
        metrics: names of the metrics (see ``ksel.evaluation``); the first is the headline.
        label: column of the label, or of the answers.
        hub: repository and configuration on the Hugging Face hub, or None.
        dev_splits: names of the dev files; the first is the one reported first.
        score_range: smallest and largest score of a regression task.
        leaderboard: file name that the GLUE leaderboard expects, or None.
        unanswerable: spans: questions may have no answer.
        version: spans: what the official files add to their names, as in ``train-v1.1.json``.
    """

    name: str
    kind: Kind
    text: str
    text_pair: str | None
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    label: str = "label"
    hub: tuple[str, str] | None = None
    dev_splits: tuple[str, ...] = ("dev",)
    score_range: tuple[float, float] = (0.0, 0.0)
    leaderboard: str | None = None
    unanswerable: bool = False
    version: str = ""

    @property
    def is_regression(self) -> bool:
        """True if the label is a score rather than a class."""
        return self.kind == "regression"

    @property
    def is_span(self) -> bool:
        """True if the label is a part of the second text."""
        return self.kind == "span"

    @property
    def num_outputs(self) -> int:
        """Width of the output: number of classes, 1 for scores, 2 per token (start, end) for spans."""
        return len(self.labels) or (2 if self.is_span else 1)


def label_kind(text_pair: str | None, labels: tuple[str, ...]) -> Kind:
    """The kind of a task whose label is a class, or (without class names) a score."""
    if not labels:
        return "regression"
    return "single" if text_pair is None else "pair"


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
        kind=label_kind(text_pair, labels),
        text=text,
        text_pair=text_pair,
        labels=labels,
        metrics=metrics,
        hub=("nyu-mll/glue", name),
        dev_splits=dev_splits,
        score_range=score_range,
        leaderboard=leaderboard,
    )


def _squad(name: str, configuration: str, version: str, unanswerable: bool) -> Task:
    return Task(
        name=name,
        kind="span",
        text="question",
        text_pair="context",
        labels=(),
        metrics=SPAN_METRICS,
        label="answers",
        hub=(f"rajpurkar/{name}", configuration),
        unanswerable=unanswerable,
        version=version,
    )


SPAN_METRICS = ("f1", "exact_match")
"""Metrics of answers: overlap of words with the nearest gold answer, and equality with one."""

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
        _squad("squad", "plain_text", "-v1.1", unanswerable=False),
        _squad("squad_v2", "squad_v2", "-v2.0", unanswerable=True),
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
