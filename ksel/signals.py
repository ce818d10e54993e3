"""Teacher signals: live or cached, behind one interface, each example's computed once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ksel.data import Split, evaluation_batches
from ksel.errors import UsageError
from ksel.files import atomic_folder, file_sum, reserve, write_json
from ksel.ledger import Ledger
from ksel.models import Tap, architecture, weights_fingerprint
from ksel.types import LAYERED, POOLED, Batch, Needs, Shape, Signals

FORMAT = 2

Array2D = tuple[int, int]
"""Rows and columns of an array."""


class TeacherSource(Protocol):
    """Gives the teacher's signals for a batch.

    Attributes:
        cached: True if asking costs no teacher forward.
    """

    cached: bool

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        """The signals asked for, float32, detached, on the batch's device."""
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


def _as_float32(signals: Signals) -> Signals:
    layered = {
        name: {layer: t.float() for layer, t in getattr(signals, name).items()} for name in LAYERED
    }
    return Signals(None if signals.logits is None else signals.logits.float(), **layered)


class CachedTeacher:
    """Signals of all training rows, computed once, looked up by the examples' ids.

    Args:
        arrays: name -> array; ``logits`` [N, classes], ``cls/<layer>`` [N, h], and for token
            kinds ``<kind>/<layer>`` [tokens, h] with the examples one after the other; of spans
            the ``logits`` are of the tokens too, [tokens, 2].
        lengths: [N] real tokens of each example.
        spans: True if the logits are of the tokens.
    """

    cached = True

    def __init__(
        self, arrays: dict[str, np.ndarray], lengths: np.ndarray, *, spans: bool = False
    ) -> None:
        self.arrays = arrays
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.spans = spans

    @property
    def megabytes(self) -> float:
        """Size of the stored signals (MB)."""
        return sum(a.nbytes for a in self.arrays.values()) / 1e6

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        """Look the signals up; padded positions are zero."""
        rows = batch.ids.cpu().numpy()
        device = batch.input_ids.device

        def pooled(name: str) -> Tensor:
            return torch.from_numpy(self.arrays[name][rows].astype(np.float32, copy=False)).to(
                device
            )

        positions = _positions(self.offsets, rows)
        real = batch.attention_mask.bool()

        def tokens(name: str) -> Tensor:
            found = self.arrays[name][positions].astype(np.float32, copy=False)
            stored = torch.from_numpy(found).to(device)
            states = stored.new_zeros(*real.shape, stored.shape[-1])
            states[real] = stored
            return states

        logits = tokens if self.spans else pooled
        signals = Signals(logits=logits("logits") if needs.logits else None)
        for kind in LAYERED:
            fetch = pooled if kind in POOLED else tokens
            for layer in getattr(needs, kind):
                getattr(signals, kind)[layer] = fetch(f"{kind}/{layer}")
        return signals


