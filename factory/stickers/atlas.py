"""The sprites of the rendered scenes: drawings of the COCO classes in several art styles, packed in one image."""

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
    """A drawing: an RGBA image of a square cell, either the default one of its class and style or a variant."""

    drawing: Image.Image
    is_variant: bool

    @functools.cached_property
    def mips(self) -> tuple[Image.Image, ...]:
        """The drawing in decreasing sizes, starting with the full size. Computed on first use: most scenes need few."""
        cell = self.drawing.width
        sides = (cell * 3 // 4, cell // 2, cell // 4)
        return self.drawing, *(self.drawing.resize((side, side), Image.Resampling.LANCZOS) for side in sides)

    def for_side(self, side: float) -> Image.Image:
        """The smallest mip of at least `side` pixels, or the largest one."""
        large_enough = [mip for mip in self.mips if mip.width >= side]
        return large_enough[-1] if large_enough else self.mips[0]


@functools.cache
def load_atlas() -> Mapping[tuple[str, str], tuple[Sprite, ...]]:
    """All shipped sprites by (class name, style), decoded once per process.

    Variants are other drawings of a class. Some styles have variants of a class but no default drawing.
    """
    data = files("factory.stickers") / "data"
    index = json.loads((data / "atlas.json").read_text())
    with (data / "atlas.png").open("rb") as stream:
        atlas = Image.open(stream).convert("RGBA")
    cell, columns = index["cell"], index["columns"]
    sprites: dict[tuple[str, str], tuple[Sprite, ...]] = {}
    for position, entry in enumerate(index["sprites"]):
        left, top = position % columns * cell, position // columns * cell
        sprite = Sprite(atlas.crop((left, top, left + cell, top + cell)), entry.get("variant", False))
        key = entry["class"], entry["style"]
        sprites[key] = (*sprites.get(key, ()), sprite)
    return sprites


def sprites_of(class_name: str, styles: tuple[str, ...] = TRAIN_STYLES, variants: bool = False) -> list[Sprite]:
    """The sprites of one class in the given styles, with or without variants; styles without the class are skipped."""
    atlas = load_atlas()
    drawings = [sprite for style in styles for sprite in atlas.get((class_name, style), ())]
    return [sprite for sprite in drawings if variants or not sprite.is_variant]
