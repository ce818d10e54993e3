"""N students of one run, trained side by side on the same batches, each with its own actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ksel.balance import RunningSizes, new_norms, new_sizes
from ksel.data import Split
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.evaluation import predict_logits
from ksel.optim import linear_schedule
from ksel.records import DivergedError, Snapshot, Update, blank_update
from ksel.stacked_memory import changing, chunk_size
from ksel.stacked_step import StackedStep
from ksel.stacking import StackedModel, why_not

Mode = Literal["loop", "vmap"]


@dataclass
class StackedSnapshot:
    """The whole state of N students, copied; fields as of :class:`ksel.records.Snapshot`."""

    weights: list[Tensor]
    moments: list[Tensor]
    rng: list[Tensor]
    sizes: list[RunningSizes]
    norms: list[RunningSizes]
    checked: np.ndarray
    reasons: list[str | None]
    cursor: int
    updates: int
    data_seed: int
    plain: bool


class StackedDistiller:
    """N students with the batches, stages and learning rates of one distiller in common.

    Weights, moments, clipping, running sizes and which parameters AdamW steps are each student's
    own: N distillers side by side would reach the same. It takes the distiller over: whoever else
    resets or restores that one ends this.

    Args:
        distiller: gives initial weights, pool, data and settings. Its own weights are left alone.
        students: N.
        mode: ``loop``: each student in its turn; ``vmap``: all in one batched step.
        say: called with a line for the user.

    Attributes:
        parameters: those of the distiller that change, see :func:`ksel.stacked_memory.changing`.
        weights: each of them as [N, ...].
        moments: each tensor of AdamW's state as [N, ...].
        sizes, norms: N running sizes of losses, and of their gradients' norms.
        checked: [N, K] bool, types whose gradient was seen.
        reasons: for each student why it diverged; None = it did not. One that did stays as it
            was before that update until it is renewed.

    Raises:
        UsageError: there is no memory for that many students.
    """

    def __init__(
        self,
        distiller: Distiller,
        students: int,
        mode: Mode,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.distiller = distiller
        self.students = students
        self.mode = mode
        chunk = chunk_size(distiller, students, mode, say)
        self.parameters = changing(distiller)
        self._moments_of = list(distiller._moments)
        self.weights = [p.new_empty(students, *p.shape).detach() for p in self.parameters]
        self.moments = [t.new_empty(students, *t.shape) for t in self._moments_of]
        self._step = StackedStep(self, chunk, say) if mode == "vmap" else None
        self.reset(data_seed=0, updates=distiller.parts.updates)

    # ----------------------------------------------------------------- state

    @property
    def cursor(self) -> int:
        """Updates done."""
        return self.distiller.cursor

    @property
    def updates(self) -> int:
        """The step budget."""
        return self.distiller.updates

    @property
    def allowed(self) -> np.ndarray:
        """[K] bool, the types that can be selected in the next update's stage."""
        return self.distiller.allowed

    @property
    def is_current(self) -> bool:
        """False once someone else has reset or restored the distiller."""
        return self._life == self.distiller.life

    def reset(self, data_seed: int, updates: int, *, plain: bool = False) -> None:
        """N fresh students; see :meth:`ksel.distiller.Distiller.reset`."""
        core, count = self.distiller, self.students
        core.reset(data_seed, updates, plain=plain)
        self._life = core.life
        self.sizes = [core.sizes.copy() for _ in range(count)]
        self.norms = [core.norms.copy() for _ in range(count)]
        self.checked = np.zeros((count, len(core.pool)), dtype=bool)
        self.rng = [core.generator.state.clone() for _ in range(count)]
        self.reasons: list[str | None] = [None] * count
        for n in range(count):
            self._fresh_weights(n)

    def renew(self, student: int) -> None:
        """A fresh student in the place of one; the budget of all goes on."""
        core = self.distiller
        knowledge = core.parts.knowledge
        self._fresh_weights(student)
        self.sizes[student] = new_sizes(knowledge, len(core.pool))
        self.norms[student] = new_norms(knowledge, len(core.pool))
        self.checked[student] = False
        self.reasons[student] = None

    def _fresh_weights(self, student: int) -> None:
        core = self.distiller
        initial = {id(t): first for t, first in zip(core.tensors, core.initial, strict=True)}
        for p, stack in zip(self.parameters, self.weights, strict=True):
            stack[student].copy_(initial[id(p)])
        for stack in self.moments:
            stack[student].zero_()

    def snapshot(self) -> StackedSnapshot:
        """Copy the whole state of all students."""
        core = self.distiller
        return StackedSnapshot(
            [t.clone() for t in self.weights],
            [t.clone() for t in self.moments],
            [state.clone() for state in self.rng],
            [sizes.copy() for sizes in self.sizes],
            [norms.copy() for norms in self.norms],
            self.checked.copy(),
            list(self.reasons),
            core.cursor,
            core.updates,
            core.data_seed,
            core.plain,
        )

    def restore(self, state: StackedSnapshot) -> None:
        """Return to a snapshot; what follows is equal to the bit."""
        core = self.distiller
        core.reset(state.data_seed, state.updates, plain=state.plain)
        core.cursor = state.cursor
        self._life = core.life
        torch._foreach_copy_(self.weights, state.weights)
        torch._foreach_copy_(self.moments, state.moments)
        self.rng = [rng.clone() for rng in state.rng]
        self.sizes = [sizes.copy() for sizes in state.sizes]
        self.norms = [norms.copy() for norms in state.norms]
        self.checked = state.checked.copy()
        self.reasons = list(state.reasons)

    def start_from(self, state: Snapshot) -> None:
        """All students become copies of one of an ordinary distiller.

        Args:
            state: of a distiller of the same setup.
        """
        core = self.distiller
        core.restore(state)
        self._life = core.life
        for p, stack in zip(self.parameters, self.weights, strict=True):
            stack.copy_(p.detach().expand_as(stack))
        for t, stack in zip(self._moments_of, self.moments, strict=True):
            stack.copy_(t.expand_as(stack))
        count = self.students
        self.sizes = [state.sizes.copy() for _ in range(count)]
        self.norms = [state.norms.copy() for _ in range(count)]
        self.checked = np.repeat(state.checked[None], count, axis=0)
        self.rng = [state.rng.clone() for _ in range(count)]
        self.reasons = [None] * count

    def fork(self, source: int) -> None:
        """Every student becomes a copy of student ``source``."""
        self.copy_best([source] * self.students)

    def copy_best(self, sources: Sequence[int]) -> None:
        """Student n becomes a copy of what student ``sources[n]`` is now.

        Raises:
            ValueError: not one source for each student.
        """
        if len(sources) != self.students:
            raise ValueError(f"{len(sources)} sources for {self.students} students")
        index = torch.tensor(sources, device=self.distiller.device)
        for stack in (*self.weights, *self.moments):
            stack.copy_(stack[index])
        self.sizes = [self.sizes[n].copy() for n in sources]
        self.norms = [self.norms[n].copy() for n in sources]
        self.checked = self.checked[list(sources)]
        self.rng = [self.rng[n].clone() for n in sources]
        self.reasons = [self.reasons[n] for n in sources]

    def load_into(self, distiller: Distiller, student: int) -> None:
        """Put one student's whole state into an ordinary distiller, to go on from or to save.

        Args:
            distiller: of the same setup. If it is this one's own, that ends this, until it is reset,
                restored or started from a snapshot again.
            student: which.
        """
        core = self.distiller
        state = distiller.snapshot()
        place = {id(t): i for i, t in enumerate(distiller.tensors)}
        for p, stack in zip(changing(distiller), self.weights, strict=True):
            state.weights[place[id(p)]].copy_(stack[student])
        for t, stack in zip(state.moments, self.moments, strict=True):
            t.copy_(stack[student])
        distiller.restore(
            replace(
                state,
                rng=self.rng[student],
                sizes=self.sizes[student],
                norms=self.norms[student],
                checked=self.checked[student],
                cursor=core.cursor,
                updates=core.updates,
                data_seed=core.data_seed,
                plain=core.plain,
            )
        )

    @contextmanager
    def student(self, n: int) -> Iterator[Distiller]:
        """Inside, the distiller is student ``n``: what is done with it is done to that student."""
        core = self.distiller
        tensors = [*self.parameters, *self._moments_of]
        own = [t.data for t in tensors]
        books = core.sizes, core.norms, core.checked, core.generator.state
        for t, stack in zip(tensors, (*self.weights, *self.moments), strict=True):
            t.data = stack[n]
        core.sizes, core.norms = self.sizes[n], self.norms[n]
        core.checked, core.generator.state = self.checked[n], self.rng[n]
        try:
            yield core
        finally:
            self.rng[n] = core.generator.state
            for t, data in zip(tensors, own, strict=True):
                t.data = data
            core.sizes, core.norms, core.checked, core.generator.state = books

    # ----------------------------------------------------------------- training

    def update(self, actions: np.ndarray, *, observe: bool = False) -> list[Update]:
        """One optimiser update of each student; see :meth:`ksel.distiller.Distiller.update`.

        A student that diverges (now or earlier) is left as it was; ``reasons`` says why.

        Args:
            actions: [N, K] weights in [0, 1].
            observe: as there.

        Raises:
            UsageError: a selected type has no gradient, or one student is too much for the memory.
            RuntimeError: the step budget is spent, or someone else has the distiller.
        """
        core = self.distiller
        if not self.is_current:
            raise RuntimeError("the distiller was reset or restored by someone else; call reset()")
        if core.cursor >= core.updates:
            raise RuntimeError(f"the step budget of {core.updates} updates is spent; call reset()")
        # an action as float32 has to mean here what it means there
        actions = np.asarray(actions, dtype=np.float64)
        if self._step is None:
            return self._each_in_turn(actions, observe)
        records = self._step.update(actions, observe=observe)
        core.cursor += 1
        return records

    def observe(self) -> list[Update]:
        """Look at the next batch without learning: losses, entropy, agreement of each student."""
        if self._step is not None:
            return self._step.observe()
        records = []
        for n in range(self.students):
            with self.student(n) as core:
                records.append(core.observe())
        return records

    def predict(self, split: Split, batch_size: int) -> Tensor:
        """The logits of all students on a split.

        Returns:
            [N, rows, C] float32 on the CPU; spans [N, rows, L, 2]; see
            :func:`ksel.evaluation.predict_logits`.
        """
        core = self.distiller
        if self._step is None:
            parts = []
            for n in range(self.students):
                with self.student(n):
                    parts.append(
                        predict_logits(
                            core.student, split, batch_size=batch_size, device=core.device
                        )
                    )
            return torch.stack(parts)

        def some(students: range) -> Tensor:
            named = core.student.named_parameters()
            names = [name for name, p in named if p.requires_grad]
            first, last = students.start, students.stop
            stacks = zip(names, self.weights, strict=False)  # the projections come after
            model = StackedModel(core.student, {name: w[first:last] for name, w in stacks})
            beside = predict_logits(model, split, batch_size=batch_size, device=core.device)
            return beside.unflatten(-1, (len(students), -1)).movedim(-2, 0)

        return torch.cat(self._step.in_chunks(some))

    def _each_in_turn(self, actions: np.ndarray, observe: bool) -> list[Update]:
        core, cursor = self.distiller, self.distiller.cursor
        records = []
        for n in range(self.students):
            record = self.blank()
            if self.reasons[n] is None:
                try:
                    with self.student(n):
                        record = core.update(actions[n], observe=observe)
                except DivergedError as error:
                    self.reasons[n] = str(error)
                core.cursor = cursor
            records.append(record)
        core.cursor = cursor + 1
        return records

    def blank(self) -> Update:
        """The record of an update of the next batch that moves nothing and sees nothing."""
        core = self.distiller
        place = core.place
        record = blank_update(len(core.pool))
        record.peak = core.stages[place.number].learning_rate
        factor = linear_schedule(place.done, place.length, core.parts.optim.warmup)
        record.learning_rate = record.peak * factor
        return record


def pick_mode(
    distiller: Distiller,
    asked: Literal["auto", "loop", "vmap"],
    say: Callable[[str], None] | None = None,
) -> Mode:
    """How several students train: as ``--vectorize`` says, and as the student allows.

    Args:
        distiller: whose students they are.
        asked: ``auto`` = vmap on CUDA where it can be, else loop. On a CPU vmap gains nothing.
        say: called with a line for the user where ``auto`` cannot have vmap.

    Raises:
        UsageError: ``vmap`` is asked for where it cannot be.
    """
    if asked == "loop" or (asked == "auto" and distiller.device.type != "cuda"):
        return "loop"
    reason = why_not(distiller)
    if reason is None:
        return "vmap"
    if asked == "vmap":
        raise UsageError(
            f"--vectorize vmap: these students cannot train in one step: {reason}. Use "
            f"--vectorize loop, or auto."
        )
    if say is not None:
        say(f"students train one after the other, not in one step: {reason}")
    return "loop"
