"""The machine a run lives on: device, threads, and the folder of what is kept between runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from ksel.config import RunConfig
from ksel.errors import UsageError

MEMORY_FILE = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")
"""Where a container's limits are (version 2 of control groups)."""


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        UsageError: CUDA is asked for and absent, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device is in reach. Use --device cpu.")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device. Use cpu, cuda or cuda:0.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0."
        )
    return device


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usual_threads() -> int:
    """Threads where nothing else is asked for: one per core, but no more than OMP_NUM_THREADS says."""
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    limit = int(asked) if asked.isdecimal() else 0
    return min(available_cores(), limit) if limit else available_cores()


def resolve_threads(config: RunConfig) -> RunConfig:
    """Fix the number of threads, so that the saved settings say how many there were."""
    return replace(config, threads=config.threads or usual_threads())


def free_memory() -> int | None:
    """Bytes of memory that this process may still take; None where the system does not say.

    The least of what the machine has left and of what the limit of a container leaves. Pages of
    files that were read are not counted as taken: they make room where memory is asked for.
    """
    found = [size for size in (_free_of_machine(), _free_of_container()) if size is not None]
    return min(found) if found else None


def _free_of_machine() -> int | None:
    try:
        lines = MEMORY_FILE.read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        pass
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_of_container() -> int | None:
    try:
        most = int((GROUP / "memory.max").read_text(encoding="ascii"))
        taken = int((GROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no limit, or none that can be read
        return None
    try:
        lines = (GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        taken -= int(dict(line.split(" ", 1) for line in lines)["inactive_file"])
    except (OSError, ValueError, KeyError):
        pass
    return max(most - taken, 0)


def store_folder(config: RunConfig) -> Path:
    """Folder of fine-tuned teachers and cached signals."""
    chosen = config.store or os.environ.get("KSEL_STORE") or "~/.cache/ksel"
    return Path(chosen).expanduser()
