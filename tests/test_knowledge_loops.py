"""A second opinion: every loss written from its equation, in loops and float64."""

from dataclasses import replace
from itertools import pairwise
from math import exp, floor, isfinite, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from knowledge_cases import Case, crop, each_tensor, setting_of

from ksel.config import KnowledgeConfig
from ksel.knowledge import KINDS
from ksel.types import Shape


def softmax(x):
    e = [exp(v - max(x)) for v in x]
    return np.array([v / sum(e) for v in e])


def kl(p, q):
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mse(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(b)


def unit(x):
    return x / sqrt(sum(x * x))


def relation(vectors):
    """softmax of the scaled dot products of all vectors, row by row."""
    return [softmax([a @ b / sqrt(len(a)) for b in vectors]) for a in vectors]


def cut(vectors, parts, part):
    width = vectors.shape[1] // parts
    return vectors[:, part * width : (part + 1) * width]


# One example: ``x`` and ``y`` are its signals without padding, ``at`` its place in the batch.


def slow_relation(case, x, y, pairs, heads, name):
    total = 0.0
    for s, t in pairs:
        a, b = getattr(x, name)[s], getattr(y, name)[t]
        for head in range(heads):
            rows = zip(relation(cut(a, heads, head)), relation(cut(b, heads, head)), strict=True)
            total += sum(kl(q, p) for p, q in rows) / heads
    return total


def scores_and_maps(signals, layer, heads):
    """[heads][n] rows of scores, and of maps."""
    query, key = signals.query[layer], signals.key[layer]
    scores = []
    for head in range(heads):
        q, k = cut(query, heads, head), cut(key, heads, head)
        scores.append([np.array([a @ b / sqrt(q.shape[1]) for b in k]) for a in q])
    return scores, [[softmax(row) for row in rows] for rows in scores]


def slow_attention(case, config, x, y, pairs):
    total = 0.0
    on_scores = config.attention_on == "scores"
    divergence = config.attention_loss == "kl" and case.kind != "attention_sum"
    for s, t in pairs:
        a = scores_and_maps(x, s, case.student.heads)[not on_scores]
        b = scores_and_maps(y, t, case.teacher.heads)[not on_scores]
        if case.kind != "attention":
            factor = len(b) if case.kind == "attention_sum" else 1
            a, b = (
                [[factor * sum(token) / len(z) for token in zip(*z, strict=True)]] for z in (a, b)
            )
        for head_a, head_b in zip(a, b, strict=True):
            for p, q in zip(head_a, head_b, strict=True):
                total += (kl(q, p) if divergence else mse(p, q)) / len(b)
    return total


def slow_states(case, config, x, y, pairs, project):
    total = 0.0
    for s, t in pairs:
        if case.kind == "cls_hidden":
            a, b = project(s, t, x.cls[s]), y.cls[t]
            if config.normalize_cls:
                a, b = unit(a), unit(b)
            parts = len(pairs) if config.cls_reduction == "mean" else 1
            total += (sum((a - b) ** 2) if config.cls_reduction == "sum" else mse(a, b)) / parts
            continue
        for a, b in zip(x.hidden[s], y.hidden[t], strict=True):
            a = project(s, t, a)
            total += 1 - unit(a) @ unit(b) if case.kind == "cosine" else mse(a, b)
    return total


def slow_fsp(x, y, pairs, project):
    total = 0.0
    for (s1, t1), (s2, t2) in pairwise(pairs):
        a1 = [project(s1, t1, v) for v in x.hidden[s1]]
        a2 = [project(s2, t2, v) for v in x.hidden[s2]]
        b1, b2 = y.hidden[t1], y.hidden[t2]
        n, h = b1.shape
        for i in range(h):
            for j in range(h):
                a = sum(a1[k][i] * a2[k][j] for k in range(n)) / n
                b = sum(b1[k][i] * b2[k][j] for k in range(n)) / n
                total += (a - b) ** 2 / h**2
    return total


def slow_nst(x, y, pairs):
    total = 0.0
    for s, t in pairs:
        a, b = x.hidden[s], y.hidden[t]
        n = len(a)
        for i in range(n):
            for j in range(n):
                difference = a[i] @ a[j] / a.shape[1] - b[i] @ b[j] / b.shape[1]
                total += difference**2 / n**2
    return total


def rows_of(logits, case):
    """The distributions of one example: [classes], or start and end [n]."""
    return [logits[:, 0], logits[:, 1]] if case.task == "squad" else [logits]


def gold(logits, label, case):
    """Cross-entropy of the gold label."""
    labels = label if case.task == "squad" else [label]
    losses = [
        -log(softmax(row)[int(one)]) for row, one in zip(rows_of(logits, case), labels, strict=True)
    ]
    return sum(losses) / len(losses)


def slow_logits(case, config, x, y):
    steps = config.logit_annealing
    phi = min(1.0, (floor(case.progress * steps) + 1) / steps) if steps else 1.0
    rows = zip(rows_of(x.logits, case), rows_of(y.logits, case), strict=True)
    return np.mean([mse(a, phi * b) for a, b in rows])


# Losses that look at the whole batch.


def own_weight(config, a, b):
    if config.temperature_schedule == "cwsm":
        return 1 / max(softmax(a))
    return (1 - unit(a) @ unit(b)) ** config.temperature_power


def slow_responses(case, config, xs, ys, labels):
    if case.task == "stsb":
        return [(x.logits[0] - y.logits[0]) ** 2 for x, y in zip(xs, ys, strict=True)]
    students = [rows_of(x.logits, case) for x in xs]
    teachers = [rows_of(y.logits, case) for y in ys]
    losses = []
    for i, label in enumerate(labels):
        total = 0.0
        for r, (a, b) in enumerate(zip(students[i], teachers[i], strict=True)):
            tau = config.temperature
            if config.temperature_schedule == "linear":
                tau += (config.temperature_end - tau) * case.progress
            elif config.temperature_schedule != "constant":
                everyone = [
                    own_weight(config, s[r], t[r]) for s, t in zip(students, teachers, strict=True)
                ]
                mean = sum(everyone) / len(everyone)
                tau += (mean - everyone[i]) * config.temperature_range
                tau = max(tau, min(config.temperature, 1.0))
            total += tau**2 * kl(softmax(b / tau), softmax(a / tau)) / len(students[i])
        if config.confidence:
            total /= 1 + gold(ys[i].logits, label, case)
        losses.append(total)
    return losses


def slow_similarities(xs, ys, s, t):
    a, b = ([z.cls[i] for z in zs] for zs, i in ((xs, s), (ys, t)))
    return [kl(q, p) for p, q in zip(relation(a), relation(b), strict=True)]


def slow_contrasts(config, xs, ys, s, t, project, labels):
    views = [unit(project(s, t, x.cls[s])) for x in xs] + [unit(y.cls[t]) for y in ys]
    classes = [*labels, *labels]
    anchors = []
    for i, view in enumerate(views):
        others = [j for j in range(len(views)) if j != i]
        scale = sum(exp(view @ views[j] / config.contrastive_temperature) for j in others)
        positives = [j for j in others if classes[j] == classes[i]]
        shares = [
            log(exp(view @ views[j] / config.contrastive_temperature) / scale) for j in positives
        ]
        anchors.append(-sum(shares) / len(positives))
    b = len(labels)
    return [(anchors[i] + anchors[b + i]) / 2 for i in range(b)]


def slow_losses(case, xs, ys, pairs, labels, project):
    """The loss of each example of a batch from signals without padding (numpy)."""
    config, kind = KnowledgeConfig(**case.settings), case.kind
    if kind == "response":
        return slow_responses(case, config, xs, ys, labels)
    if kind == "sample_similarity":
        return slow_similarities(xs, ys, *pairs[0])
    if kind == "sample_contrastive":
        return slow_contrasts(config, xs, ys, *pairs[0], project, labels)
    losses = []
    for x, y, label in zip(xs, ys, labels, strict=True):
        if kind == "label":
            regression = case.task == "stsb"
            losses.append((x.logits[0] - label) ** 2 if regression else gold(x.logits, label, case))
        elif kind == "logits":
            losses.append(slow_logits(case, config, x, y))
        elif kind == "fsp":
            losses.append(slow_fsp(x, y, pairs, project))
        elif kind == "nst":
            losses.append(slow_nst(x, y, pairs))
        elif kind in ("attention", "attention_mean", "attention_sum"):
            losses.append(slow_attention(case, config, x, y, pairs))
        elif kind == "token_similarity":
            losses.append(slow_relation(case, x, y, [(0, 0)], 1, "hidden"))
        elif kind == "attention_output_relation":
            heads = case.student.heads
            losses.append(slow_relation(case, x, y, pairs, heads, "attention_output"))
        elif kind.endswith("_relation"):
            heads = config.relation_heads or case.teacher.heads
            losses.append(slow_relation(case, x, y, pairs, heads, kind.removesuffix("_relation")))
        else:
            losses.append(slow_states(case, config, x, y, pairs, project))
    return losses


# Random cases.

PROJECTING = ("cls_hidden", "hidden", "embedding", "cosine", "fsp")


def draw_options(draw, kind):
    """Settings that the kind reads."""
    choice = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    number = lambda low, high: draw(st.floats(low, high))  # noqa: E731
    options = {"projection": choice("auto", "always")} if kind in PROJECTING else {}
    if kind == "response":
        schedule = choice("constant", "constant", "linear", "flsw", "cwsm")
        options = {
            "temperature": number(0.5, 10),
            "confidence": choice(True, False),
            "temperature_schedule": schedule,
        }
        if schedule == "linear":
            options["temperature_end"] = number(0.5, 10)
        if schedule in ("flsw", "cwsm"):
            options["temperature_range"] = number(0.1, 8)
        if schedule == "flsw":
            options["temperature_power"] = number(0.5, 3)
    elif kind == "logits":
        options = {"logit_annealing": choice(0, 3, 7)}
    elif kind == "cls_hidden":
        options["normalize_cls"] = choice(True, False)
        options["cls_reduction"] = choice("sum", "width", "mean")
    elif kind in ("attention", "attention_mean"):
        options = choice({}, {"attention_loss": "kl"}, {"attention_on": "scores"})
    elif kind == "attention_sum":
        options = {"attention_on": choice("maps", "scores")}
    elif kind == "sample_contrastive":
        options = {"contrastive_temperature": number(0.1, 2)}
    return options


def draw_task(draw, kind, options):
    if kind == "sample_contrastive":
        return draw(st.sampled_from(["mnli", "rte"]))
    tasks = ["mnli", "rte", "squad"]
    if (
        not options.get("confidence")
        and options.get("temperature_schedule", "constant") == "constant"
    ):
        tasks.append("stsb")
    return draw(st.sampled_from(tasks))


def draw_shapes(draw, kind, options):
    """Student and teacher; heads and widths differ as far as the kind lets them."""
    layers = draw(st.integers(2, 3))
    heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    student = Shape(layers, heads * width, heads, 4)
    times, deeper = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    if kind.endswith("_relation") and kind != "attention_output_relation":
        options["relation_heads"] = draw(st.sampled_from([None, heads, 1]))
        shape = Shape(layers + deeper, student.width * times, heads, 4)
    elif kind == "attention_output_relation":
        shape = Shape(layers + deeper, heads * times * draw(st.integers(1, 3)), heads * times, 4)
    elif kind == "attention":
        shape = Shape(layers + deeper, heads * draw(st.integers(1, 4)), heads, 4)
    else:
        other = draw(st.integers(1, 3))
        shape = Shape(layers + deeper, other * draw(st.integers(1, 4)), other, 4)
    return student, shape


@st.composite
def random_cases(draw, kind):
    options = draw_options(draw, kind)
    student, teacher = draw_shapes(draw, kind, options)
    matching = draw(st.sampled_from(["skip", "first", "last", "first_2", "last_2", "1-2+2-1"]))
    spec = kind if KINDS[kind].lowest_layer is None else f"{kind}/{matching}"
    progress = draw(st.sampled_from([0.0, 0.31, 0.7, 0.99]))
    return Case(spec, teacher, student, draw_task(draw, kind, options), options, progress)


def shake(pool, seed):
    """Projections of all sizes, the identity among them, become random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in pool.projections.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))


def to_numpy(signals, row, length):
    """One example's signals without padding and without the batch's dimension."""
    one = crop(signals, slice(row, row + 1), length)
    return each_tensor(one, lambda x: x[0].double().numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_agree_with_loops_in_float64(kind):
    @settings(max_examples=60, deadline=None)
    @given(
        case=random_cases(kind),
        lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
        padding=st.integers(0, 3),
        seed=st.integers(0, 2**20),
    )
    def check(case, lengths, padding, seed):
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            pool = case.pool()
            shake(pool, seed)
            setting = setting_of(case, lengths, dtype, seed, padding, pool)
            compare(case, setting, pool, lengths, tolerance)

    check()


def compare(case, setting, pool, lengths, tolerance):
    type, batch, student, teacher = setting
    maps = [
        {name: layer.weight.detach().double().numpy() for name, layer in part.items()}
        for part in pool.projections.values()
    ]

    def project(s, t, x):
        return maps[0][f"{s}_{t}"] @ x if maps else x

    expected = slow_losses(
        case,
        [to_numpy(student, row, length) for row, length in enumerate(lengths)],
        [to_numpy(teacher, row, length) for row, length in enumerate(lengths)],
        type.pairs,
        batch.labels.tolist(),
        project,
    )
    assert all(isfinite(value) for value in expected)
    # T^2 multiplies the rounding of KL.
    config = KnowledgeConfig(**case.settings)
    warmest = max(config.temperature, config.temperature_end) + 2 * config.temperature_range
    tolerance *= max(1.0, warmest**2) if case.kind == "response" else 1.0
    loss = type.loss(student, teacher, batch).detach().double()
    np.testing.assert_allclose(loss, expected, rtol=tolerance, atol=tolerance)


def test_the_random_cases_meet_projections_other_heads_and_all_tasks():
    met = set()

    @settings(max_examples=300, deadline=None)
    @given(case=st.sampled_from(sorted(KINDS)).flatmap(random_cases))
    def collect(case):
        met.add(case.task)
        met.add("heads" if case.student.heads != case.teacher.heads else "same heads")
        met.add("projection" if case.pool().projections else "none")

    collect()
    assert met >= {"mnli", "squad", "stsb", "heads", "same heads", "projection", "none"}


def test_the_loops_see_what_they_should():
    # the second opinion itself depends on width, heads and projection
    case = Case("attention_sum", Shape(2, 4, 2, 4), Shape(2, 4, 1, 4))
    type, _, student, teacher = setting_of(case, (3,))
    x, y = to_numpy(student, 0, 3), to_numpy(teacher, 0, 3)
    one = slow_losses(case, [x], [y], type.pairs, [0], None)
    mean = slow_losses(replace(case, spec="attention_mean"), [x], [y], type.pairs, [0], None)
    assert one[0] == pytest.approx(4 * mean[0])
