"""Policies from Stable-Baselines3's own zip, trained elsewhere: read only where the user trusts the file.

Stable-Baselines3 keeps classes and functions in such a zip by pickling, and unpickling runs whatever code
was put there. Here nothing of that is touched: the weights are read by torch's restricted reader, and the
shape of the network follows from theirs.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.frozen import SB3Policy, build_network
from agents.policy import Policy, load_policy, refuse_other_observation
from ksel.errors import UsageError

TRUST = "--trust_zip"
WEIGHTS, FACTS = "policy.pth", "data"
HIDDEN = re.compile(r"mlp_extractor\.policy_net\.(\d+)\.weight")
ABOUT_THE_NETWORK = {
    *("net_arch", "log_std_init", "ortho_init", "features_extractor_class"),
    *("optimizer_class", "optimizer_kwargs"),
}
"""Arguments of the network that its weights tell of, or that only its start needs."""
EXTRACTORS = ("Concatenated", "FlattenExtractor")


def open_policy(
    path: Path,
    *,
    pool: Sequence[str],
    observation: Mapping[str, tuple[int, ...]],
    trusted: bool,
    final: str = "sample",
) -> Policy:
    """A policy from a folder of ksel's, or from a zip of Stable-Baselines3's.

    Args:
        path: the folder (see :func:`agents.policy.load_policy`) or the zip.
        pool: knowledge types of the run it is to be used in.
        observation: part of the observation -> its shape.
        trusted: the user vouches for a zip.
        final: zip: ``sample``, or ``mode`` for the most likely action.

    Raises:
        UsageError: a zip that nobody vouches for, or that is no actor-critic for this pool and
            observation; a folder that does not fit.
    """
    if not path.is_file():
        return load_policy(path, pool=pool, observation=observation)
    if not trusted:
        raise UsageError(
            f"--policy: {path} is a file of Stable-Baselines3, which can hold code that runs when it is "
            f"opened. ksel reads the weights alone, by a reader of torch's that runs none, but whoever "
            f"made the file could use a hole in that reader. Add {TRUST} if you know where the file "
            f"comes from; the folder policy of a run needs no trust."
        )
    weights, facts = _read(path)
    return _policy(path, weights, facts, pool, observation, final)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as file:
            content = io.BytesIO(file.read(WEIGHTS))
            facts = json.loads(file.read(FACTS))
        weights = torch.load(content, map_location="cpu", weights_only=True)
        if not isinstance(facts, dict) or not isinstance(weights, dict):
            raise ValueError("its parts are not what Stable-Baselines3 writes")
        if not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError("its weights are no tensors")
    except Exception as error:  # zipfile, json, and torch raise many kinds
        raise UsageError(
            f"--policy: {path} cannot be read as a zip of Stable-Baselines3 ({error}). Give a file that "
            f"model.save(...) wrote, or the folder policy of a run."
        ) from error
    return weights, facts


def _policy(
    path: Path,
    weights: dict[str, Tensor],
    facts: dict[str, Any],
    pool: Sequence[str],
    observation: Mapping[str, tuple[int, ...]],
    final: str,
) -> SB3Policy:
    found = {int(m[1]): weights[name] for name in weights if (m := HIDDEN.fullmatch(name))}
    if not found or "action_net.weight" not in weights:
        raise _unfit(path, "it is no actor-critic of a2c or ppo")
    _check_arguments(path, facts)
    arch = [len(found[layer]) for layer in sorted(found)]
    actions = len(weights["action_net.weight"])
    if actions != len(pool):
        raise _unfit(path, f"it has {actions} actions and the pool {len(pool)} types")
    flat = facts.get("observation_space", {}).get(":type:", "").endswith("Box'>")
    seen = int(found[min(found)].shape[1])
    parts = _parts(path, flat, facts, observation)
    total = sum(int(np.prod(shape)) for _, shape in parts)
    if total != seen:
        raise _unfit(path, f"it looks at {seen} numbers and the run shows {total}")
    refuse_other_observation(path, parts, observation)
    space = spaces.Dict([(n, spaces.Box(-np.inf, np.inf, shape)) for n, shape in parts])
    soft = "log_std" in weights
    network = build_network(space, actions, soft, flat, arch)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise _unfit(path, f"its layers are not those of a plain actor-critic: {error}") from error
    name = "ppo" if "clip_range" in facts else "a2c"
    return SB3Policy(name, network, pool, space, flat, final)


def _check_arguments(path: Path, facts: dict[str, Any]) -> None:
    """Refuse a network that other arguments shaped in ways that its weights do not tell."""
    given = facts.get("policy_kwargs")
    arguments = given if isinstance(given, dict) else {}
    other = [k for k in arguments if not k.startswith(":") and k not in ABOUT_THE_NETWORK]
    if other:
        raise _unfit(path, f"its network was made with {', '.join(sorted(other))}")
    extractor = str(arguments.get("features_extractor_class", EXTRACTORS[0]))
    if not any(name in extractor for name in EXTRACTORS):
        raise _unfit(path, f"its network reads the observation by {extractor}")


def _parts(
    path: Path, flat: bool, facts: dict[str, Any], observation: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, tuple[int, ...]]]:
    """What the policy looks at; of a flat vector all that the run shows, in its order."""
    if flat:
        # gymnasium puts the parts of a Dict in the order of their names
        return [(name, tuple(observation[name])) for name in sorted(observation)]
    named = facts.get("observation_space", {}).get("spaces")
    names = re.findall(r"'(\w+)': Box", str(named))
    missing = [name for name in names if name not in observation]
    if not names or missing:
        looks = ", ".join(missing) or "parts that it does not name"
        raise _unfit(path, f"it looks at {looks}, which the run does not show (--env.observe)")
    return [(name, tuple(observation[name])) for name in sorted(names)]


def _unfit(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"--policy: {path} does not fit: {reason}. Give an a2c or ppo model that was trained on "
        f"ksel/Distillation-v0 with this pool and this observation."
    )
