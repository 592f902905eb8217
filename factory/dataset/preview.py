"""A preview of a dataset as an image: each cell shows a sample with and without its masks."""

import io
from collections.abc import Iterator
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw

from factory.dataset.continuation import without_samples
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_rle, palette
from factory.dataset.receipts import committed_shards, tar_name
from factory.dataset.shards import annotation_of, read_shard, readable
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.errors import UserError
from factory.files.decode import decode_jpeg
from factory.files.paths import IMAGE_FORMATS

CELL = 160
_CAPTION = 14
_COLUMNS = 4
_WIDTH, _HEIGHT = 2 * CELL + 4, CELL + _CAPTION + 4
_OPACITY = 0.55
_LONGEST_SIDE = {"PNG": 65_500, "JPEG": 65_500, "WEBP": 16_383}
"""Maximum height in pixels of an image in each format. That of PNG is not its own: it limits the memory to 600 MB."""


def preview_image(store: Store, count: int, suffix: str = ".png") -> bytes:
    """Draw the first samples of a dataset as an image file in the format of `suffix`, one of IMAGE_FORMATS.

    Raises UserError for more samples than the format has room for, and if there is no dataset or no sample in it.
    """
    max_samples = _LONGEST_SIDE[IMAGE_FORMATS[suffix.lower()]] // _HEIGHT * _COLUMNS
    cells = list(islice(_cells(store), min(count, max_samples + 1)))
    if not cells:
        recipe_of(store)  # raises if there is no dataset at all
        raise without_samples(store, has_shards=bool(committed_shards(store)))
    if len(cells) > max_samples:
        raise UserError(f"a preview as {suffix} has room for {max_samples} samples, got {count}; give a smaller --n.")
    rows = -(-len(cells) // _COLUMNS)
    preview = Image.new("RGB", (min(_COLUMNS, len(cells)) * _WIDTH, rows * _HEIGHT), "white")
    for index, cell in enumerate(cells):
        preview.paste(cell, (index % _COLUMNS * _WIDTH, index // _COLUMNS * _HEIGHT))
    stream = io.BytesIO()
    preview.save(stream, IMAGE_FORMATS[suffix.lower()])
    return stream.getvalue()


def _cells(store: Store) -> Iterator[Image.Image]:
    for number in sorted(committed_shards(store)):
        name = tar_name(number)
        for sample in read_shard(store, name):
            with readable(store, name):
                yield _cell(sample)


def _cell(sample: EncodedSample) -> Image.Image:
    """The image, the image overlaid with its masks, and a caption; raises ValueError if the sample is unreadable."""
    record = annotation_of(sample)
    image = decode_jpeg(sample.members["jpg"])
    if image.shape[:2] != (record["image"]["height"], record["image"]["width"]):
        raise ValueError(
            f"the size of sample {sample.key}, {image.shape[1]} x {image.shape[0]}, does not match its annotation"
        )
    pixels = image.astype(np.float32)
    colours = np.array(palette(), np.float32).reshape(256, 3)
    for annotation in record["annotations"]:
        mask = decode_rle(annotation["segmentation"])
        pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * colours[annotation["category_id"]]
    cell = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    scale = CELL / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    for index, half in enumerate(map(Image.fromarray, (image, pixels.astype(np.uint8)))):
        corner = (index * CELL + (CELL - width) // 2, (CELL - height) // 2)
        cell.paste(half.resize((width, height), Image.Resampling.LANCZOS), corner)
    ImageDraw.Draw(cell).text((3, CELL), " + ".join(record["classes"]), fill="black")
    return cell
