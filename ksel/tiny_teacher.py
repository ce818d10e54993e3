"""The tiny teacher: a small BERT and its tokenizer, both made from the task's own training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ksel.models import label_settings, new_model, own_generator
from ksel.tasks import Task

WORDS = 8000
"""Most words in the vocabulary; rarer ones are spelled."""
CHARACTERS = 1000
"""Most characters in the vocabulary."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

MAX_UPDATES = 2000
"""Upper bound on the updates where --fine_tune.max_updates sets none."""


def tiny_config(vocabulary: int) -> BertConfig:
    """The tiny teacher's configuration, for a vocabulary of this size."""
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # with BERT's 0.02 so small a model stays on the plateau at the start for many epochs
        initializer_range=0.06,
    )


def tiny_model(vocabulary: int, task: Task, seed: int) -> PreTrainedModel:
    """A small BERT with random weights and a head for the task."""
    config = tiny_config(vocabulary)
    for name, value in label_settings(task).items():
        setattr(config, name, value)
    with own_generator(seed):
        return new_model(config, task)


def tiny_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of the texts' most frequent words; the same for the same texts."""
    normalizer, splitter = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    words = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    # not tokenizers' own trainer: it numbers the tokens differently each time
    vocabulary = {token: number for number, token in enumerate(_tokens(words))}
    tokenizer: Any = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _tokens(words: Counter[str]) -> list[str]:
    """Special tokens, characters (as a word's first and as a later one), words; none twice."""
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    letters = _most_frequent(characters, CHARACTERS)
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    return list(dict.fromkeys([*SPECIAL, *pieces, *_most_frequent(words, WORDS)]))


def _most_frequent(counts: Counter[str], limit: int) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))[:limit]
