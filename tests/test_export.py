"""Data sets for other libraries: they load back and hold what was recorded."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from sample_run import POOL

from envs.observation import bounds, feature_names
from ksel import export
from ksel.__main__ import main as ksel
from ksel.trajectory import DecisionRow, ScheduleWriter, load

FEATURES = feature_names(POOL)


def write_run(folder: Path, *, soft: bool = False, agent: str = "a2c", seed: int = 0) -> Path:
    """A search of two whole episodes and one that was cut off, and an unpaid final student."""
    rng = np.random.default_rng(seed)
    low, high = bounds(len(POOL))
    writer = ScheduleWriter(
        POOL, FEATURES, {"soft": soft, "task": "rte", "agent": agent, "seed": seed}
    )
    episodes = (("search", 0, 6, True), ("search", 1, 4, True), ("search", 2, 5, False))
    for stage, episode, length, ended in (*episodes, ("final", 0, 3, True)):
        for decision in range(length):
            chances = rng.random(len(POOL))
            action = rng.random(len(POOL)) if soft else rng.random(len(POOL)) < chances
            writer.add(
                DecisionRow(
                    episode=episode,
                    stage=stage,
                    decision=decision,
                    update=2 * decision,
                    action=action,
                    probabilities=chances,
                    log_prob=-1.5,
                    loss=rng.random(len(POOL)),
                    scale=np.ones(len(POOL)),
                    grad_norm=np.full(len(POOL), np.nan),
                    credit=rng.normal(size=len(POOL)),
                    reward=float(rng.normal()) if stage == "search" else np.nan,
                    objective=np.nan,
                    drop=np.nan,
                    reward_scale=0.5,
                    observation=rng.uniform(low, high),
                    terminated=ended and decision == length - 1,
                )
            )
    writer.write(folder / "schedule.parquet")
    return folder


@pytest.mark.parametrize("soft", [False, True])
def test_a_minari_data_set_loads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], soft: bool
) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    run, out = write_run(tmp_path / "run", soft=soft), tmp_path / "sets"
    monkeypatch.chdir(tmp_path)  # Minari joins a relative folder twice
    assert ksel(["export", str(run), "--to", "minari", "--out", "sets" if soft else str(out)]) == 0
    printed = capsys.readouterr().out
    assert "left out: 1 episode(s) with unknown rewards" in printed
    assert "(3 episodes)" in printed
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(out))
    assert list(minari.list_local_datasets()) == ["ksel/rte-a2c-v0"]
    data = minari.load_dataset("ksel/rte-a2c-v0")
    low, high = bounds(len(POOL))
    assert data.observation_space == spaces.Box(low, high, dtype=np.float32)
    wanted = spaces.Box(0.0, 1.0, (5,), np.float32) if soft else spaces.MultiBinary(5)
    assert data.action_space == wanted
    assert data.total_episodes == 3
    assert data.total_steps == 6 + 4 + 4
    logged = load(run)
    for number, episode in enumerate(data.iterate_episodes()):
        rows = np.flatnonzero(logged.episodes == number)
        cut = number == 2
        steps = rows[:-1] if cut else rows
        after = rows if cut else [*rows, rows[-1]]
        np.testing.assert_array_equal(episode.observations, logged.observations[after])
        np.testing.assert_array_equal(episode.actions, logged.actions[steps])
        np.testing.assert_array_equal(episode.rewards, logged.rewards[steps])
        assert episode.terminations.tolist() == [False] * (len(steps) - 1) + [not cut]
        assert episode.truncations.tolist() == [False] * (len(steps) - 1) + [cut]
        for info, column in export.INFOS.items():
            np.testing.assert_array_equal(episode.infos[info], getattr(logged, column)[steps])
        for observation, action in zip(episode.observations, episode.actions, strict=False):
            assert data.observation_space.contains(observation)
            assert data.action_space.contains(action)
    about = next(iter(data.storage.get_episode_metadata([1])))
    assert (about["run"], about["stage"], about["agent"]) == ("run", "search", "a2c")
    assert "label, response" in data.storage.metadata["description"]
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "main_data.hdf5",
        "metadata.json",
    ]


def test_the_variable_of_minari_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")
    run = write_run(tmp_path / "run")
    for before in (None, "elsewhere"):
        monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
        if before:
            monkeypatch.setenv("MINARI_DATASETS_PATH", before)
        words = ["export", str(run), "--to", "minari", "--out", str(tmp_path / str(before))]
        assert ksel(words) == 0
        assert export.os.environ.get("MINARI_DATASETS_PATH") == before


def test_plain_arrays_need_no_unpickling(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", agent="ppo", seed=1)
    out = tmp_path / "sets"
    assert ksel(["export", str(one), str(two), "--to", "npz", "--out", str(out)]) == 0
    logged = load(one, two)
    with np.load(out / "ksel-rte-mixed-v0.npz", allow_pickle=False) as found:
        for name in ("observations", "actions", "rewards", "probabilities", "credits", "episodes"):
            np.testing.assert_array_equal(found[name], getattr(logged, name))
        assert found["pool"].tolist() == list(POOL)
        assert found["names"].tolist() == ["one", "two"]
        assert found["stage"].tolist() == logged.stage.tolist()
        assert json.loads(str(found["meta"][1]))["agent"] == "ppo"


@pytest.mark.parametrize("form", ["minari", "npz"])
def test_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    if form == "minari":
        pytest.importorskip("minari")
    words = ["export", str(write_run(tmp_path / "run")), "--to", form, "--out", str(tmp_path / "x")]
    assert ksel(words) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert ksel(words) == 2
    assert "exists; nothing is overwritten" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()} == before
    assert ksel([*words, "--name", "other-v1"]) == 0


def test_a_writer_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")

    def fail(*words: object, **more: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(minari, "create_dataset_from_buffers", fail)
    words = ["export", str(write_run(tmp_path / "run")), "--to", "minari", "--out"]
    with pytest.raises(RuntimeError, match="in the middle"):
        ksel([*words, str(tmp_path / "sets")])
    assert [path for path in (tmp_path / "sets").rglob("*") if path.is_file()] == []
    assert "MINARI_DATASETS_PATH" not in export.os.environ


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "pickle"], "unknown format 'pickle'. Known: minari, npz"),
        (["--to", "minari", "--name", "../out-v0"], "is no name for Minari"),
        (["--to", "minari", "--name", "rte"], "write it like ksel/rte-a2c-v0"),
        (["--to", "npz", "--out", "x/two.npz"], "Give --out x --to npz --name two."),
        (["--to", "npz", "--stages", "references"], "none of the runs has a decision there"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    run = write_run(tmp_path / "run")
    assert ksel(["export", str(run), "--out", str(tmp_path / "sets"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sets").exists()


def test_without_minari_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "_installed", lambda module: False)
    assert ksel(["export", str(write_run(tmp_path / "run")), "--to", "minari"]) == 2
    assert "pip install 'ksel[minari]'" in capsys.readouterr().err


def test_unpaid_runs_have_no_minari_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minari")
    run = write_run(tmp_path / "run")
    words = ["export", str(run), "--to", "minari", "--out", str(tmp_path / "sets")]
    assert ksel([*words, "--stages", "final"]) == 2
    assert (
        "no episode can be exported (left out: 1 episode(s) with unknown" in capsys.readouterr().err
    )


def test_features_of_another_version_are_refused(tmp_path: Path) -> None:
    logged = load(write_run(tmp_path / "run"))
    with pytest.raises(Exception, match="Use --to npz"):
        export._spaces(replace(logged, features=("x", *logged.features[1:])))


def test_minari_is_imported_only_where_it_is_needed() -> None:
    assert "import minari" not in Path(export.__file__).read_text().split("def ")[0]
    assert sys.modules["ksel.export"] is export
