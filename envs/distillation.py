"""The Gymnasium environment over the distiller: state = the student in training, action = the mask."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from envs.amortized import Amortized
from envs.branches import Branched, Step, fork, hold
from envs.heats import Heat, run_heat
from envs.held_out import HeldOut
from envs.observation import Features, bounds, feature_names
from envs.reward import DropScale, Exploration
from ksel.errors import UsageError
from ksel.machine import pick_device
from ksel.objectives import of_heats, reads_states
from ksel.records import DivergedError, Snapshot, Update
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare
from ksel.stages import decision_count, stage_ends, stage_shares

DIVERGED_REWARD = -1.0


@dataclass
class EnvSnapshot:
    """Everything :meth:`DistillationEnv.set_snapshot` needs to go on from here."""

    distiller: Snapshot
    features: Features
    scale: DropScale
    exploration: Exploration
    amortized: Amortized | None
    random: dict[str, Any]
    objective: float
    initial: float
    decision: int
    updates: int
    measuring: bool
    observing: bool
    running: bool
    measured_at: int
    forked_at: int
    cls: dict[str, np.ndarray]
    ends: bool = False


def _refuse_cuda_in_subprocess(device: torch.device) -> None:
    if device.type == "cuda" and multiprocessing.parent_process() is not None:
        raise UsageError(
            "DistillationEnv: a student on CUDA cannot live in a subprocess environment (each "
            "process would hold its own CUDA context and copy of the teacher). Use a single "
            "environment or DummyVecEnv, or --device cpu."
        )


class DistillationEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """One student's distillation, one decision at a time.

    ## Description
    Each step holds the action for ``env.phase_steps`` optimiser updates of the student and pays
    the drop of an objective on the reward split, a slice of the training data that the student
    never trains on.

    ## Action Space
    ``MultiBinary(K)`` (hard): bit k switches knowledge type k; any array-like, on means > 0.5.
    ``Box(0, 1, (K,))`` (soft): the weight of type k; values outside are cut to the range.
    The empty action is legal: the step is spent, nothing moves. In a run with stages the types
    that the current stage does not allow are off, whatever the action says; a decision ends with
    its stage, if ``env.phase_steps`` is not up by then.

    ## Observation Space
    ``Dict``; ``training`` is always there unless ``env.observe`` leaves it out:

    | Num | Observation | Min | Max |
    | --- | --- | --- | --- |
    | 0 | share of the step budget spent | 0 | 1 |
    | 1 | learning rate over the stage's peak | 0 | 1 |
    | 2 | student's mean output entropy over its largest value (regression: 0) | 0 | 1 |
    | 3 | share of the batch where student and teacher agree (regression: 1 - distance) | 0 | 1 |
    | 4 | tanh of the last scaled drop of the objective | -1 | 1 |
    | 5 | objective relative to the episode's start, (now - start) / start, cut | -1 | 1 |
    | 6 .. 6+K-1 | per type: tanh log (loss / its running size) | -1 | 1 |
    | 6+K .. | per type: tanh log (loss / loss one decision ago) | -1 | 1 |
    | 6+2K .. | per type: tanh of its scaled credit; 0 while rewards are measured | -1 | 1 |
    | 6+3K .. | per type: last action | 0 | 1 |
    | 6+4K .. | per type: mean action of the episode so far | 0 | 1 |

    What was not measured keeps its last value, 0 before the first. ``student_cls`` and
    ``teacher_cls`` (options) are the mean last-layer [CLS] states [h] of the last batch, unbounded.

    ## Rewards
    The drop of ``env.objective`` over the decision (``env.reward`` measured: the true one;
    amortized: the one predicted from credit), scaled as ``env.reward_scale`` says, minus
    ``env.cost_per_type`` x sum of the action, plus ``env.exploration`` x the exploration reward,
    plus, at the end, ``env.final_metric`` x the headline metric on the reward split. An episode
    that diverges is paid -1 for its last decision.

    ## Starting State
    The student's initial weights, copied in place; the batch order is drawn from ``np_random``.

    ## Episode End
    ``terminated`` when the step budget is spent, or when a selected loss or the gradient is not
    finite (``info["reason"]`` says which). Never truncated by itself.

    ## Arguments
    | Argument | Meaning |
    | --- | --- |
    | config | the run's settings as a (nested, JSON-able) dictionary; see ``python -m ksel.run --help`` |
    | setup | or what :func:`ksel.setup.prepare` made of settings, to share teacher and data |
    | soft | actions are weights; default: as ``env.actions`` says, auto = hard |
    | updates | step budget of an episode; default: that of the settings |

    ``reset(options={"updates": n, "measure": False, "observe": True})`` sets the budget for one
    episode, and switches measuring (without it rewards are 0 and the reward split is not touched)
    and observing (default: as ``measure``; what is measured is observed too, and credit is observed). ``"measure": "ends"``
    measures the objective here and after the last decision alone, which is paid the drop of the whole
    episode, unscaled; the others are paid 0, and nothing is observed unless asked for. ``"plain": True``
    leaves the run's stages, static weights and weight schedules out.

    ## Version History
    * v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        setup: Setup | None = None,
        soft: bool | None = None,
        updates: int | None = None,
    ) -> None:
        if setup is not None and config is not None:
            raise UsageError("DistillationEnv: give config or setup, not both.")
        if setup is None:
            settings = config_from_dict(config or {})
            _refuse_cuda_in_subprocess(pick_device(settings.device))
            setup = prepare(settings)
        _refuse_cuda_in_subprocess(setup.device)
        self.setup = setup
        self.settings = self.setup.config.env
        self.distiller = self.setup.distiller
        self.pool_names = self.setup.pool.names
        self.feature_names = feature_names(self.pool_names)
        self.soft = self.settings.actions == "soft" if soft is None else soft
        self.updates = updates if updates is not None else self.setup.updates
        count = len(self.pool_names)
        self.action_space = (
            spaces.Box(0.0, 1.0, (count,), np.float32) if self.soft else spaces.MultiBinary(count)
        )
        self.spaces = self._spaces(count)
        self.observation_space = spaces.Dict(self.spaces)  # type: ignore[assignment]
        self.held_out = HeldOut(self.setup, self.distiller)
        self._running = self._resting = False
        self._life = -1

    @property
    def _crediting(self) -> Literal["hard", "soft"] | None:
        """How the distiller is to measure credit in this episode."""
        if self._amortized is None:
            return None
        return "soft" if self.soft else "hard"

    def _new_amortized(self) -> Amortized | None:
        """Credit belongs to what is observed; without observing nobody would look at it."""
        if self.distiller.credit is None or not self._observing:
            return None
        memory = self.setup.config.credit.window
        return Amortized(len(self.pool_names), self.settings.window, memory)

    def _spaces(self, count: int) -> dict[str, spaces.Space]:
        low, high = bounds(count)
        parts: dict[str, spaces.Space] = {"training": spaces.Box(low, high, dtype=np.float32)}
        for name, shape in (
            ("student_cls", self.setup.student_shape),
            ("teacher_cls", self.setup.teacher_shape),
        ):
            parts[name] = spaces.Box(-np.inf, np.inf, (shape.width,), np.float32)
        return {name: parts[name] for name in self.settings.observe}

    # ----------------------------------------------------------------- Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode with a fresh student; see the class for ``options``.

        Raises:
            UsageError: an unknown option, a budget that is no whole number from 1 on, or a
                ``measure`` that cannot be.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"updates", "measure", "observe", "plain"}
        if unknown:
            raise UsageError(
                f"DistillationEnv.reset: unknown options {sorted(unknown)}; known: updates, "
                f"measure, observe, plain."
            )
        updates = options.get("updates", self.updates)
        if not isinstance(updates, int | np.integer) or updates < 1:
            raise UsageError(
                f"DistillationEnv: updates must be a whole number from 1 on, not {updates!r}."
            )
        observe = bool(options.get("observe", False))
        self._check_measure(options.get("measure", True), observe)
        self._updates = int(updates)
        self._ends = options.get("measure") == "ends"
        self._measuring = not self._ends and bool(options.get("measure", True))
        self._observing = self._measuring or observe
        seed_of_batches = int(self.np_random.integers(2**31))
        plain = bool(options.get("plain", False))
        self.distiller.reset(seed_of_batches, self._updates, plain=plain)
        self._life = self.distiller.life
        self._features = Features(len(self.pool_names))
        # one drop has no other drops of its episode to be scaled by
        self._scale = DropScale("none" if self._ends else self.settings.reward_scale)
        self._exploration = Exploration(self.soft)
        self._amortized = self._new_amortized()
        self._decision = 0
        self._forked_at = -1
        self.held_out.forget()
        self._resting = False
        self._cls = {
            name: np.zeros(space.shape or (), np.float32)
            for name, space in self.spaces.items()
            if name != "training"
        }
        if self._observing:
            self._see(self.distiller.observe())
        if self._measuring or self._ends:
            self.held_out.begin()
        elif self._amortized is not None and reads_states(self.settings.objective):
            self.held_out.objective()  # credit needs its fit
        self._running = True
        return self._observation(), {"update": 0, **self.held_out.info()}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Hold the action for ``phase_steps`` updates; see the class for what is paid and seen.

        Raises:
            UsageError: the action has the wrong shape or is not finite, or a selected type has
                no gradient.
            gymnasium.error.ResetNeeded: the episode is over, or another environment of the same
                setup has taken the student.
        """
        self._check_running()
        mask = self.as_mask(action)
        info: dict[str, Any] = {}
        try:
            reward, terminated = self._decide(mask, info)
        except DivergedError as error:
            reward, terminated = DIVERGED_REWARD, True
            info |= {"update": self.distiller.cursor, "reason": str(error)}
        self._running = not terminated
        return self._observation(), reward, terminated, False, info

    def _decide(self, mask: np.ndarray, info: dict[str, Any]) -> tuple[float, bool]:
        updates = self._hold(mask)
        self._decision += 1
        last = updates[-1]
        rate = last.learning_rate / last.peak
        self._features.act(mask, self.distiller.cursor / self._updates, rate)
        terminated = self.distiller.cursor >= self._updates
        info |= {"update": self.distiller.cursor, **self._types_info(updates)}
        if self._amortized is not None:
            scaled = self._predicted(self._amortized, updates, terminated, info)
        else:
            due = terminated if self._ends else self._measuring and not self._resting
            scaled = self._measured(info) if due else 0.0
        return self._reward(mask, scaled, terminated), terminated

    # ----------------------------------------------------------------- branches

    @property
    def branching(self) -> bool:
        """True if the next decision is to be found by :meth:`branch`: with ``search`` branch always;
        else from time to time, while predicted drops do not go with true ones."""
        if not self._running or not self._measuring:
            return False
        if self.setup.config.search == "branch":
            return True
        if self._amortized is None or self._amortized.trusted:
            return False
        rest = self.setup.config.branches.every
        return self._forked_at < 0 or self.distiller.cursor - self._forked_at >= rest

    @property
    def branch_count(self) -> int:
        """Masks that :meth:`branch` is to be given."""
        return self.setup.config.branches.count

    def branch(self, masks: np.ndarray) -> Branched:
        """Fork the student, hold one of the masks [N, K] in each branch, go on from the best.

        Raises:
            UsageError: a mask has the wrong shape or is not finite.
            gymnasium.error.ResetNeeded: as :meth:`step`.
        """
        self._check_running()
        self._forked_at = self.distiller.cursor
        return fork(self, masks, self.setup.config.branches.updates)

    def heat(self, masks: np.ndarray, updates: int, doubt: float, objective: str) -> Heat:
        """Race masks [N, K] against the first of them, go on from the lane that is kept.

        For episodes that are not measured; see :func:`envs.heats.run_heat`.

        Raises:
            UsageError: a mask has the wrong shape or is not finite.
            gymnasium.error.ResetNeeded: as :meth:`step`.
        """
        self._check_running()
        return run_heat(self, masks, updates, doubt, of_heats(objective, self.setup.task))

    def objective_rows(self, objective: str) -> np.ndarray:
        """An objective on the reward split as it is now, row by row [R]; nan where it diverged."""
        return self.held_out.rows(objective)

    @property
    def measures(self) -> bool:
        """True if each of this episode's decisions is rewarded."""
        return self._measuring

    @property
    def allowed(self) -> np.ndarray:
        """[K] bool, the types that the stage of the next decision allows."""
        return self.distiller.allowed

    def objective_now(self) -> float:
        """The objective on the reward split, measured unless it is known."""
        if self.held_out.at != self.distiller.cursor:
            self._measure({})
            if self._amortized is not None:
                self._amortized.skip()
        return self.held_out.value

    @contextmanager
    def rest(self, resting: bool) -> Iterator[None]:
        """Inside, decisions are not measured, if ``resting``."""
        before, self._resting = self._resting, resting
        try:
            yield
        finally:
            self._resting = before

    def hold_branch(self, action: Any, updates: int) -> list[Step]:
        """Decisions with one action for this many updates, the last one measured."""
        steps = hold(self, action, updates, resting=True)
        info = steps[-1].info
        if "reason" in info or self.held_out.at == self.distiller.cursor:
            return steps
        assert self._amortized is not None
        try:
            info |= self._amortized.close(self._measure(info))
            info |= self._amortized.figures()
        except DivergedError as error:
            self._running = False
            info["reason"] = str(error)
            steps[-1] = replace(steps[-1], reward=DIVERGED_REWARD, terminated=True)
        return steps

    def last_window(self) -> tuple[float, float]:
        """(predicted, true) drop of the window that ended last; nan where nothing is predicted."""
        if self._amortized is None:
            return math.nan, math.nan
        return self._amortized.last

    def judge_windows(self, windows: list[tuple[float, float]]) -> dict[str, float]:
        """Judge predictions by these windows as well; returns the judgement, for ``info``."""
        if self._amortized is None:
            return {}
        self._amortized.judge(windows)
        return self._amortized.figures()

    # ----------------------------------------------------------------- snapshot

    def get_snapshot(self, into: EnvSnapshot | None = None) -> EnvSnapshot:
        """Copy the whole state of the episode: student, optimiser, cursor, generators, features.

        Args:
            into: an earlier snapshot that is no longer needed; its tensors are used again.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun, or another environment of the same
                setup has taken the student.
        """
        self._check_owner()
        return EnvSnapshot(
            self.distiller.snapshot(into.distiller if into is not None else None),
            self._features.copy(),
            self._scale.copy(),
            self._exploration.copy(),
            None if self._amortized is None else self._amortized.copy(),
            dict(self.np_random.bit_generator.state),
            self.held_out.value,
            self.held_out.initial,
            self._decision,
            self._updates,
            self._measuring,
            self._observing,
            self._running,
            self.held_out.at,
            self._forked_at,
            {name: value.copy() for name, value in self._cls.items()},
            self._ends,
        )

    def set_snapshot(self, state: EnvSnapshot) -> dict[str, np.ndarray]:
        """Return to a snapshot; the steps that follow are equal to the bit.

        Returns:
            The observation of that moment.
        """
        self.distiller.restore(state.distiller)
        self._life = self.distiller.life
        self._features = state.features.copy()
        self._scale, self._exploration = state.scale.copy(), state.exploration.copy()
        self._amortized = None if state.amortized is None else state.amortized.copy()
        self.np_random.bit_generator.state = state.random
        self.held_out.value, self.held_out.initial = state.objective, state.initial
        self._decision, self._updates = state.decision, state.updates
        self._measuring, self._observing = state.measuring, state.observing
        self._ends = state.ends
        self._cls = {name: value.copy() for name, value in state.cls.items()}
        self._running = state.running
        self.held_out.at, self._forked_at = state.measured_at, state.forked_at
        return self._observation()

    def _check_measure(self, measure: object, observe: bool) -> None:
        if measure not in (True, False, "ends"):
            raise UsageError(
                f'DistillationEnv.reset: measure must be True, False or "ends", not {measure!r}.'
            )
        if measure == "ends" and observe and self.distiller.credit is not None:
            raise UsageError(
                'DistillationEnv.reset: measure "ends" with observe pays no predicted drops. Leave '
                "observe out, or set --env.reward measured."
            )

    def _check_running(self) -> None:
        if not self._running:
            raise gym.error.ResetNeeded("the episode is over (or never began); call reset() first")
        self._check_owner()

    def _check_owner(self) -> None:
        if self._life != self.distiller.life:
            raise gym.error.ResetNeeded(
                "no episode has begun, or another environment of this setup has begun one since: "
                "they share one student; call reset() first"
            )

    # ----------------------------------------------------------------- parts of a step

    def training_features(self) -> np.ndarray:
        """The ``training`` vector as it is now, whether or not it is part of the observation."""
        return self._features.training()

    def as_mask(self, action: Any) -> np.ndarray:
        """The action as it would be carried out now, [K] float32.

        Raises:
            UsageError: the wrong number of entries, or one that is not finite.
        """
        try:
            values = np.asarray(action, dtype=np.float32)
        except (TypeError, ValueError, RuntimeError):
            values = np.empty(0, dtype=np.float32)
        if values.shape != (len(self.pool_names),) or not np.isfinite(values).all():
            raise UsageError(
                f"DistillationEnv.step: the action must be {len(self.pool_names)} finite numbers, "
                f"one for each of {', '.join(self.pool_names)}; it was {action!r}."
            )
        asked = np.clip(values, 0.0, 1.0) if self.soft else (values > 0.5).astype(np.float32)
        return asked * self.distiller.allowed.astype(np.float32)

    def decisions(self) -> int:
        """Decisions of an episode with the budget ``updates``."""
        ends = stage_ends(stage_shares(self.setup.config.stages), self.updates)
        return decision_count(ends, self.settings.phase_steps)

    def _hold(self, mask: np.ndarray) -> list[Update]:
        remaining = self.distiller.place.end - self.distiller.cursor
        count = min(self.settings.phase_steps, remaining)
        updates = []
        for number in range(count):
            observe = self._observing and number == count - 1
            updates.append(self.distiller.update(mask, observe=observe, credit=self._crediting))
        if self._observing:
            self._see(updates[-1])
        return updates

    def _see(self, update: Update) -> None:
        self._features.see(update, self.distiller.sizes.values())
        for name in self._cls:
            state = getattr(update, name)
            if state is not None:
                self._cls[name] = state.astype(np.float32)

    def _measured(self, info: dict[str, Any]) -> float:
        """The scaled true drop of this decision."""
        drop = self._measure(info)
        scaled, scale = self._scale(drop)
        self._features.judge(scaled, self.held_out.value, self.held_out.initial)
        info["reward_scale"] = scale
        return scaled

    def _predicted(
        self, amortized: Amortized, updates: list[Update], terminated: bool, info: dict[str, Any]
    ) -> float:
        """The scaled predicted drop of this decision; the true one where a window ends."""
        predicted, credit = amortized.add(updates)
        scaled, scale = self._scale(predicted) if math.isfinite(predicted) else (0.0, 1.0)
        self._features.owe(amortized.credit * len(updates) / scale)
        info |= {"predicted": predicted, "reward_scale": scale} if math.isfinite(predicted) else {}
        for name, value in zip(self.pool_names, credit, strict=True):
            if math.isfinite(value):
                info[f"credit/{name}"] = float(value)
        if self._measuring and (amortized.due or terminated):
            info |= amortized.close(self._measure(info))
        self._features.judge(scaled, self.held_out.value, self.held_out.initial)
        info |= amortized.figures() if self._measuring else {}
        return scaled

    def _measure(self, info: dict[str, Any]) -> float:
        """The true drop of the objective since it was measured last."""
        drop = self.held_out.drop(self.distiller.cursor)
        info |= {**self.held_out.info(), "drop": drop}
        return drop

    def _reward(self, mask: np.ndarray, scaled: float, terminated: bool) -> float:
        if not (self._measuring or (self._ends and terminated)):
            return 0.0
        reward = scaled - self.settings.cost_per_type * float(mask.sum())
        if self.settings.exploration:
            reward += self.settings.exploration * self._exploration(mask)
        if terminated and self.settings.final_metric:
            reward += self.settings.final_metric * self.held_out.metric()
        return reward

    def _types_info(self, updates: list[Update]) -> dict[str, float]:
        info = {
            "learning_rate": updates[-1].learning_rate,
            "clip_norm": float(np.mean([u.clip_norm for u in updates])),
        }
        for name in ("loss", "scale", "weight", "grad_norm"):
            values = np.array([getattr(u, name) for u in updates])
            for k, type_name in enumerate(self.pool_names):
                seen = values[np.isfinite(values[:, k]), k]
                if len(seen):
                    info[f"{name}/{type_name}"] = float(seen.mean())
        return info

    def _observation(self) -> dict[str, np.ndarray]:
        everything = {"training": self._features.training(), **self._cls}
        return {name: everything[name].copy() for name in self.spaces}
