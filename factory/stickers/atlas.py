"""The sprites of the sticker world: one drawing per COCO class and art style, packed in one picture."""

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
"""The first three draw every class, the others what their sets have."""
DRAWN_STYLES = ("noto",)
"""What the text-to-image model learns to draw; the autoencoder and the detector learn all of TRAIN_STYLES."""
STYLES = (*TRAIN_STYLES, HELD_OUT_STYLE)


@dataclass(frozen=True)
class Sprite:
    """One drawing: `mips` are RGBA pictures of the same square cell, from the full cell size down by halves."""

    class_name: str
    style: str
    mips: tuple[Image.Image, ...]

    def for_side(self, side: float) -> Image.Image:
        """The smallest mip whose cell is at least `side` pixels, or the largest that there is."""
        fitting = [mip for mip in self.mips if mip.width >= side]
        return fitting[-1] if fitting else self.mips[0]


@functools.cache
def load_atlas() -> Mapping[tuple[str, str], Sprite]:
    """Every shipped sprite by (class name, style); decoded once per process."""
    data = files("factory.stickers") / "data"
    statement = json.loads((data / "atlas.json").read_text())
    with (data / "atlas.png").open("rb") as stream:
        atlas = Image.open(stream).convert("RGBA")
    cell, columns = statement["cell"], statement["columns"]
    sprites = {}
    for position, row in enumerate(statement["sprites"]):
        left, top = position % columns * cell, position // columns * cell
        full = atlas.crop((left, top, left + cell, top + cell))
        mips: tuple[Image.Image, ...] = (full, full.resize((cell * 3 // 4,) * 2, Image.Resampling.LANCZOS))
        mips += tuple(full.resize((cell // k,) * 2, Image.Resampling.LANCZOS) for k in (2, 4))
        sprites[row["class"], row["style"]] = Sprite(row["class"], row["style"], mips)
    return sprites


def sprites_of(class_name: str, styles: tuple[str, ...] = TRAIN_STYLES) -> list[Sprite]:
    """The sprites of one class in the given styles; a set that does not draw the class is passed over."""
    atlas = load_atlas()
    return [atlas[class_name, style] for style in styles if (class_name, style) in atlas]
