"""How many students the memory holds: an estimate before the run, and out-of-memory met by halving."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ksel.distiller import Distiller
from ksel.embeddings import word_embeddings
from ksel.errors import UsageError
from ksel.machine import free_memory
from ksel.models import shape_of

GIB = 2**30
LAYER_STATES = 9
"""States of the hidden width that backward keeps of one layer, feed-forward left aside."""
MAPS = 4
"""Copies of a map [b, heads, n, n] that attention, or a loss on relations, keeps for backward."""


def changing(distiller: Distiller) -> list[Tensor]:
    """The parameters that training moves: those with a gradient, and lazy word embeddings."""
    trained: list[Tensor] = list(distiller.parameters)
    if distiller.parts.optim.embeddings == "lazy":
        trained.append(word_embeddings(distiller.student).weight)
    return trained


def state_bytes(distiller: Distiller) -> int:
    """What one student keeps between updates: weights and AdamW's moments (bytes)."""
    return _bytes((*changing(distiller), *distiller._moments))


def work_bytes(distiller: Distiller) -> int:
    """What one student's update takes beside that: gradients, and an estimate of what backward keeps.

    The estimate is for the longest row of the training split, in float32, without fused attention.
    """
    parts, shape = distiller.parts, shape_of(distiller.student.config)
    rows = -(-parts.batch_size // parts.optim.accumulate)
    length = int(parts.train.lengths.max())
    maps = shape.layers * shape.heads
    for type in distiller.pool:
        related = type.student.query | type.student.value | type.student.attention_output
        maps += len(related | type.student.key) * shape.heads
    states = shape.layers * (LAYER_STATES * shape.width + 2 * shape.feed_forward)
    activations = 4 * rows * length * (states + MAPS * maps * length)
    return activations + _bytes(distiller.parameters)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device (bytes); None where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory()


def chunk_size(
    distiller: Distiller, students: int, mode: str, say: Callable[[str], None] | None
) -> int:
    """How many students go through one batched step.

    Args:
        distiller: whose students they are.
        students: N.
        mode: ``loop`` or ``vmap``.
        say: called with a line for the user where not all fit into one step.

    Raises:
        UsageError: the memory does not even hold their states and one student's update.
    """
    free = free_bytes(distiller.device)
    if free is None:
        return students
    state, work = state_bytes(distiller), work_bytes(distiller)
    if students * state + work > free:
        most = max((free - work) // state, 0)
        hold = f"room for about {most}" if most else "no room for one beside what is loaded"
        raise UsageError(
            f"--students {students}: their weights and optimiser states take about "
            f"{students * state / GIB:.1f} GiB, an update {work / GIB:.1f} GiB more, and "
            f"{free / GIB:.1f} GiB of memory are free: {hold}. Lower --students, --batching.size "
            f"or --student.width."
        )
    if mode == "loop":
        return students
    chunk = min(students, (free - students * state) // work)
    if chunk < students and say is not None:
        say(f"{students} students: {chunk} at a time in one step, by an estimate of the memory")
    return int(chunk)
