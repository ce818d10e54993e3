"""Estimators against a decision process whose true values are computed; refusals."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from offline_mdp import (
    MASKS,
    judge,
    mask_chances,
    play,
    policy,
    seen,
    true_values,
    world,
)

from envs.reward import LIMIT, DropScale
from ksel.credit import predict
from ksel.estimators import (
    Estimate,
    Log,
    decision_estimates,
    effective_size,
    episode_estimates,
)
from ksel.logged import (
    BETA,
    BITS,
    EDGES,
    FLAT,
    ONE,
    POINT,
    WAIT,
    Payment,
    forecast_rewards,
    forecasts,
    likelihood_ratios,
    see,
)
from ksel.resampling import units_of

PLAIN = Payment(0.0, False, frozenset(), False, "none", np.inf)


@dataclass
class Record:
    """Of one estimator over replications."""

    covered: list[bool] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    refused: int = 0

    @property
    def coverage(self) -> float:
        return float(np.mean(self.covered))

    @property
    def bias(self) -> float:
        """Mean error over its own standard error."""
        errors = np.array(self.errors)
        return float(errors.mean() / (errors.std(ddof=1) / np.sqrt(len(errors))))


def replicate(
    episodes: int,
    shift: float,
    *,
    misspecified: bool,
    length: int,
    count: int,
    estimators=(decision_estimates, episode_estimates),
) -> dict[tuple[str, str], Record]:
    w, behaviour, target = world(misspecified, length), policy(0.0), policy(shift)
    truth = dict(zip(("decision", "episode"), true_values(w, behaviour, target), strict=True))
    own = dict(zip(("decision", "episode"), true_values(w, behaviour, behaviour), strict=True))
    rng, found = np.random.default_rng(5), defaultdict(Record)
    for number in range(count):
        log = seen(play(w, behaviour, episodes, rng), target)
        for one in (one for e in estimators for one in e(log, seed=number, resamples=200)):
            record = found[one.quantity, one.estimator]
            if one.value is None:
                record.refused += 1
                continue
            value = (own if one.estimator == "logged" else truth)[one.quantity]
            record.covered.append(one.low <= value <= one.high)
            record.errors.append(one.value - value)
    return found


def by_name(estimates: list[Estimate]) -> dict[str, Estimate]:
    return {one.estimator: one for one in estimates}


def simulated(shift: float = 0.5, episodes: int = 20, length: int = 12) -> Log:
    w, behaviour = world(length=length), policy(0.0)
    return seen(play(w, behaviour, episodes, np.random.default_rng(0)), policy(shift))


# --------------------------------------------------------------------------- the truth itself


def test_true_values_agree_with_playing_the_target() -> None:
    w, behaviour, target = world(True, 6), policy(0.0), policy(1.0)
    rng = np.random.default_rng(0)
    own = play(w, target, 20_000, rng).rewards.reshape(20_000, 6).sum(1)
    _, episode = true_values(w, behaviour, target)
    assert episode == pytest.approx(own.mean(), abs=4 * own.std() / 20_000**0.5)
    logged = play(w, behaviour, 20_000, rng)
    paid = (mask_chances(target) * w.rewards()).sum(1)[logged.observations.argmax(1)]
    decision, _ = true_values(w, behaviour, target)
    assert decision == pytest.approx(paid.mean(), abs=0.01)
    assert len(MASKS) == 8


# --------------------------------------------------------------------------- coverage and bias


def test_intervals_over_episodes_cover_and_weights_remove_bias() -> None:
    shape = {"length": 12, "count": 200, "estimators": (decision_estimates,)}
    found = replicate(12, 0.7, misspecified=True, **shape)
    for name in ("logged", "importance", "doubly_robust"):
        record = found["decision", name]
        assert record.refused == 0
        assert 0.90 <= record.coverage <= 0.99, name
        assert abs(record.bias) < 3, name


def test_intervals_over_blocks_of_one_long_episode_cover() -> None:
    shape = {"length": 120, "count": 200, "estimators": (decision_estimates,)}
    found = replicate(1, 0.5, misspecified=True, **shape)
    for name in ("logged", "importance", "doubly_robust"):
        record = found["decision", name]
        assert record.refused == 0
        assert 0.90 <= record.coverage <= 0.99, name
        assert abs(record.bias) < 3, name


def test_the_direct_method_covers_where_credits_are_right_and_not_where_they_are_not() -> None:
    shape = {"length": 6, "count": 200, "estimators": (decision_estimates,)}
    right = replicate(40, 2.0, misspecified=False, **shape)["decision", "direct"]
    wrong = replicate(40, 2.0, misspecified=True, **shape)["decision", "direct"]
    assert 0.90 <= right.coverage <= 0.99
    assert abs(right.bias) < 3
    assert wrong.coverage < 0.8
    assert abs(wrong.bias) > 5


def test_values_of_whole_episodes_are_covered() -> None:
    shape = {"length": 6, "count": 200, "estimators": (episode_estimates,)}
    found = replicate(80, 0.3, misspecified=True, **shape)
    for name in ("logged", "importance", "doubly_robust"):
        record = found["episode", name]
        assert record.refused == 0
        assert 0.90 <= record.coverage <= 0.99, name
        assert abs(record.bias) < 3, name
    assert found["episode", "direct"].refused == 200


def test_a_far_policy_is_refused_every_time() -> None:
    found = replicate(6, 4.0, misspecified=False, length=10, count=30)
    for quantity in ("decision", "episode"):
        for name in ("importance", "doubly_robust"):
            assert found[quantity, name].refused == 30
    assert found["decision", "direct"].refused == 0


@pytest.mark.slow
@pytest.mark.parametrize("misspecified", [False, True])
@pytest.mark.parametrize(
    ("episodes", "shift", "length"),
    [(5, 0.5, 12), (20, 1.0, 12), (40, 2.0, 12), (1, 1.0, 200), (3, 0.5, 60), (100, 0.4, 12)],
)
def test_coverage_over_many_replications(
    episodes: int, shift: float, length: int, misspecified: bool
) -> None:
    found = replicate(episodes, shift, misspecified=misspecified, length=length, count=1000)
    for (quantity, name), record in found.items():
        if len(record.covered) < 500 or (name == "direct" and misspecified):
            continue
        assert 0.90 <= record.coverage <= 0.99, (quantity, name)


# --------------------------------------------------------------------------- by hand


def log_of(rewards, ratios, episodes, **more) -> Log:
    count = len(rewards)
    columns = {
        name: np.asarray(more.get(name, np.zeros(count)), float)
        for name in ("direct", "ahead", "ahead_taken")
    }
    return Log(
        np.asarray(rewards, float),
        np.asarray(episodes),
        np.asarray(more.get("whole", np.ones(count)), bool),
        np.asarray(ratios, float),
        **columns,
    )


def test_values_of_decisions_by_hand() -> None:
    rng = np.random.default_rng(1)
    ratios, rewards = rng.uniform(0.5, 3.0, 60), rng.normal(size=60)
    direct, ahead, taken = rng.normal(size=(3, 60))
    log = log_of(
        rewards, ratios, np.repeat(range(6), 10), direct=direct, ahead=ahead, ahead_taken=taken
    )
    found = by_name(decision_estimates(log, clip=2.0))
    cut = np.minimum(ratios, 2.0)
    assert found["logged"].value == pytest.approx(rewards.mean())
    assert found["direct"].value == pytest.approx(direct.mean())
    assert found["importance"].value == pytest.approx((cut * rewards).sum() / cut.sum())
    robust = ahead.mean() + (cut * (rewards - taken)).sum() / cut.sum()
    assert found["doubly_robust"].value == pytest.approx(robust)
    for name, one in found.items():
        assert one.gain == pytest.approx(one.value - rewards.mean())
        assert one.low < one.value < one.high
        weighted = name in ("importance", "doubly_robust")
        assert one.clipped == pytest.approx((ratios > 2).mean() if weighted else 0.0)
    assert found["importance"].effective == pytest.approx(effective_size(ratios))
    assert found["importance"].interval == "6 episodes"


def test_values_of_episodes_by_hand() -> None:
    rng = np.random.default_rng(2)
    n, steps = 40, 3
    ratios, rewards = rng.uniform(0.8, 1.2, (n, steps)), rng.normal(size=(n, steps))
    ahead, taken = rng.normal(size=(2, n, steps))
    number = np.repeat(range(n), steps)
    log = log_of(
        rewards.ravel(), ratios.ravel(), number, ahead=ahead.ravel(), ahead_taken=taken.ravel()
    )
    found = by_name(episode_estimates(log))
    plain = robust = 0.0
    before = np.full(n, 1 / n)
    for t in range(steps):
        weights = ratios[:, : t + 1].prod(1)
        weights /= weights.sum()
        plain += weights @ rewards[:, t]
        robust += weights @ (rewards[:, t] - taken[:, t]) + before @ ahead[:, t]
        before = weights
    assert found["logged"].value == pytest.approx(rewards.sum(1).mean())
    assert found["importance"].value == pytest.approx(plain)
    assert found["doubly_robust"].value == pytest.approx(robust)
    assert found["importance"].count == n


def test_the_logging_policy_itself_is_worth_what_was_logged() -> None:
    w, behaviour = world(), policy(0.0)
    logged = play(w, behaviour, 35, np.random.default_rng(0))
    log = seen(logged, behaviour)
    for one in (*decision_estimates(log), *episode_estimates(log)):
        if one.estimator in ("logged", "importance"):
            mean = logged.rewards.mean() * (w.length if one.quantity == "episode" else 1)
            assert one.value == pytest.approx(mean)
            assert one.gain == pytest.approx(0.0, abs=1e-12)


def test_effective_sizes() -> None:
    assert effective_size(np.ones(7)) == 7
    assert effective_size(np.array([1.0, 0, 0])) == 1
    assert effective_size(np.zeros(3)) == 0
    assert effective_size(np.array([3.0, 1.0])) == pytest.approx(1.6)
    assert effective_size(np.array([3e300, 1e300])) == pytest.approx(1.6)
    assert effective_size(np.array([3e-300, 1e-300])) == pytest.approx(1.6)


def test_few_episodes_are_resampled_by_blocks_within_them() -> None:
    assert units_of(np.repeat(range(5), 4)).about == "5 episodes"
    units = units_of(np.repeat([3, 8], [70, 30]))
    assert units.about == "blocks of 9 decisions"
    assert units.number == 12
    assert all(np.ptp(block) == 8 for block in units.whole)
    assert not any(block[0] < 70 <= block[-1] for block in units.whole)
    assert len(units.whole) == 62 + 22


# --------------------------------------------------------------------------- refusals


def test_clipping_does_not_hide_that_the_weights_are_useless() -> None:
    ratios = np.full(200, 0.01)
    ratios[7] = 500.0
    log = log_of(np.arange(200.0), ratios, np.repeat(range(10), 20))
    refused = by_name(decision_estimates(log, clip=1.0))["importance"]
    assert refused.value is None
    assert refused.low is None
    assert refused.gain is None
    assert refused.effective == pytest.approx(1.0, abs=0.1)
    assert "effective sample size 1.0 of 200 decisions, below 30" in refused.refused


def test_weight_on_few_episodes_is_refused() -> None:
    ratios = np.repeat([1.0, 1.0, *[1e-4] * 8], 20)
    log = log_of(np.arange(200.0), ratios, np.repeat(range(10), 20))
    refused = by_name(decision_estimates(log))["importance"]
    assert refused.effective == pytest.approx(40, abs=1)
    assert "the weight lies on 2.0 parts" in refused.refused


def test_weight_on_few_blocks_is_refused_though_blocks_overlap() -> None:
    ratios = np.full(400, 1e-4)
    ratios[100:135] = 1.0  # 15 decisions a block
    log = log_of(np.arange(400.0), ratios, np.zeros(400, int))
    refused = by_name(decision_estimates(log))["importance"]
    assert refused.interval == "blocks of 15 decisions"
    assert refused.effective == pytest.approx(35, abs=1)
    assert "parts of what is resampled" in refused.refused
    even = by_name(decision_estimates(log_of(np.arange(400.0), np.ones(400), np.zeros(400, int))))
    assert even["importance"].high == pytest.approx(even["logged"].high, rel=0.1)


def test_weights_beyond_the_range_of_floats_are_refused_and_not_left_out() -> None:
    logged = logged_bits()
    judged = judge(logged, policy(0.5))
    judged.log_prob[:] = 900.0
    ratios, reason = likelihood_ratios(logged, judged, frozenset())
    assert not reason
    assert np.isfinite(ratios).all()
    ratios[logged.episodes == 3] *= 2.0
    log = replace(seen(logged, policy(0.5)), ratios=ratios)
    refused = by_name(episode_estimates(log))["importance"]
    assert refused.effective < 2
    assert "the policy goes elsewhere" in refused.refused


def test_few_decisions_are_refused() -> None:
    log = log_of(np.arange(12.0), np.ones(12), np.zeros(12))
    for one in decision_estimates(log):
        assert one.value is None
        assert "12 decision(s) are too few for an interval" in one.refused
    nothing = log_of(np.full(3, np.nan), np.ones(3), np.zeros(3))
    for one in decision_estimates(nothing):
        assert one.refused == "no reward is known of any decision"


def test_unequal_cut_off_or_few_episodes_have_no_common_value() -> None:
    log = log_of(np.arange(30.0), np.ones(30), np.repeat(range(6), [4, 5, 5, 5, 5, 6]))
    for one in episode_estimates(log):
        expected = (
            "known at the logged states" if one.estimator == "direct" else "of 4 to 6 decisions"
        )
        assert expected in one.refused
    four = replace(simulated(episodes=6), whole=np.repeat([1, 1, 1, 1, 0, 0], 12).astype(bool))
    assert "4 whole episode(s), below 5" in by_name(episode_estimates(four))["logged"].refused


def test_what_is_missing_says_why() -> None:
    log = replace(
        simulated(),
        ratios=np.full(240, np.nan),
        direct=np.full(240, np.nan),
        no_ratios="run (search): because",
        no_credits="no credits were logged",
    )
    found = by_name(decision_estimates(log))
    assert found["logged"].value is not None
    assert found["direct"].refused == "no credits were logged"
    assert found["importance"].refused == "run (search): because"
    assert found["doubly_robust"].refused == "run (search): because"


# --------------------------------------------------------------------------- ratios


def logged_bits(**changes):
    logged = play(world(), policy(0.0), 8, np.random.default_rng(0))
    return replace(logged, **changes)


def test_ratios_are_the_quotients_of_the_chances() -> None:
    logged, target = logged_bits(), policy(0.5)
    ratios, reason = likelihood_ratios(logged, judge(logged, target), frozenset())
    state = logged.observations.argmax(1)
    mask = (logged.actions @ [1, 2, 4]).astype(int)
    chances = mask_chances(target)[state, mask] / mask_chances(policy(0.0))[state, mask]
    np.testing.assert_allclose(ratios, chances)
    assert reason == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_prob": np.full(96, np.nan)}, "probabilities of its actions were not recorded"),
        (
            {"log_prob": np.where(np.arange(96) == 5, np.nan, -2.0)},
            "1 of its actions have no known",
        ),
        ({"log_prob": np.full(96, -0.1)}, "not those of the actions carried out"),
    ],
)
def test_unusable_behaviours_are_named(changes, words) -> None:
    logged = logged_bits(**changes)
    ratios, reason = likelihood_ratios(logged, judge(logged, policy(0.5)), frozenset())
    assert np.isnan(ratios).all()
    assert words in reason
    assert reason.startswith("simulated (search): ")


def test_stages_that_switch_types_off_are_named() -> None:
    logged = logged_bits()
    ratios, reason = likelihood_ratios(logged, judge(logged, policy(0.5)), frozenset(["simulated"]))
    assert np.isnan(ratios).all()
    assert "its stages switch types off" in reason


def test_forks_alone_are_left_out_for_an_agent_that_forks() -> None:
    log_prob = logged_bits().log_prob.copy()
    log_prob[4:7] = np.nan
    logged = logged_bits(log_prob=log_prob, meta=({"agent": "all_action"},))
    ratios, reason = likelihood_ratios(logged, judge(logged, policy(0.5)), frozenset())
    assert np.flatnonzero(np.isnan(ratios)).tolist() == [4, 5, 6]
    assert reason == ""


def test_a_policy_beyond_the_support_is_refused() -> None:
    certain = logged_bits()
    certain = replace(
        certain, probabilities=certain.actions.astype(float), log_prob=np.zeros(len(certain))
    )
    ratios, reason = likelihood_ratios(certain, judge(certain, policy(0.5)), frozenset())
    assert np.isnan(ratios).all()
    assert "at 100% of the decisions the policy may do what could not happen there" in reason
    same = replace(
        judge(certain, policy(0.5)), mean=certain.actions, log_prob=np.zeros(96), measure=POINT
    )
    ratios, reason = likelihood_ratios(certain, same, frozenset())
    assert (ratios == 1).all()
    assert reason == ""


def test_one_type_at_a_time_can_only_weigh_one_type_at_a_time() -> None:
    rng = np.random.default_rng(0)
    arms = rng.integers(0, 3, 96)
    logged = logged_bits(
        actions=np.eye(3, dtype=np.float32)[arms],
        probabilities=np.full((96, 3), 1 / 3),
        log_prob=np.full(96, np.log(1 / 3)),
        meta=({"agent": "bandit"},),
    )
    one = replace(
        judge(logged, policy(0.5)),
        mean=np.tile([0.5, 0.3, 0.2], (96, 1)),
        log_prob=np.log([0.5, 0.3, 0.2])[arms],
        measure=ONE,
    )
    ratios, reason = likelihood_ratios(logged, one, frozenset())
    np.testing.assert_allclose(ratios, np.array([1.5, 0.9, 0.6])[arms])
    assert reason == ""
    for other in (
        judge(logged, policy(0.5)),
        replace(one, mean=np.ones((96, 3)), measure=POINT),
        replace(one, mean=np.zeros((96, 3)), measure=POINT),
    ):
        assert np.isnan(likelihood_ratios(logged, other, frozenset())[0]).all()


@pytest.mark.parametrize(
    ("agent", "measure", "comparable"),
    [
        ("a2c", EDGES, True),
        ("a2c", FLAT, True),
        ("a2c", BETA, False),
        ("a2c", POINT, False),
        ("all_action", BETA, True),
        ("all_action", EDGES, False),
        ("random_soft", FLAT, True),
        ("random_soft", EDGES, False),
    ],
)
def test_densities_are_compared_where_they_are_of_one_kind(agent, measure, comparable) -> None:
    logged = logged_bits(soft=True, log_prob=np.full(96, 0.3), meta=({"agent": agent},))
    target = replace(judge(logged, policy(0.5)), measure=measure, log_prob=np.full(96, 0.1))
    ratios, reason = likelihood_ratios(logged, target, frozenset())
    if comparable:
        np.testing.assert_allclose(ratios, np.exp(-0.2))
    else:
        assert np.isnan(ratios).all()
        assert "density" in reason or "densities" in reason
    assert BITS == "bits"


# --------------------------------------------------------------------------- predictions


def test_a_forecast_knows_nothing_of_the_decision_it_is_for() -> None:
    rng = np.random.default_rng(0)
    rewards, actions = rng.normal(size=20), rng.integers(0, 2, (20, 3)).astype(float)
    credits, episodes = rng.normal(size=(20, 3)), np.repeat([0, 1], 10)
    level, known = forecasts(rewards, actions, credits, episodes)
    for start in (0, 10):
        assert not level[start : start + WAIT].any()
        assert not known[start : start + WAIT].any()
        assert known[start + WAIT : start + 10].all()
    for column in (rewards, actions, credits):
        changed = column.copy()
        changed[16] += 100
        parts = [changed if c is column else c for c in (rewards, actions, credits)]
        other, others = forecasts(*parts, episodes)
        assert np.array_equal(other[:17], level[:17])
        assert np.array_equal(others[:17], known[:17])
        assert not np.array_equal(other[17:], level[17:])


def test_a_forecast_of_steady_credits_is_right() -> None:
    rng = np.random.default_rng(0)
    actions, credit = rng.integers(0, 2, (30, 3)).astype(float), np.array([1.0, -2.0, 0.5])
    rewards = 0.7 + actions @ credit
    level, known = forecasts(rewards, actions, np.tile(credit, (30, 1)), np.zeros(30))
    np.testing.assert_allclose(level[WAIT:], 0.7)
    np.testing.assert_allclose(known[WAIT:], np.tile(credit, (30 - WAIT, 1)))


def test_without_credits_nothing_is_forecast() -> None:
    level, known = forecasts(np.ones(4), np.ones((4, 2)), np.full((4, 2), np.nan), np.zeros(4))
    assert np.isnan(level).all()
    assert np.isnan(known).all()


@pytest.mark.parametrize("mode", ["running", "quantile", "none"])
def test_predicted_rewards_are_scaled_as_the_environment_would_have(mode: str) -> None:
    rng, cost = np.random.default_rng(1), 0.2
    logged = logged_bits()
    credits = rng.normal(size=(96, 3)) * np.exp(rng.normal(size=(96, 1)))
    changed = 1.0 - logged.actions
    limit = {"running": LIMIT, "quantile": 1.0, "none": np.inf}[mode]
    columns = {"rewards": np.zeros(96), "reward_scales": np.zeros(96)}
    truth = np.zeros(96)
    for row in range(96):
        if logged.decisions[row] == 0:
            scaling = DropScale(mode)
        other = scaling.copy()
        drop = float(credits[row] @ logged.actions[row])
        paid, columns["reward_scales"][row] = scaling(drop)
        columns["rewards"][row] = paid - cost * logged.actions[row].sum()
        truth[row] = other(float(credits[row] @ changed[row]))[0] - cost * changed[row].sum()
    logged = replace(logged, credits=credits, **columns)
    target = replace(judge(logged, policy(0.5)), mean=changed, measure=POINT)
    payment = replace(PLAIN, cost=cost, scaling=mode, limit=limit)
    direct = see(logged, target, payment).direct
    if mode == "quantile":  # what was cut off, and how the range would have moved, is not known
        assert np.corrcoef(direct, truth)[0, 1] > 0.7
    else:
        np.testing.assert_allclose(direct, truth, atol=1e-6)


def test_forecast_rewards_are_in_units_of_the_reward() -> None:
    logged, scale, cost = logged_bits(), 0.25, 0.1
    credits = np.tile([0.5, -0.25, 1.0], (96, 1))
    rewards = (credits * logged.actions).sum(1) / scale - cost * logged.actions.sum(1)
    logged = replace(logged, rewards=rewards, credits=credits, reward_scales=np.full(96, scale))
    payment = replace(PLAIN, cost=cost, limit=3.0)
    level, known = forecast_rewards(logged, rewards, payment)
    late = logged.decisions >= WAIT
    np.testing.assert_allclose(level[late], 0.0, atol=1e-9)
    np.testing.assert_allclose(known[late], np.tile([1.9, -1.1, 2.9], (late.sum(), 1)))


def test_the_direct_method_is_exact_for_one_changed_type_under_clipping() -> None:
    rng = np.random.default_rng(4)
    slopes, roots = rng.normal(size=3), rng.normal(size=(3, 5))
    gram, scale, cost = roots @ roots.T, 0.25, 0.1

    def drop(mask):
        return predict(slopes, gram, np.ones(3), mask, rate=1.0, limit=0.5, norm=0.0, soft=False)

    logged = logged_bits()
    paid, credits = [], []
    for action in logged.actions:
        one = drop(action.astype(float))
        paid.append(one.drop / scale - cost * action.sum())
        credits.append(one.credit)
    logged = replace(
        logged,
        rewards=np.array(paid),
        credits=np.array(credits),
        reward_scales=np.full(96, scale),
    )
    changed = logged.actions.astype(float)
    changed[:, 1] = 1 - changed[:, 1]
    target = replace(judge(logged, policy(0.5)), mean=changed, measure=POINT)
    log = see(logged, target, replace(PLAIN, cost=cost))
    truth = [drop(mask).drop / scale - cost * mask.sum() for mask in changed]
    np.testing.assert_allclose(log.direct, truth, atol=1e-6)
    plain = (logged.credits / scale - cost) * changed
    assert np.abs(plain.sum(1) - truth).mean() > 0.03


@pytest.mark.parametrize(
    ("payment", "words"),
    [
        (replace(PLAIN, drops=True), "beside measured drops"),
        (replace(PLAIN, bonus=True), "--env.exploration"),
    ],
)
def test_rewards_that_no_credit_predicts_are_said(payment: Payment, words: str) -> None:
    logged = logged_bits(drops=np.linspace(0, 1, 96))
    log = see(logged, judge(logged, policy(0.5)), payment)
    found = by_name(decision_estimates(log))
    assert words in found["direct"].refused
    assert words in found["doubly_robust"].refused
    rewards = logged.drops if payment.drops else logged.rewards
    assert found["logged"].value == pytest.approx(rewards.mean())
    assert found["importance"].value is not None


def test_only_episodes_that_were_played_to_their_end_are_whole() -> None:
    logged = logged_bits()
    terminations, decisions = logged.terminations.copy(), logged.decisions.copy()
    terminations[11] = False
    decisions[12:24] += 1
    log = see(
        replace(logged, terminations=terminations, decisions=decisions),
        judge(logged, policy(0.5)),
        PLAIN,
    )
    assert log.whole.reshape(8, 12).all(1).tolist() == [False, False, *[True] * 6]
