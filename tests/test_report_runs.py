"""Several runs on one page: what is compared, what is only shown, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_run import POOL, make_run, row, summary

from ksel import report_runs
from ksel.agreement import agreement, chance, chosen, correlation, matrix, on_one_clock
from ksel.cli import guard
from ksel.files import write_json
from ksel.report import main
from ksel.report_learned import Learned
from ksel.report_run import load_run
from ksel.report_runs import Together, default_path, groups, labels, load_runs, runs_page
from ksel.responses import partial_dependence
from ksel.trajectory import ScheduleWriter, read_schedule

# --------------------------------------------------------------------------- agreement


def test_agreement_is_hand_worked() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    b = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    assert agreement(a, b) == 5 / 8
    # by shares 0.5 and 0.75: 0.5 x 0.75 + 0.5 x 0.25; 0.5 and 0.5
    assert chance(a, b) == 0.5
    c = np.ones((4, 2))
    c[:, 1] = 0
    assert chance(c, c) == 1.0
    assert agreement(np.full((3, 1), 0.25), np.full((3, 1), 1.0)) == 0.25
    assert chance(np.array([[0.0], [1.0]]), np.array([[0.5], [0.5]])) == 0.5


def test_chance_is_what_shuffling_gives() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((2000, 3)) < [0.2, 0.5, 0.9]) * 1.0, (rng.random((2000, 3)) < 0.6) * 1.0
    shuffled = np.mean([agreement(a, rng.permutation(b)) for _ in range(50)])
    assert chance(a, b) == pytest.approx(shuffled, abs=0.02)
    same = (rng.random((300, 3)) < [0.2, 0.5, 0.9]) * 1.0
    assert agreement(same, same) == 1.0
    assert chance(same, same) < 0.75


def test_correlation_is_pearsons_and_unknown_of_what_never_changes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((20, 3)), rng.random((20, 3))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert correlation(a, 1 - 0.3 * a) == pytest.approx(-1.0)
    assert np.isnan(correlation(a, np.full((20, 3), 0.7)))


def test_runs_of_different_length_are_brought_to_one_clock() -> None:
    long = np.repeat(np.eye(2), [4, 4], axis=0)
    short = np.eye(2)
    assert [len(one) for one in on_one_clock([long, short])] == [2, 2]
    assert matrix(on_one_clock([long, short]), "agreement").tolist() == [[1, 1], [1, 1]]


def test_an_unknown_probability_is_the_action(tmp_path: Path) -> None:
    schedule = read_schedule(make_run(tmp_path / "run") / "schedule.parquet")
    frame = schedule.frame
    unknown = np.full(len(POOL), np.nan, np.float32)
    frame["probabilities"] = [
        unknown if i == 0 else p for i, p in enumerate(frame["probabilities"])
    ]
    actions, probabilities = chosen(schedule, "search", 0)
    np.testing.assert_array_equal(probabilities[0], actions[0])
    assert not np.array_equal(probabilities[1], actions[1])


# --------------------------------------------------------------------------- runs


def other(folder: Path, *, seed: int = 1, pool: tuple[str, ...] = POOL, soft: bool = False) -> Path:
    """A run like the sample's, of another seed, pool or kind of action."""
    make_run(folder, seed=seed, pool=list(pool))
    meta = {"soft": soft, "task": "qnli", "agent": "a2c", "seed": seed}
    features = tuple(f"feature_{i}" for i in range(6 + 5 * len(POOL)))
    writer = ScheduleWriter(pool, features, meta)
    rng = np.random.default_rng(seed)
    for d in range(200):
        whole = row(rng, "final", 0, d, 200)
        parts = {
            name: getattr(whole, name)[: len(pool)]
            for name in ("action", "probabilities", "loss", "scale", "grad_norm", "credit")
        }
        writer.add(type(whole)(**{**vars(whole), **parts}))
    writer.write(folder / "schedule.parquet")
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "r0"), other(folder / "r1", seed=1), other(folder / "r2", seed=2)]


def unknown(count: int) -> Together:
    return Together([Learned(reason="not asked")] * count)


def test_the_command_writes_one_page_beside_the_runs(
    three: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: (path / "schedule.parquet").stat().st_mtime_ns for path in three}
    monkeypatch.chdir(three[0].parent)
    assert guard(main, [str(run) for run in three]) == 0
    assert capsys.readouterr().out.strip() == "report.html"
    html = Path("report.html").read_text("utf-8")
    assert "3 runs side by side" in html
    assert not any((run / "report.html").exists() for run in three)
    assert {path: (path / "schedule.parquet").stat().st_mtime_ns for path in three} == before
    for heading in (
        "Scores",
        "Schedules",
        "By phase of training",
        "Do they agree?",
        "What the policies learned",
        "Dev metrics on the way",
    ):
        assert f"<h2>{heading}</h2>" in html
    assert "Built-in data, not a benchmark." in html
    assert html.count("Built-in data, not a benchmark.") == 1
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    links = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "<script" not in html


def test_the_matrix_on_the_page_is_the_agreement_of_the_runs(three: list[Path]) -> None:
    html = runs_page(load_runs(three), unknown(3))
    actions = [read_schedule(run / "schedule.parquet").actions("final", 0) for run in three]
    values = matrix(on_one_clock([one.astype(float) for one in actions]), "agreement")
    start = html.index("<h4>Masks agree")
    table = html[start : html.index("</table>", start)]
    for a, b in ((0, 1), (1, 2), (2, 0)):
        assert f">{values[a, b]:.2f}</span>" in table
    mean = values[~np.eye(3, dtype=bool)].mean()
    assert f"mean {mean:.2f}" in table
    assert table.count("&ndash;") == 3  # a run with itself says nothing
    assert "seed 0" in table
    assert "seed 2" in table
    assert "Where they see the same" not in html


