"""Named student shapes, and how many parameters an encoder of a shape has."""

from __future__ import annotations

from ksel.errors import unknown_name
from ksel.types import Shape


def _twelve(layers: int, width: int) -> Shape:
    """BERT-base's proportions: twelve heads, feed-forward four times the width."""
    return Shape(layers, width, 12, 4 * width)


def _miniature(layers: int, width: int) -> Shape:
    """The proportions of BERT's published miniatures: heads of width 64."""
    return Shape(layers, width, width // 64, 4 * width)


SHAPES: dict[str, Shape] = {
    "4x312": Shape(4, 312, 12, 1200),
    "6x768": _twelve(6, 768),
    "6x384": _twelve(6, 384),
    "2x128": _miniature(2, 128),
    "4x256": _miniature(4, 256),
    "4x512": _miniature(4, 512),
    "8x512": _miniature(8, 512),
    "3x768": _twelve(3, 768),
    "4x672": _twelve(4, 672),
    "6x552": _twelve(6, 552),
    "8x480": _twelve(8, 480),
    "12x384": _twelve(12, 384),
    "2x480": _twelve(2, 480),
    "3x384": _twelve(3, 384),
    "4x336": _twelve(4, 336),
    "6x276": _twelve(6, 276),
}
"""``LxW`` (layers x hidden width) -> shape.

* 4x312 and 6x768: the students of MLKD-BERT and TinyBERT (Zhang et al. 2024; Jiao et al. 2020);
* 6x384: MiniLM's, and all-MiniLM-L6's (Wang et al. 2020);
* 2x128, 4x256, 4x512, 8x512: BERT's miniatures tiny, mini, small, medium (Turc et al. 2019);
* the others: the series of :data:`WIDTH_AGAINST_DEPTH`.
"""

WIDTH_AGAINST_DEPTH: dict[int, tuple[str, ...]] = {
    768: ("3x768", "4x672", "6x552", "8x480", "12x384"),
    384: ("2x480", "3x384", "4x336", "6x276"),
}
"""Width of the teacher -> shapes from wide to deep whose encoders have the same number of parameters
within 5 %: half of a teacher of 6 layers, a quarter of one of 12. All have twelve heads, so that
width and depth alone differ; the question is that of Lu et al. 2022, the shapes are ours.
"""


def named_shape(name: str) -> Shape:
    """Look a shape up.

    Raises:
        UsageError: the name is not in the table.
    """
    if name not in SHAPES:
        raise unknown_name("shape", name, SHAPES, "--student.shape")
    return SHAPES[name]


def encoder_parameters(shape: Shape) -> int:
    """Number of parameters of the transformer layers: no embeddings, no pooler, no head.

    Per layer four matrices of the attention, two of the feed-forward part, their biases, and two
    layer norms: 4 (h^2 + h) + 2 h f + f + h + 4 h.
    """
    width, inner = shape.width, shape.feed_forward
    attention = 4 * (width * width + width)
    feed_forward = 2 * width * inner + inner + width
    norms = 2 * 2 * width
    return shape.layers * (attention + feed_forward + norms)
