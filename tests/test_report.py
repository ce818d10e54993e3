"""The report is one offline page that says what a run did, and what is missing from it."""

from __future__ import annotations

import errno
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sample_run import POOL, STUDENTS, make_run, summary

from ksel import plots, report_page
from ksel.cli import guard
from ksel.errors import UsageError
from ksel.files import write_json
from ksel.page import is_own
from ksel.report import main
from ksel.report_learned import Learned
from ksel.report_page import load_run, page, write_report
from ksel.responses import Response, partial_dependence
from ksel.trajectory import read_schedule


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order; collects ids and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parse(path: Path) -> Balanced:
    parser = Balanced()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "qnli-a2c-s0")
    write_report(run, Learned(flat_response()))
    return run


def flat_response() -> Response:
    """The response of a policy that does the same whatever it sees."""
    seen = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    return partial_dependence(lambda rows: np.full((len(rows), len(POOL)), 0.5), seen, ("a", "b"))


def test_a_whole_run_is_on_the_page(whole: Path) -> None:
    parser = parse(whole / "report.html")
    for text in ("qnli", "a2c", "complete", "all-MiniLM-L6-v2", "0.9550", "17,400,194"):
        assert text in parser.text
    for name in (*POOL, *STUDENTS):
        assert name in parser.text
    for heading in (
        "Schedule, final student",
        "Share of each type, final student",
        "Dev accuracy",
        "Loss of each type, final student",
        "Gradient norm of each type, final student",
        "Rewards of the search",
        "Search episode 4",
        "config.yaml",
    ):
        assert heading in parser.text
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "<b>1.44</b>&times; one plain distillation" in page
    assert 'class="missing"' not in page


def test_built_in_data_is_said_loudly(whole: Path) -> None:
    text = parse(whole / "report.html").text
    assert "Built-in data, not a benchmark." in text
    assert "builtin corpus v1" in text
    assert "Fallback: no network" in text


def test_real_data_carries_no_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", builtin_data=False, data="folder glue/qnli")
    text = parse(write_report(run)).text
    assert "Data: folder glue/qnli" in text
    assert "not a benchmark" not in text


def test_the_page_is_one_file_that_works_offline(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "<script" not in page
    assert "@import" not in page
    assert "prefers-color-scheme:dark" in page


def test_ids_are_unique_and_links_inside_the_page_hold(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    ids = parse(whole / "report.html").ids
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r"url\(#([^)]*)\)", page)) | set(re.findall(r'href="#([^"]*)"', page))
    assert targets
    assert targets <= set(ids)


def test_the_report_is_the_same_each_time(whole: Path) -> None:
    first = (whole / "report.html").read_bytes()
    write_report(whole, Learned(flat_response()))
    assert (whole / "report.html").read_bytes() == first


def test_an_interrupted_run_says_what_is_missing(tmp_path: Path) -> None:
    text = parse(write_report(make_run(tmp_path / "run", final=False))).text
    assert "unfinished" in text
    assert "summary.json : missing" in text
    assert "may be built-in data" in text
    assert "No student was finished" in text
    assert "No final student yet; shown is the search episode 2" in text
    assert "Schedule, search episode 2" in text
    assert "No dev metric was measured" in text
    assert "which this one did not reach" in text


def test_status_of_an_interrupted_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status="interrupted", students=[], cost={}, teacher=None)
    page = write_report(run).read_text(encoding="utf-8")
    assert '<span class="chip bad">interrupted</span>' in page


def test_a_run_that_only_has_settings(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: rte\nagent: ppo\ndata: builtin\n")
    text = parse(write_report(tmp_path)).text
    assert "task rte" in text
    assert "agent ppo" in text
    assert "Built-in data, not a benchmark." in text
    assert "there is nothing to sum up" in text
    assert text.count("No decisions were recorded.") == 2
    assert "There was no search" in text


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "schedule.parquet").write_bytes(b"PAR1")
    (run / "summary.json").write_text("{")
    (run / "versions.json").write_text("[]")
    (run / "config.yaml").write_text("a: [")
    (run / "metrics.jsonl").unlink()
    problems = load_run(run).problems
    assert problems["summary.json"] == "damaged"
    assert problems["versions.json"] == "damaged"
    assert problems["metrics.jsonl"] == "missing"
    assert problems["config.yaml"] == "missing or damaged"
    assert "cut short or damaged" in problems["schedule.parquet"]
    text = parse(write_report(run)).text
    assert "schedule.parquet : " in text
    assert "Versions: missing." in text


