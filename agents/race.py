"""race: masks race inside the one student's life; the one that teaches it faster is kept.

From time to time the student is forked into lanes with the same batches: one keeps its mask, each of the
others has a challenger's. A challenger takes over where it is clearly ahead on the reward split (a paired t over its rows,
as races of configurations do: Birattari et al. 2002, "A racing algorithm for configuring
metaheuristics"); the lane that is kept is the student, so its part of a heat is never lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.logger import Logger

from agents.fixed import mask_vector
from agents.keeping import resumed_logger
from agents.policy import HEADER, Choice, Keep, Observation, OnStep, damaged, write_header
from agents.racing import Heats, Mask, challengers, plan_heats
from agents.stable_baselines import start_logger
from ksel.config import RaceConfig, RunConfig
from ksel.errors import UsageError
from ksel.packing import State

NAME = "race"
FEWEST_ROWS = 16
"""Rows of the reward split from which on a t of their differences means something."""


@dataclass(frozen=True)
class HeatRecord:
    """One challenger in a heat; those of one heat share its start.

    Attributes:
        start, end: updates of the student before and after it.
        incumbent, challenger: the masks, by the names of the types that are on.
        objectives: of the two at the end; None where the lane diverged.
        t: how far the challenger was ahead, in standard errors; None = a lane diverged.
        taken: True if the challenger took over.
    """

    start: int
    end: int
    incumbent: tuple[str, ...]
    challenger: tuple[str, ...]
    objectives: tuple[float | None, float | None]
    t: float | None
    taken: bool


def check_race(config: RunConfig, pool: Sequence[str]) -> None:
    """Refuse what cannot race.

    Raises:
        UsageError: a pool of one type, a reward split too small to tell two masks apart.
    """
    if config.rows.reward < FEWEST_ROWS:
        raise UsageError(
            f"--rows.reward {config.rows.reward}: --agent {NAME} compares masks row by row on the reward "
            f"split, and so few rows tell nothing apart. Give {FEWEST_ROWS} or more."
        )
    if len(pool) < 2:
        raise UsageError(
            f"--agent {NAME} races masks against each other, and --knowledge.pool has one type "
            f"({', '.join(pool)}). Add a type, or use --agent static."
        )


# --------------------------------------------------------------------------- frozen


class RacePolicy:
    """The masks that were kept, each from its share of the step budget on. See :class:`agents.policy.Policy`.

    Args:
        course: (share of the budget, names of the types that are on), in order; the first from 0 on.
        heats: how they were found.
        pool: names of the knowledge types.

    Raises:
        UsageError: a name is not in the pool.
    """

    name = NAME
    soft = False
    learns = True

    def __init__(
        self,
        course: Sequence[tuple[float, Sequence[str]]],
        heats: Sequence[HeatRecord],
        pool: Sequence[str],
    ) -> None:
        self.course = [(float(share), tuple(names)) for share, names in course]
        self.heats, self.pool = tuple(heats), tuple(pool)
        self.bits = [_bits(names, self.pool) for _, names in self.course]

    def reset(self, rng: np.random.Generator) -> None:
        """Nothing is drawn."""

    def act(self, observation: Observation) -> Choice:
        """The mask of this share of the budget.

        Raises:
            UsageError: the observation lacks ``training``, whose first number is the progress.
        """
        if "training" not in observation:
            raise UsageError(f"--env.observe: {NAME} reads its progress from 'training'; add it.")
        progress = float(observation["training"][0]) + 1e-6
        number = sum(share <= progress for share, _ in self.course) - 1
        return Choice.certain(self.bits[max(number, 0)])

    def save(self, folder: Path) -> None:
        """Write ``policy.json``, with the heats in it."""
        course = [[share, list(names)] for share, names in self.course]
        heats = [asdict(heat) for heat in self.heats]
        write_header(folder, self, NAME, (), course=course, heats=heats)


def _bits(names: Sequence[str], pool: Sequence[str]) -> np.ndarray:
    return mask_vector(list(names) or ["none"], pool, "the mask of race")


def from_header(header: dict[str, Any], folder: Path) -> RacePolicy:
    """Rebuild the policy from ``policy.json``.

    Raises:
        UsageError: the file does not describe one.
    """
    try:
        if header["agent"] != NAME or header["soft"]:
            raise ValueError("it is no course of a race")
        course = [(float(share), tuple(names)) for share, names in header["course"]]
        if not course or course[0][0] != 0.0 or course != sorted(course, key=lambda part: part[0]):
            raise ValueError("the course has to begin at 0 and go up")
        return RacePolicy(course, [_heat_of(one) for one in header["heats"]], header["pool"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise damaged(folder / HEADER, f"it does not describe a race: {error}") from error


def _heat_of(record: dict[str, Any]) -> HeatRecord:
    tuples = {name: tuple(record[name]) for name in ("incumbent", "challenger", "objectives")}
    return HeatRecord(**{**record, **tuples})


# --------------------------------------------------------------------------- the race


class RaceAgent:
    """Races masks while the student trains; see :class:`agents.policy.Learner`.

    Args:
        config: the run; its group ``race`` holds the settings.
        pool: names of the knowledge types.

    Raises:
        UsageError: see :func:`check_race`.
    """

    name = NAME
    soft = False
    learns = True

    def __init__(self, config: RunConfig, pool: Sequence[str]) -> None:
        check_race(config, pool)
        self.held, self.pool = config.env.phase_steps, tuple(pool)
        self.settings: RaceConfig = config.race
        self.keep: Keep | None = None
        self.state: State | None = None
        self.course: list[tuple[int, Mask]] = [(0, (1,) * len(self.pool))]
        self.heats: list[HeatRecord] = []
        self.taken = self.budget = 0

    @property
    def mask(self) -> Mask:
        """The mask that the student has now."""
        return self.course[-1][1]

    @property
    def learned(self) -> bool:
        """True once a decision was taken."""
        return self.taken > 0

    def learn(
        self,
        env: gym.Env,
        decisions: int,
        *,
        seed: int,
        logger_folder: Path | None = None,
        on_step: OnStep | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Live one student's life of ``decisions`` decisions; those of a lane that is kept count.

        Args:
            env: a :class:`envs.DistillationEnv`, maybe recorded. Its rewards are not measured: the
                reward split is looked at only where a heat ends. Not closed.
            decisions: of the life.
            seed: of the batches.
            logger_folder: where TensorBoard events (race/) go; None = nowhere.
            on_step, progress, stop: as for all learners.

        Returns:
            The number of decisions taken.
        """
        before, over = self._begin(env, decisions, seed), False
        logger = resumed_logger(logger_folder, before) if before else start_logger(logger_folder)
        plan = plan_heats(
            self.budget,
            self.settings.share,
            self.settings.least,
            self.held,
            self.settings.challengers,
        )
        try:
            while self.taken < decisions and not over:
                taken = self.taken
                self._enter_stage(env)
                rivals = self._rivals(env, plan)
                if not rivals:
                    _, _, over, _, _ = env.step(np.array(self.mask))
                    self.taken += 1
                else:
                    over = self._heat(env, rivals, plan.updates, logger)
                if self._tell(taken, on_step, progress, stop):
                    break
                if self.keep is not None and self.taken < decisions:
                    self.keep(self.taken, self._now)
        finally:
            logger.close()
        return self.taken

    def _begin(self, env: gym.Env, decisions: int, seed: int) -> int:
        """Begin the life, or go on with one; decisions taken by then."""
        self.budget = int(env.get_wrapper_attr("updates"))
        if self.state is None:
            env.reset(seed=seed, options={"measure": False})
            self.heats, self.taken, self.course = [], 0, [(0, (1,) * len(self.pool))]
        else:
            self.taken = self.state["taken"]
            self.course = [(start, tuple(mask)) for start, mask in self.state["course"]]
            self.heats = [_heat_of(one) for one in self.state["heats"]]
        return self.taken

    def _now(self) -> State:
        heats = [asdict(heat) for heat in self.heats]
        course = [[start, list(mask)] for start, mask in self.course]
        return {"taken": self.taken, "course": course, "heats": heats}

    def _wear(self, mask: Mask, start: int) -> None:
        """Have a mask from an update on."""
        self.course = [*(part for part in self.course if part[0] < start), (start, mask)]

    def _enter_stage(self, env: gym.Env) -> None:
        """Where nothing of the mask can be selected in this stage, all that can be is on."""
        allowed = np.asarray(env.get_wrapper_attr("allowed"), dtype=bool)
        if not np.array(self.mask, dtype=bool)[allowed].any():
            mask = tuple(int(bit) for bit in np.where(allowed, 1, self.mask))
            self._wear(mask, self._update(env))

    def _rivals(self, env: gym.Env, plan: Heats) -> list[Mask]:
        """The masks to race against now; none where no heat is left, none fits before the stage ends, or
        all were raced.

        A pair races once: what has lost against a mask, or was replaced by it, does not come back
        to it at once.
        """
        left = env.get_wrapper_attr("distiller").place.end - self._update(env)
        if len({one.start for one in self.heats}) >= plan.count or left < plan.updates:
            return []
        allowed = env.get_wrapper_attr("allowed")
        raced = {frozenset((one.incumbent, one.challenger)) for one in self.heats}
        fresh = [
            mask
            for mask in challengers(self.mask, self.pool, allowed)
            if frozenset((self._names(self.mask), self._names(mask))) not in raced
        ]
        return fresh[: plan.challengers]

    def _heat(self, env: gym.Env, rivals: list[Mask], updates: int, logger: Logger) -> bool:
        settings, start, incumbent = self.settings, self._update(env), self.mask
        run = env.get_wrapper_attr("heat")
        heat = run(np.array([incumbent, *rivals]), updates, settings.doubt, settings.objective)
        known = [_number(float(value)) for value in heat.objectives]
        for lane, rival in enumerate(rivals, 1):
            record = HeatRecord(
                start,
                self._update(env),
                self._names(incumbent),
                self._names(rival),
                (known[0], known[lane]),
                _number(float(heat.t[lane])),
                heat.chosen == lane,
            )
            self.heats.append(record)
            if record.taken:
                self._wear(rival, start)
        self.taken += heat.decisions
        if logger.output_formats:
            logger.record("race/t", float(np.max(heat.t[1:])))
            logger.record("race/taken", float(heat.chosen > 0))
            logger.dump(self.taken)
        return bool(heat.terminated)

    def _update(self, env: gym.Env) -> int:
        return int(env.get_wrapper_attr("distiller").cursor)

    def _tell(
        self,
        before: int,
        on_step: OnStep | None,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> bool:
        """Report the decisions since ``before``; True = stop.

        All of them had the mask that came out: a lane that is kept has held it.
        """
        if on_step is not None:
            for _ in range(self.taken - before):
                on_step(np.array(self.mask, np.float32), 0.0)
        if progress is not None:
            progress(self.taken)
        return stop is not None and stop()

    def _names(self, mask: Mask) -> tuple[str, ...]:
        return tuple(name for name, on in zip(self.pool, mask, strict=True) if on)

    def frozen(self) -> RacePolicy:
        """The masks that the student had, by the share of its budget.

        Raises:
            RuntimeError: ``learn`` was not called.
        """
        if not self.learned:
            raise RuntimeError("call learn() before frozen()")
        course = [(start / self.budget, self._names(mask)) for start, mask in self.course]
        return RacePolicy(course, self.heats, self.pool)

    def figures(self) -> dict[str, Any]:
        """The heats, for ``summary.json``, and a line about each for people."""
        says = [_line(heat, self.settings.doubt) for heat in self.heats]
        return {"heats": [asdict(heat) for heat in self.heats], "says": says}

    def save_extra(self, folder: Path) -> None:
        """Nothing: there is no library behind it."""


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _line(heat: HeatRecord, doubt: float) -> str:
    masks = [", ".join(names) or "none" for names in (heat.challenger, heat.incumbent)]
    end = "takes over" if heat.taken else "does not take over"
    return (
        f"{NAME}: updates {heat.start}-{heat.end}: {masks[0]} against {masks[1]}: {_standing(heat, doubt)}: "
        f"{end}"
    )


def _standing(heat: HeatRecord, doubt: float) -> str:
    """How a heat ended for the challenger, in words."""
    if heat.t is None:
        return "one diverged"
    if heat.t == 0:
        return "challenger level"
    side = "ahead" if heat.t > 0 else "behind"
    needed = f", and it takes more than {doubt:g}" if 0 < heat.t <= doubt else ""
    beaten = ", another challenger was kept" if heat.t > doubt and not heat.taken else ""
    return f"challenger {side} by {abs(heat.t):.1f} standard errors{needed}{beaten}"
