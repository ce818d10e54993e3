"""N environments over N students that train in one batched step, each with a seat of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
from torch import Tensor

from envs.distillation import DistillationEnv, EnvSnapshot
from envs.held_out import HeldOut
from ksel.balance import RunningSizes
from ksel.config import EnvConfig
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.objectives import reads_states
from ksel.records import DivergedError, Update
from ksel.setup import Setup
from ksel.stacked import StackedDistiller, StackedSnapshot, pick_mode
from ksel.stages import Place, place

Observation = dict[str, np.ndarray]
Stepped = tuple[Observation, float, bool, dict[str, Any]]


class SeatDistiller:
    """What one student looks like to its environment: the part of a distiller that it calls.

    Updates are made for all students at once before any environment asks for them; here each
    environment finds those of its own student.

    Args:
        seats: all students.
        number: of this one.

    Attributes:
        cursor: updates of the episode that its environment has seen.
        life: never changes: the seats see to it themselves that the students are still theirs.
        credit: None; rewards are measured.
    """

    life = 0
    credit = None

    def __init__(self, seats: Seats, number: int) -> None:
        self.seats = seats
        self.number = number
        self.cursor = 0
        self.waiting: deque[Update | DivergedError] = deque()

    @property
    def place(self) -> Place:
        """The stage of the next update."""
        return place(self.seats.core.ends, self.cursor)

    @property
    def allowed(self) -> np.ndarray:
        """[K] bool, the types that can be selected in the next update's stage."""
        return self.seats.core.stages[self.place.number].allowed

    @property
    def sizes(self) -> RunningSizes:
        """The student's running sizes."""
        return self.seats.students.sizes[self.number]

    def reset(self, data_seed: int, updates: int, *, plain: bool) -> None:
        """Begin with a fresh student: all at once, or this one alone where it has diverged."""
        self.seats.begin(self.number, data_seed, updates, plain)
        self.cursor = self.seats.students.cursor

    def observe(self) -> Update:
        """What this student makes of the next batch."""
        return self.seats.seen()[self.number]

    def update(self, action: np.ndarray, *, observe: bool, credit: None) -> Update:
        """The next of the updates that were made; what was given for them stands already."""
        record = self.waiting.popleft()
        if isinstance(record, DivergedError):
            raise record
        self.cursor += 1
        return record

    def snapshot(self, into: int | None) -> int:
        """Where its environment is; the student itself is copied with all others."""
        return self.cursor

    def restore(self, cursor: int) -> None:
        """Return there."""
        self.cursor = cursor


class Seat(DistillationEnv):
    """The environment of one of N students; its rewards, observations and infos are those of any."""

    def __init__(self, seats: Seats, number: int, soft: bool | None, updates: int | None) -> None:
        super().__init__(setup=seats.setup, soft=soft, updates=updates)
        self.seats, self.number = seats, number
        self.distiller = cast(Distiller, SeatDistiller(seats, number))
        self.held_out = HeldOut(
            self.setup, self.distiller, lambda: self.seats.reward_logits()[self.number]
        )

    @property
    def own(self) -> SeatDistiller:
        """What it has in place of a distiller."""
        return cast(SeatDistiller, self.distiller)


@dataclass
class SeatsSnapshot:
    """Everything :meth:`Seats.set_snapshot` needs to go on from here."""

    students: StackedSnapshot
    seats: list[EnvSnapshot]