def test_text_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&'
    students = [{**s, "name": evil} for s in summary()["students"]]
    run = make_run(
        tmp_path / "run",
        task=evil,
        agent=evil,
        data=evil,
        fallbacks=[evil],
        students=students,
        teacher={"name": evil, "metrics": {evil: 0.5}},
        pool=[*POOL[:-1], evil],
    )
    write_json(run / "versions.json", {evil: evil})
    write_json(run / "teacher.json", {"note": evil})
    (run / "config.yaml").write_text(f"task: {evil}\n")
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_every_metric_has_its_column_and_unknown_numbers_a_dash(tmp_path: Path) -> None:
    students = summary()["students"]
    students[0]["metrics"] = {"accuracy": 0.8125, "accuracy_mismatched": 0.8075}
    students[0]["ms_per_example"] = None
    page = write_report(make_run(tmp_path / "run", students=students)).read_text(encoding="utf-8")
    assert "<th>accuracy_mismatched (dev)</th>" in page
    cells = ("0.8125", "0.8075", "17,400,194", "&ndash;", "375", "61.2")
    assert f"<th>selected</th>{''.join(f'<td>{cell}</td>' for cell in cells)}" in page


def test_the_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "a", final=False)
    assert guard(main, [str(run)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html")]
    assert (run / "report.html").stat().st_size > 10_000
    elsewhere = tmp_path / "new" / "page.html"
    assert guard(main, [str(run), "--out", str(elsewhere)]) == 0
    assert capsys.readouterr().out.split() == [str(elsewhere)]
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "there is no folder"), ("", "not the folder of a run")]
)
def test_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert guard(main, [str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ksel: error: RUN: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_schedule_is_refused_and_the_page_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert main([str(run)]) == 0
    before = (run / "report.html").read_bytes()
    whole = (run / "schedule.parquet").read_bytes()
    (run / "schedule.parquet").write_bytes(whole[: len(whole) // 2])
    for words in ([str(run)], [str(run), str(other)]):
        assert guard(main, words) == 2
        assert f"{run / 'schedule.parquet'} is cut short" in capsys.readouterr().err
    assert (run / "report.html").read_bytes() == before
    assert not (tmp_path / "report.html").exists()


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(main, ["--debug", str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_no_arguments_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stopped:
        guard(main, [])
    assert stopped.value.code == 2


@pytest.mark.parametrize("debug", [True, False])
def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], debug: bool) -> None:
    def stopped(_: list[str]) -> int:
        raise KeyboardInterrupt

    assert guard(stopped, ["--debug"] if debug else []) == 130
    error = capsys.readouterr().err
    assert "stopped by Ctrl-C" in error
    assert ("Traceback" in error) == debug


def test_a_full_disk_is_one_message_and_other_failures_are_not_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int):
        def run(_: list[str]) -> int:
            raise OSError(number, "text", "model.zip")

        return run

    monkeypatch.setattr("sys.argv", ["ksel"])
    assert guard(fails(errno.ENOSPC)) == 2
    assert "model.zip" in capsys.readouterr().err
    with pytest.raises(OSError, match="text"):
        guard(fails(errno.EIO))


def test_a_comparison_is_told_from_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compare.yaml").write_text("methods: [a2c]\n")
    assert guard(main, [str(tmp_path)]) == 2
    page, runs = tmp_path / "compare.html", tmp_path / "runs"
    said = f"It is a comparison: its page is {page}, its runs are in {runs}."
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_page_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make_run(tmp_path / "run"), tmp_path / "notes.html"
    for text in ("", "mine", "<!doctype html>\n<html><title>ksel: my notes</title></html>"):
        other.write_text(text)
        for runs in ([run], [run, make_run(tmp_path / f"second{len(text)}")]):
            assert guard(main, [*map(str, runs), "--out", str(other)]) == 2
            assert f"--out: {other} exists and is no page of ksel" in capsys.readouterr().err
            assert other.read_text() == text
    other.unlink()
    for _ in range(2):  # a page of ksel is written anew
        assert guard(main, [str(run), "--out", str(other)]) == 0
    (run / "report.html").write_text("cut short")
    assert guard(main, [str(run)]) == 0
    assert is_own(run / "report.html")


def test_usage_error_is_raised_to_callers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the folder of a run"):
        write_report(tmp_path)


def test_heat_map_shows_the_mask() -> None:
    actions = np.zeros((10, 2), np.float32)
    actions[:5, 0] = 1
    figure = plots.schedule_heat_map(actions, ("label", "response"), np.arange(10) * 3, "t")
    axes = figure.axes[0]
    mesh = axes.collections[0]
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(2, 10), actions.T)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["label", "response"]
    assert axes.get_xlim() == (0, 30)
    assert {"50%", "0%"} <= {t.get_text() for t in axes.texts}
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == ["off", "on"]


def test_heat_map_of_many_decisions_keeps_the_shares() -> None:
    actions = (np.random.default_rng(0).random((5000, 3)) < [0.1, 0.5, 0.9]).astype(np.float32)
    figure = plots.schedule_heat_map(actions, ("a", "b", "c"), np.arange(5000), "t")
    values = np.asarray(figure.axes[0].collections[0].get_array()).reshape(3, -1)
    assert values.shape[1] == plots.MAX_COLUMNS
    np.testing.assert_allclose(values.mean(1), actions.mean(0), rtol=1e-6)
    assert figure.axes[0].get_xlim() == (0, 5000)


def test_heat_map_image_is_dark_where_a_type_is_on() -> None:
    on = plots.heat_map_image(np.ones((4, 1)), ("label",), np.arange(4), "t")
    off = plots.heat_map_image(np.zeros((4, 1)), ("label",), np.arange(4), "t")
    assert on.dtype == np.uint8
    assert on.shape == off.shape
    middle = (on.shape[0] // 2, on.shape[1] // 3)
    assert on[middle].tolist() != [255, 255, 255]
    assert off[middle].tolist() == [255, 255, 255]


def test_soft_schedules_and_unmeasured_norms(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    schedule = read_schedule(run / "schedule.parquet")
    loaded = load_run(run)
    assert loaded.schedule is not None
    loaded.schedule.meta["soft"] = True
    frame = schedule.frame.copy()
    frame["grad_norm"] = [np.full(len(POOL), np.nan, np.float32)] * len(frame)
    frame["action"] = list(np.full((len(frame), len(POOL)), 0.25, np.float32))
    loaded.schedule.frame = frame
    html = page(loaded)
    assert "Gradient norms were not measured in this episode" in html
    assert "mean weight" in html
    assert ">25%<" in html


@pytest.mark.parametrize(("every", "says"), [(375, "measured once"), (200, "measured 2 times")])
def test_gradient_norms_of_a_short_run_are_not_drawn(tmp_path: Path, every: int, says: str) -> None:
    loaded = load_run(make_run(tmp_path / "run"))
    assert loaded.schedule is not None
    frame = loaded.schedule.frame
    never = np.full(len(POOL), np.nan, np.float32)
    frame["grad_norm"] = [
        np.ones(len(POOL), np.float32) if d % every == 0 else never for d in frame["decision"]
    ]
    html = report_page._losses(loaded)
    assert f"Gradient norms were {says} in this episode" in html
    assert "Gradient norm of each type" not in html


def test_the_schedule_comes_before_the_cost_which_is_folded(whole: Path) -> None:
    html = (whole / "report.html").read_text(encoding="utf-8")
    heads = re.findall(r"<h2>([^<]*)</h2>", html)
    assert heads.index("Selection schedule") == 1
    assert heads.index("What the policy learned") == 2
    assert heads.index("Cost of the search") > heads.index("Search")
    folded = html[html.index("Where the time went, stage by stage") :]
    assert folded.index("Where the time went: search") < folded.index("</details>")


def test_bars_of_shares_have_columns_of_equal_width(whole: Path) -> None:
    html = (whole / "report.html").read_text(encoding="utf-8")
    start = html.index("What each knowledge type got")
    table = html[start : html.index("</table>", start)]
    assert '<table class="even">' in table
    assert table.count('class="bar"') == len(POOL) * len(STUDENTS)
    heads = re.findall(r"<th>([^<]*)</th>", table[: table.index("</thead>")])
    assert heads == ["knowledge type", *STUDENTS]
    label = table[table.index("<th>label</th>") : table.index("</tr>", table.index("label</th>"))]
    assert re.findall(r"--w:([\d.]+)%", label) == ["15.0", "15.0", "100.0"]


def test_a_pool_larger_than_the_palette_stays_distinct() -> None:
    names = [f"type{k}" for k in range(12)]
    figure = plots.losses(np.ones((5, 12)), names, np.arange(5), "t")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 12


def test_rewards_that_are_not_known(tmp_path: Path) -> None:
    figure = plots.reward_curve({0: np.array([np.nan, np.nan]), 1: np.array([1.0, 2.0])}, "t")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["mean unknown", "mean +1.50"]


def test_svg_follows_the_pages_colours() -> None:
    figure = plots.curves({"selected": (np.arange(3), np.arange(3.0))}, "f1", "a <b> & c", 2.5)
    svg = plots.to_svg(figure, "one", 'say "<hi>"')
    assert 'aria-label="say &quot;&lt;hi>&quot;"' in svg
    assert "var(--ink)" in svg
    assert "var(--c0)" in svg
    assert plots.INK not in svg
    assert "a &lt;b&gt; &amp; c" in svg
    assert not re.search(r'<svg[^>]* (width|height)="', svg)


def test_numbers_in_metrics_that_are_null_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "final", "step": 400, "student/accuracy": None}) + "\n")
    assert "Dev accuracy" in parse(write_report(run)).text


def test_where_the_time_went_is_on_the_page(whole: Path) -> None:
    text = parse(whole / "report.html").text
    search = text[text.index("Where the time went: search") :]
    assert "part examples seconds share teacher 4,000 12.00 14% student_forward 12,032" in search
    assert "sum \u2013 88.00 100%" in search
    assert "beside it: dev 2,000 7.50 \u2013" in search
    assert "Where the time went: final" in search


def test_why_there_is_no_multiple_is_on_the_page(tmp_path: Path) -> None:
    told = {"multiple": None, "definition": "", "reason": "'all' was <not> run"}
    text = parse(write_report(make_run(tmp_path / "run", search_cost=told))).text
    assert "No multiple: 'all' was <not> run." in text
