"""Stages: shares that add up, boundaries, and what the distiller and the environment make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import make_run

from envs.distillation import DistillationEnv
from envs.recording import Recorder
from ksel.config import StageConfig
from ksel.errors import UsageError
from ksel.optim import linear_schedule
from ksel.setup import Setup
from ksel.stages import build_stages, decision_count, place, stage_ends, window_count
from ksel.summary import opening_lines
from ksel.trajectory import ScheduleWriter, read_schedule

POOL = ("label", "response", "hidden/skip", "cls_hidden/skip@2")


def stages(*pairs: tuple[list[str], float]) -> list[StageConfig]:
    return [StageConfig(pool, share) for pool, share in pairs]


def test_without_stages_everything_can_be_selected_all_the_time() -> None:
    (only,) = build_stages([], POOL, 1e-3)
    assert only.allowed.tolist() == [True] * 4
    assert (only.share, only.learning_rate) == (1.0, 1e-3)


def test_a_stage_takes_its_types_share_and_learning_rate() -> None:
    given_stages = [
        StageConfig(["hidden", "cls_hidden@2"], 0.25, 5e-4),
        StageConfig(["label", "response"], 0.75),
    ]
    first, second = build_stages(given_stages, POOL, 1e-3)
    assert first.allowed.tolist() == [False, False, True, True]
    assert second.allowed.tolist() == [True, True, False, False]
    assert (first.learning_rate, second.learning_rate) == (5e-4, 1e-3)


def test_an_empty_pool_of_a_stage_means_all() -> None:
    first, second = build_stages(stages(([], 0.5), (["label"], 0.5)), POOL, 1e-3)
    assert first.allowed.all()
    assert second.allowed.sum() == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (stages((["label"], 0.5), ([], 0.4)), "add up to 0.9, not to 1"),
        (stages((["label"], 0.0), ([], 1.0)), "stage 1: share 0"),
        (stages((["labels"], 0.5), ([], 0.5)), "Did you mean 'label'"),
        (stages((["label", "label"], 0.5), ([], 0.5)), "'label' stands twice"),
        (stages((["hidden", "hidden/skip"], 0.5), ([], 0.5)), "stands twice"),
        (stages((["label"], 0.5), (["response"], 0.5)), "no stage uses hidden/skip"),
        ([StageConfig([], 1.0, -1.0)], "stage 1: learning_rate -1"),
    ],
)
def test_refuses_what_does_not_add_up(wrong: list[StageConfig], words: str) -> None:
    with pytest.raises(UsageError, match="--stages") as caught:
        build_stages(wrong, POOL, 1e-3)
    assert words in str(caught.value)


def test_ends_are_the_rounded_shares() -> None:
    assert stage_ends((0.5, 0.5), 7) == (4, 7)
    assert stage_ends((0.1, 0.2, 0.7), 10) == (1, 3, 10)
    assert stage_ends((1.0,), 3) == (3,)


def test_a_budget_too_small_for_a_stage_is_refused() -> None:
    with pytest.raises(UsageError, match="budget of 3 updates leaves one of 2 stages"):
        stage_ends((0.1, 0.9), 3)


@given(
    shares=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    updates=st.integers(80, 400),
    phase=st.integers(1, 9),
)
def test_every_update_has_one_place_and_decisions_end_with_their_stage(
    shares: list[int], updates: int, phase: int
) -> None:
    ends = stage_ends([one / sum(shares) for one in shares], updates)
    assert ends[-1] == updates
    decisions, cursor = 0, 0
    for update in range(updates):
        here = place(ends, update)
        assert here.start <= update < here.end
        assert 0 <= here.progress < 1
        assert (here.done == 0) == (update in (0, *ends))
    while cursor < updates:
        cursor += min(phase, place(ends, cursor).end - cursor)
        decisions += 1
    assert decisions == decision_count(ends, phase)


# --------------------------------------------------------------------------- in the distiller

POOL_OF_RUN = ["label", "response", "hidden/skip"]
TWO = [
    {"pool": ["hidden/skip"], "share": 0.5, "learning_rate": 2e-3},
    {"pool": ["label", "response"], "share": 0.5},
]


@pytest.fixture
def staged(tiny_setup: Callable[..., Setup]) -> Setup:
    return tiny_setup(knowledge={"pool": POOL_OF_RUN}, stages=TWO, optim={"max_updates": 8})


def test_a_type_outside_its_stage_is_off_whatever_the_action_says(staged: Setup) -> None:
    distiller = staged.distiller
    distiller.reset(1, 8)
    on = [np.flatnonzero(distiller.update(np.ones(3)).weight).tolist() for _ in range(8)]
    assert on == [[2]] * 4 + [[0, 1]] * 4


def test_each_stage_has_a_learning_rate_schedule_of_its_own(staged: Setup) -> None:
    distiller = staged.distiller
    distiller.reset(1, 8)
    rates = [distiller.update(np.ones(3)).learning_rate for _ in range(8)]
    warmup = staged.config.optim.warmup
    shape = [linear_schedule(update, 4, warmup) for update in range(4)]
    assert rates == [2e-3 * f for f in shape] + [1e-3 * f for f in shape]


def test_a_stage_begins_with_a_fresh_optimiser(tiny_setup: Callable[..., Setup]) -> None:
    """Its first update equals that of a run that begins with these weights."""
    setup = tiny_setup(
        knowledge={"pool": ["label"], "balance": "none"},
        stages=[{"share": 0.5}, {"share": 0.5}],
        optim={"max_updates": 8, "warmup": 0.5},
    )
    distiller = setup.distiller
    distiller.reset(1, 8)
    for _ in range(4):
        distiller.update(np.ones(1))
    assert any(bool(m.any()) for m in distiller._moments)
    distiller.update(np.zeros(1))  # the stage's first update spends its step
    assert not any(bool(m.any()) for m in distiller._moments)


def test_the_batch_carries_the_progress_of_its_stage(staged: Setup) -> None:
    distiller = staged.distiller
    distiller.reset(1, 8)
    seen = []
    for _ in range(8):
        seen.append(distiller.next_batch().progress)
        distiller.update(np.zeros(3))
    assert seen == [0.0, 0.25, 0.5, 0.75] * 2


def test_a_snapshot_across_stages_goes_on_bit_for_bit(staged: Setup) -> None:
    distiller = staged.distiller
    distiller.reset(1, 8)
    for _ in range(3):
        distiller.update(np.ones(3))
    state = distiller.snapshot()

    def rest() -> list[torch.Tensor]:
        for _ in range(5):
            distiller.update(np.ones(3))
        return [t.detach().clone() for t in distiller.tensors]

    first = rest()
    distiller.restore(state)
    assert all(map(torch.equal, first, rest()))


def test_weight_schedules_grow_and_decay_over_each_stage(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup(
        knowledge={
            "pool": POOL_OF_RUN,
            "balance": "none",
            "weights": {"label": 2.0, "response": 3.0},
            "weight_schedules": {"label": "growth", "response": "decay"},
        },
        stages=[{"share": 0.5}, {"share": 0.5}],
        optim={"max_updates": 8},
    )
    setup.distiller.reset(1, 8)
    seen = np.array([setup.distiller.update(np.ones(3)).weight for _ in range(8)])
    growth = np.array([0.0, 0.25, 0.5, 0.75] * 2)
    assert seen[:, 0] == pytest.approx(2.0 * growth)
    assert seen[:, 1] == pytest.approx(3.0 * (1 - growth))
    assert seen[:, 2] == pytest.approx(np.ones(8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": {"max_updates": 1}}, "leaves one of 2 stages without an update"),
        (
            {"optim": {"max_updates": 8}, "episodes": {"share": 0.1}},
            "--episodes.share 0.1: a search episode has 1 updates, too few for 2 stages",
        ),
    ],
)
def test_a_run_whose_budget_leaves_a_stage_empty_is_refused_at_set_up(
    tiny_setup: Callable[..., Setup], changes: dict, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        tiny_setup(knowledge={"pool": POOL_OF_RUN}, stages=TWO, **changes)


def test_a_plain_life_has_neither_stages_nor_schedules_nor_static_weights(
    tiny_setup: Callable[..., Setup],
) -> None:
    setup = tiny_setup(
        knowledge={
            "pool": POOL_OF_RUN,
            "balance": "none",
            "weights": {"label": 0.5},
            "weight_schedules": {"label": "growth"},
        },
        stages=TWO,
        optim={"max_updates": 8},
    )
    distiller = setup.distiller
    distiller.reset(1, 8, plain=True)
    assert distiller.ends == (8,)
    state = distiller.snapshot()
    seen = [distiller.update(np.array([1.0, 0.0, 0.0])) for _ in range(8)]
    assert [update.weight.tolist() for update in seen] == [[1.0, 0.0, 0.0]] * 8
    assert {update.peak for update in seen} == {setup.config.optim.learning_rate}
    distiller.reset(1, 8)
    assert distiller.ends == (4, 8)
    distiller.restore(state)
    assert (distiller.plain, distiller.ends) == (True, (8,))


# --------------------------------------------------------------------------- in the environment


def test_the_learning_rate_is_observed_over_its_stages_peak(staged: Setup) -> None:
    env = DistillationEnv(setup=staged)
    env.reset(seed=1, options={"measure": False})
    seen = [env.step(np.zeros(3))[0]["training"][1] for _ in range(8)]
    assert seen[:4] == pytest.approx(seen[4:])
    assert max(seen) == pytest.approx(1.0)


def test_references_of_one_type_train_in_every_stage(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = make_run(
        tmp_path,
        tiny_data,
        tiny_teacher,
        agent="static",
        references=["finetune", "all"],
        stages=TWO,
        knowledge={"pool": POOL_OF_RUN},
        optim={"max_updates": 8},
    )
    schedule = read_schedule(folder / "schedule.parquet")
    assert schedule.actions("reference:finetune").tolist() == [[1, 0, 0]] * 8
    assert schedule.actions("reference:all").tolist() == schedule.actions("final").tolist()
    learned = schedule.stage("reference:finetune")["loss"].map(lambda row: np.isfinite(row[0]))
    assert learned.all()


def test_a_decision_ends_with_its_stage_and_is_recorded_as_carried_out(
    tiny_setup: Callable[..., Setup],
) -> None:
    setup = tiny_setup(
        knowledge={"pool": POOL_OF_RUN},
        stages=TWO,
        optim={"max_updates": 10},
        env={"phase_steps": 3},
    )
    env = DistillationEnv(setup=setup)
    meta = {"soft": False, "task": "rte", "agent": "static", "seed": 1}
    writer = ScheduleWriter(setup.pool.names, env.feature_names, meta)
    recorder = Recorder(env, "final", writer)
    recorder.reset(seed=1, options={"measure": False})
    updates, terminated = [], False
    while not terminated:
        _, _, terminated, _, info = recorder.step(np.ones(3))
        updates.append(info["update"])
    assert updates == [3, 5, 8, 10]
    assert len(updates) == env.decisions()
    assert np.stack([row.action for row in writer.rows("final")]).tolist() == [
        [0, 0, 1],
        [0, 0, 1],
        [1, 1, 0],
        [1, 1, 0],
    ]


def test_observing_without_measuring_pays_nothing_and_touches_no_reward_rows(
    tiny_setup: Callable[..., Setup],
) -> None:
    setup = tiny_setup(knowledge={"pool": POOL_OF_RUN})
    env = gym.make("ksel/Distillation-v0", setup=setup)
    held_out = setup.ledger.copy()
    blind, _ = env.reset(seed=1, options={"measure": False})
    assert not blind["training"].any()
    seeing, info = env.reset(seed=1, options={"measure": False, "observe": True})
    assert "objective" not in info
    assert seeing["training"][2] > 0  # the student's entropy
    observation, reward, *_ = env.step(np.ones(3))
    assert reward == 0.0
    assert not np.array_equal(observation["training"], seeing["training"])
    measured, _ = env.reset(seed=1)
    assert measured["training"][2] == seeing["training"][2]
    flat = setup.ledger.since(held_out).flat()
    assert flat["cost/held_out_examples"] == len(setup.reward)  # the last reset alone


def test_windows_end_with_decisions_and_the_last_one_with_the_episode() -> None:
    assert [window_count([60], 1, window) for window in (50, 60, 8, 7)] == [2, 1, 8, 9]
    assert window_count([60], 2, 7) == 8  # of 8 updates each
    assert window_count([5, 12], 4, 4) == 3  # decisions of 4, 1, 4, 3: the second window has 5


@pytest.mark.parametrize(
    ("updates", "changes", "note"),
    [
        (60, {}, "60 updates have 2 such windows, and 8 are needed * --env.window 8 gives 8"),
        (40, {}, "40 updates have 1 such window, and 8 are needed * --env.window 5 gives 8"),
        (1, {}, "1 update has 1 such window, * raise --optim.max_updates, or lower --env.phase_"),
        (60, {"phase_steps": 20}, "have 1 such window, * raise --optim.max_updates, or lower"),
        (400, {}, None),
        (60, {"window": 8}, None),
    ],
)
def test_too_few_windows_are_counted_at_the_start_as_they_will_be_at_the_end(
    tiny_setup: Callable[..., Setup], updates: int, changes: dict[str, int], note: str | None
) -> None:
    setup = tiny_setup(env={"reward": "amortized", **changes}, optim={"max_updates": updates})
    notes = [line for line in opening_lines(setup, None) if "such window" in line]
    assert len(notes) == (note is not None)
    for part in note.split(" * ") if note else ():
        assert part in notes[0]
    if updates == 60 and not changes:
        env = DistillationEnv(setup=setup)
        env.reset(seed=0)
        terminated = False
        while not terminated:
            *_, terminated, _, info = env.step(np.ones(len(setup.pool.names)))
        assert info["windows"] == 2


def test_branches_are_windows_of_their_own(tiny_setup: Callable[..., Setup]) -> None:
    changes = {"agent": "all_action", "search": "branch", "env": {"reward": "amortized"}}
    assert not [n for n in opening_lines(tiny_setup(**changes), None) if "such window" in n]


def test_the_opening_lines_name_the_stages(staged: Setup) -> None:
    lines = [line for line in opening_lines(staged, None) if line.startswith("stage")]
    assert lines == [
        "stage 1: 4 updates, learning rate 0.002: hidden/skip",
        "stage 2: 4 updates, learning rate 0.001: label, response",
    ]
