"""Kinds that compare outputs, against values worked out by hand: spans, temperatures, logits."""

from dataclasses import replace
from math import inf, log, sqrt

import pytest
import torch
from knowledge_cases import KL_3_1, batch_of, near, type_of

from ksel.knowledge import mean_loss
from ksel.types import Signals

NOTHING = Signals()


def spans(*examples):
    """Logits [b, n, 2] from (start scores, end scores) of each example."""
    return Signals(torch.stack([torch.tensor(list(zip(*ends, strict=True))) for ends in examples]))


# Spans.


def test_label_of_a_span_is_the_average_cross_entropy_of_start_and_end():
    # First: start (1/2, 1/4, 1/4) at 0: ln 2, end uniform over three: ln 3. Second, two real tokens:
    # start uniform: ln 2, end (1/4, 3/4) at 1: ln 4/3. What stands in the padding plays no part.
    student = spans(((log(2), 0.0, 0.0), (0.0, 0.0, 0.0)), ((0.0, 0.0, 50.0), (0.0, log(3), 50.0)))
    batch = batch_of([3, 2], torch.tensor([[0, 2], [0, 1]]))
    loss = type_of("label", task="squad").loss(student, NOTHING, batch)
    assert loss.tolist() == near([(log(2) + log(3)) / 2, (log(2) + log(4 / 3)) / 2])


def test_a_window_without_the_answer_points_at_cls():
    student = spans(((log(3), 0.0), (0.0, 0.0)))
    batch = batch_of([2], torch.tensor([[0, 0]]))
    loss = type_of("label", task="squad_v2").loss(student, NOTHING, batch)
    assert loss.tolist() == near([(log(4 / 3) + log(2)) / 2])


def test_an_answer_in_the_padding_is_not_passed_over_in_silence():
    batch = batch_of([3, 2], torch.tensor([[0, 1], [0, 2]]))
    loss = type_of("label", task="squad").loss(Signals(torch.zeros(2, 3, 2)), NOTHING, batch)
    assert loss[0].isfinite()
    assert loss[1] == inf


def test_response_of_a_span_averages_start_and_end():
    # start, T = 2: teacher (3/4, 1/4), student (1/2, 1/2); end: both agree. 4 (KL + 0) / 2
    student = spans(((0.0, 0.0, 9.0), (1.0, 2.0, -9.0)))
    teacher = spans(((2 * log(3), 0.0, -9.0), (1.0, 2.0, 9.0)))
    batch = batch_of([2, 3]).split(2)[0]
    loss = type_of("response", task="squad", temperature=2.0).loss(student, teacher, batch)
    assert loss.tolist() == near([2 * KL_3_1])


def test_logits_of_a_span_average_over_real_tokens_start_and_end():
    # differences: start 1, 2 (and padding), end 0, 3 (and padding): (1 + 4 + 0 + 9) / 4
    student, teacher = (
        spans(((2.0, 2.0, 9.0), (1.0, 3.0, 9.0))),
        spans(((1.0, 0.0, 0.0), (1.0, 0.0, 0.0))),
    )
    batch = batch_of([2, 3]).split(2)[0]
    loss = type_of("logits", task="squad").loss(student, teacher, batch)
    assert loss.tolist() == near([3.5])


# Confidence.


def test_confidence_weighs_each_example_by_how_right_the_teacher_is():
    # teacher (3/4, 1/4). Class 0: 1 / (1 + ln 4/3); class 1: 1 / (1 + ln 4)
    batch = batch_of([1, 1], torch.tensor([0, 1]))
    student, teacher = Signals(torch.zeros(2, 2)), Signals(torch.tensor([[log(3), 0.0]] * 2))
    response = type_of("response", temperature=1.0, confidence=True)
    expected = [KL_3_1 / (1 + log(4 / 3)), KL_3_1 / (1 + log(4))]
    assert response.loss(student, teacher, batch).tolist() == near(expected)
    assert not response.couples


def test_confidence_is_that_of_the_unsoftened_teacher():
    batch, student = batch_of([1]), Signals(torch.zeros(1, 2))
    teacher = Signals(torch.tensor([[log(3), 0.0]]))
    plain = type_of("response", temperature=5.0).loss(student, teacher, batch)
    weighed = type_of("response", temperature=5.0, confidence=True).loss(student, teacher, batch)
    torch.testing.assert_close(weighed, plain / (1 + log(4 / 3)))


