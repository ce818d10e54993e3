from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.fixed import dynamic_policy, fixed_policy, random_hard_policy, static_policy
from agents.follow import follow
from agents.make import make_agent
from agents.policy import Choice, Learner
from agents.rollout import SEARCH_SEED, play, search
from agents.stable_baselines import SB3Agent
from envs.distillation import DistillationEnv
from envs.recording import Recorder
from ksel.setup import Setup
from ksel.trajectory import DecisionRow, ScheduleWriter

POOL = ["label", "response", "hidden/skip"]
Make = Callable[..., Recorder]


@pytest.fixture(scope="module")
def make(tiny_data, tiny_teacher, tmp_path_factory) -> Make:
    """Recorders over environments; those of the same settings share their setup."""
    store, made = tmp_path_factory.mktemp("store"), {}

    def build(stage: str = "search", updates: int = 6, **changes: Any) -> Recorder:
        changes = {"knowledge": {"pool": POOL}, **changes}
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            settings = tiny.settings(tiny_data, tiny_teacher, store, **changes)
            made[key] = tiny.make_setup(settings)
        env = DistillationEnv(setup=made[key], updates=updates)
        meta = {"soft": env.soft, "task": "rte", "agent": "a2c", "seed": 0}
        return Recorder(env, stage, ScheduleWriter(env.pool_names, env.feature_names, meta))

    return build


def learner(recorder: Recorder, **settings: Any) -> SB3Agent:
    config = recorder.inner.setup.config
    for name, value in {"n_steps": 4, "net_arch": [8], **settings}.items():
        setattr(config.a2c, name, value)
    return SB3Agent(
        config, recorder.inner.pool_names, recorder.observation_space, recorder.action_space
    )


def other_learner(recorder: Recorder, agent: str, **settings: Any) -> Learner:
    config = copy.deepcopy(recorder.inner.setup.config)
    config.agent = agent
    for name, value in settings.items():
        setattr(getattr(config, agent), name, value)
    made = make_agent(
        config, recorder.inner.pool_names, recorder.observation_space, recorder.action_space
    )
    assert isinstance(made, Learner)
    return made


def rows(recorder: Recorder) -> list[DecisionRow]:
    return recorder.writer.rows(recorder.stage)


class Watched:
    """A policy that remembers the rows of each batch that comes next, and takes a nap."""

    name, soft, learns, pool = "static", False, False, tuple(POOL)

    def __init__(self, setup: Setup, action: list[float]) -> None:
        self.setup, self.action = setup, np.array(action, np.float32)
        self.batches: list[list[int]] = []

    def reset(self, rng: np.random.Generator) -> None:
        self.batches.clear()

    def act(self, observation: Any) -> Choice:
        self.batches.append(self.setup.distiller.next_batch().ids.tolist())
        return Choice.certain(self.action)

    def save(self, folder: Any) -> None:
        raise NotImplementedError


# --------------------------------------------------------------------------- recorder


def test_each_decision_is_one_row_with_what_was_seen_and_paid(make: Make) -> None:
    recorder = make(updates=5, env={"phase_steps": 2})
    observation, _ = recorder.reset(seed=0)
    seen, paid, infos = [observation["training"].copy()], [], []
    for action in ([1, 0, 1], [0, 0, 0], [1, 1, 1]):
        observation, reward, *_, info = recorder.step(action)
        seen.append(observation["training"].copy())
        paid.append(reward)
        infos.append(info)
    got = rows(recorder)
    assert [row.action.tolist() for row in got] == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert [row.update for row in got] == [0, 2, 4]
    assert [row.decision for row in got] == [0, 1, 2]
    assert [row.terminated for row in got] == [False, False, True]
    assert [row.reward for row in got] == paid
    for row, before, info in zip(got, seen, infos, strict=False):
        assert np.array_equal(row.observation, before)
        assert (row.objective, row.drop) == (info["objective"], info["drop"])
        assert row.reward_scale == info["reward_scale"]
        for k, name in enumerate(POOL):
            assert row.loss[k] == pytest.approx(info[f"loss/{name}"])
            assert row.scale[k] == pytest.approx(info[f"scale/{name}"])
        assert np.isnan(row.credit).all()
        assert np.isnan(row.probabilities).all()
    assert np.isfinite(got[0].grad_norm).tolist() == [True, False, True]
    assert recorder.rewards == [pytest.approx(sum(paid))]
    assert recorder.updates_done == 5


def test_rewards_belong_to_their_episodes(make: Make) -> None:
    recorder = make(updates=2)
    totals = []
    for seed in range(3):
        recorder.reset(seed=seed)
        recorder.reset(seed=seed)  # a reset without a decision makes no episode
        totals.append(sum(recorder.step([1, seed % 2, 0])[1] for _ in range(2)))
    recorder.reset(seed=9)
    assert recorder.rewards == pytest.approx(totals)
    assert [row.episode for row in rows(recorder)] == [0, 0, 1, 1, 2, 2]
    assert recorder.updates_done == 6


