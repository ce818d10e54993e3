"""Refusals of numbers outside their range, for the settings of agents."""

from __future__ import annotations

from collections.abc import Sequence

from ksel.errors import UsageError


def refuse_below(option: str, value: float, bound: float, instead: str = "") -> None:
    """Refuse a number below ``bound``, or none at all (nan).

    Args:
        option: the setting, with its dashes.
        value: its value.
        bound: the least one allowed.
        instead: what else would help.

    Raises:
        UsageError: names the option and the bound.
    """
    if not value >= bound:
        raise UsageError(f"{option} is {value}; give {bound} or more{instead}.")


def refuse_not_positive(option: str, value: float) -> None:
    """Refuse zero, negative numbers and nan."""
    if not value > 0:
        raise UsageError(f"{option} is {value}; give more than 0.")


def refuse_outside_unit(option: str, value: float) -> None:
    """Refuse what is not from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{option} is {value}; give a number from 0 to 1.")


def refuse_bad_widths(option: str, widths: Sequence[int]) -> None:
    """Refuse hidden layers without units."""
    if any(width < 1 for width in widths):
        raise UsageError(f"{option} has a width below 1; give positive widths.")


def refuse_short_search(agent: str, decisions: int, online: bool = False) -> None:
    """Refuse a search of fewer than two decisions, from which nothing can be learned.

    Args:
        agent: its name.
        decisions: decisions of the search.
        online: the search is the life of the one and only student.

    Raises:
        UsageError: names what makes it longer.
    """
    if decisions < 2:
        longer = "" if online else "--episodes.count, --episodes.share or "
        raise UsageError(
            f"--agent {agent} cannot learn from {decisions} decision(s). Raise {longer}the step "
            f"budget (--optim.max_updates), or lower --env.phase_steps."
        )


def refuse_late_start(learning_starts: int, decisions: int) -> None:
    """Refuse a warm-up that takes the whole search.

    Raises:
        UsageError: the first update would never come.
    """
    if decisions <= learning_starts:
        raise UsageError(
            f"--ddpg.learning_starts {learning_starts} is not below the search's {decisions} "
            f"decision(s): the first update would never come. Lower it, raise --episodes.count, "
            f"--episodes.share or the step budget (--optim.max_updates), or lower "
            f"--env.phase_steps."
        )
