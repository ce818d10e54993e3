"""The knowledge pool: what it is made of, and what is refused when it is built."""

import pytest

from ksel.config import KnowledgeConfig
from ksel.errors import UsageError
from ksel.knowledge import KINDS, build_pool, projection_key
from ksel.tasks import get_task
from ksel.types import Needs, Shape, TeacherView

TEACHER = Shape(layers=12, width=24, heads=4, feed_forward=48)
STUDENT = Shape(layers=6, width=24, heads=4, feed_forward=48)


def build(*specs, student=STUDENT, teachers=(TEACHER,), task="qnli", **settings):
    views = [one if isinstance(one, TeacherView) else TeacherView(one) for one in teachers]
    return build_pool(
        KnowledgeConfig(pool=list(specs), **settings),
        task=get_task(task),
        student=student,
        teachers=views,
        seed=0,
    )


def shape(layers=6, width=24, heads=4):
    return Shape(layers, width, heads, 48)


def layers(*numbers):
    return frozenset(numbers)


def test_names_keep_the_order_and_write_the_default_matching_out():
    pool = build("hidden/last", "label", "cls_hidden", "response", "hidden/1-2", "fsp")
    names = ("hidden/last", "label", "cls_hidden/skip", "response", "hidden/1-2", "fsp/skip")
    assert pool.names == names
    assert tuple(type.spec for type in pool) == names
    assert len(pool) == 6
    assert [type.kind for type in pool] == [name.partition("/")[0] for name in names]


@pytest.mark.parametrize("task", ["qnli", "stsb"])
def test_the_default_pool_is_built(task):
    pool = build(*KnowledgeConfig().pool, task=task)
    assert list(pool.names) == KnowledgeConfig().pool
    assert len(pool.projections) == 0
    assert pool.weights == (1.0,) * 5
    assert pool.schedules == ("constant",) * 5
    assert {(type.source, type.couples) for type in pool} == {(0, False)}


def test_units_follow_what_a_kind_looks_at():
    units = {"example": set(), "token": set()}
    for type in build(*KINDS):
        units[type.unit].add(type.kind)
    outputs_and_cls = {"label", "response", "logits", "cls_hidden"}
    batch_and_gram = {"sample_similarity", "sample_contrastive", "fsp", "nst"}
    assert units["example"] == outputs_and_cls | batch_and_gram
    assert units["token"] == set(KINDS) - units["example"]


def test_only_kinds_that_relate_examples_couple_the_batch():
    coupled = {type.kind for type in build(*KINDS) if type.couples}
    assert coupled == {"sample_similarity", "sample_contrastive"}
    assert build("response", temperature_schedule="flsw").types[0].couples
    assert build("response", temperature_schedule="cwsm").types[0].couples
    assert not build("response", temperature_schedule="linear").types[0].couples


def test_every_kind_says_what_it_needs_of_which_layers():
    kinds = [kind if KINDS[kind].lowest_layer is None else f"{kind}/1-3+4-7" for kind in KINDS]
    pool = build(*kinds)
    needs = {type.kind: (type.student, type.teacher) for type in pool}
    s, t, zero = layers(1, 4), layers(3, 7), layers(0)
    hidden = (Needs(hidden=s), Needs(hidden=t))
    maps = (Needs(query=s, key=s), Needs(query=t, key=t))
    output = Needs(logits=True)
    last = (Needs(cls=layers(6)), Needs(cls=layers(12)))
    assert needs == {
        "label": (output, Needs()),
        "response": (output, output),
        "logits": (output, output),
        "cls_hidden": (Needs(cls=s), Needs(cls=t)),
        "hidden": hidden,
        "embedding": (Needs(hidden=zero), Needs(hidden=zero)),
        "cosine": hidden,
        "attention": maps,
        "attention_mean": maps,
        "attention_sum": maps,
        "query_relation": (Needs(query=s), Needs(query=t)),
        "key_relation": (Needs(key=s), Needs(key=t)),
        "value_relation": (Needs(value=s), Needs(value=t)),
        "attention_output_relation": (Needs(attention_output=s), Needs(attention_output=t)),
        "token_similarity": (Needs(hidden=zero), Needs(hidden=zero)),
        "fsp": hidden,
        "nst": hidden,
        "sample_similarity": last,
        "sample_contrastive": last,
    }
    chosen = [type for type in pool if KINDS[type.kind].lowest_layer is not None]
    assert all(type.pairs == ((1, 3), (4, 7)) for type in chosen)


