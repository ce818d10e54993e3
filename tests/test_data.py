from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from ksel.config import CustomTaskConfig, RowsConfig
from ksel.corpus import CORPUS_NAME
from ksel.data import (
    BatchOrder,
    Rows,
    Source,
    Split,
    evaluation_batches,
    limit_train,
    load_source,
    read_rows,
    three_way,
    tokenize,
    updates_per_epoch,
)
from ksel.errors import UsageError
from ksel.hub import offline_switch
from ksel.tasks import TASKS

QNLI, STSB, SST2 = TASKS["qnli"], TASKS["stsb"], TASKS["sst2"]


def quiet(_: str) -> None:
    pass


def qnli_frame(labels: list[Any], **changed: Any) -> pd.DataFrame:
    n = len(labels)
    columns = {
        "question": [f"who {i}?" for i in range(n)],
        "sentence": [f'she said "{i}' for i in range(n)],
        "label": labels,
    }
    return pd.DataFrame(columns | changed)


def write(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            frame.to_parquet(path)
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            lines = [frame.columns, *frame.itertuples(index=False)]
            path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
        case _:
            frame.to_json(path, orient="records", lines=True)
    return path


def folder(tmp_path: Path, train: list[Any], dev: list[Any]) -> str:
    write(qnli_frame(train), tmp_path / "train.parquet")
    write(qnli_frame(dev), tmp_path / "dev.parquet")
    return str(tmp_path)


def load_qnli(data: str | None) -> Source:
    return load_source("qnli", data, CustomTaskConfig(), quiet)


def source(labels: np.ndarray, task: Any = QNLI) -> Source:
    n = len(labels)
    rows = Rows([f"a{i}" for i in range(n)], [f"b{i}" for i in range(n)], labels, np.arange(n))
    return Source(task, rows, {"dev": rows}, "here", builtin=False)


# reading files


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "json"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    rows = read_rows(write(qnli_frame([0, 1, 1]), tmp_path / f"f.{ending}"), QNLI, True)
    assert rows.texts == ["who 0?", "who 1?", "who 2?"]
    assert rows.pairs == ['she said "0', 'she said "1', 'she said "2']
    assert rows.labels is not None
    assert rows.labels.dtype == np.int64
    assert rows.labels.tolist() == [0, 1, 1]
    assert rows.idx.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "labels",
    [[0, 1], ["entailment", "not_entailment"], ["0", "1"], [0.0, 1.0], [False, True]],
    ids=str,
)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_labels_may_be_numbers_or_names(tmp_path: Path, labels: list[Any], ending: str) -> None:
    rows = read_rows(write(qnli_frame(labels), tmp_path / f"f.{ending}"), QNLI, True)
    assert rows.labels is not None
    assert rows.labels.tolist() == [0, 1]


