"""A comparison at work: cells to an executor, records back, tables and page out of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ksel.cell_records import failed_record, write_frames, write_record
from ksel.cells import CELL, TEACHER, Cell
from ksel.cli import INTERRUPTED_EXIT, shielded
from ksel.compare_files import COMPLETE, FAILED
from ksel.compare_page import write_page
from ksel.compare_results import load_results, print_comparison, write_tables
from ksel.executors import Done, Executor, Work
from ksel.files import write_text
from ksel.tracking import Progress

SHOW_EVERY = 60.0
"""Seconds between two drawings of tables and page while cells run, at least."""
SHOW_SHARE = 0.02
"""Share of the time that drawing may take from the cells."""


@dataclass
class Comparison:
    """A comparison at work.

    Attributes:
        folder: where everything lies.
        cells: all of them.
        records: name of a cell -> its record, of those that are done.
        refused: name of a cell -> why its settings cannot be run.
        against: methods that the tables compare with; None = the usual ones.
        slim: whether students' weights are removed once they are measured.
    """

    folder: Path
    cells: list[Cell]
    records: dict[str, dict[str, Any]]
    refused: dict[str, str]
    against: list[str] | None = None
    slim: bool = False

    @property
    def complete(self) -> bool:
        """True if a cell was finished, so that there is something to compare."""
        return any(one["status"] == COMPLETE for one in self.records.values())

    def failing(self) -> list[dict[str, Any]]:
        """Records of cells that failed."""
        return [one for one in self.records.values() if one["status"] == FAILED]


def run_cells(comparison: Comparison, executor: Executor, name: str) -> int:
    """Run the cells that have no record yet, and write everything that is made of them.

    Args:
        comparison: the cells, and the records of those that are finished.
        executor: where they run.
        name: what it is called.

    Returns:
        The exit code: 1 where cells failed, 130 after Ctrl-C.
    """
    cells = {cell.name: cell for cell in comparison.cells}
    todo = [cell for cell in comparison.cells if cell.name not in comparison.records]
    print(_opening(comparison, name, len(cells) - len(todo)))
    with Progress() as progress:
        bar = progress.stage("cells", len(cells))
        bar.advance(len(cells) - len(todo))
        try:
            with executor:
                for record in _records(comparison, executor, todo, progress.say):
                    bar.advance(failed=len(comparison.failing()))
                    progress.say(_line(record))
        except KeyboardInterrupt:
            progress.say(
                f"stopped by Ctrl-C after {len(comparison.records)} of {len(cells)} cells; go on with "
                f"--resume {comparison.folder}"
            )
            with shielded():
                _write(comparison)
            return INTERRUPTED_EXIT
    _write(comparison, console=True)
    return _closing(comparison)


def _opening(comparison: Comparison, executor: str, finished: int) -> str:
    count = len(comparison.cells)
    before = f", {finished} of them finished before" if finished else ""
    return f"compare: {count} cells{before}; executor {executor}; folder {comparison.folder}"


def _records(
    comparison: Comparison, executor: Executor, todo: Sequence[Cell], say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Run the cells, each task's after its teacher; every record is kept before it is given.

    A task's teacher is prepared with the settings of its first cell. Where these cannot be, that cell
    has failed, and the next one's are taken.
    """
    due = time.monotonic() + SHOW_EVERY
    for cell in todo:
        if cell.name in comparison.refused:
            done = Done(_piece(comparison, cell), None, comparison.refused[cell.name])
            yield _keep(comparison, cell, done)
    waiting: dict[str, list[Cell]] = {}
    for cell in todo:
        if cell.name not in comparison.refused:
            waiting.setdefault(cell.task, []).append(cell)
    by_name = {cell.name: cell for cell in todo}

    def prepare(task: str) -> None:
        first = waiting[task][0]
        say(f"{task}: its data and teacher, see logs/{TEACHER}-{first.name}.log")
        executor.submit(_piece(comparison, first, TEACHER))

    for task in waiting:
        prepare(task)
    for done in executor.finished():
        cell = by_name[done.work.payload["name"]]
        if done.work.payload["kind"] == CELL:
            yield _keep(comparison, cell, done)
            began = time.monotonic()
            if began > due:
                _draw(comparison)
                spent = time.monotonic() - began
                due = began + max(SHOW_EVERY, spent / SHOW_SHARE)
            continue
        if done.error is None:
            for one in waiting[cell.task]:
                executor.submit(_piece(comparison, one))
            continue
        # what it was prepared with are this cell's settings, its pool too: another may do better
        waiting[cell.task].remove(cell)
        yield _keep(comparison, cell, replace(done, work=_piece(comparison, cell)))
        if waiting[cell.task]:
            prepare(cell.task)


def _piece(comparison: Comparison, cell: Cell, kind: str = CELL) -> Work:
    identity = {key: getattr(cell, key) for key in ("task", "method", "seed", "role")}
    payload = {
        "kind": kind,
        "folder": str(comparison.folder),
        "name": cell.name,
        "identity": identity,
        "played": cell.played,
        "slim": comparison.slim,
    }
    return Work(f"{kind} {cell.name}", payload)


def _keep(comparison: Comparison, cell: Cell, done: Done) -> dict[str, Any]:
    """Write a cell's record, and its traceback where it failed."""
    record = done.result
    if record is None:
        identity = {key: getattr(cell, key) for key in ("task", "method", "seed", "role")}
        record = failed_record(identity, done.error or "", cell.name)
        if done.details:
            write_text(comparison.folder / "cells" / f"{cell.name}.traceback.txt", done.details)
    write_record(comparison.folder, cell.name, record)
    comparison.records[cell.name] = record
    _write_frames(comparison)
    return record


def _line(record: Mapping[str, Any]) -> str:
    name = f"{record['task']}, {record['method']}, seed {record['seed']}"
    if record["status"] == FAILED:
        return f"{name}: FAILED: {record['error']}"
    score = f"{record['metric']} {record['score']:.4f}"
    return f"{name}: {score} in {record['seconds_total']:.1f} s"


def _write(comparison: Comparison, console: bool = False) -> None:
    """Write tables, plots and page of the cells that are done."""
    _write_frames(comparison)
    if comparison.complete:
        tables = write_tables(
            load_results(comparison.folder), comparison.folder, comparison.against
        )
        write_page(tables, comparison.folder)
        if console:
            print_comparison(tables)


def _draw(comparison: Comparison) -> None:
    """As :func:`_write`, while cells run: what goes wrong with a table must not end them."""
    try:
        _write(comparison)
    except Exception as error:
        print(f"tables not drawn this time: {type(error).__name__}: {error}", file=sys.stderr)


def _write_frames(comparison: Comparison) -> None:
    order = [comparison.records[c.name] for c in comparison.cells if c.name in comparison.records]
    if order:
        write_frames(comparison.folder, order)


def _closing(comparison: Comparison) -> int:
    failing = comparison.failing()
    if comparison.complete:
        print(f"tables: {comparison.folder / 'table.md'} and {comparison.folder / 'table.csv'}")
        print(f"page: {comparison.folder / 'compare.html'}")
    if not failing:
        return 0
    print(f"{len(failing)} of {len(comparison.cells)} cells failed:")
    for record in failing:
        print(f"  {_line(record)}")
    print(f"their logs are in {comparison.folder / 'logs'}; --resume runs them again")
    return 1
