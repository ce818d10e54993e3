"""Off-policy estimators: what another policy would have earned on logged decisions.

Two quantities, never to be mixed up:

* ``decision``: mean reward of one decision when the policy is asked at the *logged* states, and
  training goes on as it did. A bandit's view: the states are those that the logging policy led to.
* ``episode``: total reward of an episode that the policy leads from the start. The states are its
  own; weights multiply over the decisions, so it takes policies that are close to the logging one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ksel.resampling import FEWEST_EPISODES, around, units_of

CLIP = 20.0
RESAMPLES = 1000
FEWEST_PARTS = 5
"""Episodes, or blocks laid end to end, that an interval needs."""
LEAST_DECISIONS = 30.0
"""Effective sample size (decisions) below which no weighted mean of rewards is given."""
LEAST_UNITS = 4.0
"""The same for the episodes, or blocks of decisions, that carry the weight."""
LEAST_EPISODES = 30.0
"""The same for values of whole episodes."""
NAMES = ("logged", "direct", "importance", "doubly_robust")
WEIGHTED = ("importance", "doubly_robust")
NOT_DIRECT = "credits are known at the logged states only, where this policy would not stay"


@dataclass(frozen=True)
class Log:
    """N logged decisions, as seen by one policy that is to be judged; nan = not known.

    Attributes:
        rewards: [N] what the decision was paid.
        episodes: [N] number of its episode; the decisions of an episode stand together.
        whole: [N] bool, whether its episode was played from start to end.
        ratios: [N] probability of the logged action under the policy over that under the behaviour.
        direct: [N] predicted reward of what the policy would do here; it may use all that was logged.
        ahead: [N] q(s, pi), the same predicted before the logged action was known.
        ahead_taken: [N] q(s, a), the logged action's reward, predicted in the same way.
        no_ratios, no_credits: why ratios or predictions are missing where they are, for people.
    """

    rewards: np.ndarray
    episodes: np.ndarray
    whole: np.ndarray
    ratios: np.ndarray
    direct: np.ndarray
    ahead: np.ndarray
    ahead_taken: np.ndarray
    no_ratios: str = ""
    no_credits: str = ""


@dataclass(frozen=True)
class Estimate:
    """One estimate with its interval.

    Attributes:
        quantity: ``decision`` or ``episode``; see the module.
        estimator: one of :data:`NAMES`.
        count: decisions or episodes that were used.
        effective: effective sample size of the unclipped weights; ``count`` without weights.
        clipped: share of the weights that were cut.
        interval: what was resampled.
        value: None where refused, as are all that follow.
        low, high: of the 95 % interval.
        gain: value less that of the logging policy on the same decisions.
        gain_low, gain_high: of its 95 % interval.
        refused: why no number is given, or None.
    """

    quantity: str
    estimator: str
    count: int
    effective: float
    clipped: float
    interval: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    refused: str | None = None


def effective_size(weights: np.ndarray) -> float:
    """Kish's effective sample size, (sum w)^2 / sum w^2; 0 where all weights are 0."""
    largest = float(np.max(weights, initial=0.0))
    if largest <= 0:
        return 0.0
    parts = weights / largest  # products of many ratios: their squares leave the range of floats
    return float(parts.sum()) ** 2 / float(np.square(parts).sum())


# --------------------------------------------------------------------------- one decision


