"""What a run leaves behind: its own folder, and a student that plain transformers can use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from ksel import artifacts
from ksel.artifacts import make_run_folder, model_card, save_student, seconds_per_example, versions
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.settings import config_from_file

CARD = {"agent": "a2c", "teacher": "the-teacher", "metrics": {"accuracy": 0.75}, "updates": 6}


# --------------------------------------------------------------------------- the run's folder


def test_the_folder_holds_settings_that_repeat_the_run_and_versions(tmp_path: Path) -> None:
    config = RunConfig(task="rte", agent="static", seed=3, out=str(tmp_path / "runs"), threads=2)
    folder = make_run_folder(config)
    assert folder.parent == tmp_path / "runs"
    assert folder.name.startswith("rte-static-s3-")
    assert config_from_file(folder / "config.yaml") == config
    stored = json.loads((folder / "versions.json").read_text())
    assert stored == versions() | {"threads": 2}
    assert stored["torch"] == torch.__version__
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "versions.json"}


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise UsageError("cannot write versions.json: No space left on device")

    monkeypatch.setattr(artifacts, "write_json", full)
    with pytest.raises(UsageError, match="No space"):
        make_run_folder(RunConfig(out=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    config = RunConfig(out=str(tmp_path), name="mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("old")
    with pytest.raises(UsageError, match=r"--out, --name: .*mine exists already"):
        make_run_folder(config)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note.txt"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"--out: cannot make .*Not a directory"):
        make_run_folder(RunConfig(out=str(tmp_path / "file")))


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "VERSIONS_OF", ("numpy", "no-such-package"))
    found = versions()
    assert found["no-such-package"] is None
    assert found["numpy"] == np.__version__


# --------------------------------------------------------------------------- the student


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Path) -> Any:
    """A run whose student is narrower than the teacher, so that its pool has a projection."""
    import tiny

    store = tmp_path_factory.mktemp("store")
    values = tiny.settings(
        tiny_data,
        tiny_teacher,
        store,
        student={"layers": 2, "width": 8},
        knowledge={"pool": ["label", "response", "hidden/skip"]},
    )
    setup = tiny.make_setup(values)
    setup.distiller.reset(data_seed=0, updates=3)
    for _ in range(3):
        setup.distiller.update(np.ones(3))
    return setup


@pytest.fixture(scope="module")
def saved(narrow: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "student"
    save_student(folder, narrow, CARD)
    return folder


def test_the_student_alone_is_saved_without_teacher_and_projections(
    narrow: Any, saved: Path
) -> None:
    assert len(list(narrow.pool.projections.parameters())) > 0
    stored = load_file(saved / "model.safetensors")
    own = narrow.student.state_dict()
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[name], own[name]) for name in stored)
    assert sum(t.numel() for t in stored.values()) == sum(t.numel() for t in own.values())
    names = {path.name for path in saved.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_it_predicts_in_a_plain_pipeline_with_label_names(narrow: Any, saved: Path) -> None:
    classify = pipeline("text-classification", model=str(saved), device="cpu", top_k=None)
    pair = {"text": "the red box was in the attic", "text_pair": "a red box was there"}
    found = {one["label"]: one["score"] for one in classify([pair])[0]}
    assert set(found) == {"entailment", "not_entailment"}
    inputs = narrow.tokenizer(pair["text"], pair["text_pair"], return_tensors="pt")
    with torch.no_grad():
        expected = narrow.student.eval()(**inputs).logits.softmax(-1)[0].tolist()
    assert found["entailment"] == pytest.approx(expected[0], abs=1e-6)
    assert found["not_entailment"] == pytest.approx(expected[1], abs=1e-6)


def test_the_saved_student_says_what_it_is_and_nothing_of_this_machine(
    saved: Path, tiny_teacher: Path
) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["num_hidden_layers"] == 2
    assert config["hidden_size"] == 8
    assert config["id2label"] == {"0": "entailment", "1": "not_entailment"}
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        assert str(tiny_teacher) not in (saved / name).read_text()
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    assert not {"local_files_only", "trust_remote_code"} & set(settings)


def test_the_saved_folder_is_a_start_for_another_student(
    narrow: Any, saved: Path, tiny_setup: Callable[..., Any]
) -> None:
    setup = tiny_setup(
        student={"layers": None, "init": str(saved)},
        knowledge={"pool": ["label", "hidden/skip"]},
    )
    mine, theirs = setup.student.state_dict(), narrow.student.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_student_that_is_there_already_is_not_replaced_by_half(
    narrow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(narrow.tokenizer), "save_pretrained", full)
    with pytest.raises(UsageError, match=r"cannot write .*student: No space"):
        save_student(tmp_path / "student", narrow, CARD)
    assert list(tmp_path.iterdir()) == []


def test_the_model_card_says_how_it_was_made(narrow: Any, saved: Path) -> None:
    card = (saved / "README.md").read_text(encoding="utf-8")
    for words in (
        "# rte student",
        "the-teacher",
        "`a2c`",
        "label, response, hidden/skip",
        "2 layers, width 8, 4 heads",
        "entailment, not_entailment",
        "176 training rows, 24 rows",
        "Start: random",
        "| accuracy | 0.7500 |",
        "seed 0",
    ):
        assert words in card
    assert "built-in" not in card


def test_the_model_card_names_copied_layers_and_scores(tiny_setup: Callable[..., Any]) -> None:
    setup = tiny_setup(student={"init": "skip"})
    assert "layers 2, 4 of the teacher model (skip)" in model_card(setup, CARD)


def test_the_model_card_of_a_run_on_built_in_data_says_so_aloud(narrow: Any) -> None:
    from dataclasses import replace

    card = model_card(replace(narrow, builtin=True, origin="built-in corpus x"), CARD)
    assert "built-in generated corpus: its figures are **not** rte scores" in card
    assert "Data: built-in corpus x" in card


def test_tokenizer_and_model_load_by_themselves(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "moved")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model(**tokenizer("a red box", "a box", return_tensors="pt")).logits.shape == (1, 2)


# --------------------------------------------------------------------------- time


def test_inference_time_is_per_example_and_leaves_the_mode(
    narrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first two passes are slow, as they are on a machine that warms up
    passes = [100.0] * 2 + [8.0] * artifacts.TIMING_REPEATS
    ends = np.cumsum(passes).tolist()
    clock = iter(
        [time for end, took in zip(ends, passes, strict=True) for time in (end - took, end)]
    )
    monkeypatch.setattr(artifacts.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(artifacts.statistics, "median", max)
    modes: list[bool] = []
    handle = narrow.student.register_forward_pre_hook(
        lambda module, _: modes.append(module.training)
    )
    narrow.student.train()
    seconds = seconds_per_example(narrow.student, narrow.reward, narrow.device, batch_size=16)
    handle.remove()
    assert seconds == 8.0 / 16
    assert narrow.student.training
    assert modes == [False] * len(passes)
