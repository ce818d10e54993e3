"""Losses against values worked out by hand."""

from math import log, sqrt

import pytest
import torch
import torch.nn.functional as F
from knowledge_cases import KL_3_1, batch_of, near, pool_of, type_of

from ksel.knowledge import mean_loss, projection_key, units
from ksel.types import Shape, Signals


def test_units_are_examples_or_real_tokens():
    batch = batch_of([3, 1])
    assert units("example", batch).item() == 2
    assert units("token", batch).item() == 4


def test_label_is_cross_entropy():
    # softmax(0, 0) = (1/2, 1/2): -ln(1/2) = ln 2; softmax(0, ln 3) = (1/4, 3/4): ln 4 for class 0
    batch = batch_of([1, 1], torch.tensor([1, 0]))
    student = Signals(torch.tensor([[0.0, 0.0], [0.0, log(3)]]))
    label = type_of("label")
    assert label.loss(student, Signals(), batch).tolist() == near([log(2), log(4)])
    assert mean_loss(label, student, Signals(), batch).item() == near(1.5 * log(2))


def test_label_of_a_regression_is_the_squared_error():
    # (2.5 - 1)^2 = 2.25; (0 - 2)^2 = 4
    batch = batch_of([1, 1], torch.tensor([1.0, 2.0]))
    label = type_of("label", task="stsb")
    loss = label.loss(Signals(torch.tensor([[2.5], [0.0]])), Signals(), batch)
    assert loss.tolist() == near([2.25, 4.0])


def test_response_is_the_divergence_of_softened_outputs_times_t_squared():
    # T = 2: teacher softmax(ln 3, 0) = (3/4, 1/4), student (1/2, 1/2): T^2 KL = 4 x 0.130812.
    # The second example agrees: 0, and the batch's loss is half of the first.
    batch = batch_of([1, 1])
    student = Signals(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    teacher = Signals(torch.tensor([[2 * log(3), 0.0], [1.0, 2.0]]))
    response = type_of("response", temperature=2.0)
    assert response.loss(student, teacher, batch).tolist() == near([4 * KL_3_1, 0.0])
    assert mean_loss(response, student, teacher, batch).item() == near(2 * KL_3_1)


def test_response_is_teacher_against_student_and_batchmean():
    # the other direction is 1/2 ln(2/3) + 1/2 ln 2 = 0.143841
    batch = batch_of([1])
    uniform, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[log(3), 0.0]])
    response = type_of("response", temperature=1.0)
    assert response.loss(Signals(uniform), Signals(teacher), batch).item() == near(KL_3_1)
    assert response.loss(Signals(teacher), Signals(uniform), batch).item() == near(0.143841)

    batch = batch_of([1] * 5)
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    response = type_of("response", task="mnli", temperature=3.0)
    expected = 9 * F.kl_div(F.log_softmax(x / 3, -1), F.softmax(y / 3, -1), reduction="batchmean")
    got = mean_loss(response, Signals(x), Signals(y), batch)
    torch.testing.assert_close(got, expected)


def test_response_of_a_regression_is_the_squared_difference():
    # (1 - 4)^2 = 9 at any temperature
    response = type_of("response", task="stsb", temperature=7.0)
    student, teacher = Signals(torch.tensor([[1.0]])), Signals(torch.tensor([[4.0]]))
    assert response.loss(student, teacher, batch_of([1])).item() == near(9.0)


def test_cls_hidden_is_the_squared_distance_of_unit_vectors():
    # (3, 4)/5 = (0.6, 0.8) against (0, 5)/5 = (0, 1): 0.36 + 0.04 = 0.4;
    # second layer (1, 0) against (0, 7)/7 = (0, 1): 2. Sum 2.4
    shape = Shape(layers=2, width=2, heads=1, feed_forward=4)
    student = Signals(cls={1: torch.tensor([[3.0, 4.0]]), 2: torch.tensor([[1.0, 0.0]])})
    teacher = Signals(cls={1: torch.tensor([[0.0, 5.0]]), 2: torch.tensor([[0.0, 7.0]])})
    cls_hidden = type_of("cls_hidden/skip", shape)
    assert cls_hidden.loss(student, teacher, batch_of([3])).tolist() == near([2.4])


