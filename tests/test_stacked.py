"""N students in one step: equal to N distillers, whatever masks, clipping, stages and widths."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from ksel import machine, stacked_memory, stacking
from ksel.distiller import Distiller
from ksel.errors import UsageError
from ksel.evaluation import predict_logits
from ksel.knowledge import KINDS
from ksel.records import DivergedError, Snapshot, Update
from ksel.setup import Setup
from ksel.stacked import StackedDistiller, pick_mode
from ksel.stacking import why_not

POOL = ["label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1"]
MASKS = np.array(
    [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0.5, 0]], dtype=np.float32
)
STEPS = 20
# Batched and single matrix products round differently. What float32 leaves of 20 updates:
LOGITS, LOSS = 1e-4, 2e-6
# In float64 only the signals that the losses take in float32 (the logits) differ at all.
EXACT = 2e-6


def make_actions(students: int, types: int, steps: int = STEPS, seed: int = 0) -> np.ndarray:
    """[steps, N, K]: random masks, some weights between 0 and 1, one student's always empty."""
    rng = np.random.default_rng(seed)
    actions = (rng.random((steps, students, types)) < 0.5).astype(np.float32)
    actions[:, 0] *= rng.random((steps, types)).astype(np.float32)
    actions[:, 1] = 0.0
    actions[steps // 2, 2] = 0.0
    return actions


def separately(
    distiller: Distiller, actions: np.ndarray, *, observe: bool = False
) -> tuple[list[list[Update]], list[Snapshot]]:
    """Each student by itself: its updates, and its state at the end."""
    updates, states = [], []
    for n in range(actions.shape[1]):
        distiller.reset(data_seed=3, updates=len(actions))
        updates.append([distiller.update(action[n], observe=observe) for action in actions])
        states.append(distiller.snapshot())
    return updates, states


def together(
    students: StackedDistiller, actions: np.ndarray, *, observe: bool = False
) -> list[list[Update]]:
    students.reset(data_seed=3, updates=len(actions))
    return [students.update(action, observe=observe) for action in actions]


def same_records(found: Update, expected: Update, rtol: float) -> None:
    for name in ("loss", "scale", "weight", "grad_norm"):
        np.testing.assert_allclose(
            getattr(found, name),
            getattr(expected, name),
            rtol=rtol,
            atol=LOSS if rtol else 0,
            err_msg=name,
        )
    for name in ("clip_norm", "learning_rate", "peak", "entropy", "agreement"):
        assert getattr(found, name) == pytest.approx(
            getattr(expected, name), rel=rtol, abs=1e-7, nan_ok=True
        ), name
    for name in ("student_cls", "teacher_cls"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-4)


def in_double(setup: Setup) -> Distiller:
    setup.student.double()
    setup.pool.projections.double()
    return Distiller(setup.distiller.parts)


def away_from_the_teacher(setup: Setup) -> Distiller:
    """Its losses are more than rounding, which may have either sign."""
    own = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in setup.student.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=own))
    return Distiller(setup.distiller.parts)


def state_of(students: StackedDistiller, n: int) -> Snapshot:
    with students.student(n) as core:
        return core.snapshot()


def assert_states(found: Snapshot, expected: Snapshot, atol: float) -> None:
    for one, other in zip(
        [*found.weights, *found.moments], [*expected.weights, *expected.moments], strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)
    np.testing.assert_allclose(found.sizes.totals, expected.sizes.totals, rtol=1e-4)
    assert found.sizes.counts.tolist() == expected.sizes.counts.tolist()
    same_norms(found, expected, 1e-4)
    assert found.checked.tolist() == expected.checked.tolist()


def same_norms(found: Snapshot, expected: Snapshot, rtol: float) -> None:
    np.testing.assert_allclose(found.norms.totals, expected.norms.totals, rtol=rtol)
    assert found.norms.counts.tolist() == expected.norms.counts.tolist()


def steps_of(state: Snapshot) -> list[float]:
    return [float(t) for t in state.moments if t.ndim == 0]


def logits_of(setup: Setup, state: Snapshot) -> Tensor:
    setup.distiller.restore(state)
    return predict_logits(setup.student, setup.reward, batch_size=16, device="cpu")


