"""A pool with several teachers: names with ``@``, tokenizers, and what is refused."""

import pytest

from ksel.config import KnowledgeConfig
from ksel.errors import UsageError
from ksel.knowledge import KINDS, build_pool, kind_of
from ksel.knowledge.specs import find_name
from ksel.tasks import get_task
from ksel.types import Shape, TeacherView

STUDENT = Shape(layers=6, width=24, heads=4, feed_forward=48)
FIRST = TeacherView(Shape(layers=12, width=24, heads=4, feed_forward=48))
SECOND = TeacherView(Shape(layers=24, width=36, heads=6, feed_forward=48))
FOREIGN = TeacherView(SECOND.shape, same_tokens=False)

POOLED = ("label", "response", "logits", "cls_hidden", "sample_similarity", "sample_contrastive")


def build(*specs, teachers=(FIRST, SECOND), task="qnli", student=STUDENT, **settings):
    return build_pool(
        KnowledgeConfig(pool=list(specs), **settings),
        task=get_task(task),
        student=student,
        teachers=teachers,
        seed=0,
    )


def refused(*specs, **options):
    with pytest.raises(UsageError) as error:
        build(*specs, **options)
    return str(error.value)


def test_the_number_after_at_is_the_teachers():
    pool = build("label", "response", "response@2", "hidden/last@2", "fsp@2", "cosine@1")
    names = ("label", "response", "response@2", "hidden/last@2", "fsp/skip@2", "cosine/skip")
    assert pool.names == names
    assert [type.source for type in pool] == [0, 0, 1, 1, 1, 0]
    assert pool.types[3].pairs == tuple((i, i + 18) for i in range(1, 7))
    assert pool.types[5].pairs == tuple((i, 2 * i) for i in range(1, 7))
    assert [type.kind for type in pool] == [kind_of(name) for name in names]


def test_the_first_teachers_number_is_left_out_of_the_name():
    assert build("response@1", "hidden@1", teachers=[FIRST]).names == ("response", "hidden/skip")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("response", "response@1"),
        ("hidden@2", "hidden/skip@2"),
        ("hidden/1-2+3-6@2", "hidden/3-6+1-2@2"),
        ("embedding@1", "embedding"),
    ],
)
def test_a_type_named_twice_is_refused(first, second):
    message = refused(first, "label", second)
    assert f"'{first}' and '{second}' are the same knowledge type" in message


def test_the_same_kind_of_two_teachers_are_two_types():
    pool = build("hidden/skip", "hidden/skip@2", projection="always")
    assert {
        layer.weight.shape for part in pool.projections.values() for layer in part.values()
    } == {
        (24, 24),
        (36, 24),
    }


def test_a_kind_takes_the_shape_of_its_own_teacher():
    student = Shape(layers=6, width=8, heads=4, feed_forward=48)
    assert len(build("value_relation", student=student)) == 1
    message = refused("value_relation", "value_relation@2", student=student)
    assert "'value_relation/skip@2' splits the vectors into 6 relation heads" in message
    message = refused("attention", "attention@2")
    assert message.startswith("--knowledge.pool: 'attention/skip@2'")
    assert "the student has 4 heads and the teacher 6" in message
    assert "'attention_mean/skip@2'" in message
    assert "'value_relation/skip@2'" in message


def test_cls_hidden_leaves_the_last_layer_to_the_response_of_the_same_teacher():
    pool = build("cls_hidden", "cls_hidden@2", "response@2")
    assert [type.pairs[-1] for type in pool.types[:2]] == [(6, 12), (5, 20)]
    message = refused("cls_hidden/last_1@2", "response@2")
    assert "because response@2 is in the pool" in message
    assert "'cls_hidden/6-24@2'" in message
    assert build("cls_hidden/6-24@2", "response@2").types[0].pairs == ((6, 24),)


# Teachers that do not exist.


@pytest.mark.parametrize(
    ("spec", "teachers", "there", "use"),
    [
        ("response@3", (FIRST, SECOND), "there are 2 teachers", "@1 to @2"),
        ("hidden/last@12", (FIRST, SECOND), "there are 2 teachers", "@1 to @2"),
        ("response@2", (FIRST,), "there is 1 teacher.", "no @"),
    ],
)
def test_a_teacher_that_does_not_exist_is_refused(spec, teachers, there, use):
    message = refused("label", spec, teachers=teachers)
    number = spec.partition("@")[2]
    assert message.startswith(f"--knowledge.pool: '{spec}' names teacher {number}, but {there}")
    assert f"Use {use}" in message
    assert "--teachers" in message


