"""What a generator is asked for and what it gives; no model is needed to import this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.prompts import Prompt
from factory.records import Image

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = "attention"
FEATURES = "features"
"""What a grounder may need besides the image."""


@dataclass(frozen=True)
class Request:
    """One image to make. `seed` is 63 bits."""

    prompt: Prompt
    seed: int


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
    """An image with what was captured on the way. `features` are the U-Net's block outputs by name, (C, h, w) each."""

    image: Image
    attention: Attention | None = None
    features: Mapping[str, "Tensor"] = field(default_factory=dict)


class Generator(Protocol):
    """Makes images. The same requests in one call give the same bytes; images of a call do not touch each other."""

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """One result per request, in order; all of one call are one micro-batch."""
        ...
