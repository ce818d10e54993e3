"""The bootstrap of logged decisions: over episodes, or over moving blocks of decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

LEVEL = 0.95
FEWEST_EPISODES = 5
"""With fewer, blocks of decisions are drawn instead."""
BLOCK = 2.0
"""Length of a block over the cube root of the number of decisions."""


@dataclass(frozen=True)
class Units:
    """What is drawn anew: episodes, or blocks of decisions within them.

    Attributes:
        whole: index arrays of the decisions, one for each unit that can be drawn.
        number: units of one resample, as many as the decisions amount to.
        about: for people.
    """

    whole: list[np.ndarray]
    number: int
    about: str

    def resample(self, parts: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
        """Sums of ``parts`` [N, m] over resamples, [count, m]."""
        sums = np.stack([parts[unit].sum(0) for unit in self.whole])
        chances = np.full(len(sums), 1.0 / len(sums))
        return rng.multinomial(self.number, chances, size=count) @ sums


def units_of(episodes: np.ndarray) -> Units:
    """Episodes where there are enough, else overlapping blocks of about 2 N^(1/3) decisions.

    A block does not reach over the end of its episode. Blocks keep what decisions that follow each
    other have in common (Kuensch, Annals of Statistics 1989); their length grows as the cube root of
    the sample, as is best for the variance of a mean (Hall, Horowitz & Jing, Biometrika 1995).

    Args:
        episodes: [N] number of each decision's episode.
    """
    found = [np.flatnonzero(episodes == number) for number in dict.fromkeys(episodes.tolist())]
    if len(found) >= FEWEST_EPISODES:
        return Units(found, len(found), f"{len(found)} episodes")
    length = max(1, round(BLOCK * len(episodes) ** (1 / 3)))
    blocks = [
        rows[start : start + length]
        for rows in found
        for start in range(max(1, len(rows) - length + 1))
    ]
    return Units(blocks, math.ceil(len(episodes) / length), f"blocks of {length} decisions")


def around(value: float, values: np.ndarray, number: float, freedom: float) -> tuple[float, float]:
    """The 95 % interval: value +- Student's t x the standard error over resamples.

    Quantiles of the resamples themselves would be too narrow with as few units as there are.

    Args:
        value: the estimate.
        values: the same over resamples; nan where one has no weight.
        number: units of a resample.
        freedom: degrees of freedom; taken as 1 where lower.
    """
    # n units drawn with replacement vary by (n - 1) / n too little
    spread = float(np.nanstd(values)) * math.sqrt(number / max(number - 1.0, 1.0))
    reach = float(student_t.ppf(0.5 + LEVEL / 2, max(freedom, 1.0))) * spread
    return value - reach, value + reach
