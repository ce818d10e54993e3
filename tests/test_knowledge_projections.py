"""Learned projections from the student's width to the teacher's."""

from dataclasses import replace

import pytest
import torch
from knowledge_cases import (
    LARGE,
    SMALL,
    WIDE,
    Case,
    each_tensor,
    gradients,
    orthogonal,
    setting_of,
)
from torch.func import functional_call

from ksel.config import KnowledgeConfig
from ksel.knowledge import build_pool, mean_loss, projection_key
from ksel.tasks import get_task
from ksel.types import TeacherView

PROJECTING = ("cls_hidden", "hidden", "embedding", "cosine", "fsp")
ALWAYS = {"projection": "always"}


def pool_of(specs, teachers=(WIDE,), seed=1, **settings):
    return build_pool(
        KnowledgeConfig(pool=list(specs), **settings),
        task=get_task("rte"),
        student=SMALL,
        teachers=[TeacherView(shape) for shape in teachers],
        seed=seed,
    )


@pytest.mark.parametrize("kind", [*PROJECTING, "sample_contrastive"])
def test_projections_are_trained_too(kind):
    case = Case(kind, teacher=WIDE)
    pool = case.pool()
    type, batch, student, teacher = setting_of(case, pool=pool)
    mean_loss(type, student, teacher, batch).backward()
    parameters = list(pool.projections.parameters())
    assert len(parameters) == len(type.pairs)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)


@pytest.mark.parametrize("kind", [*PROJECTING, "sample_contrastive"])
def test_equal_widths_need_no_projection(kind):
    assert not pool_of([kind], [LARGE]).projections


@pytest.mark.parametrize("kind", PROJECTING)
def test_a_projection_of_equal_width_starts_at_the_identity(kind):
    type, batch, student, teacher = setting_of(Case(kind))
    always = Case(kind, settings=ALWAYS)
    pool = always.pool()
    assert len(list(pool.projections.parameters())) == len(type.pairs)
    for weight in pool.projections.parameters():
        assert torch.equal(weight, torch.eye(8))
    projecting = setting_of(always, pool=pool).type
    expected = type.loss(student, teacher, batch)
    torch.testing.assert_close(projecting.loss(student, teacher, batch), expected)


@pytest.mark.parametrize("kind", PROJECTING)
def test_a_projection_undoes_a_change_of_basis(kind):
    case = Case(kind, settings=ALWAYS)
    pool = case.pool()
    plain, batch, student, teacher = setting_of(Case(kind))
    turn = orthogonal(8, 1).float()
    with torch.no_grad():
        for weight in pool.projections.parameters():
            weight.copy_(turn)
    turned = each_tensor(student, lambda x: x @ turn)
    expected = plain.loss(student, teacher, batch)
    torch.testing.assert_close(pool.types[0].loss(turned, teacher, batch), expected)


def test_cls_states_are_projected_before_they_are_brought_to_unit_length():
    case = Case("cls_hidden", settings=ALWAYS)
    pool = case.pool()
    type, batch, student, teacher = setting_of(case, pool=pool)
    expected = type.loss(student, teacher, batch)
    with torch.no_grad():
        for weight in pool.projections.parameters():
            weight.mul_(9)
    torch.testing.assert_close(type.loss(student, teacher, batch), expected)


def test_the_contrastive_loss_projects_only_where_it_must():
    pool = pool_of(["sample_contrastive", "hidden"], [LARGE], **ALWAYS)
    assert list(pool.projections) == ["hidden_skip"]
    assert list(pool_of(["sample_contrastive"]).projections["sample_contrastive"]) == ["2_4"]


def test_each_teacher_has_projections_of_its_own():
    specs = ["hidden/last", "hidden/last@2", "hidden/last_2", "embedding@2"]
    pool = pool_of(specs, [LARGE, WIDE], projection="always")
    keys = ["hidden_last", "hidden_last_at_2", "hidden_last_2", "embedding_at_2"]
    assert list(pool.projections) == keys == [projection_key(spec) for spec in specs]
    sizes = {key: {tuple(w.shape) for w in pool.projections[key].parameters()} for key in keys}
    assert sizes == {
        "hidden_last": {(8, 8)},
        "hidden_last_at_2": {(12, 8)},
        "hidden_last_2": {(8, 8)},
        "embedding_at_2": {(12, 8)},
    }


def test_two_teachers_of_one_shape_start_with_different_projections():
    pool = pool_of(["hidden/1-1", "hidden/1-1@2"], [WIDE, WIDE])
    first, second = pool.projections.parameters()
    assert not torch.equal(first, second)


def test_projections_depend_on_the_seed_alone():
    case = Case("hidden/skip", teacher=WIDE)

    def weights(seed, state):
        torch.manual_seed(state)
        return list(case.pool(seed=seed).projections.state_dict().values())

    first, again, other = weights(3, 0), weights(3, 1), weights(4, 0)
    assert [w.shape for w in first] == [(12, 8), (12, 8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(*first)


def test_projections_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Case("hidden/skip", teacher=WIDE).pool()
    assert torch.equal(torch.get_rng_state(), before)


def test_projections_do_not_depend_on_the_rest_of_the_pool_nor_on_other_teachers():
    def weight(specs, teachers=(WIDE,)):
        return pool_of(specs, teachers).projections["hidden_last"]["2_4"].weight

    alone = weight(["hidden/last"])
    assert torch.equal(alone, weight(["hidden/skip", "label", "hidden/last"]))
    assert torch.equal(alone, weight(["hidden/last@2", "hidden/last@1"], (WIDE, LARGE)))


def test_projections_keep_the_size_of_the_states():
    wide, wider = replace(SMALL, width=256), replace(LARGE, width=384)
    (layer, _) = Case("hidden/skip").pool(wide, wider).projections["hidden_skip"].values()
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert layer(x).std().item() == pytest.approx(1, abs=0.05)
    assert layer.bias is None


def test_projections_can_be_replaced_by_a_functional_call():
    layer = Case("hidden/1-1", teacher=WIDE).pool().projections["hidden_1_1"]["1_1"]
    zero = {"weight": torch.zeros(12, 8)}
    assert not functional_call(layer, zero, torch.ones(1, 8)).any()


def test_half_precision_states_are_projected_in_float32():
    type, batch, student, teacher = setting_of(Case("fsp", teacher=WIDE))
    half = [each_tensor(signals, torch.Tensor.bfloat16) for signals in (student, teacher)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = gradients(type, batch, *half)
    assert loss.dtype == torch.float32
    assert all(g.dtype == torch.bfloat16 and g.abs().max() > 0 for g in gradient)
