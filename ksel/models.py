"""Encoders: load one, know its shape, build a student, and tap the signals out of a forward pass."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ksel.config import StudentConfig
from ksel.errors import UsageError
from ksel.hub import hub_is_reachable
from ksel.matching import match_layers
from ksel.tasks import Task
from ksel.types import Batch, Needs, Shape, Signals


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its layers and its query, key and value projections."""

    layers: str
    query: str
    key: str
    value: str
    dropouts: tuple[str, ...]
    feed_forward: str = "intermediate_size"


_BERT_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
_BERT = Family(
    "encoder.layer",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    _BERT_DROPOUTS,
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Family(
        "transformer.layer",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        ("dropout", "attention_dropout", "seq_classif_dropout"),
        "hidden_dim",
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The table row of an architecture.

    Raises:
        UsageError: ksel does not know where this architecture keeps its parts.
    """
    if config.model_type not in FAMILIES:
        raise UsageError(
            f"--teacher: architecture '{config.model_type}' is not supported. "
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
    """Read a model's configuration from a folder, the hub's cache, or the hub.

    Raises:
        UsageError: nothing readable is there, or the hub is out of reach.
    """
    with _readable(name, option):
        return AutoConfig.from_pretrained(name, local_files_only=_local_only(name))


def load_tokenizer(name: str, option: str = "--teacher") -> PreTrainedTokenizerBase:
    """Read a model's tokenizer from a folder, the hub's cache, or the hub."""
    with _readable(name, option):
        return AutoTokenizer.from_pretrained(name, local_files_only=_local_only(name))


def load_classifier(
    name: str,
    task: Task,
    *,
    seed: int = 0,
    option: str = "--teacher",
    own_head: bool = False,
    changes: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load an encoder with a classification head, in float32 whatever the file's precision.

    Args:
        name: folder or hub name.
        task: decides the head's width and the label names.
        seed: seed of the head where the checkpoint has none; torch's generator is not touched.
        option: the option ``name`` came from, for messages.
        own_head: keep the checkpoint's own head and label names.
        changes: further configuration values to override, e.g. dropout probabilities.

    Raises:
        UsageError: nothing readable is there, or the hub is out of reach.
    """
    arguments = ({} if own_head else label_settings(task)) | (changes or {})
    with _readable(name, option), own_generator(seed):
        return AutoModelForSequenceClassification.from_pretrained(
            name,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=_local_only(name),
            **arguments,
        )


def label_settings(task: Task) -> dict[str, Any]:
    """The parts of a Hugging Face configuration that follow from the task."""
    if task.is_regression:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(task.labels),
        "id2label": dict(enumerate(task.labels)),
        "label2id": {name: i for i, name in enumerate(task.labels)},
        "problem_type": "single_label_classification",
    }


def _local_only(name: str) -> bool:
    return Path(name).is_dir() or not hub_is_reachable()


@contextmanager
def _readable(name: str, option: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except (
        Exception
    ) as error:  # the loaders raise OSError, ValueError, SafetensorError, KeyError, ...
        if Path(name).is_dir():
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise UsageError(
                f"{option}: the folder {name} does not hold a readable model ({reason}). "
                f"It needs config.json, model.safetensors and the tokenizer's files."
            ) from error
        where = "" if hub_is_reachable() else " and the Hugging Face hub is out of reach"
        raise UsageError(
            f"{option}: '{name}' is no folder here, not in the hub's cache{where}. "
            f"Give a folder with the model, or check the name and the network."
        ) from error


@contextmanager
def own_generator(seed: int) -> Iterator[None]:
    """Draw from a fresh torch generator inside, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
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


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


# --------------------------------------------------------------------------- student


@dataclass(frozen=True)
class StudentPlan:
    """A student's shape and start, resolved from the settings.

    Attributes:
        shape: the student's shape.
        init: ``first``, ``skip``, ``last``, ``random``, or a folder.
        source: whose weights are copied: ``pretrained``, ``teacher``, or ``none``.
        layer_map: student layer -> source layer, for ``first``, ``skip`` and ``last``.
    """

    shape: Shape
    init: str
    source: str
    layer_map: tuple[tuple[int, int], ...]


INITS = ("auto", "first", "skip", "last", "random")


def plan_student(settings: StudentConfig, teacher: Shape, *, has_pretrained: bool) -> StudentPlan:
    """Resolve the student's shape and start.

    Raises:
        UsageError: a size is not positive, heads do not divide the width, or the start does not
            fit the shape.
    """
    if settings.init not in INITS:
        return _plan_from_checkpoint(settings)
    shape = Shape(
        settings.layers if settings.layers is not None else max(1, teacher.layers // 2),
        settings.width if settings.width is not None else teacher.width,
        settings.heads if settings.heads is not None else teacher.heads,
        settings.feed_forward if settings.feed_forward is not None else teacher.feed_forward,
    )
    for name in ("layers", "width", "heads", "feed_forward"):
        if getattr(shape, name) < 1:
            raise UsageError(f"--student.{name} must be at least 1, not {getattr(shape, name)}.")
    if shape.width % shape.heads:
        raise UsageError(
            f"--student.heads {shape.heads} does not divide the width {shape.width}. "
            f"Set --student.heads to a divisor, or change --student.width."
        )
    if not 0 <= settings.dropout < 1:
        raise UsageError(f"--student.dropout must be in [0, 1), not {settings.dropout}.")
    same = (shape.width, shape.feed_forward) == (teacher.width, teacher.feed_forward)
    init = settings.init
    if init == "auto":
        init = "first" if same and shape.layers <= teacher.layers else "random"
    if init == "random":
        return StudentPlan(shape, "random", "none", ())
    if not same:
        raise UsageError(
            f"--student.init {init} copies teacher layers, which needs the teacher's width "
            f"{teacher.width} and feed-forward width {teacher.feed_forward}; the student has "
            f"{shape.width} and {shape.feed_forward}. Use --student.init random or a checkpoint."
        )
    if shape.layers > teacher.layers:
        raise UsageError(
            f"--student.layers {shape.layers} is more than the teacher's {teacher.layers}, so "
            f"--student.init {init} has nothing to copy for the rest. Use fewer layers or "
            f"--student.init random."
        )
    source = settings.source
    if source == "auto":
        source = "pretrained" if has_pretrained else "teacher"
    if source == "pretrained" and not has_pretrained:
        raise UsageError(
            "--student.source pretrained: the checkpoint this teacher was fine-tuned from is not "
            "known. Use --student.source teacher."
        )
    return StudentPlan(shape, init, source, match_layers(init, shape.layers, teacher.layers))


def _plan_from_checkpoint(settings: StudentConfig) -> StudentPlan:
    given = [
        f"--student.{name}"
        for name in ("layers", "width", "heads", "feed_forward")
        if getattr(settings, name) is not None
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)}: the shape comes from the checkpoint --student.init "
            f"{settings.init}. Leave the shape out, or use one of: {', '.join(INITS)}."
        )
    config = load_config(settings.init, "--student.init")
    return StudentPlan(shape_of(config), settings.init, "none", ())


def build_student(
    plan: StudentPlan,
    teacher: PreTrainedModel,
    pretrained: PreTrainedModel | None,
    task: Task,
    *,
    dropout: float,
    seed: int,
) -> PreTrainedModel:
    """Build the student and give it its initial weights.

    Args:
        plan: from :func:`plan_student`.
        teacher: the fine-tuned teacher; the student takes its architecture and vocabulary.
        pretrained: the checkpoint the teacher came from, where known.
        task: the head's width and label names.
        dropout: dropout probability of the student.
        seed: seed of whatever is not copied; torch's generator is not touched.

    Raises:
        UsageError: a checkpoint's vocabulary is not the teacher's.
    """
    if plan.init not in INITS:
        config = load_config(plan.init, "--student.init")
        without = dict.fromkeys(family_of(config).dropouts, dropout)
        student = load_classifier(
            plan.init, task, seed=seed, option="--student.init", changes=without
        )
        if student.config.vocab_size != teacher.config.vocab_size:
            raise UsageError(
                f"--student.init {plan.init} has a vocabulary of {student.config.vocab_size} "
                f"tokens and the teacher one of {teacher.config.vocab_size}; student and teacher "
                f"read the same tokens. Use a checkpoint with the teacher's tokenizer."
            )
        return student
    family = family_of(teacher.config)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = plan.shape.layers
    config.hidden_size = plan.shape.width
    config.num_attention_heads = plan.shape.heads
    setattr(config, family.feed_forward, plan.shape.feed_forward)
    for name, value in label_settings(task).items():
        setattr(config, name, value)
    for name in family.dropouts:
        setattr(config, name, dropout)
    config._attn_implementation = "sdpa"
    with own_generator(seed):
        student = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    if plan.layer_map:
        source = teacher if plan.source == "teacher" else pretrained
        assert source is not None
        _copy_layers(source, student, plan.layer_map, family, head=plan.source == "teacher")
    return student


def _copy_layers(
    source: PreTrainedModel,
    student: PreTrainedModel,
    layer_map: tuple[tuple[int, int], ...],
    family: Family,
    *,
    head: bool,
) -> None:
    """Copy embeddings, matched layers, pooler and (``head``) the classifier."""
    weights = source.state_dict()
    prefix = f"{student.base_model_prefix}."
    layers = f"{prefix}{family.layers}."
    origin = {f"{layers}{s - 1}.": f"{layers}{t - 1}." for s, t in layer_map}
    copied = {}
    for name in student.state_dict():
        if not name.startswith(prefix) and not head:
            continue
        old = name
        if name.startswith(layers):
            own = layers + name[len(layers) :].split(".")[0] + "."
            old = origin[own] + name[len(own) :]
        copied[name] = weights[old]
    student.load_state_dict(copied, strict=False)


# --------------------------------------------------------------------------- taps


class Tap:
    """Runs an encoder on a batch and hands out the signals that are asked for.

    Query, key and value are taken by forward hooks on the modules of this instance, set for the
    one call, so that fused attention stays on and two students never share a hook.

    Args:
        model: a classifier of one of :data:`FAMILIES`.
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

    def __call__(self, batch: Batch, needs: Needs) -> Signals:
        """One forward pass.

        Args:
            batch: the tokenised examples, on the model's device.
            needs: what to hand out; layers from 1, and 0 for the embedding output.

        Returns:
            The signals asked for, in the model's precision (float32 without autocast).
        """
        signals = Signals()
        handles = []
        for kind, modules in self._projections.items():
            for layer in sorted(getattr(needs, kind)):
                taken = getattr(signals, kind)
                handles.append(modules[layer - 1].register_forward_hook(_keep(taken, layer)))
        states = bool(needs.hidden or needs.cls)
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16):
                output = self.model(**batch.model_inputs(), output_hidden_states=states)
        finally:
            for handle in handles:
                handle.remove()
        if needs.logits:
            signals.logits = output.logits.float()
        if states:
            signals.hidden = {layer: output.hidden_states[layer] for layer in sorted(needs.hidden)}
            signals.cls = {layer: output.hidden_states[layer][:, 0] for layer in sorted(needs.cls)}
        return signals


def _keep(taken: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        taken[layer] = output

    return hook
