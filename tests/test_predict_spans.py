"""Answers of a student that was trained on questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from ksel import predict
from ksel.cli import guard
from ksel.evaluation import score_answers
from ksel.files import write_json, write_text
from ksel.settings import config_from_dict, config_to_yaml
from ksel.tasks import get_task

LENGTH, QUESTION = 40, 8

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_spans(tmp_path_factory.mktemp("spans"), none=0.3)


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students")
    return {f: tiny.write_teacher(root / f, f, "squad_v2") for f in ("bert", "roberta")}


@pytest.fixture
def run(data: Path, students: dict[str, Path], tmp_path: Path) -> Run:
    """A run's folder with settings and a student: ``run("squad", family="roberta")``."""

    def make(task: str = "squad_v2", family: str = "bert", **span: Any) -> Path:
        folder = tmp_path / f"run-{task}-{family}"
        folder.mkdir(exist_ok=True)
        values = tiny.settings(
            data,
            students[family],
            tmp_path,
            task=task,
            batching={"max_length": LENGTH},
            span={"max_question": QUESTION, "stride": 8, **span},
        )
        write_text(folder / "config.yaml", config_to_yaml(config_from_dict(values)))
        if not (folder / "student").exists():
            (folder / "student").symlink_to(students[family])
        return folder

    return make


def call(*words: object) -> int:
    return guard(predict.main, [str(word) for word in words])


