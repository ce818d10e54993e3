"""The probe: a ridge regression on the student's states, and the objective that is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.distillation import DistillationEnv
from envs.keeping import KNOWN
from ksel.errors import UsageError
from ksel.evaluation import predict_logits, predict_states
from ksel.objectives import (
    Fit,
    check_objective,
    fit_objective,
    objective_loss,
    objective_rows,
    objective_value,
    reads_states,
)
from ksel.packing import pack, unpack
from ksel.probe import RIDGES, fit_ridge, ridge_rows
from ksel.settings import config_from_dict
from ksel.setup import Setup
from ksel.tasks import get_task

Make = Callable[..., DistillationEnv]
POOL = ["label", "response", "hidden/skip"]


def drawn(rows: int, width: int, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """States, and targets that are linear in them but for noise."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, width, generator=generator, dtype=torch.float64) + 3.0
    truth = torch.randn(width, 2, generator=generator, dtype=torch.float64)
    error = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return states, states @ truth + noise * error


def left_out(states: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Squared error of each row by a regression on all others, each made anew."""
    rows = []
    for i in range(len(states)):
        others = torch.arange(len(states)) != i
        x, y = states[others], targets[others]
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        weight = torch.linalg.solve(
            x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y
        )
        rows.append((targets[i] - mean_y - (states[i] - mean_x) @ weight).square().mean())
    return torch.stack(rows)


# --------------------------------------------------------------------------- the regression


@pytest.mark.parametrize(("rows", "width"), [(25, 4), (12, 20)])
def test_each_row_is_predicted_by_all_others(rows: int, width: int) -> None:
    states, targets = drawn(rows, width)
    centred = states - states.mean(0)
    scale = torch.linalg.svdvals(centred).square().mean()
    by_hand = [left_out(states, targets, ridge * float(scale)) for ridge in RIDGES]
    best = min(by_hand, key=lambda errors: float(errors.mean()))
    torch.testing.assert_close(fit_ridge(states, targets).rows, best, rtol=1e-6, atol=1e-9)


def test_what_the_states_hold_is_read_and_what_they_do_not_hold_is_not() -> None:
    states, targets = drawn(200, 10, noise=0.0)
    known = fit_ridge(states, targets)
    spread = targets.var(0).mean()
    assert known.rows.mean() < 0.01 * spread
    torch.testing.assert_close(states @ known.weight + known.bias, targets, rtol=0, atol=0.2)
    unknown = fit_ridge(torch.randn(200, 10, generator=torch.Generator().manual_seed(5)), targets)
    assert unknown.rows.mean() > 0.95 * spread


def test_where_the_states_are_does_not_matter() -> None:
    states, targets = drawn(30, 6)
    moved = fit_ridge(states + 100.0, targets)
    torch.testing.assert_close(moved.rows, fit_ridge(states, targets).rows, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fit_ridge(states * 7.0, targets).rows, moved.rows)


def test_constant_states_predict_the_mean_of_the_others() -> None:
    _, targets = drawn(9, 3)
    rows = fit_ridge(torch.ones(9, 3), targets).rows
    others = (targets.sum(0) - targets) / 8
    torch.testing.assert_close(rows, (targets - others).square().mean(1))
    with pytest.raises(ValueError, match="three rows"):
        fit_ridge(torch.ones(2, 3), targets[:2])


# --------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("task", ["mnli", "stsb"])
def test_the_objective_is_the_mean_error_of_the_rows(task: str) -> None:
    known = get_task(task)
    states, targets = drawn(40, 5)
    labels = targets[:, 0] if task == "stsb" else (targets[:, 0] > 0).long()
    wanted = labels[:, None] if task == "stsb" else torch.eye(3, dtype=torch.float64)[labels]
    rows = objective_rows("probe", states.float(), labels, known, 1.0)
    torch.testing.assert_close(rows, fit_ridge(states.float(), wanted).rows)
    value = objective_value("probe", states.float(), labels, known, 1.0)
    assert value == pytest.approx(float(rows.mean()))
    broken = states.clone()
    broken[3] = np.nan
    assert np.isnan(objective_value("probe", broken, labels, known, 1.0))
    assert objective_rows("probe", broken, labels, known, 1.0).isnan().all()


def test_its_loss_pulls_states_to_where_the_probe_reads_the_label() -> None:
    task = get_task("rte")
    states, targets = drawn(40, 5)
    labels = (targets[:, 0] > targets[:, 0].median()).long()
    fit = fit_objective("probe", states, labels, task)
    assert isinstance(fit, Fit)
    assert fit.ridge is not None
    moving = states.float().requires_grad_()
    loss = objective_loss("probe", moving, labels, task, 1.0, fit)
    (slope,) = torch.autograd.grad(loss, moving)
    after = objective_loss("probe", moving.detach() - slope, labels, task, 1.0, fit)
    assert after < loss
    with pytest.raises(ValueError, match="fitted"):
        objective_loss("probe", moving, labels, task, 1.0, Fit())


def penalised(states: Tensor, targets: Tensor, penalty: float) -> float:
    """What a ridge regression with this penalty reaches on the rows that it is made of."""
    x, y = states - states.mean(0), targets - targets.mean(0)
    strength = penalty * x.square().sum()
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + strength * eye, x.T @ y)
    squared = (x @ weight - y).square().sum() + strength * weight.square().sum()
    return float(squared / y.numel())


@pytest.mark.parametrize("rows", [12, 40])
def test_its_derivative_is_that_of_a_regression_made_anew(rows: int) -> None:
    """Though the regression is held still; and stretching the states is worth nothing."""
    states, targets = drawn(rows, 20, noise=3.0)
    ridge = fit_ridge(states, targets)
    moving = states.clone().requires_grad_()
    loss = ridge_rows(moving, targets, ridge).mean()
    assert loss.item() == pytest.approx(penalised(states, targets, ridge.penalty), rel=1e-9)
    (slope,) = torch.autograd.grad(loss, moving)
    step = torch.randn(states.shape, generator=torch.Generator().manual_seed(7)).double()
    near = [penalised(states + sign * 1e-5 * step, targets, ridge.penalty) for sign in (1, -1)]
    assert (near[0] - near[1]) / 2e-5 == pytest.approx(float((slope * step).sum()), rel=1e-5)
    stretched = float((slope * (states - states.mean(0))).sum())
    assert stretched == pytest.approx(0.0, abs=1e-9 * float(slope.norm() * states.norm()))


def test_it_is_not_for_spans_and_says_where_it_was_given() -> None:
    assert [reads_states(name) for name in ("probe", "calibrated")] == [True, False]
    with pytest.raises(UsageError, match=r"--env\.objective probe: task squad"):
        check_objective("probe", get_task("squad"))
    with pytest.raises(UsageError, match=r"--race\.objective probe"):
        check_objective("probe", get_task("squad"), "--race.objective")


# --------------------------------------------------------------------------- in the environment


@pytest.fixture
def make(tiny_setup: Callable[..., Setup]) -> Make:
    def build(**changes: Any) -> DistillationEnv:
        usual = {"knowledge": {"pool": POOL}, "optim": {"max_updates": 8}}
        return DistillationEnv(setup=tiny_setup(**{**usual, **changes}))

    return build


def value_of(env: DistillationEnv) -> float:
    """The objective, from a plain forward pass with the states taken by hand."""
    split, model = env.setup.reward, env.distiller.student
    batch = split.batch(np.arange(len(split)))
    with torch.no_grad():
        states = model.base_model(**batch.model_inputs()).last_hidden_state[:, 0]
    assert split.labels is not None
    return objective_value("probe", states, split.labels, env.setup.task, 1.0)


def test_rewards_are_drops_of_it(make: Make) -> None:
    env = make(env={"objective": "probe", "reward_scale": "none"})
    _, info = env.reset(seed=1)
    before = value_of(env)
    assert info["objective"] == pytest.approx(before, rel=1e-4)
    _, reward, _, _, info = env.step([1, 1, 1])
    assert info["objective"] == pytest.approx(value_of(env), rel=1e-4)
    assert reward == pytest.approx(before - info["objective"], abs=1e-6)
    assert env.objective_rows("probe").mean() == pytest.approx(info["objective"])


def test_the_last_reward_may_hold_the_metric_all_the_same(make: Make) -> None:
    ends = []
    for weight in (0.0, 10.0):
        env = make(env={"objective": "probe", "final_metric": weight})
        env.reset(seed=1)
        for _ in range(8):
            _, reward, over, _, _ = env.step([1, 1, 1])
        assert over
        ends.append(reward)
    split = env.setup.reward
    logits = predict_logits(env.distiller.student, split, batch_size=16, device="cpu")
    assert split.labels is not None
    accuracy = float((logits.argmax(1) == split.labels).float().mean())
    assert ends[1] - ends[0] == pytest.approx(10 * accuracy, abs=1e-5)


def test_credit_is_taken_of_it_and_goes_on_from_a_snapshot(make: Make) -> None:
    env = make(agent="all_action", env={"objective": "probe", "reward": "amortized", "window": 2})
    env.reset(seed=1)
    assert env.distiller.credit is not None
    states = predict_states(env.distiller.student, env.setup.reward, batch_size=16, device="cpu")
    labels = env.setup.reward.labels
    assert labels is not None
    expected = fit_objective("probe", states, labels, env.setup.task)
    fit = env.distiller.credit.state.fit
    assert fit.ridge is not None
    assert expected.ridge is not None
    torch.testing.assert_close(fit.ridge.weight, expected.ridge.weight)
    env.step([1, 1, 1])
    state = env.get_snapshot()
    first = [env.step([1, 1, 0]) for _ in range(3)]
    env.set_snapshot(state)
    second = [env.step([1, 1, 0]) for _ in range(3)]
    infos = [[info for *_, info in steps] for steps in (first, second)]
    assert infos[0] == infos[1]
    assert all(np.isfinite(info["credit/hidden/skip"]) for info in infos[0])
    packed, tensors = pack(state, KNOWN)
    again = unpack(json.loads(json.dumps(packed)), tensors, KNOWN, torch.device("cpu"))
    env.set_snapshot(again)
    assert [env.step([1, 1, 0])[-1] for _ in range(3)] == infos[0]
    # the head has no part in what the states hold
    head = [p for n, p in env.distiller.student.named_parameters() if n.startswith("classifier")]
    before = env.objective_rows("probe")
    with torch.no_grad():
        for parameter in head:
            parameter.mul_(-3.0)
    assert env.objective_rows("probe").tolist() == before.tolist()


def test_credit_without_rewards_has_a_probe_too(make: Make) -> None:
    env = make(agent="all_action", env={"objective": "probe", "reward": "amortized"})
    env.reset(seed=1, options={"measure": False, "observe": True})
    assert env.distiller.credit is not None
    assert env.distiller.credit.state.fit.ridge is not None
    _, reward, _, _, info = env.step([1, 1, 1])
    assert reward == 0
    assert "objective" not in info
    assert np.isfinite(info["credit/label"])


def test_masks_can_race_by_it(make: Make) -> None:
    env = make(agent="race")
    env.reset(seed=1, options={"measure": False})
    heat = env.heat(np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]]), 3, -1e9, "probe")
    assert heat.chosen == 1 + int(np.argmin(heat.objectives[1:]))
    assert env.objective_rows("probe").mean() == pytest.approx(heat.objectives[heat.chosen])


def test_few_reward_rows_are_refused_before_any_work() -> None:
    values = {"env": {"objective": "probe"}, "rows": {"reward": 8}}
    with pytest.raises(UsageError, match=r"--rows\.reward 8: --env\.objective probe.*16 rows"):
        config_from_dict(values)
    config_from_dict({**values, "rows": {"reward": 16}})
