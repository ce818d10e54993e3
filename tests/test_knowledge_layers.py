"""Kinds that compare layers, against values worked out by hand."""

from math import log, sqrt

import pytest
import torch
from knowledge_cases import KL_3_1, batch_of, near, pool_of, type_of

from ksel.knowledge import mean_loss
from ksel.types import Shape, Signals

ONE = Shape(layers=1, width=8, heads=1, feed_forward=4)
TWO = Shape(layers=1, width=8, heads=2, feed_forward=4)


# States.


def test_embedding_is_the_mean_square_of_layer_0():
    # (1, 2) - (0, 0): 5/2; (3, 0) - (1, 0): 4/2; the third token is padding
    student = Signals(hidden={0: torch.tensor([[[1.0, 2.0], [3.0, 0.0], [9.0, 9.0]]])})
    teacher = Signals(hidden={0: torch.tensor([[[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]])})
    embedding, batch = type_of("embedding"), batch_of([2, 3]).split(2)[0]
    assert embedding.loss(student, teacher, batch).tolist() == near([4.5])
    assert mean_loss(embedding, student, teacher, batch).item() == near(2.25)
    assert embedding.pairs == ((0, 0),)


def cls_signals():
    # Two layers: squared distances of the unit vectors 0.4 and 2
    student = Signals(cls={1: torch.tensor([[3.0, 4.0]]), 2: torch.tensor([[1.0, 0.0]])})
    teacher = Signals(cls={1: torch.tensor([[0.0, 5.0]]), 2: torch.tensor([[0.0, 7.0]])})
    return student, teacher, batch_of([3])


def test_the_mean_of_cls_hidden_divides_by_layers_times_width():
    student, teacher, batch = cls_signals()
    shape = Shape(layers=2, width=2, heads=1, feed_forward=4)
    summed = type_of("cls_hidden", shape).loss(student, teacher, batch)
    averaged = type_of("cls_hidden", shape, cls_reduction="mean").loss(student, teacher, batch)
    assert summed.tolist() == near([2.4])
    assert averaged.tolist() == near([2.4 / (2 * 2)])


def test_the_width_of_cls_hidden_averages_over_the_width_and_sums_over_layers():
    # unit length: 0.4 / 2 + 2 / 2; as they are: (3, 4) - (0, 5): 10 / 2; (1, 0) - (0, 7): 50 / 2
    student, teacher, batch = cls_signals()
    shape = Shape(layers=2, width=2, heads=1, feed_forward=4)
    for normalize, expected in ((True, 1.2), (False, 30.0)):
        options = {"cls_reduction": "width", "normalize_cls": normalize}
        loss = type_of("cls_hidden", shape, **options).loss(student, teacher, batch)
        assert loss.tolist() == near([expected])


def test_the_width_of_cls_hidden_is_hidden_on_texts_of_one_token():
    student, teacher = Shape(2, 6, 1, 4), Shape(4, 10, 1, 4)
    generator = torch.Generator().manual_seed(0)
    states = [
        {layer: torch.randn(3, width, generator=generator) for layer in layers}
        for width, layers in ((6, (1, 2)), (10, (2, 4)))
    ]
    cls = [Signals(cls=one) for one in states]
    hidden = [Signals(hidden={layer: x[:, None] for layer, x in one.items()}) for one in states]
    options = {"cls_reduction": "width", "normalize_cls": False}
    pools = [
        pool_of("cls_hidden", student, teacher, **options),
        pool_of("hidden", student, teacher),
    ]
    for weights in zip(*(pool.projections.parameters() for pool in pools), strict=True):
        with torch.no_grad():
            weights[0].copy_(weights[1])
    batch = batch_of([1, 1, 1])
    losses = [pool.types[0].loss(*x, batch) for pool, x in zip(pools, (cls, hidden), strict=True)]
    assert losses[0].shape == (3,)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("reduction", ["mean", "width"])
def test_the_means_of_cls_hidden_count_the_teachers_width(reduction):
    student, teacher = Shape(1, 2, 1, 4), Shape(1, 3, 1, 4)
    options = {"cls_reduction": reduction, "normalize_cls": False}
    pool = pool_of("cls_hidden", student, teacher, **options)
    with torch.no_grad():
        for weight in pool.projections.parameters():
            weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    # W (1, 2) = (1, 2, 3) against zeros: (1 + 4 + 9) / 3
    loss = pool.types[0].loss(
        Signals(cls={1: torch.tensor([[1.0, 2.0]])}),
        Signals(cls={1: torch.zeros(1, 3)}),
        batch_of([1]),
    )
    assert loss.tolist() == near([14 / 3])


def test_cosine_is_one_minus_the_cosine_of_each_real_token():
    # (1, 0) and (0, 2): 1; (3, 4) and (4, 3): 1 - 24/25; padding. Second example: opposite, 2 each
    student = [[[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]], [[1.0, 0.0]] * 3]
    teacher = [[[0.0, 2.0], [4.0, 3.0], [-1.0, 1.0]], [[-5.0, 0.0]] * 3]
    cosine, batch = type_of("cosine"), batch_of([2, 3])
    signals = [Signals(hidden={1: torch.tensor(x)}) for x in (student, teacher)]
    assert cosine.loss(*signals, batch).tolist() == near([1.04, 6.0])
    assert mean_loss(cosine, *signals, batch).item() == near(7.04 / 5)


def test_fsp_projects_the_students_states():
    # F1 = (1), F2 = (2) in width 1; W1 = (1, 0), W2 = (0, 1): G = (1, 0)^T (0, 2), teacher 0: 4/4
    student, teacher = Shape(2, 1, 1, 4), Shape(2, 2, 1, 4)
    pool = pool_of("fsp/first", student, teacher)
    maps = pool.projections["fsp_first"]
    with torch.no_grad():
        maps["1_1"].weight.copy_(torch.tensor([[1.0], [0.0]]))
        maps["2_2"].weight.copy_(torch.tensor([[0.0], [1.0]]))
    loss = pool.types[0].loss(
        Signals(hidden={1: torch.tensor([[[1.0]]]), 2: torch.tensor([[[2.0]]])}),
        Signals(hidden={1: torch.zeros(1, 1, 2), 2: torch.zeros(1, 1, 2)}),
        batch_of([1]),
    )
    assert loss.tolist() == near([1.0])


def test_nst_compares_gram_matrices_of_tokens():
    # Student, h = 2: rows (1, 0), (0, 2), padding: H H^T / 2 = diag(1/2, 2). Teacher, h = 4: rows
    # (2, 0, 0, 0), 0: diag(1, 0). Differences -1/2 and 2 among 4 entries: 4.25 / 4
    student = Signals(hidden={1: torch.tensor([[[1.0, 0.0], [0.0, 2.0], [7.0, 7.0]]])})
    rows = torch.zeros(1, 3, 4)
    rows[0, 0, 0], rows[0, 2] = 2.0, 7.0
    nst = type_of("nst", Shape(1, 2, 1, 4), Shape(1, 4, 1, 4))
    batch = batch_of([2, 3]).split(2)[0]
    assert nst.loss(student, Signals(hidden={1: rows}), batch).tolist() == near([4.25 / 4])
    assert nst.unit == "example"


# Attention. Scores of the teacher's first head: (ln 3, 0) for the first token, row (3/4, 1/4); all
# else is 0, rows (1/2, 1/2). The third token is padding.


def attention_signals():
    zero = torch.zeros(1, 3, 8)
    query, key = zero.clone(), zero.clone()
    query[0, 0, 0], key[0, 0, 0] = 2 * log(3), 1.0
    query[0, 2], key[0, 2] = 50.0, 50.0
    student = Signals(query={1: zero}, key={1: zero})
    return student, Signals(query={1: query}, key={1: key}), batch_of([2, 3]).split(2)[0]


# first token's row of the means over heads: (5/8, 3/8) against (1/2, 1/2); the rest agrees
MEAN_KL = 5 / 8 * log(5 / 4) + 3 / 8 * log(3 / 4)
VALUES = [
    ("attention", {"attention_on": "scores"}, log(3) ** 2 / 4),  # 2 heads x 2 keys
    ("attention_mean", {}, 1 / 64),  # 2 (1/8)^2 / 2 keys
    ("attention_mean", {"attention_on": "scores"}, (log(3) / 2) ** 2 / 2),
    ("attention_mean", {"attention_loss": "kl"}, MEAN_KL),
    ("attention_sum", {}, 1 / 16),  # sums (5/4, 3/4) against (1, 1)
    ("attention_sum", {"attention_on": "scores"}, log(3) ** 2 / 2),
]


@pytest.mark.parametrize(("kind", "options", "expected"), VALUES)
def test_attention_and_its_means_and_sums_over_heads(kind, options, expected):
    student, teacher, batch = attention_signals()
    loss = type_of(kind, TWO, **options).loss(student, teacher, batch)
    assert loss.tolist() == near([expected])


@pytest.mark.parametrize(("kind", "options", "expected"), VALUES[1:])
def test_means_and_sums_take_other_numbers_of_heads(kind, options, expected):
    # The student's one head has rows (1/2, 1/2) as well; its sum counts as that of two heads.
    student, teacher, batch = attention_signals()
    loss = type_of(kind, ONE, TWO, **options).loss(student, teacher, batch)
    assert loss.tolist() == near([expected])


def test_sums_over_heads_that_agree_differ_by_nothing_whatever_their_number():
    # four heads of width 2 or two of width 4, all rows (1/2, 1/2): plain sums would be 2 and 1 apart
    student, _, batch = attention_signals()
    loss = type_of("attention_sum", Shape(1, 8, 4, 4), TWO).loss(student, student, batch)
    assert loss.item() == 0


def test_long_padding_adds_no_rounding_to_means_over_heads():
    # in float32 the mean over seven heads of 0 is 1e-7 off, for each of 500 padded keys
    batch = batch_of([1, 501]).split(2)[0]
    signals = Signals(query={1: torch.zeros(1, 501, 7)}, key={1: torch.zeros(1, 501, 7)})
    shapes = Shape(1, 7, 7, 4), Shape(1, 7, 1, 4)
    loss = type_of("attention_mean", *shapes, attention_loss="kl").loss(signals, signals, batch)
    assert loss.abs().item() < 1e-6


# Relations.


def test_token_similarity_relates_the_embeddings_in_one_head():
    # Teacher, h = 4: x x / sqrt(4) = ln 3 for the first token, row (3/4, 1/4); second (1/2, 1/2)
    x = torch.zeros(1, 3, 4)
    x[0, 0, 1], x[0, 2] = sqrt(2 * log(3)), 50.0
    similarity = type_of("token_similarity", Shape(1, 2, 2, 4), Shape(1, 4, 2, 4))
    batch = batch_of([2, 3]).split(2)[0]
    student, teacher = Signals(hidden={0: torch.zeros(1, 3, 2)}), Signals(hidden={0: x})
    assert similarity.loss(student, teacher, batch).tolist() == near([KL_3_1])
    assert mean_loss(similarity, student, teacher, batch).item() == near(KL_3_1 / 2)


@pytest.mark.parametrize(("heads", "entry"), [(1, sqrt(sqrt(8) * log(3))), (2, sqrt(2 * log(3)))])
def test_attention_outputs_are_split_into_the_students_number_of_heads(heads, entry):
    # Teacher: four heads, h = 8. Split into the student's 1 or 2: width 8 or 4, the first split's
    # x x / sqrt(width) = ln 3 for the first token; other splits and tokens agree: KL / splits
    x = torch.zeros(1, 3, 8)
    x[0, 0, 3], x[0, 2] = entry, 50.0
    shapes = Shape(1, 2, heads, 4), Shape(2, 8, 4, 4)
    relation = type_of("attention_output_relation", *shapes)
    student = Signals(attention_output={1: torch.zeros(1, 3, 2)})
    teacher = Signals(attention_output={2: x})
    batch = batch_of([2, 3]).split(2)[0]
    assert relation.loss(student, teacher, batch).tolist() == near([KL_3_1 / heads])
