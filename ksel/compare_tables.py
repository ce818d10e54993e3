"""A comparison's tables: against what methods are held, and what the reader must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ksel.compare_curves import STATIC
from ksel.compare_files import Results
from ksel.compare_rows import LEAST_TEACHER, Table, TaskScores, over_table, task_scores, task_table
from ksel.errors import UsageError, unknown_name
from ksel.statistics import FEWEST_SEEDS, smallest_p

ALL = "all"
BEST_STATIC = STATIC[0]
REFERENCES = (ALL, BEST_STATIC)
SURE = 0.05
"""Below this a corrected p counts as a finding."""


@dataclass(frozen=True)
class Comparison:
    """A comparison's tables.

    Attributes:
        results: what they are made of.
        references: the methods that others are compared with.
        tables: one per task with a finished student.
        over: over all tasks; None with fewer than two that can be put together.
        notes: what holds for all of them.
    """

    results: Results
    references: tuple[str, ...]
    tables: tuple[Table, ...]
    over: Table | None
    notes: tuple[str, ...]

    @property
    def main(self) -> Table | None:
        """The table to read first."""
        return self.over or (self.tables[0] if self.tables else None)

    @property
    def everything(self) -> list[Table]:
        """All tables, that over tasks first."""
        return [*([self.over] if self.over else []), *self.tables]


def compare_table(results: Results, against: str | Sequence[str] | None = None) -> Comparison:
    """The tables of a comparison.

    Args:
        results: from :func:`load_results`.
        against: methods to compare with; None = ``all`` and ``best_static``, those that were run.

    Raises:
        UsageError: ``against`` names a method that is not in the comparison.
    """
    references = _references(results, against)
    scores = task_scores(results)
    tables = [task_table(one, results, references) for one in scores]
    together = [one for one in scores if np.isfinite(one.unit)]
    over = None
    if len(together) > 1:
        own = [table for table in tables if table.task in {one.task for one in together}]
        over = over_table(together, own, results, references)
        over = _with_notes(over, _over_notes(over, scores, references))
    tables = [_with_notes(table, _notes(table, references)) for table in tables]
    return Comparison(
        results, references, tuple(tables), over, _common(results, references, scores)
    )


def count(number: int, what: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _references(results: Results, against: str | Sequence[str] | None) -> tuple[str, ...]:
    known = results.methods
    if against is None:
        return tuple(name for name in REFERENCES if name in known)
    names = [against] if isinstance(against, str) else list(against)
    for name in names:
        if name not in known:
            raise unknown_name("method", name, known, "--against")
    if not names:
        raise UsageError("--against: name a method, or leave it out.")
    return tuple(dict.fromkeys(names))


# --------------------------------------------------------------------------- notes


def _with_notes(table: Table, notes: Sequence[str]) -> Table:
    return Table(**{**table.__dict__, "notes": tuple(dict.fromkeys(notes))})


def _common(
    results: Results, references: Sequence[str], scores: Sequence[TaskScores]
) -> tuple[str, ...]:
    notes = []
    if results.generated:
        notes.append(
            f"generated data, NOT benchmark scores: {', '.join(results.generated)} was measured on "
            f"a built-in corpus"
        )
    if not scores:
        notes.append("no cell has finished: there is nothing to compare")
    if not references:
        notes.append(
            f"no differences: neither {' nor '.join(REFERENCES)} was run; --against METHOD names "
            f"another reference"
        )
    torsos = results.ended_early
    if torsos:
        notes.append(f"ended early, so their scores are those of torsos: {'; '.join(torsos)}")
    failed = len(results.failed)
    if failed:
        cells = count(failed, "cell")
        notes.append(
            f"{cells} of {len(results.cells)} gave no score (listed below); differences are over the "
            f"seeds that both methods have"
        )
    return tuple(notes)


def _notes(table: Table, references: Sequence[str]) -> list[str]:
    """What the reader of a table must know of seeds, intervals and tests."""
    each = "" if table.task else " on each task"
    notes = [
        f"{row.method}: {row.interval.note}{each}"
        for row in table.rows
        if not row.interval.known and row.seeds >= FEWEST_SEEDS
    ]
    few = {row.seeds for row in table.rows if row.seeds < FEWEST_SEEDS and table.task}
    if few:
        counts = " or ".join(map(str, sorted(few)))
        notes.append(
            f"too few seeds: no interval where a method has {counts} on a task; at least "
            f"{FEWEST_SEEDS} are needed"
        )
    for row in table.rows:
        for one in row.versus:
            if one.seeds < row.seeds:
                notes.append(
                    f"{row.method} against {one.against}: {count(one.seeds, 'pair')}, the seeds that both have"
                )
            if row.seeds >= FEWEST_SEEDS and not one.interval.known and one.interval.note:
                notes.append(f"{row.method} against {one.against}: {one.interval.note}{each}")
    if not table.higher:
        notes.append(f"a lower {table.metric} is better; differences above zero are improvements")
    notes += [goal.note for goal in table.targets if goal.note]
    return notes + _power(table, references)


def _power(table: Table, references: Sequence[str]) -> list[str]:
    """Where the test could not have found anything: so many pairs, so many methods."""
    notes = []
    for name in references:
        tested = [one for row in table.rows if (one := row.against(name)) and np.isfinite(one.holm)]
        if not tested:
            continue
        pairs, family = max(one.seeds for one in tested), len(tested)
        least = min(1.0, family * smallest_p(pairs))
        if least >= SURE:
            needed = int(np.ceil(1 + np.log2(family / SURE)))
            methods = count(family, "method")
            notes.append(
                f"against {name}: {count(pairs, 'pair')} and {methods} give a corrected p of {least:.3g} at "
                f"best, so none can be below {SURE}; {needed} pairs could"
            )
    return notes


def _over_notes(table: Table, scores: Sequence[TaskScores], references: Sequence[str]) -> list[str]:
    notes = [
        f"{one.task} is left out: "
        + (
            f"its teacher's score of {one.teacher:.3f} is too near zero to measure others in"
            if np.isfinite(one.teacher)
            else "its teacher's score is not known"
        )
        + f" (at least {LEAST_TEACHER})"
        for one in scores
        if not np.isfinite(one.unit)
    ]
    whole = len(table.tasks)
    for row in table.rows:
        if row.tasks < whole:
            notes.append(f"{row.method}: mean over {row.tasks} of {whole} tasks, those it has")
        notes += [
            f"{row.method} against {one.against}: over the {one.tasks} tasks that have both"
            for one in row.versus
            if one.tasks < whole
        ]
    return notes + _notes(table, references)