def test_a_label_that_is_a_class_name_is_that_class_even_if_it_looks_like_a_number(
    tmp_path: Path,
) -> None:
    write(pd.DataFrame({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "train.csv")
    write(pd.DataFrame({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "dev.csv")
    custom = CustomTaskConfig(labels=["1", "0"])
    loaded = load_source("custom", str(tmp_path), custom, quiet)
    assert loaded.train.labels is not None
    assert loaded.train.labels.tolist() == [0, 1]
    assert loaded.train.pairs is None


def test_scores_are_float32(tmp_path: Path) -> None:
    frame = pd.DataFrame({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0.5, 5]})
    rows = read_rows(write(frame, tmp_path / "f.tsv"), STSB, True)
    assert rows.labels is not None
    assert rows.labels.dtype == np.float32
    assert rows.labels.tolist() == [0.5, 5.0]


def test_idx_column_is_kept_and_a_useless_one_is_not(tmp_path: Path) -> None:
    kept = read_rows(write(qnli_frame([0, 1], idx=[7, 3]), tmp_path / "a.csv"), QNLI, True)
    assert kept.idx.tolist() == [7, 3]
    other = read_rows(write(qnli_frame([0, 1], idx=["x", "y"]), tmp_path / "b.csv"), QNLI, True)
    assert other.idx.tolist() == [0, 1]


def test_labels_of_minus_1_throughout_mean_unlabelled(tmp_path: Path) -> None:
    path = write(qnli_frame([-1, -1]), tmp_path / "test.parquet")
    assert read_rows(path, QNLI, True).labels is None


def test_input_for_predictions_needs_no_labels_and_ignores_them(tmp_path: Path) -> None:
    path = write(qnli_frame(["?", "?"]), tmp_path / "a.csv")
    assert read_rows(path, QNLI, False).labels is None
    path = write(qnli_frame([0, 1]).drop(columns="label"), tmp_path / "b.csv")
    assert read_rows(path, QNLI, False).texts == ["who 0?", "who 1?"]


def test_words_that_pandas_takes_for_missing_stay_texts(tmp_path: Path) -> None:
    path = write(qnli_frame([0, 1], question=["NA", "null"]), tmp_path / "a.tsv")
    assert read_rows(path, QNLI, True).texts == ["NA", "null"]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            qnli_frame([0, 2]),
            r"label '?2'? in data row 2 .*entailment, not_entailment, or .*0 to 1",
        ),
        (qnli_frame([-1, 1]), r"label '?-1'? in data row 1"),
        (qnli_frame([0, 0.5]), r"label '?0.5'? in data row 2"),
        (qnli_frame(["entailment", "neutral"]), r"label 'neutral' in data row 2"),
        (qnli_frame([0, None]), r"label .* in data row 2"),
        (qnli_frame([0, 1]).drop(columns="label"), r"no column 'label'.*has: question, sentence;"),
        (qnli_frame([]), r"has no rows"),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_bad_tables_are_refused(
    tmp_path: Path, frame: pd.DataFrame, message: str, ending: str
) -> None:
    path = write(frame, tmp_path / f"f.{ending}")
    with pytest.raises(UsageError, match=rf"^--input: .*f\.{ending}.*{message}"):
        read_rows(path, QNLI, True, "--input")


@pytest.mark.parametrize(("text", "what"), [(None, "is missing"), (3, "is not text but 3")])
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_texts_that_are_none_name_the_row(
    tmp_path: Path, text: Any, what: str, ending: str
) -> None:
    frame = qnli_frame([0, 1], sentence=[text, text])
    with pytest.raises(UsageError, match=f"column 'sentence' {what} in data row 1"):
        read_rows(write(frame, tmp_path / f"f.{ending}"), QNLI, True)


def test_scores_outside_the_range_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0.5, 5.5]})
    with pytest.raises(UsageError, match=r"label '5.5' in data row 2.*scores from 0 to 5"):
        read_rows(write(frame, tmp_path / "f.csv"), STSB, True)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_half_written_parquet_is_refused(tmp_path: Path) -> None:
    path = write(qnli_frame([0, 1] * 50), tmp_path / "f.parquet")
    half(path)
    with pytest.raises(UsageError, match=r"f.parquet cannot be read as parquet \(damaged, or half"):
        read_rows(path, QNLI, True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", 'question,sentence,label\nwho?,"she', "cannot be read as csv"),
        ("f.csv", "question,sentence,label\nwho?,she,1\nwho?,she", r"line 3 has 2 fields .* has 3"),
        ("f.tsv", "question\tsentence\tlabel\nwho?\tshe\t1\t1\n", r"line 2 has 4 fields .* has 3"),
        ("f.csv", "question,sentence,label\nwho?,she,\n", r"label '' in data row 1"),
        ("f.csv", "", "f.csv has no rows"),
        ("f.csv", "question,sentence,label\n", "f.csv has no rows"),
        ("f.jsonl", '{"question": "a", "sent', "line 1 is not JSON"),
        ("f.jsonl", '[{"question": "a"}]', "line 1 is not a JSON object"),
        ("f.jsonl", '{"question": "a", "sentence": "b"}', "no column 'label'"),
        ("f.txt", "a", "ends in none of .parquet"),
    ],
)
def test_damaged_text_files_are_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_rows(tmp_path / name, QNLI, True)


