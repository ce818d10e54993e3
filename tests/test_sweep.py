"""The sweep: real tiny runs, one table, one plot; finished cells stay, impossible ones are listed."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ksel import run, sweep
from ksel.cli import guard
from ksel.errors import UsageError
from ksel.grids import Cell
from ksel.sweep_results import Result, comparable, markdown_table, sweep_figure, table_csv

AXES = {"shape": ["3x384", "4x336"], "start": ["first", "random"]}


def result(
    labels: Sequence[str],
    score: float | None,
    *,
    axes: Mapping[str, Sequence[str]] = AXES,
    seed: int = 0,
    reason: str | None = None,
    teacher: float = 0.9,
) -> Result:
    """A cell with this score; without one it was not run."""
    cell = Cell(dict(zip(axes, labels, strict=True)), seed, {})
    if score is None:
        return Result(cell, None, "the widths differ")
    student = {
        "name": "selected",
        "metrics": {"accuracy": score},
        "parameters": 1000,
        "ms_per_example": 1.5,
        "updates": 7,
        "seconds": 2.0,
        "reason": reason,
    }
    figures = {"metrics": {"accuracy": teacher}}
    summary = {
        "task": "rte",
        "data": "folder data",
        "builtin_data": False,
        "headline": "accuracy",
        "students": [student],
        "teacher": figures,
    }
    return Result(cell, summary, None)


def unequal() -> list[Result]:
    """A sweep in which one start is refused for one shape."""
    return [
        result(("3x384", "first"), 0.80),
        result(("3x384", "random"), 0.60),
        result(("4x336", "first"), None),
        result(("4x336", "random"), 0.65),
    ]


def bars(figure: Figure) -> list[list[float]]:
    """The heights of the bars, panel by panel."""
    return [
        [round(float(bar.get_segments()[0][0][1]), 6) for bar in panel.collections]
        for panel in figure.axes
    ]


def dots(figure: Figure) -> list[list[float]]:
    """The heights of the dots, panel by panel."""
    return [
        [float(y) for line in panel.lines if line.get_marker() == "o" for y in line.get_ydata()]
        for panel in figure.axes
    ]


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


@pytest.fixture
def file(tmp_path: Path, tiny_settings: Callable[..., dict]) -> Path:
    settings = tiny_settings(agent="static", references=[], evaluations=0)
    del settings["rows"]["dev_on_the_way"]
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


def test_an_interrupted_cell_with_a_checkpoint_is_gone_on_with(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    broken = out / "runs" / "hidden-full-s0"
    (broken / "checkpoint").mkdir(parents=True)
    called = []

    def stop(argv: list[str]) -> int:
        called.append(argv)
        return 130

    monkeypatch.setattr(run, "main", stop)
    assert guard(sweep.main, [str(file), "--out", str(out)]) == 130
    assert called == [["--resume", str(broken)]]


def test_settings_that_the_sweep_sets_itself_are_refused(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "more.yaml"
    config.write_text("{seed: 3}")
    for words in (["--seed", "1"], ["--name=a"], ["--config", str(config)]):
        with pytest.raises(UsageError, match="sweep sets it itself"):
            sweep.main([str(file), "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--knowledge.pool", "[label, nst]"], ["--knowledge.pool:", "axis kind"]),
        (["--knowledge.pool=[label, nst]"], ["--knowledge.pool:", "axis kind"]),
        (["--knowledge.pool+", "nst"], ["--knowledge.pool:", "axis kind"]),
        (["--student.width", "8"], ["--student.width:", "axis width"]),
        (["--student", "{layers: 1}"], ["--student:", "axis width"]),
        (["--teachers", "A", "B", "--student.init", "last"], ["--student.init:", "axis width"]),
    ],
)
def test_an_option_that_an_axis_decides_is_refused(
    file: Path, tmp_path: Path, words: list[str], named: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        sweep.main([str(file), "--out", str(tmp_path / "out"), *words])
    assert all(part in str(caught.value) for part in named)
    assert not (tmp_path / "out").exists()


def test_a_config_file_on_the_command_line_is_looked_into(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "more.yaml"
    config.write_text("{task: rte, student: {width: 8}}")
    for words in (["--config", str(config)], [f"--config={config}"]):
        with pytest.raises(UsageError, match=r"more\.yaml: student\.width: axis width"):
            sweep.main([str(file), "--out", str(tmp_path / "out"), *words])


def test_options_that_no_axis_decides_reach_every_cell(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}")
    words = ["--teachers", "A", "student", "--optim.max_updates=3", "--config", str(empty)]
    seen = []

    def refuse(argv: list[str]) -> int:
        seen.append(argv)
        raise UsageError("enough")

    monkeypatch.setattr(run, "main", refuse)
    with pytest.raises(UsageError, match="no cell could be run"):
        sweep.main([str(file), "--out", str(tmp_path / "out"), *words])
    assert len(seen) == 8
    assert all(argv[2 : 2 + len(words)] == words for argv in seen)


def test_a_sweep_in_which_no_cell_runs_is_an_error(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cell could be run"):
        sweep.main([str(file), "--out", str(tmp_path / "out"), "--task", "nothing"])


# --------------------------------------------------------------------------- what is made of results


def test_bars_are_means_over_combinations_that_ran_for_every_label() -> None:
    figure = sweep_figure(AXES, unequal())
    assert bars(figure) == [[0.60, 0.65], [0.80, 0.60]]
    assert dots(figure) == [[0.80, 0.60, 0.65], [0.80, 0.60, 0.65]]
    assert "ran for every label" in caption(figure)
    assert "no bars" not in caption(figure)
    assert [panel.get_xlabel() for panel in figure.axes] == ["each bar: 1 dot"] * 2


def test_what_is_compared_with_three_axes() -> None:
    axes = {"a": ["1", "2"], "b": ["x", "y"], "c": ["p", "q"]}
    scores = {key: float(i) for i, key in enumerate(itertools.product(*axes.values()))}
    del scores["1", "y", "p"]
    # 1xp 0, 1xq 1, 1yq 3, 2xp 4, 2xq 5, 2yp 6, 2yq 7
    assert comparable(axes, scores, "a") == {"1": [0, 1, 3], "2": [4, 5, 7]}
    assert comparable(axes, scores, "b") == {"x": [1, 4, 5], "y": [3, 6, 7]}
    assert comparable(axes, scores, "c") == {"p": [0, 4, 6], "q": [1, 5, 7]}


def test_no_bars_where_no_combination_ran_for_every_label() -> None:
    results = [result(("3x384", "first"), 0.8), result(("4x336", "random"), 0.6)]
    figure = sweep_figure(AXES, results)
    assert bars(figure) == [[], []]
    assert dots(figure) == [[0.8, 0.6], [0.8, 0.6]]
    assert "no bars for shape, start: no such combination" in caption(figure)
    assert [panel.get_xlabel() for panel in figure.axes] == ["no bars"] * 2


def test_a_student_that_ended_early_is_marked_and_not_drawn() -> None:
    results = [*unequal()[:3], result(("4x336", "random"), 0.65, reason="the loss of nst is nan")]
    table = markdown_table(AXES, results)
    assert "| 4x336 | random | 0.6500* |" in table
    assert "| 3x384 | first | 0.8000 |" in table
    why = "* ended early: 4x336, random, seed 0, after 7 updates: the loss of nst is nan"
    assert why in table.splitlines()
    rows = list(csv.DictReader(io.StringIO(table_csv(AXES, results))))
    assert [(row["accuracy"], row["ended_early"], row["not_run"]) for row in rows] == [
        ("0.8", "", ""),
        ("0.6", "", ""),
        ("", "", "the widths differ"),
        ("0.65", "the loss of nst is nan", ""),
    ]
    figure = sweep_figure(AXES, results)
    assert dots(figure) == [[0.8, 0.6], [0.8, 0.6]]
    assert bars(figure) == [[], [0.8, 0.6]]
    assert "2 cells; " in caption(figure)
    assert "left out: 1 cell with a student that ended early" in caption(figure)


def test_one_seed_that_ended_early_takes_its_cell_out_of_the_plot() -> None:
    axes = {"start": ["first", "random"]}
    results = [
        result(["first"], 0.8, axes=axes),
        result(["first"], 0.2, axes=axes, seed=1, reason="nan"),
        result(["random"], 0.6, axes=axes),
    ]
    assert "| first | 0.5000* +- 0.4243 (2 seeds) |" in markdown_table(axes, results)
    assert dots(sweep_figure(axes, results)) == [[0.6]]


def test_a_sweep_of_students_that_all_ended_early_has_an_empty_plot() -> None:
    figure = sweep_figure(AXES, [result(("3x384", "first"), 0.8, reason="nan")])
    assert dots(figure) == bars(figure) == [[], []]
    assert "0 cells; " in caption(figure)


def test_cells_that_are_not_run_are_told_once_for_all_seeds() -> None:
    results = [
        result(("3x384", "first"), 0.8),
        *(result(("4x336", "first"), None, seed=seed) for seed in (0, 1)),
    ]
    assert markdown_table(AXES, results).count("the widths differ") == 1


def test_the_teacher_is_drawn_where_all_cells_have_the_same() -> None:
    one, other = result(("3x384", "first"), 0.8), result(("3x384", "random"), 0.7, teacher=0.95)

    def dashed(results: list[Result]) -> list[float]:
        panel = sweep_figure(AXES, results).axes[0]
        return [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--"]

    assert dashed([one]) == [0.9]
    assert dashed([one, other]) == []


def test_nothing_of_a_plot_of_24_cells_is_cut() -> None:
    axes = {
        "knowledge": ["hidden", "nst", "value_relation"],
        "matching": ["skip", "last"],
        "start": ["first", "random"],
        "shape": ["3x384", "4x336"],
    }
    results = [
        result(
            key,
            0.5 + 0.01 * i,
            axes=axes,
            reason="nan" if i == 3 else None,
        )
        for i, key in enumerate(itertools.product(*axes.values()))
    ]
    figure = sweep_figure(axes, results)
    FigureCanvasAgg(figure).draw()
    inside, whole = figure.get_tightbbox(), figure.bbox_inches
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= whole.x1
    assert inside.y1 <= whole.y1
    for panel in figure.axes:
        boxes = [label.get_window_extent() for label in panel.get_xticklabels()]
        assert all(a.x1 < b.x1 for a, b in itertools.pairwise(boxes))


def test_built_in_data_are_told_over_the_table() -> None:
    one = result(("x",), 0.5, axes={"a": ("x",)})
    assert one.summary is not None
    assert markdown_table({"a": ("x",)}, [one]).startswith("rte, dev split of folder data\n")
    one.summary["builtin_data"] = True
    loud = markdown_table({"a": ("x",)}, [one]).splitlines()[0]
    assert loud == "rte, dev split of folder data: generated data, NOT scores of rte"
