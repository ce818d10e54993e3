from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compared import EFFECTS, simulate
from rich.console import Console

from ksel import statistics
from ksel.compare_curves import Curve, area, first_at, score_at, targets, when_reached
from ksel.compare_files import CURVES_FILE, DIVERGED, RESULTS_FILE, Results
from ksel.compare_grids import area_difference, grids, p_value, value, with_interval
from ksel.compare_page import write_page
from ksel.compare_results import compare_table, load_results, print_comparison, write_tables
from ksel.compare_text import failures, markdown, sentences, table_csv
from ksel.errors import UsageError
from ksel.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    interquartile_mean,
    sign_flip_test,
    stratified_interval,
)


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)


def edit(results: Results, **changes: object) -> Results:
    """The same with other cells: ``changes`` map columns to values."""
    return Results(results.folder, results.cells.assign(**changes), results.curves)


def scores(results: Results, task: str, method: str) -> np.ndarray:
    cells = results.cells
    rows = cells[(cells["task"] == task) & (cells["method"] == method)]
    return rows.sort_values("seed")["score"].to_numpy()


# --------------------------------------------------------------------------- files


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    results = simulate(tmp_path, failed=[("rte", "a2c", 3)])
    assert results.tasks == ["rte", "mrpc"]
    assert results.methods == list(EFFECTS)
    assert len(results.cells) == 2 * 5 * 8
    assert len(results.usable) == 79
    assert "dev/f1" in results.cells
    assert results.cells["seed"].dtype == np.int64
    (error,) = results.failed["error"]
    assert error == "RuntimeError: out of\nluck"


def test_a_diverged_student_is_no_score(tmp_path: Path) -> None:
    results = simulate(tmp_path)
    cells = results.cells.copy()
    cells.loc[4, "score"] = math.nan
    results = Results(tmp_path, cells, results.curves)
    assert results.failed["error"].tolist() == [DIVERGED]
    assert "seed 4" in failures(compare_table(results))[0]


