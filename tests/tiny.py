"""Tiny models, data and settings that let the whole job run on a CPU in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import AutoConfig

from ksel.models import label_settings, new_model, own_generator
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare
from ksel.tasks import get_task
from ksel.teachers import tiny_tokenizer

COLOURS = ("red", "blue", "green", "white", "black", "brown")
THINGS = ("box", "cup", "door", "lamp", "book", "coat", "chair", "stone")
PLACES = ("kitchen", "garden", "attic", "school", "harbour")

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    },
    "roberta": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 130,
        "pad_token_id": 0,
        "type_vocab_size": 2,
    },
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 32},
    "electra": {
        "hidden_size": 16,
        "embedding_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    },
}


def write_data(folder: Path, rows: int = 200, dev: int = 40, seed: int = 0) -> Path:
    """Sentence pairs in RTE's columns: entailment if the colours agree, lengths varied."""
    rng = np.random.default_rng(seed)
    for name, count in (("train", rows), ("dev", dev)):
        label = rng.permutation(np.arange(count) % 2)
        first, second = [], []
        for value in label:
            colour, other = rng.choice(COLOURS, 2, replace=False)
            thing, place = rng.choice(THINGS), rng.choice(PLACES)
            tail = " and it stayed there all day long" if rng.random() < 0.4 else ""
            first.append(f"the {colour} {thing} was in the {place}{tail}")
            second.append(f"a {colour if value == 0 else other} {thing} was there")
        table = {"sentence1": first, "sentence2": second, "label": label, "idx": np.arange(count)}
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    return folder


def write_spans(
    folder: Path, rows: int = 60, dev: int = 20, seed: int = 0, none: float = 0.0
) -> Path:
    """Questions in SQuAD's columns: where a thing was, in contexts of one to six sentences.

    Args:
        folder: where train and dev files are written.
        rows, dev: numbers of questions.
        seed: decides the texts.
        none: share of the questions without an answer.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("dev", dev)):
        table: dict[str, list[Any]] = {
            key: [] for key in ("id", "title", "context", "question", "answers")
        }
        for number in range(count):
            things = rng.permutation(THINGS)[: int(rng.integers(1, 7))]
            places = [f"{rng.choice(COLOURS)} {rng.choice(PLACES)}" for _ in things]
            sentences = [f"the {t} was in the {p} . " for t, p in zip(things, places, strict=True)]
            chosen = int(rng.integers(len(things)))
            start = len("".join(sentences[:chosen])) + sentences[chosen].index(places[chosen])
            known = number >= none * count
            about = things[chosen] if known else next(t for t in THINGS if t not in things)
            table["id"].append(f"{name}-{number}")
            table["title"].append("")
            table["context"].append("".join(sentences).strip())
            table["question"].append(f"where was the {about} ?")
            table["answers"].append(
                {"text": [places[chosen]] * known, "answer_start": [start] * known}
            )
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    return folder


def write_teacher(folder: Path, family: str = "bert", task: str = "rte", seed: int = 0) -> Path:
    """A random tiny model with a head for the task, and its tokenizer."""
    texts = [
        " ".join((*COLOURS, *THINGS, *PLACES)),
        "the a was in there and it stayed all day long",
    ]
    if get_task(task).is_span:
        texts.append("where ? .")
    tokenizer = tiny_tokenizer(texts)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        **{"max_position_embeddings": 128, **FAMILIES[family]},
        **label_settings(get_task(task)),
    )
    with own_generator(seed):
        model = new_model(config, get_task(task))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(data: Path, teacher: Path, store: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a tiny run as a nested dictionary; ``changes`` replace or update groups."""
    values: dict[str, Any] = {
        "task": "rte",
        "data": str(data),
        "teacher": str(teacher),
        "store": str(store),
        "threads": 1,
        "rows": {"reward": 24, "dev_on_the_way": 20},
        "batching": {"size": 8, "eval_size": 16, "max_length": 32, "bucket": 4},
        "student": {"layers": 2},
        "optim": {"max_updates": 6, "learning_rate": 1e-3},
        "knowledge": {
            "pool": ["label", "response", "cls_hidden/skip", "hidden/skip", "value_relation/last_1"]
        },
    }
    for name, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(name), dict):
            values[name] = {**values[name], **change}
        else:
            values[name] = change
    return values


def make_setup(values: dict[str, Any]) -> Setup:
    """Prepare everything from such settings."""
    return prepare(config_from_dict(values))
