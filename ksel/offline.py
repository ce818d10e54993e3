"""``python -m ksel.offline RUN... --policy P...``: what other policies would have earned on logged runs."""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from agents.fixed import random_hard_policy, random_soft_policy, static_policy
from agents.likelihood import consider
from agents.policy import HEADER, Policy, load_policy, read_header, refuse_other_pool
from envs.reward import LIMIT
from ksel.artifacts import versions
from ksel.cli import guard
from ksel.errors import UsageError
from ksel.estimators import (
    CLIP,
    LEAST_DECISIONS,
    LEAST_EPISODES,
    RESAMPLES,
    Estimate,
    decision_estimates,
    episode_estimates,
)
from ksel.files import atomic_folder, write_json, write_text
from ksel.logged import Judged, Payment, see
from ksel.offline_page import page
from ksel.saved import POLICY, SavedRun, open_run
from ksel.trajectories import STAGES, Trajectories
from ksel.trajectory import load

PROG = "python -m ksel.offline"
FIXED = "all, none, uniform, random_hard[:P], static:TYPE,TYPE"
PAYS = (
    *("task", "reward", "objective", "margin_width", "reward_scale", "cost_per_type"),
    *("exploration", "final_metric", "phase_steps"),
)
"""Settings that decide what a reward is; all but the first are of the group ``env``."""
UNPAID = {
    "best_static": "which is paid once for a whole play",
    "race": "which measures where a heat ends, and is paid nothing",
}
"""Agents whose decisions have no reward of their own, and why."""
SHOWN = ("direct", "importance", "doubly_robust")
ABOUT = {
    "decision": "mean reward per decision, asked at the logged states (training goes on as logged)",
    "episode": "total reward of an episode led from the start",
}

ELSEWHERE = """per decision: at the states the logged students went through; led by another policy \
they would have gone elsewhere. ksel.replay plays a policy for true."""


@dataclass(frozen=True)
class Result:
    """The estimates for one policy.

    Attributes:
        name: of the policy.
        estimates: of both quantities.
        left_out: what of the logs its weighted estimates do without, and why; else empty.
        at_home: True if it was learned in one of these runs.
    """

    name: str
    estimates: list[Estimate]
    left_out: str = ""
    at_home: bool = False


