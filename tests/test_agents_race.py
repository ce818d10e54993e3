from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from job import Outcome, run_job, small

import ksel.replay
from agents.make import check_settings, make_agent
from agents.policy import Learner, Resumable, load_policy
from agents.race import NAME, HeatRecord, RaceAgent, RacePolicy
from agents.racing import Heats, challengers, family, plan_heats
from agents.table import resolve_reward, resolve_search
from envs.distillation import DistillationEnv
from envs.heats import Heat, ahead, run_heat
from ksel.cli import guard
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.objectives import objective_rows, objective_value, of_heats
from ksel.tasks import get_task
from ksel.trajectory import read_schedule

POOL = ("label", "response", "hidden/skip", "value_relation/last_1", "sample_similarity")
ALL, ANSWERS = (1, 1, 1, 1, 1), (1, 1, 0, 0, 0)


def config_of(**race: Any) -> RunConfig:
    config = RunConfig(agent=NAME)
    config.knowledge.pool = list(POOL)
    for name, value in race.items():
        setattr(config.race, name, value)
    return config


# --------------------------------------------------------------------------- rules


def test_families() -> None:
    assert [family(name) for name in POOL] == [
        "answers",
        "answers",
        "states",
        "relations",
        "samples",
    ]
    assert family("logits@2") == "answers"
    assert family("attention/skip") == "relations"


def test_challengers_of_all_on() -> None:
    masks = challengers(ALL, POOL, np.ones(5, bool))
    assert masks[:4] == [ANSWERS, (1, 1, 1, 0, 1), (1, 1, 1, 1, 0), (1, 1, 0, 1, 1)]
    assert len(masks) == len(set(masks))
    assert ALL not in masks
    assert (0, 0, 1, 1, 1) in masks  # all but the answers
    assert (0, 1, 1, 1, 1) in masks  # one type less


def test_challengers_of_the_answers_add_a_family() -> None:
    masks = challengers(ANSWERS, POOL, np.ones(5, bool))
    assert masks[:4] == [(1, 1, 1, 0, 0), (1, 1, 0, 0, 1), (1, 1, 0, 1, 0), ALL]
    assert (0, 0, 0, 0, 0) not in masks


def test_challengers_leave_alone_what_a_stage_does_not_allow() -> None:
    allowed = np.array([True, True, False, False, False])
    masks = challengers(ALL, POOL, allowed)
    assert masks
    assert all(mask[2:] == (1, 1, 1) for mask in masks)
    assert all(any(mask[:2]) for mask in masks)
    assert challengers(ALL, POOL, np.array([True, False, False, False, False])) == []


def test_heats_use_up_the_share() -> None:
    assert plan_heats(150, 0.4, 24) == Heats(2, 30)
    assert plan_heats(60, 0.4, 24) == Heats(1, 24)
    assert plan_heats(600, 0.4, 24) == Heats(10, 24)
    assert plan_heats(20, 0.4, 24) == Heats(1, 8)  # shorter than wanted rather than none
    assert plan_heats(1, 0.1, 24) == Heats(0, 0)
    assert plan_heats(600, 0.4, 24, held=10) == Heats(8, 30)
    assert plan_heats(600, 0.4, 24, held=100) == Heats(2, 100)
    assert plan_heats(150, 0.4, 24, challengers=2) == Heats(1, 30, 2)
    assert plan_heats(60, 0.4, 24, challengers=2) == Heats(1, 24, 1)  # no room for two
    assert plan_heats(600, 0.4, 24, challengers=3) == Heats(3, 26, 3)
    for updates in range(1, 400, 7):
        for held in (1, 2, 5, 30):
            for lanes in (1, 2, 3):
                plan = plan_heats(updates, 0.4, 24, held, lanes)
                assert plan.count * plan.updates * plan.challengers <= 0.4 * updates
                assert plan.updates % held == 0


def test_paired_t_is_that_of_scipy() -> None:
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 50), rng.normal(0.8, 1, 50)
    assert ahead(first, second) == pytest.approx(ttest_rel(first, second).statistic)
    gone = np.full(1, math.nan)
    assert ahead(gone, second) == math.inf
    assert ahead(first, gone) == -math.inf
    assert ahead(gone, gone.copy()) == 0.0
    assert ahead(first, first.copy()) == 0.0
    assert ahead(first, first - 1.0) > 1e6
    with pytest.raises(ValueError, match="one row"):
        ahead(first[:1], second[:1])


