"""A picture of a set: images beside themselves with their masks laid over, cell by cell."""

import io
import json
from collections.abc import Iterator
from itertools import islice

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw

from factory.errors import UserError
from factory.masks import decode_rle, palette
from factory.receipts import committed, tar_name
from factory.shards.encode import EncodedSample
from factory.shards.tar import unpack
from factory.store import Store

CELL = 160
_CAPTION = 14
_OPACITY = 0.55


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def contact_sheet(store: Store, count: int, suffix: str = ".png", columns: int = 4) -> bytes:
    """A picture file of the first samples of a set, in the format of a suffix of FORMATS.

    UserError for another suffix, and where there is no sample.
    """
    if suffix.lower() not in FORMATS:
        raise UserError(f"a sheet is written as {', '.join(FORMATS)}, not as {suffix!r}.")
    if count < 1:
        raise UserError(f"a sheet shows at least 1 sample, got {count}.")
    cells = [_cell(sample) for sample in islice(_samples(store), count)]
    if not cells:
        raise UserError(f"{store.address} holds no finished shard yet; make one with `factory generate`.")
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    sheet = Pictures.new("RGB", (min(columns, len(cells)) * width, rows * height), "white")
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * width, place // columns * height))
    stream = io.BytesIO()
    sheet.save(stream, FORMATS[suffix.lower()])
    return stream.getvalue()


def _samples(store: Store) -> Iterator[EncodedSample]:
    for number in sorted(committed(store)):
        data = store.get(tar_name(number))
        if data is not None:
            yield from unpack(data)


def _cell(sample: EncodedSample) -> Pictures.Image:
    """The image, the image under its masks, and the classes in words."""
    row = json.loads(sample.members["json"])
    image = Pictures.open(io.BytesIO(sample.members["jpg"])).convert("RGB")
    pixels = np.asarray(image, np.float32).copy()
    colours = np.array(palette(), np.float32).reshape(256, 3)
    for annotation in row["annotations"]:
        mask = decode_rle(annotation["segmentation"])
        pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * colours[annotation["category_id"]]
    cell = Pictures.new("RGB", (2 * CELL + 4, CELL + _CAPTION + 4), "white")
    for place, picture in enumerate((image, Pictures.fromarray(pixels.astype(np.uint8)))):
        cell.paste(picture.resize((CELL, CELL), Pictures.Resampling.LANCZOS), (place * CELL, 0))
    ImageDraw.Draw(cell).text((3, CELL), " + ".join(row["classes"]), fill="black")
    return cell
