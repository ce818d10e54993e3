"""Rules that every kind of knowledge keeps."""

from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from math import isnan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, jvp, vmap

from ksel.config import KnowledgeConfig
from ksel.knowledge import KINDS, build_pool, mean_loss, units
from ksel.knowledge.attention import row_divergence, row_mse
from ksel.tasks import get_task
from ksel.types import LAYERED, Batch, Shape, Signals

SMALL = Shape(layers=2, width=8, heads=2, feed_forward=8)
LARGE = Shape(layers=4, width=8, heads=2, feed_forward=8)
WIDE = Shape(layers=4, width=12, heads=4, feed_forward=8)


@dataclass(frozen=True)
class Case:
    spec: str
    teacher: Shape = LARGE
    student: Shape = SMALL
    task: str = "mnli"
    settings: dict = field(default_factory=dict)

    def __str__(self):
        extra = [f"{k}={v}" for k, v in self.settings.items()]
        return "-".join([self.spec.replace("/", ":"), self.task, f"w{self.teacher.width}", *extra])

    def pool(self, student=None, teacher=None, seed=0):
        return build_pool(
            KnowledgeConfig(pool=[self.spec], **self.settings),
            task=get_task(self.task),
            student=student or self.student,
            teacher=teacher or self.teacher,
            seed=seed,
        )


CASES = [
    Case("label"),
    Case("label", task="stsb"),
    Case("response", settings={"temperature": 3.0}),
    Case("response", task="stsb"),
    Case("cls_hidden/skip"),
    Case("cls_hidden/last", settings={"normalize_cls": False}),
    Case("hidden/0-0+2-3"),
    Case("hidden/skip", teacher=WIDE),
    Case("attention/last"),
    Case("attention/skip", settings={"attention_loss": "kl"}),
    Case("query_relation/first"),
    Case("key_relation/skip", teacher=WIDE, settings={"relation_heads": 1}),
    Case("value_relation/last_1", teacher=WIDE),
    Case("fsp/skip"),
    Case("fsp/0-0+1-2+2-4"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_the_cases_cover_every_kind():
    assert {case.spec.partition("/")[0] for case in CASES} == set(KINDS)


def make_batch(lengths, task, seed=0, padding=0):
    """A batch with real lengths, and ``padding`` columns more than the longest needs."""
    rng = np.random.default_rng(seed)
    longest = max(lengths) + padding
    mask = torch.tensor([[int(i < length) for i in range(longest)] for length in lengths])
    labels = (
        torch.tensor(rng.uniform(0, 5, len(lengths)), dtype=torch.float32)
        if task.is_regression
        else torch.tensor(rng.integers(task.num_outputs, size=len(lengths)))
    )
    return Batch(torch.arange(len(lengths)), torch.ones_like(mask), mask, None, labels)


def make_signals(batch, shape, task, seed, dtype=torch.float32):
    """Every signal of every layer, from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    b, n, h = *batch.attention_mask.shape, shape.width
    hidden = {layer: draw(b, n, h) for layer in range(shape.layers + 1)}
    parts = {
        name: {layer: draw(b, n, h) for layer in range(1, shape.layers + 1)}
        for name in ("query", "key", "value")
    }
    cls = {layer: x[:, 0] for layer, x in hidden.items()}
    return Signals(draw(b, task.num_outputs), cls, hidden, **parts)


def each_tensor(signals, change):
    """The signals with ``change(tensor)`` for each tensor."""
    parts = {
        name: {layer: change(x) for layer, x in getattr(signals, name).items()} for name in LAYERED
    }
    return Signals(None if signals.logits is None else change(signals.logits), **parts)


def only(signals, needs):
    """The signals that are needed and no others."""
    parts = {name: {i: getattr(signals, name)[i] for i in getattr(needs, name)} for name in LAYERED}
    return Signals(signals.logits if needs.logits else None, **parts)


def tensors(signals):
    layered = [x for name in LAYERED for x in getattr(signals, name).values()]
    return [*([] if signals.logits is None else [signals.logits]), *layered]


def setting_of(case, lengths=(5, 3, 1), dtype=torch.float32, seed=0, padding=0):
    """The case's only type, a batch, and what the type needs of student and teacher for it."""
    task = get_task(case.task)
    pool = case.pool()
    pool.projections.to(torch.promote_types(dtype, torch.float32))
    (type,) = pool.types
    batch = make_batch(lengths, task, seed, padding)
    student = only(make_signals(batch, case.student, task, 2 * seed + 1, dtype), type.student)
    teacher = only(make_signals(batch, case.teacher, task, 2 * seed + 2, dtype), type.teacher)
    return type, batch, student, teacher


def gradients(type, batch, student, teacher):
    """The student's signals as leaves, and the gradient of the mean loss for each."""
    student = each_tensor(student, lambda x: x.detach().clone().requires_grad_())
    loss = mean_loss(type, student, teacher, batch)
    return loss.detach(), torch.autograd.grad(loss, tensors(student))


def crop(signals, row, length):
    """One example's signals without its padding."""
    return each_tensor(signals, lambda x: x[row : row + 1, :length] if x.dim() == 3 else x[[row]])


@every_case
def test_padding_does_not_change_the_loss(case):
    lengths = (5, 3, 1)
    type, batch, student, teacher = setting_of(case, lengths, padding=4)
    padded = type.loss(student, teacher, batch)
    for row, length in enumerate(lengths):
        one = batch.split(len(batch))[row]
        one = replace(
            one,
            input_ids=one.input_ids[:, :length],
            attention_mask=one.attention_mask[:, :length],
        )
        alone = type.loss(crop(student, row, length), crop(teacher, row, length), one)
        torch.testing.assert_close(padded[[row]], alone)


@every_case
@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("-inf")])
def test_what_stands_in_padded_positions_reaches_neither_loss_nor_gradient(case, garbage):
    type, batch, student, teacher = setting_of(case)
    padded = ~batch.attention_mask.bool()[..., None]

    def spoil(x):
        return x.masked_fill(padded, garbage) if x.dim() == 3 else x

    clean_loss, clean = gradients(type, batch, student, teacher)
    loss, spoilt = gradients(type, batch, each_tensor(student, spoil), each_tensor(teacher, spoil))
    assert loss.item() == clean_loss.item()
    for expected, gradient in zip(clean, spoilt, strict=True):
        assert torch.equal(expected, gradient)
        if gradient.dim() == 3:
            assert not gradient.masked_select(padded).any()


