"""Kinds that relate the examples of a batch, against values worked out by hand."""

from math import e, log, sqrt

import pytest
import torch
from knowledge_cases import KL_3_1, SMALL, WIDE, Case, batch_of, near, setting_of, type_of

from ksel.knowledge import mean_loss
from ksel.types import Needs, Shape, Signals

NARROW, BROAD = Shape(1, 2, 1, 4), Shape(2, 4, 1, 4)


def test_sample_similarity_relates_the_examples_of_a_batch():
    # Teacher, h = 4: c c / sqrt(4) = ln 3 for the first example with itself, row (3/4, 1/4);
    # second row (1/2, 1/2). Student, h = 2, all 0: rows (1/2, 1/2)
    teacher = Signals(cls={2: torch.tensor([[sqrt(2 * log(3)), 0.0, 0.0, 0.0], [0.0] * 4])})
    student, batch = Signals(cls={1: torch.zeros(2, 2)}), batch_of([3, 1])
    similarity = type_of("sample_similarity", NARROW, BROAD)
    assert similarity.loss(student, teacher, batch).tolist() == near([KL_3_1, 0.0])
    assert mean_loss(similarity, student, teacher, batch).item() == near(KL_3_1 / 2)


@pytest.mark.parametrize("kind", ["sample_similarity", "sample_contrastive"])
def test_only_the_last_cls_states_are_asked_for(kind):
    type = type_of(kind, SMALL, WIDE)
    last = frozenset({2}), frozenset({4})
    assert (type.student, type.teacher) == (Needs(cls=last[0]), Needs(cls=last[1]))
    assert type.pairs == ((2, 4),)
    assert type.couples


def contrast(labels, temperature=1.0, student=((1.0, 0.0), (0.0, 1.0))):
    type = type_of("sample_contrastive", contrastive_temperature=temperature)
    batch = batch_of([1] * len(labels), torch.tensor(labels))
    teacher = Signals(cls={1: torch.tensor([[2.0, 0.0], [0.0, 3.0]])})
    return type.loss(Signals(cls={1: torch.tensor(student)}), teacher, batch).tolist()


def test_views_of_other_classes_are_pushed_apart():
    # Views (1, 0), (0, 1) of each model. From each, the others have cosines 1, 0, 0, and the only
    # positive is the other model's view: -ln(e / (e + 2))
    assert contrast([0, 1]) == near([log(1 + 2 / e)] * 2)


def test_the_contrastive_temperature_sharpens():
    # cosines 2, 0, 0 at temperature 1/2
    assert contrast([0, 1], 0.5) == near([log(1 + 2 / e**2)] * 2)


def test_all_views_of_a_class_are_positives():
    # all four of one class: ln(e + 2) minus the mean of 1, 0, 0
    assert contrast([1, 1]) == near([log(e + 2) - 1 / 3] * 2)


def test_an_example_has_the_mean_of_its_two_views():
    # Student (0, 1) twice. Views s1 s2 t1 t2 with s1 = s2 = t2 = (0, 1), t1 = (1, 0), two classes.
    # s1: s2 1, t2 1, positive t1 0: ln(2e + 1). t1: all 0, ln 3.
    # s2: s1 1, t1 0, positive t2 1: ln(2e + 1) - 1; t2 the same.
    losses = contrast([0, 1], student=((0.0, 1.0), (0.0, 1.0)))
    assert losses == near([(log(2 * e + 1) + log(3)) / 2, log(2 * e + 1) - 1])


def test_the_teachers_views_are_constants():
    type, batch, student, teacher = setting_of(Case("sample_contrastive"))
    teacher.cls[4].requires_grad_()
    student.cls[2].requires_grad_()
    mean_loss(type, student, teacher, batch).backward()
    assert student.cls[2].grad.abs().max() > 0
    assert teacher.cls[4].grad is None


@pytest.mark.parametrize(
    ("kind", "lonely"), [("sample_similarity", 0.0), ("sample_contrastive", 0.0)]
)
def test_a_batch_of_one_has_nothing_to_relate(kind, lonely):
    type, batch, student, teacher = setting_of(Case(kind), lengths=(3,))
    assert type.loss(student, teacher, batch).tolist() == near([lonely])