def by_hand(folder: Path, question: str, context: str) -> tuple[str, float]:
    """The best answer of a short context and its score, by loops."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    places = encoded.pop("offset_mapping")[0].tolist()
    assert len(places) <= LENGTH
    with torch.no_grad():
        output = model(**encoded)
    inside = [t for t, part in enumerate(encoded.sequence_ids(0)) if part == 1]
    pairs = [
        (float(output.start_logits[0, s] + output.end_logits[0, e]), s, e)
        for s in inside
        for e in inside
        if s <= e < s + 30
    ]
    score, start, end = max(pairs)
    return context[places[start][0] : places[end][1]], score


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_answers_are_those_of_the_plain_model(
    run: Run, data: Path, students: dict[str, Path], family: str
) -> None:
    folder = run("squad", family, n_best=100)
    table = pd.read_parquet(data / "dev.parquet")
    short = table[table["context"].str.split().str.len() < 26]
    assert len(short) > 5
    short.to_json(folder / "in.jsonl", orient="records", lines=True)
    assert call(folder, "--input", folder / "in.jsonl") == 0
    found = json.loads((folder / "predictions" / "in.json").read_text(encoding="utf-8"))
    assert call(folder, "--input", folder / "in.jsonl", "--format", "tsv") == 0
    rows = pd.read_csv(folder / "predictions" / "in.tsv", sep="\t").set_index("id")
    assert list(found) == short["id"].tolist()
    for row in short.itertuples():
        text, score = by_hand(students[family], row.question, row.context)  # type: ignore[arg-type]
        assert found[row.id] == text
        assert rows.answer[row.id] == text
        assert rows.score[row.id] == pytest.approx(score, abs=1e-4)


def test_the_official_files_are_written_and_scored(
    run: Run, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    assert call(folder, "--input", data / "dev.parquet", "--score") == 0
    out = capsys.readouterr().out
    found = json.loads((folder / "predictions" / "dev.json").read_text(encoding="utf-8"))
    odds = json.loads((folder / "predictions" / "dev.null_odds.json").read_text(encoding="utf-8"))
    table = pd.read_parquet(data / "dev.parquet")
    assert list(found) == list(odds) == table["id"].tolist()
    assert "(20 predictions, format json)" in out
    golds = [tuple(cell["text"]) for cell in table["answers"]]
    expected = score_answers(get_task("squad_v2"), list(found.values()), golds)
    for name, value in expected.items():
        assert f"{name}: {value:.4f} on dev.parquet" in out
    for name, answer in found.items():
        assert (answer == "") == (odds[name] > 0)
    contexts = dict(zip(table["id"], table["context"], strict=True))
    assert all(answer in contexts[name] for name, answer in found.items())


def test_the_threshold_of_the_run_decides(run: Run, data: Path) -> None:
    answers = {}
    for threshold in (-1e6, 1e6):
        folder = run(null_threshold=threshold)
        assert call(folder, "--input", data / "dev.parquet", "--overwrite") == 0
        text = (folder / "predictions" / "dev.json").read_text(encoding="utf-8")
        answers[threshold] = set(map(bool, json.loads(text).values()))
    assert answers == {-1e6: {False}, 1e6: {True}}


def test_where_every_question_has_an_answer_there_are_no_margins(run: Run, data: Path) -> None:
    folder = run("squad")
    table = pd.read_parquet(data / "dev.parquet")
    table[[len(cell["text"]) > 0 for cell in table["answers"]]].to_parquet(folder / "in.parquet")
    assert call(folder, "--input", folder / "in.parquet", "--score") == 0
    assert {path.name for path in (folder / "predictions").iterdir()} == {"in.json"}
    found = json.loads((folder / "predictions" / "in.json").read_text(encoding="utf-8"))
    assert all(found.values())


def test_original_files_are_read(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    table = pd.read_parquet(data / "dev.parquet")
    articles = []
    for row in table.itertuples():
        gold = row.answers
        answers = [
            {"text": text, "answer_start": int(start)}
            for text, start in zip(gold["text"], gold["answer_start"], strict=True)  # type: ignore[index,call-overload]
        ]
        question = {"id": row.id, "question": row.question, "answers": answers}
        question["is_impossible"] = not answers
        articles.append({"title": "", "paragraphs": [{"context": row.context, "qas": [question]}]})
    path = tmp_path / "dev-v2.0.json"
    write_json(path, {"version": "v2.0", "data": articles})
    assert call(folder, "--input", path, "--score") == 0
    assert call(folder, "--input", data / "dev.parquet", "--score") == 0
    predictions = folder / "predictions"
    texts = [(predictions / name).read_text() for name in ("dev-v2.0.json", "dev.json")]
    assert texts[0] == texts[1]
    assert "f1: " in capsys.readouterr().out


def test_json_lines_hold_the_candidates(run: Run, data: Path, tmp_path: Path) -> None:
    folder = run(n_best=5)
    out = tmp_path / "out.jsonl"
    assert call(folder, "--input", data / "dev.parquet", "--output", out) == 0
    assert call(folder, "--input", data / "dev.parquet") == 0
    found = json.loads((folder / "predictions" / "dev.json").read_text(encoding="utf-8"))
    odds = json.loads((folder / "predictions" / "dev.null_odds.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    table = pd.read_parquet(data / "dev.parquet")
    assert [record["id"] for record in records] == table["id"].tolist()
    for record, context in zip(records, table["context"], strict=True):
        best = record["n_best"]
        assert record["answer"] == found[record["id"]]
        assert record["null_odds"] == pytest.approx(odds[record["id"]], rel=1e-6)
        assert len(best) <= 6
        assert [one["score"] for one in best] == sorted((o["score"] for o in best), reverse=True)
        assert sum(one["probability"] for one in best) == pytest.approx(1.0, abs=1e-6)
        assert all(context[one["start"] : one["end"]] == one["answer"] for one in best)
        given = [one for one in best if one["answer"]]
        assert given[0]["score"] == pytest.approx(record["score"])
        assert sum(one["answer"] == "" for one in best) == 1


def test_tables_have_a_row_for_each_question(run: Run, data: Path, tmp_path: Path) -> None:
    folder = run()
    table = pd.read_parquet(data / "dev.parquet").drop(columns=["answers", "id"])
    table["idx"] = np.arange(len(table)) + 100
    table.to_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out.tsv"
    assert call(folder, "--input", tmp_path / "in.parquet", "--output", out) == 0
    found = pd.read_csv(out, sep="\t", keep_default_na=False)
    assert list(found.columns) == ["idx", "id", "answer", "score", "null_odds"]
    assert found["idx"].tolist() == found["id"].tolist() == table["idx"].tolist()


def test_a_context_without_words_has_no_score(run: Run, tmp_path: Path) -> None:
    folder = run()
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "where", "context": " ", "id": "a"}\n', encoding="utf-8")
    out = tmp_path / "out.jsonl"
    assert call(folder, "--input", path, "--output", out) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["answer"], record["score"], record["null_odds"]) == ("", None, 1e6)


def test_mistakes_end_with_one_message(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    table = pd.read_parquet(data / "dev.parquet")
    table.assign(id="same").to_parquet(tmp_path / "twice.parquet")
    table.drop(columns="answers").to_parquet(tmp_path / "bare.parquet")
    table.drop(columns="context").to_parquet(tmp_path / "short.parquet")
    wrong = [{"text": ["nowhere"], "answer_start": [0]}] * len(table)
    table.assign(answers=wrong).to_parquet(tmp_path / "wrong.parquet")
    for name, words, part in (
        ("twice", [], "--input: "),
        ("twice", [], "the id 'same' in data row 2 has come before"),
        ("bare", ["--score"], "no column 'answers', or all without an answer"),
        ("short", [], "has no column 'context' for task squad_v2"),
        ("wrong", ["--score"], "the answer 'nowhere' is not at character 0"),
        ("bare", ["--format", "glue"], "not on the GLUE leaderboard. Use json or tsv or jsonl"),
        ("bare", ["--output", tmp_path / "out.txt"], "does not end in .json or .tsv or .jsonl"),
    ):
        assert call(folder, "--input", tmp_path / f"{name}.parquet", *words) == 2
        assert part in capsys.readouterr().err
    assert not (folder / "predictions").exists()
    assert call(folder, "--input", tmp_path / "wrong.parquet") == 0
    assert "no metrics: --input" in capsys.readouterr().out
    assert call(folder, "--input", tmp_path / "twice.parquet", "--format", "jsonl") == 0


def test_neither_file_is_overwritten(
    run: Run, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    (folder / "predictions").mkdir()
    (folder / "predictions" / "dev.null_odds.json").write_text("mine", encoding="utf-8")
    assert call(folder, "--input", data / "dev.parquet") == 2
    assert "dev.null_odds.json exists already" in capsys.readouterr().err
    assert not (folder / "predictions" / "dev.json").exists()
    assert call(folder, "--input", data / "dev.parquet", "--overwrite") == 0


def test_a_classifier_is_no_student_of_questions(
    run: Run, data: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    (folder / "student").unlink()
    (folder / "student").symlink_to(tiny_teacher)
    assert call(folder, "--input", data / "dev.parquet") == 2
    assert "do not fit its config.json" in capsys.readouterr().err