@pytest.mark.parametrize("task", ["rte", "stsb"])
@pytest.mark.parametrize("objective", ["cross_entropy", "calibrated"])
def test_rows_of_an_objective_have_its_mean(task: str, objective: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = get_task(task).is_regression
    logits = torch.randn(40, 1 if scores else 2, generator=generator) * 3
    labels = torch.rand(40, generator=generator) * 5 if scores else torch.arange(40) % 2
    rows = objective_rows(objective, logits, labels, get_task(task), 1.0)
    assert rows.shape == (40,)
    value = objective_value(objective, logits, labels, get_task(task), 1.0)
    assert float(rows.mean()) == pytest.approx(value, rel=1e-12)
    logits[3] = math.nan
    assert objective_rows(objective, logits, labels, get_task(task), 1.0).isnan().all()


def test_rows_of_spans_are_windows() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 9, 2, generator=generator)
    labels = torch.randint(9, (6, 2), generator=generator)
    task = get_task("squad")
    rows = objective_rows("cross_entropy", logits, labels, task, 1.0)
    alone = [
        objective_value("cross_entropy", logits[i, None], labels[i, None], task, 1.0)
        for i in range(6)
    ]
    assert rows.tolist() == pytest.approx(alone)


# --------------------------------------------------------------------------- heats of a student


def heat_env(tiny_setup: Any, **changes: Any) -> DistillationEnv:
    values: dict[str, Any] = {"agent": NAME, "optim": {"max_updates": 8}} | changes
    env = DistillationEnv(setup=tiny_setup(**values))
    env.reset(seed=3, options={"measure": False})
    return env


def masks_of(env: DistillationEnv) -> np.ndarray:
    other = np.ones(len(env.pool_names))
    other[0] = 0
    return np.stack([np.ones_like(other), other])


def weights(env: DistillationEnv) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in env.distiller.parameters])


@pytest.mark.parametrize(("doubt", "chosen"), [(1e9, 0), (-1e9, 1)])
def test_the_student_is_that_of_the_lane_that_is_kept(
    tiny_setup: Any, doubt: float, chosen: int
) -> None:
    env = heat_env(tiny_setup)
    masks = masks_of(env)
    env.step(masks[0])
    heat = run_heat(env, masks, 4, doubt, "calibrated")
    assert heat.chosen == chosen
    assert (heat.decisions, env.distiller.cursor, heat.terminated) == (4, 5, False)
    assert env.objective_rows("calibrated").mean() == pytest.approx(heat.objectives[chosen])
    assert heat.t[0] == 0
    after = weights(env)
    env.step(masks[0])
    later = weights(env)

    plain = heat_env(tiny_setup)
    for mask in [masks[0], *[masks[chosen]] * 4]:
        plain.step(mask)
    assert torch.equal(weights(plain), after)
    plain.step(masks[0])
    assert torch.equal(weights(plain), later)


def test_lanes_are_compared_row_by_row(tiny_setup: Any) -> None:
    env = heat_env(tiny_setup)
    masks, rows = masks_of(env), []
    for mask in masks:
        env.reset(seed=3, options={"measure": False})
        for _ in range(3):
            env.step(mask)
        rows.append(env.objective_rows("cross_entropy"))
    env.reset(seed=3, options={"measure": False})
    heat = run_heat(env, masks, 3, 2.0, "cross_entropy")
    assert heat.t[1] == pytest.approx(ahead(rows[0], rows[1]))
    assert heat.objectives.tolist() == pytest.approx([one.mean() for one in rows])


def test_of_three_lanes_the_best_challenger_is_kept(tiny_setup: Any) -> None:
    env = heat_env(tiny_setup)
    masks = np.vstack([masks_of(env), np.eye(len(env.pool_names))[0]])
    heat = run_heat(env, masks, 3, -1e9, "cross_entropy")
    assert heat.chosen == 1 + int(np.argmin(heat.objectives[1:]))
    assert env.objective_rows("cross_entropy").mean() == pytest.approx(heat.objectives[heat.chosen])


