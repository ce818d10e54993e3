"""Policies whose bits or weights are independent of each other: draw, network, files.

Per type k the network gives a logit; its sigmoid p_k is the probability of the bit, or the mean
weight. Three kinds: ``bits`` (Bernoulli), ``beta`` (weights drawn from Beta distributions of mean
p_k and a fixed concentration), ``sigmoid`` (the weight is p_k, nothing is drawn).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from gymnasium import spaces
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy import special
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn

from agents.all_action_gradient import EDGE
from agents.frozen import Concatenated, part_tensors, shapes_of, unbounded
from agents.policy import (
    HEADER,
    Choice,
    Observation,
    damaged,
    read_weights,
    write_header,
    write_weights,
)

NAME = "all_action"
KINDS = ("bits", "beta", "sigmoid")
TRIES = 100
"""Draws for each mask of a fork before it is left out: a policy may be too sure to draw another."""


# --------------------------------------------------------------------------- drawing


def draw(p: np.ndarray, kind: str, concentration: float, rng: np.random.Generator) -> np.ndarray:
    """An action for each row of probabilities or means; float32, the shape of ``p``."""
    if kind == "bits":
        return (rng.random(p.shape) < p).astype(np.float32)
    if kind == "sigmoid":
        return p.astype(np.float32)
    drawn = rng.beta(concentration * p, concentration * (1 - p))
    return np.clip(drawn, EDGE, 1 - EDGE).astype(np.float32)


def likeliest(p: np.ndarray, kind: str) -> np.ndarray:
    """The most likely bits, or the mean weights; float32."""
    return (p > 0.5 if kind == "bits" else p).astype(np.float32)


def distinct(
    p: np.ndarray,
    count: int,
    kind: str,
    concentration: float,
    rng: np.random.Generator,
    allowed: np.ndarray,
) -> np.ndarray:
    """Masks to try side by side: the most likely one, then draws that are not there yet.

    Args:
        p: [K] probabilities or means.
        count: number of masks wanted.
        allowed: [K] bool; the other types are off in each mask.

    Returns:
        [N, K] float32, no mask twice. N is below ``count`` where fewer exist (then all of them are
        there), or where a policy is too sure to draw another one; it is 1 or more.
    """
    masks = [likeliest(p, kind) * allowed]
    free = np.flatnonzero(allowed)
    few = not len(free) or (kind == "bits" and 2 ** len(free) <= count)
    drawn = (draw(p, kind, concentration, rng) * allowed for _ in range(TRIES * count))
    for mask in _all_masks(free, len(p)) if few else drawn:
        if len(masks) == count:
            break
        if not any(np.array_equal(mask, other) for other in masks):
            masks.append(mask)
    return np.stack(masks).astype(np.float32)


def _all_masks(free: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Each mask [size] of which all but the ``free`` types are off; none where no type is free."""
    for bits in itertools.product((0.0, 1.0), repeat=len(free)) if len(free) else ():
        mask = np.zeros(size)
        mask[free] = bits
        yield mask


def log_probability(
    action: np.ndarray, logits: np.ndarray, kind: str, concentration: float
) -> float:
    """Log-probability (weights: log-density) of an action [K] given the logits [K].

    A weight at an edge counts with the probability of what was cut off to it.
    """
    logits = logits.astype(np.float64)
    if kind == "bits":
        return float(-np.logaddexp(0.0, np.where(action > 0.5, -logits, logits)).sum())
    if kind == "sigmoid":
        return 0.0
    p = special.expit(logits)
    one, other = concentration * p, concentration * (1 - p)
    weight = np.clip(action.astype(np.float64), EDGE, 1 - EDGE)
    value = special.xlogy(one - 1, weight) + special.xlog1py(other - 1, -weight)
    value -= special.betaln(one, other)
    low, high = action <= np.float32(EDGE), action >= np.float32(1 - EDGE)
    value[low] = np.log(special.betainc(one, other, EDGE))[low]
    value[high] = np.log(special.betainc(other, one, EDGE))[high]
    return float(value.sum())


# --------------------------------------------------------------------------- network


