"""Encoders without a head that read their own tokens: what several teachers are made of in tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny
import torch
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from ksel.data import Split
from ksel.models import family_of, own_generator
from ksel.spans import Spans
from ksel.tiny_teacher import tiny_tokenizer


def spelling_tokenizer() -> PreTrainedTokenizerBase:
    """Knows the letters of the tiny data and few words, so that texts get longer."""
    letters = " ".join("abcdefghijklmnopqrstuvwxyz")
    return tiny_tokenizer([f"{letters} the a was in there {' '.join(tiny.PLACES)}"])


def word_tokenizer() -> PreTrainedTokenizerBase:
    """Knows all words of the tiny data."""
    words = " ".join((*tiny.COLOURS, *tiny.THINGS, *tiny.PLACES))
    return tiny_tokenizer([words, "the a was in there and it stayed all day long"])


def write_encoder(
    folder: Path,
    family: str = "bert",
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    width: int = 16,
    seed: int = 0,
) -> Path:
    """A random tiny encoder without a head, and its tokenizer."""
    tokenizer = tokenizer or word_tokenizer()
    changes = {**tiny.FAMILIES[family], "dim" if family == "distilbert" else "hidden_size": width}
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), **{"max_position_embeddings": 128, **changes}
    )
    for name in family_of(config).dropouts:
        setattr(config, name, 0.0)
    with own_generator(seed):
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def span_split(rows: int = 24, vocabulary: int = 40, seed: int = 0) -> Split:
    """Windows of random tokens; the answer begins with the token 7 and ends with the token 8."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 14, rows)
    ids = [rng.integers(9, vocabulary, n) for n in lengths]
    labels = np.stack([rng.integers(1, 3, rows), rng.integers(3, 6, rows)], axis=1)
    for row, (first, last) in zip(ids, labels, strict=True):
        row[0], row[first], row[last] = 2, 7, 8
    spans = Spans(
        example=np.arange(rows),
        offsets=[np.full((n, 2), -1, np.int32) for n in lengths],
        ids=[str(i) for i in range(rows)],
        idx=np.arange(rows),
        contexts=[""] * rows,
        golds=None,
    )
    return Split(ids, None, torch.from_numpy(labels), lengths, 0, spans=spans)
