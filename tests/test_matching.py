import pytest

from ksel.errors import UsageError
from ksel.matching import MATCHINGS, match_layers


@pytest.mark.parametrize(
    ("matching", "student", "teacher", "pairs"),
    [
        ("skip", 6, 12, ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12))),
        ("skip", 3, 12, ((1, 4), (2, 8), (3, 12))),
        ("skip", 4, 6, ((1, 1), (2, 3), (3, 4), (4, 6))),
        ("skip", 5, 12, ((1, 2), (2, 4), (3, 7), (4, 9), (5, 12))),
        ("skip", 3, 6, ((1, 2), (2, 4), (3, 6))),
        ("last", 3, 6, ((1, 4), (2, 5), (3, 6))),
        ("spread", 6, 12, ((1, 1), (2, 3), (3, 5), (4, 8), (5, 10), (6, 12))),
        ("spread", 3, 12, ((1, 1), (2, 7), (3, 12))),
        ("spread", 3, 6, ((1, 1), (2, 4), (3, 6))),
        ("spread", 4, 6, ((1, 1), (2, 3), (3, 4), (4, 6))),
        ("spread", 2, 12, ((1, 1), (2, 12))),
        ("spread", 1, 12, ((1, 12),)),
        ("spread", 5, 5, ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5))),
        ("last", 6, 12, ((1, 7), (2, 8), (3, 9), (4, 10), (5, 11), (6, 12))),
        ("last", 3, 12, ((1, 10), (2, 11), (3, 12))),
        ("first", 3, 6, ((1, 1), (2, 2), (3, 3))),
        ("first_2", 3, 6, ((1, 1), (2, 2))),
        ("last_2", 3, 6, ((2, 5), (3, 6))),
        ("last_1", 3, 6, ((3, 6),)),
        ("1-2+3-6", 3, 6, ((1, 2), (3, 6))),
        ("0-0+3-6", 3, 6, ((0, 0), (3, 6))),
        ("3-6+1-2", 3, 6, ((1, 2), (3, 6))),
        ("1-2+1-3", 3, 6, ((1, 2), (1, 3))),
        ("10-12", 10, 12, ((10, 12),)),
    ],
)
def test_matching_gives_the_documented_pairs(matching, student, teacher, pairs):
    assert match_layers(matching, student, teacher) == pairs


@pytest.mark.parametrize("matching", ["skip", "first", "last", "spread"])
def test_named_matchings_give_every_student_layer_a_teacher_layer_of_its_own(matching):
    for teacher in range(1, 14):
        for student in range(1, teacher + 1):
            pairs = match_layers(matching, student, teacher)
            matched = [t for _, t in pairs]
            assert [s for s, _ in pairs] == list(range(1, student + 1))
            assert matched == sorted(set(matched))
            assert matched[0] >= 1
            assert matched[-1] <= teacher


@pytest.mark.parametrize("matching", ["skip", "last", "spread", "last_3"])
def test_the_last_layers_meet(matching):
    assert match_layers(matching, 5, 12)[-1] == (5, 12)


def test_last_k_of_all_student_layers_is_last():
    assert match_layers("last_4", 4, 9) == match_layers("last", 4, 9)


@pytest.mark.parametrize("matching", ["skip", "first", "last", "spread"])
def test_more_student_than_teacher_layers_are_refused_with_a_way_out(matching):
    with pytest.raises(UsageError, match=r"8 layers and the teacher 6.*last_6.*--student\.layers"):
        match_layers(matching, 8, 6)
    assert match_layers("last_6", 8, 6)[-1] == (8, 6)
    assert match_layers("8-6", 8, 6) == ((8, 6),)


@pytest.mark.parametrize("matching", ["first_0", "last_0", "first_4", "last_4", "last_99"])
def test_more_layers_than_there_are_cannot_be_counted_off(matching):
    with pytest.raises(UsageError, match=r"the student has 3 .*_1 to .*_3"):
        match_layers(matching, 3, 6)


@pytest.mark.parametrize("matching", ["4-6", "1-7", "1-1+4-6", "99-1"])
def test_pairs_outside_the_models_are_refused(matching):
    with pytest.raises(UsageError, match="layers 0 to 3 and the teacher 0 to 6"):
        match_layers(matching, 3, 6)


@pytest.mark.parametrize("matching", ["1", "1-", "1-2+", "1-2,3-4", "1-2-3", "1-+2", "01-2", "1:2"])
def test_malformed_pairs_are_refused(matching):
    with pytest.raises(UsageError, match=r"malformed layer pairs.*1-2\+3-6"):
        match_layers(matching, 3, 6)


def test_a_pair_named_twice_is_refused():
    with pytest.raises(UsageError, match="pair 1-2 twice"):
        match_layers("1-2+3-6+1-2", 3, 6)


@pytest.mark.parametrize(
    ("given", "near"), [("skpi", "skip"), ("lats", "last"), ("fist", "first"), ("Skip", "skip")]
)
def test_an_unknown_matching_gets_the_nearest_name(given, near):
    with pytest.raises(UsageError, match=f"--knowledge.pool: .*'{given}'.*Did you mean '{near}'"):
        match_layers(given, 3, 6)


@pytest.mark.parametrize("given", ["", "first_", "last_x", "last_-1", "last_02", "-1-2"])
def test_near_misses_of_names_are_unknown(given):
    with pytest.raises(UsageError, match="unknown layer matching") as error:
        match_layers(given, 3, 6)
    assert all(name in str(error.value) for name in MATCHINGS)


@pytest.mark.parametrize("matching", ["wrong", "last_9", "9-9", "1-", "1-1+1-1"])
def test_errors_name_the_knowledge_type_that_asked(matching):
    with pytest.raises(UsageError, match=r"--knowledge.pool.*'hidden/"):
        match_layers(matching, 3, 6, spec=f"hidden/{matching}")


def test_spread_is_distilberts_choice_counted_from_0():
    assert [t - 1 for _, t in match_layers("spread", 6, 12)] == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize("student", [2, 3, 4, 6])
def test_the_gap_of_the_unified_framework_is_skip(student):
    # there layers are counted from 0
    gap = [((i + 1) * 12 // student - 1) for i in range(student)]
    assert [t - 1 for _, t in match_layers("skip", student, 12)] == gap


@pytest.mark.parametrize(
    ("matching", "student", "teacher", "layers"),
    [
        ("skip", 6, 12, [2, 4, 6, 8, 10]),
        ("last", 6, 12, [7, 8, 9, 10, 11]),
        ("skip", 3, 12, [4, 8]),
        ("last", 3, 12, [10, 11]),
        ("skip", 3, 6, [2, 4]),
        ("last", 3, 6, [4, 5]),
    ],
)
def test_patient_kd_matches_all_but_the_last_student_layer(matching, student, teacher, layers):
    pairs = match_layers(matching, student, teacher)
    assert pairs[-1] == (student, teacher)
    assert pairs[:-1] == tuple(enumerate(layers, 1))


@pytest.mark.parametrize("matching", ["wrong", "1-", "9-9", "1-1+1-1"])
def test_errors_name_the_option_that_asked(matching):
    with pytest.raises(UsageError, match=r"^--student\.init: "):
        match_layers(matching, 3, 6, option="--student.init")