def main(argv: list[str]) -> int:
    """Estimate, print the tables, leave ``offline.json`` and ``offline.html``."""
    own = parse(argv)
    runs = [open_run(folder) for folder in own.runs]
    _refuse_other_rewards(runs)
    _refuse_whole_plays(runs)
    logged = load(*own.runs, stages=own.stages)
    payment = payment_of(runs, own.reward == "drop")
    _refuse_unpaid(logged, payment)
    policies = [find_policy(spec, logged) for spec in own.policy]
    results = [
        _result(name, spec, policy, runs, logged, payment, own)
        for name, spec, policy in zip(_names(own.policy), own.policy, policies, strict=True)
    ]
    notes = [*_notes(runs, logged, own.reward), *_result_notes(results)]
    record = _record(own, runs, logged, results, notes)
    for quantity in ABOUT:
        if _given(quantity, results):
            Console(highlight=False).print(_table(quantity, results))
        else:
            print(f"{ABOUT[quantity]}: none can be given")
        for line in _reasons(quantity, results):
            print(line)
    for line in notes:
        print(line)
    print(f"written: {_write(own, runs, record)}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UsageError: a value outside its range, or a policy named twice.
        SystemExit: after ``--help``, or on words that are no options.
    """
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Estimate what other policies would have earned on logged runs.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    parser.add_argument(
        "--policy",
        nargs="+",
        required=True,
        metavar="P",
        help=f"a run's folder or its policy/ folder (the frozen policy), or a fixed one: {FIXED}",
    )
    parser.add_argument(
        "--stages", nargs="+", default=["search", "final"], help=f"of {', '.join(STAGES)}"
    )
    parser.add_argument(
        "--reward",
        default="paid",
        choices=("paid", "drop"),
        help="paid: what the agent was paid; drop: the measured drop of the objective, unscaled",
    )
    parser.add_argument("--clip", type=float, default=CLIP, help="where importance weights are cut")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of policies")
    parser.add_argument("--out", type=Path, help="folder to write; default RUN/offline/TIME")
    own = parser.parse_args(list(argv))
    if not (math.isfinite(own.clip) and own.clip >= 1):
        raise UsageError(f"--clip is {own.clip:g}; give a number from 1 on, such as {CLIP:g}.")
    if own.resamples < 100:
        raise UsageError(f"--resamples is {own.resamples}; give 100 or more.")
    if own.seed < 0:
        raise UsageError(f"--seed is {own.seed}; give 0 or more.")
    twice = {spec for spec in own.policy if own.policy.count(spec) > 1}
    if twice:
        raise UsageError(f"--policy: {', '.join(sorted(twice))} is named twice. Name it once.")
    if own.out is not None and own.out.exists():
        raise UsageError(f"--out: {own.out} exists; nothing is overwritten. Name a new folder.")
    return own


# --------------------------------------------------------------------------- what is asked for


def find_policy(spec: str, logged: Trajectories) -> Policy:
    """A policy by its folder or its name.

    Args:
        spec: a run's folder, a policy's folder, or one of :data:`FIXED`.
        logged: gives the pool, the features and the kind of action that it must fit.

    Raises:
        UsageError: there is no such policy, or it does not fit (the differences are named).
    """
    folder = next((f for f in (Path(spec) / POLICY, Path(spec)) if (f / HEADER).is_file()), None)
    if folder is None and Path(spec).is_dir():
        raise UsageError(
            f"--policy: {spec} holds no frozen policy (no {POLICY}/{HEADER}). Give a run that "
            f"came to its final student, or a fixed policy: {FIXED}."
        )
    policy = _fixed(spec, logged) if folder is None else _frozen(folder, logged)
    if policy.soft != logged.soft:
        kinds = {True: "weights (soft)", False: "bits (hard)"}
        raise UsageError(
            f"--policy: {spec} takes {kinds[policy.soft]}, and the runs were logged with "
            f"{kinds[logged.soft]}. Give runs and policies of one kind of action."
        )
    return policy


def _names(specs: Sequence[str]) -> list[str]:
    """Short names: a run's folder without its path, unless two are the same then."""
    short = []
    for spec in specs:
        path = Path(spec).resolve()
        name = path.parent.name if path.name == POLICY else path.name
        short.append(name if path.is_dir() else spec)
    return [n if short.count(n) == 1 else spec for n, spec in zip(short, specs, strict=True)]


def _frozen(folder: Path, logged: Trajectories) -> Policy:
    header = read_header(folder)
    refuse_other_pool(folder, header["pool"], logged.pool, logged=True)
    beyond = [name for name, _ in header["observation"] if name != "training"]
    if beyond:
        raise UsageError(
            f"--policy: the policy in {folder} looks at {', '.join(beyond)}, and schedule.parquet "
            f"holds 'training' alone. Give a policy learned with --env.observe '[training]'."
        )
    observation = {"training": (len(logged.features),)}
    return load_policy(folder, pool=logged.pool, observation=observation)


def _fixed(spec: str, logged: Trajectories) -> Policy:
    name, _, more = spec.partition(":")
    if spec in ("all", "none"):
        return static_policy([spec], logged.pool, logged.soft, "--policy")
    if name == "static" and more:
        return static_policy(more.split(","), logged.pool, logged.soft, "--policy")
    if spec == "uniform":
        return (
            random_soft_policy(logged.pool) if logged.soft else random_hard_policy(0.5, logged.pool)
        )
    if name == "random_hard":
        try:
            chance = float(more) if more else 0.5
        except ValueError:
            chance = math.nan
        if not 0 <= chance <= 1:
            raise UsageError(
                f"--policy: {spec}: '{more}' is no probability. Write random_hard:0.3."
            )
        return random_hard_policy(chance, logged.pool)
    raise UsageError(
        f"--policy: '{spec}' is neither the folder of a run or policy nor a fixed policy. "
        f"Fixed: {FIXED}."
    )


def _pays(run: SavedRun) -> dict[str, Any]:
    env = {f"env.{name}": getattr(run.config.env, name) for name in PAYS[1:]}
    return {"task": run.config.task, **env}


def _refuse_other_rewards(runs: Sequence[SavedRun]) -> None:
    first, parts = _pays(runs[0]), []
    for run in runs[1:]:
        other = _pays(run)
        parts += [
            f"{run.folder} has --{name} {other[name]}, not {first[name]}"
            for name in first
            if other[name] != first[name]
        ]
    if parts:
        raise UsageError(
            f"RUN: the rewards of these runs are not the same quantity. Compared with "
            f"{runs[0].folder}: {'; '.join(parts)}. Estimate them apart."
        )


def payment_of(runs: Sequence[SavedRun], drops: bool) -> Payment:
    """How the rewards of runs came about.

    Raises:
        UsageError: measured drops are asked for, and were not logged.
    """
    env = runs[0].config.env
    if drops and env.reward == "amortized":
        raise UsageError(
            "--reward drop: these runs were paid predicted drops (--env.reward amortized), and "
            "measured ones only where a window ends. Use --reward paid."
        )
    limited = frozenset(run.name for run in runs if any(s.pool for s in run.config.stages))
    bonus = env.exploration != 0 or env.final_metric != 0
    limit = {"running": LIMIT, "quantile": 1.0, "none": math.inf}[env.reward_scale]
    return Payment(env.cost_per_type, drops, limited, bonus, env.reward_scale, limit)


def _refuse_whole_plays(runs: Sequence[SavedRun]) -> None:
    for run in runs:
        agent = run.config.agent
        if agent in UNPAID:
            raise UsageError(
                f"RUN: {run.folder} is of {agent}, {UNPAID[agent]}, so that no decision has a reward of "
                f"its own. Give runs of an agent that is paid for each one "
                f"(a2c, ppo, all_action, bandit, greedy, ...)."
            )


def _refuse_unpaid(logged: Trajectories, payment: Payment) -> None:
    if np.isfinite(logged.drops if payment.drops else logged.rewards).any():
        return
    raise UsageError(
        "RUN: no reward is known of any of these decisions: agents that do not learn are not "
        "paid. Give runs of an agent that is (a2c, ppo, all_action, bandit, greedy, ...); to log "
        "masks at random use --agent a2c --a2c.start 0.5 --a2c.learning_rate 1e-9."
    )


# --------------------------------------------------------------------------- judging


def judge(logged: Trajectories, policy: Policy, seed: int, name: str = "") -> Judged:
    """Ask a policy at every logged decision, episode by episode."""
    means, log_prob = np.zeros(logged.actions.shape), np.zeros(len(logged))
    measure = ""
    begins = np.append(True, logged.episodes[1:] != logged.episodes[:-1])
    for row, begun in enumerate(begins):
        if begun:
            policy.reset(np.random.default_rng([seed, int(logged.episodes[row])]))
        seen = consider(policy, {"training": logged.observations[row]}, logged.actions[row])
        means[row], log_prob[row], measure = seen.mean, seen.log_prob, seen.measure
    return Judged(name or policy.name, means, log_prob, measure)


def _result(
    name: str,
    spec: str,
    policy: Policy,
    runs: Sequence[SavedRun],
    logged: Trajectories,
    payment: Payment,
    own: argparse.Namespace,
) -> Result:
    log = see(logged, judge(logged, policy, own.seed), payment)
    estimates = [
        estimate
        for estimator in (decision_estimates, episode_estimates)
        for estimate in estimator(log, clip=own.clip, seed=own.seed, resamples=own.resamples)
    ]
    folders = {run.folder.resolve() for run in runs}
    place = Path(spec).resolve()
    at_home = policy.learns and bool(folders & {place, place.parent})
    return Result(name, estimates, log.no_ratios if np.isfinite(log.ratios).any() else "", at_home)


# --------------------------------------------------------------------------- what is left behind


def _notes(runs: Sequence[SavedRun], logged: Trajectories, reward: str) -> list[str]:
    """What the numbers do not say by themselves."""
    lines = [ELSEWHERE]
    if reward == "paid" and runs[0].config.env.reward == "amortized":
        lines.append(
            "rewards were predicted from credit (--env.reward amortized): these are estimates of "
            "what would have been paid, not of what the objective would have done"
        )
        lines += [
            f"{run.name}: its predictions did not go with true drops"
            for run in runs
            if (run.summary.get("calibration") or {}).get("trusted") in (False, 0)
        ]
    if len({meta.get("updates") for meta in logged.meta}) > 1:
        lines.append("the runs have different step budgets")
    return lines


def _result_notes(results: Sequence[Result]) -> list[str]:
    """What must be known of single policies."""
    lines = [
        f"{one.name} was learned in these runs: it was fitted to some of the rewards that judge it "
        f"here, so its estimates may be too good"
        for one in results
        if one.at_home
    ]
    without: dict[str, list[str]] = {}
    for one in results:
        if one.left_out:
            without.setdefault(one.left_out, []).append(one.name)
    return lines + [
        f"importance and doubly robust of {', '.join(names)} leave out {reason}"
        for reason, names in without.items()
    ]


def _record(
    own: argparse.Namespace,
    runs: Sequence[SavedRun],
    logged: Trajectories,
    results: Sequence[Result],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "runs": [str(run.folder) for run in runs],
        "stages": own.stages,
        "reward": own.reward,
        "pool": list(logged.pool),
        "decisions": len(logged),
        "episodes": len(np.unique(logged.episodes)),
        "clip": own.clip,
        "resamples": own.resamples,
        "seed": own.seed,
        "least_effective": {"decision": LEAST_DECISIONS, "episode": LEAST_EPISODES},
        "quantities": ABOUT,
        "policies": [
            {"name": result.name, "estimates": [asdict(one) for one in result.estimates]}
            for result in results
        ],
        "notes": list(notes),
        "versions": versions(),
    }


def _write(own: argparse.Namespace, runs: Sequence[SavedRun], record: dict[str, Any]) -> Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    folder = own.out or runs[0].folder / "offline" / now
    with atomic_folder(folder) as temporary:
        write_json(temporary / "offline.json", record)
        write_text(temporary / "offline.html", page(record))
    return folder


def _table(quantity: str, results: Sequence[Result]) -> Table:
    """A row per policy; numbers with their intervals under them, and effective sample sizes."""
    table = Table(title=ABOUT[quantity], title_justify="left", show_lines=True)
    table.add_column("policy", overflow="fold")
    for name in (*SHOWN, "effective"):
        table.add_column(name.replace("_", " "), justify="right")
    found = [_by_name(quantity, result) for result in results]
    logged = found[0]["logged"]
    table.add_row("as logged", _cell(logged), "", "", f"{logged.count:,}")
    for result, estimates in zip(results, found, strict=True):
        weighed = estimates["importance"]
        effective = f"{weighed.effective:,.1f} of {weighed.count:,}" if weighed.count else "-"
        cells = [_cell(estimates[name]) for name in SHOWN]
        table.add_row(result.name.replace("[", r"\["), *cells, effective)
    return table


def _given(quantity: str, results: Sequence[Result]) -> bool:
    """Whether there is any estimate of a policy other than the one that logged."""
    return any(_by_name(quantity, r)[name].value is not None for r in results for name in SHOWN)


def _by_name(quantity: str, result: Result) -> dict[str, Estimate]:
    return {one.estimator: one for one in result.estimates if one.quantity == quantity}


def _cell(one: Estimate) -> str:
    if one.value is None:
        return "-"
    return f"{one.value:.3g}\n{one.low:.3g} to {one.high:.3g}"


def _reasons(quantity: str, results: Sequence[Result]) -> list[str]:
    """Why numbers are missing, each reason once."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for name, one in _by_name(quantity, result).items():
            if one.refused:
                found.setdefault(one.refused, {}).setdefault(result.name, []).append(name)
    lines = []
    for reason, policies in found.items():
        estimators = ", ".join(dict.fromkeys(n for names in policies.values() for n in names))
        whose = "" if len(policies) == len(results) else f" of {', '.join(policies)}"
        lines.append(f"  no {estimators.replace('_', ' ')}{whose}: {reason}")
    return lines


if __name__ == "__main__":
    sys.exit(guard(main))