def test_confidence_of_a_span_is_that_of_start_and_end_together():
    # start KL as above, end agrees; the teacher's cross-entropy: (ln 4/3 + ln 2) / 2
    student, teacher = Signals(torch.zeros(1, 2, 2)), spans(((log(3), 0.0), (0.0, 0.0)))
    batch = batch_of([2], torch.tensor([[0, 1]]))
    response = type_of("response", task="squad", temperature=1.0, confidence=True)
    expected = KL_3_1 / 2 / (1 + (log(4 / 3) + log(2)) / 2)
    assert response.loss(student, teacher, batch).tolist() == near([expected])


# Temperatures.


def response_at(temperature, student, teacher, batch, task="qnli"):
    return type_of("response", task=task, temperature=temperature).loss(student, teacher, batch)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 4.0), (0.25, 3.5), (0.75, 2.5)])
def test_a_linear_temperature_moves_with_the_progress(progress, expected):
    batch = batch_of([1], progress=progress)
    student, teacher = Signals(torch.tensor([[0.0, 0.0]])), Signals(torch.tensor([[3.0, 0.0]]))
    linear = type_of(
        "response", temperature=4.0, temperature_schedule="linear", temperature_end=2.0
    )
    loss = linear.loss(student, teacher, batch)
    torch.testing.assert_close(loss, response_at(expected, student, teacher, batch))
    assert not linear.couples


def flsw_signals():
    # cosines 1/2 and 1
    return (
        Signals(torch.tensor([[1.0, 0.0], [2.0, 0.0]])),
        Signals(torch.tensor([[0.5, sqrt(0.75)], [1.0, 0.0]])),
        batch_of([1, 1]),
    )


@pytest.mark.parametrize(("power", "moved"), [(1.0, 0.25), (2.0, 0.125), (0.5, sqrt(0.5) / 2)])
def test_flsw_lowers_the_temperature_where_the_student_is_off(power, moved):
    # w = (1/2)^power and 0, mean half of it: T - range mean, T + range mean
    student, teacher, batch = flsw_signals()
    options = {"temperature_range": 2.0, "temperature_power": power}
    flsw = type_of("response", temperature=4.0, temperature_schedule="flsw", **options)
    loss = flsw.loss(student, teacher, batch)
    for row, temperature in enumerate((4 - 2 * moved, 4 + 2 * moved)):
        expected = response_at(temperature, student, teacher, batch)[row]
        assert loss[row].item() == near(expected.item())
    assert flsw.couples


def cwsm_signals():
    # the student's largest shares 3/4 and 1/2: w = 4/3 and 2, mean 5/3
    return (
        Signals(torch.tensor([[log(3), 0.0], [0.0, 0.0]])),
        Signals(torch.tensor([[0.0, 2.0], [1.0, 0.0]])),
        batch_of([1, 1]),
    )


def test_cwsm_lowers_the_temperature_where_the_student_is_unsure():
    # T = 4 + 3 (5/3 - w) = 5, 3
    student, teacher, batch = cwsm_signals()
    cwsm = type_of("response", temperature=4.0, temperature_schedule="cwsm", temperature_range=3.0)
    loss = cwsm.loss(student, teacher, batch)
    assert loss[0].item() == near(response_at(5.0, student, teacher, batch)[0].item())
    assert loss[1].item() == near(response_at(3.0, student, teacher, batch)[1].item())
    assert cwsm.couples


