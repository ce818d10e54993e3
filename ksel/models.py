"""Encoders: load one, know its shape, and tap the signals out of a forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ksel.errors import UsageError
from ksel.hub import hub_is_reachable
from ksel.tasks import Task
from ksel.types import Batch, Needs, Shape, Signals


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its parts.

    Attributes:
        layers: submodule of the encoder that lists the layers.
        query, key, value: submodules of a layer.
        after_attention: submodule of a layer whose input is the attention output vectors.
        dropouts: names of the dropout probabilities in the configuration.
        feed_forward: name of the feed-forward width in the configuration.
        padded_positions: positions are counted from the padding id + 1, which leaves fewer.
    """

    layers: str
    query: str
    key: str
    value: str
    after_attention: str
    dropouts: tuple[str, ...]
    feed_forward: str = "intermediate_size"
    padded_positions: bool = False


_BERT_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
_BERT = Family(
    "encoder.layer",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    _BERT_DROPOUTS,
)
_ROBERTA = replace(_BERT, padded_positions=True)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": _BERT,
    "distilbert": Family(
        "transformer.layer",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        ("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"),
        "hidden_dim",
    ),
}


def family_of(config: PreTrainedConfig, option: str = "--teacher") -> Family:
    """The table row of an architecture.

    Args:
        config: of the checkpoint.
        option: the option the checkpoint came from, for the message.

    Raises:
        UsageError: ksel does not know where this architecture keeps its parts.
    """
    if config.model_type not in FAMILIES:
        raise UsageError(
            f"{option}: architecture '{config.model_type}' is not supported. "
            f"Use an encoder of one of: {', '.join(FAMILIES)}."
        )
    return FAMILIES[config.model_type]


def shape_of(config: PreTrainedConfig) -> Shape:
    """Layers, width, heads and feed-forward width of an encoder."""
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        feed_forward=getattr(config, family_of(config).feed_forward),
    )


# --------------------------------------------------------------------------- loading


def load_config(name: str, option: str = "--teacher") -> PreTrainedConfig:
    """Read an encoder's configuration from a folder, the hub's cache, or the hub.

    Raises:
        UsageError: nothing readable is there, the hub is out of reach, or the architecture is
            none of :data:`FAMILIES`.
    """
    with _readable(name, option):
        config = AutoConfig.from_pretrained(name, **_source(name))
    family_of(config, option)
    return config


def load_tokenizer(name: str, option: str = "--teacher") -> PreTrainedTokenizerBase:
    """Read a model's tokenizer from a folder, the hub's cache, or the hub.

    Raises:
        UsageError: there is none, or the hub is out of reach.
    """
    with _readable(name, option):
        tokenizer = AutoTokenizer.from_pretrained(name, **_source(name))
    # without files transformers makes one that knows the special tokens alone
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UsageError(
            f"{option}: {name} has no tokenizer. Put the tokenizer's files (tokenizer.json, or "
            f"vocab.txt) beside the model."
        )
    for setting in _source(name):
        tokenizer.init_kwargs.pop(setting, None)
    return tokenizer


def check_inputs(
    config: PreTrainedConfig, tokens: int, max_length: int, option: str = "--teacher"
) -> None:
    """Refuse sequences and tokens that the model has no embeddings for.

    Args:
        config: of the model.
        tokens: size of the tokenizer's vocabulary.
        max_length: longest sequence (tokens).
        option: the option the model came from, for the message.

    Raises:
        UsageError: too few positions, or too few token embeddings.
    """
    longest = config.max_position_embeddings
    if family_of(config, option).padded_positions:
        longest -= config.pad_token_id + 1
    if max_length > longest:
        raise UsageError(
            f"--batching.max_length: {max_length} tokens are more than the {longest} that the "
            f"model of {option} can read. Set --batching.max_length {longest} or less."
        )
    if tokens > config.vocab_size:
        raise UsageError(
            f"{option}: its tokenizer has {tokens} tokens, but the model embeds only "
            f"{config.vocab_size}. Give a folder whose model and tokenizer belong together."
        )


