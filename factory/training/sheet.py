"""Sheets of sample images."""

from collections.abc import Sequence

from PIL import Image


def tile(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Arrange images of the same size in a grid; rows may have different lengths."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for row_number, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet.paste(image, (column * width, row_number * height))
    return sheet