def test_every_kind_is_described():
    descriptions = [kind.description for kind in KINDS.values()]
    assert all(descriptions)
    assert len(set(descriptions)) == len(KINDS)


# Patient KD's layer sets.


@pytest.mark.parametrize(
    ("student", "matching", "teacher"),
    [
        (6, "skip", {2, 4, 6, 8, 10}),
        (6, "last", {7, 8, 9, 10, 11}),
        (3, "last", {10, 11}),
        (3, "skip", {4, 8}),
    ],
)
def test_cls_hidden_beside_response_has_patient_kds_layers(student, matching, teacher):
    pool = build("response", f"cls_hidden/{matching}", student=shape(student))
    cls_hidden = pool.types[1]
    assert cls_hidden.student.cls == frozenset(range(1, student))
    assert cls_hidden.teacher.cls == frozenset(teacher)
    assert {t for _, t in cls_hidden.pairs} == teacher


def test_the_order_of_the_pool_does_not_decide_whether_the_last_layer_is_left_out():
    assert build("cls_hidden", "response").types[0].pairs[-1] == (5, 10)


def test_cls_hidden_without_response_keeps_the_last_layer():
    assert build("cls_hidden/last").types[0].pairs[-1] == (6, 12)


def test_cls_hidden_keeps_pairs_that_the_user_named():
    assert build("response", "cls_hidden/5-10+6-12").types[1].pairs == ((5, 10), (6, 12))


@pytest.mark.parametrize(("matching", "start"), [("skip", 2), ("last", 7)])
def test_cls_last_keep_compares_the_layers_as_matched(matching, start):
    spec, step = f"cls_hidden/{matching}", 2 if matching == "skip" else 1
    matched = tuple((i, start + step * (i - 1)) for i in range(1, 7))
    beside = build("response", spec, cls_last="keep").types[1]
    assert beside.pairs == matched
    assert (beside.student.cls, beside.teacher.cls) == tuple(
        frozenset(side) for side in zip(*matched, strict=True)
    )
    assert build(spec, cls_last="keep").types[0].pairs == matched
    named = build("response", "cls_hidden/1-2", cls_last="keep").types[1]
    assert named.pairs == ((1, 2),)


def test_other_kinds_keep_the_last_layer_beside_response():
    assert build("response", "hidden", "fsp").types[1].pairs[-1] == (6, 12)


def test_a_one_layer_student_has_no_cls_layer_left_beside_response():
    with pytest.raises(UsageError) as error:
        build("response", "cls_hidden", student=shape(1))
    refusal(error, "cls_hidden", "because response is in the pool", "'cls_hidden/1-12'")
    refusal(error, "cls_hidden", "because response is in the pool", "--knowledge.cls_last keep")
    assert build("response", "cls_hidden/1-12", student=shape(1)).types[1].pairs == ((1, 12),)
    kept = build("response", "cls_hidden", student=shape(1), cls_last="keep")
    assert kept.types[1].pairs == ((1, 12),)


# Widths, heads, layers.


def refusal(error, kind, reason, alternative):
    message = str(error.value)
    assert message.startswith("--knowledge.")
    assert kind in message
    assert reason in message
    assert alternative in message


@pytest.mark.parametrize(
    ("spec", "student", "reason", "alternative"),
    [
        ("fsp", shape(layers=1), "only one is matched", "'fsp/0-0+1-12'"),
        ("fsp/last_1", shape(), "only one is matched", "'hidden/last_1'"),
        ("attention/last", shape(heads=3), "3 heads and the teacher 4", "'attention_mean/last'"),
        ("attention/last", shape(heads=3), "3 heads and the teacher 4", "'value_relation/last'"),
        ("attention", shape(heads=2), "head by head", "--student.heads 4"),
        ("attention/0-0+6-12", shape(), "layer 0", "'hidden/0-0+6-12'"),
        ("attention_mean/0-1", shape(), "layer 0", "'hidden/0-1'"),
        ("attention_sum/1-0", shape(), "layer 0", "'hidden/1-0'"),
        ("attention_output_relation/0-0", shape(), "layer 0", "'hidden/0-0'"),
        (
            "attention_output_relation/last",
            shape(heads=3),
            "3 does not divide 4",
            "--student.heads to one of 1, 2, 4,",
        ),
        (
            "attention_output_relation",
            shape(heads=8),
            "8 does not divide 4",
            "'value_relation/skip'",
        ),
        ("query_relation/0-1", shape(), "layer 0", "from 1 on"),
        ("key_relation/1-0", shape(), "layer 0", "from 1 on"),
        ("value_relation/0-0", shape(), "layer 0", "from 1 on"),
        ("value_relation", shape(width=18, heads=3), "4 relation heads", "one of 1, 2, 3, 6."),
        ("hidden", shape(layers=13), "13 layers and the teacher 12", "last_12"),
        ("hidden/first_7", shape(), "the student has 6", "first_1 to first_6"),
        ("hidden/7-12", shape(), "layers 0 to 6", "skip"),
    ],
)
def test_what_the_models_do_not_allow_is_refused_with_reason_and_alternative(
    spec, student, reason, alternative
):
    with pytest.raises(UsageError) as error:
        build(spec, student=student)
    refusal(error, f"'{spec}" if "/" in spec else f"'{spec}/skip'", reason, alternative)


