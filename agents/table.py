"""The table of agents: what each works with, which settings it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ksel.checks import FEWEST_OF_A_PROBE, has_spans
from ksel.config import Objective, RunConfig
from ksel.errors import UsageError, unknown_name
from ksel.objectives import AUTO, CROSS_ENTROPY, PROBE

Actions = Literal["hard", "soft"]
Reward = Literal["measured", "amortized"]
Search = Literal["episodes", "online", "branch"]


@dataclass(frozen=True)
class AgentInfo:
    """What an agent works with.

    Attributes:
        actions: the kinds of action it can take, its natural one first.
        learns: True if it learns in episodes.
        settings: fields of :class:`ksel.config.RunConfig` that it reads.
        about: one line for people.
        observes: True if its policy needs a fresh observation at each decision.
        rewards: the kinds of reward it can be paid with, its natural one first.
        searches: the ways it can learn, its natural one first.
        objective: what it compares under ``--env.objective auto`` where that is possible.
    """

    actions: tuple[Actions, ...]
    learns: bool
    settings: tuple[str, ...]
    about: str
    observes: bool
    rewards: tuple[Reward, ...] = ("measured",)
    searches: tuple[Search, ...] = ("episodes",)
    objective: Objective = CROSS_ENTROPY

    @property
    def natural(self) -> Actions:
        """The kind of action under ``--env.actions auto``."""
        return self.actions[0]


BOTH: tuple[Actions, ...] = ("hard", "soft")
PAID: tuple[Reward, ...] = ("measured", "amortized")
LEARN: tuple[Search, ...] = ("episodes", "online")


def _library(group: str, about: str, actions: tuple[Actions, ...] = BOTH) -> AgentInfo:
    return AgentInfo(actions, True, (group, "episodes"), about, True, PAID, LEARN)


AGENTS: dict[str, AgentInfo] = {
    "a2c": _library("a2c", "advantage actor-critic (Stable-Baselines3)"),
    "ppo": _library("ppo", "proximal policies (Stable-Baselines3)"),
    "ddpg": _library("ddpg", "deterministic actor-critic (Stable-Baselines3)"),
    "bandit": _library("bandit", "one type at a time: Exp3.S, LinUCB", ("hard",)),
    "all_action": AgentInfo(
        BOTH,
        True,
        ("all_action", "episodes"),
        "actor-critic that learns from the credit of all types",
        True,
        ("amortized", "measured"),
        ("online", "episodes", "branch"),
    ),
    "best_static": AgentInfo(
        ("hard",),
        True,
        ("best_static", "episodes"),
        "the best fixed mask, by its own search",
        False,
        objective=PROBE,
    ),
    "race": AgentInfo(
        ("hard",),
        True,
        ("race",),
        "masks race inside the student's life",
        False,
        ("measured",),
        ("online",),
    ),
    "static": AgentInfo(BOTH, False, ("static",), "one mask for the whole run", False),
    "random_hard": AgentInfo(("hard",), False, ("random",), "each bit drawn anew", False),
    "random_soft": AgentInfo(
        ("soft",), False, (), "each weight drawn anew, uniform in [0, 1]", False
    ),
    "annealed": AgentInfo(("soft",), False, ("annealed",), "from the teacher to the label", False),
    "round_robin": AgentInfo(("hard",), False, (), "one type after the other", False),
    "dynamic": AgentInfo(
        ("soft",), False, ("dynamic",), "states while the student is unsure, then answers", True
    ),
    "greedy": AgentInfo(
        BOTH, False, ("greedy",), "types with positive credit", True, ("amortized",)
    ),
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


def resolve_reward(agent: str, reward: str, search: str = "auto") -> Reward:
    """Decide what decisions are paid with.

    Args:
        agent: name of the agent.
        reward: ``measured``, ``amortized``, or ``auto`` for what the agent works with.
        search: how it learns; branches are measured, so under ``branch`` auto is measured.

    Raises:
        UsageError: the agent is unknown or cannot be paid so.
    """
    info = get_agent(agent)
    if reward == "auto":
        return "measured" if search == "branch" else info.rewards[0]
    for able in info.rewards:
        if able == reward:
            return able
    others = [name for name, other in AGENTS.items() if reward in other.rewards]
    what = "is paid nothing" if not info.learns else "compares measured drops"
    if agent == "race":
        what = "is paid nothing"
    if info.rewards == ("amortized",):
        what = "reads the credit of types"
    raise UsageError(
        f"--env.reward {reward} does not work with --agent {agent}, which {what}. Leave it at auto, "
        f"or choose one of these agents: {', '.join(others)}."
    )


def resolve_objective(config: RunConfig) -> Objective:
    """Decide what rewards are drops of.

    Args:
        config: the run; ``auto`` is what the agent works with. Where that is ``probe`` and there can be
            none (spans, students side by side, too few reward rows) it is ``calibrated``.

    Raises:
        UsageError: the agent or the task is unknown.
    """
    if config.env.objective != AUTO:
        return config.env.objective
    natural = get_agent(config.agent).objective
    blind = has_spans(config) or config.students > 1 or config.rows.reward < FEWEST_OF_A_PROBE
    return "calibrated" if natural == PROBE and blind else natural


def resolve_search(agent: str, search: str) -> Search:
    """Decide how the agent learns.

    Args:
        agent: name of the agent.
        search: ``episodes``, ``online``, ``branch``, or ``auto`` for what the agent works with.

    Returns:
        ``episodes`` also for agents that do not learn.

    Raises:
        UsageError: the agent is unknown or cannot learn so.
    """
    info = get_agent(agent)
    if search == "auto":
        return info.searches[0]
    for able in info.searches:
        if able == search:
            return able
    others = [name for name, other in AGENTS.items() if other.learns and search in other.searches]
    what = "cannot compare branches" if info.learns else "does not learn"
    if info.searches == ("episodes",) and info.learns:
        what = "needs students of its own to compare"
    if info.searches == ("online",):
        what = "races in the life of the one student"
    raise UsageError(
        f"--search {search} does not work with --agent {agent}, which {what}. Leave it at auto, or "
        f"choose one of these agents: {', '.join(others)}."
    )
