"""What :class:`agents.all_action.AllAction` keeps beside its policy, so that it can learn on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.factorised import FactorisedPolicy, from_header
from agents.policy import damaged, read_header
from ksel.files import atomic_path, write_json

MOMENTS = "training.safetensors"
PROGRESS = "training.json"
FIELDS = {
    "settings": dict,
    "cost_per_type": float,
    "seed": int,
    "num_timesteps": int,
    "n_updates": int,
    "generators": list,
    "evidence": dict,
}


def write_training(
    policy: FactorisedPolicy,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    folder: Path,
) -> None:
    """Write the policy, the optimiser's moments and the counters into a folder.

    Args:
        policy: a copy of the policy as it is.
        optimizer: of its network.
        progress: JSON values, one for each of ``FIELDS``.
        folder: made if it is missing.
    """
    policy.save(folder)
    tensors = {
        f"{number}.{name}": value.clone()
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    with atomic_path(folder / MOMENTS) as temporary:
        save_file(tensors, temporary)
    write_json(folder / PROGRESS, progress)


def read_training(
    folder: Path,
) -> tuple[FactorisedPolicy, dict[int, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`write_training` wrote: policy, moments per parameter, counters.

    Raises:
        UsageError: a file is missing or damaged.
    """
    policy = from_header(read_header(folder), folder)
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        if not all(isinstance(progress[name], kind) for name, kind in FIELDS.items()):
            raise ValueError("a counter is of the wrong type")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(folder / MOMENTS).items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = tensor
    except (KeyError, OSError, TypeError, ValueError, SafetensorError) as error:
        raise damaged(folder / PROGRESS, str(error)) from error
    return policy, moments, progress
