"""What relations, maps, Gram matrices and angles do not see, as their equations imply."""

import pytest
import torch
from knowledge_cases import WIDE, Case, each_tensor, gradients, orthogonal, setting_of

TURN = orthogonal(8, 1)


def both(case, change_student, change_teacher=None, lengths=(5, 3, 1)):
    """The losses before and after a change of the student's (and the teacher's) signals."""
    type, batch, student, teacher = setting_of(case, lengths, torch.float64)
    before = type.loss(student, teacher, batch)
    changed = each_tensor(student, change_student)
    if change_teacher is not None:
        teacher = each_tensor(teacher, change_teacher)
    return type.loss(changed, teacher, batch), before


def assert_blind(*args, **kwargs):
    after, before = both(*args, **kwargs)
    torch.testing.assert_close(after, before)


def assert_sees(*args, **kwargs):
    after, before = both(*args, **kwargs)
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("vectors", ["query", "key", "value", "attention_output"])
def test_relations_do_not_see_a_change_of_basis_within_a_relation_head(vectors):
    settings = {} if vectors == "attention_output" else {"relation_heads": 2}
    case = Case(f"{vectors}_relation", settings=settings)
    within = torch.block_diag(orthogonal(4, 1), orthogonal(4, 2))
    assert_blind(case, lambda x: x @ within)
    assert_sees(case, lambda x: x @ orthogonal(8, 3))


@pytest.mark.parametrize("vectors", ["query", "key", "value"])
def test_a_single_relation_head_does_not_see_any_change_of_basis(vectors):
    case = Case(f"{vectors}_relation", teacher=WIDE, settings={"relation_heads": 1})
    assert_blind(case, lambda x: x @ TURN, lambda x: x @ orthogonal(12, 2))
    assert_sees(case, lambda x: 1.2 * x)


@pytest.mark.parametrize(
    "case",
    [
        Case("attention"),
        Case("attention", settings={"attention_on": "scores"}),
        Case("attention_mean", settings={"attention_loss": "kl"}),
        Case("attention_sum"),
    ],
    ids=str,
)
def test_attention_does_not_see_a_change_of_basis_common_to_queries_and_keys(case):
    assert_blind(case, lambda x: x @ torch.block_diag(orthogonal(4, 1), orthogonal(4, 2)))
    assert_sees(case, lambda x: x @ torch.block_diag(2 * orthogonal(4, 1), orthogonal(4, 2)))


@pytest.mark.parametrize("kind", ["attention_mean", "attention_sum"])
def test_means_and_sums_over_heads_do_not_see_their_order(kind):
    swap = torch.eye(8, dtype=torch.float64).roll(4, 0)
    assert_blind(Case(kind), lambda x: x @ swap)
    assert_sees(Case("attention"), lambda x: x @ swap)


@pytest.mark.parametrize("kind", ["nst", "token_similarity", "sample_similarity"])
def test_relations_of_whole_states_do_not_see_a_change_of_basis(kind):
    case = Case(kind, teacher=WIDE)
    assert_blind(case, lambda x: x @ TURN, lambda x: x @ orthogonal(12, 2))
    assert_sees(case, lambda x: 1.2 * x)


def test_fsp_does_not_see_a_change_of_basis_common_to_both_models_nor_the_order_of_tokens():
    case = Case("fsp")
    assert_blind(case, lambda x: x @ TURN, lambda x: x @ TURN)
    assert_sees(case, lambda x: x @ TURN)
    assert_blind(case, lambda x: x[:, [3, 1, 4, 0, 2]], lengths=(5, 5))


@pytest.mark.parametrize("kind", ["cosine", "hidden", "embedding", "sample_contrastive"])
def test_states_do_not_see_a_change_of_basis_common_to_both_models(kind):
    assert_blind(Case(kind), lambda x: x @ TURN, lambda x: x @ TURN)
    assert_sees(Case(kind), lambda x: x @ TURN)


def test_cosine_does_not_see_lengths():
    assert_blind(Case("cosine"), lambda x: 7 * x, lambda x: 0.2 * x)


@pytest.mark.parametrize(
    "case",
    [Case("cls_hidden"), Case("cls_hidden", settings={"cls_reduction": "mean"})],
    ids=str,
)
def test_normalised_cls_states_do_not_see_lengths(case):
    assert_blind(case, lambda x: 7 * x)
    raw = Case("cls_hidden", settings={"normalize_cls": False})
    assert_sees(raw, lambda x: 7 * x)


def test_contrasted_states_do_not_see_lengths():
    assert_blind(Case("sample_contrastive"), lambda x: 7 * x, lambda x: 0.2 * x)


@pytest.mark.parametrize("task", ["mnli", "squad"])
def test_response_does_not_see_a_constant_added_to_the_logits(task):
    assert_blind(Case("response", task=task), lambda x: x + 3)
    assert_sees(Case("logits", task=task), lambda x: x + 3)


def test_scores_see_what_maps_do_not():
    # a key vector added to all keys adds a constant to each query's scores
    def shift(x):
        return x + torch.ones(8, dtype=torch.float64)

    type, batch, student, teacher = setting_of(Case("attention"), dtype=torch.float64)
    shifted = {layer: shift(x) for layer, x in student.key.items()}
    scores = setting_of(Case("attention", settings={"attention_on": "scores"})).type
    before = [loss.loss(student, teacher, batch) for loss in (type, scores)]
    student.key.update(shifted)
    after = [loss.loss(student, teacher, batch) for loss in (type, scores)]
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "case",
    [
        Case("response", settings={"temperature": 1.0}),
        Case("response", task="squad", settings={"temperature": 1.0}),
        Case("attention", settings={"attention_loss": "kl"}),
        Case("attention_mean", settings={"attention_loss": "kl"}),
        Case("value_relation"),
        Case("token_similarity"),
        Case("sample_similarity"),
        Case("sample_contrastive", settings={"contrastive_temperature": 0.01}),
    ],
    ids=str,
)
def test_probabilities_that_underflow_give_neither_nan_nor_infinity(case):
    type, batch, student, teacher = setting_of(case)
    student, teacher = (each_tensor(x, lambda x: 60 * x) for x in (student, teacher))
    loss, gradient = gradients(type, batch, student, teacher)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradient)