def test_responses_of_all_runs_are_rows_of_one_figure(three: list[Path]) -> None:
    runs = load_runs(three)

    def learned(size: float) -> Learned:
        seen = np.random.default_rng(0).uniform(-1, 1, (30, 3))
        seen[:, 1] = 0
        names = ("progress", "agreement", "loss/label")
        return Learned(partial_dependence(lambda rows: np.full((len(rows), 5), size), seen, names))

    found = Together(
        [learned(0.2), Learned(reason="no policy"), learned(0.6)], {(0, 1, 2): np.eye(3)}
    )
    html = runs_page(runs, found)
    assert "seed 1: no policy." in html
    figure = html[html.index('aria-label="Response of each run') :]
    figure = figure[: figure.index("</svg>")]
    assert figure.count("budget spent") == 2
    assert "agreement" not in figure  # it never changed
    assert "Where they see the same" in html


def test_runs_of_different_pools_are_shown_but_not_compared(
    tmp_path: Path, three: list[Path]
) -> None:
    lone = other(tmp_path / "lone", seed=3, pool=POOL[:3])
    runs = load_runs([*three[:2], lone])
    assert groups(runs) == [(0, 1)]
    html = runs_page(runs, unknown(3))
    assert "These runs have different pools of knowledge types." in html
    agree = html[html.index("<h4>Masks agree") : html.index("<h4>By chance")]
    assert "seed 1" in agree
    assert "seed 3" not in agree
    assert html.count("<h3>Pool: ") == 2
    alone = runs_page(load_runs([three[0], lone]), unknown(2))
    assert "Agreement needs two runs with decisions, one pool and one kind of action." in alone


def test_bits_and_weights_are_not_compared(tmp_path: Path, three: list[Path]) -> None:
    runs = load_runs([three[0], other(tmp_path / "soft", soft=True)])
    assert groups(runs) == []


def test_different_data_is_said(tmp_path: Path, three: list[Path]) -> None:
    real = make_run(tmp_path / "real", builtin_data=False, data="folder glue/qnli")
    html = runs_page(load_runs([three[0], real]), unknown(2))
    assert "The runs have different data: their scores do not compare." in html
    assert "Data: folder glue/qnli" in html


def test_different_tasks_are_said_where_figures_mix_them(tmp_path: Path, three: list[Path]) -> None:
    said = "These runs are of different tasks (qnli, rte): agreement"
    rte = make_run(tmp_path / "rte", task="rte")
    html = runs_page(load_runs([three[0], rte]), unknown(2))
    for heading in ("By phase of training", "Do they agree?"):
        part = html[html.index(f"<h2>{heading}</h2>") :]
        assert said in part[: part.index("</section>")]
    assert "different tasks" not in runs_page(load_runs(three), unknown(3))
    assert "different tasks" not in runs_page(
        load_runs([three[0], other(tmp_path / "lone", pool=POOL[:3])]), unknown(2)
    )


def test_runs_that_ended_early_are_shown_as_far_as_they_came(
    tmp_path: Path, three: list[Path]
) -> None:
    early = make_run(tmp_path / "early", final=False)
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "config.yaml").write_text("task: rte\nagent: ppo\n")
    html = runs_page(load_runs([three[0], early, settings]), unknown(3))
    assert "search episode 2: no final student yet" in html
    assert "settings: no decisions were recorded" in html or "rte ppo" in html
    assert "early/<code>summary.json</code>: missing" in html
    assert "unfinished" in html


def test_names_are_what_the_runs_differ_in(tmp_path: Path) -> None:
    def named(*facts: dict[str, Any]) -> list[str]:
        runs = []
        for i, fact in enumerate(facts):
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}-{i}"
            folder.mkdir()
            write_json(folder / "summary.json", {**summary(), **fact})
            runs.append(load_run(folder))
        names = labels(runs)
        assert len(set(names)) == len(names)
        return [name if "-" not in name else "folder" for name in names]

    assert named({"seed": 0}, {"seed": 1}) == ["seed 0", "seed 1"]
    assert named({}, {"agent": "ppo"}) == ["a2c", "ppo"]
    assert named({"method": "pkd"}, {"agent": "ppo", "seed": 3}) == ["pkd seed 0", "ppo seed 3"]
    assert named({}, {"task": "rte"}, {"task": "sst2"}) == ["qnli", "rte", "sst2"]
    assert named({}, {}) == ["folder", "folder"]


def test_where_the_page_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_path([Path("runs/a"), Path("runs/b/")]) == Path("runs/report.html")
    assert default_path([Path("runs/a"), Path("other/b")]) == Path("report.html")


def test_a_run_named_twice_is_refused(
    three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    again = three[0] / ".." / three[0].name
    assert guard(main, [str(three[0]), str(again)]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_a_folder_that_is_no_run_ends_it_before_anything_is_written(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert guard(main, [str(three[0]), str(tmp_path / "absent"), "--out", str(page)]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not page.exists()


def test_text_is_escaped(tmp_path: Path, three: list[Path]) -> None:
    evil = "<script>alert(1)</script>"
    run = make_run(tmp_path / "run", agent=evil, data=evil, status=evil)
    html = runs_page(load_runs([three[0], run]), unknown(2))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_more_runs_than_can_be_read_are_cut(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_runs, "MOST_RESPONSES", 1)
    seen = np.random.default_rng(0).uniform(-1, 1, (30, 1))
    one = Learned(
        partial_dependence(lambda rows: np.full((len(rows), 5), 0.5), seen, ("progress",))
    )
    html = runs_page(load_runs(three), Together([one] * 3))
    assert "Of the first 1 runs." in html
    assert html.count("budget spent") == 1
