"""Frozen deterministic actors: the network, the threshold, how likely noisy actions were, the files."""

from __future__ import annotations

import math
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
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor
from torch import Tensor, nn

from agents.frozen import Concatenated, log_probability, part_tensors, shapes_of, unbounded
from agents.policy import (
    HEADER,
    Choice,
    Observation,
    damaged,
    read_weights,
    write_header,
    write_weights,
)

NAME = "ddpg"
Cut = tuple[float, bool]
"""(threshold, at_least_one), the arguments of :func:`masked`."""


def masked(weights: np.ndarray, threshold: float, at_least_one: bool) -> np.ndarray:
    """Cut weights to bits.

    Args:
        weights: [K] in [0, 1].
        threshold: a type is on where its weight exceeds this.
        at_least_one: where none does, the type with the largest weight is on.

    Returns:
        [K] float32, 0 or 1.
    """
    bits = (weights > threshold).astype(np.float32)
    if at_least_one and not bits.any():
        bits[int(np.argmax(weights))] = 1.0
    return bits


class Encoded(BaseFeaturesExtractor):
    """Each part of the observation through a two-layer network of its own, side by side.

    Args:
        space: ``Dict`` of vectors.
        width: units of both layers.
    """

    def __init__(self, space: spaces.Dict, width: int) -> None:
        super().__init__(space, width * len(space.spaces))
        self.names = tuple(space.spaces)
        # A list: a module cannot have a part called `training`.
        self.encoders = nn.ModuleList(
            nn.Sequential(
                nn.Linear(spaces.utils.flatdim(part), width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
            )
            for part in space.spaces.values()
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """name -> [b, n] to [b, parts * width]."""
        encoded = [
            encoder(observations[name].flatten(1))
            for name, encoder in zip(self.names, self.encoders, strict=True)
        ]
        return torch.cat(encoded, dim=1)


def network_arguments(encoder: int, net_arch: list[int]) -> dict[str, Any]:
    """The arguments of Stable-Baselines3's policy that shape actor and critic.

    Args:
        encoder: width of :class:`Encoded`; 0 = the parts as they are.
        net_arch: hidden widths of actor and critic.
    """
    if not encoder:
        return {"net_arch": net_arch, "features_extractor_class": Concatenated}
    return {
        "net_arch": net_arch,
        "features_extractor_class": Encoded,
        "features_extractor_kwargs": {"width": encoder},
    }


def build_actor(space: spaces.Dict, size: int, encoder: int, net_arch: list[int]) -> Actor:
    """An untrained actor of Stable-Baselines3; leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        extractor: BaseFeaturesExtractor
        extractor = Encoded(space, encoder) if encoder else Concatenated(space)
        actor = Actor(
            space,
            spaces.Box(0.0, 1.0, (size,), np.float32),
            net_arch=net_arch,
            features_extractor=extractor,
            features_dim=extractor.features_dim,
        )
    actor.set_training_mode(False)
    return actor


def weights_of(actor: Actor, observation: Any) -> np.ndarray:
    """The actor's weights for one observation, [K] float32 in [0, 1].

    Args:
        actor: of Stable-Baselines3; its last layer is a tanh.
        observation: name -> [1, n].
    """
    with torch.no_grad():
        return (0.5 * (actor(observation)[0] + 1.0)).numpy()


class DDPGPolicy:
    """A frozen actor; deterministic. See :class:`agents.policy.Policy`.

    Args:
        actor: Stable-Baselines3's actor; it is used, not copied.
        pool: names of the knowledge types.
        space: the observation, with its parts in the order in which the actor takes them.
        encoder: width of the encoders, 0 = none.
        cut: (threshold, at_least_one) of :func:`masked`; None = the weights are the action.
    """

    name = NAME
    learns = True

    def __init__(
        self,
        actor: Actor,
        pool: Sequence[str],
        space: spaces.Dict,
        encoder: int,
        cut: Cut | None,
    ) -> None:
        self.actor, self.pool, self.space = actor, tuple(pool), space
        self.encoder, self.cut = encoder, cut
        self.soft = cut is None

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; nothing is drawn, so ``rng`` is not used."""

    def act(self, observation: Observation) -> Choice:
        """The actor's action, without noise."""
        weights = weights_of(self.actor, part_tensors(observation, self.space))
        return Choice.certain(weights if self.cut is None else masked(weights, *self.cut))

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors``, then ``policy.json`` with its checksum."""
        checksum = write_weights(folder, save_tensors(self.actor.state_dict()))
        write_header(
            folder,
            self,
            NAME,
            shapes_of(self.space),
            encoder=self.encoder,
            net_arch=self.actor.net_arch,
            cut=None if self.cut is None else list(self.cut),
            weights_sha256=checksum,
        )


def from_header(header: dict[str, Any], folder: Path) -> DDPGPolicy:
    """Rebuild a frozen actor from ``policy.json`` and ``policy.safetensors``.

    Raises:
        UsageError: one of them is missing or damaged, or they do not belong together.
    """
    data = read_weights(header, folder)
    try:
        cut = None if header["cut"] is None else (float(header["cut"][0]), bool(header["cut"][1]))
        if header["agent"] != NAME or header["soft"] != (cut is None):
            raise ValueError("the agent, its kind of action and its threshold do not agree")
        space = unbounded(header["observation"])
        encoder = int(header["encoder"])
        actor = build_actor(space, len(header["pool"]), encoder, list(header["net_arch"]))
        actor.load_state_dict(load_tensors(data))
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        raise damaged(folder / HEADER, f"it does not describe the weights: {error}") from error
    return DDPGPolicy(actor, header["pool"], space, encoder, cut)


def behaviour(
    action: np.ndarray, center: np.ndarray | None, noise: float, cut: Cut | None
) -> tuple[np.ndarray, float]:
    """How likely a noisy action was.

    A weight is ``center`` (or, while actions are drawn at random, a uniform number) plus Gaussian
    noise, cut off to [0, 1].

    Args:
        action: [K] executed weights, before the threshold.
        center: [K] the actor's weights; None for an action drawn at random.
        noise: standard deviation of the noise.
        cut: arguments of :func:`masked` for hard actions, else None.

    Returns:
        [K] probabilities and the log-probability. Soft: the weights without noise, and the
        log-density, where a weight at 0 or 1 counts with the probability of that edge. Hard: the
        probability that a weight exceeds the threshold, and the sum of the bits' logarithms; nan
        where ``at_least_one`` may have chosen the only type that is on.
    """
    if center is not None and noise == 0:
        certain = Choice.certain(center if cut is None else masked(center, *cut))
        return certain.probabilities, 0.0
    if cut is None:
        if center is None:
            density = sum(_uniform_log_density(float(weight), noise) for weight in action)
            return np.full(len(action), 0.5, np.float32), float(density)
        spread = np.full(len(action), noise)
        return center.astype(np.float32), log_probability(action, center, spread)
    threshold, at_least_one = cut
    if center is None:
        above = np.full(len(action), _uniform_above(threshold, noise))
        with np.errstate(divide="ignore"):  # threshold 0 without noise: a bit cannot be off
            log_above, log_below = np.log(above), np.log1p(-above)
    else:
        above = norm.sf(threshold, center, noise)
        log_above = norm.logsf(threshold, center, noise)
        log_below = norm.logcdf(threshold, center, noise)
    bits = masked(action, threshold, at_least_one) > 0
    coupled = at_least_one and bits.sum() == 1
    log_prob = math.nan if coupled else float(np.where(bits, log_above, log_below).sum())
    return above.astype(np.float32), log_prob


def _uniform_above(level: float, noise: float) -> float:
    """The probability that a uniform number of [0, 1] plus noise exceeds a level of [0, 1]."""
    if noise == 0:
        return 1.0 - level

    def integral(z: float) -> float:  # of the normal distribution function
        return float(z * norm.cdf(z) + norm.pdf(z))

    return noise * (integral((1.0 - level) / noise) - integral(-level / noise))


def _uniform_log_density(weight: float, noise: float) -> float:
    """The log-density of such a number; at 0 and 1 the log-probability of what was cut off."""
    if noise == 0:
        return 0.0
    if weight <= 0:
        return math.log(1.0 - _uniform_above(0.0, noise))
    if weight >= 1:
        return math.log(_uniform_above(1.0, noise))
    return math.log(norm.cdf(weight / noise) - norm.cdf((weight - 1.0) / noise))
