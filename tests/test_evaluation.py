from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ksel.data import Split
from ksel.errors import UsageError
from ksel.evaluation import constant_score, predict_logits, score
from ksel.objectives import OBJECTIVES, objective_value
from ksel.tasks import TASKS, Task

STSB = TASKS["stsb"]
QNLI = TASKS["qnli"]


def task_with(*metrics: str, classes: int = 2) -> Task:
    return Task("t", "single", "text", None, tuple(f"c{i}" for i in range(classes)), metrics)


def one_hot(predicted: list[int], classes: int = 2) -> Tensor:
    return torch.eye(classes)[predicted]


def test_class_metrics_by_hand() -> None:
    # class 1: 2 hits, 1 false alarm, 1 miss; class 0: 2 right
    labels = torch.tensor([1, 1, 1, 0, 0, 0])
    logits = one_hot([1, 1, 0, 1, 0, 0])
    scores = score(task_with("matthews", "accuracy", "f1"), logits, labels)
    assert list(scores) == ["matthews", "accuracy", "f1"]
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["matthews"] == pytest.approx((2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))


def test_f1_is_that_of_class_1() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert score(task_with("f1"), one_hot([0, 0, 0, 0]), labels) == {"f1": 0.0}


def test_three_class_accuracy_counts_examples_not_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    scores = score(TASKS["mnli"], one_hot([0, 0, 0, 2, 2], 3), labels)
    assert scores["accuracy"] == pytest.approx(4 / 5)


