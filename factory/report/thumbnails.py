"""Thumbnails with the outlines of the masks, small enough for a page."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as Pictures
from scipy import ndimage

from factory.dataset.masks import Mask, decode_rle
from factory.dataset.records import Image
from factory.dataset.rejected_images import MAX_SIDE, RejectedImage, resized_mask, thumbnail_size
from factory.files.decode import decode_jpeg
from factory.report.shard_measures import Example

_COLOURS = ((255, 176, 0), (86, 180, 233), (0, 200, 140), (230, 120, 200))
"""Outline colours of an image's objects, in turn. People with colour blindness can distinguish them, and they are
visible on dark and light images."""
_FILL = 0.22
ENCODINGS = ((MAX_SIDE, 80), (112, 70), (96, 60), (72, 50), (48, 40))
"""(longer side in pixels, WebP quality), from the best to the smallest."""


def example_thumbnail(example: Example) -> Image:
    """The thumbnail of a sample, uint8 RGB. Raises ValueError if the image or a mask is damaged."""
    picture = Pictures.fromarray(decode_jpeg(example.jpeg))
    size = thumbnail_size(*picture.size)
    masks = [resized_mask(decode_rle(found["segmentation"]), size) for found in example.record["annotations"]]
    return outlined(np.asarray(picture.resize(size, Pictures.Resampling.BOX)), masks)


def rejected_thumbnail(rejected: RejectedImage) -> Image:
    """The thumbnail of a rejected image with its masks, uint8 RGB."""
    return outlined(rejected.image, [mask for _, _, mask in rejected.masks])


def outlined(image: Image, masks: Sequence[Mask]) -> Image:
    """Tint the masks and draw their outlines."""
    pixels = image.astype(np.float32)
    for number, mask in enumerate(masks):
        colour = np.array(_COLOURS[number % len(_COLOURS)], np.float32)
        pixels[mask] = (1 - _FILL) * pixels[mask] + _FILL * colour
        interior = ndimage.binary_erosion(mask, border_value=0)
        pixels[mask & ~interior] = colour
        pixels[ndimage.binary_dilation(mask) & ~mask] *= 0.35  # a dark rim, for images as bright as the colour
    return pixels.round().astype(np.uint8)


def encoded(images: Mapping[str, Image], side: int, quality: int) -> dict[str, str]:
    """The images as WebP `data:` URLs, with a longer side of at most `side` pixels."""
    return {name: _data_url(image, side, quality) for name, image in images.items()}


def _data_url(image: Image, side: int, quality: int) -> str:
    picture, stream = Pictures.fromarray(image), io.BytesIO()
    size = thumbnail_size(*picture.size, side)
    picture.resize(size, Pictures.Resampling.LANCZOS).save(stream, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
