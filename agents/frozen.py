"""Frozen actors of Stable-Baselines3: the distribution, the draw, the files.

A frozen policy draws from the generator given to ``reset`` alone, never from torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from gymnasium import spaces
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy.stats import norm
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from agents.policy import (
    HEADER,
    Choice,
    Observation,
    damaged,
    read_weights,
    write_header,
    write_weights,
)

ALGORITHMS = ("a2c", "ppo")


class SB3Policy:
    """A frozen actor: the distribution comes from the network, the draw from numpy.

    See :class:`agents.policy.Policy`. Hard actions are independent Bernoulli bits; soft actions
    are independent Gaussians cut off to [0, 1].

    Args:
        name: a2c or ppo.
        network: Stable-Baselines3's actor-critic; it is used, not copied.
        pool: names of the knowledge types.
        space: the observation, with its parts in the order they are put together.
        flat: True if the network takes one vector, False if it takes the parts by name.
        final: ``sample``, or ``mode`` for the most likely action.
    """

    learns = True

    def __init__(
        self,
        name: str,
        network: ActorCriticPolicy,
        pool: Sequence[str],
        space: spaces.Dict,
        flat: bool,
        final: str,
    ) -> None:
        self.name, self.network, self.pool = name, network, tuple(pool)
        self.space, self.flat, self.final = space, flat, final
        self.soft = isinstance(network.action_space, spaces.Box)
        self.rng: np.random.Generator | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; all draws come from ``rng``."""
        self.rng = rng

    def act(self, observation: Observation) -> Choice:
        """Draw an action, or take the most likely one.

        Raises:
            RuntimeError: ``reset`` was not called.
        """
        if self.rng is None:
            raise RuntimeError("call reset(rng) before act()")
        center, spread = action_distribution(self.network, self.tensors(observation))
        if self.final == "mode":
            return Choice.certain(np.clip(center, 0, 1) if self.soft else center > 0)
        if spread is None:
            action = (self.rng.random(len(center)) < _sigmoid(center)).astype(np.float32)
        else:
            drawn = center + spread * self.rng.standard_normal(len(center))
            action = np.clip(drawn, 0, 1).astype(np.float32)
        return Choice(
            action, probabilities(center, self.soft), log_probability(action, center, spread)
        )

    def tensors(self, observation: Observation) -> Tensor | dict[str, Tensor]:
        """An observation as the network takes it, a batch of one."""
        if self.flat:
            parts = {name: observation[name] for name in self.space.spaces}
            return torch.as_tensor(spaces.utils.flatten(self.space, parts)).unsqueeze(0)
        return part_tensors(observation, self.space)

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors``, then ``policy.json`` with its checksum."""
        checksum = write_weights(folder, save_tensors(self.network.state_dict()))
        write_header(
            folder,
            self,
            "stable_baselines",
            shapes_of(self.space),
            features="flat" if self.flat else "dict",
            net_arch=self.network.net_arch,
            final=self.final,
            weights_sha256=checksum,
        )


def part_tensors(observation: Observation, space: spaces.Dict) -> dict[str, Tensor]:
    """The parts that a space names, each as a batch of one, [1, n] float32."""
    return {
        name: torch.as_tensor(observation[name], dtype=torch.float32).unsqueeze(0)
        for name in space.spaces
    }


def shapes_of(space: spaces.Dict) -> list[tuple[str, tuple[int, ...]]]:
    """The parts of an observation with their shapes, in their order."""
    return [(name, part.shape or ()) for name, part in space.spaces.items()]


def unbounded(parts: Sequence[tuple[str, tuple[int, ...]]]) -> spaces.Dict:
    """The space of saved parts; bounds do not shape a network, so they are not recorded."""
    return spaces.Dict([(name, spaces.Box(-np.inf, np.inf, shape)) for name, shape in parts])


def action_distribution(
    network: ActorCriticPolicy, observation: Tensor | dict[str, Tensor]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The parameters of the actor's distribution for one observation (a batch of 1).

    Returns:
        hard: [K] logits and None; soft: [K] means and [K] standard deviations; float64.
    """
    center, spread = action_distribution_batch(network, observation)
    return center[0], None if spread is None else spread[0]