def test_json_lines_end_at_newlines_only(tmp_path: Path) -> None:
    questions = ["a\u2028b", "c\u0085d", "e\x1cf", "g"]
    lines = [
        json.dumps({"question": q, "sentence": "s", "label": 0}, ensure_ascii=q == "e\x1cf")
        for q in questions
    ]
    path = tmp_path / "f.jsonl"
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    assert read_rows(path, QNLI, True).texts == questions
    path.write_bytes("\n".join([*lines, "", "{"]).encode())
    with pytest.raises(UsageError, match="line 6 is not JSON"):
        read_rows(path, QNLI, True)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data: .*no.csv is not there"):
        read_rows(tmp_path / "no.csv", QNLI, True)


# sources


@pytest.mark.parametrize("place", ["glue/qnli", "qnli", "."])
def test_folder_layouts(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "d" / place, [0, 1, 0], [1, 0])
    monkeypatch.chdir(tmp_path)
    loaded = load_qnli("d")
    assert (len(loaded.train), len(loaded.dev["dev"])) == (3, 2)
    assert loaded.origin == f"folder {Path('d') / place}"
    assert not loaded.builtin


def test_both_dev_sets_of_mnli_under_either_name(tmp_path: Path) -> None:
    frame = pd.DataFrame({"premise": ["a"] * 3, "hypothesis": ["b"] * 3, "label": [0, 1, 2]})
    for name in ("train.csv", "dev_matched.csv", "validation_mismatched.jsonl"):
        write(frame, tmp_path / name)
    loaded = load_source("mnli", str(tmp_path), CustomTaskConfig(), quiet)
    assert list(loaded.dev) == ["dev_matched", "dev_mismatched"]


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data .*nowhere: does not exist"):
        load_qnli(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"no train file \(one of .parquet"):
        load_qnli(str(tmp_path))
    file = write(qnli_frame([0, 1]), tmp_path / "train.csv")
    with pytest.raises(UsageError, match=r"train.csv: is a file, not a folder"):
        load_qnli(str(file))
    with pytest.raises(UsageError, match=r"no dev file; add one named dev or validation"):
        load_qnli(str(tmp_path))
    write(qnli_frame([0, 1]), tmp_path / "train.tsv")
    with pytest.raises(UsageError, match=r"train.csv and .*train.tsv hold the same split"):
        load_qnli(str(tmp_path))


def test_data_that_cannot_be_learned_or_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data: .*only the class not_entailment"):
        load_qnli(folder(tmp_path, [1, 1], [0, 1]))
    with pytest.raises(UsageError, match=r"split dev has no labels \(all are -1\)"):
        load_qnli(folder(tmp_path, [0, 1], [-1, -1]))


def test_a_score_range_beside_classes_is_refused(tmp_path: Path) -> None:
    custom = CustomTaskConfig(labels=["a", "b"], score_range=(0.0, 5.0))
    with pytest.raises(UsageError, match=r"--custom\.score_range: 0 to 5 .*--custom\.labels"):
        load_source("custom", str(tmp_path), custom, quiet)


@pytest.mark.parametrize("fails", [False, True])
def test_the_offline_switch_is_put_back(fails: bool) -> None:
    settings = SimpleNamespace(HF_HUB_OFFLINE=False)
    with contextlib.suppress(KeyError), offline_switch(settings, True):
        assert settings.HF_HUB_OFFLINE is True
        if fails:
            raise KeyError
    assert settings.HF_HUB_OFFLINE is False


