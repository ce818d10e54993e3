"""``python -m ksel.sweep FILE``: a grid of runs, one table and one plot. Parses, runs, writes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ksel import run
from ksel.checkpoints import FOLDER
from ksel.cli import guard
from ksel.errors import UsageError
from ksel.files import atomic_path, write_text
from ksel.grids import Cell, Grid, Key, flattened, read_grid
from ksel.methods import read_yaml
from ksel.sweep_results import Result, markdown_table, sweep_image, table_csv

PROG = "python -m ksel.sweep"
OWN = ("out", "name", "seed")
"""Settings that the sweep sets itself."""


def main(argv: list[str]) -> int:
    """Run every cell that is not finished yet; returns the exit code."""
    arguments, rest = _parse(argv)
    grid = read_grid(arguments.file)
    _check_options(arguments.file, grid, rest)
    folder = Path(arguments.out or Path("sweeps") / arguments.file.stem)
    _check_folder(folder, grid, rest)
    results: list[Result] = []
    for number, cell in enumerate(grid.cells, 1):
        print(f"\ncell {number} of {len(grid.cells)}: {_words(cell)}", flush=True)
        results.append(_result(cell, folder, rest))
        _write(folder, grid, results)
    finished = [one for one in results if one.summary is not None]
    if not finished:
        raise UsageError(f"{arguments.file}: no cell could be run. {results[0].reason}")
    print(f"\n{markdown_table(grid.axes, results)}")
    print(f"table: {folder / 'table.md'} and {folder / 'table.csv'}")
    print(f"plot: {folder / 'plot.png'}")
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} FILE [--out DIR] [any setting of a run]",
        description="Run a grid of settings, and write one table and one plot.",
        epilog="FILE: base (settings of every cell, with {axis} placeholders), grid (axis -> labels, "
        "or labels with settings), seeds. See configs/sweeps. Other options are a run's settings "
        "and hold for every cell; one that an axis decides is refused. Finished cells are not run "
        "again.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="sweep file (YAML)")
    parser.add_argument("--out", help="folder of the sweep; default sweeps/FILE")
    arguments, rest = parser.parse_known_args(list(argv))
    return arguments, rest


def _check_options(file: Path, grid: Grid, rest: Sequence[str]) -> None:
    """Refuse options that would change what a label stands for, or what the sweep sets itself.

    Raises:
        UsageError: names the option, and the axis.
    """
    for option, key in _options(rest):
        if key[0] in OWN:
            raise UsageError(
                f"{option}: the sweep sets it itself. Leave it out, or use seeds in FILE."
            )
        axis = grid.axis_of(key)
        if axis is not None:
            raise UsageError(
                f"{option}: axis {axis} of {file} decides this setting, and every cell would get "
                f"the option's value under the axis' label. Leave it out, or change grid.{axis} in "
                f"FILE."
            )


def _options(rest: Sequence[str]) -> Iterator[tuple[str, Key]]:
    """The options on the command line and in its ``--config`` files, each with its setting."""
    for place, word in enumerate(rest):
        if not word.startswith("--"):
            continue  # the value, or one of the values, of the option before it
        name, equals, value = word.removeprefix("--").partition("=")
        if name == "config":
            config = value if equals else "".join(rest[place + 1 : place + 2])
            for key, _ in flattened(read_yaml(Path(config))):
                if key:
                    yield f"--config {config}: {'.'.join(key)}", key
        else:
            name = name.removesuffix("+")  # --SETTING+ VALUE adds to a list
            yield f"--{name}", tuple(name.split("."))


def _words(cell: Cell) -> str:
    return ", ".join(
        [*(f"{axis} {label}" for axis, label in cell.labels.items()), f"seed {cell.seed}"]
    )


def _check_folder(folder: Path, grid: Grid, rest: list[str]) -> None:
    """A folder belongs to one sweep: refuse to mix cells of other settings into it.

    Raises:
        UsageError: the folder holds cells of the same name with other settings.
    """
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for cell in grid.cells:
        path = folder / "cells" / f"{cell.name}.yaml"
        text = _cell_text(cell, rest)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"--out: {folder} holds a cell {cell.name} with other settings. Choose another "
                f"--out, or repeat the command that made it."
            )
        write_text(path, text)


def _cell_text(cell: Cell, rest: list[str]) -> str:
    words = f"# command line: {json.dumps(rest)}\n" if rest else ""
    return words + yaml.safe_dump(cell.settings, sort_keys=False, allow_unicode=True)


def _result(cell: Cell, folder: Path, rest: list[str]) -> Result:
    """The cell's run: the finished one, or an interrupted one that is gone on with, or a new one."""
    runs = folder / "runs"
    name, number = cell.name, 1
    while (runs / name).exists():
        summary = _summary(runs / name)
        if summary is not None and summary.get("status") == "complete":
            print(f"finished before: {runs / name}")
            return Result(cell, summary, None)
        if (runs / name / FOLDER).is_dir():
            break
        number += 1
        name = f"{cell.name}-{number}"
    path = folder / "cells" / f"{cell.name}.yaml"
    words = ["--config", str(path), *rest, "--out", str(runs), "--name", name]
    if (runs / name / FOLDER).is_dir():
        words = ["--resume", str(runs / name)]
    try:
        code = run.main(words)
    except UsageError as error:
        print(f"not run: {error}")
        return Result(cell, None, str(error))
    if code != 0:
        raise KeyboardInterrupt
    return Result(cell, _summary(runs / name), None)


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def _write(folder: Path, grid: Grid, results: list[Result]) -> None:
    write_text(folder / "table.md", markdown_table(grid.axes, results) + "\n")
    write_text(folder / "table.csv", table_csv(grid.axes, results))
    if any(one.summary is not None for one in results):
        with atomic_path(folder / "plot.png") as temporary:
            temporary.write_bytes(sweep_image(grid.axes, results))


if __name__ == "__main__":
    sys.exit(guard(main))