def load_classifier(
    name: str,
    task: Task,
    *,
    seed: int = 0,
    option: str = "--teacher",
    own_head: bool = False,
    changes: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load an encoder with a head for the task, in float32 whatever the file's precision.

    Args:
        name: folder or hub name.
        task: decides the kind of head, its width and the label names.
        seed: seed of the head where the checkpoint has none of this width; torch's generator is
            not touched.
        option: the option ``name`` came from, for messages.
        own_head: keep the checkpoint's own head and label names.
        changes: further configuration values to override, e.g. dropout probabilities.

    Raises:
        UsageError: nothing readable is there, weights are missing, or the hub is out of reach.
    """
    arguments = ({} if own_head else label_settings(task)) | (changes or {})
    with _readable(name, option), own_generator(seed):
        model, info = model_class(task).from_pretrained(
            name,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_source(name),
            **arguments,
        )
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lost = sorted(key for key in fresh if own_head or not _may_be_fresh(key, model))
    if lost:
        raise UsageError(
            f"{option}: the weights of {name} do not fit its config.json: {len(lost)} tensors are "
            f"missing or of another shape ({', '.join(lost[:3])}). Give a complete checkpoint."
        )
    return model


def model_class(task: Task) -> Any:
    """The transformers class that loads models with the task's kind of head."""
    return AutoModelForQuestionAnswering if task.is_span else AutoModelForSequenceClassification


def new_model(config: PreTrainedConfig, task: Task) -> PreTrainedModel:
    """A model with random weights and the task's kind of head, in float32.

    It draws from torch's generator; see :func:`own_generator`.
    """
    return model_class(task).from_config(config, dtype=torch.float32)


def model_logits(output: Any) -> Tensor:
    """The logits of a model's output: [b, classes], or [b, n, 2] (start, end) for spans."""
    if hasattr(output, "start_logits"):
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    return output.logits


def _may_be_fresh(key: str, model: PreTrainedModel) -> bool:
    """True for head and pooler, which a checkpoint without a head rightly lacks."""
    prefix = model.base_model_prefix
    return not key.startswith(f"{prefix}.") or key.startswith(f"{prefix}.pooler.")


def label_settings(task: Task) -> dict[str, Any]:
    """The parts of a Hugging Face configuration that follow from the task."""
    if task.is_regression:
        return {"num_labels": 1, "problem_type": "regression"}
    if task.is_span:
        names = {0: "start", 1: "end"}
        ids = {name: i for i, name in names.items()}
        return {"num_labels": 2, "id2label": names, "label2id": ids, "problem_type": None}
    return {
        "num_labels": len(task.labels),
        "id2label": dict(enumerate(task.labels)),
        "label2id": {name: i for i, name in enumerate(task.labels)},
        "problem_type": "single_label_classification",
    }


def _source(name: str) -> dict[str, Any]:
    """Where the loaders may look; code that comes with a checkpoint is never run."""
    local = Path(name).is_dir() or not hub_is_reachable()
    return {"local_files_only": local, "trust_remote_code": False}


@contextmanager
def _readable(name: str, option: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    # the loaders raise OSError, ValueError, KeyError, SafetensorError, ...
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if Path(name).is_dir():
            raise UsageError(
                f"{option}: the folder {name} does not hold a readable model ({reason}). "
                f"It needs config.json, model.safetensors and the tokenizer's files."
            ) from error
        where = f" ({reason})" if hub_is_reachable() else " and the hub is out of reach"
        raise UsageError(
            f"{option}: '{name}' is no folder here and was not found in the Hugging Face hub's "
            f"cache{where}. Give a folder with the model, or check the name and the network."
        ) from error


@contextmanager
def own_generator(seed: int) -> Iterator[None]:
    """Draw from a fresh torch generator inside, and leave the global one as it was."""
    # manual_seed also seeds the CUDA generators, so these are put back too
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model, moved in place."""
    return cast(Any, model).to(device)


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """What of a configuration decides the outputs besides the weights: heads, activation, ..."""
    about = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    return {name: value for name, value in config.to_diff_dict().items() if name not in about}


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """What turns the last layer's states into answers: the pooler, where there is one, and the rest of
    the head."""
    inside = f"{model.base_model_prefix}."
    return [
        p
        for name, p in model.named_parameters()
        if not name.startswith(inside) or name.startswith(f"{inside}pooler.")
    ]


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


# --------------------------------------------------------------------------- taps


class Tap:
    """Runs an encoder on a batch and hands out the signals that are asked for.

    Query, key, value and attention output are taken by forward hooks on the modules of this
    instance, set for the one call, so that fused attention stays on and two students never share a hook.

    Args:
        model: of one of :data:`FAMILIES`, with a head for classes, scores or spans.
        bf16: run the model under bfloat16 autocast (CUDA only).
    """

    def __init__(self, model: PreTrainedModel, *, bf16: bool = False) -> None:
        self.model = model
        self.bf16 = bf16
        family = family_of(model.config)
        layers = getattr(model, model.base_model_prefix).get_submodule(family.layers)
        self._projections = {
            kind: [layer.get_submodule(path) for layer in layers]
            for kind, path in (
                ("query", family.query),
                ("key", family.key),
                ("value", family.value),
            )
        }
        self._after_attention = [layer.get_submodule(family.after_attention) for layer in layers]

    def __call__(
        self, batch: Batch, needs: Needs, weights: dict[str, Tensor] | None = None
    ) -> Signals:
        """One forward pass.

        Args:
            batch: the tokenised examples, on the model's device.
            needs: what to hand out; layers from 1, and 0 for the embedding output.
            weights: parameter name -> tensor to use in place of the model's own, for this pass.

        Returns:
            The signals asked for, in the model's precision (float32 without autocast).
        """
        signals = Signals()
        handles = []
        for kind, modules in self._projections.items():
            for layer in sorted(getattr(needs, kind)):
                taken = getattr(signals, kind)
                handles.append(modules[layer - 1].register_forward_hook(_keep(taken, layer)))
        for layer in sorted(needs.attention_output):
            hook = _keep_input(signals.attention_output, layer)
            handles.append(self._after_attention[layer - 1].register_forward_pre_hook(hook))
        states = bool(needs.hidden or needs.cls)
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16):
                inputs = {**batch.model_inputs(), "output_hidden_states": states}
                output = functional_call(self.model, weights or {}, (), inputs)
        finally:
            for handle in handles:
                handle.remove()
        if needs.logits:
            logits = model_logits(output)
            signals.logits = logits if logits.dtype == torch.float64 else logits.float()
        if states:
            signals.hidden = {layer: output.hidden_states[layer] for layer in sorted(needs.hidden)}
            signals.cls = {layer: output.hidden_states[layer][:, 0] for layer in sorted(needs.cls)}
        return signals


def _keep(taken: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        taken[layer] = output

    return hook


def _keep_input(taken: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, inputs: Any) -> None:
        taken[layer] = inputs[0]

    return hook
