"""Gold answers: every form they come in, and that they stand where they say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from ksel.answers import Answers, official_table, parse_answers, place_answers
from ksel.config import CustomTaskConfig, RowsConfig
from ksel.data import Source, limit_train, load_source, three_way
from ksel.errors import UsageError
from ksel.rows import Rows, read_rows
from ksel.sources import custom_task
from ksel.tasks import TASKS, Task

V1, V2 = TASKS["squad"], TASKS["squad_v2"]
TOWER = "The tower is in Paris, near the Seine."


def answer(text: str, start: int) -> dict[str, list[Any]]:
    return {"text": [text], "answer_start": [start]}


NONE: dict[str, list[Any]] = {"text": [], "answer_start": []}


def frame(*answers: Any, **changed: Any) -> pd.DataFrame:
    n = len(answers)
    columns = {
        "id": [f"q{i}" for i in range(n)],
        "context": [TOWER] * n,
        "question": [f"Where is it? {i}" for i in range(n)],
        "answers": list(answers),
    }
    return pd.DataFrame(columns | changed)


def write(table: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    as_text = table.assign(answers=[json.dumps(a) for a in table["answers"]])
    match path.suffix:
        case ".parquet":
            table.to_parquet(path)
        case ".csv":
            as_text.to_csv(path, index=False)
        case _:
            table.to_json(path, orient="records", lines=True)
    return path


def official(*questions: dict[str, Any], context: str = TOWER) -> dict[str, Any]:
    return {
        "version": "x",
        "data": [{"title": "Towers", "paragraphs": [{"context": context, "qas": [*questions]}]}],
    }


def quiet(_: str) -> None:
    pass


def load(task: str, folder: Path, **custom: Any) -> Source:
    return load_source(task, str(folder), CustomTaskConfig(**custom), quiet)


# one cell


@pytest.mark.parametrize(
    "value",
    [
        {"text": ["Paris", "Seine"], "answer_start": [16, 32]},
        {"text": np.array(["Paris", "Seine"], object), "answer_start": np.array([16, 32], "i4")},
        {"text": ("Paris", "Seine"), "answer_start": [16.0, np.float64(32)]},
        [{"text": "Paris", "answer_start": 16}, {"text": "Seine", "answer_start": 32}],
        np.array([{"text": "Paris", "answer_start": 16}, {"text": "Seine", "answer_start": 32}]),
        '{"text": ["Paris", "Seine"], "answer_start": [16, 32]}',
        '[{"text": "Paris", "answer_start": 16}, {"text": "Seine", "answer_start": 32}]',
    ],
)
def test_answers_of_every_form_are_the_same(value: Any) -> None:
    assert parse_answers(value) == Answers(("Paris", "Seine"), (16, 32))


@pytest.mark.parametrize("value", [NONE, [], "[]", json.dumps(NONE), np.array([])])
def test_no_answer_of_every_form_is_the_same(value: Any) -> None:
    assert parse_answers(value) == Answers()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "None is not of the form"),
        (float("nan"), "nan is not of the form"),
        ("Paris", "'Paris' is not JSON"),
        ("{'text': []}", "is not JSON"),
        (7, "7 is not of the form"),
        ({"text": ["Paris"]}, "is not of the form"),
        ({"text": "Paris", "answer_start": 16}, "is not of the form"),
        ({"text": ["Paris"], "answer_start": [16, 17]}, "is not of the form"),
        (["Paris"], "is not of the form"),
        (answer("Paris", -1), "answer_start is -1, not"),
        (answer("Paris", 1.5), "answer_start is 1.5, not"),
        (answer("Paris", True), "answer_start is True, not"),
        (answer("Paris", "16"), "answer_start is '16', not"),  # type: ignore[arg-type]
        (answer(" ", 3), "the answer ' ' is not text, or is empty"),
        (answer(3, 16), "the answer 3 is not text"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_answer_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_answers(value)


def test_a_long_cell_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError) as caught:
        parse_answers("x " * 5000)
    assert len(str(caught.value)) < 200


def test_answers_in_their_place_are_left_alone() -> None:
    given = Answers(("Paris", "Seine"), (16, 32))
    assert place_answers(given, TOWER) is given


@pytest.mark.parametrize("start", [14, 15, 17, 18])
def test_an_answer_a_little_beside_its_start_is_taken_where_it_stands(start: int) -> None:
    assert place_answers(Answers(("Paris",), (start,)), TOWER).starts == (16,)


def test_the_nearest_place_is_taken() -> None:
    assert place_answers(Answers(("a",), (2,)), "a xxa").starts == (0,)
    assert place_answers(Answers(("a",), (2,)), "axxa").starts == (3,)


@pytest.mark.parametrize(
    ("gold", "start", "message"),
    [
        ("Paris", 13, r"'Paris' is not at character 13 \('in Pa' is\); it stands at 16"),
        ("Paris", 900, r"not at character 900 \('' is\); it stands at 16"),
        ("London", 16, r"\('Paris,' is\); it stands nowhere in the context"),
        ("paris", 16, "nowhere"),
    ],
)
def test_an_answer_that_is_elsewhere_is_refused(gold: str, start: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place_answers(Answers((gold,), (start,)), TOWER)


# the original files


def test_the_original_files_become_tables() -> None:
    first = {
        "id": "1",
        "question": "Where?",
        "is_impossible": False,
        "answers": [{"text": "Paris", "answer_start": 16}],
    }
    second = {
        "id": "2",
        "question": "Who?",
        "is_impossible": True,
        "answers": [{"text": "Seine", "answer_start": 32}],
        "plausible_answers": [{"text": "Seine", "answer_start": 32}],
    }
    table = official_table(official(first, second)["data"])
    assert table["id"].tolist() == ["1", "2"]
    assert table["title"].tolist() == ["Towers"] * 2
    assert [len(parse_answers(cell)) for cell in table["answers"]] == [1, 0]


def test_a_file_without_answers_has_no_column_of_them() -> None:
    table = official_table(official({"id": "1", "question": "Where?"})["data"])
    assert list(table.columns) == ["id", "title", "context", "question"]


@pytest.mark.parametrize("broken", [{}, {"paragraphs": [{}]}, "text", {"paragraphs": [7]}])
def test_other_json_is_refused_with_the_form(tmp_path: Path, broken: Any) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"data": [broken]}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"f.json cannot be read as json .*not of SQuAD's form"):
        read_rows(path, V1, True)


# files of rows


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "json"])
def test_every_format_gives_the_same_questions(tmp_path: Path, ending: str) -> None:
    table = frame(answer("Paris", 16), answer("the Seine", 28))
    rows = read_rows(write(table, tmp_path / f"f.{ending}"), V1, True)
    assert rows.texts == ["Where is it? 0", "Where is it? 1"]
    assert rows.pairs == [TOWER, TOWER]
    assert rows.answers == [Answers(("Paris",), (16,)), Answers(("the Seine",), (28,))]
    assert rows.ids == ["q0", "q1"]
    assert rows.labels is not None
    assert rows.labels.tolist() == [1, 1]
    assert rows.labels.dtype == np.int64


def test_tsv_holds_the_answers_as_bare_json(tmp_path: Path) -> None:
    cell = json.dumps(answer("Paris", 16))
    path = tmp_path / "f.tsv"
    path.write_text(f"question\tcontext\tanswers\nWhere?\t{TOWER}\t{cell}\n", encoding="utf-8")
    assert read_rows(path, V1, True).answers == [Answers(("Paris",), (16,))]


def test_an_original_file_gives_rows(tmp_path: Path) -> None:
    gold = [{"text": "Paris", "answer_start": 16}, {"text": "in Paris", "answer_start": 13}]
    path = tmp_path / "f.json"
    path.write_text(json.dumps(official({"id": "a", "question": "Where?", "answers": gold})))
    rows = read_rows(path, V1, True)
    assert (rows.ids, rows.texts, rows.pairs) == (["a"], ["Where?"], [TOWER])
    assert rows.answers == [Answers(("Paris", "in Paris"), (16, 13))]


def test_a_missing_id_is_the_rows_number(tmp_path: Path) -> None:
    table = frame(answer("Paris", 16), answer("Paris", 16))
    path = write(table.assign(id=["a", None]), tmp_path / "a.jsonl")
    assert read_rows(path, V1, True).ids == ["a", "1"]
    path = write(table.drop(columns="id").assign(idx=[7, 9]), tmp_path / "b.jsonl")
    assert read_rows(path, V1, True).ids == ["7", "9"]


def test_questions_for_predictions_need_no_answers(tmp_path: Path) -> None:
    path = write(frame("?", "?"), tmp_path / "a.jsonl")
    assert read_rows(path, V1, False).answers is None
    path = write(frame(NONE, NONE).drop(columns="id"), tmp_path / "b.jsonl")
    rows = read_rows(path, V1, False)
    assert (rows.labels, rows.ids) == (None, ["0", "1"])


def test_a_file_without_any_answer_is_unlabelled_where_all_must_have_one(tmp_path: Path) -> None:
    path = write(frame(NONE, NONE), tmp_path / "test.jsonl")
    rows = read_rows(path, V1, True)
    assert rows.labels is None
    assert rows.answers is None
    rows = read_rows(path, V2, True)
    assert rows.labels is not None
    assert rows.labels.tolist() == [0, 0]


def test_a_question_without_an_answer_needs_a_task_that_has_such(tmp_path: Path) -> None:
    path = write(frame(answer("Paris", 16), NONE), tmp_path / "f.jsonl")
    with pytest.raises(UsageError, match=r"data row 2 has no answer.*--task squad_v2"):
        read_rows(path, V1, True)
    own = custom_task(
        CustomTaskConfig(kind="span", text="question", text_pair="context", label="answers")
    )
    with pytest.raises(UsageError, match=r"--custom.kind span_v2"):
        read_rows(path, own, True)
    rows = read_rows(path, V2, True)
    assert rows.labels is not None
    assert rows.labels.tolist() == [1, 0]


def test_wrong_answers_name_file_row_and_place(tmp_path: Path) -> None:
    path = write(frame(answer("Paris", 16), answer("Seine", 3)), tmp_path / "f.jsonl")
    with pytest.raises(UsageError, match=r"f.jsonl: column 'answers' in data row 2: .*at 32"):
        read_rows(path, V1, True)
    path = write(frame("x", "y"), tmp_path / "g.jsonl")
    with pytest.raises(UsageError, match=r"g.jsonl: column 'answers' in data row 1: 'x' is not"):
        read_rows(path, V1, True)


def test_moved_answers_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    path = write(frame(answer("Paris", 15), answer("Seine", 32)), tmp_path / "f.jsonl")
    rows = read_rows(path, V1, True, say=said.append)
    assert rows.answers is not None
    assert rows.answers[0].starts == (16,)
    assert len(said) == 1
    assert "in 1 rows an answer stands up to 2 characters beside" in said[0]
    said.clear()
    read_rows(write(frame(answer("Paris", 16)), tmp_path / "g.jsonl"), V1, True, say=said.append)
    assert said == []


def test_rows_are_taken_with_ids_and_answers() -> None:
    rows = Rows(
        ["a", "b", "c"],
        ["x", "y", "z"],
        np.array([1, 0, 1]),
        np.arange(3),
        [Answers(("x",), (0,)), Answers(), Answers(("z",), (0,))],
        ["i", "j", "k"],
    )
    taken = rows.take(np.array([2, 1]))
    assert (taken.texts, taken.pairs, taken.ids) == (["c", "b"], ["z", "y"], ["k", "j"])
    assert taken.answers == [Answers(("z",), (0,)), Answers()]


# sources


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("squad", ("train-v1.1.json", "dev-v1.1.json")),
        ("squad_v2", ("train-v2.0.json", "dev-v2.0.json")),
        ("squad", ("train.json", "validation.json")),
    ],
)
@pytest.mark.parametrize("place", [".", "PLACE"])
def test_folders_may_hold_the_original_files(
    tmp_path: Path, task: str, names: tuple[str, str], place: str
) -> None:
    gold = [{"text": "Paris", "answer_start": 16}]
    question = {"id": "a", "question": "Where?", "answers": gold}
    folder = tmp_path / place.replace("PLACE", task)
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(json.dumps(official(question)), encoding="utf-8")
    loaded = load(task, tmp_path)
    assert loaded.train.answers == [Answers(("Paris",), (16,))]
    assert list(loaded.dev) == ["dev"]
    (folder / "train.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match="hold the same split"):
        load(task, tmp_path)


def test_files_of_the_other_version_are_not_taken(tmp_path: Path) -> None:
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="no train file"):
        load("squad", tmp_path)


def write_both(folder: Path, train: pd.DataFrame, dev: pd.DataFrame) -> Path:
    write(train, folder / "train.jsonl")
    write(dev, folder / "dev.jsonl")
    return folder


def test_a_training_file_needs_an_answer_and_a_dev_file_too(tmp_path: Path) -> None:
    some = frame(answer("Paris", 16), answer("Seine", 32))
    with pytest.raises(UsageError, match=r"train split holds no question that has an answer"):
        load("squad_v2", write_both(tmp_path / "a", frame(NONE, NONE), some))
    with pytest.raises(UsageError, match=r"split dev has no answers, so it cannot"):
        load("squad", write_both(tmp_path / "b", some, frame(NONE)))
    loaded = load("squad_v2", write_both(tmp_path / "c", some, frame(NONE)))
    assert loaded.dev["dev"].labels is not None
    assert loaded.dev["dev"].labels.tolist() == [0]


def test_draws_keep_the_share_of_questions_without_an_answer(tmp_path: Path) -> None:
    answers = [NONE if i % 4 == 0 else answer("Paris", 16) for i in range(100)]
    source = load("squad_v2", write_both(tmp_path, frame(*answers), frame(*answers)))
    train, reward, dev = three_way(source, RowsConfig(train=80, reward=20, dev=40), seed=0)
    for rows, number in ((train, 60), (reward, 20), (dev["dev"], 40)):
        assert rows.labels is not None
        assert rows.answers is not None
        assert len(rows) == number
        assert rows.labels.sum() == number * 3 / 4
        assert [len(one) for one in rows.answers] == rows.labels.tolist()
    limited = limit_train(source, RowsConfig(train=80)).train
    assert sorted([*(train.ids or ()), *(reward.ids or ())]) == sorted(limited.ids or ())


def test_a_draw_without_any_answer_is_refused(tmp_path: Path) -> None:
    answers = [answer("Paris", 16), *[NONE] * 99]
    source = load("squad_v2", write_both(tmp_path, frame(*answers), frame(*answers)))
    with pytest.raises(UsageError, match=r"--rows.train: a draw of 10 rows .*no question"):
        limit_train(source, RowsConfig(train=10))


@pytest.mark.parametrize(("task", "configuration"), [("squad", "plain_text"), ("squad_v2",) * 2])
def test_the_hub_gives_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, task: str, configuration: str
) -> None:
    calls: list[Any] = []

    def load_dataset(*names: str) -> dict[str, Any]:
        calls.append(names)
        table = frame(answer("Paris", 16))
        return dict.fromkeys(("train", "validation"), SimpleNamespace(to_pandas=lambda: table))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    loaded = load_source(task, "hub", CustomTaskConfig(), quiet)
    assert calls == [(f"rajpurkar/{task}", configuration)]
    assert loaded.origin == f"hub rajpurkar/{task}"
    assert loaded.dev["dev"].answers == [Answers(("Paris",), (16,))]


def test_the_built_in_corpus_stands_in_aloud() -> None:
    said: list[str] = []
    loaded = load_source("squad", None, CustomTaskConfig(), said.append)
    assert loaded.builtin
    assert "not scores of squad" in said[0]


# tasks of one's own


def test_a_span_task_of_ones_own(tmp_path: Path) -> None:
    table = frame(answer("Paris", 16), NONE).rename(
        columns={"question": "q", "context": "c", "answers": "a"}
    )
    for name in ("train", "dev"):
        table.to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    loaded = load("custom", tmp_path, kind="span_v2", text="q", text_pair="c", label="a")
    assert loaded.task.is_span
    assert loaded.task.metrics == ("f1", "exact_match")
    assert loaded.train.labels is not None
    assert loaded.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"--custom.kind span: name the column of the context in --custom.text_pair"),
        ({"text_pair": "c", "labels": ["a", "b"]}, r"--custom.labels has no effect beside"),
        ({"text_pair": "c", "metrics": ["f1"]}, r"--custom.metrics has no effect beside"),
        ({"text_pair": "c", "score_range": (0, 5)}, r"--custom.score_range has no effect"),
        ({"text_pair": "c", "text": ""}, r"--custom.text"),
    ],
)
def test_contradicting_settings_of_a_span_task_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        custom_task(CustomTaskConfig(kind="span", **changes))


def test_the_table_knows_the_kinds() -> None:
    kinds = {name: task.kind for name, task in TASKS.items()}
    assert [name for name, kind in kinds.items() if kind == "span"] == ["squad", "squad_v2"]
    assert [name for name, kind in kinds.items() if kind == "single"] == ["cola", "sst2"]
    assert [name for name, kind in kinds.items() if kind == "regression"] == ["stsb"]
    for task in (V1, V2):
        assert (task.is_span, task.is_regression, task.num_outputs) == (True, False, 2)
    assert [V1.unanswerable, V2.unanswerable] == [False, True]


def own_kind(**changes: Any) -> Task:
    return custom_task(CustomTaskConfig(**changes))


def test_custom_kinds_follow_from_labels_and_pairs() -> None:
    classes = {"labels": ["a", "b"]}
    assert own_kind(**classes).kind == "single"
    assert own_kind(text_pair="b", **classes).kind == "pair"
    assert own_kind(text_pair="b", metrics=["pearson"]).kind == "regression"
    assert own_kind(kind="span", text_pair="b").kind == "span"