@pytest.mark.parametrize(
    "spec",
    ["response@0", "response@", "hidden@bert", "hidden@2/skip", "hidden/skip@-1", "hidden@02"],
)
def test_a_malformed_number_is_refused_with_the_form(spec):
    message = refused(spec)
    head = spec.partition("@")[0]
    assert message.startswith(f"--knowledge.pool: '{spec}' is malformed")
    assert f"Write '{head}', or '{head}@2'" in message


@pytest.mark.parametrize("spec", ["label@2", "label@1"])
def test_the_label_has_no_teacher(spec):
    assert f"'{spec}' names a teacher, but the gold label needs none. Write 'label'" in refused(
        spec
    )


@pytest.mark.parametrize("spec", ["response/skip@2", "embedding/last@2"])
def test_kinds_without_layers_take_no_matching(spec):
    bare = spec.replace("/skip", "").replace("/last", "")
    assert f"'{spec}' has a layer matching" in (message := refused(spec))
    assert f"Write '{bare}'" in message


# A teacher with a tokenizer of its own.


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(POOLED)))
def test_token_signals_of_other_tokens_are_refused(kind):
    message = refused(f"{kind}@2", teachers=(FIRST, FOREIGN))
    assert f"--knowledge.pool: '{kind}" in message
    assert "teacher 2 has a tokenizer of its own" in message
    assert "do not line up" in message
    for alternative in ("cls_hidden/skip@2", "response@2", "sample_similarity@2"):
        assert f"'{alternative}'" in message
        build(alternative, teachers=(FIRST, FOREIGN))


def test_the_alternative_keeps_the_matching():
    message = refused("hidden/last@2", teachers=(FIRST, FOREIGN))
    assert "'cls_hidden/last@2'" in message


@pytest.mark.parametrize("kind", POOLED)
def test_outputs_and_cls_states_of_other_tokens_are_fine(kind):
    spec = kind if kind == "label" else f"{kind}@2"
    assert len(build(spec, teachers=(FIRST, FOREIGN))) == 1


def test_other_tokens_do_not_touch_the_first_teacher():
    assert len(build(*KINDS, teachers=(FIRST, FOREIGN))) == len(KINDS)


@pytest.mark.parametrize("kind", ["response", "logits"])
def test_positions_of_other_tokens_are_refused(kind):
    message = refused(f"{kind}@2", teachers=(FIRST, FOREIGN), task="squad")
    assert message.startswith(f"--knowledge.pool: '{kind}@2'")
    assert "positions do not line up" in message
    for alternative in ("cls_hidden/skip@2", "sample_similarity@2"):
        assert f"'{alternative}'" in message
        build(alternative, teachers=(FIRST, FOREIGN), task="squad")
    build(f"{kind}@2", task="squad")


def test_alternatives_for_spans_leave_the_response_out():
    message = refused("hidden@2", teachers=(FIRST, FOREIGN), task="squad")
    assert "response" not in message
    assert "'sample_similarity@2'" in message


# Looking names up.


def test_names_may_leave_out_what_goes_without_saying():
    names = ["label", "hidden/skip", "hidden/skip@2", "response@2", "fsp/last"]
    found = {
        "label": "label",
        "hidden": "hidden/skip",
        "hidden@1": "hidden/skip",
        "hidden/skip@1": "hidden/skip",
        "hidden@2": "hidden/skip@2",
        "response@2": "response@2",
        "fsp/last": "fsp/last",
    }
    assert {given: find_name(given, names, "--x") for given in found} == found


@pytest.mark.parametrize("given", ["response", "response@1", "fsp", "hidden@3", "hidden/last"])
def test_names_outside_the_pool_are_refused(given):
    names = ["label", "hidden/skip", "hidden/skip@2", "response@2", "fsp/last"]
    with pytest.raises(UsageError, match=f"^--x: unknown .*'{given}'.*label, hidden/skip"):
        find_name(given, names, "--x")