def test_correlations_by_hand() -> None:
    labels = torch.tensor([0.0, 1.0, 2.0, 3.0])
    predicted = torch.tensor([[0.0], [2.0], [1.0], [5.0]])
    scores = score(STSB, predicted, labels)
    # deviations (-2, 0, -1, 3) and (-1.5, -0.5, 0.5, 1.5)
    assert scores["pearson"] == pytest.approx(7 / math.sqrt(14 * 5))
    assert scores["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_what_a_constant_answer_scores() -> None:
    labels = torch.tensor([0, 1, 1, 1, 0])
    assert constant_score(TASKS["rte"], labels) == pytest.approx(0.6)
    assert constant_score(TASKS["cola"], labels) == 0.0
    assert constant_score(TASKS["stsb"], labels.float()) == 0.0
    assert constant_score(TASKS["squad"], None) is None
    constant = torch.tensor([[0.0, 1.0]]).expand(5, 2)
    assert score(TASKS["rte"], constant, labels)["accuracy"] == pytest.approx(0.6)


def test_constant_predictions_correlate_with_nothing_and_do_not_warn() -> None:
    labels = torch.tensor([0.0, 1.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(STSB, torch.ones(3, 1), labels) == {"pearson": 0.0, "spearman": 0.0}
        assert score(STSB, labels[:, None] * 1e-9, torch.ones(3))["pearson"] == 0.0
        assert score(STSB, torch.tensor([[1.0], [1.0], [1.0 + 1e-7]]), labels)["pearson"] >= 0.0


def test_one_class_predictions_have_no_matthews() -> None:
    assert score(TASKS["cola"], one_hot([1, 1, 1]), torch.tensor([0, 1, 1])) == {"matthews": 0.0}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_score_nan_by_every_metric(odd: float) -> None:
    classes, scores = torch.tensor([0, 1, 1]), torch.tensor([0.0, 1.0, 2.0])
    logits = one_hot([0, 1, 1])
    logits[0, 1] = odd
    found = score(task_with("accuracy", "f1", "matthews"), logits, classes)
    found |= score(STSB, torch.tensor([[0.0], [odd], [1.0]]), scores)
    found |= score(STSB, torch.full((3, 1), odd), scores)
    assert len(found) == 5
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_that_are_not_finite_have_no_objective(name: str, odd: float) -> None:
    logits = one_hot([0, 1, 1])
    logits[0, 1] = odd
    assert math.isnan(objective_value(name, logits, torch.tensor([0, 1, 1]), QNLI, 0.5))
    if name != "margin":
        scores = torch.tensor([0.0, 1.0, 2.0])
        logits = torch.tensor([[0.0], [odd], [1.0]])
        assert math.isnan(objective_value(name, logits, scores, STSB, 0.5))


def test_unlabelled_split_is_refused_for_scoring() -> None:
    with pytest.raises(UsageError, match=r"--data.*no labels.*ksel.predict"):
        score(QNLI, torch.zeros(3, 2), None)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    expected = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    value = objective_value("cross_entropy", logits, torch.tensor([0, 1]), QNLI, 1.0)
    assert value == pytest.approx(expected)


def test_calibrated_finds_the_temperature_of_a_known_frequency() -> None:
    # 3 of 4 right with one and the same margin: least at p = 3/4, whatever the margin
    labels = torch.tensor([0, 0, 0, 1])
    expected = -(3 * math.log(3 / 4) + math.log(1 / 4)) / 4
    for margin in (0.1, 1.0, 20.0):
        logits = torch.tensor([[margin, 0.0]] * 4)
        assert objective_value("calibrated", logits, labels, QNLI, 1.0) == pytest.approx(
            expected, abs=1e-6
        )


def test_calibrated_is_never_above_cross_entropy_and_ignores_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=generator) * 3
    labels = torch.randint(3, (200,), generator=generator)
    plain, fitted, scaled = (
        objective_value(name, x, labels, TASKS["mnli"], 1.0)
        for name, x in (
            ("cross_entropy", logits),
            ("calibrated", logits),
            ("calibrated", logits / 4),
        )
    )
    assert fitted < plain - 0.1
    assert scaled == pytest.approx(fitted, abs=1e-6)


def test_calibrated_of_a_perfect_and_of_a_broken_model() -> None:
    labels = torch.tensor([0, 1])
    assert objective_value("calibrated", one_hot([0, 1]), labels, QNLI, 1.0) < 1e-6
    assert math.isnan(objective_value("calibrated", torch.full((2, 2), math.nan), labels, QNLI, 1))


def test_margin_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
    labels = torch.tensor([0, 2])
    expected = (1 / (1 + math.exp(1 / 2)) + 1 / (1 + math.exp(-3 / 2))) / 2
    assert objective_value("margin", logits, labels, TASKS["mnli"], 2.0) == pytest.approx(expected)


def test_narrow_margin_is_the_error_rate() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    value = objective_value("margin", one_hot([0, 0, 0, 0]), labels, QNLI, 1e-3)
    assert value == pytest.approx(1 / 4)


def test_regression_objectives_by_hand() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0])
    predicted = torch.tensor([[10.0], [12.0], [11.0]])
    mse = (10**2 + 11**2 + 9**2) / 3
    assert objective_value("cross_entropy", predicted, scores, STSB, 1.0) == pytest.approx(mse)
    # correlation 1/2, variance 2/3: what is left is 2/3 (1 - 1/4)
    assert objective_value("calibrated", predicted, scores, STSB, 1.0) == pytest.approx(1 / 2)
    constant = objective_value("calibrated", torch.ones(3, 1), scores, STSB, 1.0)
    assert constant == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "task", "width", "message"),
    [
        ("margin", STSB, 1.0, r"--env.objective margin: task stsb has scores"),
        ("calibratd", QNLI, 1.0, r"--env.objective: .*Did you mean 'calibrated'"),
        ("margin", QNLI, 0.0, r"--env.margin_width: 0.0"),
    ],
)
def test_wrong_objectives_are_refused(name: str, task: Task, width: float, message: str) -> None:
    labels = torch.zeros(2) if task.is_regression else torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UsageError, match=message):
        objective_value(name, torch.zeros(2, task.num_outputs), labels, task, width)


class FirstToken(nn.Module):
    """Gives the sum of the token ids and the training mode as logits."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.frozen = nn.Dropout()
        self.free = nn.Dropout()
        self.fails = fails

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        if self.fails:
            raise RuntimeError("broken")
        assert not torch.is_grad_enabled()
        sums = (input_ids * attention_mask).sum(1)
        mode = torch.full_like(sums, float(self.free.training))
        return SimpleNamespace(logits=torch.stack([sums, mode], 1).to(torch.bfloat16))


def ragged_split() -> Split:
    rows = [np.arange(1, n + 1, dtype=np.int64) for n in (3, 1, 5, 2, 4)]
    return Split(rows, None, None, np.array([3, 1, 5, 2, 4]), pad_token_id=9)


def test_logits_come_in_row_order_in_eval_mode_and_the_mode_comes_back() -> None:
    model = FirstToken()
    model.frozen.eval()
    logits = predict_logits(model, ragged_split(), batch_size=2, device="cpu")
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[6, 0], [1, 0], [15, 0], [3, 0], [10, 0]]
    assert model.training
    assert model.free.training
    assert not model.frozen.training


def test_the_mode_comes_back_after_an_error() -> None:
    model = FirstToken(fails=True)
    with pytest.raises(RuntimeError, match="broken"):
        predict_logits(model, ragged_split(), batch_size=2, device="cpu")
    assert model.training
