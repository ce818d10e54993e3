from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_run import make_run

from ksel import predict
from ksel.cli import guard
from ksel.files import write_json
from ksel.predict import Predictions, glue_values, leaderboard_file
from ksel.tasks import get_task


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # dropout, so that a student left in training mode would be noticed
    folder = tmp_path_factory.mktemp("predict")
    return make_run(folder, tiny_data, tiny_teacher, student={"dropout": 0.5})


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def texts(tiny_data: Path, tmp_path: Path) -> Path:
    """A tsv with the dev texts and other numbers, without labels."""
    frame = pd.read_parquet(tiny_data / "dev.parquet").drop(columns=["label"])
    frame["idx"] += 1000
    path = tmp_path / "texts.tsv"
    frame.to_csv(path, sep="\t", index=False)
    return path


def call(*words: object) -> int:
    return guard(predict.main, [str(word) for word in words])


def test_predictions_are_those_of_a_pipeline(run: Path, texts: Path) -> None:
    assert call(run, "--input", texts, "--batch", 7) == 0
    found = pd.read_csv(run / "predictions" / "texts.tsv", sep="\t")
    labels = ["entailment", "not_entailment"]
    assert list(found.columns) == ["idx", "prediction", *(f"p_{name}" for name in labels)]
    frame = pd.read_csv(texts, sep="\t")
    classify = transformers.pipeline("text-classification", str(run / "student"), top_k=None)
    pairs = [
        {"text": a, "text_pair": b} for a, b in zip(frame.sentence1, frame.sentence2, strict=True)
    ]
    for row, answers in zip(found.itertuples(), classify(pairs), strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert row.prediction == max(scores, key=lambda name: scores[name])
        for name in labels:
            assert getattr(row, f"p_{name}") == pytest.approx(scores[name], abs=1e-6)
    assert found.idx.tolist() == frame.idx.tolist()


def test_a_labelled_file_is_scored_as_in_the_summary(
    run: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, "--input", tiny_data / "dev.parquet", "--score") == 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    accuracy = summary["students"][0]["metrics"]["accuracy"]
    out = capsys.readouterr().out
    assert f"accuracy: {accuracy:.4f} on dev.parquet" in out
    assert "(40 predictions, format tsv)" in out


def test_without_labels_nothing_is_scored(
    run: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, "--input", texts) == 0
    assert "accuracy" not in capsys.readouterr().out
    frame = pd.read_csv(texts, sep="\t")
    hidden = tmp_path / "hidden.csv"
    frame.assign(label=-1).to_csv(hidden, index=False)
    odd = tmp_path / "odd.jsonl"
    frame.assign(label="perhaps").to_json(odd, orient="records", lines=True)
    assert call(run, "--input", odd) == 0
    assert "no metrics: --input" in capsys.readouterr().out
    for path, part in ((texts, "no column 'label'"), (hidden, "all -1"), (odd, "'perhaps'")):
        assert call(run, "--input", path, "--score", "--overwrite") == 2
        assert part in capsys.readouterr().err


def test_jsonl_holds_the_same(run: Path, texts: Path, tmp_path: Path) -> None:
    assert call(run, "--input", texts) == 0
    assert call(run, "--input", texts, "--output", tmp_path / "out.jsonl") == 0
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    table = pd.read_csv(run / "predictions" / "texts.tsv", sep="\t")
    assert [json.loads(line) for line in lines] == table.to_dict(orient="records")


def test_glue_format_has_the_leaderboards_name_and_columns(
    run: Path, texts: Path, tmp_path: Path
) -> None:
    assert call(run, "--input", texts, "--format", "glue") == 0
    lines = (run / "predictions" / "RTE.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index\tprediction"
    plain = tmp_path / "plain.tsv"
    assert call(run, "--input", texts, "--output", plain) == 0
    names = pd.read_csv(plain, sep="\t").prediction.tolist()
    assert lines[1:] == [f"{1000 + i}\t{name}" for i, name in enumerate(names)]
    folder = tmp_path / "folder"
    assert call(run, "--input", texts, "--format", "glue", "--output", f"{folder}/") == 0
    assert (folder / "RTE.tsv").read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cola", ["1", "0"]),
        ("sst2", ["1", "0"]),
        ("mrpc", ["1", "0"]),
        ("qqp", ["1", "0"]),
        ("wnli", ["1", "0"]),
        ("qnli", ["not_entailment", "entailment"]),
        ("rte", ["not_entailment", "entailment"]),
        ("mnli", ["neutral", "entailment"]),
    ],
)
def test_glue_wants_numbers_or_names(task: str, expected: list[str]) -> None:
    labels = get_task(task).labels
    values = np.zeros((2, len(labels)))
    values[0, 1] = values[1, 0] = 1.0
    predictions = Predictions(np.arange(2), labels, values)
    assert glue_values(predictions, get_task(task)) == expected


def test_glue_cuts_scores_to_their_range() -> None:
    values = np.array([[-0.5], [2.123456], [7.0]])
    predictions = Predictions(np.arange(3), (), values)
    assert glue_values(predictions, get_task("stsb")) == ["0.00000", "2.12346", "5.00000"]


