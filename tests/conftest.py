"""Settings that must hold before torch is imported, and fixtures that several rooms share."""

from __future__ import annotations

import os

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE")
# The tests compare bit by bit, which holds on a CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny

from ksel.setup import Setup

# The same examples on each run, so that a change is judged by itself and not by the draw;
# `--hypothesis-profile default` draws anew.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and a real teacher; skips where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("KSEL_SHARED", default))
    if not (folder / "data" / "glue" / "qnli" / "train.parquet").is_file():
        pytest.skip(f"no real data in {folder}; set KSEL_SHARED to the folder that has it")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny two-class pair task in RTE's columns."""
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random BERT that has a head for RTE."""
    return tiny.write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def tiny_settings(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> Callable[..., dict]:
    """Settings of a tiny run: ``tiny_settings(optim={"max_updates": 3}, task=...)``."""

    def make(**changes: Any) -> dict:
        return tiny.settings(tiny_data, tiny_teacher, tmp_path / "store", **changes)

    return make


@pytest.fixture
def tiny_setup(tiny_settings: Callable[..., dict]) -> Callable[..., Setup]:
    """A prepared tiny run: ``tiny_setup(student={"layers": 1})``."""

    def make(**changes: Any) -> Setup:
        return tiny.make_setup(tiny_settings(**changes))

    return make
