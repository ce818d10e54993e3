"""What the guard around every entry point makes of errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from ksel.cli import USAGE_EXIT, guard


def fails_with(error: BaseException, argv: list[str] | None = None) -> int:
    def main(_: list[str]) -> int:
        raise error

    return guard(main, argv or [])


def os_error(code: int, name: str | None = "runs/a/x.parquet") -> OSError:
    return OSError(code, os.strerror(code), name)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_file_that_cannot_be_written_is_one_message(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(os_error(code)) == USAGE_EXIT
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in ("runs/a/x.parquet", os.strerror(code), "--out", "--store"):
        assert part in err
    assert fails_with(os_error(code, None)) == USAGE_EXIT
    assert "None" not in capsys.readouterr().err


def test_a_full_gpu_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails_with(torch.cuda.OutOfMemoryError("CUDA out of memory.")) == USAGE_EXIT
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--batching.size" in err
    assert "--optim.accumulate" in err
    assert fails_with(torch.cuda.OutOfMemoryError("x"), ["--debug"]) == USAGE_EXIT
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), os_error(errno.EISDIR), KeyError("a")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        fails_with(error)


def test_the_guard_does_not_import_torch() -> None:
    code = """
import sys
from ksel.cli import guard

def main(argv):
    raise RuntimeError("a bug")

try:
    guard(main, [])
except RuntimeError:
    sys.exit(9 if "torch" in sys.modules else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
