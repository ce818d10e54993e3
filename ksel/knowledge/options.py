"""The settings of the pool, checked: in range, and read by some type."""

from __future__ import annotations

from math import inf

from ksel.config import KnowledgeConfig
from ksel.errors import UsageError
from ksel.knowledge.kinds import KINDS

# option, lowest allowed, limit above, whether the lowest itself is excluded, what to give
_RANGES: tuple[tuple[str, float, float, bool, str], ...] = (
    ("temperature", 0, inf, True, "a number above 0; published runs use 2 to 20"),
    ("temperature_end", 0, inf, True, "a number above 0, such as 1"),
    ("temperature_range", 0, inf, True, "a number above 0, such as 1"),
    ("temperature_power", 0, inf, True, "a number above 0, such as 1"),
    ("contrastive_temperature", 0, inf, True, "a number above 0, such as 0.1"),
    ("ema_decay", 0, 1, False, "a number from 0 up to, but not including, 1, such as 0.98"),
    ("logit_annealing", 0, inf, False, "a number of steps, or 0 for none"),
    ("relation_heads", 1, inf, False, "1 or more, or null for the teacher's heads"),
)

# option, the switch that must stand so for it to be read, kinds that read it either way
_SWITCHED: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("balance_every", "balance", ("gradient",), ()),
    ("ema_decay", "balance", ("ema", "gradient"), ()),
    ("max_gain", "balance", ("ema", "gradient"), ()),
    ("temperature_end", "temperature_schedule", ("linear",), ()),
    ("temperature_range", "temperature_schedule", ("flsw", "cwsm"), ()),
    ("temperature_power", "temperature_schedule", ("flsw",), ()),
    ("attention_on", "attention_loss", ("mse",), ("attention_sum",)),
)


def check_settings(settings: KnowledgeConfig, kinds: frozenset[str]) -> None:
    """Refuse numbers out of range and settings that nothing in the pool reads.

    Args:
        settings: of the pool.
        kinds: the kinds in the pool.

    Raises:
        UsageError: names the option and what to give.
    """
    for option, lowest, limit, excluded, advice in _RANGES:
        value = getattr(settings, option)
        if value is None:
            continue
        fits = lowest <= value < limit and not (excluded and value == lowest)
        if not fits:
            raise UsageError(f"--knowledge.{option}: {value} is out of range. Give {advice}.")
    default = KnowledgeConfig()
    changed = {
        option for option in vars(default) if getattr(settings, option) != getattr(default, option)
    }
    _check_readers(changed, kinds)
    for option, switch, values, either in _SWITCHED:
        value = getattr(settings, switch)
        if option in changed and value not in values and not kinds & set(either):
            raise UsageError(
                f"--knowledge.{option}: not used with --knowledge.{switch} {value}. Leave it out, "
                f"or set --knowledge.{switch} {' or '.join(values)}."
            )


def _check_readers(changed: set[str], kinds: frozenset[str]) -> None:
    for option in dict.fromkeys(option for kind in KINDS.values() for option in kind.settings):
        readers = [name for name, kind in KINDS.items() if option in kind.settings]
        if option in changed and not kinds & set(readers):
            raise UsageError(
                f"--knowledge.{option}: only {', '.join(readers)} use it, and the pool has none. "
                "Leave it out, or add such a type to --knowledge.pool."
            )
