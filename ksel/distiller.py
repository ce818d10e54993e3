"""The training step: a batch, K losses, a masked update; and the student's whole state in one object."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ksel.balance import (
    RunningSizes,
    divisor,
    is_due,
    new_norms,
    new_sizes,
    set_weights,
    unseen,
)
from ksel.credit import Credit, predict
from ksel.data import BatchOrder
from ksel.embeddings import LazyRows, trains, word_embeddings
from ksel.errors import UsageError
from ksel.first_use import first_losses, first_norms
from ksel.generator import OwnGenerator
from ksel.gradients import SeparateGradients, add_together
from ksel.knowledge import mean_loss, units
from ksel.models import Tap, head_parameters
from ksel.observing import Observed
from ksel.optim import adamw, allocate_moments, linear_schedule, set_rate
from ksel.parts import DistillerParts
from ksel.records import DivergedError, Snapshot, Update, blank_update
from ksel.stages import Place, build_stages, place, stage_ends
from ksel.types import Batch, Needs, Signals

SMALLEST_LOSS = 1e-8
"""A loss below this may rightly have no gradient; above it, a missing gradient is an error."""


class Distiller:
    """A student in training: ``losses(batch)``, ``update(action)``, snapshot and restore.

    Only the student and the pool's projections have trainable parameters. Nothing here draws from
    torch's global generator: the batches come from ``data_seed``, dropout from a state of its own.

    Attributes:
        cursor: updates done.
        updates: the step budget.
        sizes, norms: running sizes of the losses and, under ``balance: gradient``, of their
            gradients' norms.
        stages, ends: of this life: the stages, and the update after the last one of each.
        life: changes whenever the student becomes another one (reset, restore), so that whoever
            trains it can tell that it is still theirs.
    """

    def __init__(self, parts: DistillerParts) -> None:
        self.parts = parts
        self.student = parts.student
        self.pool = parts.pool
        self.watched = parts.watched
        self.sources = parts.sources
        self.ledger = parts.ledger
        self.device = next(parts.student.parameters()).device
        self.pool.projections.to(self.device)
        bf16 = parts.optim.bf16 and self.device.type == "cuda"
        self.tap = Tap(parts.student, bf16=bf16)
        self.modules: list[nn.Module] = [self.student, self.pool.projections]
        trains(parts.student, parts.optim.embeddings)
        self.parameters = [p for m in self.modules for p in m.parameters() if p.requires_grad]
        self.tensors = [t for m in self.modules for t in (*m.parameters(), *m.buffers())]
        self.optimizer = adamw(
            self.modules,
            parts.optim.learning_rate,
            parts.optim.weight_decay,
            head_parameters(parts.student),
            parts.optim.head_rate,
        )
        self._moments = allocate_moments(self.optimizer)
        self._lazy: LazyRows | None = None
        if parts.optim.embeddings == "lazy":
            self._lazy = LazyRows(word_embeddings(self.student), self.optimizer.param_groups[0])
            self._moments += self._lazy.moments
        self.initial = [t.detach().clone() for t in self.tensors]
        self.credit = parts.make_credit(self.tap) if parts.make_credit is not None else None
        self.generator = OwnGenerator(self.device)
        self.life = 0
        self.data_seed = -1
        self.reset(data_seed=0, updates=parts.updates)

    # ----------------------------------------------------------------- state

    def reset(self, data_seed: int, updates: int, *, plain: bool = False) -> None:
        """A fresh student, in place.

        Args:
            data_seed: seed of the batch order.
            updates: the step budget; each stage takes its share, and has a learning-rate schedule
                of its own.
            plain: leave the run's stages, static weights and weight schedules out: one stage in
                which everything can be selected.

        Raises:
            UsageError: the budget leaves a stage without an update.
        """
        self._set_stages(plain, updates)
        with torch.no_grad():
            torch._foreach_copy_(self.tensors, self.initial)
            torch._foreach_zero_(self._moments)
        count = len(self.pool)
        knowledge = self.parts.knowledge
        self.sizes = new_sizes(knowledge, count)
        self.norms = new_norms(knowledge, count)
        self.checked = np.zeros(count, dtype=bool)
        self.cursor = 0
        self.updates = updates
        self.life += 1
        self._seed_data(data_seed)
        if self.credit is not None:
            self.credit.reset(data_seed)
        self.generator.seed(self.parts.seed + 7919 * data_seed)

    def snapshot(self, into: Snapshot | None = None) -> Snapshot:
        """Copy the whole state; ``into`` reuses the tensors of an earlier snapshot."""
        if into is None:
            weights = [t.detach().clone() for t in self.tensors]
            moments = [t.clone() for t in self._moments]
        else:
            weights, moments = into.weights, into.moments
            torch._foreach_copy_(weights, [t.detach() for t in self.tensors])
            torch._foreach_copy_(moments, self._moments)
        return Snapshot(
            weights,
            moments,
            self.generator.state.clone(),
            self.sizes.copy(),
            self.norms.copy(),
            self.checked.copy(),
            self.cursor,
            self.updates,
            self.data_seed,
            self.plain,
            None if self.credit is None else self.credit.state.copy(),
        )

    def restore(self, state: Snapshot) -> None:
        """Return to a snapshot; what follows is equal to the bit."""
        with torch.no_grad():
            torch._foreach_copy_(self.tensors, state.weights)
            torch._foreach_copy_(self._moments, state.moments)
        self.generator.state = state.rng.clone()
        self.sizes, self.norms = state.sizes.copy(), state.norms.copy()
        self.checked = state.checked.copy()
        self.cursor, self.updates = state.cursor, state.updates
        self._set_stages(state.plain, state.updates)
        self.life += 1
        self._seed_data(state.data_seed)
        if self.credit is not None and state.credit is not None:
            self.credit.seed(state.data_seed)
            self.credit.state = state.credit.copy()

    def _set_stages(self, plain: bool, updates: int) -> None:
        self.plain = plain
        rate = self.parts.optim.learning_rate
        self.stages = build_stages((), self.pool.names, rate) if plain else self.parts.stages
        self.ends = stage_ends([stage.share for stage in self.stages], updates)

    def _seed_data(self, data_seed: int) -> None:
        if data_seed == self.data_seed:
            return
        self.data_seed = data_seed
        self.order = BatchOrder(
            self.parts.train.lengths, self.parts.batch_size, self.parts.bucket, data_seed
        )

    # ----------------------------------------------------------------- losses

    def losses(self, batch: Batch) -> Tensor:
        """The K raw losses of a batch, [K] float32, without dropout, with the graph behind them."""
        everything = list(range(len(self.pool)))
        student, teachers = self._signals(batch, everything, learning=False)
        return torch.stack([mean_loss(t, student, teachers[t.source], batch) for t in self.pool])

    @property
    def place(self) -> Place:
        """The stage of the next update."""
        return place(self.ends, self.cursor)

    @property
    def allowed(self) -> np.ndarray:
        """[K] bool, the types that can be selected in the next update's stage."""
        return self.stages[self.place.number].allowed

    def next_batch(self) -> Batch:
        """The batch of the next update."""
        with self.ledger.time("data"):
            batch = self.parts.train.batch(self.order.rows(self.cursor)).to(self.device)
        batch.progress = self.place.progress
        return batch

    def observe(self) -> Update:
        """Look at the next batch without learning from it: losses, entropy, agreement."""
        batch = self.next_batch()
        record = blank_update(len(self.pool))
        with torch.no_grad():
            wanted = [k for k in range(len(self.pool)) if self._is_free(k)]
            student, teachers = self._signals(batch, wanted, learning=False, observe=True)
            for k in wanted:
                type = self.pool.types[k]
                record.loss[k] = mean_loss(type, student, teachers[type.source], batch).item()
        observed = Observed(self.watched)
        observed.add(student, teachers[0], batch)
        observed.write(record)
        return record

    # ----------------------------------------------------------------- update

    def update(
        self,
        action: np.ndarray,
        *,
        observe: bool = False,
        credit: Literal["hard", "soft"] | None = None,
    ) -> Update:
        """One optimiser update with the weighted sum of the selected losses.

        An empty action spends the step: batch and schedule go on, nothing moves. Types that the
        stage does not allow are off, whatever the action says. The first update of a stage starts
        with a fresh optimiser.

        Args:
            action: [K] weights in [0, 1]; 0 = off, and an off type costs no backward.
            observe: also measure the off types' losses (where no teacher forward is needed for
                them alone), the student's entropy and its agreement with the teacher.
            credit: also predict what the update does to the objective on the reward split, and
                what each type has a part in it, for an action of bits or of weights. Does not
                change the student.

        Raises:
            DivergedError: a selected loss or the gradient is not finite; nothing was applied.
            UsageError: a selected type has no gradient.
            RuntimeError: the step budget is spent.
        """
        if self.cursor >= self.updates:
            raise RuntimeError(f"the step budget of {self.updates} updates is spent; call reset()")
        place = self.place
        stage = self.stages[place.number]
        if place.done == 0 and place.number > 0:
            torch._foreach_zero_(self._moments)
        batch = self.next_batch()
        record = blank_update(len(self.pool))
        factor = linear_schedule(place.done, place.length, self.parts.optim.warmup)
        record.learning_rate = stage.learning_rate * factor
        record.peak = stage.learning_rate
        scheduled = np.array(action, dtype=np.float64) * stage.allowed
        if not self.plain:
            scheduled *= self.pool.factors(place.progress)
        active = [k for k in range(len(self.pool)) if scheduled[k] > 0]
        each = np.full(len(self.pool), math.nan)
        if credit is not None and self.credit is not None:
            self.credit.measure(self.cursor, batch, self._teach, self.optimizer)
            each = self._unit_weights(self.credit)
        if active:
            self._learn(batch, scheduled, active, record, observe)
        elif observe:
            seen = self.observe()
            record.loss, record.entropy, record.agreement = seen.loss, seen.entropy, seen.agreement
            record.student_cls, record.teacher_cls = seen.student_cls, seen.teacher_cls
        if credit is not None and self.credit is not None:
            mask = np.asarray(action) * stage.allowed
            self._predict(self.credit, each * stage.allowed, mask, record, soft=credit == "soft")
            record.credit[~stage.allowed] = math.nan
        self.cursor += 1
        return record

    def _teach(self, batch: Batch) -> list[Signals]:
        """Each teacher's signals for all types of the pool."""
        return self._taught(batch, range(len(self.pool)))

    def _unit_weights(self, credit: Credit) -> np.ndarray:
        """[K] what each loss is multiplied with in this update where its action is 1.

        A type that was never selected is taken to be divided by what ``credit`` measured of it.
        """
        weights = self.static_weights
        if not self.plain:
            weights = weights * self.pool.factors(self.place.progress)
        if self._balances_gradients:
            return weights / self.norms.values_or(credit.gradient_norms())
        if self._divisor is not None:
            return weights / self._divisor.values_or(credit.state.losses)
        return weights

    def _predict(
        self, credit: Credit, each: np.ndarray, mask: np.ndarray, record: Update, *, soft: bool
    ) -> None:
        predicted = predict(
            credit.state.slopes,
            credit.state.gram if credit.clips else None,
            each,
            mask,
            rate=record.learning_rate,
            limit=self.parts.optim.max_grad_norm,
            norm=record.clip_norm,
            soft=soft,
        )
        record.predicted = predicted.drop
        record.credit = predicted.credit

    def _learn(
        self,
        batch: Batch,
        action: np.ndarray,
        active: list[int],
        record: Update,
        observe: bool,
    ) -> None:
        optim = self.parts.optim
        micro = batch.split(optim.accumulate)
        amounts = [units(self.pool.types[k].unit, batch) for k in range(len(self.pool))]
        fresh = unseen(self._divisor, active)
        if fresh and self._balances_gradients:
            self.norms.note_some(first_norms(self, fresh, batch, micro, amounts))
        elif fresh and len(micro) > 1:
            self.sizes.note_some(first_losses(self, fresh, micro, amounts))
        sums = torch.zeros(len(self.pool), device=self.device)
        off = [k for k in self._observable(active) if k not in active] if observe else []
        observed = Observed(self.watched)
        self.optimizer.zero_grad(set_to_none=True)
        with self._own_dropout(), self._own_rows(batch):
            separate = self._separate_gradients(active, len(micro))
            for number, part in enumerate(micro):
                student, teachers = self._signals(part, active + off, observe=observe)
                values = {k: self._share(k, student, teachers, part, amounts[k]) for k in active}
                with torch.no_grad():
                    for k in off:
                        sums[k] += self._share(k, student, teachers, part, amounts[k])
                    for k, value in values.items():
                        sums[k] += value
                if fresh and len(micro) == 1 and not self._balances_gradients:
                    self.sizes.note_some({k: values[k].item() for k in fresh})
                if number == 0:
                    set_weights(record, action, self.static_weights, active, self._divisor)
                    self._expect(active + off)
                self._backward(values, record.weight, separate, len(part))
                if observe:
                    observed.add(student, teachers[0], part)
        self._check_losses(sums, active, off, record)
        if separate is not None:
            self._keep_norms(separate.norms, record)
        self._step(record)
        # Only what was trained on counts: looking at the student must not change it.
        self.sizes.note(np.where(action > 0, record.loss, math.nan))
        if separate is not None and is_due(self.parts.knowledge, self.cursor):
            self.norms.note_some({k: n for k, n in separate.norms.items() if k not in fresh})
        observed.write(record)

    def _share(
        self, k: int, student: Signals, teachers: list[Signals], part: Batch, amount: Tensor
    ) -> Tensor:
        """A micro-batch's share of type k's loss of the whole batch."""
        type = self.pool.types[k]
        return type.loss(student, teachers[type.source], part).sum() / amount

    def _backward(
        self,
        values: dict[int, Tensor],
        weight: np.ndarray,
        separate: SeparateGradients | None,
        examples: int,
    ) -> None:
        self._check_graphs(values)
        with self.ledger.time("student_backward", examples):
            if separate is None:
                add_together(values, weight)
            else:
                separate.add(values, weight)

    def _step(self, record: Update) -> None:
        with self.ledger.time("optimizer"):
            limit = self.parts.optim.max_grad_norm
            norm = nn.utils.clip_grad_norm_(self._leaves, limit if limit > 0 else math.inf)
            record.clip_norm = float(norm)
            if not math.isfinite(record.clip_norm):
                names = [self.pool.names[k] for k in np.flatnonzero(record.weight)]
                raise DivergedError(f"the gradient of {', '.join(names)} is not finite")
            set_rate(self.optimizer, record.learning_rate)
            self.optimizer.step()
            if self._lazy is not None:
                self._lazy.step()
            self.optimizer.zero_grad(set_to_none=True)

    # ----------------------------------------------------------------- balance

    @property
    def static_weights(self) -> np.ndarray:
        """[K] the run's static weights; 1 where they are left out."""
        return np.ones(len(self.pool)) if self.plain else np.array(self.pool.weights)

    @property
    def _balances_gradients(self) -> bool:
        return self.parts.knowledge.balance == "gradient"

    @property
    def _divisor(self) -> RunningSizes | None:
        return divisor(self.parts.knowledge, self.sizes, self.norms)

    def _shares(self, wanted: list[int], part: Batch, amounts: list[Tensor]) -> dict[int, Tensor]:
        """Shares of some types' losses, from forward passes of their own."""
        student, teachers = self._signals(part, wanted)
        return {k: self._share(k, student, teachers, part, amounts[k]) for k in wanted}

    # ----------------------------------------------------------------- checks

    def _separate_gradients(self, active: list[int], parts: int) -> SeparateGradients | None:
        """Norms are measured at the cadence, and until each selected type was seen to have one."""
        if self._norms_due or not all(self.checked[k] for k in active):
            return SeparateGradients(self._leaves, parts)
        return None

    @property
    def _norms_due(self) -> bool:
        """True in the updates in which norms are recorded, or the balance needs them."""
        every = self.parts.optim.grad_norm_every
        recorded = every > 0 and self.cursor % every == 0
        return recorded or is_due(self.parts.knowledge, self.cursor)

    def _keep_norms(self, norms: dict[int, float], record: Update) -> None:
        for k, norm in norms.items():
            record.grad_norm[k] = record.weight[k] * norm
            if record.loss[k] > SMALLEST_LOSS:
                if norm == 0:
                    raise self._no_gradient(k)
                self.checked[k] = True

    @property
    def _leaves(self) -> list[Tensor]:
        """What an update takes gradients of."""
        return [*self.parameters, *([self._lazy.rows] if self._lazy else [])]

    def _check_graphs(self, values: dict[int, Tensor]) -> None:
        for k, value in values.items():
            if not value.requires_grad:
                raise self._no_gradient(k)

    def _no_gradient(self, k: int) -> UsageError:
        name = self.pool.names[k]
        return UsageError(
            f"--knowledge.pool: '{name}' is selected but its loss has no gradient with respect to "
            f"the student, so it cannot teach it anything. Take '{name}' out of the pool, or "
            f"give it a weight above 0 (--knowledge.weights)."
        )

    def _check_losses(
        self, sums: Tensor, active: list[int], off: list[int], record: Update
    ) -> None:
        values = sums.tolist()
        for k in active + off:
            record.loss[k] = values[k]
        for k in active:
            if not math.isfinite(values[k]):
                raise DivergedError(f"the loss of {self.pool.names[k]} is {values[k]}")

    # ----------------------------------------------------------------- signals

    def _signals(
        self, batch: Batch, wanted: list[int], *, learning: bool = True, observe: bool = False
    ) -> tuple[Signals, list[Signals]]:
        """Student and teacher signals that the wanted types (and the observation) need."""
        needs = Needs.union(self.pool.types[k].student for k in wanted)
        if observe:
            needs = needs | self.watched.student
        teachers = self._taught(batch, wanted, observe=observe)
        return self._forward(batch, needs, learning=learning), teachers

    def _taught(
        self, batch: Batch, wanted: Iterable[int], *, observe: bool = False
    ) -> list[Signals]:
        """Each teacher's signals that the wanted types (and the observation) need."""
        types = [self.pool.types[k] for k in wanted]
        asked = [
            Needs.union(t.teacher for t in types if t.source == i) for i in range(len(self.sources))
        ]
        if observe and self._watches_teacher(asked[0]):
            asked[0] = asked[0] | self.watched.teacher
        return [source(batch, one) for source, one in zip(self.sources, asked, strict=True)]

    def _expect(self, wanted: Iterable[int]) -> None:
        """Have the teachers' sources read the next batch ahead, for the types wanted now."""
        if self.device.type != "cuda" or self.cursor + 1 >= self.updates:
            return
        types = [self.pool.types[k] for k in wanted]
        for i, source in enumerate(self.sources):
            needs = Needs.union(t.teacher for t in types if t.source == i)
            source.expect(self.order.rows(self.cursor + 1), needs)

    def _watches_teacher(self, asked: Needs) -> bool:
        """True if looking at the first teacher costs no forward beside the one for these signals."""
        first = self.sources[0]
        return first.keeps(self.watched.teacher) or not first.keeps(asked)

    def _forward(self, batch: Batch, needs: Needs, *, learning: bool) -> Signals:
        """A student forward; dropout (where there is any) only while learning."""
        self.student.train(learning and self.parts.dropout > 0)
        with self.ledger.time("student_forward", len(batch)):
            return self.tap(batch, needs)

    def _is_free(self, k: int) -> bool:
        """True if observing type k costs no teacher forward."""
        type = self.pool.types[k]
        return self.sources[type.source].keeps(type.teacher)

    def _observable(self, active: list[int]) -> Iterator[int]:
        """Types whose loss can be observed beside the active ones: a teacher that runs anyway,
        or signals that are kept, serve all."""
        runs = {self.pool.types[k].source for k in active if not self._is_free(k)}
        return (
            k
            for k in range(len(self.pool))
            if self.pool.types[k].source in runs or self._is_free(k)
        )

    def _own_rows(self, batch: Batch) -> AbstractContextManager[None]:
        """Lazy word embeddings: the rows of this batch's tokens stand in for all."""
        return self._lazy.of(batch.input_ids) if self._lazy else nullcontext()

    def _own_dropout(self, *, keep: bool = True) -> AbstractContextManager[None]:
        """Dropout masks come from the student's own generator; ``keep`` advances it."""
        return self.generator.in_use(keep=keep) if self.parts.dropout else nullcontext()