# --------------------------------------------------------------------------- equality

VARIANTS: dict[str, dict[str, Any]] = {
    "clipping": {"optim": {"max_grad_norm": 0.05, "max_updates": STEPS}},
    "widths": {"student": {"layers": 2, "width": 8, "heads": 2}, "optim": {"max_grad_norm": 0.0}},
    "micro": {"optim": {"accumulate": 3, "grad_norm_every": 4, "weight_decay": 0.1}},
    "unbalanced": {"knowledge": {"balance": "none", "weights": {"hidden/skip": 0.1}}},
    "gradient": {
        "student": {"layers": 2, "init": "random"},
        "knowledge": {"balance": "gradient", "balance_every": 3, "ema_decay": 0.9},
        "optim": {"accumulate": 2, "grad_norm_every": 7},
    },
    "head": {"optim": {"head_rate": 5.0}},
    "stages": {
        "stages": [
            {"pool": ["hidden/skip", "value_relation/last_1"], "share": 0.5},
            {"pool": [], "share": 0.5, "learning_rate": 3e-3},
        ],
        "knowledge": {"weight_schedules": {"hidden/skip": "decay", "label": "growth"}},
    },
    "frozen": {"optim": {"embeddings": "frozen", "max_grad_norm": 0.05}},
    "lazy": {"optim": {"embeddings": "lazy", "max_grad_norm": 0.05}},
    "watched": {"env": {"observe": ["training", "student_cls", "teacher_cls"]}},
}


@pytest.mark.parametrize(
    ("variant", "mode"),
    [
        *((name, "vmap") for name in VARIANTS if name != "lazy"),
        ("lazy", "loop"),
        ("stages", "loop"),
        ("gradient", "loop"),
    ],
)
def test_twenty_updates_equal_those_of_separate_students(
    tiny_setup: Callable[..., Setup], variant: str, mode: Any
) -> None:
    setup = tiny_setup(**VARIANTS[variant])
    actions = make_actions(4, len(setup.pool))
    observe = variant in ("watched", "stages")
    expected, states = separately(setup.distiller, actions, observe=observe)
    students = StackedDistiller(setup.distiller, 4, mode)
    found = together(students, actions, observe=observe)
    for step in range(STEPS):
        for n in range(4):
            same_records(found[step][n], expected[n][step], 0.0 if mode == "loop" else 2e-3)
    logits = students.predict(setup.reward, 16)
    finals = [state_of(students, n) for n in range(4)]
    for n, state in enumerate(finals):
        assert steps_of(state) == steps_of(states[n])
        same_norms(state, states[n], 2e-3)
        assert bool(state.norms.counts.sum()) == (variant == "gradient" and n != 1)
        if mode == "loop":
            assert_states(state, states[n], 0.0)
        torch.testing.assert_close(logits[n], logits_of(setup, states[n]), rtol=0, atol=LOGITS)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_in_double_precision_weights_and_moments_agree(
    tiny_settings: Callable[..., dict], tmp_path: Path, family: str
) -> None:
    teacher = tiny.write_teacher(tmp_path / family, family)
    values = tiny_settings(
        student={"layers": 2, "width": 8, "heads": 2}, optim={"max_grad_norm": 0.3}
    )
    distiller = in_double(tiny.make_setup({**values, "teacher": str(teacher)}))
    actions = make_actions(4, len(distiller.pool), seed=1)
    _, states = separately(distiller, actions)
    students = StackedDistiller(distiller, 4, "vmap")
    together(students, actions)
    for n in range(4):
        assert_states(state_of(students, n), states[n], EXACT)


def test_gradients_of_a_student_are_those_of_the_ordinary_backward(
    tiny_setup: Callable[..., Setup],
) -> None:
    # After one update from nothing AdamW's first moment is a tenth of the clipped gradient.
    setup = tiny_setup(optim={"max_grad_norm": 0.05})
    _, states = separately(setup.distiller, MASKS[None])
    students = StackedDistiller(setup.distiller, 4, "vmap")
    together(students, MASKS[None])
    for n, state in enumerate(states):
        found = state_of(students, n)
        for one, other in zip(found.moments[1::3], state.moments[1::3], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)
    assert not any(bool(t.any()) for t in state_of(students, 1).moments)


