"""What an episode leaves behind: ``schedule.parquet``, one row a decision; write, read, validate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ksel.errors import UsageError
from ksel.files import atomic_path

if TYPE_CHECKING:
    from ksel.trajectories import Trajectories

FORMAT_VERSION = 1
META_KEY = b"ksel"
META_REQUIRED = ("soft", "task", "agent", "seed")

PER_TYPE = ("action", "probabilities", "loss", "scale", "grad_norm", "credit")
VECTORS = (*PER_TYPE, "observation")
SCALARS: dict[str, pa.DataType] = {
    "episode": pa.int32(),
    "stage": pa.string(),
    "decision": pa.int32(),
    "update": pa.int32(),
    "log_prob": pa.float32(),
    "reward": pa.float32(),
    "objective": pa.float32(),
    "drop": pa.float32(),
    "reward_scale": pa.float32(),
    "terminated": pa.bool_(),
}


@dataclass(frozen=True)
class DecisionRow:
    """One decision; K = number of knowledge types, vectors are float32.

    Attributes:
        episode: number of the episode within its stage, from 0.
        stage: ``search``, ``final`` or ``reference:<name>``.
        decision: number of the decision within its episode, from 0.
        update: optimiser updates done before it.
        action: [K] bits or weights in [0, 1].
        probabilities: [K] P(bit on), or mean weight; nan where unknown.
        log_prob: log-probability of the whole action; 0 for a deterministic policy.
        loss: [K] raw losses, mean over the decision's updates.
        scale: [K] running size that each loss was divided by.
        grad_norm: [K] gradient norm of each type; nan where not measured.
        credit: [K] predicted drop owed to each type; nan in measured mode.
        reward: what the agent was paid.
        objective: reward-split objective after the decision.
        drop: fall of the objective over the decision.
        reward_scale: what the drop was divided by.
        observation: [F] the ``training`` vector seen before the decision.
        terminated: True on the last decision of an episode.
    """

    episode: int
    stage: str
    decision: int
    update: int
    action: np.ndarray
    probabilities: np.ndarray
    log_prob: float
    loss: np.ndarray
    scale: np.ndarray
    grad_norm: np.ndarray
    credit: np.ndarray
    reward: float
    objective: float
    drop: float
    reward_scale: float
    observation: np.ndarray
    terminated: bool


COLUMNS = tuple(f.name for f in fields(DecisionRow))


class ScheduleWriter:
    """Collects decisions in memory and writes them as one parquet file.

    Args:
        pool: names of the K knowledge types.
        feature_names: one name for each entry of the ``training`` observation.
        meta: facts about the run; needs ``soft``, ``task``, ``agent`` and ``seed``.
    """

    def __init__(
        self, pool: Sequence[str], feature_names: Sequence[str], meta: Mapping[str, Any]
    ) -> None:
        missing = [key for key in META_REQUIRED if key not in meta]
        if missing:
            raise ValueError(f"meta of a schedule lacks {', '.join(missing)}")
        self.pool = tuple(pool)
        self.features = tuple(feature_names)
        self.meta = dict(meta)
        self._rows: list[DecisionRow] = []
        self._annotated = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: DecisionRow) -> None:
        """Append a decision; its vectors are copied as float32.

        Raises:
            ValueError: a vector has the wrong length.
        """
        self._rows.append(self._checked(row))

    def _checked(self, row: DecisionRow) -> DecisionRow:
        vectors: dict[str, Any] = {}
        for name in VECTORS:
            value = np.array(getattr(row, name), dtype=np.float32)
            width = len(self.features) if name == "observation" else len(self.pool)
            if value.shape != (width,):
                raise ValueError(f"decision's {name} has shape {value.shape}, expected ({width},)")
            vectors[name] = value
        return replace(row, **vectors)

    def annotate_last(self, probabilities: np.ndarray, log_prob: float) -> None:
        """Set what the policy thought of the last decision's action.

        Raises:
            ValueError: there is no decision yet, or ``probabilities`` is not [K].
        """
        if not self._rows:
            raise ValueError("no decision to annotate")
        self._annotate(len(self._rows) - 1, probabilities, log_prob)

    def annotate_next(self, probabilities: np.ndarray, log_prob: float) -> None:
        """As :meth:`annotate_last`, for the first of the decisions after the last annotated one."""
        if self._annotated >= len(self._rows):
            raise ValueError("no decision to annotate")
        self._annotate(self._annotated, probabilities, log_prob)

    def _annotate(self, index: int, probabilities: np.ndarray, log_prob: float) -> None:
        # in place, so that Ctrl-C at any point leaves the decision there
        self._rows[index] = self._checked(
            replace(self._rows[index], probabilities=probabilities, log_prob=log_prob)
        )
        self._annotated = index + 1

    def rows(self, stage: str) -> list[DecisionRow]:
        """The decisions of a stage so far."""
        return [row for row in self._rows if row.stage == stage]

    def get_state(self) -> dict[str, Any]:
        """All decisions so far, exact, as column -> array or list; see :meth:`set_state`."""
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            values = [getattr(row, name) for row in self._rows]
            columns[name] = np.array(values) if values and name != "stage" else values
        return {"columns": columns, "annotated": self._annotated}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Return to what :meth:`get_state` gave."""
        columns = [state["columns"][name] for name in COLUMNS]
        plain = [c.tolist() if isinstance(c, np.ndarray) and c.ndim == 1 else c for c in columns]
        self._rows = [DecisionRow(*values) for values in zip(*plain, strict=True)]
        self._annotated = int(state["annotated"])

    def write(self, path: Path) -> None:
        """Write all decisions so far, whole or not at all; may be called again later.

        Raises:
            UsageError: the disk is full or the folder cannot be written.
        """
        meta = {
            **self.meta,
            "format": FORMAT_VERSION,
            "pool": list(self.pool),
            "features": list(self.features),
        }
        schema = _schema(len(self.pool), len(self.features)).with_metadata(
            {META_KEY: json.dumps(meta, ensure_ascii=False).encode()}
        )
        arrays = [self._array(name, schema.field(name).type) for name in COLUMNS]
        table = pa.Table.from_arrays(arrays, schema=schema)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    def _array(self, name: str, kind: pa.DataType) -> pa.Array:
        values = [getattr(row, name) for row in self._rows]
        if name not in VECTORS:
            return pa.array(values, type=kind)
        flat = np.concatenate(values) if values else np.empty(0, np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), type=kind)