def test_custom_task_needs_a_folder_and_others_refuse_its_settings() -> None:
    custom = CustomTaskConfig(labels=["a", "b"])
    for data in (None, "hub", "builtin"):
        with pytest.raises(UsageError, match="--task custom: give --data DIR"):
            load_source("custom", data, custom, quiet)
    with pytest.raises(UsageError, match=r"--custom: .*no effect on --task qnli"):
        load_source("qnli", "builtin", custom, quiet)


def test_builtin_corpus_is_named() -> None:
    loaded = load_qnli("builtin")
    assert loaded.builtin
    assert CORPUS_NAME in loaded.origin


def test_without_network_the_hub_is_an_error_that_gives_the_choices() -> None:
    with pytest.raises(UsageError) as caught:
        load_qnli("hub")
    assert str(caught.value).startswith("--data hub: cannot load nyu-mll/glue (qnli)")
    assert "--data DIR" in str(caught.value)
    assert "--data builtin" in str(caught.value)


def test_without_data_and_network_the_corpus_stands_in_aloud() -> None:
    said: list[str] = []
    loaded = load_source("qnli", None, CustomTaskConfig(), said.append)
    assert loaded.builtin
    assert len(said) == 1
    assert CORPUS_NAME in said[0]
    assert "not scores of qnli" in said[0]


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, pd.DataFrame], up: bool) -> list:
    calls: list[Any] = []

    def load_dataset(*args: Any) -> dict[str, Any]:
        calls.append((*args, datasets.config.HF_HUB_OFFLINE))
        return {
            name: SimpleNamespace(to_pandas=lambda frame=frame: frame)
            for name, frame in splits.items()
        }

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    if up:
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    return calls


def test_hub_splits_become_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"premise": ["a"] * 3, "hypothesis": ["b"] * 3, "label": [0, 1, 2]})
    names = ("train", "validation_matched", "validation_mismatched")
    calls = fake_hub(monkeypatch, dict.fromkeys(names, frame), up=True)
    loaded = load_source("mnli", None, CustomTaskConfig(), quiet)
    assert calls == [("nyu-mll/glue", "mnli", False)]
    assert list(loaded.dev) == ["dev_matched", "dev_mismatched"]
    assert loaded.origin == "hub nyu-mll/glue"
    assert not loaded.builtin


def test_a_hub_that_does_not_answer_leaves_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = qnli_frame([0, 1])
    calls = fake_hub(monkeypatch, {"train": frame, "validation": frame}, up=False)
    said: list[str] = []
    loaded = load_source("qnli", "hub", CustomTaskConfig(), said.append)
    assert calls == [("nyu-mll/glue", "qnli", True)]
    assert not datasets.config.HF_HUB_OFFLINE
    assert loaded.origin == "hub nyu-mll/glue"
    assert "does not answer" in said[0]


def test_bad_hub_data_is_an_error_and_no_reason_to_fall_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_hub(monkeypatch, {"train": qnli_frame([0, 1]).drop(columns="label")}, up=True)
    with pytest.raises(UsageError, match="--data hub: nyu-mll/glue train has no column 'label'"):
        load_qnli(None)
    fake_hub(monkeypatch, {"train": qnli_frame([0, 1])}, up=True)
    with pytest.raises(UsageError, match="nyu-mll/glue has no split validation"):
        load_qnli(None)


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "qnli", "rte", "wnli"])
def test_real_glue_loads(shared: Path, name: str) -> None:
    loaded = load_source(name, str(shared / "data"), CustomTaskConfig(), quiet)
    assert len(loaded.train) > 600
    assert (loaded.train.pairs is None) == (name in ("cola", "sst2"))
    assert loaded.dev["dev"].labels is not None


# three-way split


