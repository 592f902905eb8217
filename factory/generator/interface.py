"""What a generator is asked for and what it gives; no model is needed to import this."""

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
"""What a grounder may need besides the image. HALVES: features of both halves of classifier-free guidance, the channels
of the unconditional one first."""


@dataclass(frozen=True)
class Request:
    """One image to make. `seed` is 63 bits; `index` is the sample's, where images are not made but brought."""

    prompt: Prompt
    seed: int
    index: int = 0


@dataclass(frozen=True)
class Attention:
    """Where the U-Net looked for the words of each class.

    `cross` maps (height, width) of a U-Net level to float32 (groups, height, width): first the prompt's classes in
    their order, each the sum over the class's own tokens, then the start token, the other words, and the end token with
    the padding. `layers` counts the maps that each level's mean was taken over. `within` is the self-attention of the
    finest level that was kept, float32 (height * width, height * width), rows summing to 1.
    """

    cross: Mapping[tuple[int, int], NDArray[np.float32]]
    layers: Mapping[tuple[int, int], int]
    within: NDArray[np.float32] | None = None
    within_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Generated:
    """An image with what was captured on the way, as far as it was asked for.

    `features` are the U-Net's block outputs by name, (C, h, w) each. `cross_attention` are the maps of the prompt's
    classes, each the sum over the class's own tokens, by layer: (heads, classes, h, w). `class_embeddings` (classes,
    channels) is the text encoder's last state for "a photograph of a ...", averaged over the class's tokens. `latent`
    is the U-Net's conditional input at the feature step, float16 (C, h, w), and `timestep` that step's; together with
    the prompt they reproduce the features. `labels` are those of a real image: 0 is background, k the k-th class of the
    prompt, 255 ignored. `measured` holds figures about the inversion of a real image.
    """

    image: Image
    attention: Attention | None = None
    features: Mapping[str, "Tensor"] = field(default_factory=dict)
    cross_attention: Mapping[str, "Tensor"] = field(default_factory=dict)
    class_embeddings: "Tensor | None" = None
    latent: NDArray[np.float16] | None = None
    timestep: int = 0
    labels: NDArray[np.uint8] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Captured:
    """The same of a whole micro-batch: what the modules learn from.

    `features` are (B, C, h, w), `cross_attention` (B, heads, K, h, w) and `class_embeddings` (B, K, channels),
    where K is the most classes that a prompt of the batch has: the rest is 0.
    """

    features: Mapping[str, "Tensor"]
    cross_attention: Mapping[str, "Tensor"]
    class_embeddings: "Tensor | None"


class Generator(Protocol):
    """Makes images. The same requests in one call give the same bytes; images of a call do not touch each other."""

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """One result per request, in order; all of one call are one micro-batch."""
        ...
