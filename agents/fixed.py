"""Agents that do not learn: static, random_hard, random_soft, annealed, round_robin, dynamic.

The table of all rules is here too; that of greedy is in :mod:`agents.greedy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.policy import HEADER, Choice, Observation, damaged, write_header
from agents.ranges import refuse_outside_unit
from envs.observation import GLOBAL
from ksel.errors import UsageError, unknown_name

LABEL = "label"
ANSWERS = ("response", "logits")
"""Kinds that teach the teacher's answers; all others but the label teach its states."""
ENTROPY = GLOBAL.index("student_entropy")


@dataclass
class FixedPolicy:
    """A policy that follows a rule.

    Attributes:
        name: agent, as in ``--agent``.
        pool: names of the knowledge types.
        soft: True if actions are weights.
        settings: the agent's own settings, as saved.
        rule: (random generator, decision number from 0, observation) -> choice.
    """

    name: str
    pool: tuple[str, ...]
    soft: bool
    settings: dict[str, Any]
    rule: Callable[[np.random.Generator, int, Observation], Choice]
    learns: bool = False
    decision: int = field(default=0, init=False)
    rng: np.random.Generator | None = field(default=None, init=False)

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode with its own random numbers."""
        self.rng, self.decision = rng, 0

    def act(self, observation: Observation) -> Choice:
        """Choose by the rule.

        Raises:
            RuntimeError: ``reset`` was not called.
        """
        if self.rng is None:
            raise RuntimeError("call reset(rng) before act()")
        choice = self.rule(self.rng, self.decision, observation)
        self.decision += 1
        return choice

    def save(self, folder: Path) -> None:
        """Write ``policy.json``."""
        # No shapes are recorded: a rule reads only numbers of `training`, whose layout the pool gives.
        write_header(folder, self, "fixed", (), settings=self.settings)


def mask_vector(
    names: Sequence[str], pool: Sequence[str], option: str = "--static.mask"
) -> np.ndarray:
    """Turn names into bits: knowledge types, ``all``, or ``none`` (the empty mask).

    Returns:
        [K] float32.

    Raises:
        UsageError: a name is not in the pool, or ``all`` or ``none`` stands beside others.
    """
    if not names:
        raise UsageError(f"{option}: no name given. Use all, none, or names of knowledge types.")
    if list(names) == ["all"]:
        return np.ones(len(pool), np.float32)
    if list(names) == ["none"]:
        return np.zeros(len(pool), np.float32)
    for name in names:
        if name in ("all", "none"):
            raise UsageError(f"{option}: '{name}' cannot stand beside other names.")
        if name not in pool:
            raise unknown_name("knowledge type", name, [*pool, "all", "none"], option)
    return np.array([name in names for name in pool], np.float32)


def static_policy(
    mask: Sequence[str], pool: Sequence[str], soft: bool = False, option: str = "--static.mask"
) -> FixedPolicy:
    """One mask (soft: weights 0 and 1) held for the whole run.

    Args:
        mask: names of knowledge types, or ``["all"]``, or ``["none"]``.
        pool: the knowledge pool.
        soft: whether the environment takes weights.
        option: what an error names.

    Raises:
        UsageError: a name is unknown.
    """
    bits = mask_vector(mask, pool, option)
    return FixedPolicy(
        "static",
        tuple(pool),
        soft,
        {"mask": list(mask)},
        lambda rng, decision, observation: Choice.certain(bits),
    )


def random_hard_policy(probability: float, pool: Sequence[str]) -> FixedPolicy:
    """Each bit on with the given probability, drawn anew at each decision.

    Raises:
        UsageError: the probability is outside [0, 1].
    """
    refuse_outside_unit("--random.probability", probability)
    chance = np.full(len(pool), probability)

    def rule(rng: np.random.Generator, decision: int, observation: Observation) -> Choice:
        bits = rng.random(len(pool)) < chance
        log_prob = float(np.log(np.where(bits, chance, 1 - chance)).sum())
        return Choice(bits.astype(np.float32), chance.astype(np.float32), log_prob)

    return FixedPolicy("random_hard", tuple(pool), False, {"probability": probability}, rule)


def random_soft_policy(pool: Sequence[str]) -> FixedPolicy:
    """Each weight uniform in [0, 1], drawn anew at each decision (log-density 0)."""
    size = len(pool)

    def rule(rng: np.random.Generator, decision: int, observation: Observation) -> Choice:
        return Choice(rng.random(size, np.float32), np.full(size, 0.5, np.float32), 0.0)

    return FixedPolicy("random_soft", tuple(pool), True, {}, rule)


def annealed_policy(start: float, pool: Sequence[str]) -> FixedPolicy:
    """The teacher fades while the label grows, after Annealing-KD (Jafari et al., EACL 2021).

    With progress p in [0, 1], the first number of the observation ``training``: the teacher's
    types weigh ``start * (1 - p)`` and ``label`` weighs ``p``. The paper anneals the teacher's
    logits and turns to the label in a second stage; here one line crosses the other.

    Raises:
        UsageError: the pool has no label, or start is outside [0, 1].
    """
    if LABEL not in pool:
        raise UsageError(
            f"--agent annealed turns from the teacher to the label, but --knowledge.pool has no "
            f"'{LABEL}' ({', '.join(pool)}). Add it, or choose another agent."
        )
    refuse_outside_unit("--annealed.start", start)
    is_label = np.array([name == LABEL for name in pool])

    def rule(rng: np.random.Generator, decision: int, observation: Observation) -> Choice:
        if "training" not in observation:
            raise UsageError("--env.observe: annealed reads its progress from 'training'; add it.")
        progress = float(np.clip(observation["training"][0], 0.0, 1.0))
        return Choice.certain(np.where(is_label, progress, start * (1.0 - progress)))

    return FixedPolicy("annealed", tuple(pool), True, {"start": start}, rule)


def round_robin_policy(pool: Sequence[str]) -> FixedPolicy:
    """One type per decision, in the order of the pool, beginning with the first."""
    one_hot = np.eye(len(pool), dtype=np.float32)
    return FixedPolicy(
        "round_robin",
        tuple(pool),
        False,
        {},
        lambda rng, decision, observation: Choice.certain(one_hot[decision % len(pool)]),
    )


def dynamic_policy(label: float, pool: Sequence[str]) -> FixedPolicy:
    """The less sure the student, the more it is taught by states instead of answers.

    Dynamic KD's adjustment of objectives (Li et al., EMNLP 2021): with u in [0, 1], the student's
    mean output entropy over log C on the batch last observed, types of the teacher's answers weigh
    1 - u and types of its states and relations u. A type of another teacher (``kind@2``) weighs as
    its kind does.

    Args:
        label: weight of ``label``, where the pool has it.
        pool: names of the knowledge types.

    Raises:
        UsageError: the pool lacks types of answers or of states, or the weight is outside [0, 1].
    """
    refuse_one_sided(pool)
    refuse_outside_unit("--dynamic.label", label)
    kinds = [kind_of(name) for name in pool]
    is_label = np.array([kind == LABEL for kind in kinds])
    is_answer = np.array([kind in ANSWERS for kind in kinds])

    def rule(rng: np.random.Generator, decision: int, observation: Observation) -> Choice:
        if "training" not in observation:
            raise UsageError("--env.observe: dynamic reads the entropy in 'training'; add it.")
        unsure = float(np.clip(observation["training"][ENTROPY], 0.0, 1.0))
        taught = np.where(is_answer, 1.0 - unsure, unsure)
        return Choice.certain(np.where(is_label, label, taught))

    return FixedPolicy("dynamic", tuple(pool), True, {"label": label}, rule)


def kind_of(name: str) -> str:
    """The kind of a knowledge type's name ``kind[/matching][@teacher]``."""
    return name.partition("@")[0].partition("/")[0]