class FactorisedNetwork(BasePolicy):
    """Actor: one logit per type. Critic: the reward of this decision, and what comes after it.

    Args:
        observation_space: a vector, or ``Dict`` of vectors.
        action_space: ``MultiBinary(K)`` or ``Box(0, 1, (K,))``.
        kind: one of ``KINDS``.
        concentration: of the Beta distributions.
        net_arch: hidden widths of actor and critic, each with its own.
        start: probability (or mean weight) of each type before anything is learned.
        seed: of the weights and of what ``predict`` draws; torch's global generator is left alone.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        kind: str,
        concentration: float,
        net_arch: Sequence[int],
        start: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.kind, self.concentration, self.net_arch = kind, concentration, list(net_arch)
        self.rng = np.random.default_rng([seed, 2])
        size = int(np.prod(action_space.shape or ()))
        keyed = isinstance(observation_space, spaces.Dict)
        # building draws weights of its own before they are drawn anew
        with torch.random.fork_rng(devices=[]):
            extractor = Concatenated if keyed else FlattenExtractor
            self.features: Any = extractor(observation_space)  # type: ignore[arg-type]
            width = int(spaces.utils.flatdim(observation_space))
            # however wide the observation, one update moves the logits about as far
            self.shrink = width**-0.5
            self.actor = perceptron([width, *net_arch, size])
            self.critic = perceptron([width, *net_arch, 2])
        generator = torch.Generator().manual_seed(seed)
        for net, last_gain in ((self.actor, 0.01), (self.critic, 1.0)):
            layers = [layer for layer in net if isinstance(layer, nn.Linear)]
            for layer in layers:
                gain = last_gain if layer is layers[-1] else math.sqrt(2)
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(layers_bias(self.actor), math.log(start / (1 - start)))

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        """Logits [b, K] and the critic's two numbers [b, 2]."""
        features = self.features(observation) * self.shrink
        return self.actor(features), self.critic(features)

    def logits(self, observation: Any) -> np.ndarray:
        """Logits [b, K] as numbers, without a gradient."""
        with torch.no_grad():
            return self(observation)[0].numpy()

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        p = special.expit(self.logits(observation))
        if deterministic:
            return torch.as_tensor(likeliest(p, self.kind))
        return torch.as_tensor(draw(p, self.kind, self.concentration, self.rng))


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def layers_bias(net: nn.Sequential) -> Tensor:
    """The bias of the last layer."""
    return net[-1].get_parameter("bias")


# --------------------------------------------------------------------------- frozen


class FactorisedPolicy:
    """A frozen all_action policy. See :class:`agents.policy.Policy`.

    Args:
        network: it is used, not copied.
        pool: names of the knowledge types.
        space: the observation, with its parts in the order in which the network takes them.
        final: ``sample``, or ``mode`` for the most likely action.
    """

    name = NAME
    learns = True

    def __init__(
        self, network: FactorisedNetwork, pool: Sequence[str], space: spaces.Dict, final: str
    ) -> None:
        self.network, self.pool = network, tuple(pool)
        self.space, self.final = space, final
        self.soft = network.kind != "bits"
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
        kind, concentration = self.network.kind, self.network.concentration
        logits = self.network.logits(part_tensors(observation, self.space))[0]
        p = special.expit(logits)
        if self.final == "mode" or kind == "sigmoid":
            return Choice.certain(likeliest(p, kind))
        action = draw(p, kind, concentration, self.rng)
        log_prob = log_probability(action, logits, kind, concentration)
        return Choice(action, p.astype(np.float32), log_prob)

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors``, then ``policy.json`` with its checksum."""
        checksum = write_weights(folder, save_tensors(self.network.state_dict()))
        write_header(
            folder,
            self,
            NAME,
            shapes_of(self.space),
            distribution=self.network.kind,
            concentration=self.network.concentration,
            net_arch=self.network.net_arch,
            final=self.final,
            weights_sha256=checksum,
        )


def from_header(header: dict[str, Any], folder: Path) -> FactorisedPolicy:
    """Rebuild a frozen policy from ``policy.json`` and ``policy.safetensors``.

    Raises:
        UsageError: one of them is missing or damaged, or they do not belong together.
    """
    data = read_weights(header, folder)
    try:
        kind = KINDS[KINDS.index(header["distribution"])]
        if header["agent"] != NAME or header["soft"] != (kind != "bits"):
            raise ValueError("the agent, its kind of action and its distribution do not agree")
        space = unbounded(header["observation"])
        size = len(header["pool"])
        actions = spaces.MultiBinary(size) if kind == "bits" else spaces.Box(0.0, 1.0, (size,))
        network = FactorisedNetwork(
            space, actions, kind, float(header["concentration"]), list(header["net_arch"])
        )
        network.load_state_dict(load_tensors(data))
        final = {"sample": "sample", "mode": "mode"}[header["final"]]
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise damaged(folder / HEADER, f"it does not describe the weights: {error}") from error
    return FactorisedPolicy(network, header["pool"], space, final)
