"""Files of examples as tables: parquet, csv, tsv, JSON lines, and the original files of SQuAD."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ksel.answers import official_table
from ksel.errors import UsageError


def read_frame(path: Path, option: str) -> pd.DataFrame:
    """Read one file.

    Args:
        path: its ending says what it is (:data:`READERS`).
        option: the option that named the file, for error messages.

    Raises:
        UsageError: no such file, another ending, or a file that is damaged or half-written.
    """
    where = f"{option}: {path}"
    if path.suffix.lower() not in READERS:
        raise UsageError(f"{where} ends in none of {', '.join(READERS)}; convert it to one.")
    if not path.is_file():
        raise UsageError(f"{where} is not there, or is not a file; check the path.")
    try:
        return READERS[path.suffix.lower()](path)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UsageError(
            f"{where} cannot be read as {path.suffix[1:]} (damaged, or half-written?): {error}. "
            f"Make or copy the file anew."
        ) from error


def _read_parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _table(csv.reader(file, strict=True))


def _read_tsv(path: Path) -> pd.DataFrame:
    # GLUE's .tsv files hold bare quotation marks inside the texts
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _table(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _table(lines: Any) -> pd.DataFrame:
    """A frame of strings; unlike pandas' reader it refuses lines of the wrong width."""
    header = next(lines, None)
    if header is None:
        return pd.DataFrame()
    rows = []
    for row in lines:
        if len(row) not in (0, len(header)):
            raise ValueError(
                f"line {lines.line_num} has {len(row)} fields where the header has {len(header)}"
            )
        if row:
            rows.append(row)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _read_jsonl(path: Path) -> pd.DataFrame:
    records = []
    # not splitlines, which cuts at U+2028 and U+0085 inside strings too
    for number, line in enumerate(path.read_bytes().decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is not a JSON object with one entry per column")
        records.append(record)
    # dtype=object keeps 1 an int beside a missing value
    return pd.DataFrame(records, dtype=object)


def _read_json(path: Path) -> pd.DataFrame:
    """SQuAD's original files are one JSON object; any other .json holds JSON lines."""
    try:
        whole = json.loads(path.read_bytes().decode("utf-8"))
    except json.JSONDecodeError:
        return _read_jsonl(path)
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        return official_table(whole["data"])
    return _read_jsonl(path)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}
"""File name ending -> reader; .json holds JSON lines, or one of SQuAD's original files."""