def test_a_heat_ends_with_the_episode(tiny_setup: Any) -> None:
    env = heat_env(tiny_setup)
    heat = run_heat(env, masks_of(env), 100, 0.0, "calibrated")
    assert heat.terminated
    assert env.distiller.cursor == 8


def test_a_lane_that_diverges_loses(tiny_setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = heat_env(tiny_setup)
    masks = masks_of(env)
    original = env.distiller.update

    def diverging(action: np.ndarray, **more: Any) -> Any:
        from ksel.records import DivergedError

        if action[0] and env.distiller.cursor == 2:
            raise DivergedError("the loss of label is nan")
        return original(action, **more)

    monkeypatch.setattr(env.distiller, "update", diverging)
    heat = run_heat(env, masks, 4, 2.5, "calibrated")
    assert heat.chosen == 1
    assert heat.t[1] == math.inf
    assert math.isnan(heat.objectives[0])
    assert not heat.terminated
    env.step(masks[1])  # the student goes on


def test_an_interrupted_heat_leaves_the_student_where_it_was(
    tiny_setup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = heat_env(tiny_setup)
    masks = masks_of(env)
    env.step(masks[0])
    before = weights(env)

    def interrupt(objective: str) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "objective_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_heat(env, masks, 3, 2.5, "calibrated")
    assert env.distiller.cursor == 1
    assert torch.equal(weights(env), before)


# --------------------------------------------------------------------------- the agent


class Track:
    """Stands for an environment: each mask has a worth, a lane's t is the difference of worths.

    Args:
        worth: mask -> number.
        updates: step budget.
    """

    def __init__(self, worth: Any, updates: int) -> None:
        self.worth, self.updates, self.held = worth, updates, 1
        self.distiller = SimpleNamespace(cursor=0, place=SimpleNamespace(end=updates))
        self.allowed = np.ones(len(POOL), bool)
        self.masks: list[tuple[int, ...]] = []
        self.resets: list[dict[str, Any]] = []

    def get_wrapper_attr(self, name: str) -> Any:
        return getattr(self, name)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        self.resets.append(arguments)
        self.distiller.cursor = 0
        return {}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.masks.append(tuple(int(bit) for bit in action))
        self.distiller.cursor += 1
        return {}, 0.0, self.distiller.cursor >= self.updates, False, {}

    def heat(self, masks: np.ndarray, updates: int, doubt: float, objective: str) -> Heat:
        assert objective == "auto"
        values = [self.worth(tuple(int(b) for b in mask)) for mask in masks]
        t = np.array(values) - values[0]
        chosen = int(t.argmax()) if t.max() > doubt else 0
        steps: list[Any] = [None] * min(updates, self.updates - self.distiller.cursor)
        self.masks += [tuple(int(b) for b in masks[chosen])] * len(steps)
        self.distiller.cursor += len(steps)
        over = self.distiller.cursor >= self.updates
        return Heat(-np.array(values), t, chosen, steps, {}, over)


def build(**race: Any) -> RaceAgent:
    space = spaces.Dict({"training": spaces.Box(-1, 1, (31,))})
    agent = make_agent(config_of(**race), POOL, space, spaces.MultiBinary(len(POOL)))
    assert isinstance(agent, RaceAgent)
    assert isinstance(agent, Learner)
    assert isinstance(agent, Resumable)
    return agent


def test_a_challenger_that_is_clearly_ahead_takes_over() -> None:
    best = (1, 1, 1, 0, 0)
    track = Track(lambda mask: -3.0 * sum(a != b for a, b in zip(mask, best, strict=True)), 240)
    agent = build(challengers=1)
    said: list[np.ndarray] = []
    assert agent.learn(track, 240, seed=5, on_step=lambda p, _: said.append(p)) == 240
    assert track.resets == [{"seed": 5, "options": {"measure": False}}]
    assert track.masks[-1] == best
    assert [tuple(int(v) for v in p) for p in said] == track.masks
    assert len(agent.heats) == 4
    assert [heat.taken for heat in agent.heats].count(True) >= 1
    # what is frozen is what the student had
    policy = agent.frozen()
    policy.reset(np.random.default_rng(0))
    played = [
        tuple(int(b) for b in policy.act({"training": np.full(31, u / 240, np.float32)}).action)
        for u in range(240)
    ]
    assert played == track.masks


@pytest.mark.parametrize(
    ("t", "taken", "end"),
    [
        (1.14, False, "ahead by 1.1 standard errors, and it takes more than 2: does not take over"),
        (-3.0, False, "behind by 3.0 standard errors: does not take over"),
        (0.0, False, "challenger level: does not take over"),
        (4.0, True, "ahead by 4.0 standard errors: takes over"),
        (4.0, False, "standard errors, another challenger was kept: does not take over"),
        (None, False, "one diverged: does not take over"),
    ],
)
def test_a_heat_in_words(t: float | None, taken: bool, end: str) -> None:
    agent = build()
    agent.heats = [HeatRecord(0, 30, POOL, ("label", "response"), (0.5, 0.6), t, taken)]
    (line,) = agent.figures()["says"]
    assert line.startswith(f"race: updates 0-30: label, response against {', '.join(POOL)}: ")
    assert line.endswith(end)


def test_two_challengers_race_in_one_heat() -> None:
    """Both against the same mask, at the same time; the better one takes over."""
    track = Track(lambda mask: 9.0 if mask == (1, 1, 1, 0, 1) else float(mask == ANSWERS) * 5, 150)
    agent = build()
    agent.learn(track, 150, seed=0)
    assert [(heat.start, heat.end, heat.taken) for heat in agent.heats] == [
        (0, 30, False),
        (0, 30, True),
    ]
    assert {heat.incumbent for heat in agent.heats} == {POOL}
    assert [heat.t for heat in agent.heats] == [5.0, 9.0]
    assert set(track.masks) == {(1, 1, 1, 0, 1)}


def test_a_lead_within_the_noise_changes_nothing() -> None:
    track = Track(lambda mask: 2.0 if mask != ALL else 0.0, 240)
    agent = build(challengers=1)
    agent.learn(track, 240, seed=0)
    assert set(track.masks) == {ALL}
    assert not any(heat.taken for heat in agent.heats)
    assert len({heat.challenger for heat in agent.heats}) == 4  # each races once
    assert agent.frozen().course == [(0.0, POOL)]


@pytest.mark.parametrize("challengers", [1, 2])
def test_it_goes_on_from_a_kept_state(challengers: int) -> None:
    worth = lambda mask: -3.0 * sum(mask)  # noqa: E731
    whole, track = build(challengers=challengers), Track(worth, 120)
    states: list[tuple[int, Any, int]] = []
    whole.keep = lambda taken, state: states.append((taken, state(), track.distiller.cursor))
    whole.learn(track, 120, seed=0)
    for taken, state, cursor in states[:: max(1, len(states) // 6)]:
        other, again = build(challengers=challengers), Track(worth, 120)
        again.distiller.cursor = cursor
        other.state = json.loads(json.dumps(state))
        assert other.learn(again, 120, seed=0) == 120
        assert again.resets == []
        assert other.heats == whole.heats
        assert again.masks == track.masks[taken:]


def test_no_heat_begins_that_its_stage_would_cut_short() -> None:
    track = Track(lambda mask: 0.0, 120)
    track.distiller.place.end = 40  # heats have 24: the second would end at 48
    agent = build(challengers=1)
    agent.learn(track, 120, seed=0)
    assert [(heat.start, heat.end) for heat in agent.heats] == [(0, 24)]


def test_a_mask_of_which_a_stage_allows_nothing_is_widened() -> None:
    first, second = np.array([1, 1, 1, 1, 0], bool), np.array([0, 0, 0, 0, 1], bool)

    class Stages(Track):
        @property
        def allowed(self) -> np.ndarray:
            return first if self.distiller.cursor < 60 else second

        @allowed.setter
        def allowed(self, value: np.ndarray) -> None:
            pass

    # less and less is on, and at last nothing of what the second stage allows
    track = Stages(lambda mask: -3.0 * sum(mask) + 50 * (mask[4] == 0), 120)
    agent = build(challengers=1)
    agent._wear((1, 1, 0, 0, 0), 0)
    original = agent._begin

    def begin(env: Any, decisions: int, seed: int) -> int:
        taken = original(env, decisions, seed)
        agent._wear((1, 1, 0, 0, 0), 0)
        return taken

    agent._begin = begin  # type: ignore[method-assign]
    agent.learn(track, 120, seed=0)
    assert all(any(np.array(mask)[first]) for mask in track.masks[:60])
    assert all(any(np.array(mask)[second]) for mask in track.masks[60:])
    policy = agent.frozen()
    played = [
        tuple(int(b) for b in policy.act({"training": np.full(31, u / 120, np.float32)}).action)
        for u in range(120)
    ]
    assert played == track.masks


def test_a_first_stage_with_one_type_has_no_heat(tmp_path: Path, tiny_settings: Any) -> None:
    pool = ["label", "response", "hidden/skip"]
    changes = {
        "agent": NAME,
        "knowledge": {"pool": pool},
        "race": {"least": 2, "doubt": 0.0, "challengers": 1},
        "optim": {"max_updates": 12},
        "env": {"phase_steps": 2},
        "stages": [{"pool": ["hidden/skip"], "share": 0.34}, {"pool": pool, "share": 0.66}],
    }
    outcome = run_job(tmp_path, small(tiny_settings(), changes))
    assert outcome.code == 0, outcome.err
    heats = outcome.summary["students"][0]["learned"]["heats"]
    assert [(heat["start"], heat["end"]) for heat in heats] == [(4, 6), (6, 8)]
    # the policy can be played again, and nothing is measured on the way
    out = replayed(outcome.folder, "--mode", "policy")
    schedule = read_schedule(next(out.glob("**/schedule.parquet")))
    again = schedule.actions("final", 0)
    assert again.tolist() == outcome.schedule.actions("final", 0).tolist()
    assert schedule.stage("final", 0)["reward"].isna().all()


def replayed(run: Path, *argv: str) -> Path:
    """Replay a run; the folder of the replay."""
    assert guard(ksel.replay.main, [str(run), *argv]) == 0
    return next(path for path in (run / "replays").iterdir() if path.is_dir())


def test_a_policy_is_written_and_read(tmp_path: Path) -> None:
    track = Track(lambda mask: -3.0 * sum(mask), 120)
    agent = build()
    agent.learn(track, 120, seed=0)
    policy = agent.frozen()
    policy.save(tmp_path)
    again = load_policy(tmp_path, pool=POOL, observation={"training": (31,)})
    assert isinstance(again, RacePolicy)
    assert (again.course, again.heats) == (policy.course, policy.heats)
    header = json.loads((tmp_path / "policy.json").read_text())
    for broken in ({"course": []}, {"course": [[0.5, ["label"]]]}, {"course": [[0.0, ["labels"]]]}):
        (tmp_path / "policy.json").write_text(json.dumps(header | broken))
        with pytest.raises(UsageError, match=r"policy\.json"):
            load_policy(tmp_path, pool=POOL, observation={"training": (31,)})


def test_before_anything_was_learned() -> None:
    with pytest.raises(RuntimeError, match="learn"):
        build().frozen()
    policy = RacePolicy([(0.0, ("label",))], [], POOL)
    with pytest.raises(UsageError, match="training"):
        policy.act({})


# --------------------------------------------------------------------------- settings


def refused(change: Any, *words: str) -> None:
    config = config_of()
    change(config)
    with pytest.raises(UsageError) as error:
        check_settings(config)
    for word in words:
        assert word in str(error.value)


def test_settings_that_it_cannot_use_are_refused() -> None:
    check_settings(config_of())
    refused(lambda c: c.knowledge.pool.__delitem__(slice(1, None)), "--knowledge.pool", "static")
    refused(
        lambda c: setattr(c.env, "objective", "calibrated"), "--env.objective", "race.objective"
    )
    refused(lambda c: setattr(c.env, "cost_per_type", 0.1), "--env.cost_per_type")
    refused(lambda c: setattr(c.env, "observe", ["training", "student_cls"]), "--env.observe")
    refused(lambda c: setattr(c.rows, "reward", 8), "--rows.reward 8", "16")
    refused(lambda c: setattr(c, "search", "episodes"), "--search episodes", "one student")
    refused(lambda c: setattr(c.env, "reward", "amortized"), "--env.reward amortized")
    refused(lambda c: setattr(c.episodes, "count", 3), "--episodes.count")
    assert resolve_search(NAME, "auto") == "online"
    assert resolve_reward(NAME, "auto") == "measured"


# --------------------------------------------------------------------------- the job


def raced(folder: Path, tiny_settings: Any, race: dict[str, Any]) -> Outcome:
    """A job of 12 updates that races, with all types on beside it."""
    changes = {
        "agent": NAME,
        "race": race,
        "optim": {"max_updates": 12},
        "references": ["all"],
    }
    outcome = run_job(folder, small(tiny_settings(), changes), report=True)
    assert outcome.code == 0, outcome.err
    return outcome


def test_the_job_races(tmp_path: Path, tiny_settings: Any) -> None:
    outcome = raced(tmp_path, tiny_settings, {"least": 2, "doubt": 0.0, "challengers": 1})
    selected, _ = outcome.summary["students"]
    heats = selected["learned"]["heats"]
    assert [(heat["start"], heat["end"]) for heat in heats] == [(0, 2), (2, 4)]
    assert "race: updates 0-2" in outcome.out
    page = (outcome.folder / "report.html").read_text(encoding="utf-8")
    assert "Heats: the student was forked" in page
    # what the student had is what is recorded, and what is frozen
    schedule = outcome.schedule
    actions = schedule.actions("final", 0)
    assert len(actions) == 12
    masks = [
        [name in heat["challenger" if heat["taken"] else "incumbent"] for name in schedule.pool]
        for heat in heats
    ]
    assert actions.tolist() == [[float(b) for b in masks[min(u // 2, 1)]] for u in range(12)]
    assert schedule.stage("final", 0)["reward"].isna().all()
    assert schedule.stage("final", 0)["objective"].isna().all()
    # the same batches as a plain student, and the lanes that were given up were paid for
    assert outcome.lives[0].start == outcome.lives[1].start
    spent = {
        stage: outcome.summary["cost"]["stages"][stage]["parts"]["student_backward"]["examples"]
        for stage in ("final", "reference:all")
    }
    batch = spent["reference:all"] / 12
    assert spent["final"] == spent["reference:all"] + 2 * 2 * batch


def test_the_job_races_two_at_once_by_what_the_states_hold(
    tmp_path: Path, tiny_settings: Any
) -> None:
    outcome = raced(tmp_path, tiny_settings, {"least": 2, "doubt": 0.0})
    selected, _ = outcome.summary["students"]
    heats = selected["learned"]["heats"]
    assert [(heat["start"], heat["end"]) for heat in heats] == [(0, 2), (0, 2)]
    assert heats[0]["incumbent"] == heats[1]["incumbent"]
    assert heats[0]["challenger"] != heats[1]["challenger"]
    assert sum(heat["taken"] for heat in heats) <= 1
    won = [heat["challenger"] for heat in heats if heat["taken"]]
    ahead_of = [heat["t"] for heat in heats if heat["t"] > 0]
    assert bool(won) is bool(ahead_of)
    schedule = outcome.schedule
    kept = won[0] if won else heats[0]["incumbent"]
    mask = [float(name in kept) for name in schedule.pool]
    assert schedule.actions("final", 0).tolist() == [mask] * 12
    assert "Lines with the same updates are one heat" in (outcome.folder / "report.html").read_text(
        encoding="utf-8"
    )
    spent = {
        stage: outcome.summary["cost"]["stages"][stage]["parts"]["student_backward"]["examples"]
        for stage in ("final", "reference:all")
    }
    assert spent["final"] == spent["reference:all"] * (12 + 2 * 2) / 12


def test_heats_compare_states_where_there_is_one_to_a_text() -> None:
    assert [of_heats("auto", get_task(name)) for name in ("rte", "stsb", "squad")] == [
        "probe",
        "probe",
        "calibrated",
    ]
    assert of_heats("cross_entropy", get_task("squad")) == "cross_entropy"
