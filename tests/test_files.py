"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from ksel.errors import UsageError
from ksel.files import atomic_folder, atomic_path, file_sum, reserve, write_json, write_text


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_with_its_folders_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "note.txt"
    write_text(path, "naïve\n")
    assert path.read_text(encoding="utf-8") == "naïve\n"
    assert names(path.parent) == ["note.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "table.parquet") as temporary:
        assert temporary.suffix == ".parquet"
        assert temporary.parent == tmp_path
        assert not (tmp_path / "table.parquet").exists()
        temporary.write_bytes(b"1")
    assert (tmp_path / "table.parquet").read_bytes() == b"1"


@pytest.mark.parametrize("step", ["replace", "chmod"])
def test_a_full_disk_leaves_nothing_and_keeps_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_text(tmp_path / "kept.txt", "old")
    monkeypatch.setattr(os, step, no_space)
    for name in ("kept.txt", "new.txt"):
        with pytest.raises(UsageError, match=rf"cannot write .*{name}: No space left.*--out"):
            write_text(tmp_path / name, "new")
    assert names(tmp_path) == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "old"


def test_a_disk_that_fills_up_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, text: str, **_: Any) -> None:
        with path.open("w") as file:
            file.write(text[:2])
        no_space()

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UsageError, match="No space left"):
        write_text(tmp_path / "note.txt", "a long text")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing_and_goes_on_upwards(
    tmp_path: Path, error: type[BaseException]
) -> None:
    write_text(tmp_path / "kept.txt", "old")

    def half_a_file() -> None:
        with atomic_path(tmp_path / "kept.txt") as temporary:
            temporary.write_text("half")
            raise error

    def half_a_folder() -> None:
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "part").write_text("half")
            raise error

    for interrupted in (half_a_file, half_a_folder):
        with pytest.raises(error):
            interrupted()
    assert names(tmp_path) == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "old"


def test_a_folder_appears_whole_at_the_end(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "folder") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "deep" / "folder").exists()
    assert names(tmp_path / "deep") == ["folder"]
    assert names(tmp_path / "deep" / "folder") == ["a"]
    assert (tmp_path / "deep" / "folder").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_another_run_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "mine").write_text("1")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "theirs").write_text("2")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["theirs"]


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", no_space)
    with (
        pytest.raises(UsageError, match=r"cannot write .*folder: No space left"),
        atomic_folder(tmp_path / "folder") as temporary,
    ):
        (temporary / "a").write_text("1")
    assert names(tmp_path) == []


def test_a_full_disk_is_understood_from_safetensors_too(tmp_path: Path) -> None:
    # what safetensors raises on a full disk; it is no OSError
    full = SafetensorError("Error while serializing: I/O error: No space left on device")

    def save() -> None:
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "config.json").write_text("{}")
            raise full

    with pytest.raises(UsageError, match=r"cannot write .*folder: .*No space left.*--out"):
        save()
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot write"):
        write_text(tmp_path / "file" / "note.txt", "x")
    with pytest.raises(UsageError, match="cannot write"), atomic_folder(tmp_path / "file" / "x"):
        pass


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    value = {
        "a": [1.5, float("nan"), (float("inf"), 2)],
        "b": {"c": -float("inf"), "d": None, "e": True, "f": "ü"},
        "g": np.float64("nan"),
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    expected = {
        "a": [1.5, None, [None, 2]],
        "b": {"c": None, "d": None, "e": True, "f": "ü"},
        "g": None,
    }
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert "ü" in text


def test_sum_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_sum(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_space_of_a_sparse_file_is_taken_and_its_content_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype="float32", shape=(1000, 1000))
    array[0, 0] = 3.0
    reserve(path)
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert np.load(path)[0, 0] == 3.0