def test_chunks_make_no_difference(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup()
    actions = make_actions(4, len(setup.pool))[:5]
    results = []
    for chunk in (4, 3, 1):
        students = StackedDistiller(setup.distiller, 4, "vmap")
        assert students._step is not None
        students._step.chunk = chunk
        together(students, actions)
        results.append(students.predict(setup.reward, 16))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=LOGITS)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_live_teacher_is_seen_by_those_whose_types_call_it(
    tiny_setup: Callable[..., Setup], mode: Any
) -> None:
    setup = tiny_setup(signals={"source": "live"})
    actions = np.stack([MASKS, MASKS[::-1]])
    expected, _ = separately(setup.distiller, actions, observe=True)
    found = together(StackedDistiller(setup.distiller, 4, mode), actions, observe=True)
    for step in range(2):
        for n in range(4):
            same_records(found[step][n], expected[n][step], 1e-3)
    assert math.isnan(found[0][2].agreement)
    assert math.isfinite(found[0][0].agreement)
    assert math.isnan(found[0][2].loss[1])
    assert math.isfinite(found[0][3].loss[1])


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_looking_changes_nothing(tiny_setup: Callable[..., Setup], mode: Any) -> None:
    setup = tiny_setup()
    setup.distiller.reset(data_seed=3, updates=4)
    expected = setup.distiller.observe()
    students = StackedDistiller(setup.distiller, 3, mode)
    students.reset(data_seed=3, updates=4)
    before = students.snapshot()
    for record in students.observe():
        same_records(
            replace(record, learning_rate=expected.learning_rate, peak=expected.peak),
            expected,
            1e-4,
        )
    for one, other in zip(students.weights, before.weights, strict=True):
        assert torch.equal(one, other)


def test_spans_agree(tiny_settings: Callable[..., dict], tmp_path: Path) -> None:
    data = tiny.write_spans(tmp_path / "spans")
    teacher = tiny.write_teacher(tmp_path / "teacher", task="squad")
    pool = ["label", "response", "logits", "hidden/skip"]
    values = tiny_settings(task="squad", knowledge={"pool": pool}, batching={"max_length": 64})
    setup = tiny.make_setup({**values, "data": str(data), "teacher": str(teacher)})
    distiller = setup.distiller = away_from_the_teacher(setup)
    actions = make_actions(3, 4, steps=4)
    expected, states = separately(distiller, actions, observe=True)
    assert expected[0][0].loss.min() > 1e-4
    students = StackedDistiller(distiller, 3, "vmap")
    found = together(students, actions, observe=True)
    for step in range(4):
        for n in range(3):
            same_records(found[step][n], expected[n][step], 1e-3)
    logits = students.predict(setup.reward, 8)
    for n in range(3):
        torch.testing.assert_close(logits[n], logits_of(setup, states[n]), rtol=0, atol=LOGITS)


# --------------------------------------------------------------------------- every kind

KIND_POOL = [kind if kind != "fsp" else "fsp/0-0+2-4" for kind in KINDS]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_every_kind_can_be_mapped(
    tiny_settings: Callable[..., dict], tmp_path: Path, family: str
) -> None:
    teacher = tiny.write_teacher(tmp_path / family, family)
    values = tiny_settings(knowledge={"pool": KIND_POOL, "temperature_schedule": "cwsm"})
    # in double precision: some of these losses are nearly 0 between such models
    distiller = in_double(tiny.make_setup({**values, "teacher": str(teacher)}))
    types = len(distiller.pool)
    assert types == len(KINDS)
    actions = np.stack([np.eye(types), np.ones((types, types))]).astype(np.float32)
    expected, states = separately(distiller, actions)
    with warnings.catch_warnings():
        # what has no rule of its own is mapped by a slow loop, with a warning
        warnings.filterwarnings("error", message=".*batching rule.*")
        assert why_not(distiller) is None
        students = StackedDistiller(distiller, types, "vmap")
        found = together(students, actions)
    for step in range(2):
        for n in range(types):
            same_records(found[step][n], expected[n][step], 1e-4)
    for n, state in enumerate(states):
        assert students.checked[n].tolist() == state.checked.tolist()
        assert expected[n][0].grad_norm[n] > 0, distiller.pool.names[n]
        assert steps_of(state_of(students, n)) == steps_of(state)


