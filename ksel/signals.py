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
    """Runs the teacher on each batch it is asked for."""

    cached = False

    def __init__(self, teacher: PreTrainedModel, ledger: Ledger, *, bf16: bool = False) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.tap = Tap(teacher, bf16=bf16)
        self.ledger = ledger

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        """One teacher forward, in evaluation mode and without gradients."""
        if not needs:
            return Signals()
        self.teacher.eval()
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
            kinds ``<kind>/<layer>`` [tokens, h] with the examples one after the other.
        lengths: [N] real tokens of each example.
    """

    cached = True

    def __init__(self, arrays: dict[str, np.ndarray], lengths: np.ndarray) -> None:
        self.arrays = arrays
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])

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

        signals = Signals(logits=pooled("logits") if needs.logits else None)
        for kind in LAYERED:
            fetch = pooled if kind in POOLED else tokens
            for layer in getattr(needs, kind):
                getattr(signals, kind)[layer] = fetch(f"{kind}/{layer}")
        return signals


def _positions(offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where the tokens of these examples lie, one example after the other."""
    return np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])


def cache_megabytes(split: Split, needs: Needs, shape: Shape, outputs: int, dtype: str) -> float:
    """Size that a cache of these signals would have (MB)."""
    size = np.dtype(dtype).itemsize
    numbers = len(split) * (outputs * needs.logits + shape.width * len(needs.cls))
    token_layers = sum(len(getattr(needs, kind)) for kind in LAYERED if kind not in POOLED)
    numbers += int(split.lengths.sum()) * shape.width * token_layers
    return numbers * size / 1e6


@dataclass(frozen=True)
class CachePlan:
    """What a cache of signals is made of, and the key that protects it."""

    teacher: PreTrainedModel
    split: Split
    needs: Needs
    dtype: str
    batch_size: int
    device: torch.device
    bf16: bool

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

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name -> shape of each array."""
        rows, tokens = len(self.split), int(self.split.lengths.sum())
        width = int(self.teacher.config.hidden_size)
        shapes: dict[str, tuple[int, int]] = {}
        if self.needs.logits:
            shapes["logits"] = (rows, int(self.teacher.config.num_labels or 1))
        for kind in LAYERED:
            for layer in sorted(getattr(self.needs, kind)):
                shapes[f"{kind}/{layer}"] = (rows if kind in POOLED else tokens, width)
        return shapes


Advance = Callable[[int], None]


def build_in_memory(plan: CachePlan, ledger: Ledger, advance: Advance) -> CachedTeacher:
    """Run the teacher once over all rows and keep its signals in memory."""
    arrays = {name: np.empty(shape, plan.dtype) for name, shape in plan.shapes().items()}
    _fill(plan, arrays, ledger, advance)
    return CachedTeacher(arrays, plan.split.lengths)


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


def _new_file(path: Path, dtype: str, shape: tuple[int, int]) -> np.memmap:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # writing to a mapped page that the disk has no room for would kill the process
    reserve(path)
    return array


def _fill(
    plan: CachePlan, arrays: Mapping[str, np.ndarray], ledger: Ledger, advance: Advance
) -> None:
    live = LiveTeacher(plan.teacher, ledger, bf16=plan.bf16)
    offsets = np.concatenate([[0], np.cumsum(plan.split.lengths)])
    for rows in evaluation_batches(plan.split, plan.batch_size):
        batch = plan.split.batch(rows).to(plan.device)
        signals = live(batch, plan.needs)
        if signals.logits is not None:
            _keep(arrays, "logits", rows, signals.logits)
        real = batch.attention_mask.bool()
        positions = _positions(offsets, rows)
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
    return CachedTeacher(arrays, plan.split.lengths)


def _damage(folder: Path, key: str, shapes: dict[str, tuple[int, int]]) -> str | None:
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
) -> TeacherSource:
    """The teacher's signals as ``--signals.source`` asks for them.

    Args:
        settings_source: ``auto``, ``memory``, ``disk`` or ``live``.
        limit_mb: largest cache that ``auto`` keeps in memory (MB).
        plan: teacher, rows and signals.
        shape: the teacher's shape.
        store: folder of the caches on disk.
        ledger: where teacher forwards are counted.
        advance: called with the number of rows finished.
        say: called with a line for the user.

    Raises:
        UsageError: the disk is full, or the memory limit is not positive.
    """
    if limit_mb <= 0:
        raise UsageError(f"--signals.limit_mb must be positive, not {limit_mb}.")
    size = cache_megabytes(
        plan.split, plan.needs, shape, int(plan.teacher.config.num_labels or 1), plan.dtype
    )
    source = settings_source
    if source == "auto":
        source = "memory" if size <= limit_mb else "live"
        if source == "live":
            say(
                f"teacher signals: {size:,.0f} MB would not fit --signals.limit_mb {limit_mb}; "
                f"the teacher runs live on each batch"
            )
    if source == "live":
        return LiveTeacher(plan.teacher, ledger, bf16=plan.bf16)
    if source == "disk":
        return build_on_disk(plan, store, ledger, advance, say)
    return build_in_memory(plan, ledger, advance)
