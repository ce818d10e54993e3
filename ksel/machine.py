"""The machine a run lives on: device, threads, and the folder of what is kept between runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from ksel.config import RunConfig
from ksel.errors import UsageError


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


def resolve_threads(config: RunConfig) -> RunConfig:
    """Fix the number of threads, so that the saved settings say how many there were."""
    return replace(config, threads=config.threads or available_cores())


def store_folder(config: RunConfig) -> Path:
    """Folder of fine-tuned teachers and cached signals."""
    chosen = config.store or os.environ.get("KSEL_STORE") or "~/.cache/ksel"
    return Path(chosen).expanduser()