def test_mnli_has_two_files() -> None:
    names = {stem: leaderboard_file(get_task("mnli"), stem) for stem in ("test_matched", "test")}
    assert set(names.values()) == {"MNLI-m.tsv"}
    assert leaderboard_file(get_task("mnli"), "test_mismatched") == "MNLI-mm.tsv"
    assert leaderboard_file(get_task("rte"), "mismatched") == "RTE.tsv"


def test_scores_of_a_regression_student(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "scores"
    data.mkdir()
    for name in ("train", "dev"):
        frame = pd.read_parquet(tiny_data / f"{name}.parquet")
        frame["label"] = np.linspace(0, 5, len(frame))
        frame.to_parquet(data / f"{name}.parquet")
    teacher = tiny.write_teacher(tmp_path / "teacher", task="stsb")
    run = make_run(tmp_path / "runs", data, teacher, task="stsb")
    capsys.readouterr()
    assert call(run, "--input", data / "dev.parquet") == 0
    assert "pearson: " in capsys.readouterr().out
    found = pd.read_csv(run / "predictions" / "dev.tsv", sep="\t")
    assert list(found.columns) == ["idx", "prediction"]
    classify = transformers.pipeline("text-classification", str(run / "student"))
    frame = pd.read_parquet(data / "dev.parquet")
    pair = {"text": frame.sentence1[3], "text_pair": frame.sentence2[3]}
    assert found.prediction[3] == pytest.approx(classify(pair)["score"], abs=1e-5)
    assert call(run, "--input", data / "dev.parquet", "--format", "glue") == 0
    rows = pd.read_csv(run / "predictions" / "STS-B.tsv", sep="\t")
    np.testing.assert_allclose(rows.prediction, found.prediction.clip(0, 5), atol=1e-5)


def test_a_task_of_ones_own(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    custom = {
        "text": "sentence1",
        "text_pair": "sentence2",
        "labels": ["entailment", "not_entailment"],
    }
    run = make_run(tmp_path / "runs", tiny_data, tiny_teacher, task="custom", custom=custom)
    assert call(run, "--input", tiny_data / "dev.parquet") == 0
    assert len(pd.read_csv(run / "predictions" / "dev.tsv", sep="\t")) == 40
    assert call(run, "--input", tiny_data / "dev.parquet", "--format", "glue") == 2


def test_the_generated_corpus_is_named(
    run: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert call(run, "--input", texts) == 0
    assert "trained on" not in capsys.readouterr().out
    changed = {**summary, "builtin_data": True, "data": "built-in corpus v1"}
    write_json(run / "summary.json", changed)
    assert call(run, "--input", texts, "--format", "glue") == 0
    assert "was trained on the built-in corpus v1, not on rte's own" in capsys.readouterr().out


def test_an_existing_file_is_kept_unless_told_otherwise(
    run: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.tsv"
    out.write_text("mine", encoding="utf-8")
    assert call(run, "--input", texts, "--output", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"
    assert call(run, "--input", texts, "--output", out, "--overwrite") == 0
    assert out.read_text(encoding="utf-8").startswith("idx\t")
    assert call(run, "--input", texts, "--output", texts, "--overwrite") == 2
    assert "is the input itself" in capsys.readouterr().err


def test_the_folder_of_a_student_is_told_from_its_run(
    finished: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(finished / "student", "--input", texts) == 2
    assert f"It lies in the folder of a run: give {finished}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--format", "glu"], "Did you mean 'glue'?"),
        (["--format", "json"], "--format json is for answers to questions; task rte has none"),
        (["--batch", "0"], "--batch: 0"),
        (["--output", "out.txt"], "does not end in .tsv or .jsonl"),
        (["--device", "cuda:9"], "--device"),
        (["--input", "nowhere.tsv"], "--input: nowhere.tsv is not there"),
        (["--input", "words.txt"], "--input: words.txt ends in none of"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one case needs a machine without CUDA")
def test_mistakes_end_with_one_message(
    finished: Path,
    texts: Path,
    words: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(finished, "--input", texts, *words) == 2
    assert part in capsys.readouterr().err
    assert not (finished / "predictions").exists()


def test_a_missing_column_is_named(
    run: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(texts, sep="\t").drop(columns=["sentence2"])
    frame.to_csv(texts, sep="\t", index=False)
    assert call(run, "--input", texts) == 2
    message = capsys.readouterr().err
    assert "has no column 'sentence2' for task rte" in message
    assert "rename the columns" in message
    assert "--task" not in message


def test_a_spoiled_student_is_refused(
    run: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "student" / "model.safetensors"
    weights = load_file(path)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    save_file(broken, path, metadata={"format": "pt"})
    assert call(run, "--input", texts) == 2
    assert "its training diverged" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:200])
    assert call(run, "--input", texts) == 2
    assert "does not hold a readable model" in capsys.readouterr().err
    path.unlink()
    assert call(run, "--input", texts) == 2
    assert "has no student/model.safetensors" in capsys.readouterr().err
    assert not (run / "predictions").exists()


def test_a_student_of_other_labels_is_refused(
    run: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "student" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["id2label"] = {"0": "no", "1": "yes"}
    config["label2id"] = {"no": 0, "yes": 1}
    write_json(path, config)
    assert call(run, "--input", texts) == 2
    assert "student's labels (no, yes) are not those of task rte" in capsys.readouterr().err
