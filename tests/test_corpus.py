from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

from envs.distillation import DistillationEnv
from ksel.answers import Answers, place_answers
from ksel.corpus import CORPUS_NAME, DEV_ROWS, TRAIN_ROWS, corpus, vocabulary
from ksel.evaluation import evaluate_dev
from ksel.rows import Rows
from ksel.tasks import TASKS, Task
from ksel.words import ANSWERS, QUESTIONS

made = functools.cache(corpus)

LABELLED = {name: task for name, task in TASKS.items() if not task.is_span}
SPANS = {name: task for name, task in TASKS.items() if task.is_span}

by_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
by_labelled_task = pytest.mark.parametrize("task", LABELLED.values(), ids=list(LABELLED))
by_span_task = pytest.mark.parametrize("task", SPANS.values(), ids=list(SPANS))


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def all_words(rows: Rows) -> set[str]:
    return {word for text in rows.texts + (rows.pairs or []) for word in words(text)}


@by_labelled_task
def test_rows_have_the_form_of_the_task(task: Task) -> None:
    train, dev = made(task)
    assert list(dev) == list(task.dev_splits)
    for rows, number in ((train, TRAIN_ROWS), *((rows, DEV_ROWS) for rows in dev.values())):
        assert len(rows.texts) == number
        assert (rows.pairs is None) == (task.text_pair is None)
        assert rows.pairs is None or len(rows.pairs) == number
        assert rows.labels is not None
        counts = np.unique(rows.labels, return_counts=True)[1]
        assert len(counts) == (6 if task.is_regression else len(task.labels))
        assert np.ptp(counts) <= 1
        assert rows.labels.dtype == (np.float32 if task.is_regression else np.int64)


@by_task
def test_same_seed_same_corpus(task: Task) -> None:
    first, again, other = made(task)[0], corpus(task)[0], corpus(task, seed=1)[0]
    assert first.texts == again.texts
    assert first.pairs == again.pairs
    assert first.labels is not None
    assert again.labels is not None
    assert first.labels.tolist() == again.labels.tolist()
    assert (first.answers, first.ids) == (again.answers, again.ids)
    assert first.texts != other.texts


def test_the_benchmark_is_what_its_version_says() -> None:
    train, _ = made(TASKS["qnli"])
    assert train.pairs is not None
    assert CORPUS_NAME == "ksel-corpus-v1"
    assert (train.texts[0], train.pairs[0]) == (
        "By which person was the first meal grilled?",
        "The large noodle was baked without delay.",
    ), "a changed corpus needs a new version"


def test_the_benchmark_of_questions_is_what_its_version_says() -> None:
    train, _ = made(TASKS["squad"])
    assert train.pairs is not None
    assert train.answers is not None
    assert (train.texts[0], train.pairs[0], train.answers[0]) == (
        "What was performed near Athens?",
        "The strange star was observed near Madrid. The large piano was performed near Athens. The "
        "first bread was baked in spring. The last disease was prescribed in November.",
        Answers(("The large piano",), (43,)),
    ), "a changed corpus needs a new version"


@by_span_task
def test_questions_have_the_form_of_the_task(task: Task) -> None:
    train, dev = made(task)
    for rows, number in ((train, TRAIN_ROWS), (dev["dev"], DEV_ROWS)):
        assert rows.pairs is not None
        assert rows.answers is not None
        assert rows.labels is not None
        assert rows.ids is not None
        assert len(rows.texts) == len(rows.pairs) == len(rows.answers) == number
        assert len(set(rows.ids)) == number
        assert rows.labels.tolist() == [len(answers) for answers in rows.answers]
        share = 1 / 3 if task.unanswerable else 0
        assert abs(1 - rows.labels.mean() - share) < 1 / number
        for question, context, answers in zip(rows.texts, rows.pairs, rows.answers, strict=True):
            assert place_answers(answers, context) is answers
            assert question.endswith("?")
            assert 3 <= context.count(".") <= 4
            assert 25 <= len(words(question)) + len(words(context)) <= 75


@by_span_task
def test_the_answer_is_what_is_said_of_what_is_asked(task: Task) -> None:
    """Thing, deed and kind of answer of the question meet in one statement, or there is none."""
    kinds = {form: kind for kind, forms in QUESTIONS.items() for form in forms}
    train, _ = made(task)
    asked = 0
    for question, context, answers in zip(
        train.texts, train.pairs or [], train.answers or [], strict=True
    ):
        if question.startswith("What was "):
            assert question[9:-1] in context
            continue
        form = next(form for form in kinds if question.lower().startswith(f"{form} "))
        about = question[len(form) : -1].split()
        statements = [
            one for one in context.split(".") if about[-1] in one.split() and about[-2] in one
        ]
        held = [
            answer
            for one in statements
            for answer in ANSWERS[kinds[form]]
            if answer in one.split()[4:]
        ]
        assert held == list(answers.texts)
        asked += 1
    assert asked > TRAIN_ROWS / 2