@dataclass
class Schedule:
    """A schedule read back.

    Attributes:
        meta: format version, pool, features, soft, task, agent, seed, and what else was recorded.
        pool: names of the K knowledge types.
        frame: one row a decision, columns as :class:`DecisionRow`; vectors are float32 arrays.
    """

    meta: dict[str, Any]
    pool: tuple[str, ...]
    frame: pd.DataFrame

    @property
    def soft(self) -> bool:
        """True if actions are weights in [0, 1] rather than bits."""
        return bool(self.meta["soft"])

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the entries of the ``training`` observation."""
        return tuple(self.meta["features"])

    def stages(self) -> list[tuple[str, int]]:
        """Each (stage, episode) that has decisions, in the order they were played."""
        pairs = self.frame[["stage", "episode"]].drop_duplicates()
        return [(str(s), int(e)) for s, e in zip(pairs["stage"], pairs["episode"], strict=True)]

    def stage(self, name: str, episode: int | None = None) -> pd.DataFrame:
        """The decisions of a stage, or of one of its episodes.

        Raises:
            UsageError: the schedule has no such stage or episode.
        """
        rows = self.frame[self.frame["stage"] == name]
        if episode is not None:
            rows = rows[rows["episode"] == episode]
        if rows.empty:
            wanted = f"stage '{name}'" + ("" if episode is None else f", episode {episode}")
            held = ", ".join(f"{s} (episode {e})" for s, e in self.stages()) or "no decisions"
            raise UsageError(f"schedule.parquet has no {wanted}; it holds: {held}.")
        return rows.reset_index(drop=True)

    def vectors(self, column: str, name: str, episode: int | None = None) -> np.ndarray:
        """A vector column of a stage as [D, K] float32 (``observation``: [D, F]).

        Raises:
            UsageError: the schedule has no such stage or episode.
        """
        return np.stack(self.stage(name, episode)[column].tolist())

    def actions(self, name: str, episode: int | None = None) -> np.ndarray:
        """The masks or weights of a stage, [D, K] float32.

        Raises:
            UsageError: the schedule has no such stage or episode.
        """
        return self.vectors("action", name, episode)

    def share_over_time(self, name: str, bins: int, episode: int | None = None) -> np.ndarray:
        """Mean action in equal spans of the decisions, [bins, K] float64.

        A decision that lies across the edge of two spans counts in each with its part, so any
        number of bins fits any number of decisions and the mean over the bins is the total share.

        Raises:
            UsageError: the schedule has no such stage or episode.
        """
        return time_means(self.actions(name, episode), bins)


def time_means(values: np.ndarray, bins: int) -> np.ndarray:
    """Mean of ``values`` [D, K] in ``bins`` equal spans of the rows, [bins, K] float64."""
    rows = len(values)
    total = np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
    edges = np.linspace(0.0, rows, bins + 1)
    at_edges = np.stack([np.interp(edges, np.arange(rows + 1), column) for column in total.T], 1)
    return np.diff(at_edges, axis=0) * (bins / rows)


def read_schedule(path: Path) -> Schedule:
    """Read and validate a schedule.

    Raises:
        UsageError: the file is missing, cut short or damaged, not a schedule of ksel, of another
            format version, or its columns, lengths or actions are not what the format says.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"RUN: there is no {path}. Give the folder of a run that has recorded decisions."
        )
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _refused(path, "is cut short or damaged") from error
    meta = _read_meta(path, table.schema.metadata or {})
    _check_columns(path, table, len(meta["pool"]), len(meta["features"]))
    _check_actions(path, table, bool(meta["soft"]))
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        if name in VECTORS:
            columns[name] = list(_matrix(table, name))
        else:
            columns[name] = table[name].to_numpy()
    return Schedule(meta, tuple(meta["pool"]), pd.DataFrame(columns))


