"""The whole job on questions: train on windows, score answers, predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from tiny_run import make_run

from ksel import predict
from ksel.cli import guard

SPAN = {"max_question": 8, "stride": 8}
POOL = ["label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_spans(tmp_path_factory.mktemp("spans"), none=0.3)


def run_of(folder: Path, data: Path, family: str, task: str) -> Path:
    return make_run(
        folder,
        data,
        tiny.write_teacher(folder / "teacher", family, task),
        task=task,
        rows={"reward": 12, "dev_on_the_way": 8},
        span=SPAN,
        knowledge={"pool": POOL},
        agent="a2c",
        env={"final_metric": 0.5, "observe": ["training", "student_cls"]},
        references=["finetune"],
        optim={"max_updates": 8, "learning_rate": 1e-3},
    )


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_run_on_questions_is_scored_and_predicts(
    data: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, data, family, "squad_v2")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["rows"] == {"train": 48, "reward": 12, "dev": 20}
    metrics = next(s for s in summary["students"] if s["name"] == "selected")["metrics"]
    assert list(metrics) == ["f1", "exact_match"]
    assert all(0 <= value <= 1 for value in metrics.values())
    capsys.readouterr()
    assert guard(predict.main, [str(run), "--input", str(data / "dev.parquet"), "--score"]) == 0
    out = capsys.readouterr().out
    for name, value in metrics.items():
        assert f"{name}: {value:.4f} on dev.parquet" in out
    config = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"][0].endswith("ForQuestionAnswering")
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: question-answering" in card
    assert "how well the answer starts and ends there; the first token stands for no answer" in card
    assert "48 training rows in " in card


def test_a_classifier_is_fine_tuned_into_a_teacher_of_questions(
    data: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answerable = tmp_path / "answerable"
    answerable.mkdir()
    for name in ("train", "dev"):
        table = pd.read_parquet(data / f"{name}.parquet")
        table[[len(cell["text"]) > 0 for cell in table["answers"]]].to_parquet(
            answerable / f"{name}.parquet"
        )
    run = make_run(
        tmp_path,
        answerable,
        tiny_teacher,
        task="squad",
        rows={"reward": 8},
        span=SPAN,
        knowledge={"pool": ["label", "response"]},
        fine_tune={"max_updates": 2},
        student={"layers": 2, "source": "pretrained"},
        optim={"max_updates": 2},
    )
    assert "its head gives one answer per text" in capsys.readouterr().out
    teacher = json.loads((run / "teacher.json").read_text(encoding="utf-8"))
    assert "fine-tuned by ksel" in json.dumps(teacher)


def test_training_on_questions_lowers_the_loss(data: Path, tmp_path: Path) -> None:
    setup = tiny.make_setup(
        tiny.settings(
            data,
            tiny.write_teacher(tmp_path / "teacher", "bert", "squad_v2"),
            tmp_path / "store",
            task="squad_v2",
            span=SPAN,
            rows={"reward": 12},
            knowledge={"pool": ["label"], "balance": "none"},
            optim={"max_updates": 60, "learning_rate": 5e-3},
        )
    )
    assert len(setup.train) > setup.train.num_examples == 48
    setup.distiller.reset(data_seed=0, updates=60)
    losses = [setup.distiller.update(np.ones(1)).loss[0] for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
