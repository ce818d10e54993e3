"""Settings of the search and of each agent; part of :mod:`ksel.config`, where others take them from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class EpisodesConfig:
    """The search: episodes in which the agent learns, before the final student."""

    count: int = 2
    """Episodes; each costs share x the step budget, and measuring after each decision."""
    share: float = 1.0
    """Length of an episode as a share of the step budget."""
    final: Literal["sample", "mode"] = "sample"
    """The frozen policy draws from its distribution, or takes the most likely action."""


@dataclass
class AllActionConfig:
    """ksel's own actor-critic: learns from the credit of all types at once."""

    learning_rate: float = 4e-2
    """Learning rate of actor and critic."""
    n_steps: int = 1
    """Decisions between two updates of the policy."""
    gamma: float = 0.5
    """Discount per decision."""
    gae_lambda: float = 0.5
    """Trade-off of bias and variance in the advantage of what comes after; n_steps above 1."""
    entropy: float = 0.1
    """Least entropy of each bit, as a share of ln 2; the policy is turned back where it has less."""
    max_grad_norm: float = 0.5
    """Clip the gradients of actor and critic to this norm."""
    soft: Literal["beta", "sigmoid"] = "beta"
    """Soft actions: weights drawn from Beta distributions, or a sigmoid without noise."""
    concentration: float = 10.0
    """Soft actions, beta: the larger, the closer are the weights drawn to their means."""
    start: float = 0.97
    """Probability that a type is on (soft: its mean weight) before anything is learned."""
    anchor: float = 0.05
    """Pull back to the start: a lasting credit d (in units of the reward) moves a bit's logit by
    d / anchor; 0 = none."""
    block: int = 10
    """Decisions whose credits are averaged before they are compared with others; 0 = each credit
    counts as it comes, noise and all."""
    memory: int = 12
    """Blocks that are remembered."""
    doubt: float = 3.0
    """A type's credit counts as far as its mean over the blocks exceeds this many standard errors."""
    net_arch: list[int] = field(default_factory=lambda: [64])
    """Hidden widths of actor and critic."""


@dataclass
class GreedyConfig:
    """Types with positive credit, nothing learned: what all_action is without learning."""

    threshold: float = 0.0
    """A type is on where its windowed credit, over the largest of all, exceeds this."""


