from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from ksel import __main__ as entry


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_commands_are_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, about in entry.COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines].count([name, about]) == 1


def test_every_command_has_a_main() -> None:
    commands = ["run", "replay", "predict", "compare", "sweep", "report", "offline", "export"]
    assert list(entry.COMMANDS) == commands
    for name in entry.COMMANDS:
        assert callable(import_module(f"ksel.{name}").main)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["repaly", "folder"]) == 2
    assert "unknown command 'repaly'. Did you mean 'replay'?" in capsys.readouterr().err


def test_words_and_exit_code_go_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    monkeypatch.setattr("ksel.report.main", main)
    assert entry.main(["report", "a", "--x"]) == 7
    assert seen == [["a", "--x"]]
    monkeypatch.setattr(sys, "argv", ["ksel", "report", "b"])
    assert entry.main() == 7
    assert seen[-1] == ["b"]


def test_a_mistake_ends_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("replay", "report"):
        assert entry.main([command, str(tmp_path / "absent")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "there is no folder" in err
    assert entry.main(["replay", str(tmp_path / "absent"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_console_script_is_this_main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["scripts"] == {"ksel": "ksel.__main__:main"}
    done = subprocess.run(
        [sys.executable, "-m", "ksel", "pedict"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Did you mean 'predict'?" in done.stderr
