"""The shared optimiser: what is decayed, and how the learning rate goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ksel.optim import adamw, allocate_moments, linear_schedule, set_rate


def test_only_matrices_that_learn_are_decayed() -> None:
    layer, norm, frozen = nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2)
    frozen.requires_grad_(False)
    decayed, plain = adamw([layer, norm, frozen], 0.1, 0.5).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(layer.weight)]
    assert {id(p) for p in plain["params"]} == {id(layer.bias), id(norm.weight), id(norm.bias)}


def test_first_step_is_the_hand_worked_one() -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(2.0)
    optimizer = adamw([layer], 0.1, 0.5)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    # Adam's first step is lr in size; the weight also loses lr * decay of itself
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)
    assert layer.bias.item() == pytest.approx(2.0 - 0.1, abs=1e-6)


def test_a_state_made_beforehand_changes_no_step() -> None:
    ends = []
    for early in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = adamw([layer], 0.1, 0.01)
        moments = allocate_moments(optimizer) if early else []
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        ends.append(layer.weight.detach().clone())
    assert torch.equal(*ends)
    assert len(moments) == 6
    assert moments[0].item() == 3  # the optimiser goes on in the very tensors


def test_learning_rate_rises_and_falls_linearly_and_never_to_zero() -> None:
    factors = [linear_schedule(update, 10, 0.3) for update in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert linear_schedule(0, 4, 0.0) == 1.0
    assert [linear_schedule(u, 2, 1.0) for u in range(2)] == pytest.approx([1 / 3, 2 / 3])


def test_a_head_has_its_own_multiple_of_the_rate() -> None:
    body, head = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for parameter in (*body.parameters(), *head.parameters()):
            parameter.fill_(2.0)
    optimizer = adamw([body, head], 1.0, 0.5, list(head.parameters()), 3.0)
    assert optimizer.param_groups[0]["params"] == [body.weight]
    set_rate(optimizer, 0.1)
    (body(torch.ones(1, 1)) + head(torch.ones(1, 1))).sum().backward()
    optimizer.step()
    for layer, rate in ((body, 0.1), (head, 0.3)):
        assert layer.weight.item() == pytest.approx(2.0 * (1 - rate * 0.5) - rate, abs=1e-6)
        assert layer.bias.item() == pytest.approx(2.0 - rate, abs=1e-6)


def test_a_multiple_of_one_changes_nothing() -> None:
    body, head = nn.Linear(1, 1), nn.Linear(1, 1)
    groups = adamw([body, head], 0.1, 0.5, list(head.parameters())).param_groups
    assert [len(group["params"]) for group in groups] == [2, 2]
