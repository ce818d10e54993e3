"""The table of agents: what each works with, which settings it reads, and how it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from gymnasium import spaces

from agents.fixed import FixedPolicy, fixed_policy
from agents.stable_baselines import SB3Agent, check_hyper_parameters
from ksel.config import RunConfig
from ksel.errors import UsageError, unknown_name

Actions = Literal["hard", "soft"]


@dataclass(frozen=True)
class AgentInfo:
    """What an agent works with.

    Attributes:
        actions: the kinds of action it can take, its natural one first.
        learns: True if it learns in episodes.
        settings: fields of :class:`ksel.config.RunConfig` that it reads.
        about: one line for people.
    """

    actions: tuple[Actions, ...]
    learns: bool
    settings: tuple[str, ...]
    about: str

    @property
    def natural(self) -> Actions:
        """The kind of action under ``--env.actions auto``."""
        return self.actions[0]


AGENTS: dict[str, AgentInfo] = {
    "a2c": AgentInfo(
        ("hard", "soft"), True, ("a2c", "episodes"), "advantage actor-critic (Stable-Baselines3)"
    ),
    "ppo": AgentInfo(
        ("hard", "soft"), True, ("ppo", "episodes"), "proximal policies (Stable-Baselines3)"
    ),
    "static": AgentInfo(("hard", "soft"), False, ("static",), "one mask for the whole run"),
    "random_hard": AgentInfo(("hard",), False, ("random",), "each bit drawn anew"),
    "random_soft": AgentInfo(("soft",), False, (), "each weight drawn anew, uniform in [0, 1]"),
    "annealed": AgentInfo(("soft",), False, ("annealed",), "from the teacher to the label"),
    "round_robin": AgentInfo(("hard",), False, (), "one type after the other"),
}


def get_agent(name: str) -> AgentInfo:
    """Look an agent up by name.

    Raises:
        UsageError: the name is not in the table.
    """
    if name not in AGENTS:
        raise unknown_name("agent", name, AGENTS, "--agent")
    return AGENTS[name]


def resolve_actions(agent: str, actions: str) -> bool:
    """Decide between bits and weights.

    Args:
        agent: name of the agent.
        actions: ``hard``, ``soft``, or ``auto`` for what the agent works with.

    Returns:
        True for soft actions.

    Raises:
        UsageError: the agent is unknown or cannot take that kind of action.
    """
    info = get_agent(agent)
    if actions == "auto":
        return info.natural == "soft"
    if actions not in info.actions:
        able = [name for name, other in AGENTS.items() if actions in other.actions]
        raise UsageError(
            f"--env.actions {actions} does not work with --agent {agent}, whose actions are "
            f"{info.natural}. Leave it at auto, or choose one of these agents: {', '.join(able)}."
        )
    return actions == "soft"


def unused_settings(config: RunConfig) -> list[str]:
    """Options that differ from their defaults although the chosen agent does not read them.

    Returns:
        Their names, e.g. ``["--ppo.gamma"]``.
    """
    used = get_agent(config.agent).settings
    groups = dict.fromkeys(group for info in AGENTS.values() for group in info.settings)
    unused = []
    for group in groups:
        if group in used:
            continue
        given = getattr(config, group)
        default = type(given)()
        unused += [
            f"--{group}.{field.name}"
            for field in fields(given)
            if getattr(given, field.name) != getattr(default, field.name)
        ]
    return unused


def check_settings(config: RunConfig) -> None:
    """Refuse agent settings that would have no effect or cannot work.

    Raises:
        UsageError: names each option and what reads it.
    """
    unused = unused_settings(config)
    if unused:
        readers = {
            option: [n for n, i in AGENTS.items() if option[2:].split(".")[0] in i.settings]
            for option in unused
        }
        listed = "; ".join(
            f"{option} is not used by --agent {config.agent} (it is read by {', '.join(names)})"
            for option, names in readers.items()
        )
        raise UsageError(f"{listed}. Leave it out, or choose an agent that reads it.")
    resolve_actions(config.agent, config.env.actions)
    if config.agent == "annealed" and "training" not in config.env.observe:
        raise UsageError("--env.observe: annealed reads its progress from 'training'; add it.")
    if config.agent in ("a2c", "ppo"):
        check_hyper_parameters(config.agent, getattr(config, config.agent))


def make_agent(
    config: RunConfig,
    pool: Sequence[str],
    observation_space: spaces.Dict,
    action_space: spaces.Space,
) -> FixedPolicy | SB3Agent:
    """Build the run's agent.

    Args:
        config: the run; ``agent`` and that agent's group of settings are read.
        pool: names of the knowledge types, in the order of the action.
        observation_space: ``Dict`` with ``training`` and other vectors.
        action_space: ``MultiBinary(K)`` (hard) or ``Box(0, 1, (K,))`` (soft).

    Returns:
        A policy that is ready, or, where ``learns``, an agent whose ``learn`` makes one.

    Raises:
        UsageError: unknown agent, settings it does not read or cannot work with, or an action
            space it cannot use.
    """
    check_settings(config)
    soft = isinstance(action_space, spaces.Box)
    resolve_actions(config.agent, "soft" if soft else "hard")
    info = get_agent(config.agent)
    if info.learns:
        return SB3Agent(config, pool, observation_space, action_space)
    settings = {
        field.name: getattr(getattr(config, group), field.name)
        for group in info.settings
        for field in fields(getattr(config, group))
    }
    return fixed_policy(config.agent, settings, pool, soft)
