"""A run with predicted rewards says whether they came true: summary, line, page, and on the way."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sample_run import POOL, make_run, summary
from tiny_run import make_run as make_tiny_run

from envs.distillation import DistillationEnv
from ksel import report_parts
from ksel.config import EnvConfig, RunConfig
from ksel.report_page import write_report
from ksel.setup import Setup
from ksel.summary import print_summary, summarize
from ksel.tracking import METRICS_FILE, Tracker, read_metrics
from ksel.trust import FEWEST, RECENT, TrustWatch, calibration, trust_history, trust_line

GOOD = {"correlation": 0.61, "slope": 0.8, "sign_agreement": 0.75, "trusted": 1.0}
BAD = {**GOOD, "correlation": -0.05, "trusted": 0.0}


def lines(windows: int, stage: str = "final", **figures: float) -> list[dict[str, Any]]:
    named = {f"reward/{name}": value for name, value in figures.items()}
    first = {"stage": stage, "step": 5, "reward/windows": 0.0, "reward/predicted": 1.0}
    return [first, {**first, "step": 10, "reward/windows": float(windows), **named}]


# --------------------------------------------------------------------------- summary.json, the line


def test_the_last_judgement_of_the_final_student_counts() -> None:
    everything = lines(9, **BAD) + lines(12, **GOOD) + lines(20, "search", **BAD)
    everything.append({"stage": "final", "step": 120, "student/accuracy": 0.8})
    found = calibration(everything)
    assert found == {"windows": 12, **GOOD, "reason": None}
    assert found["trusted"] is True
    assert calibration(everything, "search")["trusted"] is False
    assert trust_line(found) == (
        "credit: over 12 windows true drops go with predicted ones, correlation 0.61, slope 0.8, "
        "same sign in 75 %: trusted"
    )
    assert "do not go with predicted ones, correlation -0.05" in trust_line(
        calibration(lines(12, **BAD))
    )
    assert trust_line(calibration(lines(12, **BAD))).endswith("NOT trusted")


@pytest.mark.parametrize("windows", [0, 3])
def test_too_few_windows_are_no_judgement(windows: int) -> None:
    found = calibration(lines(windows))
    assert [found[name] for name in GOOD] == [None] * len(GOOD)
    assert found["windows"] == windows
    assert found["reason"] == f"{windows} windows are over, and {FEWEST} are needed"
    assert trust_line(found) == f"credit: too few windows ({windows} of 8) to judge"
    assert calibration([]) == calibration(lines(0))


def test_the_printed_summary_has_the_line_where_rewards_were_predicted() -> None:
    def printed(judged: dict[str, Any] | None) -> str:
        out = io.StringIO()
        cost = {**summary()["cost"], "shared_teacher_seconds": 0.0}
        rest = {"shares_over_time": [], "actions": "hard", "cost": cost}
        told = {**summary(), "calibration": judged, **rest}
        print_summary(told, Console(file=out, width=200))
        return out.getvalue()

    judged = calibration(lines(12, **BAD))
    assert trust_line(judged) in printed(judged)
    assert "credit:" not in printed(None)


def test_a_run_with_predicted_rewards_is_judged_from_its_own_windows(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tiny_run(
        tmp_path,
        tiny_data,
        tiny_teacher,
        agent="greedy",
        env={"reward": "amortized", "window": 1},
        credit={"every": 1, "interval": 1},
        student={"layers": 2, "init": "random"},
        optim={"max_updates": 12, "learning_rate": 1e-3},
    )
    told = json.loads((run / "summary.json").read_text("utf-8"))["calibration"]
    final = [line for line in read_metrics(run / METRICS_FILE) if line["stage"] == "final"]
    windows = [line for line in final if "reward/window_drop" in line]
    assert FEWEST <= told["windows"] == len(windows) <= 12
    rates = np.array([line["learning_rate"] for line in windows])
    x = np.array([line["reward/window_predicted"] for line in windows])
    y = np.array([line["reward/window_drop"] for line in windows])
    np.testing.assert_allclose(x * rates, [line["reward/predicted"] for line in windows], rtol=1e-6)
    np.testing.assert_allclose(y * rates, [line["reward/drop"] for line in windows], rtol=1e-6)
    assert told["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert told["slope"] == pytest.approx(np.polyfit(x, y, 1)[0])
    assert told["sign_agreement"] == pytest.approx((np.sign(x) == np.sign(y)).mean())
    assert isinstance(told["trusted"], bool)
    assert trust_line(told)[:30] in capsys.readouterr().out


@pytest.mark.parametrize("search", ["episodes", "online", "branch"])
def test_the_summary_says_how_the_agent_learned_and_what_it_was_paid(search: Any) -> None:
    def told(reward: str) -> dict[str, Any]:
        config = RunConfig(task="qnli", search=search, env=EnvConfig(reward=reward))  # type: ignore[arg-type]
        nothing: dict[str, Any] = {"teacher": {}, "students": [], "search": None, "costs": {}}
        rest = {"stage": "final", "error": None, "soft": False, "writer": None, **nothing}
        return summarize(config, None, status="failed", metrics=lines(12, **GOOD), **rest)

    assert told("amortized")["cost"]["online"] is (search != "episodes")
    assert told("amortized")["calibration"] == calibration(lines(12, **GOOD))
    assert told("measured")["calibration"] is None


def test_branches_that_were_not_taken_are_counted(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup(
        env={"reward": "amortized", "window": 50},
        branches={"count": 3, "updates": 2},
        optim={"max_updates": 12, "learning_rate": 1e-3},
    )
    env = DistillationEnv(setup=setup)
    env.reset(seed=0)
    *_, info = env.step(np.ones(len(setup.pool)))
    assert info["windows"] == 0
    info = env.branch(np.eye(len(setup.pool))[:3]).info
    assert info["windows"] == 3
    assert "window_drop" in info
    *_, info = env.step(np.ones(len(setup.pool)))
    assert info["windows"] == 3
    assert "window_drop" not in info


# --------------------------------------------------------------------------- on the way


def test_a_loss_of_trust_is_said_once_and_so_is_its_return() -> None:
    watch = TrustWatch()
    infos = [{}, GOOD, BAD, BAD, GOOD, GOOD, BAD, GOOD]
    said = [watch({"update": 10 * n, **info}, "search") for n, info in enumerate(infos)]
    assert [n for n, line in enumerate(said) if line] == [2, 4]
    assert said[2] == (
        "credit, search: NOT trusted from update 20 on: true drops do not go with predicted ones "
        "(correlation -0.05, slope 0.8, same sign in 75 %)"
    )
    assert str(said[4]).startswith("credit, search: trusted again from update 40 on (correlation 0")
    # another stage is another story
    again = watch({"update": 30, **BAD}, "final")
    assert str(again).startswith("credit, final student: NOT trusted from update 30 on")


def test_the_page_names_the_stage_whose_trust_was_lost(tmp_path: Path) -> None:
    trusted = [1.0, 0.0, 0.0, 1.0, 0.0]
    told = [
        {"stage": stage, "step": 10 * n, "reward/trusted": value}
        for stage, values in (("search", trusted), ("final", [1.0, 1.0]), ("reference:all", [0.0]))
        for n, value in enumerate(values, 1)
    ]
    assert trust_history([{"stage": "final", "step": 3}, *told]) == [
        "search: not trusted from update 20 on, trusted again from update 40 on, "
        "not trusted from update 50 on",
        "reference all: not trusted from update 10 on",
    ]
    run = amortized_run(tmp_path / "run", 12, **BAD)
    page = write_report(run).read_text("utf-8")
    assert "Predictions, final student: not trusted from update 80 on." in page


# --------------------------------------------------------------------------- the page


def amortized_run(folder: Path, windows: int, credit: float = 0.01, **figures: float) -> Path:
    """The sample run with predicted rewards in its final stage."""
    run = make_run(folder)
    with Tracker(run, POOL) as tracker:
        for n in range(windows):
            drops = {"window_predicted": float(n), "window_drop": float(n % 5), "predicted": 0.1}
            known = figures if n + 1 >= FEWEST else {}
            seen = {"windows": float(min(n + 1, RECENT)), **known}
            tracker.log("final", 10 * (n + 1), {**drops, **seen})
    return run


def test_the_page_shows_drops_and_credit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    real = report_parts.drops_figure

    def noted(predicted: np.ndarray, measured: np.ndarray, *args: Any) -> Any:
        drawn.append((predicted.tolist(), measured.tolist()))
        return real(predicted, measured, *args)

    monkeypatch.setattr(report_parts, "drops_figure", noted)
    page = write_report(amortized_run(tmp_path / "run", 12, **BAD)).read_text("utf-8")
    assert "<h2>Credit</h2>" in page
    assert '<p class="loud">Credit: over 12 windows true drops do not go with' in page
    assert "NOT trusted (final student).</p>" in page
    assert drawn == [(list(range(12)), [n % 5 for n in range(12)])]
    assert "Measured against predicted drops" in page
    assert "No credit was known" in page  # the sample's schedule has none


def test_a_page_with_few_windows_and_one_without_predictions(tmp_path: Path) -> None:
    page = write_report(amortized_run(tmp_path / "few", 3)).read_text("utf-8")
    assert '<p class="note">Credit: too few windows (3 of 8) to judge (final student).</p>' in page
    plain = write_report(make_run(tmp_path / "measured")).read_text("utf-8")
    assert "<h2>Credit</h2>" not in plain


def test_the_scatter_tells_judged_windows_from_earlier_ones() -> None:
    x = np.arange(25.0)
    axes = report_parts.drops_figure(x, 2 * x + 1, RECENT, "t").axes[0]
    points = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    assert np.asarray(points["earlier windows"])[:, 0].tolist() == x[:5].tolist()
    assert np.asarray(points["last 20 windows"])[:, 0].tolist() == x[5:].tolist()
    (line,) = (points[name] for name in points if "least-squares" in name)
    np.testing.assert_allclose(np.asarray(line), [[5, 11], [24, 49]])


def test_credit_is_averaged_over_spans_and_unknown_credit_left_out() -> None:
    values = np.stack([np.tile([1.0, 3.0], 60), np.full(120, np.nan), np.ones(120)], 1)
    values[:60, 2] = np.nan
    figure = report_parts.credit_figure(values, ("a", "b", "c"), np.arange(120), "t")
    drawn = {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[0].lines}
    assert len(drawn["a"]) == report_parts.CREDIT_SPANS
    assert drawn["a"][:, 1].mean() == pytest.approx(2.0)
    assert "b" not in drawn
    assert drawn["c"][:, 0].min() >= 60
    np.testing.assert_allclose(drawn["c"][:, 1], 1.0)


def test_an_online_search_has_one_figure_on_the_page(tmp_path: Path) -> None:
    cost = {**summary()["cost"], "online": True, "search_seconds": 0.0, "search_multiple": 0.0}
    page = write_report(make_run(tmp_path / "run", cost=cost)).read_text("utf-8")
    assert "<span>search and final student</span><b>2.48</b>" in page
    assert "<span>search</span>" not in page
    assert "one figure holds both" in page
    assert "the agent learned while the final student trained" in page
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["cost"]["online"]
