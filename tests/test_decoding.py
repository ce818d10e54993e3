"""From scores of tokens to answers, and from answers to exact match and F1."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.functional.text import squad

from ksel.config import SpanConfig
from ksel.data import Split
from ksel.decoding import SURE, Candidate, Decoded, decode
from ksel.errors import UsageError
from ksel.evaluation import (
    evaluate_dev,
    finite_spans,
    predict_logits,
    score_answers,
    score_split,
)
from ksel.objectives import objective_value
from ksel.spans import Spans
from ksel.tasks import TASKS

V1, V2 = TASKS["squad"], TASKS["squad_v2"]
TEXT = "red blue green white black brown"
WORDS = TEXT.split()


def word_spans(*windows: tuple[int, range], golds: list[tuple[str, ...]] | None = None) -> Spans:
    """Windows of [CLS], a question token, and some words of TEXT; (example, words) each."""
    places = [(TEXT.index(word), TEXT.index(word) + len(word)) for word in WORDS]
    offsets = [
        np.array([(-1, -1), (-1, -1), *(places[i] for i in words), (-1, -1)], np.int32)
        for _, words in windows
    ]
    example = np.array([number for number, _ in windows])
    count = int(example.max()) + 1
    return Spans(
        example, offsets, [f"q{i}" for i in range(count)], np.arange(count), [TEXT] * count, golds
    )


def scores(spans: Spans, *given: tuple[int, str, int, float]) -> Tensor:
    """Logits of zero but for (window, start or end, token, score); padding is -inf."""
    longest = max(len(one) for one in spans.offsets)
    logits = torch.full((len(spans.offsets), longest, 2), -torch.inf)
    for row, one in zip(logits, spans.offsets, strict=True):
        row[: len(one)] = 0.0
    for window, side, token, value in given:
        logits[window, token, int(side == "end")] = value
    return logits


def answers(logits: Tensor, spans: Spans, task: Any = V1, **span: Any) -> list[str]:
    return decode(logits, spans, task, SpanConfig(**span)).answers()


# decoding by hand


def test_the_answer_is_cut_from_the_context() -> None:
    spans = word_spans((0, range(6)))
    logits = scores(spans, (0, "start", 3, 5.0), (0, "end", 5, 5.0))
    found = decode(logits, spans, V1, SpanConfig())
    assert found.answers() == ["blue green white"]
    assert found.best().tolist() == [10.0]
    best = next(found.candidates(0))
    assert (best.start, best.end, best.score) == (4, 20, 10.0)


def test_an_end_before_the_start_is_no_answer() -> None:
    spans = word_spans((0, range(6)))
    logits = scores(
        spans, (0, "start", 5, 9.0), (0, "end", 3, 9.0), (0, "end", 6, 1.0), (0, "start", 2, 0.5)
    )
    # (5, 6) has 10, (2, 3) has 9.5; (5, 3) would have 18
    assert answers(logits, spans) == ["white black"]


def test_only_tokens_of_the_context_count() -> None:
    spans = word_spans((0, range(6)))
    logits = scores(
        spans, (0, "start", 1, 50.0), (0, "end", 8, 50.0), (0, "start", 4, 2.0), (0, "end", 4, 2.0)
    )
    assert answers(logits, spans) == ["green"]


@pytest.mark.parametrize(("longest", "expected"), [(3, "blue green white"), (2, "white")])
def test_answers_are_no_longer_than_allowed(longest: int, expected: str) -> None:
    spans = word_spans((0, range(6)))
    logits = scores(
        spans, (0, "start", 3, 5.0), (0, "end", 5, 5.0), (0, "start", 5, 4.0), (0, "end", 3, -9.0)
    )
    assert answers(logits, spans, max_answer=longest) == [expected]


def test_the_best_of_all_windows_is_taken() -> None:
    spans = word_spans((0, range(3)), (0, range(2, 6)), (1, range(6)))
    logits = scores(
        spans,
        (0, "start", 2, 3.0),
        (0, "end", 2, 3.0),
        (1, "start", 4, 4.0),
        (1, "end", 4, 4.0),
        (2, "start", 7, 1.0),
        (2, "end", 7, 1.0),
    )
    assert answers(logits, spans) == ["black", "brown"]


def test_windows_of_an_example_need_not_be_neighbours() -> None:
    spans = word_spans((1, range(3)), (0, range(6)), (1, range(2, 6)))
    logits = scores(
        spans, (2, "start", 5, 4.0), (2, "end", 5, 4.0), (1, "start", 2, 1.0), (1, "end", 2, 1.0)
    )
    assert answers(logits, spans) == ["red", "brown"]


def test_the_same_place_in_two_windows_is_one_candidate_with_the_better_score() -> None:
    spans = word_spans((0, range(4)), (0, range(2, 6)))
    logits = scores(
        spans,
        (0, "start", 4, 3.0),
        (0, "end", 4, 3.0),
        (1, "start", 2, 5.0),
        (1, "end", 2, 5.0),
    )
    found = list(decode(logits, spans, V1, SpanConfig()).candidates(0))
    assert [(one.text, one.score) for one in found if one.text == "green"] == [("green", 10.0)]


def test_candidates_come_best_first_with_shares_of_one() -> None:
    spans = word_spans((0, range(6)))
    logits = scores(spans, (0, "start", 3, 2.0), (0, "end", 4, 1.0))
    found = list(decode(logits, spans, V1, SpanConfig(n_best=4)).candidates(0))
    assert len(found) == 4
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert sum(one.probability for one in found) == pytest.approx(1.0)
    assert found[0].text == "blue green"
    ratio = math.exp(found[1].score - found[0].score)
    assert found[1].probability / found[0].probability == pytest.approx(ratio)


def test_few_candidates_may_miss_the_best_pair() -> None:
    spans = word_spans((0, range(6)))
    # the highest start has no end after it among the one highest end
    logits = scores(
        spans, (0, "start", 6, 3.0), (0, "start", 2, 2.0), (0, "end", 3, 3.0), (0, "end", 6, 2.0)
    )
    assert answers(logits, spans, n_best=1) == [""]
    assert answers(logits, spans, n_best=2) in (["red blue"], ["black"])


# no answer


def none_spans() -> tuple[Spans, Tensor]:
    """The best answer has 6, none has 7 in the one window and 5 in the other."""
    spans = word_spans((0, range(3)), (0, range(2, 6)))
    logits = scores(
        spans,
        (0, "start", 2, 3.0),
        (0, "end", 2, 3.0),
        (0, "start", 0, 4.0),
        (0, "end", 0, 3.0),
        (1, "start", 0, 2.0),
        (1, "end", 0, 3.0),
    )
    return spans, logits


def test_the_score_of_none_is_the_smallest_over_the_windows() -> None:
    spans, logits = none_spans()
    found = decode(logits, spans, V2, SpanConfig())
    assert found.none.tolist() == [5.0]
    assert found.margins().tolist() == [-1.0]
    only = decode(logits[:1], spans.take(np.array([0])), V2, SpanConfig())
    assert only.margins().tolist() == [1.0]
    assert only.answers() == [""]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, "red"), (-1.0, "red"), (-1.1, "")])
def test_no_answer_is_given_where_none_exceeds_the_threshold(
    threshold: float, expected: str
) -> None:
    spans, logits = none_spans()
    assert answers(logits, spans, V2, null_threshold=threshold) == [expected]


def test_where_every_question_has_an_answer_none_is_no_candidate() -> None:
    spans, logits = none_spans()
    found = decode(logits[:1], spans.take(np.array([0])), V1, SpanConfig())
    assert found.answers() == ["red"]
    assert all(one.text for one in found.candidates(0))


def test_none_stands_among_the_candidates_by_its_score() -> None:
    spans, logits = none_spans()
    found = list(decode(logits, spans, V2, SpanConfig()).candidates(0))
    assert [one.text for one in found[:2]] == ["red", ""]
    assert (found[1].start, found[1].end, found[1].score) == (0, 0, 5.0)
    assert sum(one.probability for one in found) == pytest.approx(1.0)


def test_a_context_without_tokens_has_no_answer() -> None:
    spans = Spans(
        np.array([0]), [np.full((3, 2), -1, np.int32)], ["q"], np.arange(1), [""], [("red",)]
    )
    for task in (V1, V2):
        found = decode(torch.zeros(1, 3, 2), spans, task, SpanConfig())
        assert found.answers() == [""]
        assert found.best().tolist() == [-math.inf]
        assert found.margins().tolist() == [SURE]
    assert list(decode(torch.zeros(1, 3, 2), spans, V1, SpanConfig()).candidates(0)) == []


# decoding against a slow reference


def reference(logits: Tensor, spans: Spans, span: SpanConfig) -> list[list[tuple[float, int, int]]]:
    """Per example the best (score, start, end), by loops over all pairs of all windows."""
    found: list[dict[tuple[int, int], float]] = [{} for _ in range(len(spans))]
    for w, places in enumerate(spans.offsets):
        inside = [t for t in range(len(places)) if places[t][0] >= 0]
        sides = []
        for side in range(2):
            ranked = sorted(inside, key=lambda t, side=side: -float(logits[w, t, side]))  # type: ignore[misc]
            sides.append(ranked[: span.n_best])
        pairs = []
        for start in sides[0]:
            for end in sides[1]:
                if start <= end < start + span.max_answer:
                    pairs.append((float(logits[w, start, 0] + logits[w, end, 1]), start, end))
        for value, start, end in sorted(pairs, reverse=True)[: span.n_best]:
            key = int(places[start][0]), int(places[end][1])
            own = found[spans.example[w]]
            own[key] = max(value, own.get(key, -math.inf))
    return [
        sorted(((v, *key) for key, v in own.items()), key=lambda one: -one[0])[: span.n_best]
        for own in found
    ]


@given(
    seed=st.integers(0, 10**6),
    n_best=st.integers(1, 8),
    longest=st.integers(1, 5),
    windows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=7
    ),
)
@settings(max_examples=150, deadline=None)
def test_decoding_is_that_of_the_slow_reference(
    seed: int, n_best: int, longest: int, windows: list[tuple[int, int, int]]
) -> None:
    names = sorted({number for number, _, _ in windows})
    spans = word_spans(
        *((names.index(n), range(low, min(6, low + size))) for n, low, size in windows)
    )
    logits = scores(spans)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)).double()
    logits = logits.double() + noise
    span = SpanConfig(n_best=n_best, max_answer=longest)
    found = decode(logits, spans, V1, span)
    for example, expected in enumerate(reference(logits, spans, span)):
        own = [(one.score, one.start, one.end) for one in found.candidates(example)]
        assert [one[1:] for one in own] == [one[1:] for one in expected]
        assert [one[0] for one in own] == pytest.approx([one[0] for one in expected])
    assert isinstance(found, Decoded)
    assert all(isinstance(one, Candidate) for one in found.candidates(0))


def test_many_windows_are_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = word_spans(*((i // 2, range(i % 3, 6)) for i in range(10)))
    noise = torch.randn(10, 9, 2, generator=torch.Generator().manual_seed(0))
    logits = scores(spans) + noise
    whole = decode(logits, spans, V2, SpanConfig())
    monkeypatch.setattr("ksel.decoding.CHUNK", 3)
    pieces = decode(logits, spans, V2, SpanConfig())
    assert whole.answers() == pieces.answers()
    for name in ("bounds", "starts", "ends", "scores", "none"):
        assert np.array_equal(getattr(whole, name), getattr(pieces, name))


# exact match and F1


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("Paris", ("Paris",), 1, 1),
        ("the Paris", ("Paris",), 1, 1),
        ("PARIS!", ("Paris",), 1, 1),
        ("in  Paris", ("a in-Paris",), 0, 0),
        ("Paris", ("in Paris",), 0, 2 / 3),
        ("Paris", ("London", "in Paris", "the city of Paris"), 0, 2 / 3),
        ("Paris Paris", ("Paris",), 0, 2 / 3),
        ("London", ("Paris",), 0, 0),
        ("", ("Paris",), 0, 0),
        ("U.S.", ("us",), 1, 1),
        ("theatre", ("the atre",), 0, 0),
    ],
)
def test_answers_by_hand(answer: str, gold: tuple[str, ...], exact: int, f1: float) -> None:
    found = score_answers(V1, [answer], [gold])
    assert found == {"f1": pytest.approx(f1), "exact_match": exact}
    assert list(found) == ["f1", "exact_match"]


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("", (), 1.0),
        ("Paris", (), 0.0),
        ("", ("Paris",), 0.0),
        # of the gold answer nothing is left, so that the question counts as one without
        ("", ("the",), 1.0),
        ("the", ("the",), 1.0),
        ("Paris", ("the", "Paris"), 1.0),
        ("the", ("the", "Paris"), 0.0),
    ],
)
def test_no_answer_by_hand(answer: str, gold: tuple[str, ...], expected: float) -> None:
    assert score_answers(V2, [answer], [gold]) == {"f1": expected, "exact_match": expected}


def test_scores_are_means_over_the_questions() -> None:
    found = score_answers(V1, ["Paris", "Paris", "x"], [("Paris",), ("in Paris",), ("y",)])
    assert found == {"f1": pytest.approx(5 / 9), "exact_match": pytest.approx(1 / 3)}


def official(answer: str, golds: tuple[str, ...]) -> tuple[float, float]:
    """Exact match and F1 of the 2.0 rules, written from their description."""

    def words(text: str) -> list[str]:
        punctuation = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        plain = "".join(c for c in text.lower() if c not in punctuation)
        import re

        return re.sub(r"\b(a|an|the)\b", " ", plain).split()

    kept = [gold for gold in golds if words(gold)] or [""]
    exact = max(float(words(answer) == words(gold)) for gold in kept)
    overlaps = []
    for gold in kept:
        mine, theirs = words(answer), words(gold)
        common = sum((Counter(mine) & Counter(theirs)).values())
        if not mine or not theirs:
            overlaps.append(float(mine == theirs))
        else:
            overlaps.append(2 * common / (len(mine) + len(theirs)))
    return exact, max(overlaps)


phrase = st.lists(st.sampled_from(["the", "a", "Red", "red", "box", ",", "box.", "-", ""]))
golds = st.lists(phrase.map(" ".join), max_size=3).map(tuple)


@given(rows=st.lists(st.tuples(phrase.map(" ".join), golds), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_the_official_rules(rows: list[tuple[str, tuple[str, ...]]]) -> None:
    found = score_answers(V2, [answer for answer, _ in rows], [gold for _, gold in rows])
    expected = np.mean([official(answer, gold) for answer, gold in rows], axis=0)
    assert found["exact_match"] == pytest.approx(expected[0])
    assert found["f1"] == pytest.approx(expected[1])


@given(rows=st.lists(st.tuples(phrase.map(" ".join), golds.filter(len)), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_scores_of_answerable_questions_are_those_of_torchmetrics(
    rows: list[tuple[str, tuple[str, ...]]],
) -> None:
    predicted = [{"prediction_text": a, "id": str(i)} for i, (a, _) in enumerate(rows)]
    truth = [
        {"answers": {"text": list(gold), "answer_start": [0] * len(gold)}, "id": str(i)}
        for i, (_, gold) in enumerate(rows)
    ]
    theirs = squad(predicted, truth)  # type: ignore[arg-type]
    found = score_answers(V1, [answer for answer, _ in rows], [gold for _, gold in rows])
    assert found["f1"] == pytest.approx(float(theirs["f1"]) / 100)
    assert found["exact_match"] == pytest.approx(float(theirs["exact_match"]) / 100)


# scores of a split


def split_of(spans: Spans, labels: list[list[int]] | None = None) -> Split:
    rows = [np.arange(1, len(one) + 1) for one in spans.offsets]
    return Split(
        rows,
        None,
        None if labels is None else torch.tensor(labels),
        np.array([len(row) for row in rows]),
        pad_token_id=0,
        spans=spans,
    )


def test_questions_of_one_id_are_scored_each_for_itself() -> None:
    spans = word_spans((0, range(6)), (1, range(6)), golds=[("red",), ("blue",)])
    logits = scores(
        spans, (0, "start", 2, 5.0), (0, "end", 2, 5.0), (1, "start", 3, 5.0), (1, "end", 3, 5.0)
    )
    same = Spans(**{**vars(spans), "ids": ["q", "q"]})
    for one in (spans, same):
        assert score_split(V1, logits, split_of(one)) == {"f1": 1.0, "exact_match": 1.0}


def test_the_settings_reach_the_score() -> None:
    spans, logits = none_spans()
    split = split_of(Spans(**{**vars(spans), "golds": [("red",)]}))
    assert score_split(V2, logits, split)["exact_match"] == 1.0
    assert score_split(V2, logits, split, SpanConfig(null_threshold=-2.0))["exact_match"] == 0.0


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_scores_of_tokens_that_are_not_finite_score_nan(odd: float) -> None:
    spans = word_spans((0, range(6)), (1, range(3)), golds=[("red",), ("blue",)])
    logits = scores(spans)
    split = split_of(spans)
    assert finite_spans(logits, split)
    assert not math.isnan(score_split(V1, logits, split)["f1"])
    logits[1, 2, 0] = odd
    assert not finite_spans(logits, split)
    assert all(math.isnan(value) for value in score_split(V1, logits, split).values())


def test_a_split_without_answers_is_refused() -> None:
    spans = word_spans((0, range(6)))
    with pytest.raises(UsageError, match=r"--data: .*has no answers.*ksel.predict"):
        score_split(V1, scores(spans), split_of(spans))


def test_other_tasks_are_scored_as_ever() -> None:
    split = Split([np.arange(2)] * 3, None, torch.tensor([0, 1, 1]), np.full(3, 2), 0)
    logits = torch.eye(2)[[0, 1, 0]]
    assert score_split(TASKS["rte"], logits, split) == {"accuracy": pytest.approx(2 / 3)}


# logits of a model, and the dev splits


class Positions(nn.Module):
    """The first score of a token is a multiple of its id, the second its place."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        class Output:
            start_logits = (self.factor * input_ids).to(torch.bfloat16)
            end_logits = torch.arange(input_ids.shape[1]).expand_as(input_ids).to(torch.bfloat16)

        return Output()