@every_case
def test_an_example_without_real_tokens_adds_nothing_to_token_losses(case):
    type, batch, student, teacher = setting_of(case, lengths=(4, 0))
    loss, gradient = gradients(type, batch, student, teacher)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradient)
    if type.unit == "token":
        assert type.loss(student, teacher, batch)[1] == 0


@pytest.mark.parametrize("case", [case for case in CASES if case.spec != "label"], ids=str)
def test_a_perfect_match_gives_zero_and_no_gradient(case):
    task = get_task(case.task)
    # The same model on both sides: matched layers are then the same layers.
    same = replace(case, teacher=case.student, spec=case.spec.split("/")[0])
    type, batch, student, _ = setting_of(same, lengths=(5, 3, 1))
    loss, gradient = gradients(type, batch, student, student)
    assert abs(loss.item()) < 1e-6
    assert all(g.abs().max() < 1e-6 for g in gradient)
    other = only(make_signals(batch, case.student, task, 99), type.teacher)
    assert gradients(type, batch, student, other)[0] > 1e-3


@every_case
def test_every_kind_moves_all_that_it_asks_of_the_student(case):
    type, batch, student, teacher = setting_of(case)
    _, gradient = gradients(type, batch, student, teacher)
    assert gradient
    assert all(g.abs().max() > 1e-6 for g in gradient)


