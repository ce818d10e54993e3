from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from compared import simulate

from ksel import statistics
from ksel.compare_page import COMPARE_PAGE, write_page
from ksel.compare_plots import band, curves, figures, label_places, metric_against_cost
from ksel.compare_results import compare_table
from ksel.compare_rows import task_scores


@pytest.fixture(scope="module", autouse=True)
def _fewer_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 499)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_page(simulate(folder, failed=[("rte", "a2c", 3)], builtin_data=True), folder)
    return folder


def test_the_page_is_whole_and_offline(made: Path) -> None:
    text = (made / COMPARE_PAGE).read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "<script" not in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"', text):
        assert target in ids
    assert text.count("<table>") == text.count("</table>") == 3 * 5


def test_the_page_says_first_what_was_found(made: Path) -> None:
    text = (made / COMPARE_PAGE).read_text(encoding="utf-8")
    found = text.index("<b>all_action</b> is +0.0")
    assert (
        text.index("What was found")
        < found
        < text.index("Over 2 tasks")
        < text.index('id="task-rte"')
    )
    assert "Not a benchmark." in text
    assert "rte, a2c, seed 3: RuntimeError: out of luck" in text
    assert "1 without a score" in text
    assert 'class="up">+0.0' in text
    assert 'class="down">-0.0' in text


def test_a_task_is_called_what_it_is_called(tmp_path: Path) -> None:
    write_page(simulate(tmp_path, tasks=["rte, student.layers 4"]), tmp_path)
    text = (tmp_path / COMPARE_PAGE).read_text(encoding="utf-8")
    assert "<h2>rte, student.layers 4</h2>" in text
    assert 'id="task-rte_student.layers_4"' in text


def test_names_and_errors_are_text_and_not_html(tmp_path: Path) -> None:
    effects = {"a<b>&c": 0.0, "all": 0.0}
    results = simulate(tmp_path, ["r<i>te"], effects, 5, failed=[("r<i>te", "all", 0)])
    text = write_page(results, tmp_path).read_text(encoding="utf-8")
    assert "<i>" not in text
    assert "<b>&" not in text
    assert "a&lt;b&gt;&amp;c" in text
    assert (tmp_path / "plots" / "intervals-r_i_te.png").is_file()


def test_every_task_has_its_plots(made: Path) -> None:
    names = {path.name for path in (made / "plots").iterdir()}
    kinds = {
        f"{kind}-{task}.png" for kind in ("intervals", "cost", "curves") for task in ("rte", "mrpc")
    }
    assert names == kinds | {"intervals-over-tasks.png", "cost-over-tasks.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (made / "plots").iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 1},
        {"seeds": 3, "points": 2, "tasks": ["rte", "mrpc"]},
        {"effects": {"a2c": 0.0, "kd": 0.1}, "seeds": 5},
        {"effects": {f"method{i}": 0.01 * i for i in range(14)} | {"all": 0.0}, "seeds": 2},
        {"effects": {"all": 0.0, "finetune": -0.1}, "seeds": 5},
        {"teacher": None, "tasks": ["rte", "mrpc"]},
        {"tasks": ["rte"], "failed": [("rte", m, 0) for m in ("all", "a2c")], "seeds": 1,
         "effects": {"all": 0.0, "a2c": 0.0}},
    ],
    ids=["one seed", "few", "no reference", "many methods", "baselines", "no teacher", "nothing"],
)  # fmt: skip
def test_the_page_can_be_made_of_little(tmp_path: Path, changes: dict) -> None:
    text = write_page(simulate(tmp_path, **{"tasks": ["rte"], **changes}), tmp_path).read_text(
        encoding="utf-8"
    )
    assert "How to read this" in text


def test_a_page_of_tables_made_before(tmp_path: Path) -> None:
    comparison = compare_table(simulate(tmp_path, ["rte"], seeds=2), "finetune")
    assert "over finetune" in write_page(comparison, tmp_path).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="references already"):
        write_page(comparison, tmp_path, "all")


def test_without_curves_or_cost_there_is_no_such_figure(tmp_path: Path) -> None:
    results = simulate(tmp_path, ["rte"], seeds=2)
    comparison = compare_table(results)
    table, scores = comparison.tables[0], task_scores(results)[0]
    scores.curves = {name: {} for name in scores.curves}
    assert curves(table, scores, ("all",)) is None
    results.cells["cost"] = np.nan
    comparison = compare_table(results)
    assert metric_against_cost(comparison.tables[0]) is None
    assert set(figures(comparison)) == {"intervals-rte", "curves-rte"}


def test_bands_need_five_seeds_and_join_other_grids(tmp_path: Path) -> None:
    scores = task_scores(simulate(tmp_path, ["rte"], seeds=6))[0]
    found = list(scores.curves["all"].values())
    x, middle, low, high = band(found)
    np.testing.assert_allclose(middle, np.mean([curve.values for curve in found], 0))
    assert ((low < middle) & (middle < high)).all()
    assert np.isnan(band(found[:4])[2]).all()
    odd = type(found[0])(*(part[::3] for part in (x, found[0].shares, found[0].values)))
    x, middle, _, _ = band([odd, *found[1:]])
    assert (x[0], x[-1]) == (0.0, odd.shares[-1])
    assert np.isfinite(middle).all()


def test_names_do_not_cover_each_other(tmp_path: Path) -> None:
    rows = compare_table(simulate(tmp_path, ["rte"], seeds=2)).tables[0].rows
    places = label_places([np.array([100.0, 100.0 + i]) for i in range(len(rows))], rows)
    for i, (x, y) in enumerate(places):
        for left, low in places[:i]:
            assert abs(y - low) >= 9 or abs(x - left) > 30