def decision_estimates(
    log: Log, *, clip: float = CLIP, seed: int = 0, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Mean reward per decision at the logged states, by each estimator.

    With ratios w = pi(a | s) / b(a | s), cut at ``clip``, and predicted rewards:

    * direct: mean predicted reward of what the policy would do;
    * importance: sum w r / sum w (self-normalised: Swaminathan & Joachims, NeurIPS 2015; weights of
      single decisions: Precup, Sutton & Singh, ICML 2000, for an episode of one decision);
    * doubly robust: mean q(s, pi) + sum w (r - q(s, a)) / sum w (Jiang & Li, ICML 2016, weighted as
      by Thomas & Brunskill, ICML 2016). q is made before the logged action is known; else it could
      take part of that action's reward away again.

    The interval is the estimate +- t x the bootstrap's standard error, over episodes where there are
    :data:`FEWEST_EPISODES` or more, else over moving blocks of decisions (Kuensch 1989).

    Args:
        log: the decisions.
        clip: where ratios are cut.
        seed: of the resampling.
        resamples: their number.
    """
    rng = np.random.default_rng(seed)
    return [_decision_estimate(name, log, clip, rng, resamples) for name in NAMES]


def _decision_estimate(
    name: str, log: Log, clip: float, rng: np.random.Generator, resamples: int
) -> Estimate:
    rows = _known(name, log)
    count = int(rows.sum())
    weighted = name in WEIGHTED
    ratios = log.ratios[rows] if weighted else np.ones(count)
    units = units_of(log.episodes[rows])
    effective = effective_size(ratios)
    # blocks overlap, and as many as are drawn make up the sample
    overlap = max(len(units.whole), 1) / max(units.number, 1)
    carried = effective_size(np.array([ratios[unit].sum() for unit in units.whole])) / overlap
    clipped = float((ratios > clip).mean()) if count else 0.0
    estimate = Estimate("decision", name, count, effective, clipped, units.about)
    refused = _unknown(name, log, count) or _too_little(estimate, weighted, carried, units.number)
    if refused:
        return replace(estimate, refused=refused)
    sums = _sums(log, rows, np.minimum(ratios, clip))
    draws = units.resample(sums, rng, resamples)
    statistic, whole = STATISTICS[name], sums.sum(0)
    value, logged = float(statistic(whole)), float(_logged(whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(draws)
    freedom = min(units.number, carried) - 1.0
    return _with_interval(estimate, value, values, logged, _logged(draws), units.number, freedom)


def _with_interval(
    estimate: Estimate,
    value: float,
    values: np.ndarray,
    logged: float,
    logged_values: np.ndarray,
    number: float,
    freedom: float,
) -> Estimate:
    """Add value and gain with their intervals, given both over resamples of ``number`` units."""
    low, high = around(value, values, number, freedom)
    gain = value - logged
    gain_low, gain_high = around(gain, values - logged_values, number, freedom)
    return replace(
        estimate,
        value=value,
        low=low,
        high=high,
        gain=gain,
        gain_low=gain_low,
        gain_high=gain_high,
    )


def _known(name: str, log: Log) -> np.ndarray:
    """The decisions that an estimator can use, [N] bool."""
    rows = np.isfinite(log.rewards)
    if name == "direct":
        rows &= np.isfinite(log.direct)
    if name in WEIGHTED:
        rows &= np.isfinite(log.ratios)
    if name == "doubly_robust":
        rows &= np.isfinite(log.ahead) & np.isfinite(log.ahead_taken)
    return rows


def _unknown(name: str, log: Log, count: int) -> str | None:
    """Why an estimator has nothing to work with."""
    if count:
        return None
    if not np.isfinite(log.rewards).any():
        return "no reward is known of any decision"
    if name in WEIGHTED and not np.isfinite(log.ratios).any():
        return log.no_ratios or "no ratio of probabilities is known"
    return log.no_credits or "nothing is known that it needs"


def _sums(log: Log, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n, 7]: 1, reward, direct, weight, weight x reward, q(pi), weight x (reward - q(a))."""
    rewards = log.rewards[rows]
    direct, ahead, taken = (
        np.nan_to_num(column[rows]) for column in (log.direct, log.ahead, log.ahead_taken)
    )
    columns = [np.ones(len(rewards)), rewards, direct, weights, weights * rewards]
    return np.stack([*columns, ahead, weights * (rewards - taken)], 1)


def _logged(sums: np.ndarray) -> np.ndarray:
    return sums[..., 1] / sums[..., 0]


def _direct(sums: np.ndarray) -> np.ndarray:
    return sums[..., 2] / sums[..., 0]


def _importance(sums: np.ndarray) -> np.ndarray:
    return sums[..., 4] / sums[..., 3]


def _doubly_robust(sums: np.ndarray) -> np.ndarray:
    return sums[..., 5] / sums[..., 0] + sums[..., 6] / sums[..., 3]


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "logged": _logged,
    "direct": _direct,
    "importance": _importance,
    "doubly_robust": _doubly_robust,
}


def _too_little(estimate: Estimate, weighted: bool, carried: float, number: float) -> str | None:
    """Why what is there does not carry a number."""
    if number < FEWEST_PARTS:
        return f"{estimate.count} decision(s) are too few for an interval ({estimate.interval})"
    if weighted and estimate.effective < LEAST_DECISIONS:
        return (
            f"effective sample size {estimate.effective:.1f} of {estimate.count} decisions, below "
            f"{LEAST_DECISIONS:.0f}: the policy is too far from what was logged"
        )
    if weighted and carried < LEAST_UNITS:
        return (
            f"the weight lies on {carried:.1f} parts of what is resampled ({estimate.interval}), "
            f"below {LEAST_UNITS:.0f}"
        )
    return None


