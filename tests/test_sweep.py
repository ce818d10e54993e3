"""The sweep: real tiny runs, one table, one plot; finished cells stay, impossible ones are listed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ksel import run, sweep
from ksel.cli import guard
from ksel.errors import UsageError


@pytest.fixture
def file(tmp_path: Path, tiny_settings: Callable[..., dict]) -> Path:
    settings = tiny_settings(agent="static", references=[], evaluations=0)
    settings["knowledge"]["pool"] = ["label", "{kind}/skip"]
    path = tmp_path / "sweep.yaml"
    grid = {
        "kind": ["hidden", "cosine"],
        "width": {
            "full": {"student": {"init": "first"}},
            "half": {"student": {"init": "first", "width": 8}},
        },
    }
    path.write_text(yaml.safe_dump({"base": settings, "grid": grid, "seeds": [0, 1]}))
    return path


def test_one_table_one_plot_and_nothing_is_run_twice(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert sweep.main([str(file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len(rows) == 8
    full = [row for row in rows if row["width"] == "full"]
    assert all(0 <= float(row["accuracy"]) <= 1 and int(row["parameters"]) > 0 for row in full)
    half = [row for row in rows if row["width"] == "half"]
    assert all(not row["accuracy"] and "--student.init first" in row["not_run"] for row in half)
    table = (out / "table.md").read_text()
    assert table.count("(2 seeds)") == 2
    assert table.strip() in printed
    assert "Not run:" in table
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")

    def never(argv: list[str]) -> int:
        # the cells that cannot be run are asked again, and refused again
        assert "half" in " ".join(argv)
        raise UsageError("still not")

    monkeypatch.setattr(run, "main", never)
    assert sweep.main([str(file), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("finished before") == 4


def test_a_folder_with_cells_of_other_settings_is_left_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "cells").mkdir()
    other = out / "cells" / "hidden-full-s0.yaml"
    other.write_text("task: mrpc\n")
    with pytest.raises(UsageError, match="other settings"):
        sweep.main([str(file), "--out", str(out)])
    assert other.read_text() == "task: mrpc\n"
    assert not (out / "runs").exists()


def test_an_interrupted_cell_is_made_anew_and_the_old_folder_is_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    broken = out / "runs" / "hidden-full-s0"
    broken.mkdir(parents=True)
    (broken / "summary.json").write_text('{"status": "interrupted"}')
    names = []

    def stop(argv: list[str]) -> int:
        names.append(argv[argv.index("--name") + 1])
        return 130

    monkeypatch.setattr(run, "main", stop)
    assert guard(sweep.main, [str(file), "--out", str(out)]) == 130
    assert names == ["hidden-full-s0-2"]
    assert broken.is_dir()


def test_settings_that_the_sweep_sets_itself_are_refused(file: Path) -> None:
    for option in ("--seed", "--name"):
        with pytest.raises(UsageError, match="sweep sets it itself"):
            sweep.main([str(file), option, "1"])


def test_a_sweep_in_which_no_cell_runs_is_an_error(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cell could be run"):
        sweep.main([str(file), "--out", str(tmp_path / "out"), "--task", "nothing"])
