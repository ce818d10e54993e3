from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3_checker
import tiny
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from envs import ENV_ID
from envs.distillation import DistillationEnv, _refuse_cuda_in_subprocess
from ksel.data import Split
from ksel.errors import UsageError
from ksel.setup import Setup
from ksel.signals import KeptTeacher

Config = Callable[..., dict[str, Any]]
Make = Callable[..., DistillationEnv]
POOL = ["label", "response", "hidden/skip"]
EVERYTHING = ["training", "student_cls", "teacher_cls"]


@pytest.fixture(scope="module")
def config(tiny_data, tiny_teacher, tmp_path_factory) -> Config:
    store = tmp_path_factory.mktemp("store")

    def build(**changes: Any) -> dict[str, Any]:
        changes = {"knowledge": {"pool": POOL}, **changes}
        return tiny.settings(tiny_data, tiny_teacher, store, **changes)

    return build


@pytest.fixture(scope="module")
def make(config: Config) -> Make:
    """Environments; those of the same settings share their setup (and student)."""
    made: dict[str, Setup] = {}

    def build(updates: int | None = None, **changes: Any) -> DistillationEnv:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = tiny.make_setup(config(**changes))
        return DistillationEnv(setup=made[key], updates=updates)

    return build


def student(env: DistillationEnv) -> list[Tensor]:
    return [t.detach().clone() for t in env.distiller.tensors]


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def episode(env: DistillationEnv, seed: int, *, noise: bool = False) -> list[Any]:
    """Everything seen in an episode with seeded actions, and the student at its end."""
    rng = np.random.default_rng(seed)
    seen: list[Any] = [env.reset(seed=seed)]
    terminated = False
    while not terminated:
        if noise:
            torch.rand(3)
        action = rng.random(len(env.pool_names))
        step = env.step(action)
        seen.append(step)
        terminated = step[2]
    return [*seen, student(env)]


# --------------------------------------------------------------------------- checkers


