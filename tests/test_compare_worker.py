"""What a worker of a comparison does with a run that was interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ksel import compare_worker
from ksel.errors import UsageError


def go_on(made: Path, error: str, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Go on with a run that refuses with this error; the command lines that were run."""
    (made / "checkpoints").mkdir(parents=True)
    (made / "config.yaml").touch()
    calls: list[list[str]] = []

    def main(words: list[str], decide: object) -> int:
        calls.append(words)
        if words[0] == "--resume":
            raise UsageError(error)
        return 0

    monkeypatch.setattr(compare_worker.run, "main", main)
    monkeypatch.setattr(compare_worker, "open_run", lambda _: SimpleNamespace(summary={}))
    compare_worker._run(made, made.parent / "cell.yaml", None)
    return calls


@pytest.mark.parametrize(
    "error",
    [
        "checkpoint: No space left on device. The one before is kept.",
        "RUN: another process is at work on runs/cell. Wait until it has ended.",
    ],
)
def test_a_run_that_fails_keeps_what_it_has(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=error.split(":")[0]):
        go_on(tmp_path / "made", error, monkeypatch)
    assert (tmp_path / "made" / "checkpoints").is_dir()


def test_a_run_that_cannot_be_gone_on_with_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "--resume: each checkpoint is damaged"
    calls = go_on(tmp_path / "made", error, monkeypatch)
    assert [words[0] for words in calls] == ["--resume", "--config"]
    assert f"begun anew: {error}" in capsys.readouterr().out
    assert not (tmp_path / "made").exists()