def test_logits_are_padded_with_minus_infinity_in_the_order_of_the_windows() -> None:
    spans = word_spans((0, range(1)), (0, range(3)), (1, range(2)))
    logits = predict_logits(Positions(), split_of(spans), batch_size=2, device="cpu")
    assert logits.shape == (3, 6, 2)
    assert logits.dtype == torch.float32
    for row, length in zip(logits, (4, 6, 5), strict=True):
        assert row[:length, 0].tolist() == list(range(1, length + 1))
        assert row[:length, 1].tolist() == list(range(length))
        assert bool((row[length:] == -torch.inf).all())


def test_dev_rows_are_whole_questions_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [(number, part) for number in range(5) for part in (range(3), range(2, 6))]
    spans = word_spans(*windows, golds=[("red",)] * 5)
    seen: list[Split] = []

    def watched(model: Any, split: Split, **given: Any) -> Tensor:
        seen.append(split)
        return predict_logits(model, split, **given)

    monkeypatch.setattr("ksel.evaluation.predict_logits", watched)
    found = evaluate_dev(
        Positions(-2.0),
        V1,
        {"dev": split_of(spans), "dev_other": split_of(spans)},
        rows=3,
        batch_size=4,
        device="cpu",
        span=SpanConfig(max_answer=1),
    )
    assert seen[0].spans is not None
    assert seen[0].spans.ids == ["q0", "q2", "q4"]
    assert len(seen[0]) == 6
    # the first word starts best and the last ends best; only the settings keep it to one word
    assert found == dict.fromkeys(("f1", "exact_match", "f1_other", "exact_match_other"), 1.0)


