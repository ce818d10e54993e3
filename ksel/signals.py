"""Teacher signals, live or kept, behind one interface: each row that is kept is computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ksel.data import Split
from ksel.errors import UsageError
from ksel.ledger import Ledger
from ksel.models import Tap, architecture, weights_fingerprint
from ksel.signal_ahead import Ahead
from ksel.signal_store import BLOCK, SignalStore, Slot, needs_of, signal_names, slots_of
from ksel.types import LAYERED, POOLED, Batch, Needs, Signals

FORMAT = 3


class TeacherSource(Protocol):
    """Gives the teacher's signals for a batch.

    Attributes:
        cached: True if all that it will be asked for is kept.
    """

    cached: bool

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        """The signals asked for, float32, detached, on the batch's device."""
        ...

    def keeps(self, needs: Needs) -> bool:
        """True if each row's signals are computed once at most, however often they are asked for."""
        ...

    def expect(self, ids: np.ndarray, needs: Needs) -> None:
        """Told which batch (its ids) will be asked for next, and for what; a hint, not a promise."""
        ...


class LiveTeacher:
    """Runs the teacher on each batch it is asked for.

    Args:
        teacher: the model.
        ledger: where its forwards are counted.
        bf16: run it under bfloat16 autocast (CUDA only).
        split: the training rows in the tokens of the teacher's own tokenizer; None where it reads
            the student's. Its signals then are those of the rows with the batch's ids.
    """

    cached = False

    def __init__(
        self,
        teacher: PreTrainedModel,
        ledger: Ledger,
        *,
        bf16: bool = False,
        split: Split | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.tap = Tap(teacher, bf16=bf16)
        self.ledger = ledger
        self.split = split

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        """One teacher forward, in evaluation mode and without gradients."""
        if not needs:
            return Signals()
        self.teacher.eval()
        if self.split is not None:
            batch = self.split.batch(batch.ids.cpu().numpy()).to(batch.input_ids.device)
        with self.ledger.time("teacher", len(batch)), torch.no_grad():
            signals = self.tap(batch, needs)
        return _as_float32(signals)

    def keeps(self, needs: Needs) -> bool:
        """Nothing is kept."""
        return not needs

    def expect(self, ids: np.ndarray, needs: Needs) -> None:
        """Nothing can be done ahead."""


def _as_float32(signals: Signals) -> Signals:
    layered = {
        name: {layer: t.float() for layer, t in getattr(signals, name).items()} for name in LAYERED
    }
    return Signals(None if signals.logits is None else signals.logits.float(), **layered)


@dataclass(frozen=True)
class SignalPlan:
    """A teacher, the training file that it reads, and what is asked of it.

    Attributes:
        teacher: the model.
        split: all rows of the training file as the teacher reads them, whatever the seed.
        index: [n] int64, the row of ``split`` for each row that is trained on (a batch's ids).
        needs: the signals.
        batch_size: most rows of one teacher forward on a GPU.
        device: where the teacher is.
        bf16: run it under bfloat16 autocast.
        own_tokens: True if ``split`` is in the tokens of the teacher's own tokenizer, False if in
            the student's. Its rows have the student's numbers either way.
    """

    teacher: PreTrainedModel
    split: Split
    index: np.ndarray
    needs: Needs
    batch_size: int
    device: torch.device
    bf16: bool = False
    own_tokens: bool = False

    def fingerprint(self) -> str:
        """SHA-256 of the teacher's weights and architecture, the file's tokens, and precision."""
        content = [
            FORMAT,
            BLOCK,
            weights_fingerprint(self.teacher),
            architecture(self.teacher.config),
            self.split.fingerprint(),
            self.bf16,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def slots(self) -> dict[str, Slot]:
        """Name -> slot of each signal asked for."""
        config, spans = self.teacher.config, self.split.spans is not None
        return slots_of(
            self.needs, int(config.hidden_size), int(config.num_labels or 1), spans=spans
        )

    def live(self, ledger: Ledger) -> LiveTeacher:
        """The teacher itself, for batches of the rows that are trained on."""
        own = self.split.take(self.index) if self.own_tokens else None
        return LiveTeacher(self.teacher, ledger, bf16=self.bf16, split=own)

    def check_tokens(self) -> None:
        """Refuse to compare tokens with those of another tokenizer.

        Raises:
            UsageError: signals of tokens are asked of a teacher whose tokens are its own.
        """
        kinds = [kind for kind in LAYERED if kind not in POOLED and getattr(self.needs, kind)]
        if self.needs.logits and self.split.spans is not None:
            kinds.append("logits")
        if self.own_tokens and kinds:
            raise UsageError(
                f"--knowledge.pool: {', '.join(kinds)} of each token cannot be compared with a "
                f"teacher that has another tokenizer than the student. Take response, cls_hidden "
                f"or another kind on [CLS] states from it, or choose a teacher with the first "
                f"one's tokenizer."
            )


class KeptTeacher:
    """Signals that are computed when a row is first asked for, and looked up from then on.

    A row is computed with the others of its block (:class:`ksel.signal_store.Layout`), all signals
    that are kept at once: one forward for each row, whatever is asked for when. What is not kept
    is computed live, on the batch; what is kept comes from the store even then, so that a
    signal's bits do not depend on what else was asked for.

    Args:
        plan: teacher and rows.
        store: where signals are kept.
        ledger: where teacher forwards and reading are counted.
        ahead: read the expected batch on a thread of its own; None = on a GPU.
    """

    def __init__(
        self,
        plan: SignalPlan,
        store: SignalStore,
        ledger: Ledger,
        *,
        ahead: bool | None = None,
    ) -> None:
        self.plan, self.store, self.ledger = plan, store, ledger
        self.names = frozenset(store.slots)
        self.cached = self.keeps(plan.needs)
        self._live = plan.live(ledger)
        self._reader = LiveTeacher(plan.teacher, ledger, bf16=plan.bf16)
        on_gpu = plan.device.type == "cuda"
        self.ahead = Ahead(self._read, plan.device) if ahead or (ahead is None and on_gpu) else None

    def keeps(self, needs: Needs) -> bool:
        """True if all of these are kept."""
        return self.names.issuperset(signal_names(needs))

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        """Signals of the batch; of those that are kept, padded positions are zero.

        Raises:
            UsageError: the teacher's numbers do not fit ``--signals.dtype``, or the disk is full.
        """
        asked = signal_names(needs)
        names = [name for name in asked if name in self.names]
        signals = self._live(batch, needs_of(name for name in asked if name not in self.names))
        if not names:
            return signals
        rows = self.plan.index[batch.ids.cpu().numpy()]
        self._compute(self.store.missing(names, self.store.layout.blocks_of(rows)))
        length, device = batch.attention_mask.shape[1], batch.input_ids.device
        with self.ledger.time("data"):
            found = self.ahead.take(rows, length) if self.ahead else {}
            rest = [name for name in names if name not in found]
            read = self._read(rows, length, rest)
            found |= {name: tensor.to(device, non_blocking=True) for name, tensor in read.items()}
        return _put(signals, {name: found[name].float() for name in names})

    def expect(self, ids: np.ndarray, needs: Needs) -> None:
        """Begin to read the next batch, if all of it is there already."""
        if self.ahead is None:
            return
        rows = self.plan.index[ids]
        names = [name for name in signal_names(needs) if name in self.names]
        if names and not len(self.store.missing(names, self.store.layout.blocks_of(rows))):
            self.ahead.expect(rows, int(self.plan.split.lengths[rows].max()), names)

    # ----------------------------------------------------------------- writing

    def _compute(self, blocks: np.ndarray) -> None:
        """Run the teacher on blocks and keep what it gives."""
        # On a CPU one forward is one block, so that its bits are the same in each run. A GPU, of
        # which that is not promised, gets as many as it likes.
        together = max(1, self.plan.batch_size // BLOCK) if self.plan.device.type == "cuda" else 1
        layout = self.store.layout
        for start in range(0, len(blocks), together):
            some = blocks[start : start + together]
            parts = [layout.rows(block) for block in some]
            batch = self.plan.split.batch(np.concatenate(parts)).to(self.plan.device)
            signals = self._reader(batch, needs_of(self.names))
            real = batch.attention_mask.bool()
            values = {
                name: self._fitting(name, _get(signals, name), real) for name in sorted(self.names)
            }
            self._keep(some, values)

    def _fitting(self, name: str, values: Tensor, real: Tensor) -> np.ndarray:
        """[vectors, width] in the store's precision."""
        if self.store.slots[name].of_tokens:
            values = values[real]
        dtype = self.store.dtype
        kept = values.to(torch.float16 if dtype.itemsize == 2 else torch.float32)
        if not kept.isfinite().all():
            raise UsageError(
                f"--signals.dtype: the teacher's {name} has values that {dtype.name} cannot hold "
                f"(largest {values.abs().max().item():g}). Use --signals.dtype float32; where it "
                f"is that already, the teacher gives numbers that are not finite."
            )
        return kept.cpu().numpy()

    def _keep(self, blocks: np.ndarray, values: dict[str, np.ndarray]) -> None:
        layout, slots = self.store.layout, self.store.slots
        taken = dict.fromkeys(values, 0)
        for block in blocks:
            parts = {}
            for name, value in values.items():
                extent = layout.extent(slots[name], block)
                end = taken[name] + extent.stop - extent.start
                parts[name] = value[taken[name] : end]
                taken[name] = end
            self.store.keep(int(block), parts)

    # ----------------------------------------------------------------- reading

    def _read(self, rows: np.ndarray, length: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Name -> [b, width] or, of tokens, [b, length, width], in the store's precision."""
        layout = self.store.layout
        places = layout.place[rows]
        starts, ends = layout.starts[places], layout.starts[places + 1]
        pinned, found = self.plan.device.type == "cuda", {}
        for name in names:
            array, slot = self.store.arrays[name], self.store.slots[name]
            shape = (len(rows), length, slot.width) if slot.of_tokens else (len(rows), slot.width)
            dtype = torch.float16 if array.dtype.itemsize == 2 else torch.float32
            tensor = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
            view = tensor.numpy()
            if slot.of_tokens:
                for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                    view[i, : end - start] = array[start:end]
            else:
                view[:] = array[places]
            self.store.have_read(len(rows), view.nbytes)
            found[name] = tensor
        return found


def _get(signals: Signals, name: str) -> Tensor:
    kind, _, layer = name.partition("/")
    found = getattr(signals, kind)
    return found[int(layer)] if layer else found


def _put(signals: Signals, found: dict[str, Tensor]) -> Signals:
    for name, tensor in found.items():
        kind, _, layer = name.partition("/")
        if layer:
            getattr(signals, kind)[int(layer)] = tensor
        else:
            signals.logits = tensor
    return signals
