"""A schedule survives the disk exactly; damaged, foreign and outdated files are refused by name."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ksel.errors import UsageError
from ksel.trajectory import (
    COLUMNS,
    FORMAT_VERSION,
    META_KEY,
    DecisionRow,
    ScheduleWriter,
    read_schedule,
    time_means,
)

POOL = ("label", "response", "hidden/skip")
FEATURES = ("progress", "learning_rate")
META = {"soft": False, "task": "qnli", "agent": "a2c", "seed": 3}


def make_row(decision: int, stage: str = "search", episode: int = 0, **changes: object):
    rng = np.random.default_rng(decision)
    row = DecisionRow(
        episode=episode,
        stage=stage,
        decision=decision,
        update=decision * 5,
        action=rng.integers(0, 2, 3).astype(np.float32),
        probabilities=rng.random(3).astype(np.float32),
        log_prob=-1.25,
        loss=rng.random(3).astype(np.float32),
        scale=np.ones(3, np.float32),
        grad_norm=np.full(3, np.nan, np.float32),
        credit=np.full(3, np.nan, np.float32),
        reward=0.5,
        objective=0.625,
        drop=0.125,
        reward_scale=0.25,
        observation=rng.standard_normal(2).astype(np.float32),
        terminated=False,
    )
    return replace(row, **changes)


def make_writer(meta: dict[str, object] | None = None) -> ScheduleWriter:
    return ScheduleWriter(POOL, FEATURES, {**META, **(meta or {})})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    writer = make_writer()
    for episode in range(2):
        for decision in range(4):
            writer.add(make_row(decision, episode=episode, terminated=decision == 3))
    for decision in range(6):
        writer.add(make_row(decision, stage="final"))
    path = tmp_path / "schedule.parquet"
    writer.write(path)
    return path


def rewrite(path: Path, change) -> None:
    """Let ``change`` alter the table and write it back with its metadata."""
    pq.write_table(change(pq.read_table(path)), path)


def with_meta(table: pa.Table, **changes: object) -> pa.Table:
    meta = json.loads(table.schema.metadata[META_KEY])
    meta.update(changes)
    meta = {key: value for key, value in meta.items() if value is not ...}
    return table.replace_schema_metadata({META_KEY: json.dumps(meta).encode()})


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    rows = [make_row(d, terminated=d == 9) for d in range(10)]
    rows[4] = replace(rows[4], grad_norm=np.array([1.5, np.nan, 1e-30], np.float32))
    writer = make_writer()
    for row in rows:
        writer.add(row)
    assert len(writer) == 10
    writer.write(tmp_path / "schedule.parquet")
    schedule = read_schedule(tmp_path / "schedule.parquet")
    assert list(schedule.frame.columns) == list(COLUMNS)
    for given, read in zip(rows, schedule.frame.itertuples(index=False), strict=True):
        for field in fields(DecisionRow):
            np.testing.assert_array_equal(getattr(read, field.name), getattr(given, field.name))
    assert schedule.frame["action"][0].dtype == np.float32
    assert schedule.pool == POOL
    assert schedule.features == FEATURES
    assert not schedule.soft
    assert schedule.meta["seed"] == 3
    assert schedule.meta["format"] == FORMAT_VERSION


def test_soft_weights_keep_every_bit(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    writer = make_writer({"soft": True})
    for decision, action in enumerate(weights):
        writer.add(make_row(decision, action=action))
    writer.write(tmp_path / "s.parquet")
    schedule = read_schedule(tmp_path / "s.parquet")
    assert schedule.soft
    np.testing.assert_array_equal(schedule.actions("search"), weights)


def test_the_file_has_fixed_lists_of_float32(written: Path) -> None:
    schema = pq.read_schema(written)
    assert schema.field("action").type == pa.list_(pa.float32(), 3)
    assert schema.field("observation").type == pa.list_(pa.float32(), 2)
    assert schema.field("episode").type == pa.int32()


def test_writer_copies_its_vectors() -> None:
    writer = make_writer()
    action = np.array([1, 0, 1], np.int8)
    writer.add(make_row(0, action=action))
    action[:] = 0
    np.testing.assert_array_equal(writer._rows[0].action, np.array([1, 0, 1], np.float32))


def test_annotate_next_goes_row_by_row_also_past_unknown_ones(tmp_path: Path) -> None:
    writer = make_writer()
    for number in range(3):
        writer.add(make_row(number, log_prob=0.0))
    for value in (-1.0, float("nan"), -3.0):
        writer.annotate_next(np.full(3, 0.5), value)
    found = [one.log_prob for one in writer.rows("search")]
    assert found[0] == -1.0
    assert np.isnan(found[1])
    assert found[2] == -3.0
    with pytest.raises(ValueError, match="no decision to annotate"):
        writer.annotate_next(np.full(3, 0.5), 0.0)


def test_annotate_last_changes_only_the_last_row(tmp_path: Path) -> None:
    writer = make_writer()
    unknown = np.full(3, np.nan)
    writer.add(make_row(0, probabilities=unknown, log_prob=0.0))
    writer.add(make_row(1, probabilities=unknown, log_prob=0.0))
    writer.annotate_last(np.array([0.5, 0.25, 0.75]), -2.0)
    assert len(writer) == 2
    writer.write(tmp_path / "s.parquet")
    frame = read_schedule(tmp_path / "s.parquet").frame
    assert np.isnan(frame["probabilities"][0]).all()
    np.testing.assert_array_equal(frame["probabilities"][1], [0.5, 0.25, 0.75])
    assert frame["log_prob"].tolist() == [0.0, -2.0]
    with pytest.raises(ValueError, match="no decision"):
        make_writer().annotate_last(unknown, 0.0)


def test_ctrl_c_while_annotating_loses_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    writer = make_writer()
    writer.add(make_row(0))
    monkeypatch.setattr("ksel.trajectory.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        writer.annotate_last(np.zeros(3), 0.0)
    assert len(writer) == 1


@pytest.mark.parametrize("name", ["action", "loss", "observation"])
def test_writer_refuses_vectors_of_another_length(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_writer().add(make_row(0, **{name: np.zeros(7, np.float32)}))


def test_writer_needs_the_facts_of_the_run() -> None:
    with pytest.raises(ValueError, match="agent, seed"):
        ScheduleWriter(POOL, FEATURES, {"soft": False, "task": "rte"})


def test_writing_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    writer = make_writer()
    writer.add(make_row(0))
    writer.write(path)
    writer.add(make_row(1))
    writer.write(path)
    assert len(read_schedule(path).frame) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]


def test_a_schedule_without_decisions_can_be_read(tmp_path: Path) -> None:
    make_writer().write(tmp_path / "s.parquet")
    schedule = read_schedule(tmp_path / "s.parquet")
    assert schedule.stages() == []
    with pytest.raises(UsageError, match="no decisions"):
        schedule.actions("final")


def test_stages_and_episodes_are_told_apart(written: Path) -> None:
    schedule = read_schedule(written)
    assert schedule.stages() == [("search", 0), ("search", 1), ("final", 0)]
    assert schedule.actions("search").shape == (8, 3)
    assert schedule.actions("search", 1).shape == (4, 3)
    assert schedule.stage("final")["decision"].tolist() == list(range(6))
    with pytest.raises(UsageError, match=r"'reference:all'.*final \(episode 0\)"):
        schedule.stage("reference:all")
    with pytest.raises(UsageError, match="episode 7"):
        schedule.stage("search", 7)


def test_share_over_time_by_hand() -> None:
    actions = np.array([[1.0], [1.0], [0.0], [1.0]])
    np.testing.assert_allclose(time_means(actions, 2), [[1.0], [0.5]])
    np.testing.assert_allclose(time_means(actions, 8).ravel(), [1, 1, 1, 1, 0, 0, 1, 1])
    # 4 decisions in 3 spans: each span holds one decision and a third of the next.
    np.testing.assert_allclose(time_means(actions, 3).ravel(), [1.0, 0.5, 0.75], atol=1e-12)


def test_share_over_time_of_a_stage(written: Path) -> None:
    schedule = read_schedule(written)
    shares = schedule.share_over_time("final", 4)
    assert shares.shape == (4, 3)
    np.testing.assert_allclose(shares.mean(0), schedule.actions("final").mean(0))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no .*schedule\.parquet"):
        read_schedule(tmp_path / "schedule.parquet")


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_truncated_file(written: Path, keep: int) -> None:
    content = written.read_bytes()
    written.write_bytes(content[:keep])
    with pytest.raises(UsageError, match="cut short or damaged"):
        read_schedule(written)


def test_damaged_page(written: Path) -> None:
    content = bytearray(written.read_bytes())
    observations = pq.read_metadata(written).row_group(0).column(len(COLUMNS) - 2)
    assert observations.path_in_schema.startswith("observation")
    content[observations.data_page_offset + observations.total_compressed_size // 2] ^= 0xFF
    written.write_bytes(content)
    with pytest.raises(UsageError, match="cut short or damaged"):
        read_schedule(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace_schema_metadata({}), "not written by ksel"),
        (lambda t: t.replace_schema_metadata({META_KEY: b"{"}), "unreadable metadata"),
        (lambda t: t.replace_schema_metadata({META_KEY: b"[]"}), "format None"),
        (lambda t: with_meta(t, format=99), "format 99; this ksel reads format 1"),
        (lambda t: with_meta(t, agent=...), "metadata without agent"),
        (lambda t: with_meta(t, pool="label"), "'pool' is not a list"),
        (lambda t: with_meta(t, pool=["label", "response"]), "column 'action' of type"),
        (lambda t: with_meta(t, features=["progress"]), "column 'observation' of type"),
        (lambda t: t.drop_columns(["reward", "drop"]), "lacks reward, drop"),
        (lambda t: t.append_column("extra", t["reward"]), "unknown extra"),
    ],
)
def test_what_is_not_a_schedule_is_refused(written: Path, change, message: str) -> None:
    rewrite(written, change)
    with pytest.raises(UsageError, match=message):
        read_schedule(written)


def test_hard_masks_hold_bits_only(written: Path) -> None:
    def half(table: pa.Table) -> pa.Table:
        values = pa.array(np.full(table.num_rows * 3, 0.5, np.float32))
        return table.set_column(
            table.column_names.index("action"),
            "action",
            pa.FixedSizeListArray.from_arrays(values, 3),
        )

    rewrite(written, half)
    with pytest.raises(UsageError, match=r"action 0\.5 in row 0"):
        read_schedule(written)
    rewrite(written, lambda t: with_meta(t, soft=True))
    assert read_schedule(written).actions("final").mean() == 0.5


def test_empty_entries_are_refused(written: Path) -> None:
    def hole(table: pa.Table) -> pa.Table:
        values = [None, *table["reward"].to_pylist()[1:]]
        at = table.column_names.index("reward")
        return table.set_column(at, "reward", pa.array(values, pa.float32()))

    rewrite(written, hole)
    with pytest.raises(UsageError, match="empty entries in column 'reward'"):
        read_schedule(written)
