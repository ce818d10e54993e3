"""Do offline estimates hold? Estimates from logged random masks against what policies truly earn.

    python benchmarks/offline_check.py --episodes 12 --policies all static:label random_hard:0.65 RUN \\
        --task rte --data DIR --teacher tiny --optim.max_updates 40 --env.reward amortized

All other options are the settings of a run. ``--episodes`` students are trained with random masks (each
type on half of the time) under seeds 0, 1, ..., which is what is logged. Then, for each policy:

* decision: at every logged state a copy of the student takes one decision of the policy's, and is put
  back: the mean of what it was paid is the true value of what ``ksel.offline`` estimates;
* episode: the policy leads students of its own, under the same seeds: the mean total is its true value.

Prints estimates beside true values, and how often the intervals hold the true value; ``--out``: JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.fixed import random_hard_policy
from agents.policy import Policy
from agents.rollout import play
from envs.distillation import DistillationEnv
from envs.recording import Recorder
from ksel.cli import guard, quiet_libraries
from ksel.estimators import decision_estimates, episode_estimates
from ksel.logged import see
from ksel.offline import find_policy, judge, payment_of
from ksel.saved import SavedRun
from ksel.settings import parse_run
from ksel.setup import prepare
from ksel.trajectories import Trajectories
from ksel.trajectory import ScheduleWriter, load


def log_runs(env: DistillationEnv, seeds: Sequence[int], folder: Path) -> Trajectories:
    """Train a student with random masks for each seed; one episode each."""
    meta = {"soft": False, "task": env.setup.config.task, "agent": "random_hard", "seed": 0}
    writer = ScheduleWriter(env.pool_names, env.feature_names, meta)
    policy = random_hard_policy(0.5, env.pool_names)
    recorder = Recorder(env, "search", writer)
    for seed in seeds:
        play(policy, recorder, seed=seed, measure=True)
    writer.write(folder / "schedule.parquet")
    return load(folder)


def decision_truth(
    env: DistillationEnv,
    logged: Trajectories,
    seeds: Sequence[int],
    policies: list[Policy],
    draws: int,
) -> np.ndarray:
    """What one decision of each policy is paid at each logged state, mean over draws, [N, P]."""
    paid = np.full((len(logged), len(policies)), np.nan)
    for number, seed in enumerate(seeds):
        rows = np.flatnonzero(logged.episodes == number)
        observation, _ = env.reset(seed=seed, options={"measure": True, "observe": True})
        for policy in policies:
            policy.reset(np.random.default_rng([seed, 77]))
        state = None
        for row in rows:
            state = env.get_snapshot(state)
            for index, policy in enumerate(policies):
                found: list[float] = []
                while len(found) < draws:
                    choice = policy.act(observation)
                    found.append(env.step(choice.action)[1])
                    env.set_snapshot(state)
                    if np.array_equal(choice.action, choice.probabilities):
                        break  # certain: one draw says it all
                paid[row, index] = np.mean(found)
            observation, reward, *_ = env.step(logged.actions[row])
            assert np.isclose(reward, logged.rewards[row], atol=1e-4), "the log was not repeated"
    return paid


def episode_truth(env: DistillationEnv, seeds: Sequence[int], policy: Policy) -> np.ndarray:
    """Total reward of students led by the policy, one for each seed."""
    writer = ScheduleWriter(
        env.pool_names, env.feature_names, {"soft": False, "task": "", "agent": "", "seed": 0}
    )
    recorder = Recorder(env, "final", writer)
    return np.array([play(policy, recorder, seed=seed, measure=True).rewards[0] for seed in seeds])


def main(argv: list[str]) -> int:
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--policies", nargs="+", required=True)
    parser.add_argument("--draws", type=int, default=1, help="of a policy at each logged state")
    parser.add_argument("--out", type=Path)
    own, rest = parser.parse_known_args(argv)
    config = replace(parse_run(rest), references=[])
    env = DistillationEnv(setup=prepare(config), soft=False)
    seeds = list(range(own.episodes))
    with tempfile.TemporaryDirectory() as folder:
        logged = log_runs(env, seeds, Path(folder))
    policies = [find_policy(spec, logged) for spec in own.policies]
    paid = decision_truth(env, logged, seeds, policies, own.draws)
    payment = payment_of([SavedRun(Path(), config, {}, {})], False)
    record: list[dict[str, Any]] = []
    for index, (name, policy) in enumerate(zip(own.policies, policies, strict=True)):
        log = see(logged, judge(logged, policy, 0), payment)
        by_episode = np.array([paid[logged.episodes == n, index].mean() for n in seeds])
        totals = episode_truth(env, seeds, policy)
        for quantity, values, estimates in (
            ("decision", by_episode, decision_estimates(log)),
            ("episode", totals, episode_estimates(log)),
        ):
            error = values.std(ddof=1) / len(values) ** 0.5
            truth = {"policy": name, "true": float(values.mean()), "true_error": float(error)}
            record += [truth | asdict(one) | {"quantity": quantity} for one in estimates]
    show(record)
    if own.out is not None:
        own.out.parent.mkdir(parents=True, exist_ok=True)
        own.out.write_text(json.dumps({"settings": rest, "estimates": record}, indent=2))
    return 0


def show(record: list[dict[str, Any]]) -> None:
    print(
        "| policy | quantity | true (standard error) | estimator | estimate | 95 % interval | holds | effective |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    held: dict[str, list[bool]] = {}
    for one in record:
        if one["estimator"] == "logged":
            continue
        head = f"| {Path(one['policy']).name} | {one['quantity']} | {one['true']:.3f} ({one['true_error']:.3f})"
        head += f" | {one['estimator'].replace('_', ' ')}"
        effective = f"{one['effective']:.0f} of {one['count']}"
        if one["value"] is None:
            print(f"{head} | - | - | - | {effective} |")
            continue
        holds = one["low"] <= one["true"] <= one["high"]
        held.setdefault(one["estimator"], []).append(holds)
        interval = f"{one['low']:.3f} to {one['high']:.3f}"
        words = "yes" if holds else "NO"
        print(f"{head} | {one['value']:.3f} | {interval} | {words} | {effective} |")
    for name, found in held.items():
        print(
            f"{name.replace('_', ' ')}: {sum(found)} of {len(found)} intervals hold the true value"
        )


if __name__ == "__main__":
    sys.exit(guard(main))
