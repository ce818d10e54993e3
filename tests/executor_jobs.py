"""Pieces of work for the tests of executors; a worker imports this file and nothing heavy."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ksel.errors import UsageError


def do(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Do what ``payload["job"]`` says, after noting the try in ``payload["notes"]``."""
    if "notes" in payload:
        with Path(payload["notes"]).open("a", encoding="utf-8") as file:
            file.write(f"{payload['job']} {os.getpid()}\n")
    return JOBS[payload["job"]](payload)


def notes(path: Path) -> list[list[str]]:
    """[job, process] of each try so far."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _echo(payload: Mapping[str, Any]) -> dict[str, Any]:
    print("this goes elsewhere")
    return {"process": os.getpid(), "value": payload.get("value")}


def _environment(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {name: os.environ.get(name) for name in payload["names"]}


def _mistake(payload: Mapping[str, Any]) -> dict[str, Any]:
    raise UsageError("--x: not so.")


def _bug(payload: Mapping[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


def _die(payload: Mapping[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _die_once(payload: Mapping[str, Any]) -> dict[str, Any]:
    return _die(payload) if len(notes(Path(payload["notes"]))) < 2 else {"tries": 2}


def _wait(payload: Mapping[str, Any]) -> dict[str, Any]:
    try:
        for _ in range(1000):
            time.sleep(0.05)
    except KeyboardInterrupt:
        Path(payload["stopped"]).touch()
        raise
    return {}


JOBS = {
    "echo": _echo,
    "environment": _environment,
    "mistake": _mistake,
    "bug": _bug,
    "die": _die,
    "die_once": _die_once,
    "wait": _wait,
}
