"""``python -m ksel.report RUN...``: a run as one HTML file that needs no network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ksel.cli import guard
from ksel.report_page import write_report


def main(argv: list[str]) -> int:
    """Write the report of each run named on the command line and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m ksel.report",
        description="Write RUN/report.html: schedule, curves and summary, one file, offline.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    for run in parser.parse_args(argv).runs:
        print(write_report(run))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
