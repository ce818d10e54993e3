"""``python -m ksel.compare``: methods x tasks x seeds, paired, resumable. Parses, runs, writes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from agents.make import AGENTS
from agents.reading import unread
from ksel import run
from ksel.cell_records import read_records
from ksel.cells import (
    AUTO,
    FROM,
    PLAN,
    Cell,
    Plan,
    check_same,
    forget,
    make_plan,
    read_plan,
    safe,
    short,
    write_cells,
)
from ksel.cli import guard, quiet_libraries
from ksel.compare_files import COMPLETE
from ksel.compare_worker import work
from ksel.comparing import Comparison, run_cells
from ksel.config import RunConfig
from ksel.contenders import ALL, Contender, cell_settings, contender, pool_of, usual_baselines
from ksel.errors import UsageError, unknown_name
from ksel.executors import (
    Executor,
    Inline,
    Local,
    check_executor,
)
from ksel.executors_ray import Ray
from ksel.files import write_text
from ksel.grids import Key, flattened
from ksel.locks import alone
from ksel.machine import available_cores
from ksel.methods import merged, packaged, read_yaml
from ksel.settings import QUICK, partial_settings
from ksel.tasks import get_task

PROG = "python -m ksel.compare"
EVALUATIONS = 10
"""Measurements on the way of a cell, unless told otherwise: a curve needs more than a run's four."""


def main(argv: list[str]) -> int:
    """Run every cell that is not finished yet; 1 where some failed."""
    quiet_libraries()
    own, rest = _parse(argv)
    _check_executor(own)
    plan = _plan(own, rest)
    folder = _folder(own, plan)
    cells, refused = _cells(plan, set(_asked(own, rest)))
    _check_against(own, cells)
    executor = _executor(own, plan, folder)
    for line in _notes(plan):
        print(line)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if own.resume is not None:
            check_same(plan, folder)
        elif (folder / PLAN).exists():
            forget(folder, cells)  # a comparison of which no cell was finished
        write_cells(folder, cells)
        write_text(folder / PLAN, plan.text())
        records = read_records(folder, [cell.name for cell in cells])
        done = {name: one for name, one in records.items() if one["status"] == COMPLETE}
        comparison = Comparison(folder, cells, done, refused, own.against, own.slim)
        return run_cells(comparison, executor, own.executor)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} [FILE] --task T ... --methods M ... [--seeds N] [--out DIR] [any setting of a run]",
        description="Run methods on tasks over seeds, with the same start, batches and budget, and "
        "compare them.",
        epilog="A method is an agent, a file of configs/methods, METHOD+AGENT, all, finetune, a "
        "knowledge type, only:TYPE+TYPE, FILE.yaml, policy:RUN or schedule:RUN; label=METHOD names "
        "it. All other options are a run's settings (python -m ksel.run --help) and hold for all "
        "cells. See docs/compare.md.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--config", type=Path, metavar="FILE", help="comparison as YAML; FILE as the first word too"
    )
    add("--task", "--tasks", nargs="+", dest="tasks", help="tasks, or label=task")
    add("--methods", nargs="+", help="what is compared")
    add(
        "--baselines", nargs="+", help="names of methods beside them; none; default: the usual ones"
    )
    add("--seeds", nargs="+", help="a number of seeds, or a list with commas; default 5")
    add("--against", nargs="+", help="methods that tables compare with; default: all, best_static")
    add("--out", type=Path, help="the comparison's folder; default compare/TASKS or compare/FILE")
    add(
        "--resume",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="DIR",
        help="go on with the folder (DIR, or --out): finished cells stay, failed ones run again",
    )
    add("--executor", default="local", help="inline, local (default) or ray")
    add("--workers", type=int, help="local: worker processes; default: cores / threads")
    add("--threads", type=int, help="threads of each cell; default 1")
    add(
        "--ray_address", metavar="ADDRESS", help="ray: an existing cluster; default: one of its own"
    )
    add("--ray_cpus", type=float, help="ray: CPUs of a cell; default: its threads")
    add("--ray_gpus", type=float, default=0.0, help="ray: GPUs of a cell; 0.25 = four share one")
    add("--slim", action="store_true", help="remove each student's weights once it is measured")
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--config", *words]
    own, rest = parser.parse_known_args(words)
    for part in ("tasks", "methods", "baselines", "against"):
        found = _listed(getattr(own, part))
        setattr(own, part, found and [word for word in found if word])
    own.seeds = _listed(own.seeds)
    return own, rest


