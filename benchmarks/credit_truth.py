"""Does credit tell the truth? Predicted effects of masks against true ones, at several points of training.

    python benchmarks/credit_truth.py --task sst2 --data DIR --teacher DIR --points 20 100 300 --hold 10 50 200

A student is trained with all types on. At each point it is put back again and again to

* take one gradient of each mask, then let momentum play out (ten updates with no gradient); the
  effect is the difference to the same without that gradient;
* hold each mask for so many updates.

Both effects are measured on the whole reward split and compared, over all masks, with what credit
predicts there: as shipped (running average, a few rows of one batch), and with less noise in one part
or one setting changed at a time. Prints Spearman's
rank correlations, writes everything to ``--out`` (JSON) and draws ``--out`` with the ending .png.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr

from ksel.cli import quiet_libraries
from ksel.credit import Credit, all_masks, few_rows, predict
from ksel.distiller import Distiller
from ksel.evaluation import predict_logits, score_split
from ksel.objectives import OBJECTIVES, objective_value, reads_states
from ksel.records import Snapshot
from ksel.search_config import credit_sizes
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare

PLAY_OUT = 10
"""Updates without a gradient after which momentum (0.9) has spent two thirds of itself; see DESIGN."""
SLOPE_BATCHES = 4
"""Training batches over which the slopes of a prediction are averaged, but for the one as shipped."""
HORIZONS = (5, 10, 20, 50, 100, 200)
"""Updates over which running averages reach that are kept beside the shipped one."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--store")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--reward", type=int, default=1024, help="rows of the reward split")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--updates", type=int, default=750, help="the step budget")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--points", type=int, nargs="+", default=[20, 100, 300])
    parser.add_argument("--hold", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--fine_tune_updates", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pool",
        nargs="+",
        default=["label", "response", "cls_hidden/skip", "hidden/skip", "sample_similarity"],
    )
    parser.add_argument("--out", type=Path, default=Path("credit_truth.json"))
    return parser.parse_args()


def build(given: argparse.Namespace) -> Setup:
    values: dict[str, Any] = {
        "task": given.task,
        "data": given.data,
        "teacher": given.teacher,
        "store": given.store,
        "seed": given.seed,
        "threads": given.threads,
        "device": given.device,
        "rows": {"train": given.rows, "reward": given.reward},
        "batching": {"max_length": given.max_length},
        "student": {"layers": given.layers},
        "fine_tune": {"max_updates": given.fine_tune_updates, "learning_rate": 1e-4},
        "knowledge": {"pool": given.pool},
        "optim": {
            "max_updates": given.updates,
            "learning_rate": given.learning_rate,
            "grad_norm_every": 0,
        },
        "env": {"reward": "amortized"},
    }
    return prepare(config_from_dict(values))


# --------------------------------------------------------------------------- true effects


def values(setup: Setup) -> dict[str, float]:
    """Each objective and the headline metric on the whole reward split."""
    config, split = setup.config, setup.reward
    logits = predict_logits(
        setup.student, split, batch_size=config.batching.eval_size, device=setup.device
    )
    assert split.labels is not None
    found = {
        name: objective_value(name, logits, split.labels, setup.task, config.env.margin_width)
        for name in OBJECTIVES
        if not (name == "margin" and setup.task.is_regression) and not reads_states(name)
    }
    metric = score_split(setup.task, logits, split, config.span)
    return {**found, "metric": next(iter(metric.values()))}


def after_one_gradient(setup: Setup, state: Snapshot, mask: np.ndarray) -> dict[str, float]:
    """Values after one gradient of a mask, momentum played out."""
    distiller = setup.distiller
    distiller.restore(state)
    distiller.update(mask)
    play_out(distiller, PLAY_OUT + (not mask.any()))
    return values(setup)


def play_out(distiller: Distiller, updates: int) -> None:
    """Optimiser steps with gradients of 0 for all that has a past."""
    optimizer = distiller.optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if optimizer.state[parameter]["step"].item() > 0:
                parameter.grad = torch.zeros_like(parameter)
    for _ in range(updates):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def held(
    setup: Setup, state: Snapshot, mask: np.ndarray, lengths: list[int]
) -> dict[int, dict[str, float]]:
    """Values after holding a mask for each of so many updates."""
    setup.distiller.restore(state)
    found = {}
    for update in range(1, max(lengths) + 1):
        setup.distiller.update(mask)
        if update in lengths:
            found[update] = values(setup)
    return found


# --------------------------------------------------------------------------- predictions


