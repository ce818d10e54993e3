"""A comparison's two files, ``results.parquet`` and ``curves.parquet``: written, read, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ksel.errors import UsageError
from ksel.files import atomic_path

RESULTS_FILE = "results.parquet"
CURVES_FILE = "curves.parquet"
COMPLETE, FAILED = "complete", "failed"
METHOD, BASELINE = "method", "baseline"
DIVERGED = "its score is not a number: the student diverged"
AGAIN = "Run the comparison again with --resume: finished cells are kept, the file is made anew."

RESULT_COLUMNS: dict[str, str] = {
    "task": "text",
    "method": "text",
    "seed": "number",
    "role": "text",
    "status": "text",
    "error": "text",
    "metric": "text",
    "higher_is_better": "flag",
    "score": "number",
    "teacher_score": "number",
    "updates": "number",
    "updates_search": "number",
    "seconds_search": "number",
    "seconds_final": "number",
    "seconds_total": "number",
    "cost": "number",
    "student_forwards": "number",
    "student_backwards": "number",
    "teacher_forwards": "number",
    "reward_objective": "number",
    "run": "text",
}
CURVE_COLUMNS: dict[str, str] = {
    "task": "text",
    "method": "text",
    "seed": "number",
    "update": "number",
    "share": "number",
    "metric": "text",
    "value": "number",
    "rows": "number",
}


@dataclass(frozen=True)
class Results:
    """What a comparison has measured so far.

    Attributes:
        folder: where it lies.
        cells: one row per cell, columns :data:`RESULT_COLUMNS` and ``dev/<metric>``; optional:
            ``builtin_data`` (True = the rows were generated) and ``ended_early`` (why, or None).
        curves: one row per measurement on the way, columns :data:`CURVE_COLUMNS`.
    """

    folder: Path
    cells: pd.DataFrame
    curves: pd.DataFrame

    @property
    def usable(self) -> pd.DataFrame:
        """The finished cells whose score is a number."""
        return self.cells[_usable(self.cells)]

    @property
    def failed(self) -> pd.DataFrame:
        """The others, ``error`` filled in."""
        failed = self.cells[~_usable(self.cells)].copy()
        failed["error"] = [
            str(error) if isinstance(error, str) and error else _why(status)
            for error, status in zip(failed["error"], failed["status"], strict=True)
        ]
        return failed

    @property
    def tasks(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(self.cells["task"]))

    @property
    def methods(self) -> list[str]:
        """In the order of the file; baselines last."""
        first = self.cells[self.cells["role"] == METHOD]["method"]
        return list(dict.fromkeys([*first, *self.cells["method"]]))

    @property
    def ended_early(self) -> list[str]:
        """Finished cells whose student's training ended before its budget, in words."""
        if "ended_early" not in self.cells:
            return []
        cells = self.usable
        cells = cells[cells["ended_early"].notna()]
        names = ["task", "method", "seed", "ended_early"]
        return [
            f"{task}, {method}, seed {seed} ({why})"
            for task, method, seed, why in cells[names].itertuples(index=False)
        ]

    @property
    def generated(self) -> list[str]:
        """Tasks measured on generated data, whose figures are no benchmark's."""
        if "builtin_data" not in self.cells:
            return []
        flags = self.cells["builtin_data"].fillna(False).astype(bool)
        return list(dict.fromkeys(self.cells[flags]["task"]))


def _usable(cells: pd.DataFrame) -> pd.Series:
    return (cells["status"] == COMPLETE) & np.isfinite(cells["score"].astype(float))


def _why(status: str) -> str:
    return DIVERGED if status == COMPLETE else "no error was recorded"


# --------------------------------------------------------------------------- write


def write_results(
    folder: Path, cells: Sequence[Mapping[str, object]], curves: Sequence[Mapping[str, object]]
) -> None:
    """Write both files, each whole or not at all.

    Args:
        folder: of the comparison.
        cells: records with :data:`RESULT_COLUMNS` (and more); what is not known is None.
        curves: records with :data:`CURVE_COLUMNS`; may be empty.
    """
    for name, records, columns in (
        (RESULTS_FILE, cells, RESULT_COLUMNS),
        (CURVES_FILE, curves, CURVE_COLUMNS),
    ):
        frame = _typed(pd.DataFrame(list(records)), columns)
        with atomic_path(folder / name) as temporary:
            pq.write_table(
                pa.Table.from_pandas(frame, preserve_index=False),
                temporary,
                compression="zstd",
                write_page_checksum=True,
            )


