"""Rules that every kind of knowledge keeps."""

from dataclasses import replace

import pytest
import torch
from knowledge_cases import (
    CASES,
    NO_ZERO,
    crop,
    crop_batch,
    each_tensor,
    gradients,
    make_batch,
    make_signals,
    only,
    setting_of,
    tensors,
)
from torch.func import jvp, vmap

from ksel.knowledge import KINDS, mean_loss, units
from ksel.knowledge.attention import row_divergence, row_mse
from ksel.tasks import get_task
from ksel.types import LAYERED

every_case = pytest.mark.parametrize("case", CASES, ids=str)
differentiable = pytest.mark.parametrize(
    "case", [case for case in CASES if not case.own_temperatures], ids=str
)


def test_the_cases_cover_every_kind():
    assert {case.kind for case in CASES} == set(KINDS)


@every_case
def test_padding_does_not_change_the_loss(case):
    lengths = (5, 3, 1)
    type, batch, student, teacher = setting_of(case, lengths, padding=4)
    padded = type.loss(student, teacher, batch)
    pieces = [(slice(row, row + 1), length) for row, length in enumerate(lengths)]
    for rows, length in [(slice(None), 5)] if type.couples else pieces:
        x, y = crop(student, rows, length), crop(teacher, rows, length)
        alone = type.loss(x, y, crop_batch(batch, rows, length))
        torch.testing.assert_close(padded[rows], alone)


@every_case
def test_the_order_of_the_examples_does_not_matter(case):
    type, batch, student, teacher = setting_of(case, (5, 1, 3, 2))
    order = torch.tensor([2, 0, 3, 1])
    x, y = (each_tensor(signals, lambda x: x[order]) for signals in (student, teacher))
    shuffled = replace(
        batch, labels=batch.labels[order], attention_mask=batch.attention_mask[order]
    )
    expected = type.loss(student, teacher, batch)[order]
    torch.testing.assert_close(type.loss(x, y, shuffled), expected)


@every_case
@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("-inf")])
def test_what_stands_in_padded_positions_reaches_neither_loss_nor_gradient(case, garbage):
    type, batch, student, teacher = setting_of(case)
    padded = ~batch.attention_mask.bool()[..., None]

    def spoil(x):
        return x.masked_fill(padded, garbage) if x.dim() == 3 else x

    clean_loss, clean = gradients(type, batch, student, teacher)
    loss, spoilt = gradients(type, batch, each_tensor(student, spoil), each_tensor(teacher, spoil))
    assert loss.item() == clean_loss.item()
    for expected, gradient in zip(clean, spoilt, strict=True):
        assert torch.equal(expected, gradient)
        if gradient.dim() == 3:
            assert not gradient.masked_select(padded).any()


@every_case
def test_an_example_without_real_tokens_adds_nothing_to_token_losses(case):
    if case.task == "squad" and (case.kind == "label" or "confidence" in case.settings):
        pytest.skip("an answer has to be in its window; see test_knowledge_outputs.py")
    type, batch, student, teacher = setting_of(case, lengths=(4, 0))
    loss, gradient = gradients(type, batch, student, teacher)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradient)
    if type.unit == "token":
        assert type.loss(student, teacher, batch)[1] == 0


@pytest.mark.parametrize("case", [case for case in CASES if case.kind not in NO_ZERO], ids=str)
def test_a_perfect_match_gives_zero_and_no_gradient(case):
    task = get_task(case.task)
    # The same model on both sides: matched layers are then the same layers. At the end of a stage
    # the logits have their full size.
    same = replace(case, teacher=case.student, spec=case.kind, progress=0.99)
    type, batch, student, _ = setting_of(same, lengths=(5, 3, 1))
    loss, gradient = gradients(type, batch, student, student)
    assert abs(loss.item()) < 1e-6
    assert all(g.abs().max() < 1e-6 for g in gradient)
    other = only(make_signals(batch, case.student, task, 99), type.teacher)
    assert gradients(type, batch, student, other)[0] > 1e-3


@every_case
def test_every_kind_moves_all_that_it_asks_of_the_student(case):
    type, batch, student, teacher = setting_of(case)
    _, gradient = gradients(type, batch, student, teacher)
    assert gradient
    assert all(g.abs().max() > 1e-6 for g in gradient)


