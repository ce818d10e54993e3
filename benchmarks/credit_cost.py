"""What credit costs: against one backward pass for each type, and as the work grows.

    python benchmarks/credit_cost.py [--types 2 4 8 16 32] [--length 32 128 512] [--teacher_layers 6 12 24]

Random weights and tokens. All ways take turns in one process; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from random_students import many_types, random_distiller

from ksel.cli import quiet_libraries
from ksel.distiller import Distiller
from ksel.search_config import CreditConfig
from ksel.types import Shape


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--length", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--teacher_layers", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock",
        choices=("wall", "process"),
        default="wall",
        help="process: CPU time, for a machine with other work",
    )
    parser.add_argument("--out", type=Path, default=Path("credit_cost.json"))
    return parser.parse_args()


def shape(given: argparse.Namespace, layers: int) -> Shape:
    return Shape(layers, given.width, given.heads, 4 * given.width)


def take_turns(
    ways: dict[str, Callable[[], object]], given: argparse.Namespace
) -> dict[str, float]:
    """Median seconds of each way, one after the other in each round; the first round warms up."""
    clock = time.process_time if given.clock == "process" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if given.device != "cpu":
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def ways_to_credit(distiller: Distiller) -> dict[str, Callable[[], object]]:
    """A plain forward with all losses, K backward passes, and the two ways of credit."""
    credit = distiller.credit
    assert credit is not None
    distiller.update(np.ones(len(distiller.pool)), credit="hard")
    batch = distiller.next_batch()
    teachers = distiller._teach(batch)
    direction = credit.direction(distiller.optimizer)
    named = [p for n, p in distiller.student.named_parameters() if n in direction]

    def forward() -> object:
        with torch.no_grad():
            return credit._losses(batch, teachers, {})

    def backwards() -> object:
        return [
            torch.autograd.grad(loss, named, retain_graph=True, allow_unused=True)
            for loss in credit._losses(batch, teachers, {})
        ]

    def by(method: str) -> Callable[[], object]:
        def way() -> object:
            credit.settings.method = method  # type: ignore[assignment]
            return credit.derivatives(batch, teachers, direction)

        return way

    return {
        "forward": forward,
        "K backwards": backwards,
        "jvp": by("jvp"),
        "difference": by("difference"),
    }


def line(cells: list[object]) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def by_types(given: argparse.Namespace, length: int) -> list[dict[str, float]]:
    print(f"\ncredit of K types, {given.batch} rows of {length} tokens (times in ms)")
    names = ["K", "plain forward", "K backwards", "jvp", "difference"]
    line([*names, "K backwards / difference", "difference / forward", "jvp / forward"])
    line(["---"] * 8)
    found = []
    for count in given.types:
        distiller = random_distiller(
            shape(given, given.layers),
            shape(given, given.teacher_layers[0]),
            many_types(count),
            length=length,
            batch=given.batch,
            device=given.device,
            credit=CreditConfig(batch=0, clip=False),
        )
        times = take_turns(ways_to_credit(distiller), given)
        found.append({"types": count, "length": length, **times})
        line(
            [count]
            + [f"{1000 * t:.0f}" for t in times.values()]
            + [
                f"{times['K backwards'] / times['difference']:.1f}",
                f"{times['difference'] / times['forward']:.2f}",
                f"{times['jvp'] / times['forward']:.2f}",
            ]
        )
    return found


def two_updates(distiller: Distiller, credit: Literal["hard"] | None) -> None:
    for _ in range(2):
        distiller.update(np.ones(len(distiller.pool)), credit=credit)


def updates(given: argparse.Namespace, length: int, layers: int) -> dict[str, float]:
    """Seconds of an update with all of five types on and a teacher that runs on each batch."""
    distiller = random_distiller(
        shape(given, given.layers),
        shape(given, layers),
        many_types(5),
        length=length,
        batch=given.batch,
        device=given.device,
    )
    for number in range(6):
        distiller.update(np.ones(5), credit="hard" if number < 4 else None)
    ways: dict[str, Callable[[], object]] = {
        "plain": partial(two_updates, distiller, None),
        "credit": partial(two_updates, distiller, "hard"),
    }
    times = take_turns(ways, given)
    return {name: seconds / 2 for name, seconds in times.items()}


def growth(given: argparse.Namespace) -> list[dict[str, float]]:
    """Two updates at a time, so that each measurement has one pass for the derivatives (interval 2)."""
    print(f"\nan update with five types and a live teacher, {given.batch} rows (ms)")
    names = ["plain", "credit"]
    line(["length", "teacher layers", *names, "credit / plain"])
    line(["---"] * 5)
    cases = [(n, given.teacher_layers[0]) for n in given.length]
    cases += [(given.length[0], layers) for layers in given.teacher_layers[1:]]
    found = []
    for length, layers in cases:
        times = updates(given, length, layers)
        found.append({"length": length, "teacher_layers": layers, **times})
        cells = [f"{1000 * times[name]:.0f}" for name in names]
        line([length, layers, *cells, f"{times['credit'] / times['plain']:.2f}"])
    return found


def draw(given: argparse.Namespace, types: list[dict], grown: list[dict]) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    for name in ("forward", "K backwards", "jvp", "difference"):
        left.plot([r["types"] for r in types], [1000 * r[name] for r in types], "o-", label=name)
    left.set(xlabel="knowledge types K", ylabel="ms", title="credit of K types")
    left.legend(fontsize=8)
    by_length = [r for r in grown if r["teacher_layers"] == given.teacher_layers[0]]
    for name in ("plain", "credit"):
        middle.plot(
            [r["length"] for r in by_length], [1000 * r[name] for r in by_length], "o-", label=name
        )
    middle.set(xlabel="tokens", title="an update, five types", ylabel="ms")
    middle.legend(fontsize=8)
    by_layers = [r for r in grown if r["length"] == given.length[0]]
    for name in ("plain", "credit"):
        right.plot(
            [r["teacher_layers"] for r in by_layers],
            [1000 * r[name] for r in by_layers],
            "o-",
            label=name,
        )
    right.set(xlabel="teacher layers", title=f"an update, {given.length[0]} tokens", ylabel="ms")
    right.legend(fontsize=8)
    for axis in (left, middle, right):
        axis.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(given.out.with_suffix(".png"), dpi=110)


def main() -> None:
    given = arguments()
    quiet_libraries()
    torch.set_num_threads(given.threads)
    print(
        f"student {given.layers}x{given.width}, torch {torch.__version__}, {given.threads} threads, "
        f"{given.device}; medians of {given.rounds} rounds"
    )
    types = by_types(given, 64)
    grown = growth(given)
    given.out.write_text(json.dumps({"types": types, "growth": grown}))
    draw(given, types, grown)


if __name__ == "__main__":
    main()