def action_distribution_batch(
    network: ActorCriticPolicy, observations: Tensor | dict[str, Tensor]
) -> tuple[np.ndarray, np.ndarray | None]:
    """As :func:`action_distribution` for a batch of N: [N, K] each."""
    with torch.no_grad():
        distribution: Any = network.get_distribution(observations).distribution
    if isinstance(network.action_space, spaces.Box):
        return distribution.mean.double().numpy(), distribution.stddev.double().numpy()
    return distribution.logits.double().numpy(), None


def probabilities(center: np.ndarray, soft: bool) -> np.ndarray:
    """Hard: probability of each bit; soft: the Gaussian's mean cut off to [0, 1]. [K] float32."""
    return (np.clip(center, 0, 1) if soft else _sigmoid(center)).astype(np.float32)


def log_probability(action: np.ndarray, center: np.ndarray, spread: np.ndarray | None) -> float:
    """Log-probability of an executed action under the parameters of its distribution.

    A soft weight at 0 or 1 stands for all that was cut off to it: it counts with the
    probability beyond that edge, any other with its density.

    Args:
        action: [K], bits or weights.
        center: [K] logits (hard) or means (soft).
        spread: None (hard) or [K] standard deviations.
    """
    if spread is None:
        return float(-np.logaddexp(0.0, np.where(action > 0.5, -center, center)).sum())
    value = norm.logpdf(action, center, spread)
    value = np.where(action <= 0, norm.logcdf(0.0, center, spread), value)
    value = np.where(action >= 1, norm.logsf(1.0, center, spread), value)
    return float(value.sum())


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))


class Concatenated(BaseFeaturesExtractor):
    """Puts the parts of the observation side by side.

    Stable-Baselines3's own way makes a module of each part's name, and a module cannot have
    one called ``training``.

    Args:
        space: ``Dict`` of vectors.
    """

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space, spaces.utils.flatdim(space))
        self.names = tuple(space.spaces)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """name -> [b, n] to [b, sum of n]."""
        return torch.cat([observations[name].flatten(1) for name in self.names], dim=1)


def policy_class(flat: bool) -> type[ActorCriticPolicy]:
    """Stable-Baselines3's actor-critic for one vector, or for parts by name."""
    return ActorCriticPolicy if flat else MultiInputActorCriticPolicy


def policy_arguments(flat: bool, net_arch: list[int]) -> dict[str, Any]:
    """The arguments of :func:`policy_class` that shape the network."""
    if flat:
        return {"net_arch": net_arch}
    return {"net_arch": net_arch, "features_extractor_class": Concatenated}


def build_network(
    space: spaces.Dict, size: int, soft: bool, flat: bool, net_arch: list[int]
) -> ActorCriticPolicy:
    """An untrained actor-critic of Stable-Baselines3; leaves torch's global generator as it was."""
    action_space = spaces.Box(0, 1, (size,)) if soft else spaces.MultiBinary(size)
    with torch.random.fork_rng(devices=[]):
        network = policy_class(flat)(
            spaces.utils.flatten_space(space) if flat else space,
            action_space,
            lr_schedule=lambda _: 0.0,
            **policy_arguments(flat, net_arch),
        )
    network.set_training_mode(False)
    return network


def from_header(header: dict[str, Any], folder: Path) -> SB3Policy:
    """Rebuild a frozen policy from ``policy.json`` and ``policy.safetensors``.

    Raises:
        UsageError: one of them is missing or damaged, or they do not belong together.
    """
    data = read_weights(header, folder)
    try:
        flat = {"flat": True, "dict": False}[header["features"]]
        space = unbounded(header["observation"])
        network = build_network(
            space, len(header["pool"]), header["soft"], flat, list(header["net_arch"])
        )
        network.load_state_dict(load_tensors(data))
        name = ALGORITHMS[ALGORITHMS.index(header["agent"])]
        final = {"sample": "sample", "mode": "mode"}[header["final"]]
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise damaged(folder / HEADER, f"it does not describe the weights: {error}") from error
    return SB3Policy(name, network, header["pool"], space, flat, final)
