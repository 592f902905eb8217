"""The sprites of the rendered scenes: one drawing per COCO class and art style, packed in one image."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from PIL import Image

HELD_OUT_STYLE = "openmoji"
TRAIN_STYLES = (
    "noto",
    "twemoji",
    "fluent-flat",
    "emojione",
    "noto-v1",
    "fluent",
    "emojione-v1",
    "fxemoji",
    "streamline",
)
"""Art styles of the training data. The first three contain every class, the others only some."""
DRAWN_STYLES = ("noto",)
"""Styles of the text-to-image model. The autoencoder and the detector are trained on all of TRAIN_STYLES."""
STYLES = (*TRAIN_STYLES, HELD_OUT_STYLE)


@dataclass(frozen=True)
class Sprite:
    """A drawing: `mips` are RGBA images of a square cell in decreasing sizes, starting with the full size."""

    mips: tuple[Image.Image, ...]

    def for_side(self, side: float) -> Image.Image:
        """The smallest mip of at least `side` pixels, or the largest one."""
        large_enough = [mip for mip in self.mips if mip.width >= side]
        return large_enough[-1] if large_enough else self.mips[0]


@functools.cache
def load_atlas() -> Mapping[tuple[str, str], Sprite]:
    """All shipped sprites by (class name, style), decoded once per process."""
    data = files("factory.stickers") / "data"
    index = json.loads((data / "atlas.json").read_text())
    with (data / "atlas.png").open("rb") as stream:
        atlas = Image.open(stream).convert("RGBA")
    cell, columns = index["cell"], index["columns"]
    sprites = {}
    for position, entry in enumerate(index["sprites"]):
        left, top = position % columns * cell, position // columns * cell
        full = atlas.crop((left, top, left + cell, top + cell))
        mips: tuple[Image.Image, ...] = (full, full.resize((cell * 3 // 4,) * 2, Image.Resampling.LANCZOS))
        mips += tuple(full.resize((cell // k,) * 2, Image.Resampling.LANCZOS) for k in (2, 4))
        sprites[entry["class"], entry["style"]] = Sprite(mips)
    return sprites


def sprites_of(class_name: str, styles: tuple[str, ...] = TRAIN_STYLES) -> list[Sprite]:
    """The sprites of one class in the given styles; styles without the class are skipped."""
    atlas = load_atlas()
    return [atlas[class_name, style] for style in styles if (class_name, style) in atlas]