@by_span_task
def test_the_kind_of_answer_alone_leaves_a_choice(task: Task) -> None:
    """The first word of the kind asked for is far from always the answer."""
    kinds = {form: kind for kind, forms in QUESTIONS.items() for form in forms}
    train, _ = made(task)
    right = []
    for question, context, answers in zip(
        train.texts, train.pairs or [], train.answers or [], strict=True
    ):
        form = next((f for f in kinds if question.lower().startswith(f"{f} ")), None)
        if form is not None:
            fitting = [w for w in words(context) if w in map(str.lower, ANSWERS[kinds[form]])]
            right.append([text.lower() for text in answers.texts] == fitting[:1])
    assert np.mean(right) < 0.7


@by_task
def test_no_dev_row_is_a_training_row(task: Task) -> None:
    train, dev = made(task)
    nothing = [None] * TRAIN_ROWS
    seen = set(zip(train.texts, train.pairs or nothing, strict=True))
    assert len(seen) == TRAIN_ROWS
    for rows in dev.values():
        pairs = zip(rows.texts, rows.pairs or [None] * DEV_ROWS, strict=True)
        assert seen.isdisjoint(pairs)


@by_labelled_task
def test_texts_are_short(task: Task) -> None:
    rows = made(task)[0]
    lengths = [
        len(words(a)) + len(words(b))
        for a, b in zip(rows.texts, rows.pairs or [""] * len(rows), strict=True)
    ]
    assert min(lengths) >= 8
    assert max(lengths) <= 32


def test_vocabulary_is_closed_and_holds_no_spare_word() -> None:
    used = set()
    for task in TASKS.values():
        train, dev = made(task)
        used |= all_words(train).union(*map(all_words, dev.values()))
    assert vocabulary() == sorted(used)


@by_labelled_task
def test_no_single_word_gives_the_label_away(task: Task) -> None:
    """A linear model of word counts stays far from the 90 % that a teacher reaches."""
    train, dev = made(task)
    names = {word: number for number, word in enumerate(vocabulary())}

    def counts(rows: Rows) -> np.ndarray:
        table = np.zeros((len(rows), 2 * len(names) + 1))
        table[:, -1] = 1
        for row in range(len(rows)):
            for word in words(rows.texts[row]):
                table[row, names[word]] += 1
            for word in words(rows.pairs[row]) if rows.pairs else []:
                table[row, len(names) + names[word]] += 1
        return table

    tests = dev[task.dev_splits[0]]
    assert train.labels is not None
    assert tests.labels is not None
    size = 1 if task.is_regression else len(task.labels)
    target = train.labels[:, None] if size == 1 else np.eye(size)[train.labels]
    x = counts(train)
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ target)
    predicted = counts(tests) @ weights
    if size == 1:
        assert abs(np.corrcoef(predicted[:, 0], tests.labels)[0, 1]) < 0.5
    else:
        assert (predicted.argmax(1) == tests.labels).mean() < 0.8


@pytest.mark.parametrize("name", ["qnli", "mrpc"])
def test_labels_follow_the_names_of_the_classes(name: str) -> None:
    """In the pair that fits, a question for a place meets a sentence with a place."""
    task = TASKS[name]
    train, _ = made(task)
    fits = next(i for i, label in enumerate(task.labels) if not label.startswith("not_"))
    assert train.pairs is not None
    assert train.labels is not None
    asked = np.array([text.startswith("Where") for text in train.texts])
    counted = np.array([text.endswith("times.") for text in train.pairs])
    assert asked[train.labels == fits].sum() > 100
    assert not (asked & counted & (train.labels == fits)).any()
    assert (asked & counted & (train.labels != fits)).any()


@pytest.mark.slow
def test_the_teacher_knows_what_a_small_student_does_not_learn_alone(tmp_path: Path) -> None:
    """There is something to transfer: more than 0.9 against at least 5 points less."""
    setup = tiny.make_setup(
        {
            "task": "qnli",
            "data": "builtin",
            "teacher": "tiny",
            "store": str(tmp_path),
            "threads": 1,
            "rows": {"reward": 32},
            "student": {
                "layers": 2, "width": 64, "heads": 4, "feed_forward": 128, "init": "random",
            },
            "knowledge": {"pool": ["label"]},
            "optim": {"max_updates": 200, "learning_rate": 5e-4},
        }
    )  # fmt: skip
    env = DistillationEnv(setup=setup)
    env.reset(seed=0, options={"measure": False})
    terminated = False
    while not terminated:
        *_, terminated, _, info = env.step([1])
        assert "reason" not in info
    teacher, student = (
        evaluate_dev(model, setup.task, setup.dev, rows=None, batch_size=128, device="cpu")
        for model in (setup.teacher.model, setup.student)
    )
    print(f"teacher {teacher['accuracy']:.3f}, student {student['accuracy']:.3f}")
    assert teacher["accuracy"] > 0.9
    assert student["accuracy"] < teacher["accuracy"] - 0.05
