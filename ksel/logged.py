"""What logged decisions say about another policy: ratios of probabilities, predicted rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import lfilter

from ksel.estimators import Log
from ksel.trajectories import Trajectories

BITS, ONE, EDGES, BETA, FLAT, POINT = "bits", "one", "edges", "beta", "flat", "point"
"""What a policy draws from: independent bits; one type; Gaussians cut off to [0, 1], with mass at the
edges; Beta; the uniform density; nothing, its action is certain."""
COMPARABLE = {(EDGES, EDGES), (EDGES, FLAT), (BETA, BETA), (FLAT, FLAT)}
"""(behaviour, policy): densities of weights whose ratio means something, and has the support."""
MEMORY = 20
"""Decisions that a forecast of credits looks back on."""
WAIT = 5
"""Decisions of an episode before anything is forecast: the first ones are scaled by very little."""
UNSUPPORTED = 0.01
"""Share of decisions at which the policy may do what the behaviour never did."""
TINY = 1e-7
LARGEST = 600.0
"""Logarithm of the largest ratio: a density may be any number of times another."""
AGREE = 0.02
"""By how much a recorded log-probability and that of the recorded probabilities may differ."""


@dataclass(frozen=True)
class Judged:
    """What a policy makes of N logged decisions.

    Attributes:
        name: for people.
        mean: [N, K] expected action.
        log_prob: [N] log-probability of the logged action; -inf where it would never be taken.
        measure: what the policy draws from, one of the names above.
    """

    name: str
    mean: np.ndarray
    log_prob: np.ndarray
    measure: str


@dataclass(frozen=True)
class Payment:
    """What of the runs' settings is needed to predict the reward of another action.

    Attributes:
        cost: reward taken off for each selected type.
        drops: True if measured drops are estimated instead of what was paid.
        stages: names of the runs whose stages switch types off.
        bonus: True if rewards hold a bonus, which no credit predicts.
        scaling: how drops were scaled, ``env.reward_scale``.
        limit: where scaled drops were cut off.
    """

    cost: float
    drops: bool
    stages: frozenset[str]
    bonus: bool
    scaling: str
    limit: float


def see(logged: Trajectories, judged: Judged, payment: Payment) -> Log:
    """Put together what the estimators need to judge a policy.

    Args:
        logged: decisions with known rewards.
        judged: what the policy makes of them.
        payment: how rewards came about.
    """
    if payment.drops or payment.bonus:
        logged = replace(logged, credits=np.full(logged.credits.shape, np.nan))
    rewards = logged.drops if payment.drops else logged.rewards
    ratios, no_ratios = likelihood_ratios(logged, judged, payment.stages)
    direct = direct_rewards(logged, rewards, judged.mean, payment)
    level, known = forecast_rewards(logged, rewards, payment)
    ahead = level + (known * judged.mean).sum(1)
    taken = level + (known * logged.actions).sum(1)
    return Log(
        rewards,
        logged.episodes,
        _whole(logged),
        ratios,
        direct,
        ahead,
        taken,
        no_ratios,
        _no_credits(payment),
    )


def _whole(logged: Trajectories) -> np.ndarray:
    """[N] bool, whether the decision's episode is there from its first decision to its last."""
    whole = np.zeros(len(logged), bool)
    for number in dict.fromkeys(logged.episodes.tolist()):
        rows = logged.episodes == number
        steps = logged.decisions[rows]
        gapless = np.array_equal(steps, np.arange(len(steps)))
        whole[rows] = gapless and bool(logged.terminations[rows][-1])
    return whole


# --------------------------------------------------------------------------- predicted rewards


def _no_credits(payment: Payment) -> str:
    """Why no reward can be predicted, where none can."""
    if payment.drops:
        return "credits were not logged beside measured drops"
    if payment.bonus:
        return "rewards hold a bonus (--env.exploration, --env.final_metric) no credit predicts"
    return "no credits were logged; make the runs with --env.reward amortized"


def direct_rewards(
    logged: Trajectories, rewards: np.ndarray, mean: np.ndarray, payment: Payment
) -> np.ndarray:
    """What was paid, corrected for what other types would have brought, [N].

    The logged action's own predicted drop comes from its reward, so what clipping of gradients
    left of it is in there; each type that is changed adds or takes its credit (exact for one type,
    first order for several). The drop is then scaled as the environment would have: a
    ``running`` scale takes in the drop itself, which matters while there are few.

    Args:
        logged: the decisions, with credits.
        rewards: [N] what they were paid.
        mean: [N, K] expected action of the policy; where it draws, what is paid for the mean
            action stands for the mean of what is paid.
        payment: how rewards came about.
    """
    scaled, scale = rewards + payment.cost * logged.actions.sum(1), logged.reward_scales
    change = (logged.credits * (mean - logged.actions)).sum(1)
    if payment.scaling == "running":
        drop, count = scaled * scale, logged.decisions + 1.0
        before = np.maximum(count * scale**2 - drop**2, 0.0)
        other = np.sqrt((before + (drop + change) ** 2) / count)
        value = (drop + change) / np.maximum(other, np.finfo(np.float32).tiny)
    else:
        value = scaled + change / scale
    return np.clip(value, -payment.limit, payment.limit) - payment.cost * mean.sum(1)


