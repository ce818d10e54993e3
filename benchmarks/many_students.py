"""N students in one batched step against the same N in turn, side by side in one process.

    python benchmarks/many_students.py                                              on a GPU
    python benchmarks/many_students.py --device cpu --students 1 2 4 --shapes 2x128 --rounds 3

Ways: ``alone``: N updates of ordinary distillers, one after the other; ``loop`` and ``vmap``: the two
modes of ``--vectorize``. They take turns, so that a slow minute hits all of them; figures are medians over
rounds of one update of all N students, with all types of the pool on. Weights, tokens and teacher
signals are random: they do not matter for time. Signals are ready in memory, as a cache would have them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from ksel.config import KnowledgeConfig, OptimConfig
from ksel.data import Split
from ksel.distiller import Distiller
from ksel.knowledge import build_pool
from ksel.observing import Watched
from ksel.parts import DistillerParts
from ksel.stacked import StackedDistiller
from ksel.stacked_memory import GIB, state_bytes, work_bytes
from ksel.stages import build_stages
from ksel.tasks import get_task
from ksel.types import LAYERED, POOLED, Batch, Needs, Shape, Signals, TeacherView

TEACHER = Shape(layers=12, width=768, heads=12, feed_forward=3072)
VOCABULARY = 30522
HEAD_WIDTH = 64
WARM_UP = 3


def main() -> int:
    given = arguments()
    if given.device == "cuda" and not torch.cuda.is_available():
        return say_needs(given)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {name}; batches of "
        f"{given.batch} x {given.length} tokens; pool {' '.join(given.pool)}; bf16 "
        f"{given.device == 'cuda'}; median of {given.rounds} rounds"
    )
    print(
        "| student | N | alone ms | loop ms | vmap ms | alone / vmap | loop / vmap | range of "
        "alone / vmap | peak GiB |\n|" + " --- |" * 9
    )
    medians: dict[str, list[dict[str, float]]] = {}
    for shape in given.shapes:
        for students in given.students:
            times = measure(shape, students, given)
            print_row(shape, students, times, given.device)
            medians.setdefault(shape, []).append(middles(times))
            if given.plot is not None:
                draw(given.plot, given.students, medians)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--shapes", nargs="+", default=["2x128", "3x384"], help="layers x width")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--plot", type=Path, help="where to draw the cost against N (PNG)")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument(
        "--pool",
        nargs="+",
        default=["label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1"],
    )
    return parser.parse_args()


def say_needs(given: argparse.Namespace) -> int:
    """What the measurement needs that is not here."""
    print(
        "This needs a CUDA GPU, and torch sees none. --device cpu measures small N on a CPU.",
        file=sys.stderr,
    )
    for shape in given.shapes:
        distiller = make_distiller(shape, argparse.Namespace(**{**vars(given), "device": "cpu"}))
        most = max(given.students)
        need = most * (state_bytes(distiller) + work_bytes(distiller)) / GIB
        print(f"{shape}, {most} students: about {need:.1f} GiB of its memory", file=sys.stderr)
    return 1


class RandomTeacher:
    """Signals of a teacher that never ran, ready on the device."""

    cached = True

    def __init__(self) -> None:
        self.made: dict[tuple[object, ...], Tensor] = {}

    def keeps(self, needs: Needs) -> bool:
        return True

    def expect(self, ids: np.ndarray, needs: Needs) -> None:
        """Nothing has to be fetched."""

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        rows, length = batch.input_ids.shape
        device = batch.input_ids.device

        def make(*key: object, size: tuple[int, ...]) -> Tensor:
            if (key, size) not in self.made:
                self.made[key, size] = torch.randn(size, device=device)
            return self.made[key, size]

        signals = Signals(logits=make("logits", size=(rows, 2)) if needs.logits else None)
        for kind in LAYERED:
            size = (rows, TEACHER.width) if kind in POOLED else (rows, length, TEACHER.width)
            for layer in getattr(needs, kind):
                getattr(signals, kind)[layer] = make(kind, layer, size=size)
        return signals


def make_distiller(shape: str, given: argparse.Namespace) -> Distiller:
    """A student of this shape, e.g. ``3x384``, and all that an update of it takes."""
    layers, width = map(int, shape.split("x"))
    student = Shape(layers, width, max(width // HEAD_WIDTH, 1), 4 * width)
    config = BertConfig(
        vocab_size=given.vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=student.heads,
        intermediate_size=student.feed_forward,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).to(given.device)
    knowledge = KnowledgeConfig(pool=given.pool, relation_heads=student.heads)
    teachers = [TeacherView(TEACHER)]
    pool = build_pool(knowledge, task=get_task("qnli"), student=student, teachers=teachers, seed=0)
    rng = np.random.default_rng(0)
    rows = 8 * given.batch
    tokens = rng.integers(1000, given.vocabulary, (rows, given.length))
    lengths = np.full(rows, given.length)
    split = Split(list(tokens), None, torch.from_numpy(rng.integers(0, 2, rows)), lengths, 0)
    optim = OptimConfig()
    return Distiller(
        DistillerParts(
            student=model,
            pool=pool,
            sources=(RandomTeacher(),),
            train=split,
            batch_size=given.batch,
            bucket=1,
            optim=optim,
            knowledge=knowledge,
            stages=build_stages((), pool.names, optim.learning_rate),
            updates=10**6,
            watched=Watched(0.0, None, None),
            dropout=0.0,
            seed=0,
        )
    )


def measure(shape: str, students: int, given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of one update of all students in each round, by way."""
    distiller = make_distiller(shape, given)
    actions = np.ones((students, len(distiller.pool)), dtype=np.float32)
    loop = StackedDistiller(make_distiller(shape, given), students, "loop")
    vmap = StackedDistiller(make_distiller(shape, given), students, "vmap", say=print)
    for one in (distiller, loop, vmap):
        one.reset(data_seed=0, updates=10**6)

    def alone() -> None:
        for action in actions:
            distiller.update(action)

    ways: dict[str, Callable[[], object]] = {
        "alone": alone,
        "loop": lambda: loop.update(actions),
        "vmap": lambda: vmap.update(actions),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(given.rounds + WARM_UP):
        for way, work in ways.items():
            wait(given.device)
            start = time.perf_counter()
            work()
            wait(given.device)
            if number >= WARM_UP:
                times[way].append(time.perf_counter() - start)
    return times


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def middles(times: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds of each way."""
    return {way: statistics.median(values) for way, values in times.items()}


def draw(path: Path, students: list[int], medians: dict[str, list[dict[str, float]]]) -> None:
    """An update of N students against N, one panel for each shape."""
    figure, axes = plt.subplots(1, len(medians), figsize=(4.4 * len(medians), 3.6), squeeze=False)
    for axis, (shape, rows) in zip(axes[0], medians.items(), strict=True):
        for way in rows[0]:
            axis.plot(students[: len(rows)], [1000 * row[way] for row in rows], "o-", label=way)
        axis.set(xlabel="students N", ylabel="ms", title=f"an update of N students, {shape}")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def print_row(shape: str, students: int, times: dict[str, list[float]], device: str) -> None:
    """One row of the table."""
    middle = middles(times)
    ratios = sorted(a / v for a, v in zip(times["alone"], times["vmap"], strict=True))
    peak = f"{torch.cuda.max_memory_allocated() / GIB:.1f}" if device == "cuda" else "-"
    cells = [shape, str(students), *(f"{1000 * middle[way]:.1f}" for way in times)]
    cells += [f"{middle['alone'] / middle['vmap']:.2f}", f"{middle['loop'] / middle['vmap']:.2f}"]
    cells += [f"{ratios[0]:.2f}-{ratios[-1]:.2f}", peak]
    print(f"| {' | '.join(cells)} |", flush=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    sys.exit(main())
