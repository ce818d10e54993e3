"""Windows over long contexts: their tokens, their labels, and where each token stands."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from ksel.answers import Answers
from ksel.config import CustomTaskConfig, SpanConfig
from ksel.data import Rows, Split, load_source, tokenize
from ksel.decoding import decode
from ksel.errors import UsageError
from ksel.evaluation import score_answers, score_split
from ksel.tasks import TASKS

V1, V2, RTE = TASKS["squad"], TASKS["squad_v2"], TASKS["rte"]
CLS, SEP = 2, 3
FIRST_LETTER = 5
"""Token of the letter a."""


@pytest.fixture(scope="module")
def bert() -> BertTokenizer:
    """One token for each letter; and one for each pair of like letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def byte_level(trim: bool, letters: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer like RoBERTa's; without ``trim`` a token's characters include the blank.

    Letters beyond ASCII are several tokens, but for those in ``letters``.
    """
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["who was it the tower in Paris stands there"] * 9 + [" ".join(letters)] * 99
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="module")
def roberta() -> PreTrainedTokenizerFast:
    return byte_level(trim=True)


def questions(*rows: tuple[str, str, str | None], at: int | None = None) -> Rows:
    """Rows of question, context and answer (at its first place, or at ``at``)."""
    answers = [
        Answers() if gold is None else Answers((gold,), (text.index(gold) if at is None else at,))
        for _, text, gold in rows
    ]
    return Rows(
        [question for question, _, _ in rows],
        [context for _, context, _ in rows],
        np.array([len(answer) > 0 for answer in answers], np.int64),
        np.arange(len(rows)),
        answers,
        [f"q{i}" for i in range(len(rows))],
    )


def cut(rows: Rows, tokenizer: Any, length: int, **span: Any) -> Split:
    span = {"max_question": 4, **span}
    return tokenize(rows, V2, tokenizer, length, SpanConfig(**span))


def at(split: Split, window: int, token: int) -> str:
    """The characters of a token of the context."""
    assert split.spans is not None
    start, end = split.spans.offsets[window][token]
    return split.spans.contexts[split.spans.example[window]][start:end]


def label_text(split: Split, window: int) -> str:
    assert split.spans is not None
    assert split.labels is not None
    first, last = split.labels[window].tolist()
    start, end = split.spans.offsets[window][first][0], split.spans.offsets[window][last][1]
    return split.spans.contexts[split.spans.example[window]][start:end]


# windows by hand


LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z"


def test_windows_overlap_by_the_stride_and_cover_the_context(bert: Any) -> None:
    # 26 letters, room for 20: two windows that share 5
    split = cut(questions(("q", LETTERS, "w x")), bert, 24, stride=5)
    tokens = [row.tolist() for row in split.input_ids]
    letters = list(range(FIRST_LETTER, FIRST_LETTER + 26))
    head = [CLS, FIRST_LETTER + 16, SEP]
    assert tokens == [[*head, *letters[:20], SEP], [*head, *letters[15:], SEP]]
    assert split.token_type_ids is not None
    assert split.token_type_ids[1].tolist() == [0] * 3 + [1] * 12
    assert split.lengths.tolist() == [24, 15]
    assert split.labels is not None
    # w is cut off from the first window; in the second it is the 8th letter
    assert split.labels.tolist() == [[0, 0], [10, 11]]
    assert split.spans is not None
    assert split.spans.example.tolist() == [0, 0]
    assert split.spans.offsets[1][:5].tolist() == [[-1, -1]] * 3 + [[30, 31], [32, 33]]
    assert split.spans.offsets[1][-1].tolist() == [-1, -1]
    assert split.num_examples == 1


def test_an_answer_cut_by_a_border_counts_only_where_it_is_whole(bert: Any) -> None:
    labels = []
    for gold in ("s t", "t u", "u v"):
        split = cut(questions(("q", LETTERS, gold)), bert, 24, stride=5)
        assert split.labels is not None
        labels.append(split.labels.tolist())
    # the first window ends with t; the second begins with p
    assert labels == [[[21, 22], [6, 7]], [[0, 0], [7, 8]], [[0, 0], [8, 9]]]


def test_an_answer_longer_than_every_window_is_in_none(bert: Any) -> None:
    split = cut(questions(("q", LETTERS, LETTERS[2:])), bert, 24, stride=5)
    assert split.labels is not None
    assert split.labels.tolist() == [[0, 0], [0, 0]]


def test_no_more_than_half_of_a_window_is_shared(bert: Any) -> None:
    split = cut(questions(("q", LETTERS, "a")), bert, 24, stride=128)
    assert [label - FIRST_LETTER for label in (row[3] for row in split.input_ids)] == [0, 10]
    without = cut(questions(("q", LETTERS, "a")), bert, 24, stride=0)
    assert [row[3] - FIRST_LETTER for row in without.input_ids] == [0, 20]


def test_each_question_has_its_own_room(bert: Any) -> None:
    rows = questions(("q", LETTERS, "z"), ("q r s", LETTERS, "z"), ("q", "a b", "b"))
    split = cut(rows, bert, 24, stride=128)
    assert split.spans is not None
    assert split.spans.example.tolist() == [0, 0, 1, 1, 2]
    # room for 20 and for 18 letters, of which 10 and 9 are shared
    assert split.lengths.tolist() == [24, 4 + 16, 24, 6 + 17, 6]
    assert split.num_examples == 3


def test_long_questions_are_cut(bert: Any) -> None:
    split = cut(questions(("a b c d e f", "g h", "h")), bert, 24, max_question=4)
    assert split.input_ids[0].tolist() == [CLS, 5, 6, 7, 8, SEP, 11, 12, SEP]
    word = cut(questions(("abcdef", "g h", "h")), bert, 24, max_question=4)
    pieces = [bert.vocab[piece] for piece in ("a", "##b", "##c", "##d")]
    assert word.input_ids[0].tolist() == [CLS, *pieces, SEP, 11, 12, SEP]


def test_half_a_word_with_more_tokens_than_in_the_whole_is_cut_further() -> None:
    class Odd:
        """A question of more than four letters has two tokens more than letters."""

        is_fast = True

        def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
            many = [texts] if isinstance(texts, str) else texts
            sizes = [len(text) + 2 * (len(text) > 4) for text in many]
            ids = [[7] * size for size in sizes]
            offsets = [[(i, i + 1) for i in range(size)] for size in sizes]
            return {
                "input_ids": ids[0] if isinstance(texts, str) else ids,
                "offset_mapping": offsets,
            }

    from ksel.spans import _questions

    texts, lengths = _questions(["abcdefgh", "ab"], Odd(), 5)
    assert texts == ["abcd", "ab"]
    assert lengths.tolist() == [4, 2]


def test_blanks_around_a_question_do_not_count(roberta: Any) -> None:
    rows = [questions((text, "in Paris", "Paris")) for text in ("who", "  who\n")]
    one, other = (cut(row, roberta, 40).input_ids[0].tolist() for row in rows)
    assert one == other


def test_a_question_without_an_answer_has_its_label_at_cls(bert: Any) -> None:
    split = cut(questions(("q", "a b c", None)), bert, 24)
    assert split.labels is not None
    assert split.labels.tolist() == [[0, 0]]
    assert split.spans is not None
    assert split.spans.golds == [()]


def test_the_first_gold_answer_is_the_label_and_all_count_for_the_score(bert: Any) -> None:
    rows = questions(("q", "a b c", "b"))
    rows.answers[0] = Answers(("b", "c"), (2, 4))  # type: ignore[index]
    split = cut(rows, bert, 24)
    assert label_text(split, 0) == "b"
    assert split.spans is not None
    assert split.spans.golds == [("b", "c")]


def test_the_place_of_the_answer_counts_not_its_first_occurrence(bert: Any) -> None:
    split = cut(questions(("q", "a b a b", "a"), at=4), bert, 24)
    assert split.labels is not None
    assert split.labels.tolist() == [[5, 5]]


def test_an_answer_inside_a_token_takes_the_whole_token(bert: Any) -> None:
    words = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "1817": 4})
    split = cut(questions(("q", "1817 1817", "7")), words, 24)
    assert label_text(split, 0) == "1817"


# other tokenizers, other alphabets


def test_a_tokenizer_without_segments_and_with_two_separators(roberta: Any) -> None:
    split = cut(questions(("who was", "the tower in Paris", "Paris")), roberta, 40)
    assert split.token_type_ids is None
    assert split.batch(np.array([0])).token_type_ids is None
    tokens = roberta.convert_ids_to_tokens(split.input_ids[0])
    assert tokens.count("</s>") == 3
    assert label_text(split, 0) == "Paris"


def test_blanks_in_a_tokens_characters_do_not_move_the_answer() -> None:
    loose = byte_level(trim=False)
    rows = questions(
        ("who", "the tower in Paris stands", "Paris"),
        ("who", "the tower in Paris stands", "Paris "),
        ("who", "the tower in Paris stands", " Paris"),
    )
    split = cut(rows, loose, 40)
    assert [label_text(split, w).strip() for w in range(3)] == ["Paris"] * 3


def test_tokens_that_show_nothing_are_no_answers() -> None:
    loose = byte_level(trim=False)
    split = cut(questions(("who", "in   \u00a0 Paris", "Paris")), loose, 40)
    assert split.spans is not None
    shown = split.spans.offsets[0]
    texts = [split.spans.contexts[0][s:e] for s, e in shown if s >= 0]
    assert all(text.strip() for text in texts)
    assert "".join(text.strip() for text in texts) == "inParis"


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("context", "gold"),
    [
        ("the café in Zürich", "Zürich"),
        ("塔在巴黎 靠近河", "巴黎"),
        ("it is 🗼 in 🇫🇷 there", "🗼"),
        ("it cost €5 (five)", "€5"),
        ("\u200bParis is there", "\u200bParis"),
        ("that is Paris\u200b", "Paris\u200b"),
        ("in\u00a0Paris\u2009now", "Paris"),
        ("x\ty\n\nParis", "Paris"),
    ],
)
def test_characters_beyond_ascii(
    family: str, context: str, gold: str, bert: Any, roberta: Any
) -> None:
    split = cut(questions(("who", context, gold)), {"bert": bert, "roberta": roberta}[family], 90)
    assert label_text(split, 0).strip("\u200b ") == gold.strip("\u200b")


def test_empty_and_blank_contexts_have_a_window(bert: Any) -> None:
    split = cut(questions(("q", "", None), ("q", " \n", None)), bert, 24)
    assert [row.tolist() for row in split.input_ids] == [[CLS, 21, SEP, SEP]] * 2
    assert split.spans is not None
    assert decode(torch.zeros(2, 4, 2), split.spans, V2, SpanConfig()).answers() == ["", ""]


words = st.text("ab é塔🗼\n", min_size=1, max_size=60).filter(str.strip)


@given(data=st.data(), context=words, stride=st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_every_window_says_rightly_what_it_holds(
    data: st.DataObject, context: str, stride: int
) -> None:
    tokenizer = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    gold = context[start:end]
    if not gold.strip():
        return
    split = cut(questions(("a", context, gold), at=start), tokenizer, 4 + 4 + 16, stride=stride)
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    inner = start + len(gold) - len(gold.lstrip()), start + len(gold.rstrip())
    touched = [
        i for i, (s, e) in enumerate(whole["offset_mapping"]) if e > inner[0] and s < inner[1]
    ]
    assert split.spans is not None
    assert split.labels is not None
    position = 0
    for w, (row, label) in enumerate(zip(split.input_ids, split.labels.tolist(), strict=True)):
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        inside = [t for t, token in enumerate(row.tolist()) if token not in special]
        inside = inside[1:]  # without the question
        room = 24 - (len(row) - len(inside))
        shared = min(stride, room // 2)
        held = range(position, position + len(inside))
        tokens = [int(row[t]) for t in inside]
        assert tokens == [whole["input_ids"][i] for i in held]
        expected = [0, 0]
        if touched and touched[0] in held and touched[-1] in held:
            expected = [inside[touched[0] - position], inside[touched[-1] - position]]
        assert label == expected, (w, context, gold)
        position += room - shared


TOKENIZERS: dict[str, Any] = {
    "trimmed": byte_level(trim=True, letters="é塔🗼"),
    "loose": byte_level(trim=False, letters="é塔🗼"),
}


def test_a_letter_of_several_tokens_that_a_border_cuts_is_whole_on_both_sides(
    roberta: Any,
) -> None:
    context = "z" * 18 + "塔" + "z" * 9
    split = cut(questions(("z", context, "塔")), roberta, 24, stride=0)
    assert split.labels is not None
    assert split.labels.tolist() == [[22, 22], [4, 5]]
    assert [label_text(split, w) for w in range(2)] == ["塔", "塔"]


# splits


def three(bert: Any) -> Split:
    rows = questions(("q", LETTERS, "z"), ("r", "a b", "a"), ("s", LETTERS, "b"))
    return cut(rows, bert, 24, stride=5)


@pytest.mark.parametrize("index", [[2, 0], np.array([2, 0], np.uint8), np.array([2, 0])])
def test_examples_are_all_windows_of_the_rows_in_their_order(bert: Any, index: Any) -> None:
    split = three(bert)
    some = split.examples(index)
    assert len(some) == 4
    assert some.spans is not None
    assert some.spans.example.tolist() == [0, 0, 1, 1]
    assert some.spans.ids == ["q2", "q0"]
    assert some.spans.idx.tolist() == [2, 0]
    assert some.spans.golds == [("b",), ("z",)]
    assert some.input_ids[0].tolist() == split.input_ids[3].tolist()
    assert label_text(some, 0) == "b"
    assert [label_text(some, 3), label_text(split, 1)] == ["z", "z"]
    masked = split.examples(np.array([True, False, True]))
    assert masked.spans is not None
    assert masked.spans.ids == ["q0", "q2"]


def test_windows_are_taken_with_their_examples(bert: Any) -> None:
    some = three(bert).take(np.array([4, 2, 3]))
    assert some.spans is not None
    assert some.spans.example.tolist() == [0, 1, 0]
    assert some.spans.ids == ["q2", "q1"]
    assert some.num_examples == 2
    again = some.examples(np.array([0]))
    assert [row.tolist() for row in again.input_ids] == [
        some.input_ids[0].tolist(),
        some.input_ids[2].tolist(),
    ]


def test_no_examples_are_no_windows(bert: Any) -> None:
    assert len(three(bert).examples(np.array([], dtype=np.int64))) == 0


def test_other_tasks_have_as_many_examples_as_rows(bert: Any) -> None:
    rows = Rows(["a", "b", "c"], ["d", "e", "f"], np.array([0, 1, 0]), np.arange(3))
    split = tokenize(rows, RTE, bert, 16)
    assert split.num_examples == 3
    assert split.examples(np.array([2, 0])).input_ids[0].tolist() == split.input_ids[2].tolist()


def test_batches_hold_first_and_last_token(bert: Any) -> None:
    split = three(bert)
    batch = split.batch(np.array([2, 1]))
    assert batch.labels.tolist() == [[3, 3], [13, 13]]
    assert batch.labels.dtype == torch.int64
    assert batch.ids.tolist() == [2, 1]
    assert batch.attention_mask.sum(1).tolist() == [6, 15]
    part = batch.split(2)[1]
    assert part.labels.tolist() == [[13, 13]]


def test_batches_without_answers_carry_marks_instead(bert: Any) -> None:
    rows = Rows(["q"], ["a b"], None, np.arange(1))
    split = cut(rows, bert, 24)
    assert split.labels is None
    assert split.spans is not None
    assert split.spans.golds is None
    assert split.spans.ids == ["0"]
    assert split.batch(np.array([0])).labels.tolist() == [[-1, -1]]
    assert split.take(np.array([0])).spans.golds is None  # type: ignore[union-attr]


def test_the_fingerprint_is_that_of_the_tokens(bert: Any) -> None:
    rows = [questions(("q", "a b c", gold)) for gold in ("a", "b")]
    one, other = (cut(row, bert, 24).fingerprint() for row in rows)
    assert one == other
    assert cut(questions(("q", LETTERS, "a")), bert, 24, stride=5).fingerprint() != one


# refusals


@pytest.mark.parametrize(
    ("length", "changes", "message"),
    [
        (22, {}, r"22 tokens leave 15 for the context .* --batching.max_length 23 or more, or"),
        (22, {}, r"--span.max_question 3 or less"),
        (6, {}, r"6 tokens leave 0 for the context .* --batching.max_length 23 or more\."),
        (24, {"stride": -1}, r"--span.stride: -1; give 0 or more"),
        (24, {"max_question": 0}, r"--span.max_question: 0; give 1 or more"),
        (24, {"max_answer": 0}, r"--span.max_answer: 0"),
        (24, {"n_best": 0}, r"--span.n_best: 0"),
        (24, {"null_threshold": float("nan")}, r"--span.null_threshold: nan"),
    ],
)
def test_impossible_settings_are_named(
    bert: Any, length: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        cut(questions(("q", "a", "a")), bert, length, **changes)


def test_settings_without_effect_are_refused(bert: Any) -> None:
    rows = questions(("q", "a", "a"))
    with pytest.raises(UsageError, match=r"--span.null_threshold has no effect on task squad: in"):
        tokenize(rows, V1, bert, 128, SpanConfig(null_threshold=1.0))
    tokenize(rows, V2, bert, 128, SpanConfig(null_threshold=1.0))
    pairs = Rows(["a"], ["b"], np.array([0]), np.arange(1))
    with pytest.raises(UsageError, match=r"--span.n_best has no effect on task rte: it has no sp"):
        tokenize(pairs, RTE, bert, 128, SpanConfig(n_best=5))


def test_tokenizers_without_characters_are_refused() -> None:
    slow = SimpleNamespace(is_fast=False, pad_token_id=0)
    with pytest.raises(UsageError, match=r"--teacher: its tokenizer does not say which characters"):
        cut(questions(("q", "a", "a")), slow, 24)


def test_a_tokenizer_without_padding_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--teacher: its tokenizer has no padding token"):
        cut(questions(("q", "a", "a")), SimpleNamespace(is_fast=True, pad_token_id=None), 24)


# real questions


def gold_logits(split: Split) -> torch.Tensor:
    """Scores that name the labelled tokens of each window, and [CLS] where there are none."""
    assert split.labels is not None
    logits = torch.full((len(split), int(split.lengths.max()), 2), -torch.inf)
    for row, length in zip(logits, split.lengths, strict=True):
        row[:length] = 0.0
    rows = torch.arange(len(split))
    for side in range(2):
        logits[rows, split.labels[:, side], side] = 10.0
    return logits


def test_the_tiny_questions_come_back_from_their_labels(tmp_path: Path) -> None:
    tiny.write_spans(tmp_path / "data", none=0.3)
    tokenizer = AutoTokenizer.from_pretrained(tiny.write_teacher(tmp_path / "t", task="squad_v2"))
    source = load_source("squad_v2", str(tmp_path / "data"), CustomTaskConfig(), print)
    span = SpanConfig(max_question=6, stride=8)
    split = tokenize(source.train, V2, tokenizer, 32, span)
    assert len(split) > split.num_examples
    assert score_split(V2, gold_logits(split), split, span) == {"f1": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize("length", [128, 384])
def test_real_answers_come_back_from_their_labels(shared: Path, length: int) -> None:
    """All but those that are part of a word, or longer than every window."""
    source = load_source("squad", str(shared / "data"), CustomTaskConfig(), print)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "all-MiniLM-L6-v2")
    rows = source.dev["dev"].take(np.arange(0, len(source.dev["dev"]), 8))
    split = tokenize(rows, V1, tokenizer, length)
    span = SpanConfig(max_answer=length)
    spans = split.spans
    assert spans is not None
    assert rows.answers is not None
    answers = decode(gold_logits(split), spans, V1, span).answers()
    missed = 0
    for text, gold, context in zip(answers, rows.answers, spans.contexts, strict=True):
        if score_answers(V1, [text], [gold.texts[:1]])["exact_match"] == 1.0:
            continue
        start, end = gold.starts[0], gold.starts[0] + len(gold.texts[0])
        part = context[start - 1 : start].isalnum() or context[end : end + 1].isalnum()
        assert part, (text, gold)
        missed += 1
    assert missed < 0.01 * len(answers)
    scores = score_split(V1, gold_logits(split), split, span)
    assert scores["exact_match"] > 0.99
    assert scores["f1"] > 0.99
    assert len(split) == len(spans.offsets) >= len(rows)
