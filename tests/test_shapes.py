"""Named shapes of students, and the count of their parameters."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ksel.errors import UsageError
from ksel.models import family_of, shape_of
from ksel.shapes import SHAPES, WIDTH_AGAINST_DEPTH, encoder_parameters, named_shape
from ksel.types import Shape


def encoder(family: str, shape: Shape) -> torch.nn.Module:
    """The transformer layers of a real model of this shape, without memory for its weights."""
    names = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
    if family == "distilbert":
        names = {"layers": "n_layers", "width": "dim", "heads": "n_heads"}
    config = AutoConfig.for_model(
        family, **{new: getattr(shape, old) for old, new in names.items()}
    )
    setattr(config, family_of(config).feed_forward, shape.feed_forward)
    assert shape_of(config) == shape
    with torch.device("meta"):
        return AutoModel.from_config(config).get_submodule(family_of(config).layers)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("shape", [Shape(2, 16, 4, 32), Shape(3, 24, 2, 40), SHAPES["4x312"]])
def test_parameters_are_those_of_the_real_model(family: str, shape: Shape) -> None:
    real = sum(p.numel() for p in encoder(family, shape).parameters())
    assert encoder_parameters(shape) == real


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_named_shape_is_what_its_name_says_and_a_real_model(name: str) -> None:
    shape = named_shape(name)
    assert (shape.layers, shape.width) == tuple(map(int, name.split("x")))
    assert shape.width % shape.heads == 0
    assert encoder_parameters(shape) == sum(p.numel() for p in encoder("bert", shape).parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("4x312", Shape(4, 312, 12, 1200)),
        ("6x768", Shape(6, 768, 12, 3072)),
        ("6x384", Shape(6, 384, 12, 1536)),
        ("2x128", Shape(2, 128, 2, 512)),
        ("4x256", Shape(4, 256, 4, 1024)),
        ("4x512", Shape(4, 512, 8, 2048)),
        ("8x512", Shape(8, 512, 8, 2048)),
    ],
)
def test_published_shapes(name: str, shape: Shape) -> None:
    assert SHAPES[name] == shape


@pytest.mark.parametrize(("name", "millions"), [("4x312", 14.5), ("6x768", 67.0)])
def test_the_published_sizes_with_embeddings_and_pooler(name: str, millions: float) -> None:
    shape = SHAPES[name]
    embeddings = (30522 + 512 + 2 + 2) * shape.width
    pooler = shape.width * (shape.width + 1)
    total = (encoder_parameters(shape) + embeddings + pooler) / 1e6
    assert total == pytest.approx(millions, abs=0.2)


@pytest.mark.parametrize("teacher", list(WIDTH_AGAINST_DEPTH))
def test_a_series_changes_width_and_depth_but_not_the_parameters(teacher: int) -> None:
    shapes = [SHAPES[name] for name in WIDTH_AGAINST_DEPTH[teacher]]
    sizes = [encoder_parameters(shape) for shape in shapes]
    assert max(sizes) <= 1.05 * min(sizes)
    assert len(shapes) >= 3
    assert [s.layers for s in shapes] == sorted({s.layers for s in shapes})
    assert [s.width for s in shapes] == sorted({s.width for s in shapes}, reverse=True)
    assert {s.heads for s in shapes} == {12}
    assert all(s.feed_forward == 4 * s.width for s in shapes)
    assert any(s.width == teacher for s in shapes)


def test_an_unknown_shape_is_refused_with_the_names() -> None:
    with pytest.raises(
        UsageError, match=r"--student\.shape: unknown shape '6x7680'.*'6x768'\?"
    ) as e:
        named_shape("6x7680")
    assert all(re.search(rf"\b{name}\b", str(e.value)) for name in SHAPES)
