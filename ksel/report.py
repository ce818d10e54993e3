"""``python -m ksel.report RUN...``: one run, or several side by side, as one HTML file that needs no network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.policy import Policy, load_policy, read_header
from agents.responses import blind_spot, respond_with
from ksel.cli import guard
from ksel.errors import UsageError
from ksel.files import write_text
from ksel.page import is_own
from ksel.report_learned import Learned
from ksel.report_page import REPORT_FILE, page
from ksel.report_run import Run, load_run
from ksel.report_runs import Together, default_path, groups, load_runs, write_runs
from ksel.responses import ROWS, partial_dependence, same_observations, spread_rows
from ksel.saved import SCHEDULE


def main(argv: list[str]) -> int:
    """Write the report of the runs named on the command line and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m ksel.report",
        description="One run: schedule, what the policy learned, curves, summary. Several: side by side.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"the HTML file; default: RUN/{REPORT_FILE}, of several runs {REPORT_FILE} beside them",
    )
    arguments = parser.parse_args(argv)
    if len(arguments.runs) == 1:
        run = load_run(arguments.runs[0])
        refuse_damaged([run])
        path = arguments.out or run.folder / REPORT_FILE
        refuse_foreign(path, [run])
        write_text(path, page(run, learned_by(run)))
    else:
        runs = load_runs(arguments.runs)
        refuse_damaged(runs)
        path = arguments.out or default_path(arguments.runs)
        refuse_foreign(path, [])
        write_runs(path, runs, learned_together(runs))
    print(path)
    return 0


def refuse_damaged(runs: Sequence[Run]) -> None:
    """Refuse runs whose schedule is there and cannot be read: a page without it would say wrong things.

    Raises:
        UsageError: names the file and the fix.
    """
    for run in runs:
        reason = run.problems.get(SCHEDULE)
        if reason is not None and (run.folder / SCHEDULE).is_file():
            raise UsageError(f"RUN: {reason}")


def refuse_foreign(path: Path, runs: Sequence[Run]) -> None:
    """Refuse to write over a file that is no page of ksel.

    Args:
        path: of the page that is to be written.
        runs: whose own reports may be written anew, whatever they hold.

    Raises:
        UsageError: names the file and the fix.
    """
    own = [(run.folder / REPORT_FILE).resolve() for run in runs]
    if path.is_file() and path.resolve() not in own and not is_own(path):
        raise UsageError(
            f"--out: {path} exists and is no page of ksel, so it is left as it is. Choose another name."
        )


def learned_by(run: Run) -> Learned:
    """How the policy of a run responds to what it observed."""
    try:
        policy, observations = policy_of(run), observations_of(run)
    except UsageError as error:
        return Learned(reason=str(error).rstrip("."))
    assert run.schedule is not None
    return Learned(partial_dependence(respond_with(policy), observations, run.schedule.features))


def learned_together(runs: Sequence[Run]) -> Together:
    """How the policies of several runs respond, and how alike those of one pool act."""
    learned = [learned_by(run) for run in runs]
    same: dict[tuple[int, ...], np.ndarray] = {}
    for members in groups(runs):
        if all(learned[index].response is not None for index in members):
            each = [spread_rows(observations_of(runs[index]), ROWS) for index in members]
            responds = [respond_with(policy_of(runs[index])) for index in members]
            same[members] = same_observations(responds, np.concatenate(each))
    return Together(learned, same)


def policy_of(run: Run) -> Policy:
    """The policy that a run left behind; nothing is unpickled.

    Raises:
        UsageError: there is none, or a schedule cannot tell how it responds (the message says why).
    """
    if run.schedule is None:
        raise UsageError("no decisions were recorded")
    if not (run.folder / "policy" / "policy.json").is_file():
        raise UsageError("the run has left no policy")
    folder = run.folder / "policy"
    # what else it looks at fits this run, whose own it is
    shapes = {**dict(read_header(folder)["observation"]), "training": (len(run.schedule.features),)}
    policy = load_policy(folder, pool=run.schedule.pool, observation=shapes)
    reason = blind_spot(policy)
    if reason is not None:
        raise UsageError(reason)
    return policy


def observations_of(run: Run) -> np.ndarray:
    """The observations [N, F] of the episode that the report is about.

    Raises:
        UsageError: no decision was recorded.
    """
    if run.schedule is None or run.shown is None:
        raise UsageError("no decisions were recorded")
    return run.schedule.vectors("observation", *run.shown[:2])


if __name__ == "__main__":
    sys.exit(guard(main))
