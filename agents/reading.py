"""Which of the settings that are given to many agents at once one of them reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.make import AGENTS, get_agent, groups_read, resolve_reward
from agents.race import NAME as RACE
from agents.stable_baselines import ALGORITHMS
from ksel.checks import FOR_LEARNERS
from ksel.config import EnvConfig, RunConfig
from ksel.errors import UsageError

Key = tuple[str, ...]
"""A setting by its names from the outside in: ("env", "window")."""


def unread(agent: str, settings: Mapping[str, Any]) -> set[Key]:
    """Settings that this agent would refuse because it has no use for them.

    A run of its own says so aloud; among many agents a setting is meant for those that read it.

    Args:
        agent: name of the agent.
        settings: nested, as in a run's YAML.

    Returns:
        Names of settings, or of whole groups.

    Raises:
        UsageError: there is no such agent.
    """
    info = get_agent(agent)
    env = settings.get("env") or {}
    found: set[Key] = set()
    search = str(settings.get("search", "auto"))
    if search != "auto" and not (info.learns and search in info.searches):
        found.add(("search",))
        search = "auto"
    if env.get("actions", "auto") not in ("auto", *info.actions):
        found.add(("env", "actions"))
    reward = str(env.get("reward", "auto"))
    if reward != "auto" and reward not in info.rewards:
        found.add(("env", "reward"))
        reward = "auto"
    if agent not in ALGORITHMS:
        found |= {("students",), ("vectorize",)}
    paid = info.learns and agent != RACE
    if not paid and "amortized" not in info.rewards:
        found |= {("env", n) for n in FOR_LEARNERS if not (n == "observe" and info.observes)}
    stub = RunConfig(agent=agent, search=search, env=EnvConfig(reward=reward))  # type: ignore[arg-type]
    if _measured(stub):
        found.add(("env", "window"))
    groups = {group for one in AGENTS.values() for group in one.settings} | {"credit", "branches"}
    found |= {(group,) for group in groups - groups_read(stub)}
    return found


def _measured(config: RunConfig) -> bool:
    try:
        return resolve_reward(config.agent, config.env.reward, config.search) == "measured"
    except UsageError:  # the run refuses the combination itself
        return False