def test_words_are_looked_up_as_the_module_does(tiny_setup: Callable[..., Setup]) -> None:
    student = tiny_setup().student
    words = stacking.WordEmbeddings(student, student)
    module = student.get_input_embeddings()
    assert module.padding_idx is not None
    stack = torch.randn(3, *module.weight.shape, requires_grad=True)
    ids = torch.tensor([[2, module.padding_idx, 5], [5, 5, 1]])
    others, taken = words.taken_from({words.name: stack, "other": stack})
    assert taken is stack
    assert list(others) == ["other"]
    found = words.look_up(stack, ids)
    weight = torch.randn(3, *ids.shape, module.weight.shape[1])
    (found * weight).sum().backward()
    for n in range(3):
        one = stack.detach()[n].clone().requires_grad_()
        expected = torch.nn.functional.embedding(ids, one, padding_idx=module.padding_idx)
        (expected * weight[n]).sum().backward()
        assert torch.equal(found[n], expected)
        torch.testing.assert_close(stack.grad[n], one.grad)
    with words.given(None):
        assert torch.equal(module(ids), module.weight[ids])
    mine = weight[0]
    with words.given(mine):
        assert module(ids) is mine
    assert torch.equal(module(ids), module.weight[ids])


# --------------------------------------------------------------------------- copies


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_snapshot_repeats_to_the_bit(tiny_setup: Callable[..., Setup], mode: Any) -> None:
    setup = tiny_setup()
    students = StackedDistiller(setup.distiller, 4, mode)
    actions = make_actions(4, len(setup.pool))
    students.reset(data_seed=3, updates=STEPS)
    for action in actions[:5]:
        students.update(action)
    state = students.snapshot()
    ends = []
    for _ in range(2):
        students.restore(state)
        assert students.cursor == 5
        records = [students.update(action) for action in actions[5:9]]
        ends.append((students.snapshot(), records))
    for one, other in zip(
        [*ends[0][0].weights, *ends[0][0].moments],
        [*ends[1][0].weights, *ends[1][0].moments],
        strict=True,
    ):
        assert torch.equal(one, other)
    for a, b in zip(ends[0][1][-1], ends[1][1][-1], strict=True):
        same_records(a, b, 0.0)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_fork_goes_on_as_its_source_does(tiny_setup: Callable[..., Setup], mode: Any) -> None:
    setup = tiny_setup()
    actions = make_actions(4, len(setup.pool))
    students = StackedDistiller(setup.distiller, 4, mode)
    students.reset(data_seed=3, updates=STEPS)
    for action in actions[:5]:
        students.update(action)
    source = state_of(students, 3)
    students.fork(3)
    for n in range(4):
        assert_states(state_of(students, n), source, 0.0)
    students.update(np.tile(actions[5, 3], (4, 1)))
    logits = students.predict(setup.reward, 16)
    assert torch.equal(logits[0], logits[3])
    setup.distiller.restore(replace(source, cursor=5, updates=STEPS, data_seed=3))
    setup.distiller.update(actions[5, 3])
    torch.testing.assert_close(
        logits[1],
        predict_logits(setup.student, setup.reward, batch_size=16, device="cpu"),
        rtol=0,
        atol=LOGITS,
    )


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_running_norms_go_wherever_a_student_goes(
    tiny_setup: Callable[..., Setup], mode: Any
) -> None:
    setup = tiny_setup(**VARIANTS["gradient"])
    core, actions = setup.distiller, make_actions(4, len(setup.pool))
    students = StackedDistiller(core, 4, mode)
    students.reset(data_seed=3, updates=STEPS)
    for action in actions[:5]:
        students.update(action)
    state, before = students.snapshot(), [state_of(students, n) for n in range(4)]
    assert before[0].norms.totals.tolist() != before[3].norms.totals.tolist()
    expected = [students.update(action) for action in actions[5:9]]
    students.restore(state)
    for n in range(4):
        assert_states(state_of(students, n), before[n], 0.0)
    for action, records in zip(actions[5:9], expected, strict=True):
        for found, record in zip(students.update(action), records, strict=True):
            same_records(found, record, 0.0)
    students.restore(state)
    students.renew(2)
    assert students.norms[2].counts.sum() == 0
    students.copy_best([3, 0, 0, 0])
    for n, source in enumerate([3, 0, 0, 0]):
        assert_states(state_of(students, n), before[source], 0.0)
    students.load_into(core, 0)
    assert_states(core.snapshot(), before[3], 0.0)
    students.start_from(before[0])
    for n in range(4):
        assert_states(state_of(students, n), before[0], 0.0)
    students.update(actions[5])
    assert before[0].norms.counts.tolist() == state.norms[0].counts.tolist()