def fresh_average(credit: Credit, rows: int, first: int) -> None:
    """Replace the running average by the gradient of so many rows at the student as it is."""
    for total in credit.state.average.values():
        total.zero_()
    credit.state.count = 0.0
    credit.decay = 1.0
    for number in range(max(1, rows // credit.sizes.rows)):
        credit.add_held_out(first + number)


def predictions(
    setup: Setup,
    state: Snapshot,
    credit: Credit,
    masks: list[np.ndarray],
    *,
    batches: int = SLOPE_BATCHES,
    rows: int = 0,
) -> dict[str, list[float]]:
    """Predicted drop of each mask, with and without regard to clipping.

    Args:
        batches: training batches over which slopes are averaged.
        rows: rows of each of them; 0 = all.
    """
    distiller = setup.distiller
    slopes, grams = [], []
    kept = credit.state.copy()
    distiller.restore(state)
    credit.state = kept
    for number in range(batches):
        distiller.cursor = state.cursor + number
        batch = few_rows(distiller.next_batch(), rows)
        teachers = distiller._teach(batch)
        slopes.append(credit.derivatives(batch, teachers, credit.direction(distiller.optimizer))[0])
        if number == 0:
            grams.append(credit.gradient_products(batch, teachers))
    distiller.cursor = state.cursor
    weight = np.array(setup.pool.weights) / distiller.sizes.values()
    found = {}
    for name, gram in (("clip", grams[0]), ("no clip", None)):
        found[name] = [
            predict(
                np.mean(slopes, axis=0),
                gram,
                weight,
                mask,
                rate=distiller.parts.optim.learning_rate,
                limit=distiller.parts.optim.max_grad_norm,
                norm=0.0,
                soft=False,
            ).drop
            for mask in masks
        ]
    return found


def variant(setup: Setup, objective: str = "cross_entropy", **changes: Any) -> Credit:
    """A credit of its own with other settings; it has no past."""
    first = setup.distiller.credit
    assert first is not None
    config = setup.config
    settings = replace(first.settings, **{"rows": 32, **changes})
    return Credit(
        setup.distiller.tap,
        setup.pool,
        setup.reward,
        setup.task,
        objective,
        config.env.margin_width,
        settings,
        credit_sizes(settings, config.batching.size),
        config.batching.bucket,
        setup.ledger,
    )


def all_predictions(
    setup: Setup, state: Snapshot, masks: list[np.ndarray], trackers: list[Credit]
) -> dict[str, list[float]]:
    """The default, and one thing changed at a time: name -> predicted drop of each mask."""
    distiller = setup.distiller
    distiller.restore(state)
    credit = distiller.credit
    assert credit is not None
    rows = credit.sizes.batch
    shipped = predictions(setup, state, credit, masks, batches=1, rows=rows)
    found = {"as shipped": shipped["clip"]}
    for one in trackers:
        name = f"average over {one.settings.horizon}"
        found[name] = predictions(setup, state, one, masks)["clip"]
    first = 10_000  # rows in an order that training did not use
    total = len(setup.reward)
    for rows in (32, 128, 512, total):
        one = variant(setup)
        distiller.restore(state)
        fresh_average(one, rows, first)
        fresh = predictions(setup, state, one, masks)
        found[f"fresh, {rows} rows"] = fresh["clip"]
    found[f"fresh, {total} rows, blind to clipping"] = fresh["no clip"]
    changes: dict[str, dict[str, Any]] = {
        "no preconditioner": {"preconditioner": "none"},
        "with embeddings": {"embeddings": True},
    }
    for name, change in changes.items():
        one = variant(setup, **change)
        distiller.restore(state)
        fresh_average(one, total, first)
        found[f"fresh, {total} rows, {name}"] = predictions(setup, state, one, masks)["clip"]
    for objective in OBJECTIVES[1:]:
        if (objective == "margin" and setup.task.is_regression) or reads_states(objective):
            continue
        one = variant(setup, objective)
        distiller.restore(state)
        fresh_average(one, total, first)
        found[f"{objective}, {total} rows"] = predictions(setup, state, one, masks)["clip"]
    return found


# --------------------------------------------------------------------------- the study


def study(setup: Setup, given: argparse.Namespace) -> list[dict[str, Any]]:
    distiller = setup.distiller
    masks = list(all_masks(len(setup.pool)))
    ones = np.ones(len(setup.pool))
    found = []
    distiller.reset(given.seed, given.updates)
    trackers = [variant(setup, rows=8, horizon=horizon) for horizon in HORIZONS]
    for point in given.points:
        while distiller.cursor < point:
            for one in trackers:
                one.add_held_out(distiller.cursor)
            distiller.update(ones, credit="hard")
        state, start = distiller.snapshot(), time.perf_counter()
        here = values(setup)
        predicted = all_predictions(setup, state, masks, trackers)
        one = [after_one_gradient(setup, state, mask) for mask in masks]
        long = [held(setup, state, mask, given.hold) if mask.any() else {} for mask in masks]
        distiller.restore(state)
        found.append(
            {
                "point": point,
                "masks": [mask.astype(int).tolist() for mask in masks],
                "start": here,
                "predicted": predicted,
                "one gradient": one,
                "held": [{str(n): v for n, v in each.items()} for each in long],
                "seconds": time.perf_counter() - start,
            }
        )
        report(found[-1], given)
        save(given, setup, found)
    return found


def effects(result: dict[str, Any], what: str, value: str) -> np.ndarray:
    """[M] true drops of a value: of one gradient against none, or of holding against the start."""
    if what == "one gradient":
        return np.array([result[what][0][value] - each[value] for each in result[what]])
    start = result["start"][value]
    return np.array([start - each[what][value] for each in result["held"] if each])


def correlation(result: dict[str, Any], name: str, what: str, value: str) -> float:
    predicted = np.array(result["predicted"][name])
    if what != "one gradient":
        predicted = predicted[1:]
    return float(spearmanr(predicted, effects(result, what, value)).statistic)


def report(result: dict[str, Any], given: argparse.Namespace) -> None:
    kinds = ["one gradient", *map(str, given.hold)]
    print(f"\nafter {result['point']} updates: {result['start']} ({result['seconds']:.0f} s)")
    print(f"{'prediction':44}" + "".join(f"{k:>14}" for k in kinds))
    for name in result["predicted"]:
        numbers = [correlation(result, name, kind, "cross_entropy") for kind in kinds]
        print(f"{name:44}" + "".join(f"{number:14.2f}" for number in numbers))
    print("true drop of an objective against the gain in the metric:")
    for name in (n for n in result["start"] if n != "metric"):
        numbers = [
            float(
                spearmanr(effects(result, kind, name), -effects(result, kind, "metric")).statistic
            )
            for kind in kinds
        ]
        print(f"{name:44}" + "".join(f"{number:14.2f}" for number in numbers), flush=True)


def save(given: argparse.Namespace, setup: Setup, found: list[dict[str, Any]]) -> None:
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
    for private in ("data", "teacher", "store"):
        settings.pop(private)
    given.out.write_text(
        json.dumps({"settings": settings, "pool": setup.pool.names, "points": found})
    )
    draw(given, found)


def draw(given: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    """Predicted against true effects: two rows for each point, a column for each effect."""
    kinds = ["one gradient", *map(str, given.hold)]
    names = ["as shipped", f"fresh, {given.reward} rows"]
    rows = [(result, name) for result in found for name in names]
    figure, axes = plt.subplots(
        len(rows), len(kinds), figsize=(3.4 * len(kinds), 2.9 * len(rows)), squeeze=False
    )
    for row, (result, name) in zip(axes, rows, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            predicted = np.array(result["predicted"][name])
            predicted = predicted if kind == "one gradient" else predicted[1:]
            axis.scatter(predicted, effects(result, kind, "cross_entropy"), s=12)
            axis.axhline(0, color="0.8", zorder=0)
            axis.axvline(0, color="0.8", zorder=0)
            rank = correlation(result, name, kind, "cross_entropy")
            held_for = kind if kind == "one gradient" else f"held for {kind} updates"
            axis.set_title(
                f"{name}\nafter {result['point']}: {held_for}; rank correlation {rank:.2f}", size=8
            )
            axis.ticklabel_format(style="sci", scilimits=(-2, 3))
            axis.tick_params(labelsize=7)
        row[0].set_ylabel("true drop", size=8)
    for axis in axes[-1]:
        axis.set_xlabel("predicted drop of one update", size=8)
    figure.tight_layout()
    figure.savefig(given.out.with_suffix(".png"), dpi=110)
    plt.close(figure)


def main() -> None:
    given = arguments()
    quiet_libraries()
    setup = build(given)
    found = study(setup, given)
    print("\nmedian over the points:")
    for name in found[0]["predicted"]:
        numbers = [
            np.median([correlation(r, name, kind, "cross_entropy") for r in found])
            for kind in ["one gradient", *map(str, given.hold)]
        ]
        print(f"{name:44}" + "".join(f"{number:14.2f}" for number in numbers))


if __name__ == "__main__":
    main()