def test_reward_rows_are_disjoint_from_training_rows_and_stratified() -> None:
    labels = np.repeat([0, 1], [750, 250])
    train, reward, dev = three_way(source(labels), RowsConfig(reward=100), seed=0)
    assert set(train.idx).isdisjoint(reward.idx)
    assert len(train) + len(reward) == 1000
    assert reward.labels is not None
    assert np.bincount(reward.labels).tolist() == [75, 25]
    assert [f"a{i}" for i in reward.idx] == reward.texts
    assert labels[reward.idx].tolist() == reward.labels.tolist()
    assert len(dev["dev"]) == 1000


def test_scores_are_stratified_by_quantile() -> None:
    scores = np.random.default_rng(0).permutation(np.linspace(0, 5, 1000)).astype(np.float32)
    _, reward, _ = three_way(source(scores, STSB), RowsConfig(reward=50), seed=0)
    assert reward.labels is not None
    counts, _ = np.histogram(reward.labels, bins=10, range=(0, 5))
    assert counts.tolist() == [5] * 10


def test_sizes_are_drawn_with_the_seed() -> None:
    labels = np.tile([0, 1], 500)
    wanted = RowsConfig(train=200, reward=50, dev=30)
    once, again, other = (three_way(source(labels), wanted, seed) for seed in (0, 0, 1))
    assert [len(once[0]), len(once[1]), len(once[2]["dev"])] == [150, 50, 30]
    for a, b, c in zip(once[:2], again[:2], other[:2], strict=True):
        assert a.idx.tolist() == b.idx.tolist()
        assert a.idx.tolist() != c.idx.tolist()
        assert a.idx.tolist() == sorted(a.idx)


def test_dev_rows_are_the_same_for_every_seed() -> None:
    wanted = RowsConfig(reward=50, dev=30)
    one, other = (
        three_way(source(np.tile([0, 1], 500)), wanted, seed)[2]["dev"] for seed in (0, 1)
    )
    assert len(one) == 30
    assert one.idx.tolist() == other.idx.tolist()