def test_the_alternatives_that_refusals_name_do_work():
    narrow, other_heads = shape(width=12), shape(heads=3)
    build("value_relation/skip", student=narrow)
    build("value_relation/last", student=other_heads, relation_heads=3)
    build("attention_mean/last", student=other_heads)
    for heads in (1, 2, 4):
        build("attention_output_relation", student=shape(heads=heads))
    build("fsp/0-0+1-12", student=shape(layers=1))
    build("hidden/last_12", student=shape(layers=13))
    for heads in (1, 2, 3, 6):
        build("value_relation", student=shape(width=18, heads=3), relation_heads=heads)


@pytest.mark.parametrize("kind", ["query_relation", "key_relation", "value_relation"])
def test_relation_heads_that_do_not_divide_the_width_are_refused(kind):
    with pytest.raises(UsageError) as error:
        build(kind, relation_heads=5)
    refusal(error, kind, "5 relation heads", "--knowledge.relation_heads to one of 1, 2, 3, 4, 6,")


def test_unequal_widths_get_a_projection_for_each_pair():
    pool = build("hidden/last", "label", "hidden/0-0", "embedding", student=shape(width=12))
    assert {key: list(part) for key, part in pool.projections.items()} == {
        "hidden_last": [f"{i}_{i + 6}" for i in range(1, 7)],
        "hidden_0_0": ["0_0"],
        "embedding": ["0_0"],
    }
    assert projection_key("hidden/0-0") == "hidden_0_0"
    assert all(p.shape == (24, 12) for p in pool.projections.parameters())


# Names.


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("hiden", "'hidden'"),
        ("responce", "'response'"),
        ("value_relations/last", "'value_relation'"),
        ("responce@2", "'response'"),
        ("hidden/skpi", "'skip'"),
        ("cls_hidden/lst", "'last'"),
    ],
)
def test_unknown_names_get_the_nearest(spec, near):
    with pytest.raises(UsageError, match=f"^--knowledge.pool: .*Did you mean {near}"):
        build(spec)


@pytest.mark.parametrize("spec", ["", "/skip", "hidden/", "hidden/skip/last", "hidden skip"])
def test_malformed_specs_are_refused(spec):
    with pytest.raises(UsageError, match=r"^--knowledge\.pool: unknown"):
        build(spec)


@pytest.mark.parametrize("spec", ["label/skip", "response/last", "label/"])
def test_outputs_take_no_matching(spec):
    kind = spec.partition("/")[0]
    with pytest.raises(UsageError, match=f"'{spec}' has a layer matching.*Write '{kind}'"):
        build(spec)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("label", "label"),
        ("hidden", "hidden/skip"),
        ("hidden/last", "hidden/last"),
        ("hidden/1-2+3-6", "hidden/3-6+1-2"),
    ],
)
def test_a_type_named_twice_is_refused(first, second):
    with pytest.raises(UsageError, match=r"'.+' and '.+' are the same.*--knowledge\.weights") as e:
        build(first, "response", second)
    assert first in str(e.value)
    assert second in str(e.value)


def test_matchings_that_agree_for_one_student_may_stand_side_by_side():
    # A policy moves between students: the pool must be valid for both.
    pool = build("hidden/skip", "hidden/last", student=shape(layers=12))
    assert pool.types[0].pairs == pool.types[1].pairs