def test_copies_by_index_take_what_was_there_before(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup()
    students = StackedDistiller(setup.distiller, 3, "loop")
    students.reset(data_seed=3, updates=STEPS)
    for action in make_actions(3, len(setup.pool))[:3]:
        students.update(action)
    before = [state_of(students, n) for n in range(3)]
    students.copy_best([2, 0, 0])
    for n, source in enumerate([2, 0, 0]):
        assert_states(state_of(students, n), before[source], 0.0)
    with pytest.raises(ValueError, match="2 sources for 3"):
        students.copy_best([0, 1])


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_student_goes_on_in_an_ordinary_distiller(
    tiny_setup: Callable[..., Setup], mode: Any
) -> None:
    setup = tiny_setup()
    core = setup.distiller
    actions = make_actions(4, len(setup.pool))
    core.reset(data_seed=3, updates=STEPS)
    for action in actions[:8]:
        core.update(action[3])
    expected = predict_logits(core.student, setup.reward, batch_size=16, device="cpu")
    students = StackedDistiller(core, 4, mode)
    students.reset(data_seed=3, updates=STEPS)
    for action in actions[:5]:
        students.update(action)
    assert students.is_current
    students.load_into(core, 3)
    assert not students.is_current
    assert core.cursor == 5
    for action in actions[5:8]:
        core.update(action[3])
    logits = predict_logits(core.student, setup.reward, batch_size=16, device="cpu")
    torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS)
    # and back: all students are copies of it
    students.start_from(core.snapshot())
    assert students.is_current
    torch.testing.assert_close(
        students.predict(setup.reward, 16), logits.expand(4, *logits.shape), rtol=0, atol=1e-5
    )
    assert students.cursor == 8


def test_the_distiller_keeps_its_own_weights(tiny_setup: Callable[..., Setup]) -> None:
    core = tiny_setup().distiller
    core.reset(data_seed=3, updates=5)
    before = core.snapshot()
    for mode in ("loop", "vmap"):
        students = StackedDistiller(core, 3, mode)  # type: ignore[arg-type]
        together(students, np.ones((3, 3, len(core.pool)), np.float32))
        for one, other in zip(core.snapshot().weights, before.weights, strict=True):
            assert torch.equal(one, other)
        assert core.student.config._attn_implementation == "sdpa"


def test_a_renewed_student_starts_where_all_started(tiny_setup: Callable[..., Setup]) -> None:
    core = tiny_setup().distiller
    students = StackedDistiller(core, 3, "vmap")
    together(students, np.ones((3, 3, len(core.pool)), np.float32)[:2])
    others = state_of(students, 0)
    students.renew(1)
    fresh = state_of(students, 1)
    for t, first in zip(fresh.weights, core.initial, strict=True):
        assert torch.equal(t, first)
    assert not any(bool(t.any()) for t in fresh.moments)
    assert fresh.sizes.counts.sum() == 0
    assert_states(state_of(students, 0), others, 0.0)


