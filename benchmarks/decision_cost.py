"""What a decision of all_action costs, against a plain distillation step with all types on.

    python benchmarks/decision_cost.py --task qnli --data DIR --teacher DIR [--rows 1200] [--updates 200]

Two students of one kind take turns in one process, ``--block`` updates at a time, on the same batches,
with teacher signals that are kept (computed before anything is timed). One learns under all_action at
its default settings: credit, windows, the agent and its learning included. The other has all types on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from agents.all_action import AllAction
from agents.make import resolve_reward
from envs.distillation import DistillationEnv
from ksel.cli import quiet_libraries
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", default="qnli")
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--store")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--block", type=int, default=10, help="updates in one turn")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    return parser.parse_args()


def build(given: argparse.Namespace, reward: str) -> Setup:
    values: dict[str, Any] = {
        "task": given.task,
        "data": given.data,
        "teacher": given.teacher,
        "store": given.store,
        "threads": given.threads,
        "device": given.device,
        "rows": {"train": given.rows},
        "batching": {"max_length": given.max_length},
        "student": {"layers": given.layers},
        "fine_tune": {"max_updates": 2},
        "optim": {"max_updates": given.updates},
        "env": {"reward": reward},
    }
    return prepare(config_from_dict(values))


def warm(setup: Setup, env: DistillationEnv) -> None:
    """Have the teacher compute what it keeps, and each type its first size."""
    env.reset(seed=0, options={"measure": False, "updates": setup.updates})
    for number in range(-(-len(setup.train) // setup.config.batching.size)):
        batch = setup.train.batch(env.distiller.order.rows(number)).to(setup.device)
        env.distiller._teach(batch)


def main() -> None:
    given = arguments()
    quiet_libraries()
    clock = CLOCKS[given.clock]
    first, second = build(given, resolve_reward("all_action", "auto")), build(given, "measured")
    learning, plain = DistillationEnv(setup=first), DistillationEnv(setup=second)
    for env in (learning, plain):
        warm(env.setup, env)
    plain.reset(seed=0, options={"measure": False})
    agent = AllAction(learning, seed=0)
    times: dict[str, list[float]] = {"all_action": [], "plain": []}
    ones, masks = np.ones(len(first.pool)), []
    for number in range(given.updates // given.block):
        start = clock()
        agent.learn(given.block, reset_num_timesteps=number == 0)
        middle = clock()
        for _ in range(given.block):
            plain.step(ones)
        if number:  # the first turn has each type's first gradients
            times["all_action"].append((middle - start) / given.block)
            times["plain"].append((clock() - middle) / given.block)
        masks.append(learning._features.blocks[4].mean())
    ratios = [a / b for a, b in zip(times["all_action"], times["plain"], strict=True)]
    for name, values in times.items():
        print(f"{name:12} {1000 * statistics.median(values):8.1f} ms per update (median of turns)")
    print(
        f"ratio {statistics.median(ratios):.2f} (median of {len(ratios)} pairs of turns, quartiles "
        f"{np.quantile(ratios, 0.25):.2f} to {np.quantile(ratios, 0.75):.2f}); mean over all "
        f"{sum(times['all_action']) / sum(times['plain']):.2f}; share of types on {masks[-1]:.2f}"
    )
    spent = first.ledger.seconds
    counted = first.ledger.examples
    parts = (f"{k} {v:.1f} s ({counted.get(k, 0):,} rows)" for k, v in sorted(spent.items()))
    print("all_action: " + ", ".join(parts))


if __name__ == "__main__":
    main()