def _positions(offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where the tokens of these examples lie, one example after the other."""
    return np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])


def _array_shapes(split: Split, needs: Needs, width: int, outputs: int) -> dict[str, Array2D]:
    """Name -> shape of each array of a cache."""
    rows, tokens = len(split), int(split.lengths.sum())
    shapes: dict[str, Array2D] = {}
    if needs.logits:
        shapes["logits"] = (tokens if split.spans is not None else rows, outputs)
    for kind in LAYERED:
        for layer in sorted(getattr(needs, kind)):
            shapes[f"{kind}/{layer}"] = (rows if kind in POOLED else tokens, width)
    return shapes


def cache_megabytes(split: Split, needs: Needs, shape: Shape, outputs: int, dtype: str) -> float:
    """Size that a cache of these signals would have (MB)."""
    shapes = _array_shapes(split, needs, shape.width, outputs)
    numbers = sum(rows * columns for rows, columns in shapes.values())
    return numbers * np.dtype(dtype).itemsize / 1e6


@dataclass(frozen=True)
class CachePlan:
    """What a cache of signals is made of, and the key that protects it.

    Attributes:
        teacher: the model.
        split: the training rows as the teacher reads them.
        needs: the signals.
        dtype: ``float32`` or ``float16``.
        batch_size: rows of one teacher forward.
        device: where the teacher is.
        bf16: run it under bfloat16 autocast.
        own_tokens: True if ``split`` is in the tokens of the teacher's own tokenizer, False if in
            the student's. Its rows have the student's numbers either way.
    """

    teacher: PreTrainedModel
    split: Split
    needs: Needs
    dtype: str
    batch_size: int
    device: torch.device
    bf16: bool
    own_tokens: bool = False

    def fingerprint(self) -> str:
        """SHA-256 of the teacher's weights and architecture, tokens, signals and precision."""
        layers = {kind: sorted(getattr(self.needs, kind)) for kind in LAYERED}
        key = json.dumps(
            [
                FORMAT,
                weights_fingerprint(self.teacher),
                architecture(self.teacher.config),
                self.split.fingerprint(),
                self.needs.logits,
                layers,
                self.dtype,
                self.bf16,
            ],
            sort_keys=True,
        )
        return hashlib.sha256(key.encode()).hexdigest()

    def shapes(self) -> dict[str, Array2D]:
        """Name -> shape of each array."""
        width = int(self.teacher.config.hidden_size)
        return _array_shapes(self.split, self.needs, width, self.outputs)

    @property
    def outputs(self) -> int:
        """Width of the logits."""
        return int(self.teacher.config.num_labels or 1)

    def live(self, ledger: Ledger) -> LiveTeacher:
        """The teacher itself."""
        own = self.split if self.own_tokens else None
        return LiveTeacher(self.teacher, ledger, bf16=self.bf16, split=own)

    def cached(self, arrays: dict[str, np.ndarray]) -> CachedTeacher:
        """The stored signals."""
        return CachedTeacher(arrays, self.split.lengths, spans=self.split.spans is not None)


Advance = Callable[[int], None]


def build_in_memory(plan: CachePlan, ledger: Ledger, advance: Advance) -> CachedTeacher:
    """Run the teacher once over all rows and keep its signals in memory."""
    arrays = {name: np.empty(shape, plan.dtype) for name, shape in plan.shapes().items()}
    _fill(plan, arrays, ledger, advance)
    return plan.cached(arrays)


def build_on_disk(
    plan: CachePlan, store: Path, ledger: Ledger, advance: Advance, say: Callable[[str], None]
) -> CachedTeacher:
    """Open the cache of these signals, memory-mapped; build it first if it is absent.

    A cache is found by its fingerprint, so one of another teacher, tokenizer or data is never
    taken. One whose files were damaged is said to be, and built anew.

    Raises:
        UsageError: the disk is full, or ``dtype`` cannot hold the signals.
    """
    key = plan.fingerprint()
    folder = store / "signals" / key[:24]
    if folder.exists():
        damage = _damage(folder, key, plan.shapes())
        if damage is None:
            say(f"teacher signals: reused from the store ({folder.name})")
            return _open(folder, plan)
        say(f"teacher signals: the stored ones are damaged ({damage}); computing them again")
        broken = folder.with_name(f".{folder.name}.broken")
        shutil.rmtree(broken, ignore_errors=True)
        folder.rename(broken)
        shutil.rmtree(broken, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        arrays = {
            name: _new_file(temporary / _file(name), plan.dtype, shape)
            for name, shape in plan.shapes().items()
        }
        _fill(plan, arrays, ledger, advance)
        for array in arrays.values():
            array.flush()
        sums = {name: file_sum(temporary / _file(name)) for name in arrays}
        write_json(temporary / "index.json", {"format": FORMAT, "key": key, "sha256": sums})
    return _open(folder, plan)


def _new_file(path: Path, dtype: str, shape: Array2D) -> np.memmap:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # writing to a mapped page that the disk has no room for would kill the process
    reserve(path)
    return array


def _fill(
    plan: CachePlan, arrays: Mapping[str, np.ndarray], ledger: Ledger, advance: Advance
) -> None:
    live = LiveTeacher(plan.teacher, ledger, bf16=plan.bf16)  # the batches are its own
    offsets = np.concatenate([[0], np.cumsum(plan.split.lengths)])
    for rows in evaluation_batches(plan.split, plan.batch_size):
        batch = plan.split.batch(rows).to(plan.device)
        signals = live(batch, plan.needs)
        real = batch.attention_mask.bool()
        positions = _positions(offsets, rows)
        if signals.logits is not None and plan.split.spans is not None:
            _keep(arrays, "logits", positions, signals.logits[real])
        elif signals.logits is not None:
            _keep(arrays, "logits", rows, signals.logits)
        for kind in LAYERED:
            for layer, states in getattr(signals, kind).items():
                target = rows if kind in POOLED else positions
                values = states if kind in POOLED else states[real]
                _keep(arrays, f"{kind}/{layer}", target, values)
        advance(len(rows))


def _keep(arrays: Mapping[str, np.ndarray], name: str, target: np.ndarray, values: Tensor) -> None:
    with np.errstate(over="ignore"):
        kept = values.cpu().numpy().astype(arrays[name].dtype)
    if not np.isfinite(kept).all():
        raise UsageError(
            f"--signals.dtype: the teacher's {name} has values that {kept.dtype} cannot hold "
            f"(largest {values.abs().max().item():g}). Use --signals.dtype float32; where it is "
            f"that already, the teacher gives numbers that are not finite."
        )
    arrays[name][target] = kept


def _open(folder: Path, plan: CachePlan) -> CachedTeacher:
    arrays = {name: np.load(folder / _file(name), mmap_mode="r") for name in plan.shapes()}
    return plan.cached(arrays)


def _damage(folder: Path, key: str, shapes: dict[str, Array2D]) -> str | None:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["key"] != key or index["format"] != FORMAT:
            return "index.json belongs to other signals"
        for name in shapes:
            if file_sum(folder / _file(name)) != index["sha256"][name]:
                return f"{_file(name)} has changed"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return "index.json is unreadable"
    return None


def _file(name: str) -> str:
    return name.replace("/", "-") + ".npy"


def open_source(
    settings_source: str,
    limit_mb: float,
    plan: CachePlan,
    shape: Shape,
    store: Path,
    ledger: Ledger,
    advance: Advance,
    say: Callable[[str], None],
    *,
    taken_mb: float = 0.0,
) -> TeacherSource:
    """One teacher's signals as ``--signals.source`` asks for them.

    Args:
        settings_source: ``auto``, ``memory``, ``disk`` or ``live``.
        limit_mb: largest size of all that ``auto`` keeps in memory (MB).
        plan: teacher, rows and signals.
        shape: the teacher's shape.
        store: folder of the caches on disk.
        ledger: where teacher forwards are counted.
        advance: called with the number of rows finished.
        say: called with a line for the user.
        taken_mb: what the signals of other teachers take in memory already (MB).

    Raises:
        UsageError: the disk is full, the memory limit is not positive, or signals of tokens are
            asked of a teacher whose tokens are not the student's.
    """
    if limit_mb <= 0:
        raise UsageError(f"--signals.limit_mb must be positive, not {limit_mb}.")
    _check_tokens(plan)
    size = cache_megabytes(plan.split, plan.needs, shape, plan.outputs, plan.dtype)
    source = settings_source
    if source == "auto":
        source = "memory" if taken_mb + size <= limit_mb else "live"
        if source == "live":
            say(
                f"teacher signals: {taken_mb + size:,.0f} MB would not fit --signals.limit_mb "
                f"{limit_mb}; the teacher runs live on each batch"
            )
    if source == "live":
        return plan.live(ledger)
    if source == "disk":
        return build_on_disk(plan, store, ledger, advance, say)
    return build_in_memory(plan, ledger, advance)


def _check_tokens(plan: CachePlan) -> None:
    """A teacher with a tokenizer of its own has nothing to say of the student's tokens."""
    kinds = [kind for kind in LAYERED if kind not in POOLED and getattr(plan.needs, kind)]
    if plan.needs.logits and plan.split.spans is not None:
        kinds.append("logits")
    if plan.own_tokens and kinds:
        raise UsageError(
            f"--knowledge.pool: {', '.join(kinds)} of each token cannot be compared with a teacher "
            f"that has another tokenizer than the student. Take response, cls_hidden or another "
            f"kind on [CLS] states from it, or choose a teacher with the first one's tokenizer."
        )