def refuse_one_sided(pool: Sequence[str]) -> None:
    """Refuse a pool between whose types ``dynamic`` could not shift weight.

    Raises:
        UsageError: names what is missing.
    """
    kinds = {kind_of(name) for name in pool}
    for what, there, examples in (
        ("the teacher's answers", kinds & {*ANSWERS}, "response or logits"),
        ("the teacher's states", kinds - {*ANSWERS, LABEL}, "hidden or cls_hidden"),
    ):
        if not there:
            raise UsageError(
                f"--agent dynamic shifts weight between the teacher's answers and its states, and "
                f"--knowledge.pool has no type of {what} ({', '.join(pool)}). Add one, such as "
                f"{examples}, or choose another agent."
            )


def fixed_policy(
    agent: str, settings: Mapping[str, Any], pool: Sequence[str], soft: bool
) -> FixedPolicy:
    """Build a rule by the agent's name.

    Args:
        agent: static, random_hard, random_soft, annealed, round_robin, dynamic, or greedy.
        settings: that agent's settings by name.
        pool: the knowledge pool.
        soft: whether actions are weights (a choice only for static and greedy).

    Raises:
        UsageError: a setting is outside its range.
        KeyError: the agent or one of its settings is not there.
    """
    # Here, because its module builds on this one.
    from agents.greedy import greedy_policy

    builders: dict[str, Callable[[], FixedPolicy]] = {
        "static": lambda: static_policy(settings["mask"], pool, soft),
        "random_hard": lambda: random_hard_policy(settings["probability"], pool),
        "random_soft": lambda: random_soft_policy(pool),
        "annealed": lambda: annealed_policy(settings["start"], pool),
        "round_robin": lambda: round_robin_policy(pool),
        "dynamic": lambda: dynamic_policy(settings["label"], pool),
        "greedy": lambda: greedy_policy(settings["threshold"], pool, soft),
    }
    return builders[agent]()


def from_header(header: dict[str, Any], folder: Path) -> FixedPolicy:
    """Rebuild a rule from ``policy.json``.

    Raises:
        UsageError: the file does not describe one.
    """
    try:
        policy = fixed_policy(header["agent"], header["settings"], header["pool"], header["soft"])
    except (KeyError, TypeError, UsageError) as error:
        raise damaged(folder / HEADER, f"no such rule: {error}") from error
    if policy.soft != header["soft"]:
        raise damaged(folder / HEADER, f"{policy.name} has no such kind of action")
    return policy
