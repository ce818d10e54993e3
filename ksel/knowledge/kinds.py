"""The table of kinds."""

from __future__ import annotations

from functools import partial

from ksel.knowledge.attention import build_attention, build_attention_mean, build_attention_sum
from ksel.knowledge.base import Kind
from ksel.knowledge.fsp import build_fsp
from ksel.knowledge.nst import build_nst
from ksel.knowledge.outputs import build_label, build_logits, build_response
from ksel.knowledge.relations import (
    build_attention_output_relation,
    build_relation,
    build_token_similarity,
)
from ksel.knowledge.samples import build_sample_contrastive, build_sample_similarity
from ksel.knowledge.states import build_cls_hidden, build_cosine, build_embedding, build_hidden

KINDS: dict[str, Kind] = {
    "label": Kind(
        "the gold label: cross-entropy, or squared error", "example", build_label, pooled=True
    ),
    "response": Kind(
        "the teacher's output: T^2 KL(teacher || student), or squared difference",
        "example",
        build_response,
        settings=(
            "temperature",
            "temperature_schedule",
            "temperature_end",
            "temperature_range",
            "temperature_power",
            "confidence",
        ),
        pooled=True,
    ),
    "logits": Kind(
        "the teacher's logits: MSE, growing in steps if wished (Annealing-KD)",
        "example",
        build_logits,
        settings=("logit_annealing",),
        pooled=True,
    ),
    "cls_hidden": Kind(
        "[CLS] states of matched layers: squared distance (Patient KD)",
        "example",
        build_cls_hidden,
        lowest_layer=0,
        settings=("normalize_cls", "cls_reduction", "cls_last", "projection"),
        pooled=True,
    ),
    "hidden": Kind(
        "token states of matched layers: MSE, with a learned projection if widths differ",
        "token",
        build_hidden,
        lowest_layer=0,
        settings=("projection",),
    ),
    "embedding": Kind(
        "the embedding output: MSE, with a learned projection if widths differ (TinyBERT)",
        "token",
        build_embedding,
        settings=("projection",),
    ),
    "cosine": Kind(
        "token states of matched layers: 1 - cosine (DistilBERT)",
        "token",
        build_cosine,
        lowest_layer=0,
        settings=("projection",),
    ),
    "attention": Kind(
        "attention maps of matched layers, head by head: MSE or KL",
        "token",
        build_attention,
        lowest_layer=1,
        settings=("attention_loss", "attention_on"),
    ),
    "attention_mean": Kind(
        "attention maps of matched layers, averaged over the heads: MSE or KL",
        "token",
        build_attention_mean,
        lowest_layer=1,
        settings=("attention_loss", "attention_on"),
    ),
    "attention_sum": Kind(
        "attention maps of matched layers, summed over the heads: MSE",
        "token",
        build_attention_sum,
        lowest_layer=1,
        settings=("attention_on",),
    ),
    "query_relation": Kind(
        "relations among the queries of matched layers: KL (MiniLMv2)",
        "token",
        partial(build_relation, vectors="query"),
        lowest_layer=1,
        settings=("relation_heads",),
    ),
    "key_relation": Kind(
        "relations among the keys of matched layers: KL (MiniLMv2)",
        "token",
        partial(build_relation, vectors="key"),
        lowest_layer=1,
        settings=("relation_heads",),
    ),
    "value_relation": Kind(
        "relations among the values of matched layers: KL (MiniLM, MiniLMv2)",
        "token",
        partial(build_relation, vectors="value"),
        lowest_layer=1,
        settings=("relation_heads",),
    ),
    "attention_output_relation": Kind(
        "relations among the attention outputs of matched layers: KL (MLKD-BERT)",
        "token",
        build_attention_output_relation,
        lowest_layer=1,
    ),
    "token_similarity": Kind(
        "relations among the embeddings: KL (MLKD-BERT)", "token", build_token_similarity
    ),
    "fsp": Kind(
        "Gram matrices between consecutive matched layers: MSE",
        "example",
        build_fsp,
        lowest_layer=0,
        settings=("projection",),
    ),
    "nst": Kind(
        "Gram matrices of the tokens of matched layers: MSE",
        "example",
        build_nst,
        lowest_layer=0,
    ),
    "sample_similarity": Kind(
        "relations among the examples of a batch: KL (MLKD-BERT)",
        "example",
        build_sample_similarity,
        pooled=True,
    ),
    "sample_contrastive": Kind(
        "examples of a class drawn together, teacher's views included (MLKD-BERT)",
        "example",
        build_sample_contrastive,
        settings=("contrastive_temperature",),
        pooled=True,
    ),
}
"""Kind -> how to build it. A new kind is one file and one row."""
