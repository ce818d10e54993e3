"""How an agent is made, and which settings it cannot work with; the table is in :mod:`agents.table`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from gymnasium import spaces

from agents.all_action_agent import AllActionAgent, check_all_action
from agents.bandit import BanditAgent, check_bandit
from agents.best_static import BestStaticAgent, check_best_static
from agents.ddpg import DDPGAgent, check_ddpg
from agents.fixed import (
    LABEL,
    FixedPolicy,
    fixed_policy,
    kind_of,
    mask_vector,
    refuse_one_sided,
)
from agents.halving import search_plan
from agents.policy import Learner
from agents.race import RaceAgent, check_race
from agents.ranges import refuse_late_start, refuse_short_search
from agents.stable_baselines import SB3Agent, check_hyper_parameters
from agents.table import (
    AGENTS,
    AgentInfo,
    get_agent,
    resolve_actions,
    resolve_objective,
    resolve_reward,
    resolve_search,
)
from ksel.checks import asks_for
from ksel.config import (
    AllActionConfig,
    BranchesConfig,
    DDPGConfig,
    DynamicConfig,
    EnvConfig,
    RunConfig,
)
from ksel.errors import UsageError
from ksel.tasks import get_task

__all__ = [
    "AGENTS",
    "AgentInfo",
    "check_agent",
    "check_rewards",
    "check_settings",
    "get_agent",
    "make_agent",
    "resolve_actions",
    "resolve_objective",
    "resolve_reward",
    "resolve_search",
    "unused_settings",
]


def groups_read(config: RunConfig) -> set[str]:
    """The groups of settings that the run reads among those that not every run does."""
    info = get_agent(config.agent)
    reward = resolve_reward(config.agent, config.env.reward, config.search)
    search = resolve_search(config.agent, config.search)
    read = set(info.settings)
    if search != "episodes":
        read.discard("episodes")
    if reward == "amortized":
        read.add("credit")
    if search == "branch" or ("branch" in info.searches and reward == "amortized"):
        read.add("branches")
    return read


def unused_settings(config: RunConfig) -> list[str]:
    """Options that differ from their defaults although the chosen agent does not read them.

    Returns:
        Their names, e.g. ``["--ppo.gamma"]``.
    """
    used = groups_read(config)
    groups = dict.fromkeys(group for info in AGENTS.values() for group in info.settings)
    unused = []
    for group in (*groups, "credit", "branches"):
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


def _why_unused(config: RunConfig, option: str) -> str:
    group = option[2:].split(".")[0]
    info = get_agent(config.agent)
    if group == "credit" and "amortized" in info.rewards:
        return (
            f"{option} is not used with measured rewards (it is read with --env.reward amortized, "
            f"which --agent {config.agent} can work with)"
        )
    if group == "branches" and "branch" in info.searches:
        return (
            f"{option} is not used with --search {config.search} and --env.reward measured (it is "
            f"read with --search branch, or --env.reward amortized)"
        )
    if group == "episodes" and info.learns:
        search = resolve_search(config.agent, config.search)
        return f"{option} is not used with --search {search} (it is read with --search episodes)"
    readers = [
        name
        for name, other in AGENTS.items()
        if group in other.settings
        or (group == "credit" and "amortized" in other.rewards)
        or (group == "branches" and "branch" in other.searches)
    ]
    return f"{option} is not used by --agent {config.agent} (it is read by {', '.join(readers)})"


def check_settings(config: RunConfig) -> None:
    """Refuse agent settings that would have no effect or cannot work.

    Raises:
        UsageError: names each option and what reads it.
    """
    unused = unused_settings(config)
    if unused:
        listed = "; ".join(_why_unused(config, option) for option in unused)
        origin = f" It may come from --method {config.method}." if config.method else ""
        raise UsageError(f"{listed}.{origin} Leave it out, or choose an agent that reads it.")
    _check_search(config)
    check_rewards(config)
    soft = resolve_actions(config.agent, config.env.actions)
    if config.agent == "annealed" and "training" not in config.env.observe:
        raise UsageError("--env.observe: annealed reads its progress from 'training'; add it.")
    if config.agent in ("a2c", "ppo"):
        check_hyper_parameters(config.agent, getattr(config, config.agent))
    if config.agent == "ddpg":
        _check_ddpg(config, soft)
    if config.agent == "bandit":
        _check_bandit(config)
    if config.agent == "best_static":
        check_best_static(config)
        _refuse_mode(config, config.agent)
    if config.agent == "race":
        _check_race(config)
    if config.agent == "dynamic":
        _check_dynamic(config)
    if config.agent == "all_action":
        _check_all_action(config, soft)
    if config.agent == "greedy" and "training" not in config.env.observe:
        raise UsageError("--env.observe: greedy reads the credit in 'training'; add it.")


def _check_search(config: RunConfig) -> None:
    reward = resolve_reward(config.agent, config.env.reward, config.search)
    if reward == "measured" and config.env.window != EnvConfig().window:
        raise UsageError(
            "--env.window is not used with measured rewards, which are the true drop of each "
            "decision. Leave it out, or set --env.reward amortized with an agent that can use it."
        )


def check_rewards(config: RunConfig) -> None:
    """Refuse parts of the reward that an agent is not taught by: those that credit or a fork leaves out.

    Raises:
        UsageError: names the option and what would read it.
    """
    if config.agent not in ("all_action", "greedy", "best_static", "race"):
        return
    amortized = resolve_reward(config.agent, config.env.reward, config.search) == "amortized"
    instead = "choose an agent that is paid with rewards alone, such as a2c"
    names: tuple[str, ...] = ("reward_scale", "cost_per_type", "exploration", "final_metric")
    if config.agent == "best_static":
        why = "--agent best_static, which compares the plain drops of the objective"
    elif config.agent == "race":
        names = (*names, "objective", "margin_width")
        why = "--agent race, which compares lanes by --race.objective"
    elif resolve_search(config.agent, config.search) == "branch":
        why = "--search branch, which compares the plain drops of its forks"
        instead = "set --search online with --env.reward measured"
    elif config.agent == "greedy":
        names = ("cost_per_type", "exploration", "final_metric")
        why = "--agent greedy, which reads credit, and that tells of the drop alone"
    elif amortized:
        names = ("exploration", "final_metric")
        why = "--agent all_action where it learns from credit, which tells of the drop alone"
        instead = "set --env.reward measured"
    else:
        return
    for name in names:
        if asks_for(config.env, name):
            origin = f" It may come from --method {config.method}." if config.method else ""
            raise UsageError(
                f"--env.{name} is not used with {why}.{origin} Leave it out, or {instead}."
            )


def _check_all_action(config: RunConfig, soft: bool) -> None:
    settings, usual = config.all_action, AllActionConfig()
    check_all_action(settings, soft)
    branch = resolve_search(config.agent, config.search) == "branch"
    if branch and config.branches.every != BranchesConfig().every:
        raise UsageError(
            "--branches.every is not used with --search branch, where each decision is a fork. Leave "
            "it out, or set --search online."
        )
    credited = ("n_steps", "gamma", "gae_lambda", "block", "memory", "doubt")
    for name in credited if branch else ():
        if getattr(settings, name) != getattr(usual, name):
            raise UsageError(
                f"--all_action.{name} is not used with --search branch, where each decision is a "
                f"fork. Leave it out, or set --search online."
            )
    if not soft or settings.soft != "sigmoid":
        return
    if branch or resolve_reward(config.agent, config.env.reward, config.search) == "measured":
        option = "--search branch" if branch else "--env.reward measured"
        raise UsageError(
            f"--all_action.soft sigmoid learns from credit alone, which {option} does not give. "
            f"Set --all_action.soft beta, or leave {option.split()[0]} at auto."
        )
    if config.branches != BranchesConfig():
        raise UsageError(
            "--branches: not used with --all_action.soft sigmoid, which does not fork. Leave the group "
            "out, or set --all_action.soft beta."
        )
    _refuse_mode(config, "all_action with the sigmoid")


def _check_race(config: RunConfig) -> None:
    check_race(config, config.knowledge.pool)
    if config.env.observe != EnvConfig().observe:
        raise UsageError(
            "--env.observe is not used by --agent race, which looks at its progress alone. Leave it out."
        )


def _check_ddpg(config: RunConfig, soft: bool) -> None:
    check_ddpg(config.ddpg)
    for name in ("threshold", "at_least_one") if soft else ():
        if getattr(config.ddpg, name) != getattr(DDPGConfig(), name):
            raise UsageError(
                f"--ddpg.{name} is not used with soft actions, which are the weights themselves. "
                f"Leave it out, or set --env.actions hard."
            )
    _refuse_mode(config, "ddpg")


def _check_bandit(config: RunConfig) -> None:
    check_bandit(config.bandit)
    if config.bandit.algorithm == "linucb":
        _refuse_mode(config, "bandit with linucb")
    elif config.env.observe != EnvConfig().observe:
        raise UsageError(
            "--env.observe is not used by --bandit.algorithm exp3s, which is blind to the "
            "observation. Leave it out, or set --bandit.algorithm linucb."
        )


def _refuse_mode(config: RunConfig, agent: str) -> None:
    if config.episodes.final == "mode":
        raise UsageError(
            f"--episodes.final mode has no effect on --agent {agent}: its frozen policy draws "
            f"nothing. Leave it out."
        )


def _check_dynamic(config: RunConfig) -> None:
    if "training" not in config.env.observe:
        raise UsageError("--env.observe: dynamic reads the entropy in 'training'; add it.")
    custom = config.custom.kind == "auto" and not config.custom.labels
    if custom if config.task == "custom" else get_task(config.task).is_regression:
        raise UsageError(
            f"--agent dynamic weighs by the entropy of the student's answers, and the scores of "
            f"--task {config.task} have none. Choose another agent, or a task with classes."
        )
    refuse_one_sided(config.knowledge.pool)
    kinds = [kind_of(name) for name in config.knowledge.pool]
    if LABEL not in kinds and config.dynamic != DynamicConfig():
        raise UsageError(
            f"--dynamic.label is not used: --knowledge.pool has no '{LABEL}'. Leave it out, or "
            f"add '{LABEL}' to the pool."
        )


def check_agent(
    config: RunConfig, pool: Sequence[str], decisions: int, allowed: Sequence[np.ndarray]
) -> None:
    """Refuse an agent that cannot work with this pool, search or stages; needs no environment.

    Args:
        config: the run.
        pool: names of the knowledge types.
        decisions: decisions of the whole search; read only where the agent learns.
        allowed: for each stage, which of the types can be selected, [K] bool.

    Raises:
        UsageError: as :func:`make_agent`; a search too short to learn from; a static mask of which
            nothing can be selected in a stage.
    """
    if get_agent(config.agent).learns:
        online = resolve_search(config.agent, config.search) != "episodes"
        refuse_short_search(config.agent, decisions, online)
        if config.agent == "bandit":
            _refuse_stages(config.agent, allowed)
        if config.agent == "best_static":
            search_plan(config, pool, decisions)
        if config.agent == "ddpg":
            refuse_late_start(config.ddpg.learning_starts, decisions)
        return
    soft = resolve_actions(config.agent, config.env.actions)
    size = (len(pool),)
    space: spaces.Space = spaces.Box(0.0, 1.0, size) if soft else spaces.MultiBinary(len(pool))
    make_agent(config, pool, spaces.Dict({}), space)
    if config.agent == "round_robin":
        _refuse_stages(config.agent, allowed)
    if config.agent != "static":
        return
    mask = mask_vector(config.static.mask, pool) > 0
    for number, possible in enumerate(allowed, 1):
        if mask.any() and not (mask & possible).any():
            names = ", ".join(name for name, on in zip(pool, possible, strict=True) if on)
            raise UsageError(
                f"--static.mask: nothing of it can be selected in stage {number}, which would train "
                f"nothing. Add one of {names}, or change --stages."
            )


def _refuse_stages(agent: str, allowed: Sequence[np.ndarray]) -> None:
    if not all(possible.all() for possible in allowed):
        raise UsageError(
            f"--agent {agent} selects one type at a time and cannot tell which of them a stage "
            f"allows: most of its decisions would train nothing. Leave the pools out of --stages, or "
            f"choose an agent that selects several, such as a2c."
        )


def make_agent(
    config: RunConfig,
    pool: Sequence[str],
    observation_space: spaces.Dict,
    action_space: spaces.Space,
) -> FixedPolicy | Learner:
    """Build the run's agent.

    Args:
        config: the run; ``agent`` and that agent's group of settings are read.
        pool: names of the knowledge types, in the order of the action.
        observation_space: ``Dict`` with ``training`` and other vectors.
        action_space: ``MultiBinary(K)`` (hard) or ``Box(0, 1, (K,))`` (soft).

    Returns:
        A policy that is ready, or, where ``learns``, a learner whose ``learn`` makes one.

    Raises:
        UsageError: unknown agent, settings it does not read or cannot work with, or an action
            space it cannot use.
    """
    check_settings(config)
    soft = isinstance(action_space, spaces.Box)
    resolve_actions(config.agent, "soft" if soft else "hard")
    info = get_agent(config.agent)
    if config.agent in ("a2c", "ppo"):
        return SB3Agent(config, pool, observation_space, action_space)
    if config.agent == "ddpg":
        _check_ddpg(config, soft)
        return DDPGAgent(config, pool, observation_space, action_space)
    if config.agent == "bandit":
        return BanditAgent(config, pool, observation_space)
    if config.agent == "best_static":
        return BestStaticAgent(config, pool)
    if config.agent == "race":
        return RaceAgent(config, pool)
    if config.agent == "all_action":
        _check_all_action(config, soft)
        return AllActionAgent(config, pool, observation_space, action_space)
    settings = {
        field.name: getattr(getattr(config, group), field.name)
        for group in info.settings
        for field in fields(getattr(config, group))
    }
    return fixed_policy(config.agent, settings, pool, soft)
