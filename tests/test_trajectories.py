"""Schedules of several runs as one set of arrays; what cannot be joined is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_trajectory import META, POOL, make_row, rewrite, with_meta

from ksel.errors import UsageError
from ksel.trajectory import ScheduleWriter, load

FEATURES = ("progress", "learning_rate")


def write_run(
    folder: Path,
    *,
    pool: tuple[str, ...] = POOL,
    features: tuple[str, ...] = FEATURES,
    **meta: Any,
) -> Path:
    """Two search episodes of 3 decisions, a final one of 4, a reference of 2."""
    writer = ScheduleWriter(pool, features, {**META, **meta})
    for stage, episode, length in (
        ("search", 0, 3),
        ("search", 1, 3),
        ("final", 0, 4),
        ("reference:all", 0, 2),
    ):
        for decision in range(length):
            row = make_row(decision, stage, episode, terminated=decision == length - 1)
            vectors = {
                name: np.resize(getattr(row, name), len(pool))
                for name in ("action", "probabilities", "loss", "scale", "grad_norm", "credit")
            }
            row = replace(row, **vectors, observation=np.resize(row.observation, len(features)))
            writer.add(replace(row, reward=float(episode * 10 + decision)))
    writer.write(folder / "schedule.parquet")
    return folder


def test_runs_are_joined_in_order(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", agent="ppo")
    joined = load(one, two)
    assert len(joined) == 20
    assert joined.pool == POOL
    assert joined.features == FEATURES
    assert not joined.soft
    assert joined.names == ("one", "two")
    assert joined.episodes.tolist() == [0] * 3 + [1] * 3 + [2] * 4 + [3] * 3 + [4] * 3 + [5] * 4
    assert joined.runs.tolist() == [0] * 10 + [1] * 10
    assert joined.agents().tolist() == ["a2c"] * 10 + ["ppo"] * 10
    assert joined.stage.tolist() == (["search"] * 6 + ["final"] * 4) * 2
    assert joined.decisions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3] * 2
    assert joined.updates.tolist() == [5 * d for d in joined.decisions.tolist()]
    assert joined.rewards[:6].tolist() == [0, 1, 2, 10, 11, 12]
    assert joined.terminations.sum() == 6
    for n in range(3):
        np.testing.assert_array_equal(joined.actions[n], make_row(n).action)
        np.testing.assert_array_equal(joined.observations[n], make_row(n).observation)
        np.testing.assert_array_equal(joined.probabilities[n], make_row(n).probabilities)
    assert joined.log_prob.tolist() == [-1.25] * 20
    assert joined.drops.tolist() == [0.125] * 20
    assert joined.meta[1]["agent"] == "ppo"


def test_what_is_not_known_is_nan(tmp_path: Path) -> None:
    joined = load(write_run(tmp_path / "run"))
    assert joined.credits.shape == (10, 3)
    assert np.isnan(joined.credits).all()
    assert np.isnan(joined.predicted).all()


def test_the_predicted_drop_is_the_sum_of_the_credits_that_were_on(tmp_path: Path) -> None:
    writer = ScheduleWriter(POOL, FEATURES, META)
    credit, action = np.array([0.5, 2.0, -1.0]), np.array([1.0, 0.0, 1.0])
    writer.add(make_row(0, credit=credit, action=action))
    writer.write(tmp_path / "schedule.parquet")
    assert load(tmp_path).predicted.tolist() == [-0.5]


@pytest.mark.parametrize(
    ("stages", "count"),
    [(["search"], 6), (["final"], 4), (["references"], 2), (["search", "references"], 8)],
)
def test_stages_are_chosen(tmp_path: Path, stages: list[str], count: int) -> None:
    run = write_run(tmp_path / "run")
    joined = load(run, stages=stages)
    assert len(joined) == count
    kinds = {stage.replace("reference:all", "references") for stage in joined.stage}
    assert kinds == set(stages)


def test_a_part_keeps_the_numbers_of_its_episodes(tmp_path: Path) -> None:
    joined = load(write_run(tmp_path / "run"))
    part = joined.take(joined.stage == "final")
    assert len(part) == 4
    assert part.episodes.tolist() == [2] * 4
    assert part.names == joined.names
    assert part.observations.shape == (4, 2)


def test_a_file_can_be_named_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert load(run / "schedule.parquet").names == ("run",)


def test_other_pools_are_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", pool=("label", "response", "nst", "fsp"))
    with pytest.raises(UsageError) as refused:
        load(one, two)
    message = str(refused.value)
    assert "no type hidden/skip and more types: nst, fsp" in message
    assert str(two) in message
    assert "one pool" in message


def test_another_order_of_the_pool_is_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", pool=POOL[::-1])
    with pytest.raises(UsageError, match="the same types in another order"):
        load(one, two)


def test_all_other_differences_are_named_together(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", features=(*FEATURES, "entropy"), soft=True)
    with pytest.raises(UsageError) as refused:
        load(one, two)
    assert "more features: entropy" in str(refused.value)
    assert "weights (soft), not bits (hard)" in str(refused.value)


def test_another_version_of_the_format_is_named(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    rewrite(two / "schedule.parquet", lambda table: with_meta(table, format=0))
    with pytest.raises(UsageError) as refused:
        load(one, two)
    assert str(two / "schedule.parquet") in str(refused.value)
    assert "has format 0; this ksel reads format" in str(refused.value)


def test_a_cut_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "schedule.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError) as refused:
        load(run)
    assert str(path) in str(refused.value)
    assert "python -m ksel.run --config" in str(refused.value)


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"there is no .*empty.schedule.parquet"):
        load(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"there is no folder .*absent"):
        load(tmp_path / "absent")


def test_stages_without_decisions_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    writer = ScheduleWriter(POOL, FEATURES, META)
    writer.add(make_row(0))
    writer.write(tmp_path / "schedule.parquet")
    with pytest.raises(UsageError, match=r"--stages final: none of the runs .* they hold: search"):
        load(tmp_path, stages=["final"])
    with pytest.raises(UsageError, match=r"unknown stage 'finals'. Did you mean 'final'"):
        load(tmp_path, stages=["finals"])
    with pytest.raises(UsageError, match="no stage was named"):
        load(tmp_path, stages=[])


def test_a_run_named_twice_or_none_at_all_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UsageError, match="is named twice"):
        load(run, tmp_path / "." / "run")
    with pytest.raises(UsageError, match="no run was named"):
        load()


def test_the_metadata_is_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=11)
    written = json.loads(pq.read_schema(run / "schedule.parquet").metadata[b"ksel"])
    assert load(run).meta == (written,)