@every_case
def test_losses_are_not_negative_and_one_per_example(case):
    type, batch, student, teacher = setting_of(case)
    loss = type.loss(student, teacher, batch)
    assert loss.shape == (len(batch),)
    assert (loss >= 0).all()
    total = loss.sum() / units(type.unit, batch)
    assert mean_loss(type, student, teacher, batch).item() == total.item()


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_computed_in_float32(case, dtype, autocast):
    type, batch, student, teacher = setting_of(case)
    student, teacher = (each_tensor(x, lambda x: x.to(dtype)) for x in (student, teacher))
    exact = type.loss(
        each_tensor(student, torch.Tensor.float), each_tensor(teacher, torch.Tensor.float), batch
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = type.loss(student, teacher, batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


@every_case
def test_a_stored_half_precision_teacher_meets_a_float32_student(case):
    type, batch, student, teacher = setting_of(case)
    half = each_tensor(teacher, torch.Tensor.half)
    loss = type.loss(student, half, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, type.loss(student, teacher, batch), rtol=2e-2, atol=2e-3)


@differentiable
def test_the_gradient_is_the_derivative(case):
    type, batch, student, teacher = setting_of(case, (3, 2), torch.float64)
    leaves = [x.requires_grad_() for x in tensors(student)]

    def loss(*values):
        values = iter(values)
        return type.loss(each_tensor(student, lambda _: next(values)), teacher, batch)

    assert loss(*leaves).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)


@every_case
def test_a_type_says_whether_it_compares_the_examples_of_a_batch(case):
    type, batch, student, teacher = setting_of(case, (5, 1, 3, 2))
    half = slice(0, 2)
    alone = type.loss(crop(student, half, 5), crop(teacher, half, 5), crop_batch(batch, half, 5))
    together = type.loss(student, teacher, batch)[half]
    assert type.couples == ((alone - together).abs().max().item() > 1e-4)


@pytest.mark.parametrize("case", [c for c in CASES if not setting_of(c).type.couples], ids=str)
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_micro_batches_add_up_to_the_loss_of_the_batch(case, parts):
    type, batch, student, teacher = setting_of(case, (5, 1, 3, 2, 5))
    whole = mean_loss(type, student, teacher, batch)
    total = torch.zeros(())
    for part in batch.split(parts):
        rows = part.ids
        x, y = (each_tensor(s, lambda x, rows=rows: x[rows]) for s in (student, teacher))
        total = total + type.loss(x, y, part).sum() / units(type.unit, batch)
    torch.testing.assert_close(total, whole)


@every_case
def test_what_a_kind_asks_for_is_what_it_reads(case):
    type, batch, student, teacher = setting_of(case)
    type.loss(student, teacher, batch)
    for side, signals in (("student", student), ("teacher", teacher)):
        for name in LAYERED:
            for layer in getattr(signals, name):
                kept = {i: x for i, x in getattr(signals, name).items() if i != layer}
                less = {
                    "student": student,
                    "teacher": teacher,
                    side: replace(signals, **{name: kept}),
                }
                with pytest.raises(KeyError):
                    type.loss(**less, batch=batch)
    assert type.student
    assert bool(type.teacher) == (case.spec != "label")


@differentiable
def test_the_vector_of_losses_has_a_forward_mode_derivative(case):
    type, batch, student, teacher = setting_of(case, dtype=torch.float64)
    names = [str(i) for i, _ in enumerate(tensors(student))]
    point = dict(zip(names, tensors(student), strict=True))
    generator = torch.Generator().manual_seed(5)
    direction = {
        name: torch.randn(x.shape, generator=generator, dtype=x.dtype) for name, x in point.items()
    }

    def loss(values):
        queue = iter(values.values())
        return mean_loss(type, each_tensor(student, lambda _: next(queue)), teacher, batch)

    value, slope = jvp(loss, (point,), (direction,))
    step = 1e-6
    ahead, behind = (
        loss({name: x + sign * step * direction[name] for name, x in point.items()})
        for sign in (1, -1)
    )
    assert value.item() == pytest.approx(mean_loss(type, student, teacher, batch).item())
    assert slope.item() == pytest.approx((ahead - behind).item() / (2 * step), rel=1e-4, abs=1e-7)


@every_case
def test_students_can_be_mapped_over(case):
    type, batch, student, teacher = setting_of(case)
    task = get_task(case.task)
    students = [student, only(make_signals(batch, case.student, task, 77), type.student)]
    stacked = [torch.stack(xs) for xs in zip(*map(tensors, students), strict=True)]

    def loss(*values):
        queue = iter(values)
        return type.loss(each_tensor(student, lambda _: next(queue)), teacher, batch)

    expected = torch.stack([type.loss(s, teacher, batch) for s in students])
    torch.testing.assert_close(vmap(loss)(*stacked), expected)


@pytest.mark.parametrize("compare", [row_divergence, row_mse])
def test_rows_of_padded_queries_do_not_count(compare):
    batch = make_batch((4, 2), get_task("rte"))
    generator = torch.Generator().manual_seed(0)
    keys = ~batch.attention_mask.bool()[:, None, None, :]
    x, y = torch.randn(2, 2, 3, 4, 4, generator=generator).masked_fill(keys, float("-inf"))
    queries = ~batch.attention_mask.bool()[:, None, :, None]
    other = torch.randn(2, 3, 4, 4, generator=generator).masked_fill(keys, float("-inf"))
    expected = compare(x, y, batch)
    assert (expected > 0).all()
    assert torch.equal(compare(torch.where(queries, other, x), y, batch), expected)