# --------------------------------------------------------------------------- whole episodes


def episode_estimates(
    log: Log, *, clip: float = CLIP, seed: int = 0, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Total reward of an episode that the policy leads from the start, undiscounted.

    With weights W_t = product of the ratios up to t, cut at ``clip`` and divided at each t by their
    sum over the n episodes (W_-1 = 1/n):

    * importance: sum over t and episodes of W_t r_t (per-decision importance sampling, weighted:
      Precup, Sutton & Singh, ICML 2000);
    * doubly robust: sum of W_t (r_t - q(s_t, a_t)) + W_(t-1) q(s_t, pi) (weighted doubly robust:
      Thomas & Brunskill, ICML 2016; Jiang & Li, ICML 2016). Predictions look one decision ahead;
      what comes after is the same number for all episodes, which the weights cancel.

    The direct method is refused: predictions are known at the logged states only.

    Args:
        log: the decisions; episodes that are not whole, or not wholly known, are left out.
        clip: where products of ratios are cut.
        seed: of the resampling over episodes.
        resamples: their number.
    """
    rng = np.random.default_rng(seed)
    return [_episode_estimate(name, log, clip, rng, resamples) for name in NAMES]


def _episode_estimate(
    name: str, log: Log, clip: float, rng: np.random.Generator, resamples: int
) -> Estimate:
    if name == "direct":
        return Estimate("episode", name, 0, 0.0, 0.0, "none", refused=NOT_DIRECT)
    known, weighted = _known(name, log), name in WEIGHTED
    rows, reason = _whole_episodes(log.episodes, known & log.whole)
    reason = _unknown(name, log, int(known.sum())) or reason
    number, about = len(rows), f"{len(rows)} episodes"
    if reason is not None:
        return Estimate("episode", name, number, 0.0, 0.0, about, refused=reason)
    ratios = log.ratios[rows] if weighted else np.ones(rows.shape)
    with np.errstate(divide="ignore", over="ignore"):
        logs = np.cumsum(np.log(ratios), axis=1)
        products = np.exp(logs)
    largest = np.maximum(logs.max(0), np.finfo(np.float64).min)  # of -inf alone: all weights are 0
    effective = min(effective_size(column) for column in np.exp(logs - largest).T)
    clipped = float((products > clip).mean())
    estimate = Estimate("episode", name, number, effective, clipped, about)
    if weighted and effective < LEAST_EPISODES:
        reason = (
            f"effective sample size {effective:.1f} of {number} episodes, below "
            f"{LEAST_EPISODES:.0f}: over {rows.shape[1]} decisions the policy goes elsewhere"
        )
        return replace(estimate, refused=reason)
    parts = _episode_parts(name, log, rows, np.minimum(products, clip))
    counts = rng.multinomial(number, np.full(number, 1 / number), size=resamples)
    returns = log.rewards[rows].sum(1)
    value = float(_weighted_return(np.ones((1, number)), parts)[0])
    values, logged = _weighted_return(counts, parts), counts @ returns / number
    freedom = min(number, effective) - 1.0
    return _with_interval(estimate, value, values, float(returns.mean()), logged, number, freedom)


def _whole_episodes(episodes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Row numbers [n, T] of the episodes all of whose decisions are known; why there are none."""
    found = [np.flatnonzero(episodes == number) for number in dict.fromkeys(episodes.tolist())]
    found = [rows for rows in found if known[rows].all()]
    lengths = sorted({len(rows) for rows in found})
    if len(found) < FEWEST_EPISODES:
        reason = f"{len(found)} whole episode(s), below {FEWEST_EPISODES}"
        return np.zeros((len(found), 0), int), reason
    if len(lengths) > 1:
        reason = f"episodes of {lengths[0]} to {lengths[-1]} decisions have no common value"
        return np.zeros((len(found), 0), int), reason
    return np.stack(found), None


def _episode_parts(
    name: str, log: Log, rows: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, what they weigh, and what the weights of the decision before weigh: [n, T] each."""
    if name != "doubly_robust":
        return weights, log.rewards[rows], np.zeros(rows.shape)
    return weights, log.rewards[rows] - log.ahead_taken[rows], log.ahead[rows]


def _weighted_return(
    counts: np.ndarray, parts: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Value of each resample, given how often it holds each episode, [B, n] -> [B]."""
    weights, now, before = parts
    earlier = np.concatenate([np.ones((len(weights), 1)), weights[:, :-1]], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (counts @ (weights * now)) / (counts @ weights)
        second = (counts @ (earlier * before)) / (counts @ earlier)
    return (first + second).sum(1)