def _check_executor(own: argparse.Namespace) -> None:
    """Refuse an unknown executor, and options of another one.

    Raises:
        UsageError: names the option.
    """
    check_executor(own.executor)
    given = {
        "--workers": own.workers is not None and own.executor == "inline",
        "--ray_address": own.ray_address is not None and own.executor != "ray",
        "--ray_cpus": own.ray_cpus is not None and own.executor != "ray",
        "--ray_gpus": own.ray_gpus != 0 and own.executor != "ray",
    }
    for option, unused in given.items():
        if unused:
            raise UsageError(f"{option}: not used with --executor {own.executor}. Leave it out.")


def worker_count(workers: int | None, threads: int) -> int:
    """How many workers: as asked, else as many as have a core for each thread.

    Raises:
        UsageError: none.
    """
    if threads < 1:
        raise UsageError(f"--threads: {threads}; each worker needs 1 or more.")
    if workers is None:
        return max(1, available_cores() // threads)
    if workers < 1:
        raise UsageError(f"--workers: {workers} workers run nothing. Give 1 or more.")
    return workers


def _listed(words: list[str] | None) -> list[str] | None:
    """Words with or without commas as one list; ``3,`` is a list too."""
    if words is None:
        return None
    return [part.strip() for word in words for part in word.split(",")]


# --------------------------------------------------------------------------- what is to be run


def _plan(own: argparse.Namespace, rest: Sequence[str]) -> Plan:
    base = partial_settings(rest, PROG)
    if own.threads is not None:
        base["threads"] = own.threads
    bare = own.tasks is None and own.methods is None and own.config is None and not base
    if own.resume is not None and bare:
        return make_plan(read_plan(_resumed(own) / PLAN), seeds=own.seeds)
    if own.resume is not None and own.tasks is None and own.config is None and "task" not in base:
        raise UsageError(
            "--resume: it stands alone (--resume DIR), beside --seeds, or beside the whole command that "
            "made the folder, with more tasks or methods. Repeat the whole command, or leave the rest out."
        )
    given = read_plan(own.config) if own.config is not None else {}
    if own.config is None and base.get("data", "builtin") == "builtin":
        base = merged(read_yaml(Path(packaged(QUICK))), base)
    usual = {"evaluations": EVALUATIONS, "threads": 1}
    return make_plan(
        {**given, "base": merged(usual, given.get("base") or {})},
        tasks=own.tasks,
        methods=own.methods,
        baselines=own.baselines,
        seeds=own.seeds,
        base=base,
    )


def _resumed(own: argparse.Namespace, usual: Path | None = None) -> Path:
    """The folder to go on with: named by --resume, by --out, or the usual one of the command."""
    folder: Path | None = own.out or usual if own.resume == Path() else own.resume
    if folder is None:
        raise UsageError("--resume: name the folder: --resume DIR.")
    if not (folder / PLAN).is_file():
        raise UsageError(f"--resume: {folder} holds no comparison ({PLAN}). Leave --resume out.")
    return folder.resolve()


def _folder(own: argparse.Namespace, plan: Plan) -> Path:
    """The comparison's folder; a new one, or one to go on with.

    Raises:
        UsageError: there is one already, or none to go on with.
    """
    name = own.config.stem if own.config is not None else "-".join(map(safe, plan.tasks))
    usual = Path("compare") / name
    if own.resume is not None:
        return _resumed(own, usual)
    folder = Path(own.out or usual)
    if (folder / PLAN).exists() and any((folder / "cells").glob("*.json")):
        raise UsageError(
            f"--out: {folder} holds a comparison already. Add --resume to go on with it, or choose "
            f"another --out."
        )
    return folder.resolve()


def _asked(own: argparse.Namespace, rest: Sequence[str]) -> Iterator[Key]:
    """The settings that the user gives for all cells; those of quick.yaml are not the user's, and those
    of a file are not asked of a part of its methods."""
    whole = own.config is not None and own.methods is None and own.baselines is None
    file = read_plan(own.config)["base"] if whole else {}
    for key, _ in flattened(merged(file, partial_settings(rest, PROG))):
        if key:
            yield key


def _check_against(own: argparse.Namespace, cells: Sequence[Cell]) -> None:
    known = dict.fromkeys(cell.method for cell in cells)
    for name in own.against or ():
        if name not in known:
            raise unknown_name("method of this comparison", name, known, "--against")


def _cells(plan: Plan, asked: set[Key]) -> tuple[list[Cell], dict[str, str]]:
    """All cells, seed by seed; and the names of those whose settings cannot be run, with the reason.

    Args:
        plan: what is to be compared.
        asked: settings for all cells that some cell must follow.

    Raises:
        UsageError: an unknown method, a method that can be run on no task, or a setting that no
            method reads.
    """
    table: dict[tuple[str, str], tuple[Contender, dict[str, Any]]] = {}
    unused = set(asked)
    for label, own in plan.tasks.items():
        base = merged(plan.base, {"task": own.get(FROM, label), **_bare(own)})
        if base["task"] != "custom":
            get_task(base["task"])
        for one in _contenders(plan, base):
            settings, away = cell_settings(one, base, unread)
            table[label, one.label] = one, settings
            unused &= away
    if unused:
        name = ".".join(min(unused))
        raise UsageError(f"--{name}: no method of this comparison reads it. Leave it out.")
    problems = _problems({pair: settings for pair, (_, settings) in table.items()}, plan.seeds[0])
    cells, refused = [], {}
    for seed in plan.seeds:
        for (task, label), (one, settings) in table.items():
            whole = {**settings, "seed": seed, "references": []}
            cell = Cell(task, label, seed, one.role, whole, one.played)
            cells.append(cell)
            if (task, label) in problems:
                refused[cell.name] = problems[task, label]
    return cells, refused


def _notes(plan: Plan) -> Iterator[str]:
    """What is compared otherwise than its name says: lines for the user, each once."""
    lines: dict[str, None] = {}
    for label, own in plan.tasks.items():
        base = merged(plan.base, {"task": own.get(FROM, label), **_bare(own)})
        pool = pool_of(base)
        for one in _contenders(plan, base):
            has = dict(flattened(base))
            names = ", ".join(
                f"--{name}"
                for name, value in one.left_out.items()
                if value != has.get(tuple(name.split(".")), _default(name))
            )
            if names:
                lines[
                    f"note: {one.label}: its own {names} is not followed; that must be one for all methods."
                ] = None
            played = pool_of(one.settings)
            if one.played and played != pool:
                lines[
                    f"note: {one.label}: {one.played['run']} decides over its own pool "
                    f"({', '.join(played)}), not over the comparison's ({', '.join(pool)})."
                ] = None
    yield from lines


def _default(name: str) -> Any:
    """What a setting of a run is where nobody sets it."""
    return reduce(getattr, name.split("."), RunConfig())


def _bare(own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in own.items() if key != FROM}


def _contenders(plan: Plan, base: Mapping[str, Any]) -> list[Contender]:
    """The baselines, then the methods; a method that is one of the baselines counts as that."""
    pool = pool_of(base)
    names = usual_baselines(pool, AGENTS) if plan.baselines == [AUTO] else plan.baselines
    found: dict[str, Contender] = {}
    for name in names:
        one = contender(short(name), {FROM: name}, "baseline", pool, AGENTS)
        found[one.label] = one
    for label, own in plan.methods.items():
        one = contender(label, own, "method", pool, AGENTS)
        if label in found and replace(one, role="baseline") != found[label]:
            raise UsageError(
                f"--methods: '{label}' is the name of a baseline. Call it otherwise: NAME={label}, "
                f"or leave the baseline out with --baselines."
            )
        if label == ALL and dict(own) != {FROM: ALL}:
            raise UsageError(
                f"--methods: '{ALL}' is all types on, the unit of costs. Call it otherwise: such as mine={own[FROM]}."
            )
        found.setdefault(label, one)
    return list(found.values())


def _problems(
    table: Mapping[tuple[str, str], Mapping[str, Any]], seed: int
) -> dict[tuple[str, str], str]:
    """(task, method) -> why a run refuses its settings.

    Raises:
        UsageError: a method is refused on every task.
    """
    problems: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.yaml"
        for (task, label), settings in table.items():
            path.write_text(Cell(task, label, seed, "", {**settings, "references": []}).text())
            try:
                run.read_settings(["--config", str(path)])
            except UsageError as error:
                problems[task, label] = str(error)
    tasks = {task for task, _ in table}
    for label in dict.fromkeys(label for _, label in table):
        if all((task, label) in problems for task in tasks):
            raise UsageError(f"{label}: {problems[min(tasks), label]}")
    return problems


# --------------------------------------------------------------------------- running them


def _executor(own: argparse.Namespace, plan: Plan, folder: Path) -> Executor:
    if own.executor == "inline":
        return Inline(lambda payload: work({**payload, "inline": True}))
    threads = int(plan.base["threads"])
    workers = worker_count(own.workers, threads)
    if own.executor == "ray":
        return Ray(
            work,
            address=own.ray_address,
            cpus=threads if own.ray_cpus is None else own.ray_cpus,
            gpus=own.ray_gpus,
            threads=threads,
            workers=own.workers,
        )
    command = [sys.executable, "-m", "ksel.compare_worker"]
    return Local(command, workers, threads, folder / "logs" / "workers.log")


if __name__ == "__main__":
    sys.exit(guard(main))