@pytest.mark.parametrize("name", [RESULTS_FILE, CURVES_FILE])
def test_spoiled_files_are_refused(tmp_path: Path, name: str) -> None:
    simulate(tmp_path, seeds=2)
    path = tmp_path / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a table"):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=rf"{name} is cut short or damaged.*--resume"):
            load_results(tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match=rf"there is no .*{name}"):
        load_results(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        load_results(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda f: f.drop(columns=["cost", "run"]), "has no column cost, run"),
        (lambda f: f.assign(score="high"), "column score holds .*string where a number belongs"),
        (lambda f: f.assign(higher_is_better=1.0), "column higher_is_better holds double"),
        (lambda f: f.assign(status="done"), "column status holds done; known: complete, failed"),
        (lambda f: f.assign(role="guest"), "column role holds guest"),
        (lambda f: f.assign(seed=0), r"has one cell twice \(task rte"),
        (lambda f: f.assign(metric=[f"m{i}" for i in range(len(f))]), "have different metrics"),
        (lambda f: f.iloc[:0], "has no cell"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, change: object, part: str) -> None:
    simulate(tmp_path, seeds=2)
    path = tmp_path / RESULTS_FILE
    change(pd.read_parquet(path)).to_parquet(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match=part):
        load_results(tmp_path)


# --------------------------------------------------------------------------- one task


def test_a_row_is_what_its_numbers_give(tmp_path: Path) -> None:
    results = simulate(tmp_path)
    comparison = compare_table(results)
    table = comparison.tables[0]
    row = table.row("all_action")
    assert row is not None
    own, static = scores(results, "rte", "all_action"), scores(results, "rte", "best_static")
    assert row.mean == pytest.approx(own.mean())
    assert row.iqm == pytest.approx(interquartile_mean(own))
    assert row.interval == bootstrap_interval(own)
    one = row.against("best_static")
    assert one is not None
    assert one.difference == pytest.approx((own - static).mean())
    assert one.interval == bootstrap_interval(own - static)
    assert one.improvement == np.mean(own > static)
    assert one.p == sign_flip_test([own - static]).p
    other = table.row("a2c").against("best_static").p  # type: ignore[union-attr]
    assert one.holm == holm([one.p, other])[0]
    assert row.cost == 1.3
    assert row.examples["teacher_forwards"] == 2490
    means = [row.mean for row in table.rows]
    assert means == sorted(means, reverse=True)


def test_pairing_removes_the_luck_of_the_seed(tmp_path: Path) -> None:
    results = simulate(tmp_path, seeds=10, noise=0.004)
    row = compare_table(results).tables[0].row("all_action")
    assert row is not None
    one = row.against("all")
    assert one is not None
    assert one.interval.above_zero
    assert one.interval.high - one.interval.low < 0.7 * (row.interval.high - row.interval.low)


def test_baselines_are_not_tested_and_cost_no_power(tmp_path: Path) -> None:
    table = compare_table(simulate(tmp_path)).tables[0]
    for row in table.rows:
        for one in row.versus:
            assert math.isfinite(one.p) == math.isfinite(one.holm) == (row.role == "method")
    only = {name: effect for name, effect in EFFECTS.items() if name in ("all", "finetune")}
    table = compare_table(simulate(tmp_path, effects=only)).tables[0]
    assert math.isfinite(table.row("finetune").against("all").holm)  # type: ignore[union-attr]


def test_differences_are_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    failed = [("rte", "a2c", 3), ("rte", "best_static", 0)]
    results = simulate(tmp_path, failed=failed)
    comparison = compare_table(results)
    table = comparison.tables[0]
    row = table.row("a2c")
    assert row is not None
    assert (row.seeds, row.failed) == (7, 1)
    one = row.against("best_static")
    assert one is not None
    keep = [1, 2, 4, 5, 6, 7]
    own, static = scores(results, "rte", "a2c"), scores(results, "rte", "best_static")
    assert one.seeds == 6
    assert one.difference == pytest.approx((own - static)[keep].mean())
    assert "a2c against best_static: 6 pairs, the seeds that both have" in table.notes
    assert "2 cells of 80 gave no score" in " ".join(comparison.notes)
    assert failures(comparison)[0] == "rte, a2c, seed 3: RuntimeError: out of luck"
    assert "7 (1 failed)" in markdown(comparison)


def test_too_few_seeds_are_said_to_be_too_few(tmp_path: Path) -> None:
    comparison = compare_table(simulate(tmp_path, seeds=4))
    for table in comparison.everything:
        for row in table.rows:
            assert not row.interval.known
            assert all(not one.interval.known for one in row.versus)
    assert (
        "too few seeds: no interval where a method has 4 on a task" in comparison.tables[0].notes[0]
    )
    text = markdown(comparison)
    assert "[+" not in text
    shown = grids(comparison.tables[0], comparison.references)[0]
    assert not any("[" in cell for cells in shown.rows for cell in cells)
    assert all("too few seeds for an interval: 4" in one.text for one in sentences(comparison))


def test_one_seed_is_enough_for_a_table(tmp_path: Path) -> None:
    comparison = compare_table(simulate(tmp_path, seeds=1))
    row = comparison.tables[0].row("all_action")
    assert row is not None
    assert row.against("all").p == 1.0  # type: ignore[union-attr]
    assert "1 pair and 2 methods give a corrected p of 1 at best" in " ".join(
        comparison.tables[0].notes
    )


def test_a_test_that_can_find_nothing_is_said_to(tmp_path: Path) -> None:
    notes = " ".join(compare_table(simulate(tmp_path, seeds=5)).tables[0].notes)
    assert "against all: 5 pairs and 2 methods give a corrected p of 0.125 at best" in notes
    assert "7 pairs could" in notes
    notes = " ".join(compare_table(simulate(tmp_path, seeds=7)).tables[0].notes)
    assert "at best" not in notes


def test_equal_scores_give_no_interval_but_a_line(tmp_path: Path) -> None:
    results = simulate(tmp_path, tasks=["rte"])
    comparison = compare_table(edit(results, score=0.527))
    row = comparison.tables[0].row("a2c")
    assert row is not None
    one = row.against("all")
    assert one is not None
    assert (one.difference, one.p, one.improvement) == (0.0, 1.0, 0.5)
    assert "a2c: no interval: nothing varies over 8 seeds" in comparison.tables[0].notes
    assert "| a2c | 8 | 0.527 | 0.527 | 0.000 | 0.000 |" in markdown(comparison)


def test_for_a_loss_lower_is_better(tmp_path: Path) -> None:
    results = simulate(tmp_path, sign=-1.0, teacher=0.5, metric="mse")
    comparison = compare_table(results)
    table = comparison.tables[0]
    assert table.rows[0].method == "all_action"
    assert table.rows[0].mean == min(row.mean for row in table.rows)
    assert table.rows[0].against("all").difference > 0.01  # type: ignore[union-attr]
    assert "a lower mse is better" in " ".join(table.notes)
    static = table.row("best_static")
    assert static is not None
    assert table.targets[0].value == pytest.approx(static.mean / 0.95)
    assert comparison.over is not None
    assert comparison.over.rows[0].method == "all_action"
    assert comparison.over.rows[0].mean < 1  # a higher loss than the teacher's


# --------------------------------------------------------------------------- references


def test_the_usual_references_are_those_that_were_run(tmp_path: Path) -> None:
    results = simulate(tmp_path)
    assert compare_table(results).references == ("all", "best_static")
    assert compare_table(results, "a2c").references == ("a2c",)
    assert compare_table(results, ["a2c", "finetune", "a2c"]).references == ("a2c", "finetune")
    without = {"all_action": 0.0, "a2c": 0.1}
    comparison = compare_table(simulate(tmp_path, effects=without))
    assert comparison.references == ()
    assert "no differences: neither all nor best_static was run; --against" in comparison.notes[0]
    assert sentences(comparison) == []
    assert "difference to" not in markdown(comparison)


def test_an_unknown_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--against: unknown method 'best'.*'best_static'"):
        compare_table(simulate(tmp_path), "best")


def test_a_reference_without_a_finished_cell_leaves_dashes(tmp_path: Path) -> None:
    failed = [("rte", "all", seed) for seed in range(6)]
    comparison = compare_table(simulate(tmp_path, tasks=["rte"], seeds=6, failed=failed))
    row = comparison.tables[0].row("all_action")
    assert row is not None
    assert row.against("all") is None
    assert comparison.tables[0].row("all") is None
    assert failures(comparison) == ["rte, all, seeds 0, 1, 2, 3, 4, 5: RuntimeError: out of luck"]
    assert "| - |" in markdown(comparison)


def test_nothing_finished_is_said(tmp_path: Path) -> None:
    failed = [("rte", method, 0) for method in EFFECTS]
    comparison = compare_table(simulate(tmp_path, tasks=["rte"], seeds=1, failed=failed))
    assert comparison.tables == ()
    assert "no cell has finished" in comparison.notes[0]
    assert len(failures(comparison)) == 5
    assert table_csv(comparison) == "\n"


# --------------------------------------------------------------------------- over tasks


def test_over_tasks_each_counts_the_same_in_shares_of_its_teacher(tmp_path: Path) -> None:
    results = simulate(tmp_path, failed=[("rte", "all_action", 1), ("rte", "all_action", 2)])
    table = compare_table(results).over
    assert table is not None
    row = table.row("all_action")
    assert row is not None
    shares, gaps = [], []
    for task, teacher in (("rte", 0.85), ("mrpc", 0.88)):
        own, static = scores(results, task, "all_action"), scores(results, task, "best_static")
        known = np.isfinite(own)
        shares.append(own[known] / teacher)
        gaps.append((own - static)[known] / teacher)
    assert [len(one) for one in shares] == [6, 8]
    assert row.mean == pytest.approx(np.mean([one.mean() for one in shares]))
    one = row.against("best_static")
    assert one is not None
    assert (one.seeds, one.tasks) == (14, 2)
    assert one.difference == pytest.approx(np.mean([gap.mean() for gap in gaps]))
    expected = stratified_interval(gaps)
    assert (one.interval.low, one.interval.high) == pytest.approx((expected.low, expected.high))
    assert one.p == pytest.approx(sign_flip_test(gaps).p)
    assert one.as_good == 2


def test_tasks_without_a_usable_teacher_are_left_out_and_named(tmp_path: Path) -> None:
    results = simulate(tmp_path, tasks=("rte", "mrpc", "cola", "sst2"))
    teacher = results.cells["teacher_score"].copy()
    teacher[results.cells["task"] == "cola"] = 0.01
    teacher[results.cells["task"] == "sst2"] = math.nan
    table = compare_table(edit(results, teacher_score=teacher)).over
    assert table is not None
    assert table.tasks == ("rte", "mrpc")
    notes = " ".join(table.notes)
    assert "cola is left out: its teacher's score of 0.010 is too near zero" in notes
    assert "sst2 is left out: its teacher's score is not known" in notes
    assert compare_table(simulate(tmp_path, teacher=None)).over is None


def test_a_method_that_lacks_a_task_is_said_to(tmp_path: Path) -> None:
    failed = [("mrpc", "all_action", seed) for seed in range(8)]
    table = compare_table(simulate(tmp_path, tasks=("rte", "mrpc", "cola"), failed=failed)).over
    assert table is not None
    assert table.rows[-1].method == "all_action"  # its mean is over other tasks than the others'
    assert "all_action: mean over 2 of 3 tasks, those it has" in table.notes
    assert "all_action against all: over the 2 tasks that have both" in table.notes


# --------------------------------------------------------------------------- speed

LINE = Curve(np.array([0, 50, 100]), np.array([0.0, 0.5, 1.0]), np.array([0.5, 0.7, 0.8]))


def test_area_and_budgets_by_hand() -> None:
    assert area(LINE) == pytest.approx((0.6 + 0.75) / 2)
    late = Curve(LINE.updates[1:], LINE.shares[1:], LINE.values[1:])
    assert area(late) == pytest.approx(0.75)
    assert math.isnan(area(Curve(*(part[:1] for part in (LINE.updates, LINE.shares, LINE.values)))))
    assert score_at(LINE, 0.5) == 0.7
    assert score_at(LINE, 0.49) == 0.5
    assert math.isnan(score_at(late, 0.1))


def test_students_that_score_alike_are_said_to(tmp_path: Path) -> None:
    results = simulate(tmp_path, tasks=["rte"], effects={"race": 0.0, "all": 0.0})
    found = results.cells.set_index(["method", "seed"])["score"]
    same = [found["all", seed] for seed in results.cells["seed"]]
    comparison = compare_table(edit(results, score=same))
    assert sentences(comparison)[0].text.endswith(
        "the cost of all types on: the same score in each pair."
    )


def test_areas_begin_where_all_have_been_measured(tmp_path: Path) -> None:
    """A student that is not seen at first is not better for it."""
    assert area(LINE, 0.25) == pytest.approx((0.25 * 0.65 + 0.5 * 0.75) / 0.75)
    assert math.isnan(area(LINE, 1.0))
    results = simulate(tmp_path, tasks=["rte"], effects={"race": 0.0, "all": 0.0}, points=6)
    curves = results.curves[results.curves["method"] == "all"]
    late = curves[curves["share"] >= 0.4].assign(method="race")
    comparison = compare_table(Results(tmp_path, results.cells, pd.concat([curves, late])))
    table = comparison.tables[0]
    assert table.start == 0.4
    race, plain = table.row("race"), table.row("all")
    assert race is not None
    assert plain is not None
    assert race.area == pytest.approx(plain.area)
    assert race.against("all").area == pytest.approx(0.0)  # type: ignore[union-attr]
    speed = next(grid for grid in grids(table, ("all",)) if grid.title == "Speed")
    assert speed.heads[1] == "area under the curve from 40% on"


def test_a_curve_is_of_the_same_rows_from_end_to_end(tmp_path: Path) -> None:
    results = simulate(tmp_path, tasks=["rte"], effects={"all": 0.0}, points=3)
    whole = results.curves[results.curves["share"] == 1.0].assign(rows=872, value=0.1)
    joined = Results(tmp_path, results.cells, pd.concat([results.curves, whole]))
    assert compare_table(joined).tables[0] == compare_table(results).tables[0]


def test_the_first_measurement_at_a_target_counts() -> None:
    assert first_at(LINE, 0.7, higher=True) == (50, 0.5)
    assert first_at(LINE, 0.9, higher=True) == (math.inf, math.inf)
    assert first_at(LINE, 0.5, higher=False) == (0, 0.0)
    dip = Curve(LINE.updates, LINE.shares, np.array([0.5, 0.9, 0.6]))
    assert first_at(dip, 0.8, higher=True) == (50, 0.5)


def test_students_that_never_reach_a_target_are_counted() -> None:
    slow = Curve(LINE.updates, LINE.shares, np.array([0.5, 0.5, 0.6]))
    cells = pd.DataFrame({"seed": [0, 1, 2], "seconds_search": [10.0, 10.0, math.nan]})
    cells["seconds_final"] = 20.0
    found = when_reached({0: LINE, 1: LINE, 2: slow}, cells, 0.7, higher=True)
    assert found is not None
    assert (found.reached, found.seeds, found.updates, found.seconds) == (2, 3, 50, 20.0)
    assert not found.at_most
    found = when_reached({0: LINE, 1: slow, 2: slow}, cells, 0.7, higher=True)
    assert found is not None
    assert (found.reached, found.updates) == (1, math.inf)
    assert when_reached({}, cells, 0.7, higher=True) is None
    assert when_reached({0: LINE}, cells, None, higher=True) is None


def test_a_student_that_ended_early_has_spent_all_its_seconds_by_then() -> None:
    torso = Curve(LINE.updates / 2, LINE.shares / 2, LINE.values)
    cells = pd.DataFrame({"seed": [0], "seconds_search": [10.0], "seconds_final": [20.0]})
    found = when_reached({0: torso}, cells, LINE.values[-1], higher=True)
    assert found is not None
    assert (found.share, found.seconds) == (0.5, 30.0)


def test_a_target_met_at_the_first_measurement_may_have_been_met_before(tmp_path: Path) -> None:
    slow = Curve(LINE.updates, LINE.shares, np.array([0.4, 0.6, 0.8]))
    cells = pd.DataFrame({"seed": [0, 1, 2], "seconds_search": 0.0, "seconds_final": 20.0})
    found = when_reached({0: LINE, 1: LINE, 2: slow}, cells, 0.5, higher=True)
    assert found is not None
    assert (found.updates, found.at_most) == (0, True)
    comparison = compare_table(simulate(tmp_path, tasks=["rte"], teacher=0.3))
    speed = next(one for one in grids(comparison.tables[0], ("all",)) if one.title == "Speed")
    place = next(i for i, head in enumerate(speed.heads) if "of the teacher" in head)
    assert {row[place + 1] for row in speed.rows} == {"≤ 0"}
    assert all(row[place + 2].startswith("≤ ") for row in speed.rows)


def test_targets_are_aware_of_the_metric() -> None:
    first, second = targets({"best_static": [0.8, 0.6], "all": [0.9]}, 0.9, higher=True)
    assert (first.name, first.value) == ("95% of best_static", pytest.approx(0.665))
    assert (second.name, second.value) == ("90% of the teacher", pytest.approx(0.81))
    first, _ = targets({"all": [0.8]}, 0.9, higher=False)
    assert (first.name, first.value) == ("95% of all", pytest.approx(0.8 / 0.95))
    first, second = targets({"a2c": [0.8]}, math.nan, higher=True)
    assert (first.value, second.value) == (None, None)
    assert "neither best_static nor all has run" in first.note
    # a share of a correlation below zero would be above it
    assert targets({"all": [-0.2]}, 0.9, higher=True)[0].value is None


def test_the_speed_table_says_who_reached_what(tmp_path: Path) -> None:
    comparison = compare_table(simulate(tmp_path))
    table = comparison.tables[0]
    speed = next(grid for grid in grids(table, comparison.references) if grid.title == "Speed")
    cells = {row[0]: row for row in speed.rows}
    place = next(i for i, head in enumerate(speed.heads) if "reached 95% of best_static" in head)
    assert cells["all_action"][place] == "8/8"
    assert int(cells["all_action"][place + 1]) < int(cells["all"][place + 1])
    assert cells["finetune"][place + 1 : place + 3] == ("not reached", "not reached")
    row, plain = table.row("all_action"), table.row("all")
    assert row is not None
    assert plain is not None
    assert row.area > plain.area
    assert row.against("best_static").area_interval.above_zero  # type: ignore[union-attr]


def test_the_way_of_a_student_without_a_score_is_no_speed(tmp_path: Path) -> None:
    results = simulate(tmp_path, tasks=["rte"])
    score, curves = results.cells["score"].copy(), results.curves.copy()
    score[(results.cells["method"] == "a2c") & (results.cells["seed"] == 2)] = np.nan
    curves.loc[(curves["method"] == "a2c") & (curves["seed"] == 2), "value"] = -100.0
    spoiled = Results(tmp_path, results.cells.assign(score=score), curves)
    row = compare_table(spoiled).tables[0].row("a2c")
    assert row is not None
    assert (row.seeds, row.failed) == (7, 1)
    assert min(row.at) > 0
    assert row.area > 0


def test_an_area_that_only_the_bootstrap_tells_apart_is_doubted(tmp_path: Path) -> None:
    results = simulate(tmp_path, tasks=["rte"], seeds=5, effects={"a2c": 0.0, "all": 0.0})
    curves = results.curves.copy()
    curves["value"] = 0.7
    gains = np.array([0.0, 0.01, 0.03, 0.04, 0.001])
    mine = curves["method"] == "a2c"
    curves.loc[mine, "value"] += gains[curves.loc[mine, "seed"]]
    comparison = compare_table(Results(tmp_path, results.cells, curves))
    one = comparison.tables[0].row("a2c").against("all")  # type: ignore[union-attr]
    assert one is not None
    assert one.area_interval.above_zero
    assert not one.area_by_t.above_zero
    assert area_difference(one).endswith("]?")
    assert 'class="up"' not in write_page(comparison, tmp_path).read_text(encoding="utf-8")


def test_without_curves_there_is_no_speed(tmp_path: Path) -> None:
    comparison = compare_table(simulate(tmp_path, points=1 + 1))
    assert any(grid.title == "Speed" for grid in grids(comparison.tables[0], ("all",)))
    results = comparison.results
    bare = Results(tmp_path, results.cells, results.curves.iloc[:0])
    comparison = compare_table(bare)
    assert not any(grid.title == "Speed" for grid in grids(comparison.tables[0], ("all",)))
    assert "Speed" not in markdown(comparison)


# --------------------------------------------------------------------------- words


def test_numbers_are_written_without_false_signs() -> None:
    assert value(-0.0001, "+.3f") == "0.000"
    assert value(0.0123, "+.3f") == "+0.012"
    assert value(math.nan) == "-"
    assert p_value(1e-7) == "<0.001"
    found = with_interval(0.5, Interval(0.4, 0.6, "percentile", "because"))
    assert found == "0.500 [0.400, 0.600]*"


def test_the_first_sentence_says_what_was_found(tmp_path: Path) -> None:
    first, *others = sentences(compare_table(simulate(tmp_path, seeds=8)))
    assert first.side == 1
    assert first.text.startswith("all_action is +0.0")
    assert (
        "over the best static mask, on 2 tasks (shares of the teacher's score; 16 pairs) at 1.30 x"
        in first.text
    )
    assert first.text.endswith("better, corrected p <0.001.")
    assert [one.side for one in others].count(1) == 1  # all_action against all
    assert any("not told apart from zero" in one.text for one in others)


def test_what_only_the_bootstrap_finds_is_doubted(tmp_path: Path) -> None:
    results = simulate(tmp_path, tasks=["rte"], seeds=5, effects={"a2c": 0.0, "all": 0.0})
    scores = results.cells["score"].copy()
    scores[results.cells["method"] == "a2c"] = 0.7 + np.array([0.0, 0.01, 0.03, 0.04, 0.001])
    scores[results.cells["method"] == "all"] = 0.7
    comparison = compare_table(edit(results, score=scores))
    one = comparison.tables[0].rows[0].against("all")
    assert one is not None
    assert one.interval.above_zero
    assert not one.by_t.above_zero
    assert "better by the bootstrap, not by Student's t" in sentences(comparison)[0].text
    assert sentences(comparison)[0].side == 0
    page = write_page(comparison, tmp_path).read_text(encoding="utf-8")
    assert "]?</small>" in page
    assert 'class="up"' not in page
    assert "]? |" in markdown(comparison)
    assert "zero is outside the bootstrap's interval but inside Student's t" in markdown(comparison)


def test_generated_data_are_not_taken_for_a_benchmark(tmp_path: Path) -> None:
    comparison = compare_table(simulate(tmp_path, builtin_data=True))
    assert "generated data, NOT benchmark scores: rte, mrpc" in markdown(comparison)
    assert "NOT" not in markdown(compare_table(simulate(tmp_path, builtin_data=False)))


def test_students_that_ended_early_are_named(tmp_path: Path) -> None:
    results = simulate(tmp_path, seeds=2, ended_early=None)
    assert "torsos" not in markdown(compare_table(results))
    reasons = [None] * len(results.cells)
    reasons[1] = "the loss is nan"
    text = markdown(compare_table(edit(results, ended_early=reasons)))
    assert "those of torsos: rte, all_action, seed 1 (the loss is nan)" in text


def test_the_files_hold_every_task_and_method(tmp_path: Path) -> None:
    results = simulate(tmp_path)
    comparison = write_tables(results, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert len(rows) == 3 * 5
    assert {row["task"] for row in rows} == {"over tasks", "rte", "mrpc"}
    row = next(r for r in rows if (r["task"], r["method"]) == ("rte", "all_action"))
    one = comparison.tables[0].row("all_action").against("all")  # type: ignore[union-attr]
    assert one is not None
    assert float(row["vs_all_difference_low"]) == one.interval.low
    assert float(row["vs_all_t_high"]) == one.by_t.high
    assert float(row["vs_best_static_p_holm"]) < 0.05
    assert row["vs_all_difference_by"] == "BCa"
    assert (tmp_path / "table.md").read_text() == markdown(comparison)
    tables = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert all(line.count("|") == line.replace("\\|", "").count("|") for line in tables)


def test_the_terminal_shows_brackets_and_failures(tmp_path: Path) -> None:
    comparison = compare_table(simulate(tmp_path, failed=[("rte", "a2c", 3)]))
    console = Console(file=io.StringIO(), width=150, highlight=False)
    print_comparison(comparison, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mean [95 %]" in text
    assert "no score: rte, a2c, seed 3: RuntimeError: out of luck" in text
    assert "all_action is +0.0" in text
    assert "over 2 tasks" in text.lower()