def forecast_rewards(
    logged: Trajectories, rewards: np.ndarray, payment: Payment
) -> tuple[np.ndarray, np.ndarray]:
    """Reward of the empty action [N], and what each type adds [N, K], told before each decision.

    See :func:`forecasts`; drops are scaled as the last one was, and costs are taken off.
    """
    scaled = rewards + payment.cost * logged.actions.sum(1)
    drops, first = scaled * logged.reward_scales, logged.decisions == 0
    level, known = forecasts(drops, logged.actions, logged.credits, logged.episodes)
    last = np.where(first, 1.0, np.roll(logged.reward_scales, 1))
    last = np.maximum(last, np.finfo(np.float32).tiny)
    level, known = level / last, known / last[:, None]
    limit = payment.limit
    return np.clip(level, -limit, limit), np.clip(known, -limit, limit) - payment.cost


def forecasts(
    drops: np.ndarray, actions: np.ndarray, credits: np.ndarray, episodes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Level [N] and credit of each type [N, K] as they could be told *before* each decision.

    Decaying means over the episode's decisions before it: of credits, and of what they leave of the
    drop. What is forecast from the past alone cannot depend on the action drawn now, whatever
    the credits are worth. 0 before :data:`WAIT` decisions are known; nan all over where no credit is
    known.
    """
    level, known = np.zeros(len(drops)), np.zeros(credits.shape)
    if not np.isfinite(credits).all(1).any():
        return np.full(len(drops), np.nan), np.full(credits.shape, np.nan)
    left = drops - (credits * actions).sum(1)
    columns = np.column_stack([left, credits])
    for number in dict.fromkeys(episodes.tolist()):
        rows = np.flatnonzero(episodes == number)
        there = np.isfinite(columns[rows]).all(1)
        means = _decaying_means(columns[rows[there]])
        before = np.cumsum(there) - there
        told = before >= WAIT
        level[rows[told]] = means[before[told] - 1, 0]
        known[rows[told]] = means[before[told] - 1, 1:]
    return level, known


def _decaying_means(values: np.ndarray) -> np.ndarray:
    """Mean of the rows up to each one, the older the less, [n, m]."""
    if not len(values):
        return values
    keep = 1.0 - 1.0 / MEMORY
    weights = (1.0 - keep ** np.arange(1, len(values) + 1)) / (1.0 - keep)
    return lfilter([1.0], [1.0, -keep], values, axis=0) / weights[:, None]


# --------------------------------------------------------------------------- ratios


def likelihood_ratios(
    logged: Trajectories, judged: Judged, stages: frozenset[str]
) -> tuple[np.ndarray, str]:
    """pi(a | s) / b(a | s) of each logged action, [N]; nan where unknown, and why it is."""
    ratios, reasons = np.full(len(logged), np.nan), []
    agents = logged.agents()
    groups = list(zip(logged.runs.tolist(), logged.stage.tolist(), strict=True))
    for run, stage in dict.fromkeys(groups):
        rows = np.flatnonzero((logged.runs == run) & (logged.stage == stage))
        part, agent = logged.take(rows), str(agents[rows[0]])
        behaviour = measure_of(part, agent)
        reason = "its stages switch types off" if logged.names[run] in stages else None
        reason = reason or _unknown_behaviour(part, agent, behaviour)
        reason = reason or _incomparable(part, judged, rows, behaviour)
        if reason:
            reasons.append(f"{logged.names[run]} ({stage}): {reason}")
            continue
        ratios[rows] = np.exp(np.minimum(judged.log_prob[rows] - part.log_prob, LARGEST))
    return ratios, "; ".join(reasons)


def measure_of(part: Trajectories, agent: str) -> str:
    """What the behaviour of one run and stage drew from."""
    certain = (part.log_prob == 0) & (part.probabilities == part.actions).all(1)
    if part.soft:
        if certain.all():
            return POINT
        return {"all_action": BETA, "random_soft": FLAT}.get(agent, EDGES)
    if agent == "bandit" and not certain.all():
        return ONE
    return BITS


def _unknown_behaviour(part: Trajectories, agent: str, behaviour: str) -> str | None:
    """Why the recorded probabilities cannot be divided by."""
    unknown = ~np.isfinite(part.log_prob)
    if unknown.all():
        return "probabilities of its actions were not recorded"
    # an interrupted run may not know its last one; a fork picks masks, whatever was drawn
    last = np.append(part.episodes[1:] != part.episodes[:-1], True) & ~part.terminations
    if agent != "all_action" and (unknown & ~last).any():
        return f"{int(unknown.sum())} of its actions have no known probability"
    if behaviour == BITS:
        p = np.clip(part.probabilities, TINY, 1 - TINY)
        bits = np.log(np.where(part.actions > 0.5, p, 1 - p)).sum(1)
        off = np.abs(bits - part.log_prob) > AGREE * (1 + np.abs(part.log_prob))
        if (off & ~unknown & (part.log_prob > np.log(TINY))).any():
            return "its probabilities are not those of the actions carried out"
    return None


def _incomparable(
    part: Trajectories, judged: Judged, rows: np.ndarray, behaviour: str
) -> str | None:
    """Why this policy cannot be weighed by this behaviour."""
    if part.soft:
        if (behaviour, judged.measure) in COMPARABLE:
            return None
        if POINT in (behaviour, judged.measure):
            return "a certain weight has no density to compare"
        return f"densities of two kinds ({behaviour}, {judged.measure}) cannot be compared"
    mean, p = judged.mean[rows], part.probabilities
    missing = ((mean > TINY) & (p <= 0)).any(1)
    if behaviour == BITS:
        missing |= ((mean < 1 - TINY) & (p >= 1)).any(1)
    elif judged.measure == BITS or (mean.sum(1) > 1 + 1e-4).any() or (mean.sum(1) < 1 - 1e-4).any():
        missing[:] = True
    if missing.mean() > UNSUPPORTED:
        return f"at {missing.mean():.0%} of the decisions the policy may do what could not happen there"
    return None