def test_start_and_end_have_temperatures_of_their_own():
    # cwsm, two windows of two real tokens; only the starts differ: as above. Ends: all w = 2, T = 4
    student = spans(((log(3), 0.0, 9.0), (0.0, 0.0, 9.0)), ((0.0, 0.0, 9.0), (0.0, 0.0, 9.0)))
    teacher = spans(((0.0, 2.0, 0.0), (1.0, 0.0, 0.0)), ((1.0, 0.0, 0.0), (2.0, 0.0, 0.0)))
    batch = replace(batch_of([2, 2, 3]), ids=torch.arange(2))
    batch.attention_mask = batch.attention_mask[:2]
    cwsm = type_of(
        "response",
        task="squad",
        temperature=4.0,
        temperature_schedule="cwsm",
        temperature_range=3.0,
    )
    loss = cwsm.loss(student, teacher, batch)
    pair = batch_of([1, 1])
    for row, temperature in enumerate((5.0, 3.0)):
        parts = [
            response_at(
                t, Signals(student.logits[:, :2, end]), Signals(teacher.logits[:, :2, end]), pair
            )[row]
            for end, t in enumerate((temperature, 4.0))
        ]
        assert loss[row].item() == near(sum(parts).item() / 2)


@pytest.mark.parametrize(("temperature", "lowest"), [(4.0, 1.0), (0.5, 0.5)])
def test_no_temperature_falls_below_that_of_the_answers_as_they_are(temperature, lowest):
    # w = 1/2 and 0 at range 100: T - 25 would be far below 0
    student, teacher, batch = flsw_signals()
    flsw = type_of(
        "response",
        temperature=temperature,
        temperature_schedule="flsw",
        temperature_range=100.0,
    )
    loss = flsw.loss(student, teacher, batch)
    expected = response_at(lowest, student, teacher, batch)[0]
    assert loss[0].item() == near(expected.item())


@pytest.mark.parametrize(
    ("schedule", "signals", "spread", "temperatures"),
    [("flsw", flsw_signals(), 2.0, (3.5, 4.5)), ("cwsm", cwsm_signals(), 3.0, (5.0, 3.0))],
)
def test_the_temperatures_get_no_gradient(schedule, signals, spread, temperatures):
    student, teacher, batch = signals
    options = {"temperature_schedule": schedule, "temperature_range": spread}
    response = type_of("response", temperature=4.0, **options)

    def gradient(loss_of):
        logits = student.logits.clone().requires_grad_()
        loss_of(Signals(logits)).sum().backward()
        return logits.grad

    got = gradient(lambda x: response.loss(x, teacher, batch))
    for row, temperature in enumerate(temperatures):
        fixed = gradient(lambda x, t=temperature: response_at(t, x, teacher, batch))
        torch.testing.assert_close(got[row], fixed[row])


def test_a_student_that_is_exactly_right_does_not_break_the_cosine():
    logits = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    same = Signals(logits.clone().requires_grad_())
    flsw = type_of("response", task="mnli", temperature_schedule="flsw", temperature_power=0.5)
    loss = mean_loss(flsw, same, Signals(logits), batch_of([1] * 64))
    loss.backward()
    assert loss.item() == near(0.0)
    assert same.logits.grad.isfinite().all()


# Logits.


def test_logits_are_compared_by_their_mean_square():
    # (1 - 3)^2 / 2 classes; regression (1 - 4)^2
    student, teacher = Signals(torch.tensor([[1.0, 2.0]])), Signals(torch.tensor([[3.0, 2.0]]))
    assert type_of("logits").loss(student, teacher, batch_of([1])).tolist() == near([2.0])
    student, teacher = Signals(torch.tensor([[1.0]])), Signals(torch.tensor([[4.0]]))
    loss = type_of("logits", task="stsb").loss(student, teacher, batch_of([1]))
    assert loss.tolist() == near([9.0])


@pytest.mark.parametrize(
    ("steps", "progress", "share"),
    [
        (4, 0.0, 0.25),
        (4, 0.2, 0.25),
        (4, 0.25, 0.5),
        (4, 0.6, 0.75),
        (4, 0.99, 1.0),
        (1, 0.0, 1.0),
        (0, 0.0, 1.0),
        (0, 0.9, 1.0),
    ],
)
def test_the_teachers_logits_grow_in_steps(steps, progress, share):
    # student (1, 0), teacher (4, 0): (1 - 4 share)^2 / 2
    student, teacher = Signals(torch.tensor([[1.0, 0.0]])), Signals(torch.tensor([[4.0, 0.0]]))
    loss = type_of("logits", logit_annealing=steps).loss(
        student, teacher, batch_of([1], progress=progress)
    )
    assert loss.item() == near((1 - 4 * share) ** 2 / 2)