@pytest.mark.parametrize("actions", ["hard", "soft"])
def test_gymnasiums_checker_passes_without_a_warning(config: Config, actions: str) -> None:
    env = gym.make(ENV_ID, config=config(env={"actions": actions}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize("actions", ["hard", "soft"])
def test_checkers_pass_with_every_part_observed(config: Config, actions: str) -> None:
    env = gym.make(ENV_ID, config=config(env={"actions": actions, "observe": EVERYTHING}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # [CLS] states are unbounded, which both checkers only mention
        warnings.filterwarnings("ignore", message=".*[Ii]nf")
        # Stable-Baselines3 would rather have weights in [-1, 1]
        warnings.filterwarnings("ignore", message=".*symmetric and normalized")
        check_env(env.unwrapped)
        sb3_checker.check_env(env.unwrapped)
    observation, _ = env.reset(seed=0)
    assert set(observation) == set(EVERYTHING)
    assert observation["student_cls"].shape == observation["teacher_cls"].shape == (16,)
    assert (observation["student_cls"] != 0).any()
    assert (observation["teacher_cls"] != 0).any()


def test_the_registered_environment_is_described_by_json(config: Config) -> None:
    arguments = {"config": json.loads(json.dumps(config())), "soft": True, "updates": 4}
    env = gym.make(ENV_ID, **arguments)
    assert env.unwrapped.spec is not None
    assert json.loads(env.unwrapped.spec.to_json())["kwargs"] == arguments
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.unwrapped.spec.to_json()))
    assert again.unwrapped.updates == 4
    assert isinstance(again.action_space, gym.spaces.Box)
    assert same(env.reset(seed=1), again.reset(seed=1))


def test_no_attribute_makes_it_a_goal_environment(make: Make) -> None:
    assert not hasattr(make(), "compute_reward")


def test_config_and_setup_exclude_each_other(make: Make, config: Config) -> None:
    with pytest.raises(UsageError, match="config or setup"):
        DistillationEnv(config=config(), setup=make().setup)


# --------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_fifty_seeded_steps_are_identical(config: Config, dropout: float) -> None:
    changes = {"student": {"dropout": dropout}, "env": {"actions": "soft", "observe": EVERYTHING}}
    setups = [tiny.make_setup(config(**changes)) for _ in range(2)]
    torch.manual_seed(1)
    first = episode(DistillationEnv(setup=setups[0], updates=50), 4)
    torch.manual_seed(2)
    second = episode(DistillationEnv(setup=setups[1], updates=50), 4, noise=True)
    assert len(first) == 52
    assert same(first, second)


def test_nothing_leaks_from_one_episode_to_the_next(make: Make) -> None:
    env = make(updates=5, env={"exploration": 0.1, "reward_scale": "quantile"})
    first, other, again = episode(env, 1), episode(env, 2), episode(env, 1)
    assert same(first, again)
    assert not same(first, other)


def test_an_agent_that_draws_from_torch_does_not_change_the_student(make: Make) -> None:
    env = make(updates=4, student={"dropout": 0.1})
    assert same(episode(env, 1), episode(env, 1, noise=True))


def test_unseeded_episodes_follow_from_the_last_seed(make: Make) -> None:
    env = make(updates=2)

    def rows() -> list[list[int]]:
        seeds = [{"seed": 5}, {}, {}]
        return [(env.reset(**s), env.distiller.next_batch().ids.tolist())[1] for s in seeds]

    first = rows()
    assert first == rows()
    assert first[0] != first[1] != first[2]


@pytest.mark.parametrize("soft", [False, True])
def test_a_snapshot_goes_on_to_the_bit(make: Make, soft: bool) -> None:
    env = make(
        updates=9,
        student={"dropout": 0.1},
        env={
            "actions": "soft" if soft else "hard",
            "observe": EVERYTHING,
            "exploration": 0.3,
            "reward_scale": "quantile",
            "final_metric": 1.0,
        },
    )
    actions = np.random.default_rng(0).random((9, 3))
    env.reset(seed=3)
    for action in actions[:3]:
        seen = env.step(action)[0]
    state = env.get_snapshot()
    steps = [env.step(action) for action in actions[3:]]
    draws, end = env.np_random.random(4), student(env)
    assert steps[-1][2]
    env.reset(seed=8, options={"updates": 4, "measure": False})
    env.step(np.ones(3))
    assert same(env.set_snapshot(state), seen)
    assert same([env.step(action) for action in actions[3:]], steps)
    assert same(student(env), end)
    assert same(env.np_random.random(4), draws)


def test_snapshots_reuse_tensors_and_remember_the_end(make: Make) -> None:
    env = make(updates=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.get_snapshot()
    env.reset(seed=0)
    state = env.get_snapshot()
    places = [t.data_ptr() for t in state.distiller.weights]
    env.step(np.ones(3))
    env.step(np.ones(3))
    state = env.get_snapshot(into=state)
    assert [t.data_ptr() for t in state.distiller.weights] == places
    env.reset(seed=0)
    env.set_snapshot(state)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.ones(3))


def test_environments_of_one_setup_do_not_train_each_others_student(make: Make) -> None:
    first = make(updates=3)
    second = DistillationEnv(setup=first.setup, updates=3)
    first.reset(seed=0)
    second.reset(seed=1)
    with pytest.raises(gym.error.ResetNeeded, match="share one student"):
        first.step(np.ones(3))
    with pytest.raises(gym.error.ResetNeeded, match="share one student"):
        first.get_snapshot()
    second.step(np.ones(3))
    first.reset(seed=0)
    first.step(np.ones(3))


# --------------------------------------------------------------------------- actions


@pytest.mark.parametrize(
    "action",
    [
        np.array([1.0, 0.0, 0.51], np.float32),
        np.array([1, 0, 1], np.int8),
        [1, 0, 1],
        (True, False, True),
        torch.tensor([1.0, 0.5, 0.9]),
    ],
    ids=["float", "int8", "list", "bool", "tensor"],
)
def test_hard_actions_are_on_above_one_half(make: Make, action: Any) -> None:
    env = make()
    env.reset(seed=0)
    info = env.step(action)[4]
    assert [info[f"weight/{name}"] > 0 for name in env.pool_names] == [True, False, True]
    assert env.as_mask(action).tolist() == [1, 0, 1]


def test_soft_actions_are_cut_to_the_range(make: Make) -> None:
    env = make(env={"actions": "soft"}, knowledge={"pool": POOL, "balance": "none"})
    env.reset(seed=0)
    info = env.step([-0.5, 0.25, 1.5])[4]
    assert [info[f"weight/{name}"] for name in env.pool_names] == pytest.approx([0, 0.25, 1])


@pytest.mark.parametrize(
    "action",
    [[1, 0], [[1, 0, 1]], 1.0, [1, 0, math.nan], [1, 0, math.inf], "all", [[1], [0, 1]], None],
)
def test_actions_of_the_wrong_form_are_refused_and_cost_nothing(make: Make, action: Any) -> None:
    env = make()
    env.reset(seed=0)
    before = student(env)
    with pytest.raises(UsageError, match="3 finite numbers, one for each of label, response"):
        env.step(action)
    assert same(student(env), before)
    assert env.distiller.cursor == 0


def test_the_empty_action_spends_the_step(make: Make) -> None:
    env = make(updates=2, env={"reward_scale": "none"})
    env.reset(seed=0)
    before = student(env)
    observation, reward, terminated, _, info = env.step(np.zeros(3, np.int8))
    assert same(student(env), before)
    assert (reward, terminated, info["update"]) == (0.0, False, 1)
    assert observation["training"][0] == 0.5


# --------------------------------------------------------------------------- the end


def test_it_ends_exactly_when_the_budget_is_spent(make: Make) -> None:
    env = make(updates=7, env={"phase_steps": 3})
    env.reset(seed=0)
    got = [env.step(np.ones(3)) for _ in range(3)]
    assert [(s[2], s[3], s[4]["update"]) for s in got] == [
        (False, False, 3),
        (False, False, 6),
        (True, False, 7),
    ]
    assert got[-1][0]["training"][0] == 1.0
    with pytest.raises(gym.error.ResetNeeded, match="over"):
        env.step(np.ones(3))
    env.reset(seed=0)
    assert env.step(np.ones(3))[4]["update"] == 3


def test_a_phase_is_so_many_updates_with_one_action(make: Make) -> None:
    held = make(updates=6, env={"phase_steps": 3})
    held.reset(seed=0)
    info = held.step([1, 0, 1])[4]
    losses = []
    single = make(updates=6)
    single.reset(seed=0)
    for _ in range(3):
        losses.append(single.step([1, 0, 1])[4]["loss/label"])
    assert info["loss/label"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_step_before_the_first_reset_is_refused(config: Config) -> None:
    env = DistillationEnv(config=config())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.ones(3))


def test_a_diverging_episode_ends_with_a_reason(make: Make) -> None:
    env = make(updates=6, optim={"learning_rate": 1e30})
    env.reset(seed=0)
    terminated, steps = False, 0
    while not terminated:
        observation, reward, terminated, truncated, info = env.step([1, 0, 0])
        steps += 1
    assert steps < 6
    assert (reward, truncated) == (-1.0, False)
    assert "not finite" in info["reason"] or "is nan" in info["reason"]
    json.dumps(info, allow_nan=False)
    assert env.observation_space.contains(observation)
    with pytest.raises(gym.error.ResetNeeded):
        env.step([1, 0, 0])
    observation, _ = env.reset(seed=0)
    assert all(torch.isfinite(t).all() for t in env.distiller.tensors)


# --------------------------------------------------------------------------- info, observation


def test_info_holds_plain_finite_numbers_and_no_time(make: Make) -> None:
    env = make(updates=3, env={"exploration": 0.1, "observe": EVERYTHING})
    infos = [env.reset(seed=0)[1], *(env.step(a)[4] for a in ([1, 0, 0], [0, 0, 0], [1, 1, 1]))]
    for info in infos:
        assert all(type(value) in (int, float) for value in info.values()), info
        assert json.loads(json.dumps(info, allow_nan=False)) == info
        assert not [key for key in info if "time" in key or "second" in key]
    assert set(infos[0]) == {"update", "objective"}
    last = set(infos[-1])
    assert {"update", "objective", "drop", "reward_scale", "clip_norm", "learning_rate"} <= last
    for name in env.pool_names:
        assert {f"loss/{name}", f"scale/{name}", f"weight/{name}"} <= last
    assert "grad_norm/label" in infos[1]
    assert "grad_norm/response" not in infos[1]


def test_the_training_vector_depends_on_the_pool_alone(make: Make) -> None:
    narrow = make(student={"layers": 1, "width": 8, "heads": 2, "init": "random"})
    for env in (make(), narrow):
        observation, _ = env.reset(seed=0)
        assert observation["training"].shape == (6 + 5 * 3,)
        assert len(env.feature_names) == 6 + 5 * 3
    assert make().observation_space == narrow.observation_space


def test_the_vector_shows_what_happened(make: Make) -> None:
    env = make(updates=4, optim={"warmup": 0.5})
    observation, info = env.reset(seed=0)
    start = dict(zip(env.feature_names, observation["training"].tolist(), strict=True))
    assert start["progress"] == 0
    assert 0 < start["student_entropy"] <= 1
    batch = env.distiller.next_batch()
    mine = env.setup.student(**batch.model_inputs()).logits.argmax(-1)
    theirs = env.setup.teacher.model(**batch.model_inputs()).logits.argmax(-1)
    assert start["agreement"] == pytest.approx((mine == theirs).float().mean().item())
    first = env.step([1, 0, 0])
    second = env.step([1, 1, 0])
    seen = dict(zip(env.feature_names, second[0]["training"].tolist(), strict=True))
    assert seen["progress"] == 0.5
    assert seen["learning_rate"] == pytest.approx(2 / 3)
    assert [seen[f"last_action/{name}"] for name in env.pool_names] == [1, 1, 0]
    assert [seen[f"share/{name}"] for name in env.pool_names] == [1, 0.5, 0]
    assert seen["objective_level"] == pytest.approx(
        (second[4]["objective"] - info["objective"]) / info["objective"], rel=1e-4
    )
    change = second[4]["loss/label"] / first[4]["loss/label"]
    assert seen["trend/label"] == pytest.approx(math.tanh(math.log(change)), abs=1e-6)


def test_states_are_those_of_the_batch(make: Make) -> None:
    env = make(updates=3, env={"observe": EVERYTHING})
    observation, _ = env.reset(seed=0)
    batch = env.distiller.next_batch()
    for name, model in (
        ("student_cls", env.setup.student),
        ("teacher_cls", env.setup.teacher.model),
    ):
        with torch.no_grad():
            states = model(**batch.model_inputs(), output_hidden_states=True).hidden_states[-1]
        assert observation[name] == pytest.approx(states[:, 0].mean(0).numpy(), abs=1e-5)


# --------------------------------------------------------------------------- reward


def reward_logits(env: DistillationEnv) -> tuple[Tensor, Tensor]:
    """The reward split's logits, one row at a time."""
    split = env.setup.reward
    with torch.no_grad():
        rows = [split.batch(np.array([i])) for i in range(len(split))]
        return torch.cat([env.setup.student(**row.model_inputs()).logits for row in rows]), (
            torch.cat([row.labels for row in rows])
        )


def objective(name: str, logits: Tensor, labels: Tensor) -> float:
    if name == "cross_entropy":
        return F.cross_entropy(logits, labels).item()
    if name == "calibrated":
        sharpness = torch.linspace(-5, 5, 4001).exp()
        return min(F.cross_entropy(logits.double() * s, labels).item() for s in sharpness)
    own = logits[torch.arange(len(labels)), labels]
    other = logits[torch.arange(len(labels)), 1 - labels]
    return torch.sigmoid((other - own) / 0.1).mean().item()


@pytest.mark.parametrize("name", ["cross_entropy", "calibrated", "margin"])
def test_the_reward_is_the_drop_of_the_objective(make: Make, name: str) -> None:
    settings: dict[str, Any] = {"objective": name, "reward_scale": "none", "phase_steps": 2}
    if name == "margin":
        settings["margin_width"] = 0.1
    env = make(updates=4, env=settings, optim={"learning_rate": 3e-3})
    _, info = env.reset(seed=0)
    before = objective(name, *reward_logits(env))
    assert info["objective"] == pytest.approx(before, abs=1e-5)
    for _ in range(2):
        _, reward, _, _, info = env.step([1, 0, 0])
        after = objective(name, *reward_logits(env))
        assert reward == info["drop"] == pytest.approx(before - after, abs=2e-5)
        assert info["objective"] == pytest.approx(after, abs=1e-5)
        before = after
    assert info["reward_scale"] == 1.0


def test_the_running_scale_starts_anew_with_each_episode(make: Make) -> None:
    env = make(updates=2)
    for seed in (0, 1):
        env.reset(seed=seed)
        _, first, _, _, info = env.step([1, 0, 0])
        assert abs(first) == pytest.approx(1.0)
        drops = [info["drop"]]
        _, second, _, _, info = env.step([1, 0, 0])
        drops.append(info["drop"])
        scale = math.sqrt((drops[0] ** 2 + drops[1] ** 2) / 2)
        assert info["reward_scale"] == pytest.approx(scale)
        assert second == pytest.approx(drops[1] / scale)


@pytest.mark.parametrize(
    ("actions", "taken", "bonuses"),
    [
        ("hard", [[1, 0, 1], [1, 0, 1], [0, 0, 1]], [1.0, 1 / math.sqrt(2), 1.0]),
        ("soft", [[0.6, 0.8, 0], [0.6, 0.8, 0], [0.8, 0.6, 0]], [0.0, -1.0, -0.96]),
    ],
)
def test_cost_and_exploration_are_added(
    make: Make, actions: str, taken: list[list[float]], bonuses: list[float]
) -> None:
    settings = {"cost_per_type": 0.25, "exploration": 0.5, "reward_scale": "none"}
    env = make(updates=4, env={**settings, "actions": actions})
    env.reset(seed=0)
    for action, bonus in zip(taken, bonuses, strict=True):
        _, reward, _, _, info = env.step(action)
        expected = info["drop"] - 0.25 * sum(action) + 0.5 * bonus
        assert reward == pytest.approx(expected, abs=1e-6)


def test_the_final_metric_is_paid_once_at_the_end(make: Make) -> None:
    env = make(updates=2, env={"final_metric": 2.0, "reward_scale": "none"})
    env.reset(seed=0)
    _, reward, _, _, info = env.step([1, 0, 0])
    assert reward == info["drop"]
    before = env.distiller.ledger.examples["held_out"]
    _, reward, terminated, _, info = env.step([1, 0, 0])
    assert terminated
    assert env.distiller.ledger.examples["held_out"] - before == len(env.setup.reward)
    logits, labels = reward_logits(env)
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    assert accuracy > 0
    assert reward == pytest.approx(info["drop"] + 2.0 * accuracy)


def test_without_measuring_the_reward_split_is_left_alone(make: Make) -> None:
    env = make(updates=2, env={"cost_per_type": 0.5, "final_metric": 1.0, "observe": EVERYTHING})
    before = env.distiller.ledger.copy()
    observation, info = env.reset(seed=0, options={"measure": False})
    assert info == {"update": 0}
    rewards = []
    for _ in range(2):
        observation, reward, terminated, _, info = env.step(np.ones(3))
        rewards.append(reward)
        assert env.observation_space.contains(observation)
        assert "objective" not in info
    assert rewards == [0.0, 0.0]
    assert terminated
    spent = env.distiller.ledger.since(before).examples
    assert spent.get("held_out", 0) == 0
    assert observation["training"][0] == 1.0


def test_measuring_at_both_ends_tells_of_the_whole_episode_and_changes_nothing(make: Make) -> None:
    env = make(updates=3, env={"cost_per_type": 0.5, "reward_scale": "running"})
    mask, found = [1, 0, 1], {}
    for measure in (True, "ends"):
        before = env.distiller.ledger.copy()
        _, first = env.reset(seed=0, options={"measure": measure})
        steps = [env.step(mask) for _ in range(3)]
        spent = env.distiller.ledger.since(before).examples
        found[measure] = (first, steps, spent["held_out"] // len(env.setup.reward), student(env))
    (full, each, looks, trained), (start, ends, fewer, same_student) = found.values()
    assert (looks, fewer) == (4, 2)
    assert start == full
    assert ends[-1][4]["objective"] == each[-1][4]["objective"]
    assert same(trained, same_student)
    drop = start["objective"] - ends[-1][4]["objective"]
    assert ends[-1][4]["drop"] == drop
    assert [step[1] for step in ends] == [0.0, 0.0, drop - 1.0]
    assert all(not {"objective", "drop"} & step[4].keys() for step in ends[:2])
    assert not env.measures
    assert not env.branching
    # nothing is seen on the way: entropy, agreement and the losses stay as they were
    assert (ends[1][0]["training"][2:4] == 0).all()
    env.reset(seed=0)
    assert env.step(mask)[4]["drop"] == each[0][4]["drop"]  # the next episode is measured as ever


def test_an_episode_measured_at_both_ends_goes_on_from_a_snapshot(make: Make) -> None:
    env = make(updates=3)
    env.reset(seed=0, options={"measure": "ends"})
    env.step([1, 0, 1])
    state = env.get_snapshot()
    first = [env.step([1, 0, 1]) for _ in range(2)]
    env.reset(seed=5)
    env.set_snapshot(state)
    again = [env.step([1, 0, 1]) for _ in range(2)]
    assert [(step[1], step[4]) for step in again] == [(step[1], step[4]) for step in first]
    assert "drop" in again[-1][4]
    assert "drop" not in again[0][4]


def test_measuring_does_not_change_a_student_that_gets_all_types(make: Make) -> None:
    env = make(updates=3)
    ends = []
    for measure in (True, False):
        env.reset(seed=0, options={"measure": measure})
        for _ in range(3):
            env.step(np.ones(3))
        ends.append(student(env))
    assert same(*ends)


def test_only_train_rows_are_learned_from_and_dev_is_never_read(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(updates=3, env={"observe": EVERYTHING, "final_metric": 1.0})
    read: list[tuple[int, bool]] = []
    batch = Split.batch

    def watched(self: Split, index: np.ndarray) -> Any:
        read.append((id(self), torch.is_grad_enabled()))
        return batch(self, index)

    monkeypatch.setattr(Split, "batch", watched)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.ones(3))
    train, reward = id(env.setup.train), id(env.setup.reward)
    source = env.distiller.sources[0]
    assert isinstance(source, KeptTeacher)
    whole = id(source.plan.split)  # what the teacher keeps is of the whole training file
    assert {place for place, _ in read} == {train, reward, whole}
    assert not any(grad for place, grad in read if place == reward)
    assert sum(place == train for place, _ in read) == 1 + 3


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 3}, r"unknown options \['budget'\]; known: updates, measure"),
        ({"updates": 0}, "whole number from 1"),
        ({"measure": "end"}, "measure must be True, False or \"ends\", not 'end'"),
        ({"updates": 2.5}, "whole number from 1"),
        ({"updates": "3"}, "whole number from 1"),
    ],
)
def test_wrong_options_are_refused(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make().reset(seed=0, options=options)


def test_the_budget_can_be_set_for_one_episode(make: Make) -> None:
    env = make(updates=5)
    env.reset(seed=0, options={"updates": 1})
    assert env.step(np.ones(3))[2]
    env.reset(seed=0)
    assert not env.step(np.ones(3))[2]
    assert env.distiller.updates == 5


def test_a_cuda_student_in_a_subprocess_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    _refuse_cuda_in_subprocess(torch.device("cpu"))
    with pytest.raises(UsageError, match="subprocess"):
        _refuse_cuda_in_subprocess(torch.device("cuda"))