# objectives


def test_cross_entropy_of_spans_is_the_mean_of_start_and_end() -> None:
    logits = torch.full((2, 4, 2), -torch.inf)
    logits[0, :3] = 0.0
    logits[1, :2] = 0.0
    logits[1, 1, 1] = math.log(3.0)
    labels = torch.tensor([[0, 2], [1, 1]])
    expected = (math.log(3) + math.log(3) + math.log(2) + math.log(4 / 3)) / 4
    value = objective_value("cross_entropy", logits, labels, V1, 1.0)
    assert value == pytest.approx(expected)
    longer = nn.functional.pad(logits, (0, 0, 0, 7), value=-torch.inf)
    assert objective_value("cross_entropy", longer, labels, V1, 1.0) == pytest.approx(expected)


def test_one_temperature_serves_start_and_end() -> None:
    # three of four right with the same margin among two tokens: least at p = 3/4
    for margin in (0.1, 1.0, 20.0):
        logits = torch.full((2, 3, 2), -torch.inf)
        logits[:, 0], logits[:, 1] = margin, 0.0
        value = objective_value("calibrated", logits, torch.tensor([[0, 0], [0, 1]]), V1, 1.0)
        assert value == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4, abs=1e-6)


def test_the_margin_of_spans_is_the_mean_of_start_and_end() -> None:
    logits = torch.full((1, 5, 2), -torch.inf)
    logits[0, :3, 0] = torch.tensor([2.0, 0.0, 1.0])
    logits[0, :3, 1] = torch.tensor([0.0, 4.0, 1.0])
    expected = (1 / (1 + math.exp(1 / 2)) + 1 / (1 + math.exp(-3 / 2))) / 2
    value = objective_value("margin", logits, torch.tensor([[0, 2]]), V1, 2.0)
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("name", ["cross_entropy", "calibrated", "margin"])
def test_spans_that_are_not_finite_have_no_objective(name: str) -> None:
    labels = torch.tensor([[0, 1], [1, 1]])
    for odd in (math.nan, math.inf):
        logits = torch.zeros(2, 3, 2)
        logits[1, 2, 0] = odd
        assert math.isnan(objective_value(name, logits, labels, V1, 1.0))
    logits = torch.zeros(2, 3, 2)
    logits[1, :, 1] = -math.inf
    assert math.isnan(objective_value(name, logits, labels, V1, 1.0))


def test_a_label_that_has_no_score_has_no_objective() -> None:
    logits = torch.zeros(2, 3, 2)
    logits[1, 1, 0] = -math.inf
    labels = torch.tensor([[0, 1], [1, 1]])
    for name in ("cross_entropy", "calibrated"):
        assert not math.isfinite(objective_value(name, logits, labels, V1, 1.0))
