"""One update of N students in one batched step: one backward, and AdamW on stacked weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ksel.balance import divisor, is_due, set_weights, unseen
from ksel.distiller import SMALLEST_LOSS
from ksel.errors import UsageError
from ksel.knowledge import units
from ksel.observing import Observed
from ksel.optim import RATE
from ksel.records import Update
from ksel.stacked_sums import Gradients, Job, Totals, add_gradients, along, norms_of
from ksel.stacking import Seen, SideBySide
from ksel.types import Batch, Needs, Signals

if TYPE_CHECKING:
    from ksel.stacked import StackedDistiller

T = TypeVar("T")


class StackedStep:
    """The batched step of a :class:`ksel.stacked.StackedDistiller`.

    Args:
        students: whose weights it moves.
        chunk: how many go through one step at once; halved where the memory does not hold them.
        say: called with a line for the user.
    """

    def __init__(
        self, students: StackedDistiller, chunk: int, say: Callable[[str], None] | None
    ) -> None:
        self.of = students
        self.core = core = students.distiller
        self.chunk = chunk
        self.say = say
        self.model = SideBySide(core)
        self.names = self.model.names
        self.reached: dict[int, np.ndarray] = {}
        """Type -> [P] bool, the parameters that its gradient reaches."""
        number = {id(p): i for i, p in enumerate(core.parameters)}
        self.groups: list[tuple[dict[str, Any], list[int]]] = [
            (group, [number[id(p)] for p in group["params"]])
            for group in core.optimizer.param_groups
        ]
        order = [i for _, members in self.groups for i in members]
        # weight, step, moments of each parameter and student; looked up once, there are thousands
        self.slices = {
            i: [
                [stack[n] for stack in (students.weights[i], *students.moments[3 * j : 3 * j + 3])]
                for n in range(students.students)
            ]
            for j, i in enumerate(order)
        }

    def in_chunks(self, work: Callable[[range], T]) -> list[T]:
        """Do something for all students, as many at a time as the memory holds.

        Raises:
            UsageError: the memory does not hold one student's part.
        """
        done, first = [], 0
        while first < self.of.students:
            students = range(first, min(first + self.chunk, self.of.students))
            try:
                done.append(work(students))
            except torch.OutOfMemoryError as error:
                self._halve(len(students), error)
                continue
            first = students.stop
        return done

    def _halve(self, students: int, error: Exception) -> None:
        if students == 1:
            raise UsageError(
                "--batching.size: the device has no memory for one update of a single student "
                "beside the states of all. Lower --batching.size, or --students."
            ) from error
        self.chunk = max(students // 2, 1)
        if self.core.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.say is not None:
            self.say(f"out of memory: {self.chunk} students at a time in one step from here on")

    # ----------------------------------------------------------------- an update

    def update(self, actions: np.ndarray, *, observe: bool) -> list[Update]:
        """As :meth:`ksel.stacked.StackedDistiller.update`, without moving the cursor."""
        core, of = self.core, self.of
        place = core.place
        if place.done == 0 and place.number > 0:
            torch._foreach_zero_(of.moments)
        batch = core.next_batch()
        scheduled = actions * core.stages[place.number].allowed
        if not core.plain:
            scheduled = scheduled * np.array(core.pool.factors(place.progress))
        scheduled[[reason is not None for reason in of.reasons]] = 0.0
        job = self._job(batch, scheduled, core.parts.optim.accumulate, observe)
        if job.parts:
            self._set_weights(job)
            self.in_chunks(lambda students: self._learn(job, students))
        for n, record in enumerate(job.records):
            if of.reasons[n] is None and job.active(n):
                of.sizes[n].note(np.where(scheduled[n] > 0, record.loss, math.nan))
                of.norms[n].note_some(job.norms[n])
        return job.records

    def observe(self) -> list[Update]:
        """As :meth:`ksel.stacked.StackedDistiller.observe`."""
        nothing = np.zeros((self.of.students, len(self.core.pool)))
        job = self._job(self.core.next_batch(), nothing, 1, True)
        self.in_chunks(lambda students: self._learn(job, students))
        return job.records

    def _job(self, batch: Batch, actions: np.ndarray, parts: int, observe: bool) -> Job:
        core, count = self.core, self.of.students
        records = [self.of.blank() for _ in range(count)]
        amounts = [units(type.unit, batch) for type in core.pool]
        job = Job([], amounts, actions, [[] for _ in range(count)], records, observe)
        for n in range(count) if observe else ():
            active = job.active(n)
            job.off[n] = [k for k in core._observable(active) if k not in active]
        wanted = sorted({k for n in range(count) for k in (*job.active(n), *job.off[n])})
        if observe or wanted:
            for part in batch.split(parts):
                job.parts.append((part, core._taught(part, wanted, observe=observe)))
            core._expect(wanted)
        return job

    def _set_weights(self, job: Job) -> None:
        """Scale and weight of each selected type, from the updates before this one."""
        knowledge, static = self.core.parts.knowledge, self.core.static_weights
        pairs = zip(self.of.sizes, self.of.norms, strict=True)
        running = [divisor(knowledge, sizes, norms) for sizes, norms in pairs]
        for n, own in enumerate(running):
            job.fresh[n] = unseen(own, job.active(n))
        union = sorted({k for types in job.fresh for k in types})
        first = self._first(job, union) if union else []
        for n, own in enumerate(running):
            if job.fresh[n] and own is not None:
                own.note_some({k: first[n][union.index(k)] for k in job.fresh[n]})
            if active := job.active(n):
                set_weights(job.records[n], job.actions[n], static, active, own)

    def _first(self, job: Job, types: list[int]) -> list[list[float]]:
        """[N][types] what types that some student selects for the first time are divided by: its
        loss on this batch, or the norm of its gradient."""
        gradients = self.core.parts.knowledge.balance == "gradient"

        def measure(students: range) -> Tensor:
            totals, leaves = Totals(), self._leaves(students)
            learn, look = (types, []) if gradients else ([], types)
            with torch.set_grad_enabled(gradients):
                for part, teachers in job.parts:
                    seen = self._look(job, leaves, part, teachers, learn, look)
                    if gradients:
                        self._measure(seen.learned, leaves, totals, len(part) * len(students))
                    totals.add(seen, len(part))
                    del seen  # the next forward pass needs the room
            if gradients:
                return torch.stack([norms_of(totals.each[k]) for k in types], 1)
            return torch.stack([totals.losses[k] for k in types], 1)

        return torch.cat(self.in_chunks(measure)).tolist()

    def _measure(
        self, values: dict[int, Tensor], leaves: list[Tensor], totals: Totals, examples: int
    ) -> None:
        self.core._check_graphs(values)
        with self.core.ledger.time("student_backward", examples):
            for k, value in values.items():
                self._add_own(k, value, leaves, totals)

    # ----------------------------------------------------------------- some students

    def _learn(self, job: Job, students: range) -> None:
        """Losses, gradients and AdamW of some students; nothing of one depends on the others."""
        learn = sorted({k for n in students for k in job.active(n)})
        look = sorted({k for n in students for k in job.off[n]} - set(learn))
        if not (learn or job.observe):
            return
        separate = any(k not in self.reached for k in learn)
        separate = separate or any(self._is_due(n, job.active(n)) for n in students)
        leaves = self._leaves(students)
        records = [job.records[n].weight for n in students]
        weight = torch.tensor(np.stack(records), dtype=leaves[0].dtype, device=leaves[0].device)
        totals = Totals(grads=[None] * len(leaves))
        for part, teachers in job.parts:
            with torch.set_grad_enabled(bool(learn)):
                seen = self._look(job, leaves, part, teachers, learn, look)
            with self.core.ledger.time("student_backward", len(part) * len(students)):
                self._backward(seen.learned, weight, leaves, totals, separate)
            totals.add(seen, len(part))
            del seen  # the next forward pass needs the room
        again = self._finish(job, students, learn, look, totals)
        del totals, leaves
        for n in again:
            self._learn(job, range(n, n + 1))

    def _leaves(self, students: range) -> list[Tensor]:
        """The students' weights as the ends of a graph of its own."""
        return [
            stack[students.start : students.stop].detach().requires_grad_()
            for stack in self.of.weights
        ]

    def _look(
        self,
        job: Job,
        leaves: list[Tensor],
        part: Batch,
        teachers: list[Signals],
        learn: list[int],
        look: list[int],
    ) -> Seen:
        core = self.core
        core.student.eval()
        weights = dict(zip(self.names, leaves, strict=True))
        with core.ledger.time("student_forward", len(part) * len(leaves[0])):
            return self.model.look(
                weights, part, teachers, job.amounts, learn, look, observe=job.observe
            )

    def _backward(
        self,
        values: dict[int, Tensor],
        weight: Tensor,
        leaves: list[Tensor],
        totals: Totals,
        separate: bool,
    ) -> None:
        """Add the gradients of a micro-batch; ``weight`` [n, K]."""
        self.core._check_graphs(values)
        if values and not separate:
            total = torch.stack([weight[:, k] * value for k, value in values.items()]).sum()
            add_gradients(totals.grads, torch.autograd.grad(total, leaves, allow_unused=True))
            return
        for k, value in values.items():
            found = self._add_own(k, value, leaves, totals)
            mine = [None if g is None else g * along(weight[:, k], g) for g in found]
            add_gradients(totals.grads, mine)

    def _add_own(
        self, k: int, value: Tensor, leaves: list[Tensor], totals: Totals
    ) -> tuple[Tensor | None, ...]:
        """Add the gradients of one type's own loss of a micro-batch; returns them."""
        found = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
        add_gradients(totals.each.setdefault(k, [None] * len(leaves)), found)
        return found

    def _finish(
        self, job: Job, students: range, learn: list[int], look: list[int], totals: Totals
    ) -> list[int]:
        """Check what came out, write it down, and step the students that are well.

        Returns:
            Students whose gradient is not finite though their losses are. A type that they have
            off may have spoilt it (0 x infinity); it is not in the way of a student by itself.
        """
        norms = norms_of(totals.grads) if learn else None
        columns = [totals.losses[k] for k in learn + look] + ([] if norms is None else [norms])
        values = torch.stack(columns, 1).tolist() if columns else [[] for _ in students]
        own = {k: norms_of(each).tolist() for k, each in totals.each.items()}
        for k, each in totals.each.items():
            self.reached[k] = np.array([g is not None for g in each])
        sums = {name: value.cpu() for name, value in totals.sums.items()}
        again: list[int] = []
        well: list[int] = []
        for i, n in enumerate(students):
            if self.of.reasons[n] is not None:
                continue
            active, record = job.active(n), job.records[n]
            for k, value in zip(learn + look, values[i], strict=False):
                if k in active or k in job.off[n]:
                    record.loss[k] = value
            if active:
                record.clip_norm = values[i][-1]
                reason = self._reason(record, active)
                alone = len(active) == len(learn)
                if reason and not alone and np.isfinite(record.loss[active]).all():
                    again.append(n)
                    continue
                self.of.reasons[n] = reason
                if reason:
                    continue
                self._keep_norms(job, n, {k: own[k][i] for k in active if k in own})
                well.append(n)
            self._write(job, n, {name: value[i] for name, value in sums.items()}, totals.examples)
        if well and norms is not None:
            with self.core.ledger.time("optimizer"):
                self._clip(totals.grads, norms)
                self._apply(job, students, well, totals.grads)
        return again

    def _reason(self, record: Update, active: list[int]) -> str | None:
        names = self.core.pool.names
        for k in active:
            if not math.isfinite(record.loss[k]):
                return f"the loss of {names[k]} is {record.loss[k]}"
        if not math.isfinite(record.clip_norm):
            selected = [names[k] for k in np.flatnonzero(record.weight)]
            return f"the gradient of {', '.join(selected)} is not finite"
        return None

    def _is_due(self, n: int, active: list[int]) -> bool:
        """True where student ``n`` has the norm of each type's gradient measured."""
        unknown = not all(self.of.checked[n, k] for k in active)
        return bool(active) and (self.core._norms_due or unknown)

    def _keep_norms(self, job: Job, n: int, norms: dict[int, float]) -> None:
        if not self._is_due(n, list(norms)):
            return
        record = job.records[n]
        if is_due(self.core.parts.knowledge, self.core.cursor):
            job.norms[n] = {k: norm for k, norm in norms.items() if k not in job.fresh[n]}
        for k, norm in norms.items():
            record.grad_norm[k] = record.weight[k] * norm
            if record.loss[k] > SMALLEST_LOSS:
                if norm == 0:
                    raise self.core._no_gradient(k)
                self.of.checked[n, k] = True

    def _write(self, job: Job, n: int, sums: dict[str, Tensor], examples: int) -> None:
        """What was observed; the teacher counts only where this student's own types call it."""
        if not job.observe:
            return
        core = self.core
        types = [core.pool.types[k] for k in (*job.active(n), *job.off[n])]
        asked = Needs.union(t.teacher for t in types if t.source == 0)
        if not core._watches_teacher(asked):
            sums = {k: v for k, v in sums.items() if k not in ("agreement", "teacher_cls")}
        Observed(core.watched, examples, sums).write(job.records[n])

    def _clip(self, grads: Gradients, norms: Tensor) -> None:
        """Each student's gradient to its own length, as ``clip_grad_norm_`` does."""
        limit = self.core.parts.optim.max_grad_norm
        if limit <= 0:
            return
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)
        owners = Counter(g.untyped_storage().data_ptr() for g in grads if g is not None)
        for i, g in enumerate(grads):
            if g is None:
                continue
            # autograd may hand one tensor out for several parameters
            mine = g.is_contiguous() and owners[g.untyped_storage().data_ptr()] == 1
            grads[i] = g.mul_(along(factor, g)) if mine else g * along(factor, g)

    def _apply(self, job: Job, students: range, well: Iterable[int], grads: Gradients) -> None:
        """AdamW of each student on the parameters that its own types reach, and on no others."""
        reached = {n: np.any([self.reached[k] for k in job.active(n)], axis=0) for n in well}
        rate = job.records[students.start].learning_rate
        for group, members in self.groups:
            columns: tuple[list[Tensor], ...] = ([], [], [], [], [])
            for i in members:
                gradient = grads[i]
                if gradient is None:
                    continue
                parts = gradient.contiguous().unbind(0)
                for n in reached:
                    if reached[n][i]:
                        row = (*self.slices[i][n], parts[n - students.start])
                        for column, tensor in zip(columns, row, strict=True):
                            column.append(tensor)
            weights, steps, means, squares, gradients = columns
            if not weights:
                continue
            adamw(
                weights,
                gradients,
                means,
                squares,
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=rate * group[RATE],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
