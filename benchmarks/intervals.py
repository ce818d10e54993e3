"""Coverage of the intervals and error rate of the test that ``ksel.compare`` prints, simulated.

    python benchmarks/intervals.py

Draws paired differences with a known mean, asks ksel.statistics, and counts how often the interval
holds the truth (nominal 0.95) and how often the corrected test claims an effect that is not there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from ksel.statistics import holm, improvement, sign_flip_test, stratified_interval, t_interval

Draw = Callable[[np.random.Generator, int], np.ndarray]

# Differences of two students' scores: bell-shaped; on a dev split of 277 rows (steps of 1 / 277);
# skewed; and with one seed in ten on which one of the two never leaves chance.
SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0.0, 1.0, n), 0.0),
    "in steps": (lambda rng, n: np.round(rng.normal(0.0, 0.01, n) * 277) / 277, 0.0),
    "skewed": (lambda rng, n: rng.exponential(1.0, n) - 1.0, 0.0),
    "failing": (lambda rng, n: rng.normal(0.0, 0.1, n) + (rng.random(n) < 0.1), 0.1),
}


def coverage(draw: Draw, truth: float, tasks: int, seeds: int, trials: int) -> tuple[float, ...]:
    """Share of trials whose BCa, and whose t interval, holds the truth; and BCa's mean width."""
    rng = np.random.default_rng(1)
    inside, by_t, widths = 0, 0, []
    for _ in range(trials):
        groups = [draw(rng, seeds) for _ in range(tasks)]
        found, student = stratified_interval(groups), t_interval(groups)
        inside += found.low <= truth <= found.high
        by_t += student.low <= truth <= student.high
        widths.append((found.high - found.low) / (student.high - student.low))
    return inside / trials, by_t / trials, float(np.nanmean(widths))


def false_claims(methods: int, tasks: int, seeds: int, trials: int) -> float:
    """Share of tables without any effect in which a corrected p is below 0.05."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(trials):
        baseline = rng.normal(size=(tasks, seeds))
        scores = rng.normal(size=(methods, tasks, seeds))
        wrong += min(holm([sign_flip_test(list(s - baseline)).p for s in scores])) < 0.05
    return wrong / trials


def improvement_coverage(chance: float, seeds: int, trials: int) -> float:
    """Share of trials whose interval of the probability of improvement holds it."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(trials):
        found = improvement(np.where(rng.random(seeds) < chance, 1.0, -1.0))[1]
        inside += found.low <= chance <= found.high
    return inside / trials


def main() -> None:
    """Print the tables of docs/statistics.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    print("| differences | tasks | seeds | BCa | t | width of BCa / t |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (draw, truth) in SHAPES.items():
        for tasks, seeds in ((1, 5), (1, 10), (1, 20), (5, 5), (5, 10)):
            bca, student, width = coverage(draw, truth, tasks, seeds, trials)
            print(f"| {name} | {tasks} | {seeds} | {bca:.3f} | {student:.3f} | {width:.2f} |")
    print("\n| methods | tasks | seeds | tables with a false claim |")
    print("| --- | --- | --- | --- |")
    for methods, tasks, seeds in ((1, 1, 5), (1, 1, 10), (6, 1, 10), (6, 5, 5), (6, 5, 10)):
        rate = false_claims(methods, tasks, seeds, trials if tasks * seeds <= 25 else trials // 4)
        print(f"| {methods} | {tasks} | {seeds} | {rate:.3f} |")
    print("\n| probability of improvement | seeds | coverage |")
    print("| --- | --- | --- |")
    for chance in (0.5, 0.7, 0.9):
        for seeds in (5, 10, 25):
            print(f"| {chance} | {seeds} | {improvement_coverage(chance, seeds, trials):.3f} |")


if __name__ == "__main__":
    main()