def load(*runs: Path | str, stages: Sequence[str] = ("search", "final")) -> Trajectories:
    """Join the decisions of runs into arrays.

    Args:
        runs: folders of runs or replays, or their ``schedule.parquet``.
        stages: any of ``search``, ``final``, ``references``.

    Raises:
        UsageError: a schedule is missing, cut short, damaged or of another format version; the
            runs have other pools, features or kinds of action (the differences are named); or
            none has a decision in these stages.
    """
    from ksel.trajectories import join  # Here, because that module reads with this one.

    return join(runs, stages)


def _schema(types: int, features: int) -> pa.Schema:
    def kind(name: str) -> pa.DataType:
        if name in SCALARS:
            return SCALARS[name]
        return pa.list_(pa.float32(), features if name == "observation" else types)

    return pa.schema([(name, kind(name)) for name in COLUMNS])


def _refused(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"RUN: {path} {reason}. Restore the file, or make the schedule again with "
        f"`python -m ksel.run --config {path.parent / 'config.yaml'}`."
    )


def _read_meta(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    if META_KEY not in metadata:
        raise _refused(path, "was not written by ksel (its metadata has no key 'ksel')")
    try:
        meta = json.loads(metadata[META_KEY])
    except ValueError as error:
        raise _refused(path, "has unreadable metadata") from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise _refused(path, f"has format {version}; this ksel reads format {FORMAT_VERSION}")
    missing = [key for key in (*META_REQUIRED, "pool", "features") if key not in meta]
    if missing:
        raise _refused(path, f"has metadata without {', '.join(missing)}")
    for key in ("pool", "features"):
        names = meta[key]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _refused(path, f"has metadata whose '{key}' is not a list of names")
    return meta


def _check_columns(path: Path, table: pa.Table, types: int, features: int) -> None:
    found = set(table.column_names)
    missing = [name for name in COLUMNS if name not in found]
    unknown = sorted(found - set(COLUMNS))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise _refused(path, f"has other columns than a schedule: it {' and '.join(parts)}")
    expected = _schema(types, features)
    for name in COLUMNS:
        given, wanted = table.schema.field(name).type, expected.field(name).type
        if given != wanted:
            raise _refused(path, f"has a column '{name}' of type {given}, expected {wanted}")
        holes = table[name].null_count
        if name in VECTORS:
            holes += sum(chunk.flatten().null_count for chunk in table[name].chunks)
        if holes:
            raise _refused(path, f"has empty entries in column '{name}'")


def _check_actions(path: Path, table: pa.Table, soft: bool) -> None:
    actions = _matrix(table, "action")
    if soft:
        valid, wanted = (actions >= 0) & (actions <= 1), "in [0, 1]"
    else:
        valid, wanted = np.isin(actions, (0.0, 1.0)), "0 or 1 (hard masks)"
    if not valid.all():
        row, entry = np.argwhere(~valid)[0]
        raise _refused(path, f"has an action {actions[row, entry]} in row {row}, not {wanted}")


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    """A fixed-size list column as [rows, width] float32."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    width = table.schema.field(name).type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).copy()
