"""Loading encoders, and tapping their signals, for all four families."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    PreTrainedModel,
    T5Config,
)

from ksel import hub, models
from ksel.errors import UsageError
from ksel.knowledge.attention import map_scores
from ksel.models import (
    Tap,
    check_inputs,
    load_classifier,
    load_config,
    load_tokenizer,
    own_generator,
    parameter_count,
    shape_of,
    weights_fingerprint,
)
from ksel.tasks import get_task
from ksel.types import Batch, Needs, Shape

RTE = get_task("rte")
FAMILIES = tuple(tiny.FAMILIES)
LAYERS = 4
HEADS = 4


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny teacher of each family."""
    root = tmp_path_factory.mktemp("families")
    return {family: tiny.write_teacher(root / family, family) for family in FAMILIES}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A BERT folder that a test may spoil."""
    return Path(shutil.copytree(folders["bert"], tmp_path / "copy"))


def make_batch(lengths: tuple[int, ...] = (7, 3, 5), *, segments: bool = True) -> Batch:
    rng = np.random.default_rng(0)
    longest = max(lengths)
    mask = np.arange(longest)[None] < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(5, 40, mask.shape), 0)
    return Batch(
        ids=torch.arange(len(lengths)),
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        token_type_ids=torch.from_numpy((mask & (np.arange(longest) > 2)).astype(np.int64))
        if segments
        else None,
        labels=torch.zeros(len(lengths), dtype=torch.int64),
    )


def every_signal(layers: int = LAYERS) -> Needs:
    inside, all_ = frozenset(range(1, layers + 1)), frozenset(range(layers + 1))
    return Needs(True, cls=all_, hidden=all_, query=inside, key=inside, value=inside)


def hooks(model: PreTrainedModel) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


# --------------------------------------------------------------------------- taps


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_logits_are_the_models_own_with_layers_counted_from_the_embeddings(
    folders: dict[str, Path], family: str
) -> None:
    model = load_classifier(str(folders[family]), RTE).eval()
    batch = make_batch()
    with torch.no_grad():
        signals = Tap(model)(batch, every_signal())
        output = model(**batch.model_inputs(), output_hidden_states=True)
        layers = getattr(model, model.base_model_prefix).get_submodule(
            models.family_of(model.config).layers
        )
        entered: list[torch.Tensor] = []
        handle = layers[1].register_forward_pre_hook(lambda _, x: entered.append(x[0]))
        model(**batch.model_inputs())
        handle.remove()
    assert torch.equal(signals.logits, output.logits)
    assert sorted(signals.hidden) == list(range(LAYERS + 1)) == sorted(signals.cls)
    for layer in range(LAYERS + 1):
        assert torch.equal(signals.hidden[layer], output.hidden_states[layer])
        assert torch.equal(signals.cls[layer], output.hidden_states[layer][:, 0])
    # what the second layer reads is layer 1, not the embeddings and not layer 2
    assert torch.equal(signals.hidden[1], entered[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_query_key_and_value_are_what_each_layers_projection_makes_of_the_layer_below(
    folders: dict[str, Path], family: str
) -> None:
    model = load_classifier(str(folders[family]), RTE).eval()
    parts = models.family_of(model.config)
    with torch.no_grad():
        signals = Tap(model)(make_batch(), every_signal())
        layers = getattr(model, model.base_model_prefix).get_submodule(parts.layers)
        for number, layer in enumerate(layers, start=1):
            below = signals.hidden[number - 1]
            for kind in ("query", "key", "value"):
                expected = layer.get_submodule(getattr(parts, kind))(below)
                assert torch.equal(getattr(signals, kind)[number], expected)
    assert not torch.equal(signals.query[1], signals.key[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_tapped_query_and_key_under_fused_attention_equal_the_eager_maps(
    folders: dict[str, Path], family: str
) -> None:
    model = load_classifier(str(folders[family]), RTE).eval()
    assert model.config._attn_implementation == "sdpa"
    eager = AutoModelForSequenceClassification.from_pretrained(
        folders[family], attn_implementation="eager", dtype=torch.float32
    ).eval()
    batch = make_batch()
    real = batch.attention_mask.bool()
    with torch.no_grad():
        signals = Tap(model)(batch, every_signal())
        maps = eager(**batch.model_inputs(), output_attentions=True).attentions
    assert len(maps) == LAYERS
    for layer in range(1, LAYERS + 1):
        scores = map_scores(signals.query[layer], signals.key[layer], HEADS, batch)
        mine = scores.softmax(-1)
        rows = real[:, None, :, None].expand_as(mine)
        torch.testing.assert_close(mine[rows], maps[layer - 1][rows], atol=1e-6, rtol=1e-5)
    other = map_scores(signals.query[1], signals.key[1], HEADS, batch).softmax(-1)
    assert (other[0] - maps[1][0]).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_the_signals_of_real_tokens(
    folders: dict[str, Path], family: str
) -> None:
    model = load_classifier(str(folders[family]), RTE).eval()
    together = make_batch((7, 3))
    alone = make_batch((7, 3)).split(2)[1]
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        setattr(alone, name, getattr(alone, name)[:, :3])
    with torch.no_grad():
        padded = Tap(model)(together, every_signal())
        plain = Tap(model)(alone, every_signal())
    torch.testing.assert_close(padded.logits[1:2], plain.logits)
    for kind in ("hidden", "query", "key", "value"):
        for layer, states in getattr(plain, kind).items():
            torch.testing.assert_close(getattr(padded, kind)[layer][1:2, :3], states)


def test_only_what_is_asked_for_is_handed_out(folders: dict[str, Path]) -> None:
    model = load_classifier(str(folders["bert"]), RTE).eval()
    signals = Tap(model)(make_batch(), Needs(query=frozenset([2])))
    assert signals.logits is None
    assert not signals.hidden
    assert not signals.cls
    assert not signals.key
    assert list(signals.query) == [2]


def test_hooks_are_gone_after_a_call_and_after_a_failure(folders: dict[str, Path]) -> None:
    model = load_classifier(str(folders["bert"]), RTE).eval()
    tap = Tap(model)
    tap(make_batch(), every_signal())
    before = hooks(model)  # those that transformers itself keeps on its layers
    tap(make_batch(), every_signal())
    assert hooks(model) == before
    broken = make_batch()
    broken.input_ids = broken.input_ids + 10_000
    with pytest.raises(IndexError):
        tap(broken, every_signal())
    assert hooks(model) == before
    projections = [m for modules in tap._projections.values() for m in modules]
    assert not any(m._forward_hooks for m in projections)


def test_the_hooks_of_one_student_never_see_the_forward_of_another(
    folders: dict[str, Path],
) -> None:
    first = load_classifier(str(folders["bert"]), RTE).eval()
    second = load_classifier(str(folders["bert"]), RTE).eval()
    with torch.no_grad():
        second.bert.encoder.layer[0].attention.self.query.weight.mul_(2)
    batch, needs = make_batch(), Needs(query=frozenset([1]))
    alone = Tap(first)(batch, needs).query[1]
    inner: list[torch.Tensor] = []

    def run_the_other(*_: object) -> None:
        inner.append(Tap(second)(batch, needs).query[1])

    # the second student runs in the middle of the first one's forward
    handle = first.bert.encoder.layer[2].register_forward_pre_hook(run_the_other)
    shared = Tap(first)(batch, needs).query[1]
    handle.remove()
    assert torch.equal(shared, alone)
    assert not torch.equal(inner[0], alone)


def test_tapped_signals_carry_gradients_to_the_student(folders: dict[str, Path]) -> None:
    model = load_classifier(str(folders["bert"]), RTE)
    signals = Tap(model)(make_batch(), Needs(value=frozenset([1])))
    signals.value[1].square().sum().backward()
    layers = model.bert.encoder.layer
    assert layers[0].attention.self.value.weight.grad.abs().sum() > 0
    assert layers[1].attention.self.value.weight.grad is None


# --------------------------------------------------------------------------- loading


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_of_every_family(folders: dict[str, Path], family: str) -> None:
    assert shape_of(load_config(str(folders[family]))) == Shape(4, 16, 4, 32)


def test_a_half_precision_checkpoint_is_loaded_in_float32(copy: Path, tmp_path: Path) -> None:
    half = load_classifier(str(copy), RTE).half()
    half.save_pretrained(tmp_path / "half")
    stored = json.loads((tmp_path / "half" / "config.json").read_text())
    assert stored["dtype"] == "float16"
    model = load_classifier(str(tmp_path / "half"), RTE)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32
    torch.testing.assert_close(
        model.classifier.weight, half.classifier.weight.float(), rtol=0, atol=0
    )


def test_a_missing_head_is_seeded_and_leaves_the_global_generator_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    load_classifier(str(folders["bert"]), RTE).bert.save_pretrained(tmp_path / "encoder")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        load_classifier(str(tmp_path / "encoder"), RTE, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_own_generator_restores_the_global_one_even_after_an_error() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with pytest.raises(RuntimeError), own_generator(3):
        torch.rand(100).reshape(3)
    assert torch.equal(torch.rand(2), expected)


def test_fingerprint_follows_the_weights(folders: dict[str, Path]) -> None:
    model = load_classifier(str(folders["bert"]), RTE)
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(load_classifier(str(folders["bert"]), RTE))
    with torch.no_grad():
        model.classifier.bias[0] = torch.nextafter(model.classifier.bias[0], torch.tensor(9.0))
    assert weights_fingerprint(model) != before


def test_parameters_are_counted(folders: dict[str, Path]) -> None:
    model = load_classifier(str(folders["bert"]), RTE)
    stored = AutoModelForSequenceClassification.from_pretrained(folders["bert"])
    assert parameter_count(model) == sum(t.numel() for t in stored.state_dict().values())


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "empty folder":
        for path in folder.iterdir():
            path.unlink()
    elif how == "truncated config":
        config.write_text(config.read_text()[:40])
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "torch pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "weights of another width":
        config.write_text(config.read_text().replace('"hidden_size": 16', '"hidden_size": 8'))
    elif how == "fewer layers than it says":
        text = config.read_text()
        assert '"num_hidden_layers": 4' in text
        config.write_text(text.replace('"num_hidden_layers": 4', '"num_hidden_layers": 6'))


@pytest.mark.parametrize(
    "how",
    [
        "empty folder",
        "truncated config",
        "no weights",
        "truncated weights",
        "torch pickle",
        "weights of another width",
        "fewer layers than it says",
    ],
)
def test_an_unreadable_folder_is_refused_in_one_message(copy: Path, how: str) -> None:
    spoil(copy, how)
    with pytest.raises(UsageError, match=r"^--teacher") as caught:
        load_classifier(str(copy), RTE)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_without_the_head_they_claim_are_refused_as_a_ready_teacher(copy: Path) -> None:
    model = load_classifier(str(copy), RTE)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier")}
    model.save_pretrained(copy, state_dict=state)
    with pytest.raises(UsageError, match=r"2 tensors are missing .*classifier\.bias"):
        load_classifier(str(copy), RTE, own_head=True)
    assert load_classifier(str(copy), RTE).num_labels == 2


def test_a_folder_without_a_tokenizer_is_refused(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    # transformers itself gives a tokenizer to which every word is unknown
    assert len(AutoTokenizer.from_pretrained(copy)) == 5
    with pytest.raises(UsageError, match=r"--teacher: .* has no tokenizer"):
        load_tokenizer(str(copy))


@pytest.mark.parametrize("config", [GPT2Config(n_layer=1, n_embd=8, n_head=1), T5Config()])
def test_another_architecture_is_refused_by_name(tmp_path: Path, config: object) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"--teacher: architecture '(gpt2|t5)' .*roberta"):
        load_config(str(tmp_path))
    with pytest.raises(UsageError, match=r"--student\.init: architecture"):
        load_config(str(tmp_path), "--student.init")


def test_code_that_comes_with_a_checkpoint_is_never_run(copy: Path) -> None:
    text = json.loads((copy / "config.json").read_text())
    text |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (copy / "config.json").write_text(json.dumps(text))
    (copy / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(UsageError, match="--teacher"):
        load_config(str(copy))


def test_a_hub_name_without_a_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.hub_is_reachable.cache_clear()
    start = time.perf_counter()
    with pytest.raises(UsageError, match=r"--teacher: 'nobody/nothing' .* out of reach"):
        load_config("nobody/nothing")
    with pytest.raises(UsageError, match="--teacher"):
        load_tokenizer("nobody/nothing")
    with pytest.raises(UsageError, match="--teacher"):
        load_classifier("nobody/nothing", RTE)
    assert time.perf_counter() - start < 1.0


# --------------------------------------------------------------------------- the hub


def test_the_hub_is_asked_through_the_proxy_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, int]] = []

    class Connection:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def connect(address: tuple[str, int], timeout: float) -> Connection:
        asked.append(address)
        return Connection()

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(hub.socket, "create_connection", connect)
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub.hub_is_reachable.cache_clear()
    assert hub.hub_is_reachable()
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    hub.hub_is_reachable.cache_clear()
    assert hub.hub_is_reachable()
    hub.hub_is_reachable.cache_clear()
    assert asked == [("hub.example", 443), ("proxy.example", 3128)]


def test_a_hub_that_does_not_answer_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("unreachable")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    hub.hub_is_reachable.cache_clear()
    assert not hub.hub_is_reachable()
    hub.hub_is_reachable.cache_clear()


# --------------------------------------------------------------------------- inputs


def test_longer_sequences_than_positions_are_refused() -> None:
    check_inputs(BertConfig(max_position_embeddings=64), 100, 64)
    with pytest.raises(UsageError, match=r"--batching\.max_length: 65 .* the 64 "):
        check_inputs(BertConfig(max_position_embeddings=64), 100, 65)
    roberta = AutoConfig.for_model("roberta", max_position_embeddings=66, pad_token_id=1)
    check_inputs(roberta, 100, 64)
    with pytest.raises(UsageError, match=r"--batching\.max_length: 65 .* the 64 "):
        check_inputs(roberta, 100, 65)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_allowed_sequence_can_be_read_and_one_more_cannot(
    folders: dict[str, Path], family: str
) -> None:
    model = load_classifier(str(folders[family]), RTE).eval()
    longest = max(n for n in range(100, 140) if _accepted(model, n))
    model(**make_batch((longest,)).model_inputs())
    with pytest.raises((IndexError, RuntimeError)):
        model(**make_batch((longest + 1,)).model_inputs())


def _accepted(model: PreTrainedModel, length: int) -> bool:
    try:
        check_inputs(model.config, 10, length)
    except UsageError:
        return False
    return True


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--student\.init: its tokenizer has 101 tokens"):
        check_inputs(BertConfig(vocab_size=100), 101, 8, "--student.init")


# --------------------------------------------------------------------------- the real teacher


def test_the_shared_teacher_is_stored_in_half_precision_and_loaded_in_float32(
    shared: Path,
) -> None:
    folder = shared / "models" / "all-MiniLM-L6-v2"
    stored = load_file(folder / "model.safetensors")
    assert torch.float16 in {tensor.dtype for tensor in stored.values()}
    model = load_classifier(str(folder), RTE)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert shape_of(model.config) == Shape(6, 384, 12, 1536)