# --------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_one_that_diverges_leaves_the_others_alone(
    tiny_setup: Callable[..., Setup], mode: Any
) -> None:
    setup = tiny_setup()
    actions = make_actions(4, len(setup.pool))[:4]
    actions[:, 3] = 1.0
    _, states = separately(setup.distiller, actions)
    students = StackedDistiller(setup.distiller, 4, mode)
    students.reset(data_seed=3, updates=4)
    students.weights[0][3] = math.inf
    for action in actions:
        students.update(action)
    assert students.reasons[:3] == [None, None, None]
    assert "the loss of label is nan" in str(students.reasons[3])
    assert steps_of(state_of(students, 3))[0] == 0
    for n in range(3):
        assert steps_of(state_of(students, n)) == steps_of(states[n])
    logits = students.predict(setup.reward, 16)
    torch.testing.assert_close(logits[2], logits_of(setup, states[2]), rtol=0, atol=LOGITS)
    reason = students.reasons[3]
    students.copy_best([3, 0, 0, 1])
    assert students.reasons == [reason, None, None, None]
    setup.distiller.reset(data_seed=3, updates=4)
    with torch.no_grad():
        setup.distiller.parameters[0].fill_(math.inf)
    with pytest.raises(DivergedError, match="the loss of label is nan"):
        setup.distiller.update(actions[0, 3])


def test_a_type_that_is_off_spoils_nothing(tiny_setup: Callable[..., Setup]) -> None:
    # Student 1 has hidden/skip off; its projection is infinite, and 0 x infinity is no number.
    setup = tiny_setup(student={"layers": 2, "width": 8, "heads": 2})
    k = setup.pool.names.index("hidden/skip")
    students = StackedDistiller(setup.distiller, 2, "vmap")
    students.reset(data_seed=3, updates=4)
    name = next(i for i, n in enumerate(students._step.names) if "projections.hidden" in n)  # type: ignore[union-attr]
    students.weights[name][1] = math.inf
    actions = np.ones((2, len(setup.pool)), np.float32)
    actions[1, k] = 0.0
    students.update(actions)
    assert students.reasons == [None, None]
    assert max(steps_of(state_of(students, 1))) == 1
    students.update(np.ones_like(actions))
    assert students.reasons[0] is None
    assert "hidden/skip" in str(students.reasons[1])


# --------------------------------------------------------------------------- what cannot be


