"""Word embeddings that are trained in all rows, only in those of the batch, or never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ksel.distiller import Distiller
from ksel.embeddings import LazyRows, word_embeddings
from ksel.optim import adamw

Make = Callable[..., Distiller]
ALL = np.ones(5)
MODES = ("train", "lazy", "frozen")


@pytest.fixture
def make(tiny_setup: Callable[..., object]) -> Make:
    def build(embeddings: str, **optim: object) -> Distiller:
        settings = {"embeddings": embeddings, "max_updates": 6, "learning_rate": 1e-3, **optim}
        return tiny_setup(optim=settings).distiller

    return build


def words(distiller: Distiller) -> torch.Tensor:
    return word_embeddings(distiller.student).weight.detach().clone()


def test_rows_seen_at_every_step_move_as_with_full_adamw() -> None:
    tokens = torch.tensor([[5, 3, 3], [7, 5, 0]])
    ends = []
    for lazy in (False, True):
        torch.manual_seed(0)
        embedding, head = nn.Embedding(12, 4, padding_idx=0), nn.Linear(4, 1)
        embedding.weight.requires_grad_(not lazy)
        optimizer = adamw([embedding, head], 0.1, 0.0)
        rows = LazyRows(embedding, optimizer.param_groups[0])
        for rate in (0.1, 0.05, 0.02, 0.2):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            if lazy:
                with rows.of(tokens):
                    head(embedding(tokens)).square().sum().backward()
                rows.step()
            else:
                head(embedding(tokens)).square().sum().backward()
            optimizer.step()
        ends.append(embedding.weight.detach())
    assert (ends[1][[3, 5, 7]] - ends[0][[3, 5, 7]]).abs().max() < 1e-6
    assert torch.equal(ends[1][0], ends[0][0])  # padding has no gradient in either
    torch.manual_seed(0)
    assert (ends[1][5] - nn.Embedding(12, 4, padding_idx=0).weight[5]).abs().min() > 0.05


def test_a_row_rests_while_its_token_is_in_no_batch() -> None:
    embedding = nn.Embedding(6, 3)
    embedding.weight.requires_grad_(False)
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.5}
    rows = LazyRows(embedding, group)

    def step(*tokens: int) -> None:
        with rows.of(torch.tensor([tokens])):
            embedding(torch.tensor([tokens])).square().sum().backward()
        rows.step()

    step(1, 2)
    before, (_, first, second) = embedding.weight.clone(), (m.clone() for m in rows.moments)
    step(2, 4)
    changed = [i for i in range(6) if not torch.equal(embedding.weight[i], before[i])]
    assert changed == [2, 4]
    assert torch.equal(rows.moments[1][1], first[1])  # neither moments nor decay go on
    assert torch.equal(rows.moments[2][1], second[1])
    assert rows.moments[0].item() == 2


def test_decay_takes_its_share_of_the_rows_of_the_batch() -> None:
    moved = []
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        embedding = nn.Embedding(4, 3)
        embedding.weight.requires_grad_(False)
        start = embedding.weight.clone()
        group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": decay}
        rows = LazyRows(embedding, group)
        with rows.of(torch.tensor([[1]])):
            embedding(torch.tensor([[1]])).sum().backward()
        rows.step()
        moved.append(embedding.weight[1].clone())
    assert moved[0] - moved[1] == pytest.approx(0.1 * 0.5 * start[1].numpy(), abs=1e-6)


def test_the_gradient_of_the_rows_counts_in_clipping_as_that_of_the_whole_does(make: Make) -> None:
    full, lazy, frozen = (make(mode).update(ALL) for mode in MODES)
    assert lazy.clip_norm == pytest.approx(full.clip_norm, rel=1e-5)
    assert frozen.clip_norm < 0.999 * full.clip_norm
    for name in ("loss", "grad_norm"):
        assert getattr(lazy, name) == pytest.approx(getattr(full, name), rel=1e-5)


def test_only_tokens_of_the_batch_move_in_a_student(make: Make) -> None:
    distiller = make("lazy", weight_decay=0.3)
    before = words(distiller)
    batch = distiller.next_batch()
    distiller.update(ALL)
    seen = torch.zeros(len(before), dtype=torch.bool)
    seen[batch.input_ids.unique()] = True
    moved = (words(distiller) != before).any(1)
    assert torch.equal(moved, seen)
    assert not seen.all()


def test_the_first_update_is_that_of_full_training_on_rows_of_the_batch(make: Make) -> None:
    full, lazy = make("train", weight_decay=0.0), make("lazy", weight_decay=0.0)
    for distiller in (full, lazy):
        distiller.update(ALL)
    pairs = zip(full.student.parameters(), lazy.student.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_micro_batches_make_the_same_rows(make: Make) -> None:
    whole, parts = make("lazy"), make("lazy", accumulate=2)
    for distiller in (whole, parts):
        distiller.update(ALL)
    assert torch.allclose(words(whole), words(parts), atol=1e-6)


def test_frozen_embeddings_stay_and_the_rest_learns(make: Make) -> None:
    distiller = make("frozen", weight_decay=0.3)
    before, head = words(distiller), distiller.student.classifier.weight.detach().clone()
    for _ in range(3):
        distiller.update(ALL)
    assert torch.equal(words(distiller), before)
    assert not torch.equal(distiller.student.classifier.weight, head)


@pytest.mark.parametrize("mode", MODES)
def test_snapshot_and_reset_repeat_to_the_bit(make: Make, mode: str) -> None:
    distiller = make(mode)

    def play(count: int) -> list[torch.Tensor]:
        for _ in range(count):
            distiller.update(ALL)
        return [t.detach().clone() for t in distiller.tensors]

    first = play(2)
    state = distiller.snapshot()
    second = play(2)
    distiller.restore(state)
    assert all(map(torch.equal, play(2), second))
    distiller.restore(distiller.snapshot(into=state))
    distiller.reset(0, 6)
    assert all(map(torch.equal, play(2), first))


def test_a_student_that_was_frozen_can_be_trained_in_full_again(make: Make) -> None:
    parts = make("frozen").parts
    again = Distiller(replace(parts, optim=replace(parts.optim, embeddings="train")))
    before = words(again)
    again.update(ALL)
    assert (words(again) != before).any()


def test_nothing_stays_on_the_model(make: Make) -> None:
    distiller = make("lazy")
    distiller.update(ALL)
    module = word_embeddings(distiller.student)
    assert not module._forward_hooks
    ids = distiller.next_batch().input_ids
    assert torch.equal(module(ids), module.weight[ids])