def test_a_diverged_decision_is_recorded_and_its_update_not_counted(make: Make) -> None:
    recorder = make(optim={"learning_rate": 1e30})
    recorder.reset(seed=0)
    terminated = False
    while not terminated:
        terminated = recorder.step([1, 0, 0])[2]
    last = rows(recorder)[-1]
    assert last.terminated
    assert last.reward == -1.0
    assert math.isnan(last.drop)
    assert recorder.updates_done == recorder.inner.distiller.cursor < 6


def test_decisions_are_passed_on(make: Make) -> None:
    recorder, seen = make(updates=2), []
    recorder.on_decision = lambda update, reward, info: seen.append((update, reward, info))
    recorder.reset(seed=0)
    steps = [recorder.step([1, 0, 0]) for _ in range(2)]
    assert seen == [(i + 1, step[1], step[4]) for i, step in enumerate(steps)]


# --------------------------------------------------------------------------- search


def log_probability(row: DecisionRow) -> float:
    """Of the row's bits under the row's own probabilities."""
    p = row.probabilities.astype(np.float64)
    return float(np.log(np.where(row.action > 0.5, p, 1 - p)).sum())


def test_a_search_records_every_decision_and_no_other(make: Make) -> None:
    recorder = make(updates=3)
    agent = learner(recorder)
    before = recorder.inner.distiller.ledger.copy()
    played = search(agent, recorder, 4, 3, seed=0, logger_folder=None)
    got = rows(recorder)
    assert len(got) == played.decisions == 12
    assert [(row.episode, row.decision) for row in got] == [
        (e, d) for e in range(4) for d in range(3)
    ]
    assert [row.terminated for row in got] == [False, False, True] * 4
    assert played.updates == 12
    totals = np.array([row.reward for row in got]).reshape(4, 3).sum(1)
    assert played.rewards == pytest.approx(totals.tolist())
    spent = recorder.inner.distiller.ledger.since(before)
    assert spent.seconds["held_out"] < played.seconds


PARTS = ["training", "student_cls", "teacher_cls"]


@pytest.mark.parametrize(
    ("agent", "settings", "env"),
    [
        ("ddpg", {"learning_starts": 3, "at_least_one": False}, {"observe": PARTS}),
        ("ddpg", {"learning_starts": 3}, {"actions": "soft"}),
        ("bandit", {}, {"reward_scale": "quantile"}),
        ("bandit", {"algorithm": "linucb"}, {"observe": PARTS}),
    ],
)
def test_each_learner_searches_and_its_policy_plays(
    make: Make, agent: str, settings: dict[str, Any], env: dict[str, Any]
) -> None:
    recorder = make(updates=3, env=env)
    made = other_learner(recorder, agent, **settings)
    played = search(made, recorder, 3, 3, seed=0, logger_folder=None)
    got = rows(recorder)
    assert len(got) == played.decisions == 9
    assert [row.terminated for row in got] == [False, False, True] * 3
    for row in got:
        assert np.isfinite(row.probabilities).all()
        if made.soft:
            assert math.isfinite(row.log_prob)
        elif agent == "ddpg":
            assert row.log_prob == pytest.approx(log_probability(row), abs=1e-3)
        else:
            chosen = float(row.probabilities @ row.action)
            assert row.log_prob == pytest.approx(math.log(chosen), abs=1e-5)
    policy = made.frozen()
    assert play(policy, recorder, seed=1, measure=True).decisions == 3
    assert policy.soft == recorder.inner.soft


def test_probabilities_in_a_row_are_of_the_action_in_that_row(make: Make) -> None:
    recorder = make(updates=3)
    search(learner(recorder, learning_rate=0.3), recorder, 5, 3, seed=0, logger_folder=None)
    got = rows(recorder)
    for row in got:
        assert ((row.probabilities > 0) & (row.probabilities < 1)).all()
        assert row.log_prob == pytest.approx(log_probability(row), abs=1e-3)
    # a fast learner's probabilities move, so those of a neighbouring row would not fit
    shifted = [abs(a.log_prob - log_probability(b)) for a, b in itertools.pairwise(got)]
    assert max(shifted) > 0.1


def test_soft_searches_record_the_weights_that_were_used(make: Make) -> None:
    recorder = make(updates=3, env={"actions": "soft"})
    search(learner(recorder), recorder, 2, 3, seed=0, logger_folder=None)
    actions = np.stack([row.action for row in rows(recorder)])
    assert ((actions >= 0) & (actions <= 1)).all()
    assert len(np.unique(actions)) > 6
    assert all(np.isfinite(row.log_prob) for row in rows(recorder))