def test_vmap_falls_back_where_it_cannot_be(
    tiny_setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = tiny_setup()
    said: list[str] = []
    assert pick_mode(setup.distiller, "loop", said.append) == "loop"
    assert pick_mode(setup.distiller, "auto", said.append) == "loop"  # a CPU
    assert pick_mode(setup.distiller, "vmap", said.append) == "vmap"
    assert said == []

    type = setup.pool.types[3]

    def asks_for_numbers(student: Any, teacher: Any, batch: Any) -> Tensor:
        return type.loss(student, teacher, batch) * (1.0 + 0.0 * student.hidden[1].sum().item())

    unmappable = replace(
        setup.pool, types=(*setup.pool.types[:3], replace(type, loss=asks_for_numbers))
    )
    setup.distiller.pool = unmappable
    with pytest.raises(UsageError, match=r"--vectorize vmap.*\.item\(\)"):
        pick_mode(setup.distiller, "vmap", said.append)
    monkeypatch.setattr(setup.distiller, "device", torch.device("cuda"))
    monkeypatch.setattr(stacking.Batch, "to", lambda self, device: self)
    monkeypatch.setattr(torch, "ones", lambda *a, **k: torch.tensor(1.0))
    assert pick_mode(setup.distiller, "auto", said.append) == "loop"
    assert "one after the other" in said[0]
    assert ".item()" in said[0]


def test_dropout_is_for_the_loop(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup(student={"layers": 2, "dropout": 0.1})
    with pytest.raises(UsageError, match=r"--vectorize vmap.*dropout 0\.1"):
        pick_mode(setup.distiller, "vmap")
    actions = make_actions(3, len(setup.pool))[:4]
    expected, states = separately(setup.distiller, actions)
    students = StackedDistiller(setup.distiller, 3, "loop")
    found = together(students, actions)
    same_records(found[3][2], expected[2][3], 0.0)
    assert_states(state_of(students, 2), states[2], 0.0)


def test_lazy_embeddings_are_for_the_loop(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup(optim={"embeddings": "lazy"})
    with pytest.raises(UsageError, match=r"--vectorize vmap.*--optim\.embeddings lazy"):
        pick_mode(setup.distiller, "vmap")


def test_a_spent_budget_is_refused(tiny_setup: Callable[..., Setup]) -> None:
    students = StackedDistiller(tiny_setup().distiller, 2, "vmap")
    students.reset(data_seed=0, updates=1)
    students.update(np.ones((2, 5)))
    with pytest.raises(RuntimeError, match="spent"):
        students.update(np.ones((2, 5)))
    students.distiller.reset(data_seed=0, updates=1)
    with pytest.raises(RuntimeError, match="someone else"):
        students.update(np.ones((2, 5)))


# --------------------------------------------------------------------------- memory


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_too_many_students_are_refused_before_they_are_made(
    tiny_setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    core = tiny_setup().distiller
    state, work = stacked_memory.state_bytes(core), stacked_memory.work_bytes(core)
    monkeypatch.setattr(stacked_memory, "free_bytes", lambda device: 6 * state + work)
    students = StackedDistiller(core, 6, mode)
    assert sum(t.nbytes for t in (*students.weights, *students.moments)) == 6 * state
    with pytest.raises(UsageError, match=r"--students 7: .*room for about 6"):
        StackedDistiller(core, 7, mode)
    monkeypatch.setattr(stacked_memory, "free_bytes", lambda device: work // 2)
    with pytest.raises(UsageError, match=r"--students 1: .*no room for one"):
        StackedDistiller(core, 1, mode)


def test_the_estimate_decides_how_many_go_through_one_step(
    tiny_setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = tiny_setup().distiller
    state, work = stacked_memory.state_bytes(core), stacked_memory.work_bytes(core)
    monkeypatch.setattr(stacked_memory, "free_bytes", lambda device: 8 * state + 3 * work)
    said: list[str] = []
    assert stacked_memory.chunk_size(core, 8, "vmap", said.append) == 3
    assert said == ["8 students: 3 at a time in one step, by an estimate of the memory"]
    assert stacked_memory.chunk_size(core, 8, "loop", said.append) == 8
    monkeypatch.setattr(stacked_memory, "free_bytes", lambda device: None)
    assert stacked_memory.chunk_size(core, 8, "vmap", said.append) == 8


def test_free_memory_is_read_from_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       2048 kB\nMemAvailable:    100 kB\n")
    monkeypatch.setattr(machine, "MEMORY_FILE", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "GROUP", tmp_path)

    def free() -> int | None:
        found = stacked_memory.free_bytes(torch.device("cpu"))
        assert found == machine.free_memory()
        return found

    assert free() == 102400
    (tmp_path / "memory.current").write_text("60000\n")
    (tmp_path / "memory.max").write_text("max\n")  # a container without a limit
    assert free() == 102400
    (tmp_path / "memory.max").write_text("90000\n")
    assert free() == 30000
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 5000\n")
    assert free() == 35000
    (tmp_path / "memory.max").write_text("50000\n")
    assert free() == 0
    monkeypatch.setattr(machine, "GROUP", tmp_path / "none")
    monkeypatch.setattr(machine, "MEMORY_FILE", tmp_path / "none")
    monkeypatch.setattr(machine.os, "sysconf_names", {})
    assert free() is None


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that runs out of memory with more than ``most`` students in a step."""
    seen: list[int] = []
    real = stacking.SideBySide.look

    def look(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        count = len(next(iter(weights.values())))
        seen.append(count)
        if count > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, weights, *args, **kwargs)

    monkeypatch.setattr(stacking.SideBySide, "look", look)
    return seen


def test_out_of_memory_halves_the_students_of_a_step(
    tiny_setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = tiny_setup()
    actions = make_actions(6, len(setup.pool))[:3]
    _, states = separately(setup.distiller, actions)
    said: list[str] = []
    students = StackedDistiller(setup.distiller, 6, "vmap", said.append)
    seen = limited(monkeypatch, 2)
    together(students, actions)
    assert said == [
        f"out of memory: {n} students at a time in one step from here on" for n in (3, 1)
    ]
    assert seen[0] == 6
    assert set(seen[2:]) == {1}
    for n in range(6):
        assert steps_of(state_of(students, n)) == steps_of(states[n])
    limited(monkeypatch, 0)
    students.reset(3, 3)
    with pytest.raises(UsageError, match=r"--batching.size.*single student"):
        students.update(actions[0])
