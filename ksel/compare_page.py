"""``compare.html``: a comparison as one offline page, what was found in words first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from ksel.cells import safe
from ksel.compare_files import METHOD, Results
from ksel.compare_grids import ONLY_BOOTSTRAP, Grid, grids, marks, title, unit
from ksel.compare_plots import OVER, figures, write_plots
from ksel.compare_rows import Table
from ksel.compare_tables import Comparison, compare_table
from ksel.compare_text import failures, sentences
from ksel.files import write_text
from ksel.page import document, missing, section, show
from ksel.statistics import FEWEST_SEEDS

COMPARE_PAGE = "compare.html"
SAID = 6
"""Sentences of the summary that are open to see."""

READING = (
    (
        "Seeds are the units",
        "Two students of one seed start from the same weights and see the same batches, so their "
        "difference says more than two separate scores. All differences here are within seeds, and "
        "above zero means better, whatever the metric. Intervals and tests are about other seeds on "
        "the same dev rows; that those rows are a sample is not in them.",
    ),
    (
        "mean, IQM, [95 %]",
        "The mean over seeds; the interquartile mean, which leaves out a quarter of the seeds at "
        "either end; and where the mean may lie, by a bootstrap over seeds (BCa). With "
        f"{FEWEST_SEEDS} seeds on one task such an interval holds the truth about 85 times in 100, "
        "with 10 about 90, not 95; over five tasks of five seeds about 91. Below "
        f"{FEWEST_SEEDS} seeds none is printed.",
    ),
    (
        "P(better)",
        "The chance that the method is better than the reference on the same seed: the share of "
        "pairs it wins, a tie counting half, with the exact binomial interval.",
    ),
    (
        "p, p (Holm)",
        "A two-sided permutation test of the mean difference, which flips signs of pairs. n pairs "
        "cannot give less than 2 / 2<sup>n</sup>: 0.0625 with five. Holm's correction pays for "
        "testing several methods; baselines are there to be compared with and are not tested.",
    ),
    (
        "Over tasks",
        "Scores are shares of the teacher's score on the task, so that metrics can be put together; "
        "every task counts the same. The interval draws seeds within tasks: it is about these tasks, "
        "not about all one could think of.",
    ),
    (
        "Speed",
        "The area is the mean dev score on the way, over the share of the budget in which all "
        "students of the task were measured. A target is reached at the first measurement that is at "
        "it (&le;: it is the first of all, so the target may have been reached before); students that never reach it count as later than all others, so a median "
        "is given only where more than half do. Seconds include the search. On the way only some "
        "dev rows are measured, the same ones each time, and the first measurement at a target is a lucky one: compare "
        "methods, do not quote the update.",
    ),
    (
        "Cost",
        "Seconds of search and training together, divided by those of <code>all</code> (every type "
        "on, no search) on the same task and seed; the median. Measuring dev scores is not in it.",
    ),
)
"""Term -> explanation (HTML)."""

STYLE = """<style>
.big{font-size:1.12rem;line-height:1.5;margin:.5rem 0}.big b{font-weight:650}
.verdict{border-left:4px solid var(--line);padding:.15rem 0 .15rem .9rem;margin:.55rem 0}
.verdict.up{border-color:var(--c2)}.verdict.down{border-color:var(--c1)}
.grid table{font-size:.93rem}.grid th,.grid td{padding:.34rem .55rem;white-space:nowrap}
.grid thead th{white-space:normal;min-width:3.6rem}
.grid small{color:var(--faint);font-size:.83rem}.grid .base th{color:var(--faint)}
.grid .up{background:color-mix(in srgb,var(--c2) 14%,transparent)}
.grid .down{background:color-mix(in srgb,var(--c1) 12%,transparent)}
dl.reading dt{font-weight:650;margin-top:.7rem}dl.reading dd{margin:.1rem 0 0}
nav{margin:.6rem 0}nav a{margin-right:1rem}a{color:var(--accent)}
</style>"""


def write_page(
    results: Results | Comparison,
    folder: Path,
    against: str | Sequence[str] | None = None,
    *,
    name: str | None = None,
) -> Path:
    """Write ``compare.html`` and ``plots/*.png``.

    Args:
        results: from :func:`ksel.compare_results.load_results`, or the tables made of it, which are
            then not made again.
        folder: usually the comparison's own.
        against: as in :func:`ksel.compare_results.compare_table`; not with tables made before.
        name: heading of the page; None = the folder's name.

    Raises:
        UsageError: ``against`` names no method of the comparison, or a file cannot be written.
    """
    if isinstance(results, Comparison):
        if against is not None:
            raise ValueError("these tables have their references already")
        comparison = results
    else:
        comparison = compare_table(results, against)
    drawn = figures(comparison)
    write_plots(drawn, Path(folder))
    path = Path(folder) / COMPARE_PAGE
    write_text(path, page(comparison, drawn, name or Path(folder).resolve().name))
    return path


def page(comparison: Comparison, drawn: dict[str, Figure], name: str) -> str:
    """The whole page as HTML.

    Args:
        comparison: the tables.
        drawn: from :func:`ksel.compare_plots.figures`.
        name: of the comparison.
    """
    parts = [STYLE, _header(comparison, name), section("What was found", _summary(comparison))]
    for table in comparison.everything:
        parts.append(_table_section(table, comparison, drawn))
    failed = failures(comparison)
    if failed:
        lines = "".join(f"<li>{escape(line)}</li>" for line in failed)
        parts.append(section("Cells without a score", f"<ul>{lines}</ul>"))
    terms = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in READING)
    more = '<p class="note">More, with the formulas: docs/statistics.md.</p>'
    parts.append(section("How to read this", f'<dl class="reading">{terms}</dl>{more}'))
    return document(f"ksel compare: {name}", "".join(parts))


def _header(comparison: Comparison, name: str) -> str:
    results = comparison.results
    usable, failed = results.usable, results.failed
    counts = sorted(set(usable.groupby(["task", "method"])["seed"].nunique().tolist()))
    span = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else "".join(map(str, counts)) or "0"
    facts = [
        ("tasks", str(len(results.tasks))),
        ("methods", str(len(results.methods))),
        ("seeds", span),
        ("cells", f"{len(usable)} of {len(results.cells)}"),
    ]
    chips = "".join(f'<span class="chip"><b>{key}</b> {text}</span>' for key, text in facts)
    if len(failed):
        chips += f'<span class="chip bad">{len(failed)} without a score</span>'
    loud = "".join(
        f'<p class="loud"><b>Not a benchmark.</b> {escape(note)}.</p>'
        for note in comparison.notes
        if results.generated and "NOT benchmark" in note
    )
    links = "".join(
        f'<a href="#{_anchor(table)}">{escape(table.task or "over tasks")}</a>'
        for table in comparison.everything
    )
    return (
        f"<header><p class='kicker'>ksel compare</p><h1>{escape(name)}</h1><p>{chips}</p>{loud}"
        f"<nav>{links}</nav></header>\n"
    )


def _anchor(table: Table) -> str:
    return f"task-{safe(table.task)}" if table.task else OVER


def _summary(comparison: Comparison) -> str:
    said = sentences(comparison)
    lines = [_sentence(one.text, one.side) for one in said]
    body = "".join(lines[:SAID])
    if len(lines) > SAID:
        rest = "".join(lines[SAID:])
        body += f"<details><summary>{len(lines) - SAID} more</summary>{rest}</details>"
    notes = [note for note in comparison.notes if "NOT benchmark" not in note]
    return (body or missing("Nothing to compare yet.")) + _notes(notes)


def _sentence(text: str, side: int) -> str:
    mark = {1: " up", -1: " down", 0: ""}[side]
    name, rest = text.split(" ", 1)
    return f'<p class="big verdict{mark}"><b>{escape(name)}</b> {escape(rest)}</p>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return "<ul>" + "".join(f'<li class="note">{escape(note)}</li>' for note in notes) + "</ul>"


def _table_section(table: Table, comparison: Comparison, drawn: dict[str, Figure]) -> str:
    found = grids(table, comparison.references)
    name = safe(table.task) if table.task else OVER
    body = f'<p class="note">{escape(unit(table))}.</p>{_html(found[0], table)}'
    body += _notes([*table.notes, *marks(found)])
    labels = {
        f"intervals-{name}": "Scores and differences of each method, with intervals and seeds",
        f"cost-{name}": "Score of each method against its cost",
        f"curves-{name}": "Dev scores on the way of each method",
    }
    for key, label in labels.items():
        if key in drawn:
            body += show(drawn[key], key, f"{label}, {title(table)}")
    for grid in found[1:]:
        body += (
            f"<details{' open' if table.task is None else ''}><summary>{escape(grid.title)}</summary>"
            f"{_html(grid, table)}</details>"
        )
    heading = section(title(table), body)
    return heading.replace("<section>", f'<section id="{_anchor(table)}">', 1)


def _html(grid: Grid, table: Table) -> str:
    """A table of texts as HTML; intervals small under their numbers, findings tinted."""
    head = "".join(f"<th>{escape(text)}</th>" for text in grid.heads)
    head = head.replace("[95 %]", "<small>[95&nbsp;%]</small>").replace("(x all)", "(x&nbsp;all)")
    body = ""
    for cells in grid.rows:
        row = table.row(cells[0])
        mark = ' class="base"' if row is not None and row.role != METHOD else ""
        body += f"<tr{mark}><th>{escape(cells[0])}</th>"
        body += "".join(
            _cell(text, head) for text, head in zip(cells[1:], grid.heads[1:], strict=True)
        )
        body += "</tr>"
    return (
        f'<div class="scroll grid"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, head: str) -> str:
    number, bracket, rest = text.partition(" [")
    if not bracket:
        return f"<td>{escape(text)}</td>"
    tint = ""
    if "difference" in head and not rest.endswith(ONLY_BOOTSTRAP):
        low, high = (float(end) for end in rest.split("]")[0].split(", "))
        tint = ' class="up"' if low > 0 else ' class="down"' if high < 0 else ""
    return f"<td{tint}>{escape(number)} <small>[{escape(rest)}</small></td>"