@pytest.mark.parametrize("stop_after", [3, 4])
def test_a_stopped_search_has_no_bogus_episode(make: Make, stop_after: int) -> None:
    recorder = make(updates=3)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_after

    played = search(learner(recorder), recorder, 4, 3, seed=0, logger_folder=None, stop=stop)
    assert played.decisions == len(rows(recorder)) == stop_after
    assert len(played.rewards) == math.ceil(stop_after / 3)
    assert sum(played.rewards) == pytest.approx(sum(row.reward for row in rows(recorder)))


def test_episodes_that_end_early_make_room_for_more(make: Make) -> None:
    recorder = make(updates=6, optim={"learning_rate": 1e30}, env={"exploration": 0.5})
    played = search(learner(recorder), recorder, 2, 6, seed=0, logger_folder=None)
    got = rows(recorder)
    assert len(got) == 12
    assert len(played.rewards) == got[-1].episode + 1 > 2
    for number, total in enumerate(played.rewards):
        assert total == pytest.approx(sum(row.reward for row in got if row.episode == number))


def test_a_search_repeats_with_its_seed(make: Make) -> None:
    def actions(seed: int) -> list[list[float]]:
        recorder = make(updates=3)
        search(learner(recorder), recorder, 3, 3, seed=seed, logger_folder=None)
        return [[*row.action.tolist(), row.reward] for row in rows(recorder)]

    first = actions(0)
    assert actions(0) == first
    assert actions(1) != first


def test_a_search_uses_other_batches_than_the_final_student(make: Make) -> None:
    recorder = make(updates=2)
    final = []
    for seed in (0, SEARCH_SEED):
        recorder.reset(seed=seed)
        final.append(recorder.inner.distiller.data_seed)
    seeds: list[int] = []
    recorder.on_decision = lambda *_: seeds.append(recorder.inner.distiller.data_seed)
    search(learner(recorder), recorder, 1, 2, seed=0, logger_folder=None)
    assert seeds[0] == final[1] != final[0]


def test_a_dummy_vector_of_recorders_steps_and_resets_itself(make: Make) -> None:
    recorder = make(updates=2)
    vector = DummyVecEnv([lambda: gym.wrappers.FlattenObservation(recorder)])
    vector.seed(0)
    vector.reset()
    done = [bool(vector.step(np.ones((1, 3), np.float32))[2][0]) for _ in range(5)]
    assert done == [False, True, False, True, False]
    assert [row.episode for row in rows(recorder)] == [0, 0, 1, 1, 2]


# --------------------------------------------------------------------------- play


def test_a_seed_gives_every_policy_the_same_batches(make: Make) -> None:
    recorder = make("final", updates=4)
    setup = recorder.inner.setup
    policies = [Watched(setup, [1, 0, 0]), Watched(setup, [0, 1, 1])]
    for policy, measure in zip(policies, (True, False), strict=True):
        play(policy, recorder, seed=7, measure=measure)
    assert policies[0].batches == policies[1].batches
    assert len({tuple(batch) for batch in policies[0].batches}) == 4
    again = Watched(setup, [1, 0, 0])
    play(again, recorder, seed=8, measure=False)
    assert again.batches != policies[0].batches


def test_play_returns_what_the_rows_say(make: Make) -> None:
    recorder = make("final", updates=5, env={"phase_steps": 2})
    marks: list[int] = []
    first = play(
        static_policy(["label", "response"], POOL),
        recorder,
        seed=0,
        measure=True,
        on_update=marks.append,
    )
    assert (first.updates, first.decisions, first.reason) == (5, 3, None)
    assert marks == [2, 4, 5]
    got = rows(recorder)
    assert first.rewards == (pytest.approx(sum(row.reward for row in got)),)
    assert all(row.action.tolist() == [1, 1, 0] for row in got)
    assert all(row.log_prob == 0 for row in got)
    assert all(row.probabilities.tolist() == [1, 1, 0] for row in got)
    # a second episode on the same recorder counts its own figures only
    second = play(static_policy(["label"], POOL), recorder, seed=0, measure=False)
    assert (second.updates, second.decisions, second.rewards) == (5, 3, (0.0,))
    assert second.seconds < recorder.seconds


