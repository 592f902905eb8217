"""Requests to a generator and its results. Importing this module loads no model library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.config.prompts import Prompt
from factory.dataset.records import Image

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = "attention"
FEATURES = "features"
CROSS_ATTENTION = "cross_attention"
CLASS_EMBEDDINGS = "class_embeddings"
LATENT = "latent"
HALVES = "halves"
"""The tensors that a grounder may need, besides the image; they are captured on request.

ATTENTION is summed over layers, and CROSS_ATTENTION is kept by layer; see `Generated`. HALVES requests the features of
both halves of classifier-free guidance, with the channels of the unconditional half first (U-Nets only).
"""


@dataclass(frozen=True)
class Request:
    """An image to generate. `seed` has 63 bits; `index` is that of the sample, by which inversion finds the image."""

    prompt: Prompt
    seed: int
    index: int = 0


@dataclass(frozen=True)
class Attention:
    """The attention of the denoiser to the tokens of each class.

    `cross` maps (height, width) of a level to float32 (groups, height, width): first the classes of the prompt in
    order, each summed over the tokens of the class, then the tokens before the prompt, its other words, and the tokens
    after it. A transformer has one level. `layers` counts the layers that were averaged at each level. `self_attention`
    is that of the finest captured level, float32 (height * width, height * width), with rows that sum to 1, and
    `self_attention_shape` that level's (height, width).
    """

    cross: Mapping[tuple[int, int], NDArray[np.float32]]
    layers: Mapping[tuple[int, int], int]
    self_attention: NDArray[np.float32] | None = None
    self_attention_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Generated:
    """A generated image with the tensors that were captured for it.

    `features` are the denoiser's block outputs by name, (C, h, w) each: float32 of a U-Net, bfloat16 of a transformer.
    `cross_attention` holds the maps of the prompt's classes by layer, (heads, classes, h, w), each summed over the
    class's own tokens. `class_embeddings` (classes, channels) are the text states that the denoiser reads for "a
    photograph of a ...", averaged over the class's tokens. `latent` is the finished latent, float16 (C, h, w), and
    `noise_level` the noise level that it already has, 0 for a clean latent; together with the prompt, they reproduce
    the features. `labels` are those of a real image, uint8 (H, W): 0 is background, k the k-th class of the prompt, 255
    ignored. `measured` contains metrics of the inversion of a real image.
    """

    image: Image
    attention: Attention | None = None
    features: Mapping[str, "Tensor"] = field(default_factory=dict)
    cross_attention: Mapping[str, "Tensor"] = field(default_factory=dict)
    class_embeddings: "Tensor | None" = None
    latent: NDArray[np.float16] | None = None
    noise_level: float = 0.0
    labels: NDArray[np.uint8] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Captured:
    """The captured tensors of a whole micro-batch, which grounding modules read.

    `features` are (B, C, h, w), `cross_attention` (B, heads, K, h, w) and `class_embeddings` (B, K, channels),
    where K is the largest number of classes of a prompt in the batch; missing classes are 0.
    """

    features: Mapping[str, "Tensor"]
    cross_attention: Mapping[str, "Tensor"]
    class_embeddings: "Tensor | None"


class Generator(Protocol):
    """Generates images. The same call gives the same bytes, and the images of a call do not affect each other."""

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """One result per request, in order; a call processes one micro-batch."""
        ...
