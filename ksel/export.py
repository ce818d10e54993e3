"""``python -m ksel.export RUN... --to minari``: recorded decisions as a data set of other libraries."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.observation import bounds, feature_names
from ksel.cli import guard
from ksel.errors import UsageError, unknown_name
from ksel.files import atomic_folder, atomic_path
from ksel.trajectories import STAGES, Trajectories
from ksel.trajectory import load

PROG = "python -m ksel.export"
FORMATS = ("minari", "npz")
ROOT = "MINARI_DATASETS_PATH"
NAME = re.compile(r"(\w[\w.-]*/)*\w[\w.-]*-v\d+")
"""Minari's form of a name: (namespace/)name-vN."""
INFOS = {
    "probabilities": "probabilities",
    "log_prob": "log_prob",
    "credit": "credits",
    "predicted": "predicted",
    "objective": "objectives",
    "drop": "drops",
    "reward_scale": "reward_scales",
    "update": "updates",
}
"""Name in a step's infos -> array of :class:`ksel.trajectories.Trajectories`."""


def main(argv: list[str]) -> int:
    """Export, and print where to and how to load it."""
    own = parse(argv)
    logged = load(*own.runs, stages=own.stages)
    name = own.name or default_name(logged)
    if own.to == "npz":
        path = own.out / f"{name.replace('/', '-')}.npz"
        _refuse_present(path)
        write_npz(logged, path)
        print(f"written: {path} ({len(logged):,} decisions); np.load(path) reads it")
        return 0
    if not NAME.fullmatch(name):
        raise UsageError(f"--name: '{name}' is no name for Minari; write it like ksel/rte-a2c-v0.")
    _refuse_present(own.out / name)
    episodes, said = whole_episodes(logged)
    write_minari(logged, episodes, name, own.out)
    for line in said:
        print(line)
    print(f"written: {own.out / name} ({len(episodes)} episodes)")
    print(f"load it with {ROOT}={own.out.resolve()} and minari.load_dataset('{name}')")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UsageError: the format is unknown, or needs a library that is not installed.
        SystemExit: after ``--help``, or on words that are no options.
    """
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Write recorded decisions, with behaviour probabilities and credits, as a data set.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    parser.add_argument(
        "--to",
        required=True,
        help="minari: a Minari data set (extra 'minari'); npz: the arrays of ksel.trajectory.load",
    )
    parser.add_argument(
        "--stages", nargs="+", default=["search", "final"], help=f"of {', '.join(STAGES)}"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("exports"),
        help="folder of data sets; npz: NAME.npz goes into it",
    )
    parser.add_argument("--name", help="name of the data set; default ksel/TASK-AGENT-v0")
    own = parser.parse_args(list(argv))
    if own.to not in FORMATS:
        raise unknown_name("format", own.to, FORMATS, "--to")
    if own.out.suffix == ".npz":
        raise UsageError(
            f"--out: {own.out} is the name of a file, and --out is the folder of data sets. Give --out "
            f"{own.out.parent} --to npz --name {own.out.stem}."
        )
    if own.to == "minari" and not (_installed("minari") and _installed("h5py")):
        raise UsageError("--to minari needs Minari: pip install 'ksel[minari]', or use --to npz.")
    return own


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _refuse_present(path: Path) -> None:
    if path.exists():
        raise UsageError(f"--out: {path} exists; nothing is overwritten. Choose another --name.")


def default_name(logged: Trajectories) -> str:
    """``ksel/TASK-AGENT-v0``; ``mixed`` where runs of several are joined."""
    parts = []
    for key in ("task", "agent"):
        values = {str(meta[key]) for meta in logged.meta}
        parts.append(values.pop() if len(values) == 1 else "mixed")
    return f"ksel/{'-'.join(parts)}-v0"


# --------------------------------------------------------------------------- arrays


def write_npz(logged: Trajectories, path: Path) -> None:
    """Write all arrays, and the names that belong to them, without pickling."""
    arrays = {key: value for key, value in vars(logged).items() if isinstance(value, np.ndarray)}
    for key in ("pool", "features", "names"):
        arrays[key] = np.array(getattr(logged, key))
    arrays["soft"] = np.array(logged.soft)
    arrays["meta"] = np.array([json.dumps(meta) for meta in logged.meta])
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


# --------------------------------------------------------------------------- Minari


def whole_episodes(logged: Trajectories) -> tuple[list[np.ndarray], list[str]]:
    """Row numbers of each episode all of whose rewards are known, and what was left out.

    Raises:
        UsageError: there is none.
    """
    found, unpaid, short = [], 0, 0
    for number in dict.fromkeys(logged.episodes.tolist()):
        rows = np.flatnonzero(logged.episodes == number)
        ended = bool(logged.terminations[rows][-1])
        if not np.isfinite(logged.rewards[rows]).all():
            unpaid += 1
        elif len(rows) + ended < 2:
            short += 1
        else:
            found.append(rows)
    said = [f"left out: {unpaid} episode(s) with unknown rewards"] if unpaid else []
    said += [f"left out: {short} episode(s) cut off after one decision"] if short else []
    if not found:
        raise UsageError(
            f"RUN: no episode can be exported ({'; '.join(said)}): agents that do not learn are not "
            f"paid, nor is race, and best_static only once per play. Give runs of another agent, or use --to npz, which keeps nan."
        )
    return found, said


def write_minari(
    logged: Trajectories, episodes: Sequence[np.ndarray], name: str, root: Path
) -> None:
    """Write a Minari data set into ``root/name``, whole or not at all.

    A step's infos (T of them, as many as actions) hold what :data:`INFOS` names. No decision
    follows the last one, so its observation is not recorded: an episode that ended has its last
    observation twice; one that was cut off gives up its last decision, whose observation ends it.
    """
    import minari

    action_space, observation_space = _spaces(logged)
    buffers = [_buffer(logged, rows, number) for number, rows in enumerate(episodes)]
    with atomic_folder(root / name) as temporary:
        with _datasets_in(temporary / "root"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about authors and permalinks that are not given
            data = minari.create_dataset_from_buffers(
                name,
                buffers,
                action_space=action_space,
                observation_space=observation_space,
                algorithm_name=", ".join(dict.fromkeys(logged.agents().tolist())),
                author="ksel",
                description=_description(logged),
            )
            data.storage.update_episode_metadata([_about(logged, rows) for rows in episodes])
        shutil.move(temporary / "root" / name / "data", temporary / "data")
        shutil.rmtree(temporary / "root")


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    before = os.environ.get(ROOT)
    folder.mkdir()
    os.environ[ROOT] = str(folder.resolve())  # Minari joins a relative one twice
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before


def _spaces(logged: Trajectories) -> tuple[spaces.Space, spaces.Space]:
    count = len(logged.pool)
    if logged.features != feature_names(logged.pool):
        raise UsageError(
            "RUN: its observations have other features than this version of ksel, so their bounds "
            "are not known. Use --to npz, or make the run again."
        )
    low, high = bounds(count)
    actions: spaces.Space = spaces.MultiBinary(count)
    if logged.soft:
        actions = spaces.Box(0.0, 1.0, (count,), np.float32)
    return actions, spaces.Box(low, high, dtype=np.float32)


def _buffer(logged: Trajectories, rows: np.ndarray, number: int) -> Any:
    from minari.data_collector import EpisodeBuffer

    ended = bool(logged.terminations[rows][-1])
    last, rows = rows[-1:], rows if ended else rows[:-1]
    observations = logged.observations[np.concatenate([rows, last])]
    over = np.zeros(len(rows), bool)
    over[-1] = True
    return EpisodeBuffer(
        id=number,
        observations=list(observations),
        actions=list(logged.actions[rows].astype(np.float32 if logged.soft else np.int8)),
        rewards=logged.rewards[rows].tolist(),
        terminations=(over & ended).tolist(),
        truncations=(over & (not ended)).tolist(),
        infos={info: list(getattr(logged, column)[rows]) for info, column in INFOS.items()},
    )


def _about(logged: Trajectories, rows: np.ndarray) -> dict[str, Any]:
    run, first = logged.runs[rows[0]], rows[0]
    meta = logged.meta[run]
    about = {"run": logged.names[run], "stage": str(logged.stage[first])}
    return about | {key: meta[key] for key in ("task", "agent", "seed")}


def _description(logged: Trajectories) -> str:
    return (
        f"Decisions of ksel: which of a teacher's signals a student learns from. Actions: "
        f"{'weights' if logged.soft else 'bits'} of {', '.join(logged.pool)}. Observations: "
        f"{', '.join(logged.features)}. infos, one per action: behaviour probabilities and "
        f"log_prob, credit of each type, and more; nan = not known. The observation after the last "
        f"decision of an episode is not recorded: the one before it stands there again."
    )


if __name__ == "__main__":
    sys.exit(guard(main))
