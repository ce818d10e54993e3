from __future__ import annotations

import pytest

from ksel.config import CustomTaskConfig
from ksel.errors import UsageError
from ksel.evaluation import METRICS
from ksel.sources import CLASS_METRICS, SCORE_METRICS, custom_task
from ksel.tasks import SPAN_METRICS, TASKS, get_task


def test_table_has_the_nine_glue_tasks_and_the_two_of_squad() -> None:
    glue = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
    assert list(TASKS) == [*glue, "squad", "squad_v2"]
    assert TASKS["mnli"].dev_splits == ("dev_matched", "dev_mismatched")


def test_regression_is_the_task_of_scores() -> None:
    assert [name for name, task in TASKS.items() if task.is_regression] == ["stsb"]
    assert TASKS["stsb"].num_outputs == 1
    assert TASKS["mnli"].num_outputs == 3


def test_every_metric_of_the_table_can_be_measured() -> None:
    assert set(METRICS) == {*CLASS_METRICS, *SCORE_METRICS}
    for task in TASKS.values():
        known = SCORE_METRICS if task.is_regression else CLASS_METRICS
        assert set(task.metrics) <= set(SPAN_METRICS if task.is_span else known)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"--task: unknown task 'qnlii'. Did you mean 'qnli'\?"):
        get_task("qnlii")


def test_custom_settings_become_a_task() -> None:
    settings = CustomTaskConfig(text="a", text_pair="b", label="y", labels=["no", "yes"])
    task = custom_task(settings)
    assert (task.text, task.text_pair, task.label) == ("a", "b", "y")
    assert task.labels == ("no", "yes")
    assert task.hub is None


def test_custom_scores_keep_their_range() -> None:
    task = custom_task(CustomTaskConfig(metrics=["pearson"], score_range=(-1, 1)))
    assert task.is_regression
    assert task.score_range == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": []}, r"--custom.metrics: accuracy needs classes, but --custom.labels is empty"),
        ({"labels": ["a", "b"], "metrics": ["pearson"]}, r"pearson needs scores"),
        ({"labels": ["a", "b"], "metrics": ["acuracy"]}, r"Did you mean 'accuracy'"),
        ({"labels": ["a", "b"], "metrics": []}, r"--custom.metrics: name at least one"),
        ({"labels": ["a", "b", "c"], "metrics": ["f1"]}, r"f1 is the F1 of class 1 of two"),
        ({"labels": ["a"]}, r"--custom.labels: \['a'\]"),
        ({"labels": ["a", "a"]}, r"--custom.labels"),
        ({"metrics": ["spearman"], "score_range": (1, 1)}, r"--custom.score_range: 1 to 1"),
        ({"labels": ["a", "b"], "text": ""}, r"--custom.text"),
    ],
)
def test_contradicting_custom_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        custom_task(CustomTaskConfig(**settings))