def test_sizes_beyond_the_file_take_all() -> None:
    train, reward, dev = three_way(
        source(np.tile([0, 1], 50)), RowsConfig(train=10**6, reward=10, dev=10**6), seed=0
    )
    assert (len(train), len(reward), len(dev["dev"])) == (90, 10, 100)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (RowsConfig(reward=101), r"--rows.reward: 101 of 100 training rows leave 0"),
        (RowsConfig(reward=90), r"--rows.reward: 90 of 100 .*leave 10, less than one batch of 32"),
        (RowsConfig(train=40, reward=20), r"--rows.reward: 20 of 40"),
        (RowsConfig(reward=0), r"--rows.reward: 0 rows"),
        (RowsConfig(train=0), r"--rows.train: 0 rows"),
        (RowsConfig(dev=-1), r"--rows.dev: -1 rows"),
    ],
)
def test_impossible_sizes_are_refused(rows: RowsConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        three_way(source(np.tile([0, 1], 50)), rows, seed=0, batch_size=32)


def test_training_rows_are_limited_alike_for_every_seed() -> None:
    labels = np.tile([0, 1], 500)
    wanted = RowsConfig(train=200, reward=50)
    limited = limit_train(source(labels), wanted).train
    assert np.bincount(limited.labels).tolist() == [100, 100]  # type: ignore[arg-type]
    for seed in (0, 1):
        train, reward, _ = three_way(source(labels), wanted, seed)
        assert sorted([*train.idx, *reward.idx]) == limited.idx.tolist()


def test_a_draw_that_leaves_one_class_is_refused() -> None:
    rare = source(np.repeat([0, 1], [99, 1]))
    with pytest.raises(UsageError, match=r"--rows.train: a draw of 10 rows .*only the class ent"):
        three_way(rare, RowsConfig(train=10, reward=2), seed=0)
    few = source(np.array([0, 0, 1]))
    with pytest.raises(UsageError, match=r"--rows.train, --rows.reward: .*only the class"):
        three_way(few, RowsConfig(reward=2), seed=0)


# tokens


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def pair_split(tokenizer: Any, max_length: int = 16) -> Split:
    rows = Rows(
        ["a b c", "d", "e f"], ["a", "b c d e", "g"], np.array([1, 0, 1]), np.array([4, 5, 6])
    )
    return tokenize(rows, QNLI, tokenizer, max_length)


@pytest.mark.parametrize(
    "index",
    [np.arange(3)[::-1][:2], [2, 1], np.array([2, 1], np.uint8), np.array([False, True, True])],
)
def test_rows_are_taken_by_any_index(tokenizer: Any, index: Any) -> None:
    split = pair_split(tokenizer)
    rows = [1, 2] if np.asarray(index).dtype == bool else [2, 1]
    taken = split.take(index)
    assert taken.lengths.tolist() == split.lengths[rows].tolist()
    assert [row.tolist() for row in taken.input_ids] == [split.input_ids[i].tolist() for i in rows]
    assert taken.labels is not None
    assert split.labels is not None
    assert taken.labels.tolist() == split.labels[rows].tolist()


def test_a_batch_of_rows_in_a_view_that_runs_backwards(tokenizer: Any) -> None:
    assert pair_split(tokenizer).batch(np.arange(3)[::-1]).ids.tolist() == [2, 1, 0]


def test_tokens_of_pairs(tokenizer: Any) -> None:
    split = pair_split(tokenizer)
    assert split.input_ids[0].tolist() == [2, 5, 6, 7, 3, 5, 3]
    assert split.token_type_ids is not None
    assert split.token_type_ids[0].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert split.lengths.tolist() == [7, 8, 6]


def test_batch_is_padded_to_its_longest_row(tokenizer: Any) -> None:
    batch = pair_split(tokenizer).batch(np.array([2, 0]))
    assert batch.ids.tolist() == [2, 0]
    assert batch.input_ids.tolist() == [[2, 9, 10, 3, 11, 3, 0], [2, 5, 6, 7, 3, 5, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]]
    assert batch.labels.tolist() == [1, 1]
    assert batch.labels.dtype == torch.int64


def test_model_without_segments_gets_none(tokenizer: Any) -> None:
    plain = BertTokenizer(vocab=tokenizer.get_vocab())
    plain.model_input_names = ["input_ids", "attention_mask"]
    split = pair_split(plain)
    assert split.token_type_ids is None
    assert split.batch(np.array([0])).token_type_ids is None


def test_batches_without_labels_carry_marks_instead(tokenizer: Any) -> None:
    rows = Rows(["a", "b"], None, None, np.arange(2))
    assert tokenize(rows, SST2, tokenizer, 8).batch(np.arange(2)).labels.tolist() == [-1, -1]
    scores = tokenize(rows, STSB, tokenizer, 8).batch(np.arange(2)).labels
    assert scores.dtype == torch.float32
    assert bool(scores.isnan().all())


def test_long_texts_are_cut_the_longer_first(tokenizer: Any) -> None:
    split = pair_split(tokenizer, max_length=6)
    assert split.lengths.max() == 6
    assert split.input_ids[1].tolist() == [2, 8, 3, 6, 7, 3]


def test_tokenizer_limits_are_named(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"--batching.max_length: 4 tokens.*give 5 or more"):
        pair_split(tokenizer, max_length=4)
    unpadded = BertTokenizer(vocab=tokenizer.get_vocab())
    unpadded.pad_token = None
    with pytest.raises(UsageError, match="--teacher: its tokenizer has no padding token"):
        pair_split(unpadded)


def test_fingerprint_sees_every_token_and_boundary(tokenizer: Any) -> None:
    prints = set()
    base = pair_split(tokenizer)
    assert base.fingerprint() == pair_split(tokenizer).fingerprint()
    for texts, pairs in (
        (["a b", "c"], ["d", "e"]),
        (["a", "b c"], ["d", "e"]),
        (["a b", "c"], ["d", "f"]),
        (["c", "a b"], ["e", "d"]),
    ):
        rows = Rows(texts, pairs, None, np.arange(2))
        prints.add(tokenize(rows, QNLI, tokenizer, 8).fingerprint())
    one = Split([np.array([1, 2]), np.array([3])], None, None, np.array([2, 1]), 0)
    two = Split([np.array([1]), np.array([2, 3])], None, None, np.array([1, 2]), 0)
    assert len(prints | {one.fingerprint(), two.fingerprint()}) == 6


# order of batches


@given(
    rows=st.integers(1, 70), size=st.integers(1, 20), bucket=st.integers(1, 5), seed=st.integers(0)
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_uses_no_row_twice(rows: int, size: int, bucket: int, seed: int) -> None:
    lengths = np.arange(rows) % 7 + 1
    order = BatchOrder(lengths, size, bucket, seed)
    count = updates_per_epoch(rows, size)
    epoch = np.concatenate([order.rows(update) for update in range(count)])
    assert len(epoch) == len(set(epoch)) == count * min(size, rows)
    assert set(epoch) <= set(range(rows))


def test_order_depends_on_seed_and_update_alone() -> None:
    lengths = np.random.default_rng(0).integers(5, 50, size=100)
    forward = BatchOrder(lengths, 8, 4, seed=3)
    walked = [forward.rows(update).tolist() for update in range(40)]
    jumping = BatchOrder(lengths, 8, 4, seed=3)
    for update in (39, 0, 17, 12, 38):
        assert jumping.rows(update).tolist() == walked[update]
    assert walked[0] != walked[12]
    assert BatchOrder(lengths, 8, 4, seed=4).rows(0).tolist() != walked[0]


def test_callers_cannot_change_the_order() -> None:
    order = BatchOrder(np.ones(10, dtype=np.int64), 5, 1, seed=0)
    first = order.rows(0).tolist()
    order.rows(0)[:] = -1
    assert order.rows(0).tolist() == first


def test_buckets_bring_like_lengths_together_and_keep_batches_shuffled() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, size=640)

    def spread(bucket: int) -> float:
        order = BatchOrder(lengths, 16, bucket, seed=0)
        return float(np.mean([np.ptp(lengths[order.rows(u)]) for u in range(order.batches)]))

    assert spread(20) < 0.25 * spread(1)
    order = BatchOrder(lengths, 16, 40, seed=0)
    means = [lengths[order.rows(update)].mean() for update in range(order.batches)]
    assert means != sorted(means)


def test_rows_left_out_of_an_epoch_are_not_the_longest() -> None:
    lengths = np.arange(1, 15)
    order = BatchOrder(lengths, 8, 10, seed=0)
    left_out = [set(range(14)) - set(order.rows(update)) for update in range(30)]
    assert set.union(*left_out) == set(range(14))


def test_wrong_batch_sizes_are_named() -> None:
    for size, bucket, name in ((0, 1, "size"), (1, 0, "bucket")):
        with pytest.raises(UsageError, match=f"--batching.{name}: 0"):
            BatchOrder(np.ones(4), size, bucket, seed=0)
    split = Split([np.array([1])], None, None, np.array([1]), 0)
    with pytest.raises(UsageError, match=r"--batching.eval_size: 0"):
        next(evaluation_batches(split, 0))


def test_evaluation_sees_every_row_once_the_longest_first() -> None:
    lengths = np.array([3, 9, 1, 7, 7])
    split = Split([np.zeros(n, dtype=np.int64) for n in lengths], None, None, lengths, 0)
    batches = list(evaluation_batches(split, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.concatenate(batches).tolist() == [1, 3, 4, 0, 2]


def test_json_lines_keep_integers_beside_missing_labels(tmp_path: Path) -> None:
    lines = [{"question": "a", "sentence": "b", "label": 1}, {"question": "a", "sentence": "b"}]
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UsageError, match="label nan in data row 2"):
        read_rows(path, QNLI, True)