def test_cls_hidden_without_normalisation_sums_over_the_width():
    # (3, 4) - (0, 5) = (3, -1): 9 + 1
    student, teacher = (
        Signals(cls={1: torch.tensor([[3.0, 4.0]])}),
        Signals(cls={1: torch.tensor([[0.0, 5.0]])}),
    )
    cls_hidden = type_of("cls_hidden", normalize_cls=False)
    assert cls_hidden.loss(student, teacher, batch_of([3])).tolist() == near([10.0])


def test_hidden_averages_over_width_and_sums_over_tokens():
    # (1, 2) - (0, 0): (1 + 4)/2 = 2.5; (3, 0) - (1, 0): 4/2 = 2; the third token is padding in
    # the first example. Second example: three tokens (1, 1) - (0, 0): 3 x 1. Mean 7.5 / 5 tokens
    student = Signals(
        hidden={1: torch.tensor([[[1.0, 2.0], [3.0, 0.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])}
    )
    teacher = Signals(
        hidden={1: torch.tensor([[[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]], [[0.0, 0.0]] * 3])}
    )
    hidden, batch = type_of("hidden"), batch_of([2, 3])
    assert hidden.loss(student, teacher, batch).tolist() == near([4.5, 3.0])
    assert mean_loss(hidden, student, teacher, batch).item() == near(1.5)


def test_hidden_projects_the_student_to_the_teachers_width():
    # W (1, 2) = (1, 2, 1 + 2): (1 + 4 + 9)/3 against zeros
    pool = pool_of("hidden", Shape(1, 2, 1, 4), Shape(1, 3, 1, 4))
    (hidden,) = pool.types
    layer = pool.projections[projection_key("hidden/skip")]["1_1"]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    student = Signals(hidden={1: torch.tensor([[[1.0, 2.0]]])})
    teacher = Signals(hidden={1: torch.zeros(1, 1, 3)})
    assert hidden.loss(student, teacher, batch_of([1])).item() == near(14 / 3)


def attention_signals():
    # Two heads of width 4, scores scaled by 1/sqrt(4). First head of the teacher: the first token
    # has q k / 2 = (2 ln 3, 0) / 2 = (ln 3, 0), row (3/4, 1/4); the second token's query is 0, row
    # (1/2, 1/2). Second head and student: all zero, rows (1/2, 1/2). The third token is padding.
    zero = torch.zeros(1, 3, 8)
    query, key = zero.clone(), zero.clone()
    query[0, 0, 0], key[0, 0, 0] = 2 * log(3), 1.0
    query[0, 2], key[0, 2] = 50.0, 50.0
    student = Signals(query={1: zero}, key={1: zero})
    return student, Signals(query={1: query}, key={1: key}), Shape(1, 8, 2, 4), batch_of([2, 3])


def widen(signals):
    """A second example of three real tokens in which both agree."""
    for layers in (signals.query, signals.key, signals.value):
        for layer, x in layers.items():
            layers[layer] = torch.cat([x, torch.zeros_like(x)])
    return signals


def test_attention_mse_averages_over_heads_and_real_keys():
    # first token: (1/4^2 + 1/4^2)/2 keys = 1/16, over two heads 1/32; second token 0.
    # Batch: 1/32 over 2 + 3 real tokens
    student, teacher, shape, batch = attention_signals()
    attention = type_of("attention", shape)
    student, teacher = widen(student), widen(teacher)
    assert attention.loss(student, teacher, batch).tolist() == near([1 / 32, 0.0])
    assert mean_loss(attention, student, teacher, batch).item() == near(1 / 160)


def test_attention_kl_averages_over_heads():
    # first token: KL((3/4, 1/4) || (1/2, 1/2)), over two heads half of it; second token 0
    student, teacher, shape, batch = attention_signals()
    attention = type_of("attention", shape, attention_loss="kl")
    student, teacher = widen(student), widen(teacher)
    assert attention.loss(student, teacher, batch).tolist() == near([KL_3_1 / 2, 0.0])
    assert mean_loss(attention, student, teacher, batch).item() == near(KL_3_1 / 10)


@pytest.mark.parametrize("vectors", ["query", "key", "value"])
def test_relations_compare_scaled_dot_products_in_relation_heads(vectors):
    # R = 2 relation heads. Teacher width 8, d_r = 4: first head, first token x x / sqrt(4) =
    # 2 ln 3 / 2, row (3/4, 1/4); second token is 0, row (1/2, 1/2). Second head and student (width
    # 2, one head): rows (1/2, 1/2). Mean over R: half of the divergence. The third token is padding.
    x = torch.zeros(1, 3, 8)
    x[0, 0, 0] = sqrt(2 * log(3))
    x[0, 2] = 50.0
    student = widen(Signals(**{vectors: {1: torch.zeros(1, 3, 2)}}))
    teacher = widen(Signals(**{vectors: {2: x}}))
    relation = type_of(f"{vectors}_relation", Shape(1, 2, 1, 4), Shape(2, 8, 2, 4))
    batch = batch_of([2, 3])
    assert relation.loss(student, teacher, batch).tolist() == near([KL_3_1 / 2, 0.0])
    assert mean_loss(relation, student, teacher, batch).item() == near(KL_3_1 / 10)


def test_relation_heads_split_the_vectors_anew():
    # R = 1: d_r = 4 over the whole width, x x / sqrt(4) = (ln 3 + ln 3) / 2 = ln 3 for the first
    # token, row (3/4, 1/4); with R = 2 each head has d_r = 2: ln 3 / sqrt(2) twice instead
    x = torch.zeros(1, 2, 4)
    x[0, 0, 0] = x[0, 0, 2] = sqrt(log(3))
    student, teacher = Signals(value={1: torch.zeros(1, 2, 4)}), Signals(value={1: x})
    shape, batch = Shape(1, 4, 2, 4), batch_of([2])
    one = type_of("value_relation", shape, relation_heads=1).loss(student, teacher, batch)
    two = type_of("value_relation", shape, relation_heads=2).loss(student, teacher, batch)
    p = 3 ** sqrt(0.5) / (1 + 3 ** sqrt(0.5))
    assert one.item() == near(KL_3_1)
    assert two.item() == near(p * log(2 * p) + (1 - p) * log(2 * (1 - p)))


def test_fsp_compares_gram_matrices_of_consecutive_layers():
    # Two real tokens: F1 = I, F2 = diag(2, 4), G = F1^T F2 / 2 = diag(1, 2); F3 = ((0, 2), (0, 0)),
    # G = F2^T F3 / 2 = ((0, 2), (0, 0)). Student zero: (1 + 4)/4 + 4/4 = 2.25
    layers = {
        1: torch.tensor([[[1.0, 0.0], [0.0, 1.0], [7.0, 7.0]]]),
        2: torch.tensor([[[2.0, 0.0], [0.0, 4.0], [7.0, 7.0]]]),
        3: torch.tensor([[[0.0, 2.0], [0.0, 0.0], [7.0, 7.0]]]),
    }
    batch = batch_of([2, 3]).split(2)[0]
    teacher = Signals(hidden=layers)
    student = Signals(hidden={layer: torch.zeros_like(x) for layer, x in layers.items()})
    fsp = type_of("fsp/skip", Shape(3, 2, 1, 4))
    assert fsp.loss(student, teacher, batch).tolist() == near([2.25])


def test_fsp_keeps_the_order_of_the_layers():
    # F1 = e1, F2 = e2: G12 = e1 e2^T is not G21 = e2 e1^T: two entries of 1 differ, 2/4
    e1, e2 = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    student, teacher = Signals(hidden={1: e1, 2: e2}), Signals(hidden={1: e2, 2: e1})
    fsp = type_of("fsp/first", Shape(2, 2, 1, 4))
    assert fsp.loss(student, teacher, batch_of([1])).item() == near(0.5)