def test_seconds_leave_evaluations_out(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def wait(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    recorder = make("final", updates=3)
    inner_step, inner_reset = recorder.inner.step, recorder.inner.reset

    def step(action: Any) -> Any:
        wait(1)
        return inner_step(action)

    def reset(**arguments: Any) -> Any:
        wait(10)
        return inner_reset(**arguments)

    monkeypatch.setattr(recorder.inner, "step", step)
    monkeypatch.setattr(recorder.inner, "reset", reset)
    policy = static_policy(["label"], POOL)
    rule = policy.rule

    def slow(*arguments: Any) -> Choice:
        wait(0.25)
        return rule(*arguments)

    policy.rule = slow
    played = play(policy, recorder, seed=0, measure=False, on_update=lambda update: wait(100))
    assert played.seconds == pytest.approx(10 + 3 * 1 + 3 * 0.25)


def test_random_policies_repeat_with_the_seed(make: Make) -> None:
    def actions(seed: int) -> list[list[float]]:
        torch.rand(1)
        np.random.rand(1)  # noqa: NPY002 - the global generators must not matter
        recorder = make("final", updates=6)
        play(random_hard_policy(0.5, POOL), recorder, seed=seed, measure=False)
        return [row.action.tolist() for row in rows(recorder)]

    first = actions(3)
    assert actions(3) == first
    assert actions(4) != first
    assert len({tuple(action) for action in first}) > 1


def test_soft_policies_play(make: Make) -> None:
    recorder = make("final", updates=4, env={"actions": "soft"})
    play(fixed_policy("random_soft", {}, POOL, True), recorder, seed=0, measure=False)
    actions = np.stack([row.action for row in rows(recorder)])
    assert ((actions > 0) & (actions < 1)).all()


def test_a_diverging_student_ends_the_play_with_a_reason(make: Make) -> None:
    recorder = make("final", updates=6, optim={"learning_rate": 1e30})
    marks: list[int] = []
    played = play(
        static_policy(["label"], POOL), recorder, seed=0, measure=False, on_update=marks.append
    )
    assert played.reason is not None
    assert "label" in played.reason
    assert played.updates < 6
    assert marks == list(range(1, played.updates + 1))
    assert rows(recorder)[-1].terminated


def entropies(recorder: Recorder) -> list[float]:
    number = recorder.inner.feature_names.index("student_entropy")
    return [float(row.observation[number]) for row in rows(recorder)]


def test_dynamic_is_shown_a_fresh_entropy_without_rewards(make: Make) -> None:
    soft = {"actions": "soft"}
    recorder = make("final", updates=5, env=soft, optim={"learning_rate": 0.02})
    policy = dynamic_policy(0.5, POOL)
    before = recorder.inner.distiller.ledger.copy()
    played = play(policy, recorder, seed=0, measure=False, observe=True)
    spent = recorder.inner.distiller.ledger.since(before)
    assert spent.seconds.get("held_out", 0) == 0
    assert played.rewards == (0.0,)
    assert all(math.isnan(row.reward) for row in rows(recorder))
    seen = entropies(recorder)
    assert seen[0] == seen[1]  # both look at the first batch, before its update
    assert len(set(seen)) == 4
    assert 0 < min(seen) < max(seen) <= 1
    for row, u in zip(rows(recorder), seen, strict=True):
        np.testing.assert_allclose(row.action, [0.5, 1 - u, u], rtol=1e-6)
    # played once more from its record, with the same things observed
    again = make("again", updates=5, env=soft, optim={"learning_rate": 0.02})
    actions = np.stack([row.action for row in rows(recorder)])
    follow(actions, again, seed=0, measure=False, observe=True)
    assert entropies(again) == seen
    for first, second in zip(rows(recorder), rows(again), strict=True):
        assert np.array_equal(first.loss, second.loss, equal_nan=True)


def test_nothing_is_observed_unless_asked_for(make: Make) -> None:
    recorder = make("final", updates=3, env={"actions": "soft"})
    play(dynamic_policy(1.0, POOL), recorder, seed=0, measure=False)
    assert set(entropies(recorder)) == {0.0}
    again = make("again", updates=3, env={"actions": "soft"})
    follow(np.ones((3, 3), np.float32), again, seed=0, measure=False)
    assert set(entropies(again)) == {0.0}
    measured = make("measured", updates=3, env={"actions": "soft"})
    play(dynamic_policy(1.0, POOL), measured, seed=0, measure=True)
    assert 0.0 not in entropies(measured)


@pytest.mark.parametrize("soft", [False, True])
def test_the_exploration_reward_compares_phases(make: Make, soft: bool) -> None:
    recorder = make(
        updates=7,
        env={
            "phase_steps": 2,
            "exploration": 0.5,
            "reward_scale": "none",
            "actions": "soft" if soft else "hard",
        },
    )
    a, b = [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]
    recorder.reset(seed=0)
    for action in (a, a, b, a):
        recorder.step(action)
    bonus = [(row.reward - row.drop) / 0.5 for row in rows(recorder)]
    assert [row.update for row in rows(recorder)] == [0, 2, 4, 6]
    if soft:
        expected = [0.0, -1.0, -0.6, -0.6]
    else:
        expected = [1.0, 1 / math.sqrt(2), 1.0, 1 / math.sqrt(3)]
    np.testing.assert_allclose(bonus, expected, atol=1e-5)