class Seats:
    """The engine behind the faces of :mod:`envs.vector`: N episodes, decision by decision.

    All students see the same batches, so their episodes have one seed and one budget. When the
    budget is spent all begin anew; one that diverges begins anew by itself, for the rest of it.

    Args:
        setup: data, teacher and the distiller whose students these are.
        students: N.
        vectorize: ``auto``, ``loop`` or ``vmap``; see :func:`ksel.stacked.pick_mode`.
        soft, updates: as of :class:`envs.distillation.DistillationEnv`.
        say: called with a line for the user.

    Raises:
        UsageError: ``env.reward`` is amortized or ``search`` goes by branches, for which one
            student at a time is needed; vmap where it cannot be; no memory for N students.
    """

    def __init__(
        self,
        setup: Setup,
        students: int,
        vectorize: Literal["auto", "loop", "vmap"] = "auto",
        soft: bool | None = None,
        updates: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        refuse_unfit(setup.config.env, setup.config.search, students)
        self.setup = setup
        self.core = setup.distiller
        mode = pick_mode(self.core, vectorize, say)
        self.students = StackedDistiller(self.core, students, mode, say)
        self.seats = [Seat(self, n, soft, updates) for n in range(students)]
        self.options: dict[str, Any] = {}
        self._alone: int | None = None
        self._seen: list[Update] | None = None
        self._logits: Tensor | None = None
        self._begun = False

    # ----------------------------------------------------------------- episodes

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Observation], list[dict[str, Any]]]:
        """Begin N episodes with fresh students.

        Args:
            seed: of all; None = go on with the generator.
            options: as of :meth:`DistillationEnv.reset`; episodes that begin by themselves keep them.

        Raises:
            UsageError: as there.
        """
        if options is not None:
            self.options = dict(options)
        self._forget()
        first, *others = self.seats
        for seat in others if seed is None else ():
            seat.np_random.bit_generator.state = first.np_random.bit_generator.state
        results = [seat.reset(seed=seed, options=self.options) for seat in self.seats]
        self._begun = True
        return [observation for observation, _ in results], [info for _, info in results]

    def step(self, actions: Sequence[Any] | np.ndarray) -> list[Stepped]:
        """One decision of each student.

        Args:
            actions: N actions, as of :meth:`DistillationEnv.step`.

        Returns:
            For each student observation, reward, terminated and info. An ended episode's observation
            is its last one: :meth:`go_on` begins the next.

        Raises:
            UsageError: not N actions, or as :meth:`DistillationEnv.step`.
            gymnasium.error.ResetNeeded: no episode has begun, or someone else has the distiller.
        """
        self._check()
        if len(actions) != len(self.seats):
            raise UsageError(
                f"the vector of environments has {len(self.seats)} students, and was given "
                f"{len(actions)} actions; give one for each."
            )
        self._train(np.stack([s.as_mask(a) for s, a in zip(self.seats, actions, strict=True)]))
        results: list[Stepped] = []
        for seat, action in zip(self.seats, actions, strict=True):
            observation, reward, terminated, _, info = seat.step(action)
            results.append((observation, float(reward), terminated, info))
        return results

    def go_on(self, ended: np.ndarray) -> dict[int, tuple[Observation, dict[str, Any]]]:
        """Begin the episodes that come after those that have ended.

        Args:
            ended: [N] bool, whether a student's episode has.

        Returns:
            For each student that begins: its first observation and info.
        """
        if self.students.cursor >= self.students.updates:
            return dict(enumerate(zip(*self.reset(), strict=True)))
        begun = {}
        for n in np.flatnonzero(ended).tolist():
            seat, self._alone = self.seats[n], n
            self._forget()
            # the batches are everyone's, so its generator must stay where the others' are
            state = seat.np_random.bit_generator.state
            begun[n] = seat.reset(options=self.options)
            seat.np_random.bit_generator.state = state
            self._alone = None
        return begun

    def get_snapshot(self) -> SeatsSnapshot:
        """Copy students, optimisers, cursor, generators and all that the environments know.

        Raises:
            gymnasium.error.ResetNeeded: as :meth:`step`.
        """
        self._check()
        return SeatsSnapshot(self.students.snapshot(), [seat.get_snapshot() for seat in self.seats])

    def set_snapshot(self, state: SeatsSnapshot) -> list[Observation]:
        """Return to a snapshot; the steps that follow are equal to the bit."""
        self.students.restore(state.students)
        self._forget()
        self._begun = True
        return [seat.set_snapshot(s) for seat, s in zip(self.seats, state.seats, strict=True)]

    def copy_best(self, sources: Sequence[int]) -> list[Observation]:
        """Student n and its episode become a copy of ``sources[n]``'s, by copies of indices."""
        self._check()
        self._forget()
        books = [seat.get_snapshot() for seat in self.seats]
        self.students.copy_best(sources)
        return [
            seat.set_snapshot(books[source])
            for seat, source in zip(self.seats, sources, strict=True)
        ]

    def fork(self, source: int) -> list[Observation]:
        """All students and their episodes become copies of student ``source``'s."""
        return self.copy_best([source] * len(self.seats))

    # ----------------------------------------------------------------- what the seats ask for

    def begin(self, number: int, data_seed: int, updates: int, plain: bool) -> None:
        """A fresh student for a seat; the first seat's is everyone's."""
        if self._alone is not None:
            self.students.renew(self._alone)
        elif number == 0:
            self.students.reset(data_seed, updates, plain=plain)

    def seen(self) -> list[Update]:
        """What each student makes of the next batch; looked up once for all."""
        if self._seen is None:
            self._seen = self.students.observe()
        return self._seen

    def reward_logits(self) -> Tensor:
        """The logits of all students on the reward split; computed once for all."""
        if self._logits is None:
            split, config = self.setup.reward, self.setup.config
            with self.setup.ledger.time("held_out", len(split) * len(self.seats)):
                self._logits = self.students.predict(split, config.batching.eval_size)
        return self._logits

    def _train(self, masks: np.ndarray) -> None:
        first, core = self.seats[0], self.core
        self._forget()
        count = min(first.settings.phase_steps, core.place.end - core.cursor)
        well = [reason is None for reason in self.students.reasons]
        for number in range(count):
            observe = first._observing and number == count - 1
            records = self.students.update(masks, observe=observe)
            for n, seat in enumerate(self.seats):
                reason = self.students.reasons[n]
                if reason is None:
                    seat.own.waiting.append(records[n])
                elif well[n]:
                    seat.own.waiting.append(DivergedError(reason))
                    well[n] = False

    def _forget(self) -> None:
        self._seen = self._logits = None
        for seat in self.seats:
            seat.own.waiting.clear()

    def _check(self) -> None:
        if not self._begun:
            raise gym.error.ResetNeeded("no episode has begun; call reset() first")
        if not self.students.is_current:
            raise gym.error.ResetNeeded(
                "another environment of this setup has begun an episode since: they share one "
                "distiller; call reset() first"
            )


def refuse_unfit(env: EnvConfig, search: str, students: int) -> None:
    """Refuse settings under which students cannot train side by side.

    Args:
        env: of the environment.
        search: ``search``.
        students: N.

    Raises:
        UsageError: names the options.
    """
    if reads_states(env.objective):
        raise UsageError(
            f"--env.objective {env.objective}: it reads the states of one student, and --students "
            f"{students} train side by side. Choose another objective, or set --students 1."
        )
    if env.reward == "amortized":
        raise UsageError(
            f"--env.reward amortized: credit is measured for one student at a time, and "
            f"--students {students} train side by side. Set --env.reward measured, or --students 1."
        )
    if search in ("branch", "online"):
        raise UsageError(
            f"--search {search}: the agent learns within the life of one student, and --students "
            f"{students} train side by side in episodes. Set --search episodes, or --students 1."
        )
