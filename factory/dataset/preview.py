"""A picture of a dataset: images beside themselves with their masks laid over, cell by cell."""

import io
from collections.abc import Iterator
from itertools import islice

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw

from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_rle, palette
from factory.dataset.receipts import committed, tar_name
from factory.dataset.storage import Store
from factory.dataset.stream import annotation_of, read_shard, readable
from factory.errors import UserError
from factory.files.decode import decode_jpeg

CELL = 160
_CAPTION = 14
_OPACITY = 0.55


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def preview_image(store: Store, count: int, suffix: str = ".png", columns: int = 4) -> bytes:
    """A picture file of the first samples of a dataset, in the format of a suffix of FORMATS.

    UserError for another suffix, and where there is no sample.
    """
    if suffix.lower() not in FORMATS:
        raise UserError(f"a sheet is written as {', '.join(FORMATS)}, not as {suffix!r}.")
    if count < 1:
        raise UserError(f"a sheet shows at least 1 sample, got {count}.")
    cells = list(islice(_cells(store), count))
    if not cells:
        raise UserError(f"{store.address} holds no sample yet; make some with `factory generate`.")
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    sheet = Pictures.new("RGB", (min(columns, len(cells)) * width, rows * height), "white")
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * width, place // columns * height))
    stream = io.BytesIO()
    sheet.save(stream, FORMATS[suffix.lower()])
    return stream.getvalue()


def _cells(store: Store) -> Iterator[Pictures.Image]:
    for number in sorted(committed(store)):
        name = tar_name(number)
        for sample in read_shard(store, name):
            with readable(store, name):
                yield _cell(sample)


def _cell(sample: EncodedSample) -> Pictures.Image:
    """The image, the image under its masks, and the classes in words; ValueError where the sample cannot be read."""
    row = annotation_of(sample)
    image = decode_jpeg(sample.members["jpg"])
    if image.shape[:2] != (row["image"]["height"], row["image"]["width"]):
        raise ValueError(f"the image of sample {sample.key} is {image.shape[1]} x {image.shape[0]}, not as annotated")
    pixels = image.astype(np.float32)
    colours = np.array(palette(), np.float32).reshape(256, 3)
    for annotation in row["annotations"]:
        mask = decode_rle(annotation["segmentation"])
        pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * colours[annotation["category_id"]]
    cell = Pictures.new("RGB", (2 * CELL + 4, CELL + _CAPTION + 4), "white")
    for place, picture in enumerate(map(Pictures.fromarray, (image, pixels.astype(np.uint8)))):
        cell.paste(picture.resize((CELL, CELL), Pictures.Resampling.LANCZOS), (place * CELL, 0))
    ImageDraw.Draw(cell).text((3, CELL), " + ".join(row["classes"]), fill="black")
    return cell
