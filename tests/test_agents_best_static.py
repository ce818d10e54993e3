from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tiny
from gymnasium import spaces
from job import run_job, small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.best_static import BestStaticAgent
from agents.halving import (
    Play,
    Rung,
    best_mask,
    budget_of,
    candidate_masks,
    halving,
    search_plan,
)
from agents.make import (
    check_agent,
    check_rewards,
    check_settings,
    make_agent,
    resolve_objective,
    resolve_reward,
    resolve_search,
)
from agents.policy import Learner, Resumable, load_policy
from envs.distillation import DistillationEnv
from envs.held_out import HeldOut
from envs.recording import Recorder
from ksel.checks import check_unrewarded
from ksel.config import RunConfig, StageConfig
from ksel.errors import UsageError
from ksel.settings import config_from_dict, config_from_file
from ksel.trajectory import ScheduleWriter

POOL = ("label", "response", "hidden/skip", "cls_hidden/skip")
BEST = np.array([1, 0, 1, 0])


class Students(gym.Env):
    """An objective that falls by what the mask is worth per update; from another seed a little else.

    Args:
        worth: mask [K] -> drop of the objective per decision.
        noise: size of what the order of the batches, the same for all masks, adds to each type.
        tells: give the objective in ``info``.
    """

    def __init__(self, worth: Any, noise: float = 0.0, tells: bool = True) -> None:
        self.worth, self.noise, self.tells = worth, noise, tells
        self.action_space = spaces.MultiBinary(len(POOL))
        self.observation_space = spaces.Dict({"training": spaces.Box(-1, 1, (26,))})
        self.plays: list[dict[str, Any]] = []

    def _info(self) -> dict[str, Any]:
        return {"objective": self.objective} if self.tells else {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is not None
        self.left, self.objective = options["updates"], 2.0
        self.luck = self.noise * self.np_random.standard_normal(len(POOL))
        self.plays.append({"seed": seed, "updates": self.left, "masks": []})
        return {"training": np.zeros(26, np.float32)}, self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.left > 0
        mask = np.asarray(action)
        drop = float(self.worth(mask) + self.luck @ mask)
        self.objective -= drop
        self.left -= 1
        self.plays[-1]["masks"].append(tuple(int(bit) for bit in mask))
        info = self._info()
        if not np.isfinite(drop):
            info = {"reason": "a loss is not finite"}
        over = self.left == 0 or "reason" in info
        return {"training": np.zeros(26, np.float32)}, drop, over, False, info


def worth(mask: np.ndarray) -> float:
    return 0.01 * (1 - np.abs(mask - BEST).sum())


def config_of(count: int = 2, **changes: Any) -> RunConfig:
    config = RunConfig(agent="best_static")
    config.knowledge.pool = list(POOL)
    config.episodes.count = count
    for name, value in changes.items():
        setattr(config.best_static, name, value)
    return config


def build(env: Students, config: RunConfig) -> BestStaticAgent:
    agent = make_agent(config, POOL, env.observation_space, env.action_space)
    assert isinstance(agent, BestStaticAgent)
    assert isinstance(agent, Learner)
    return agent


# --------------------------------------------------------------------------- candidates and rounds


def test_candidates_come_in_their_order_and_never_twice() -> None:
    masks = candidate_masks(("response", "label", "hidden/skip"), 100, np.random.default_rng(0))
    # all; the answers alone, the states alone; each alone; the label with another; all but one
    assert masks[:6] == [(1, 1, 1), (1, 1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), (0, 1, 1)]
    assert masks[6:] == [(1, 0, 1)]  # three types have seven masks
    big = ("label", "response", *"abcde")
    many = candidate_masks(big, 40, np.random.default_rng(3))
    assert len(many) == len(set(many)) == 40
    assert all(any(mask) for mask in many)
    # all, the two answers, the rest without them, 7 alone, 5 more with the label, 7 with one left out
    assert many[:3] == [(1,) * 7, (1, 1, 0, 0, 0, 0, 0), (0, 0, 1, 1, 1, 1, 1)]
    assert Counter(sum(mask) for mask in many[:22]) == {7: 1, 5: 1, 1: 7, 2: 6, 6: 7}
    assert many == candidate_masks(big, 40, np.random.default_rng(3))
    other = candidate_masks(big, 40, np.random.default_rng(4))
    assert other[:22] == many[:22]
    assert other[22:] != many[22:]


def test_candidates_of_a_pool_without_a_label() -> None:
    masks = candidate_masks(("response", "hidden/skip"), 9, np.random.default_rng(0))
    assert masks == [(1, 1), (1, 0), (0, 1)]


def test_rounds_are_hand_worked() -> None:
    # 27, 9, 3 masks: 90 of the 270 each, and the last round has what the first could not use
    assert halving(27, 270, 1000, 3) == (Rung(27, 3), Rung(9, 10), Rung(3, 33))
    assert halving(16, 64, 1000, 2) == (Rung(16, 1), Rung(8, 2), Rung(4, 4), Rung(2, 8))
    # the longest play has 12; what 3 x 12 leaves over goes to the rounds before: 117 each
    assert halving(27, 270, 12, 3) == (Rung(27, 4), Rung(9, 12), Rung(3, 12))
    # 83 // 9 = 9 for the last, 56 // 14 = 4, 28 // 20 = 1; of the 8 left the last round takes 2 x 3
    assert halving(20, 83, 50, 3) == (Rung(20, 1), Rung(7, 4), Rung(3, 11))
    assert halving(2, 11, 50, 3) == (Rung(2, 5),)


@pytest.mark.parametrize("decisions", [30, 42, 77, 414, 1000, 5003])
@pytest.mark.parametrize("eta", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_plan_stays_within_its_budget(decisions: int, eta: int, count: int) -> None:
    rungs = search_plan(config_of(count, eta=eta), POOL, decisions)
    spent = sum(rung.masks * rung.decisions for rung in rungs)
    lengths = [rung.decisions for rung in rungs]
    assert spent <= decisions
    assert lengths == sorted(lengths)
    assert lengths[0] >= 5
    assert lengths[-1] <= decisions // count
    full = all(length == decisions // count for length in lengths)
    assert full or decisions - spent < rungs[-1].masks or lengths[-1] == decisions // count


def test_a_short_search_compares_fewer_masks() -> None:
    assert search_plan(config_of(), POOL, 10_000)[0].masks == 15  # four types have no more
    assert search_plan(config_of(candidates=9), POOL, 10_000)[0].masks == 9
    short = search_plan(config_of(), POOL, 60)
    assert 2 <= short[0].masks < 15
    assert short[0].decisions >= 5
    assert search_plan(config_of(least=1), POOL, 60)[0].masks == 15


def test_a_search_too_short_for_two_masks_is_refused() -> None:
    assert search_plan(config_of(), POOL, 10) == (Rung(2, 5),)
    with pytest.raises(UsageError, match=r"9 decisions is too short .* --best_static.least 5"):
        search_plan(config_of(), POOL, 9)
    with pytest.raises(UsageError, match=r"9 decisions is too short"):
        check_agent(config_of(), POOL, 9, [])
    with pytest.raises(UsageError, match=r"--knowledge\.pool has one type \(label\)"):
        search_plan(config_of(), ("label",), 100)


def test_plays_have_room_for_all_stages() -> None:
    config = config_of()
    config.env.phase_steps = 3
    assert budget_of(config, 5) == 15
    config.stages = [StageConfig(share=0.5), StageConfig(share=0.5)]
    assert budget_of(config, 5) == 13  # 6 + 7 updates: 2 + 3 decisions; 14 would need 3 + 3
    assert budget_of(config, 1) == 0
    config.stages = [StageConfig(share=0.05), StageConfig(share=0.95)]
    assert search_plan(config, POOL, 400)[0].decisions >= 5
    config.env.phase_steps = 1
    # a first stage of a twentieth needs plays of 11 updates or more
    assert search_plan(config, POOL, 400)[0].decisions > 10


# --------------------------------------------------------------------------- the search


def test_the_best_mask_is_found() -> None:
    for seed in range(5):
        env = Students(worth, noise=0.002)
        agent = build(env, config_of())
        assert not agent.learned
        assert agent.figures() == {}
        taken = agent.learn(env, 300, seed=seed)
        assert agent.learned
        assert taken == sum(len(play["masks"]) for play in env.plays) <= 300
        policy = agent.frozen()
        assert policy.mask == ("label", "hidden/skip")
        assert agent.figures()["mask"] == ["label", "hidden/skip"]


def test_the_noise_of_a_round_is_common_to_its_masks() -> None:
    env = Students(worth, noise=1.0)
    agent = build(env, config_of())
    agent.learn(env, 300, seed=0)
    rungs = search_plan(config_of(), POOL, 300)
    at = 0
    seeds = []
    for rung in rungs:
        plays = env.plays[at : at + rung.masks]
        assert len({play["seed"] for play in plays}) == 1
        assert {play["updates"] for play in plays} == {rung.decisions}
        assert {len(play["masks"]) for play in plays} == {rung.decisions}
        assert all(len(set(play["masks"])) == 1 for play in plays)
        seeds.append(plays[0]["seed"])
        at += rung.masks
    assert at == len(env.plays)
    assert len(set(seeds)) == len(rungs)  # each round has batches of its own


def test_the_best_of_a_round_go_on() -> None:
    env = Students(worth)
    agent = build(env, config_of())
    agent.learn(env, 300, seed=0)
    rungs = search_plan(config_of(), POOL, 300)
    for number, rung in enumerate(rungs[1:], 2):
        before = [play for play in agent.plays if play.rung == number - 1]
        now = [play for play in agent.plays if play.rung == number]
        ordered = sorted(before, key=lambda play: -(play.score or 0))
        assert [play.mask for play in now] == [play.mask for play in ordered[: rung.masks]]
    first = agent.plays[0]
    assert first.mask == POOL
    assert first.score == pytest.approx(first.decisions * worth(np.ones(4)))


def test_the_score_is_the_drop_or_where_none_is_told_the_reward() -> None:
    tables = []
    for tells in (True, False):
        env = Students(worth, tells=tells)
        agent = build(env, config_of())
        agent.learn(env, 120, seed=0)
        tables.append([(play.mask, play.score) for play in agent.plays])
    for told, paid in zip(*tables, strict=True):
        assert told[0] == paid[0]
        assert told[1] == pytest.approx(paid[1])


def test_a_mask_that_diverges_is_last() -> None:
    def hard(mask: np.ndarray) -> float:
        return float("nan") if mask.sum() > 2 else worth(mask)

    env = Students(hard)
    agent = build(env, config_of())
    taken = agent.learn(env, 300, seed=0)
    assert agent.plays[0].score is None
    assert agent.plays[0].decisions == 1
    assert taken < 300
    assert agent.frozen().mask == ("label", "hidden/skip")
    assert all(len(play.mask) <= 2 for play in agent.plays if play.rung > 1)


def test_the_same_seed_searches_the_same() -> None:
    def table(seed: int) -> tuple[list[Any], list[Any]]:
        env = Students(worth, noise=0.01)
        agent = build(env, config_of(candidates=12))
        agent.learn(env, 200, seed=seed)
        return agent.plays, env.plays

    assert table(1) == table(1)
    assert table(1)[0] != table(2)[0]


def test_reports_are_made_of_each_decision_and_stop_is_asked(tmp_path: Path) -> None:
    env = Students(worth)
    agent = build(env, config_of())
    told: list[tuple[Any, float]] = []
    seen: list[int] = []
    taken = agent.learn(
        env,
        120,
        seed=0,
        logger_folder=tmp_path,
        on_step=lambda probabilities, log_prob: told.append((tuple(probabilities), log_prob)),
        progress=seen.append,
    )
    assert seen == list(range(1, taken + 1))
    assert [mask for mask, _ in told] == [m for play in env.plays for m in play["masks"]]
    assert {log_prob for _, log_prob in told} == {0.0}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Scalars("search/score")) == len(agent.plays)
    assert [event.value for event in events.Scalars("search/rung")] == [
        play.rung for play in agent.plays
    ]

    for after in (1, len(env.plays[0]["masks"]), 33):
        env = Students(worth)
        agent = build(env, config_of())
        taken = agent.learn(env, 120, seed=0, stop=lambda env=env, after=after: steps(env) >= after)
        assert taken == steps(env) == after
        assert agent.learned is (after > 1)


def steps(env: Students) -> int:
    return sum(len(play["masks"]) for play in env.plays)


@pytest.mark.parametrize("every", [1, 7])
def test_a_search_goes_on_from_the_middle_of_a_play(every: int) -> None:
    config = config_of(candidates=6)
    env = Students(worth, noise=0.01)
    whole = build(env, config)
    kept: list[tuple[int, dict[str, Any], dict[str, Any]]] = []

    def keep(taken: int, state: Any) -> None:
        if taken % every == 0:
            kept.append((taken, json.loads(json.dumps(state())), dict(vars(env))))

    whole.keep = keep
    assert isinstance(whole, Resumable)
    total = whole.learn(env, 120, seed=2)
    assert len(kept) > 10 or every > 1
    for taken, state, at in kept[::3]:
        again = Students(worth, noise=0.01)
        vars(again).update({**at, "plays": [{"masks": []}]})
        agent = build(again, config)
        agent.state = state
        seen: list[int] = []
        assert agent.learn(again, 120, seed=2, progress=seen.append) == total
        assert seen == list(range(taken + 1, total + 1))
        assert agent.plays == whole.plays


def test_what_was_not_learned_cannot_be_frozen() -> None:
    with pytest.raises(RuntimeError, match="learn"):
        build(Students(worth), config_of()).frozen()


def test_a_search_cut_short_gives_the_best_so_far() -> None:
    env = Students(worth)
    agent = build(env, config_of())
    rungs = search_plan(config_of(), POOL, 300)
    first = rungs[0].masks * rungs[0].decisions
    stop = first + rungs[1].decisions + 1
    agent.learn(env, 300, seed=0, stop=lambda: steps(env) >= stop)
    assert [play.rung for play in agent.plays] == [1] * rungs[0].masks + [2]
    assert best_mask(agent.plays) == ("label", "hidden/skip")


def test_the_last_round_decides_and_of_equals_the_first() -> None:
    first = [Play(("label",), 1, 5, 0.9), Play(("response",), 1, 5, 0.8), Play(POOL, 1, 5, 0.7)]
    assert best_mask(first) == ("label",)
    last = [Play(("label",), 2, 20, 0.1), Play(("response",), 2, 20, 0.3), Play(POOL, 2, 20, 0.3)]
    assert best_mask([*first, *last]) == ("response",)
    diverged = Play(("label",), 2, 3, None)
    assert best_mask([*first, diverged, Play(POOL, 2, 20, -0.4)]) == POOL


# --------------------------------------------------------------------------- settings and files


def test_fewer_masks_than_wanted_are_said() -> None:
    for decisions, less in ((60, True), (3000, False)):
        env = Students(worth)
        agent = build(env, config_of())
        agent.learn(env, decisions, seed=0)
        (line,) = agent.figures()["says"]
        assert line.startswith(f"best_static: {', '.join(agent.frozen().mask)} is the best of ")
        few = "of the 15 wanted; the search has no room for more: raise --episodes.count, or lower"
        assert (few in line) is less


@pytest.mark.parametrize(
    ("group", "name", "value", "words"),
    [
        ("best_static", "candidates", 1, r"--best_static\.candidates is 1; give 2"),
        ("best_static", "eta", 1, r"--best_static\.eta is 1; give 2"),
        ("best_static", "least", 0, r"--best_static\.least is 0; give 1"),
        ("episodes", "final", "mode", r"--episodes\.final mode has no effect"),
        ("env", "cost_per_type", 0.1, r"--env\.cost_per_type is not used with --agent best_static"),
        ("env", "reward_scale", "none", r"--env\.reward_scale is not used with"),
        ("env", "exploration", 0.1, r"--env\.exploration is not used with"),
        ("env", "final_metric", 0.1, r"--env\.final_metric is not used with"),
        ("env", "observe", ["training", "student_cls"], r"--env\.observe is not used by"),
        ("env", "actions", "soft", r"--env\.actions soft does not work with --agent best_static"),
        ("static", "mask", ["label"], r"--static\.mask is not used by --agent best_static"),
    ],
)
def test_settings_without_use_are_refused(group: str, name: str, value: Any, words: str) -> None:
    config = config_of()
    setattr(getattr(config, group), name, value)
    with pytest.raises(UsageError, match=words):
        check_settings(config)


def test_it_is_paid_measured_drops_in_episodes() -> None:
    assert resolve_reward("best_static", "auto") == "measured"
    assert resolve_search("best_static", "auto") == "episodes"
    with pytest.raises(UsageError, match="compares measured drops"):
        resolve_reward("best_static", "amortized")
    with pytest.raises(UsageError, match="needs students of its own to compare"):
        resolve_search("best_static", "online")


@pytest.mark.parametrize(
    ("values", "objective"),
    [
        ({}, "probe"),
        ({"task": "stsb"}, "probe"),
        ({"rows": {"reward": 16}}, "probe"),
        ({"rows": {"reward": 15}}, "calibrated"),
        ({"students": 2}, "calibrated"),
        ({"task": "squad"}, "calibrated"),
        ({"task": "custom", "custom": {"kind": "span"}}, "calibrated"),
        ({"env": {"objective": "margin"}}, "margin"),
        ({"env": {"objective": "cross_entropy"}}, "cross_entropy"),
        ({"agent": "a2c"}, "cross_entropy"),
        ({"agent": "all_action"}, "cross_entropy"),
    ],
)
def test_it_compares_what_the_states_know_where_that_can_be_seen(
    values: dict[str, Any], objective: str
) -> None:
    config = config_from_dict({"agent": "best_static", **values})
    assert resolve_objective(config) == objective


@pytest.mark.parametrize("agent", ["static", "race"])
def test_what_auto_stands_for_may_be_said_where_nothing_is_rewarded(agent: str) -> None:
    """A run's config.yaml says it, and is read again."""
    for objective, refused in (("auto", False), ("cross_entropy", False), ("calibrated", True)):
        config = config_from_dict({"agent": agent, "env": {"objective": objective}})
        check = check_rewards if agent == "race" else partial(check_unrewarded, observes=False)
        with pytest.raises(UsageError) if refused else nullcontext():
            check(config)


def test_the_policy_comes_back_with_its_table(tmp_path: Path) -> None:
    env = Students(worth)
    agent = build(env, config_of())
    agent.learn(env, 200, seed=0)
    policy = agent.frozen()
    policy.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
    loaded = load_policy(tmp_path, pool=POOL, observation={})
    assert (loaded.name, loaded.soft, loaded.learns, loaded.pool) == (
        *("best_static", False, True),
        POOL,
    )
    assert loaded.plays == policy.plays == tuple(agent.plays)
    with pytest.raises(RuntimeError, match="reset"):
        loaded.act({})
    loaded.reset(np.random.default_rng(0))
    choice = loaded.act({})
    assert choice.action.tolist() == BEST.tolist()
    assert (choice.probabilities.tolist(), choice.log_prob) == (BEST.tolist(), 0.0)


@pytest.mark.parametrize(
    "change",
    [{"mask": ["other"]}, {"mask": []}, {"plays": [{"mask": []}]}, {"plays": 3}, {"soft": True}],
)
def test_a_damaged_policy_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    env = Students(worth)
    agent = build(env, config_of())
    agent.learn(env, 60, seed=0)
    agent.frozen().save(tmp_path)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match="damaged"):
        load_policy(tmp_path, pool=POOL, observation={})


# --------------------------------------------------------------------------- real students


def test_real_students_are_scored_as_they_are(tiny_setup: Any) -> None:
    """The table's score is what the same mask earns when played by hand."""
    setup = tiny_setup(env={"phase_steps": 2})
    env = DistillationEnv(setup=setup)
    pool = setup.pool.names
    config = RunConfig(agent="best_static")
    config.env.phase_steps, config.best_static.least, config.best_static.candidates = 2, 1, 4
    agent = BestStaticAgent(config, pool)
    agent.learn(env, 12, seed=3)
    rungs = search_plan(config, pool, 12)
    assert [play.decisions for play in agent.plays] == [
        rung.decisions for rung in rungs for _ in range(rung.masks)
    ]
    rng = np.random.default_rng([3, 13])
    candidate_masks(pool, 4, rng)
    order = int(rng.integers(2**31, size=len(rungs))[0])
    play = agent.plays[1]
    assert play.mask == ("label", "response")
    _, info = env.reset(seed=order, options={"updates": 2 * play.decisions})
    start, over = info["objective"], False
    while not over:
        _, _, over, _, info = env.step([1, 1, 0, 0, 0])
    assert play.score == start - info["objective"]
    scores = [play.score for play in agent.plays if play.rung == 1]
    assert len(set(scores)) == len(scores)


def search_of_real_students(setup: Any, updates: int) -> tuple[BestStaticAgent, Recorder]:
    """A recorded search of so many updates, in an environment with the setup's ``phase_steps``."""
    env = DistillationEnv(setup=setup)
    meta = {"soft": False, "task": "rte", "agent": "best_static", "seed": 0}
    recorder = Recorder(env, "search", ScheduleWriter(env.pool_names, env.feature_names, meta))
    config = RunConfig(agent="best_static")
    config.env.phase_steps = setup.config.env.phase_steps
    config.best_static.least, config.best_static.candidates = 1, 3
    agent = BestStaticAgent(config, setup.pool.names)
    agent.learn(recorder, updates // config.env.phase_steps, seed=3)
    return agent, recorder


@pytest.mark.parametrize("phase_steps", [1, 3])
def test_a_play_is_measured_at_both_ends_alone(tiny_setup: Any, phase_steps: int) -> None:
    setup = tiny_setup(env={"phase_steps": phase_steps})
    agent, _ = search_of_real_students(setup, 18)
    assert len(agent.plays) == 3
    assert sum(play.decisions for play in agent.plays) == 18 // phase_steps
    assert setup.ledger.examples["held_out"] == 2 * len(agent.plays) * len(setup.reward)
    assert setup.ledger.examples["student_forward"] == 18 * setup.config.batching.size


def test_the_schedule_says_where_a_play_was_measured(tiny_setup: Any) -> None:
    agent, recorder = search_of_real_students(tiny_setup(), 18)
    rows = recorder.writer.rows("search")
    for number, play in enumerate(agent.plays):
        own = [row for row in rows if row.episode == number]
        assert [row.terminated for row in own] == [False] * (play.decisions - 1) + [True]
        for name in ("reward", "drop", "objective"):
            known = [np.isfinite(getattr(row, name)) for row in own]
            assert known == [row.terminated for row in own], name
        assert own[-1].reward == own[-1].drop == play.score == recorder.rewards[number]
        assert own[-1].reward_scale == 1.0


def test_a_real_play_whose_objective_is_not_finite_is_last(
    tiny_setup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, looks = HeldOut.objective, []

    def broken(self: HeldOut) -> float:
        looks.append(value(self))
        return float("nan") if len(looks) == 2 else looks[-1]

    monkeypatch.setattr(HeldOut, "objective", broken)
    agent, recorder = search_of_real_students(tiny_setup(), 18)
    assert [play.score is None for play in agent.plays] == [True, False, False]
    assert agent.frozen().mask != agent.plays[0].mask
    last = next(row for row in recorder.writer.rows("search") if row.terminated)
    assert (last.reward, np.isnan(last.drop)) == (-1.0, True)


@pytest.mark.slow
def test_the_whole_job(tmp_path: Path, tiny_data: Path, tiny_teacher: Path) -> None:
    settings = tiny.settings(tiny_data, tiny_teacher, tmp_path / "store")
    changes = {"agent": "best_static", "best_static": {"least": 1}, "references": ["finetune"]}
    outcome = run_job(tmp_path, small(settings, changes))
    assert outcome.code == 0, outcome.err
    assert config_from_file(outcome.folder / "config.yaml").env.objective == "probe"
    found = outcome.summary["search"]["learned"]
    mask = [name in found["mask"] for name in outcome.schedule.pool]
    assert (outcome.schedule.actions("final") == np.array(mask)).all()
    assert outcome.summary["search"]["updates"] <= 12
    assert outcome.summary["search"]["episodes"] == len(found["plays"])
    assert outcome.summary["search"]["rewards"] == [play["score"] for play in found["plays"]]
    saved = json.loads((outcome.folder / "policy" / "policy.json").read_text())
    assert saved["mask"] == found["mask"]
    assert saved["plays"] == found["plays"]
    assert found["says"][0] in outcome.out + outcome.err