def test_the_learned_projection_is_trained_too():
    case = Case("hidden/skip", teacher=WIDE)
    pool = case.pool()
    _, batch, student, teacher = setting_of(case)
    mean_loss(pool.types[0], student, teacher, batch).backward()
    assert len(list(pool.projections.parameters())) == 2
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pool.projections.parameters())


@every_case
def test_losses_are_not_negative_and_one_per_example(case):
    type, batch, student, teacher = setting_of(case)
    loss = type.loss(student, teacher, batch)
    assert loss.shape == (len(batch),)
    assert (loss >= 0).all()
    total = loss.sum() / units(type.unit, batch)
    assert mean_loss(type, student, teacher, batch).item() == total.item()


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_computed_in_float32(case, dtype, autocast):
    type, batch, student, teacher = setting_of(case)
    student, teacher = (each_tensor(x, lambda x: x.to(dtype)) for x in (student, teacher))
    exact = type.loss(
        each_tensor(student, torch.Tensor.float), each_tensor(teacher, torch.Tensor.float), batch
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = type.loss(student, teacher, batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


@every_case
def test_a_stored_half_precision_teacher_meets_a_float32_student(case):
    type, batch, student, teacher = setting_of(case)
    half = each_tensor(teacher, torch.Tensor.half)
    loss = type.loss(student, half, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, type.loss(student, teacher, batch), rtol=2e-2, atol=2e-3)


@every_case
def test_the_gradient_is_the_derivative(case):
    type, batch, student, teacher = setting_of(case, (3, 2), torch.float64)
    leaves = [x.requires_grad_() for x in tensors(student)]

    def loss(*values):
        values = iter(values)
        return type.loss(each_tensor(student, lambda _: next(values)), teacher, batch)

    assert loss(*leaves).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)


@every_case
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_micro_batches_add_up_to_the_loss_of_the_batch(case, parts):
    type, batch, student, teacher = setting_of(case, (5, 1, 3, 2, 5))
    whole = mean_loss(type, student, teacher, batch)
    total = torch.zeros(())
    for part in batch.split(parts):
        rows = part.ids
        x, y = (each_tensor(s, lambda x, rows=rows: x[rows]) for s in (student, teacher))
        total = total + type.loss(x, y, part).sum() / units(type.unit, batch)
    torch.testing.assert_close(total, whole)


@every_case
def test_what_a_kind_asks_for_is_what_it_reads(case):
    type, batch, student, teacher = setting_of(case)
    type.loss(student, teacher, batch)
    for side, signals in (("student", student), ("teacher", teacher)):
        for name in LAYERED:
            for layer in getattr(signals, name):
                kept = {i: x for i, x in getattr(signals, name).items() if i != layer}
                less = {
                    "student": student,
                    "teacher": teacher,
                    side: replace(signals, **{name: kept}),
                }
                with pytest.raises(KeyError):
                    type.loss(**less, batch=batch)
    assert type.student
    assert bool(type.teacher) == (case.spec != "label")


@every_case
def test_the_vector_of_losses_has_a_forward_mode_derivative(case):
    type, batch, student, teacher = setting_of(case, dtype=torch.float64)
    names = [str(i) for i, _ in enumerate(tensors(student))]
    point = dict(zip(names, tensors(student), strict=True))
    generator = torch.Generator().manual_seed(5)
    direction = {
        name: torch.randn(x.shape, generator=generator, dtype=x.dtype) for name, x in point.items()
    }

    def loss(values):
        queue = iter(values.values())
        return mean_loss(type, each_tensor(student, lambda _: next(queue)), teacher, batch)

    value, slope = jvp(loss, (point,), (direction,))
    step = 1e-6
    ahead, behind = (
        loss({name: x + sign * step * direction[name] for name, x in point.items()})
        for sign in (1, -1)
    )
    assert value.item() == pytest.approx(mean_loss(type, student, teacher, batch).item())
    assert slope.item() == pytest.approx((ahead - behind).item() / (2 * step), rel=1e-4, abs=1e-7)


@every_case
def test_students_can_be_mapped_over(case):
    type, batch, student, teacher = setting_of(case)
    task = get_task(case.task)
    students = [student, only(make_signals(batch, case.student, task, 77), type.student)]
    stacked = [torch.stack(xs) for xs in zip(*map(tensors, students), strict=True)]

    def loss(*values):
        queue = iter(values)
        return type.loss(each_tensor(student, lambda _: next(queue)), teacher, batch)

    expected = torch.stack([type.loss(s, teacher, batch) for s in students])
    torch.testing.assert_close(vmap(loss)(*stacked), expected)


@pytest.mark.parametrize("compare", [row_divergence, row_mse])
def test_rows_of_padded_queries_do_not_count(compare):
    batch = make_batch((4, 2), get_task("rte"))
    generator = torch.Generator().manual_seed(0)
    keys = ~batch.attention_mask.bool()[:, None, None, :]
    x, y = torch.randn(2, 2, 3, 4, 4, generator=generator).masked_fill(keys, float("-inf"))
    queries = ~batch.attention_mask.bool()[:, None, :, None]
    other = torch.randn(2, 3, 4, 4, generator=generator).masked_fill(keys, float("-inf"))
    expected = compare(x, y, batch)
    assert (expected > 0).all()
    assert torch.equal(compare(torch.where(queries, other, x), y, batch), expected)


# Relations, maps and Gram matrices: what they are blind to.


def orthogonal(size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(x)[0]


@pytest.mark.parametrize("vectors", ["query", "key", "value"])
def test_relations_do_not_see_a_change_of_basis_within_a_relation_head(vectors):
    case = Case(f"{vectors}_relation", settings={"relation_heads": 2})
    type, batch, student, teacher = setting_of(case, dtype=torch.float64)
    before = type.loss(student, teacher, batch)
    within = torch.block_diag(orthogonal(4, 1), orthogonal(4, 2))
    after = type.loss(each_tensor(student, lambda x: x @ within), teacher, batch)
    torch.testing.assert_close(after, before)
    across = type.loss(each_tensor(student, lambda x: x @ orthogonal(8, 3)), teacher, batch)
    assert (across - before).abs().max() > 1e-3


def test_attention_does_not_see_a_change_of_basis_common_to_queries_and_keys():
    type, batch, student, teacher = setting_of(Case("attention"), dtype=torch.float64)
    before = type.loss(student, teacher, batch)
    within = torch.block_diag(orthogonal(4, 1), orthogonal(4, 2))
    after = type.loss(each_tensor(student, lambda x: x @ within), teacher, batch)
    torch.testing.assert_close(after, before)


def test_fsp_does_not_see_a_change_of_basis_common_to_both_models_nor_the_order_of_tokens():
    type, batch, student, teacher = setting_of(Case("fsp"), (5, 5), torch.float64)
    before = type.loss(student, teacher, batch)
    turn = orthogonal(8, 1)
    turned, turned_teacher = (each_tensor(x, lambda x: x @ turn) for x in (student, teacher))
    torch.testing.assert_close(type.loss(turned, turned_teacher, batch), before)
    assert (type.loss(turned, teacher, batch) - before).abs().max() > 1e-3
    shuffled = each_tensor(student, lambda x: x[:, [3, 1, 4, 0, 2]])
    torch.testing.assert_close(type.loss(shuffled, teacher, batch), before)


def test_response_does_not_see_a_constant_added_to_the_logits():
    type, batch, student, teacher = setting_of(Case("response"), dtype=torch.float64)
    before = type.loss(student, teacher, batch)
    after = type.loss(each_tensor(student, lambda x: x + 3), teacher, batch)
    torch.testing.assert_close(after, before)


def test_normalised_cls_states_do_not_see_lengths():
    type, batch, student, teacher = setting_of(Case("cls_hidden"), dtype=torch.float64)
    before = type.loss(student, teacher, batch)
    torch.testing.assert_close(
        type.loss(each_tensor(student, lambda x: 7 * x), teacher, batch), before
    )


@pytest.mark.parametrize(
    "case",
    [
        Case("response", settings={"temperature": 1.0}),
        Case("attention", settings={"attention_loss": "kl"}),
        Case("value_relation"),
    ],
    ids=str,
)
def test_probabilities_that_underflow_give_neither_nan_nor_infinity(case):
    type, batch, student, teacher = setting_of(case)
    student, teacher = (each_tensor(x, lambda x: 60 * x) for x in (student, teacher))
    loss, gradient = gradients(type, batch, student, teacher)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradient)


# Learned projections.


def test_projections_depend_on_the_seed_alone():
    case = Case("hidden/skip", teacher=WIDE)

    def weights(seed, state):
        torch.manual_seed(state)
        return list(case.pool(seed=seed).projections.state_dict().values())

    first, again, other = weights(3, 0), weights(3, 1), weights(4, 0)
    assert [w.shape for w in first] == [(12, 8), (12, 8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(*first)


def test_projections_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Case("hidden/skip", teacher=WIDE).pool()
    assert torch.equal(torch.get_rng_state(), before)


def test_projections_do_not_depend_on_the_rest_of_the_pool():
    def weight(pool):
        pool = build_pool(
            KnowledgeConfig(pool=pool), task=get_task("rte"), student=SMALL, teacher=WIDE, seed=1
        )
        return pool.projections["hidden_last"]["2_4"].weight

    assert torch.equal(weight(["hidden/last"]), weight(["hidden/skip", "label", "hidden/last"]))


def test_projections_keep_the_size_of_the_states():
    wide, wider = replace(SMALL, width=256), replace(LARGE, width=384)
    (layer, _) = Case("hidden/skip").pool(wide, wider).projections["hidden_skip"].values()
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert layer(x).std().item() == pytest.approx(1, abs=0.05)
    assert layer.bias is None


def test_projections_can_be_replaced_by_a_functional_call():
    pool = Case("hidden/1-1", teacher=WIDE).pool()
    layer = pool.projections["hidden_1_1"]["1_1"]
    zero = {"weight": torch.zeros(12, 8)}
    assert not functional_call(layer, zero, torch.ones(1, 8)).any()


# A second opinion: every loss written out in loops, in float64.


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def slow_rows(query, key, heads, head):
    """The attention map of one head of one example, [n, n]."""
    d = query.shape[1] // heads
    q, k = (x[:, head * d : (head + 1) * d] for x in (query, key))
    return [softmax(np.array([a @ b / np.sqrt(d) for b in k])) for a in q]


def slow_maps(student, teacher, heads, compare):
    """Mean over heads, sum over tokens of ``compare(student row, teacher row)``."""
    total = 0.0
    for head in range(heads):
        rows = zip(slow_rows(*student, heads, head), slow_rows(*teacher, heads, head), strict=True)
        total += sum(compare(x, y) for x, y in rows) / heads
    return total


def slow_loss(case, x, y, pairs, label):
    """The loss of one example from its signals without padding (numpy)."""
    kind = case.spec.partition("/")[0]
    config = KnowledgeConfig(**case.settings)
    regression = case.task == "stsb"
    if kind == "label":
        logits = x.logits[0]
        return (logits[0] - label) ** 2 if regression else -np.log(softmax(logits)[int(label)])
    if kind == "response":
        if regression:
            return (x.logits[0, 0] - y.logits[0, 0]) ** 2
        t = config.temperature
        return t * t * kl(softmax(y.logits[0] / t), softmax(x.logits[0] / t))
    if kind == "fsp":
        total = 0.0
        for (s1, t1), (s2, t2) in pairwise(pairs):
            n, h = x.hidden[s1][0].shape
            for i in range(h):
                for j in range(h):
                    a = sum(x.hidden[s1][0][k, i] * x.hidden[s2][0][k, j] for k in range(n)) / n
                    b = sum(y.hidden[t1][0][k, i] * y.hidden[t2][0][k, j] for k in range(n)) / n
                    total += (a - b) ** 2 / h**2
        return total
    total = 0.0
    for s, t in pairs:
        if kind == "cls_hidden":
            a, b = x.cls[s][0], y.cls[t][0]
            if config.normalize_cls:
                a, b = a / np.sqrt(sum(a**2)), b / np.sqrt(sum(b**2))
            total += sum((a - b) ** 2)
        elif kind == "hidden":
            for a, b in zip(x.hidden[s][0], y.hidden[t][0], strict=True):
                total += sum((a - b) ** 2) / len(b)
        elif kind == "attention":
            compare = (
                (lambda a, b: kl(b, a))
                if config.attention_loss == "kl"
                else (lambda a, b: sum((a - b) ** 2) / len(a))
            )
            maps = ((z.query[i][0], z.key[i][0]) for z, i in ((x, s), (y, t)))
            total += slow_maps(*maps, case.teacher.heads, compare)
        else:
            vectors = kind.removesuffix("_relation")
            a, b = getattr(x, vectors)[s][0], getattr(y, vectors)[t][0]
            heads = config.relation_heads or case.teacher.heads
            total += slow_maps((a, a), (b, b), heads, lambda p, q: kl(q, p))
    return total


def to_numpy(signals, row, length):
    return each_tensor(crop(signals, row, length), lambda x: x.double().numpy())


@st.composite
def random_cases(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    heads, head_width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    student_layers = draw(st.integers(2, 3))
    student = Shape(student_layers, heads * head_width, heads, 4)
    teacher = Shape(draw(st.integers(student_layers, 5)), heads * head_width, heads, 4)
    options = {}
    if kind.endswith("_relation"):
        times = draw(st.integers(1, 3))
        teacher = replace(teacher, width=student.width * times)
        options["relation_heads"] = draw(st.sampled_from([None, heads, 1]))
    elif kind == "attention":
        options["attention_loss"] = draw(st.sampled_from(["mse", "kl"]))
        teacher = replace(teacher, width=heads * draw(st.integers(1, 4)))
    elif kind == "cls_hidden":
        options["normalize_cls"] = draw(st.booleans())
    elif kind == "response":
        options["temperature"] = draw(st.floats(0.5, 10))
    matching = draw(st.sampled_from(["skip", "first", "last", "first_2", "last_2", "1-2+2-1"]))
    spec = kind if KINDS[kind].lowest_layer is None else f"{kind}/{matching}"
    task = draw(st.sampled_from(["mnli", "rte", "stsb"]))
    return Case(spec, teacher, student, task, options)


@settings(max_examples=300, deadline=None)
@given(
    case=random_cases(),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**20),
)
def test_losses_agree_with_loops_in_float64(case, lengths, padding, seed):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        type, batch, student, teacher = setting_of(case, lengths, dtype, seed, padding)
        loss = type.loss(student, teacher, batch)
        expected = [
            slow_loss(
                case,
                to_numpy(student, row, length),
                to_numpy(teacher, row, length),
                type.pairs,
                batch.labels[row].item(),
            )
            for row, length in enumerate(lengths)
        ]
        assert not any(isnan(e) for e in expected)
        # T^2 multiplies the rounding of KL.
        tolerance *= max(1.0, case.settings.get("temperature", 1.0) ** 2)
        np.testing.assert_allclose(loss.double(), expected, rtol=tolerance, atol=tolerance)


def test_signals_of_the_tests_cover_every_field():
    # A signal added to ksel.types must be added to make_signals, or new kinds go untested.
    assert {f.name for f in fields(Signals)} == {"logits", *LAYERED}
    batch = make_batch([2], get_task("rte"))
    signals = make_signals(batch, SMALL, get_task("rte"), 0)
    assert signals.logits is not None
    assert all(getattr(signals, name) for name in LAYERED)
