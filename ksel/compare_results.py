"""A comparison's files to its tables: ``load_results``, ``compare_table``, ``write_tables``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ksel.compare_files import Results as Results
from ksel.compare_files import load_results as load_results
from ksel.compare_files import write_results as write_results
from ksel.compare_tables import Comparison as Comparison
from ksel.compare_tables import compare_table as compare_table
from ksel.compare_text import markdown, table_csv
from ksel.compare_text import print_comparison as print_comparison
from ksel.files import write_text


def write_tables(
    results: Results, folder: Path, against: str | Sequence[str] | None = None
) -> Comparison:
    """Write ``table.md`` and ``table.csv`` into a folder.

    Args:
        results: from :func:`load_results`.
        folder: usually the comparison's own.
        against: as in :func:`compare_table`.

    Returns:
        What was written.

    Raises:
        UsageError: ``against`` names no method of the comparison, or a file cannot be written.
    """
    comparison = compare_table(results, against)
    write_text(Path(folder) / "table.md", markdown(comparison))
    write_text(Path(folder) / "table.csv", table_csv(comparison))
    return comparison
