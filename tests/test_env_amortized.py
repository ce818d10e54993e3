"""The environment with predicted rewards, their calibration, and branches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3_checker
import tiny
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from envs import ENV_ID
from envs.branches import relative
from envs.calibration import FEWEST, Calibration
from envs.distillation import DistillationEnv
from envs.recording import Recorder
from ksel.errors import UsageError
from ksel.evaluation import predict_logits
from ksel.objectives import fit_objective
from ksel.setup import Setup
from ksel.trajectory import ScheduleWriter

Config = Callable[..., dict[str, Any]]
Make = Callable[..., DistillationEnv]
POOL = ["label", "response", "hidden/skip"]
AMORTIZED = {"env": {"reward": "amortized", "window": 3, "phase_steps": 2}}


@pytest.fixture(scope="module")
def config(tiny_data, tiny_teacher, tmp_path_factory) -> Config:
    store = tmp_path_factory.mktemp("store")

    def build(**changes: Any) -> dict[str, Any]:
        changes = {
            "knowledge": {"pool": POOL},
            "student": {"layers": 2, "init": "random"},
            "optim": {"max_updates": 12, "learning_rate": 1e-3},
            **AMORTIZED,
            **changes,
        }
        return tiny.settings(tiny_data, tiny_teacher, store, **changes)

    return build


@pytest.fixture(scope="module")
def make(config: Config) -> Make:
    """Environments; those of the same settings share their setup (and student)."""
    made: dict[str, Setup] = {}

    def build(soft: bool = False, **changes: Any) -> DistillationEnv:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = tiny.make_setup(config(**changes))
        return DistillationEnv(setup=made[key], soft=soft)

    return build


def weights(env: DistillationEnv) -> list[Tensor]:
    return [t.detach().clone() for t in env.distiller.tensors]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("actions", ["hard", "soft"])
def test_the_checkers_pass(config: Config, actions: str):
    settings = config(env={**AMORTIZED["env"], "actions": actions})
    env = gym.make(ENV_ID, config=settings)
    check_env(env.unwrapped)
    sb3_checker.check_env(env.unwrapped)


def test_each_decision_is_paid_its_predicted_drop(make: Make):
    env = make()
    _, info = env.reset(seed=3)
    objective, predicted = info["objective"], []
    for number in range(6):
        observation, reward, terminated, _, info = env.step([1, 1, number % 2])
        drops = [*predicted, info["predicted"]]
        assert info["reward_scale"] == pytest.approx(math.sqrt(np.mean(np.square(drops))))
        assert reward == pytest.approx(info["predicted"] / info["reward_scale"])
        predicted = drops
        credit = np.array([info[f"credit/{name}"] for name in POOL])
        feature = observation["training"][[env.feature_names.index(f"credit/{n}") for n in POOL]]
        if number == 0:  # the windowed mean of one decision's updates is between its two
            assert np.sign(feature).tolist() == np.sign(credit).tolist()
        assert (np.abs(feature) < 1).all()
        assert (feature != 0).all()
        # a window of 3 updates is over after 4, 8 and 12: the first decision that completes it
        assert ("objective" in info) is (number % 2 == 1)
        if "objective" in info:
            assert info["drop"] == pytest.approx(objective - info["objective"])
            objective = info["objective"]
    assert terminated
    assert "trusted" not in info  # three windows are too few to judge


def test_the_same_seed_gives_the_same_episode(make: Make):
    env = make()

    def play() -> tuple[list[Any], list[Tensor]]:
        env.reset(seed=5)
        steps = [env.step([1, n % 2, 1]) for n in range(6)]
        return [(r, sorted(i.items())) for _, r, _, _, i in steps], weights(env)

    (first, a), (second, b) = play(), play()
    assert first == second
    assert equal(a, b)


def test_predicted_rewards_leave_the_student_as_measured_ones_do(make: Make):
    students = []
    for reward in ("amortized", "measured"):
        env = make(env={"reward": reward, "phase_steps": 2})
        env.reset(seed=5)
        for number in range(6):
            env.step([1, number % 2, 1])
        students.append(weights(env))
    assert equal(*students)


def test_a_snapshot_goes_on_to_the_bit(make: Make):
    env = make()
    env.reset(seed=7)
    env.step([1, 0, 1])
    state = env.get_snapshot()
    first = [env.step([1, 1, n]) for n in (0, 1, 0)]
    after = weights(env)
    env.set_snapshot(state)
    second = [env.step([1, 1, n]) for n in (0, 1, 0)]
    assert [(r, i) for _, r, _, _, i in first] == [(r, i) for _, r, _, _, i in second]
    assert equal(after, weights(env))


def test_observing_without_measuring_gives_credit_and_no_reward(make: Make):
    env = make()
    env.reset(seed=1, options={"measure": False, "observe": True})
    for _ in range(3):
        observation, reward, _, _, info = env.step([1, 1, 1])
        assert reward == 0
        assert "objective" not in info
        assert all(f"credit/{name}" in info for name in POOL)
        assert np.isfinite(observation["training"]).all()
    env.reset(seed=1, options={"measure": False})
    assert not any(key.startswith("credit") for key in env.step([1, 1, 1])[4])
    assert env.setup.ledger.examples["credit"] > 0


def test_measuring_at_both_ends_predicts_nothing(make: Make):
    env = make()
    env.reset(seed=1, options={"measure": "ends", "updates": 2 * env.settings.phase_steps})
    env.setup.ledger.examples["credit"] = 0
    infos = [env.step([1, 1, 1])[4] for _ in range(2)]
    assert ["drop" in info for info in infos] == [False, True]
    assert not any("predicted" in info for info in infos)
    assert env.setup.ledger.examples["credit"] == 0
    with pytest.raises(UsageError, match='measure "ends" with observe'):
        env.reset(seed=1, options={"measure": "ends", "observe": True})


def test_the_calibrated_objective_is_differentiated_at_its_fit(make: Make):
    changes = {"student": {"layers": 2}, "optim": {"max_updates": 40, "learning_rate": 5e-3}}
    env = make(env={**AMORTIZED["env"], "objective": "calibrated"}, **changes)
    env.reset(seed=1)
    assert env.distiller.credit is not None
    fits = [env.distiller.credit.state.fit]
    for _ in range(20):
        info = env.step([1, 1, 0])[4]
        if "objective" in info:
            fits.append(env.distiller.credit.state.fit)
    assert len(fits) == 11
    assert len(set(fits)) > 5
    logits = predict_logits(env.distiller.student, env.setup.reward, batch_size=16, device="cpu")
    labels = env.setup.reward.labels
    assert labels is not None
    assert fits[-1] == fit_objective("calibrated", logits, labels, env.setup.task)


# --------------------------------------------------------------------------- calibration


def test_windows_that_go_together_are_trusted_and_others_are_not():
    rng = np.random.default_rng(0)
    good, bad = Calibration(), Calibration()
    for number in range(30):
        assert (good.verdict() is None) is (number < FEWEST)
        predicted = rng.normal()
        good.add(predicted, 2 * predicted + 0.1 * rng.normal())
        bad.add(predicted, rng.normal())
    trusted, not_trusted = good.verdict(), bad.verdict()
    assert trusted is not None
    assert not_trusted is not None
    assert trusted.trusted
    assert trusted.slope == pytest.approx(2, abs=0.2)
    assert trusted.sign_agreement > 0.9
    assert trusted.low < trusted.correlation < trusted.high
    assert not not_trusted.trusted


def test_only_recent_windows_count():
    calibration = Calibration()
    for number in range(60):
        sign = 1 if number < 40 else -1
        calibration.add(float(number % 7), sign * float(number % 7))
    verdict = calibration.verdict()
    assert verdict is not None
    assert verdict.correlation == pytest.approx(-1)
    assert not verdict.trusted


def test_windows_without_a_prediction_do_not_count_and_equal_ones_tell_nothing():
    calibration = Calibration()
    for _ in range(20):
        calibration.add(math.nan, 1.0)
    assert calibration.verdict() is None
    for _ in range(20):
        calibration.add(1.0, 1.0)
    verdict = calibration.verdict()
    assert verdict is not None
    assert not verdict.trusted


def test_the_verdict_is_in_info(make: Make):
    env = make(env={"reward": "amortized", "window": 1}, optim={"max_updates": 12})
    env.reset(seed=2)
    infos = [env.step([1, 1, 1])[4] for _ in range(12)]
    assert ["trusted" in info for info in infos] == [False] * (FEWEST - 1) + [True] * 5
    assert {"slope", "correlation", "sign_agreement"} <= set(infos[-1])
    rates = np.array([info["learning_rate"] for info in infos])
    drops = np.array([[info["predicted"], info["drop"]] for info in infos]) / rates[:, None]
    assert infos[-1]["correlation"] == pytest.approx(np.corrcoef(drops.T)[0, 1])


# --------------------------------------------------------------------------- branches

MASKS = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 1]])
BRANCHES = {"count": 3, "updates": 4}


@pytest.mark.parametrize("reward", ["amortized", "measured"])
def test_a_branch_is_what_holding_its_mask_gives(make: Make, reward: str):
    env = make(env={"reward": reward, "phase_steps": 2}, branches=BRANCHES)
    env.reset(seed=4)
    env.step([1, 1, 0])
    before = env.objective_now()
    state = env.get_snapshot()
    drops, ends = [], []
    for mask in MASKS:
        env.set_snapshot(state)
        for _ in range(2):
            env.step(mask)
        drops.append(before - env.objective_now())
        ends.append(weights(env))
    env.set_snapshot(state)
    branched = env.branch(MASKS)
    np.testing.assert_allclose(branched.drops, drops, rtol=1e-9)
    assert branched.chosen == int(np.argmax(drops))
    assert equal(weights(env), ends[branched.chosen])
    assert branched.decisions == 2
    assert [step.action.tolist() for step in branched.steps] == [
        MASKS[branched.chosen].tolist()
    ] * 2
    assert branched.info["update"] == env.distiller.cursor == 6
    np.testing.assert_allclose(branched.advantages.mean(), 0, atol=1e-9)
    assert np.argmax(branched.advantages) == branched.chosen
    assert not branched.terminated


def test_only_the_end_of_a_branch_is_measured(make: Make):
    env = make(search="branch", env={"reward": "measured"}, branches=BRANCHES)
    env.reset(seed=4)
    assert env.branching
    assert env.branch_count == 3
    rows = len(env.setup.reward)
    before = env.setup.ledger.examples["held_out"]
    env.branch(MASKS)
    assert env.setup.ledger.examples["held_out"] - before == 3 * rows


def test_branches_end_with_the_episode(make: Make):
    env = make(search="branch", env={"reward": "measured"}, branches={"count": 3, "updates": 8})
    env.reset(seed=4)
    assert env.branch(MASKS).decisions == 8
    branched = env.branch(MASKS)
    assert branched.decisions == 4
    assert branched.terminated
    assert not env.branching
    with pytest.raises(gym.error.ResetNeeded):
        env.branch(MASKS)


def test_a_branch_that_diverges_is_not_chosen(make: Make, monkeypatch: pytest.MonkeyPatch):
    env = make(search="branch", env={"reward": "measured"}, branches=BRANCHES)
    env.reset(seed=4)
    real = env.setup.pool.types[0].loss

    def broken(student: Any, teacher: Any, batch: Any) -> Tensor:
        return real(student, teacher, batch) * math.nan

    monkeypatch.setattr(type(env.setup.pool.types[0]), "__setattr__", object.__setattr__)
    monkeypatch.setattr(env.setup.pool.types[0], "loss", broken)
    branched = env.branch(MASKS)
    monkeypatch.setattr(env.setup.pool.types[0], "loss", real)
    assert np.isnan(branched.drops).tolist() == [True, True, False]
    assert branched.chosen == 2
    assert branched.advantages[0] == branched.advantages[1] < branched.advantages[2]
    assert not branched.terminated


def test_relative_advantages():
    np.testing.assert_allclose(relative(np.array([1.0, 3.0])), [-1, 1])
    assert relative(np.array([2.0, 2.0])).tolist() == [0, 0]
    assert relative(np.array([math.nan, math.nan])).tolist() == [0, 0]
    values = relative(np.array([math.nan, 1.0, 2.0]))
    assert values[0] < values[1] < values[2]
    values = relative(np.array([0.1, math.nan]))
    assert values[1] < 0 < values[0]


def test_distrust_makes_the_environment_ask_for_branches(make: Make):
    env = make(branches={"count": 3, "updates": 2, "every": 6})
    env.reset(seed=4)
    env.step([1, 1, 1])
    assert not env.branching
    assert env._amortized is not None
    rng = np.random.default_rng(0)
    for _ in range(FEWEST):
        env._amortized.calibration.add(rng.normal(), rng.normal() * -1)
    env._amortized.verdict = env._amortized.calibration.verdict()
    assert not env._amortized.trusted
    assert env.branching
    env.branch(MASKS)
    assert not env.branching  # until branches.every updates are over
    env.step([1, 1, 1])
    env.step([1, 1, 1])
    assert env.branching is not env._amortized.trusted


def test_all_branches_are_judged_not_the_best_alone(make: Make):
    env = make(branches={"count": 3, "updates": 2})
    env.reset(seed=4)
    env.step([1, 1, 1])
    assert env._amortized is not None
    env.objective_now()
    before = len(env._amortized.calibration.measured)
    rate = env.step([1, 1, 1])[4]["learning_rate"]
    assert rate > 0
    env.reset(seed=4)
    env.step([1, 1, 1])
    branched = env.branch(MASKS)
    measured = env._amortized.calibration.measured
    assert len(measured) == before + 3
    ratios = np.sort(measured[-3:]) / np.sort(branched.drops)
    np.testing.assert_allclose(
        ratios, ratios[0], rtol=1e-6
    )  # over the learning rates of the window


def test_an_objective_that_is_not_finite_ends_a_branch(make: Make, monkeypatch: pytest.MonkeyPatch):
    env = make(branches={"count": 3, "updates": 2})
    env.reset(seed=4)
    env.step([1, 1, 1])
    env.objective_now()
    real, calls = env.held_out.objective, []

    def value() -> float:
        calls.append(1)
        return math.nan if len(calls) == 2 else real()

    monkeypatch.setattr(env.held_out, "objective", value)
    branched = env.branch(MASKS)
    assert np.isnan(branched.drops).tolist() == [False, True, False]
    assert branched.chosen != 1
    assert np.argmin(branched.advantages) == 1
    assert not branched.terminated
    env.step([1, 1, 1])


def test_a_stopped_branch_leaves_the_student_as_it_was(make: Make):
    env = make(search="branch", env={"reward": "measured"}, branches=BRANCHES)
    env.reset(seed=4)
    before, real, calls = weights(env), env.hold_branch, []

    def stopped(mask: Any, updates: int) -> Any:
        calls.append(mask)
        steps = real(mask, updates)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return steps

    env.hold_branch = stopped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        env.branch(MASKS)
    assert equal(weights(env), before)
    assert env.distiller.cursor == 0


def test_masks_of_the_wrong_form_are_refused(make: Make):
    env = make(branches=BRANCHES)
    env.reset(seed=4)
    with pytest.raises(UsageError, match="3 finite numbers"):
        env.branch(np.ones((2, 4)))


def test_the_decisions_of_the_chosen_branch_are_written_down(make: Make):
    env = make(search="branch", env={"reward": "measured", "phase_steps": 2}, branches=BRANCHES)
    writer = ScheduleWriter(
        POOL, env.feature_names, {"soft": False, "task": "rte", "agent": "x", "seed": 0}
    )
    recorder = Recorder(env, "final", writer, one_life=True)
    recorder.reset(seed=4)
    branched = recorder.branch(MASKS)
    for probability in (0.25, 0.5):
        writer.annotate_next(np.full(3, probability), math.log(probability))
    recorder.branch(MASKS)
    rows = writer.rows("final")
    assert [row.update for row in rows] == [0, 2, 4, 6]
    assert [row.decision for row in rows] == [0, 1, 2, 3]
    assert [row.probabilities[0] for row in rows[:2]] == [0.25, 0.5]
    assert rows[1].drop == pytest.approx(branched.drops[branched.chosen])
    assert math.isnan(rows[0].reward)
    assert np.isfinite(rows[1].reward)
    again, _ = recorder.reset()
    assert env.distiller.cursor == 8
    assert again["training"].shape == env.observation_space["training"].shape