def _typed(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The columns that the format asks for first, each of its type even where all is unknown."""
    more = [name for name in frame.columns if name not in columns]
    frame = frame.reindex(columns=[*columns, *more])
    for name, kind in columns.items():
        if kind == "number":
            whole = name in ("seed", "update", "updates", "rows")
            values = pd.to_numeric(frame[name])
            frame[name] = values.astype("Int64" if whole else "float64")
        elif kind == "flag":
            frame[name] = frame[name].astype("bool")
        else:
            frame[name] = frame[name].astype("object").where(frame[name].notna(), None)
    return frame


# --------------------------------------------------------------------------- read


def load_results(folder: Path) -> Results:
    """Read a comparison's files.

    Raises:
        UsageError: one is missing, cut short, damaged, or not what this version of ksel writes;
            names the file and the fix.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}. Give the folder of a comparison.")
    cells = _read(folder / RESULTS_FILE, RESULT_COLUMNS)
    curves = _read(folder / CURVES_FILE, CURVE_COLUMNS)
    path = folder / RESULTS_FILE
    if not len(cells):
        raise UsageError(f"{path} has no cell: nothing was finished yet. {AGAIN}")
    for name, known in (("status", (COMPLETE, FAILED)), ("role", (METHOD, BASELINE))):
        other = sorted(set(cells[name].astype(str)) - set(known))
        if other:
            raise UsageError(
                f"{path}: column {name} holds {', '.join(other)}; known: {', '.join(known)}. It is "
                f"of another version of ksel. {AGAIN}"
            )
    _check_once(path, cells, ["task", "method", "seed"], "cell")
    one = ["task", "method", "seed", "update", "rows"]
    _check_once(folder / CURVES_FILE, curves, one, "measurement")
    for task, group in cells[_usable(cells)].groupby("task", sort=False):
        if group["metric"].nunique() > 1 or group["higher_is_better"].nunique() > 1:
            names = ", ".join(sorted(set(group["metric"].astype(str))))
            raise UsageError(
                f"{path}: the cells of {task} have different metrics ({names}), which do not "
                f"compare. Make them with one version of ksel."
            )
    return Results(folder, cells, curves)


def _read(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    if not path.is_file():
        raise UsageError(f"there is no {path}. Give the folder of a comparison. {AGAIN}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} is cut short or damaged. {AGAIN}") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UsageError(
            f"{path} is not what this version of ksel writes: it has no column "
            f"{', '.join(missing)}. {AGAIN}"
        )
    for name, kind in columns.items():
        if table.num_rows and not _is(kind, table.schema.field(name).type):
            found = table.schema.field(name).type
            raise UsageError(
                f"{path} is not what this version of ksel writes: column {name} holds {found} "
                f"where a {kind} belongs. {AGAIN}"
            )
    frame = table.to_pandas()
    for name, kind in columns.items():
        if kind == "number":
            frame[name] = pd.to_numeric(frame[name]).astype("float64")
    for name in ("seed", "update"):
        if name in frame and frame[name].isna().any():
            raise UsageError(f"{path}: a row has no {name}. {AGAIN}")
        if name in frame:
            frame[name] = frame[name].astype("int64")
    return frame


def _is(kind: str, found: pa.DataType) -> bool:
    types = pa.types
    if types.is_null(found):
        return True
    if kind == "number":
        return types.is_integer(found) or types.is_floating(found)
    if kind == "flag":
        return types.is_boolean(found)
    if types.is_dictionary(found):
        found = found.value_type
    return types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)


def _check_once(path: Path, frame: pd.DataFrame, keys: list[str], what: str) -> None:
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        one = ", ".join(f"{key} {twice.iloc[0][key]}" for key in keys)
        raise UsageError(f"{path} has one {what} twice ({one}). {AGAIN}")