@dataclass
class A2CConfig:
    """Stable-Baselines3's A2C."""

    observation: Literal["dict", "flat"] = "flat"
    """Give the policy the parts of the observation by name, or as one vector."""
    learning_rate: float = 6e-3
    """Learning rate."""
    n_steps: int = 8
    """Decisions between two updates of the policy."""
    gamma: float = 0.9
    """Discount per decision."""
    gae_lambda: float = 0.95
    """Trade-off of bias and variance in the advantage."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Clip the policy's gradient to this norm."""
    normalize_advantage: bool = True
    """Bring the advantages of an update to mean 0 and deviation 1."""
    use_rms_prop: bool = False
    """RMSprop as in the A2C paper; false = Adam."""
    start: float = 0.85
    """Probability that a type is on (soft: its mean weight) before anything is learned."""
    net_arch: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden widths of actor and critic."""


@dataclass
class PPOConfig:
    """Stable-Baselines3's PPO."""

    observation: Literal["dict", "flat"] = "flat"
    """Give the policy the parts of the observation by name, or as one vector."""
    learning_rate: float = 2e-3
    """Learning rate."""
    n_steps: int = 16
    """Decisions between two updates of the policy."""
    batch_size: int = 16
    """Decisions of one minibatch."""
    n_epochs: int = 6
    """Passes over the collected decisions per update."""
    gamma: float = 0.9
    """Discount per decision."""
    gae_lambda: float = 0.95
    """Trade-off of bias and variance in the advantage."""
    clip_range: float = 0.2
    """Clipping of the probability ratio."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Clip the policy's gradient to this norm."""
    normalize_advantage: bool = True
    """Bring the advantages of a minibatch to mean 0 and deviation 1."""
    start: float = 0.85
    """Probability that a type is on (soft: its mean weight) before anything is learned."""
    net_arch: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden widths of actor and critic."""


@dataclass
class DDPGConfig:
    """Stable-Baselines3's DDPG: the deterministic actor-critic of the selection paper."""

    encoder: int = 64
    """Width of the two-layer network that each part of the observation goes through first; 0 = none."""
    learning_rate: float = 1e-3
    """Learning rate of actor and critic."""
    buffer_size: int = 100_000
    """Decisions kept for replay."""
    learning_starts: int = 8
    """Decisions drawn uniformly before the first update."""
    batch_size: int = 32
    """Decisions of one update."""
    gradient_steps: int = 1
    """Updates per decision."""
    tau: float = 0.005
    """Share of the networks that goes into the target networks at each update."""
    gamma: float = 0.9
    """Discount per decision."""
    gamma_on: Literal["next", "reward"] = "next"
    """next: target r + gamma Q' (the standard); reward: gamma r + Q' (as the paper is printed)."""
    noise: float = 0.2
    """Standard deviation of the Gaussian exploration noise on the weights."""
    threshold: float = 0.5
    """Hard actions: a type is on where its weight exceeds this."""
    at_least_one: bool = True
    """Hard actions: where none exceeds the threshold, the type with the largest weight is on."""
    net_arch: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden widths of actor and critic."""


@dataclass
class BanditConfig:
    """Bandits over the knowledge types: one type per decision."""

    algorithm: Literal["exp3s", "linucb"] = "exp3s"
    """exp3s: Exp3.S, blind to the observation; linucb: LinUCB, linear in the observation."""
    learning_rate: float = 0.1
    """exp3s: step size of the log-weights (eta)."""
    exploration: float = 0.1
    """exp3s: share of uniform draws (epsilon)."""
    forgetting: float = 0.003
    """exp3s: share of a type's weight that goes to the others at each decision (alpha)."""
    width: float = 1.0
    """linucb: width of the confidence bound (alpha)."""
    ridge: float = 1.0
    """linucb: ridge penalty."""


@dataclass
class DynamicConfig:
    """Rule of Dynamic KD: the less sure the student, the more it is taught by the teacher's states."""

    label: float = 1.0
    """Weight of label, where the pool has it."""


@dataclass
class StaticConfig:
    """One mask held for the whole run."""

    mask: list[str] = field(default_factory=lambda: ["all"])
    """all, or the knowledge types that are on."""


@dataclass
class BestStaticConfig:
    """The best fixed mask, found by successive halving in a search as long as the others'."""

    candidates: int = 20
    """Masks that are compared: all on, masks without whole families of types, each type alone, the
    label with each other type, all but one, then random ones; fewer where the search has no room for as many."""
    eta: int = 3
    """After each round one in eta masks goes on, with plays about eta times as long."""
    least: int = 5
    """Decisions (of env.phase_steps updates) of the shortest play; where the first round would have
    shorter ones, fewer masks are compared."""


@dataclass
class RaceConfig:
    """race: masks race against each other inside the one student's life."""

    share: float = 0.4
    """What the lanes that are given up may cost at most, as a share of the step budget."""
    least: int = 24
    """Updates of a heat at least; where the share has no room for one this long, it is shorter."""
    challengers: int = 2
    """Masks that challenge the student's own in one heat, where the share has room for heats of the least
    length with as many."""
    doubt: float = 2.0
    """Standard errors (paired, over the rows of the reward split) by which a challenger has to be
    ahead; lower: switches sooner, and on chance."""
    objective: Literal["auto", "probe", "calibrated", "cross_entropy"] = "auto"
    """What heats compare, see --env.objective; probe looks past the head, calibrated does not mistake a
    shifted scale for skill; auto = probe, for question answering calibrated."""


@dataclass
class RandomConfig:
    """random_hard and random_soft: a new draw at each decision."""

    probability: float = 0.5
    """random_hard: probability that a type is on."""


@dataclass
class AnnealedConfig:
    """Teacher signals fade while the label loss grows (Annealing-KD)."""

    start: float = 1.0
    """Weight of the teacher's types at the start; it falls linearly to 0."""
