"""Decodes images from any source, within limits: photographs to 8-bit RGB, label images to their values."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from factory.dataset.masks import palette
from factory.dataset.records import Image
from factory.errors import UserError

MAX_PIXELS = 100_000_000
"""Larger images are rejected when their header is read. 300 MB as RGB."""

MAX_FILE_BYTES = 2**30

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")
"""Formats of cameras and labelling tools. No other format is opened: Pillow passes EPS files to Ghostscript."""

_LABEL_FORMATS = ("PNG", "TIFF", "BMP")
"""Lossless formats."""

_DEPTHS = (255, 1023, 4095, 16383, 65535)
"""The largest values in 8, 10, 12, 14 and 16 bits."""

_TRANSPOSES = {
    2: Pictures.Transpose.FLIP_LEFT_RIGHT,
    3: Pictures.Transpose.ROTATE_180,
    4: Pictures.Transpose.FLIP_TOP_BOTTOM,
    5: Pictures.Transpose.TRANSPOSE,
    6: Pictures.Transpose.ROTATE_270,
    7: Pictures.Transpose.TRANSVERSE,
    8: Pictures.Transpose.ROTATE_90,
}
"""The operation that turns an image of each EXIF orientation upright."""

_INVERSES = {6: 8, 8: 6}
"""The orientations whose operations undo each other; every other operation undoes itself."""


@dataclass(frozen=True)
class Photograph:
    """uint8 RGB (H, W, 3). `upright` has the EXIF orientation applied, `stored` does not."""

    upright: Image
    stored: Image

    def of_size(self, height: int, width: int) -> Image | None:
        """The version that has the size of the labels, or None.

        Labelling tools show images upright, so that version is preferred. Labels that only fit the stored pixels were
        drawn on those.
        """
        matching = (image for image in (self.upright, self.stored) if image.shape[:2] == (height, width))
        return next(matching, None)


def read_photograph(path: Path) -> Photograph:
    """Read a greyscale or colour image of any bit depth. UserError if it is missing or cannot be used."""
    picture, applied = _opened(path, _FORMATS)
    try:
        decoded = Pictures.fromarray(_to_8_bit(picture, path)) if _has_more_than_8_bits(picture) else _to_rgb(picture)
        pixels = np.asarray(decoded)
        if applied != 1:
            return Photograph(pixels, np.asarray(decoded.transpose(_TRANSPOSES[_INVERSES.get(applied, applied)])))
        transpose = _TRANSPOSES.get(_orientation(picture))
        return Photograph(pixels if transpose is None else np.asarray(decoded.transpose(transpose)), pixels)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} of mode {picture.mode} cannot be converted to RGB ({error}); save it as JPEG or PNG."
        ) from error


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of a photograph, stored or upright, without decoding it. UserError if it cannot be used."""
    picture, _ = _opened(path, _FORMATS, decode=False)
    return picture.height, picture.width


def fits(path: Path, height: int, width: int) -> bool:
    """Whether a photograph has this size, stored or upright. UserError if it is missing or cannot be used.

    It is decoded only if its sides are swapped and its header contains no orientation.
    """
    size = read_size(path)
    if size != (width, height) or height == width:
        return size == (height, width)
    picture, _ = _opened(path, _FORMATS, decode=False)
    return _orientation(picture) >= 5 or read_photograph(path).of_size(height, width) is not None


def read_values(path: Path, values: int) -> NDArray[np.int64]:
    """The values (H, W) of a label image in which the values from 0 to `values - 1` have a meaning.

    Palette and greyscale images of up to 32 bits hold the values directly. Colour images are decoded by VOC's colours.
    1-bit images are accepted if at most two values have a meaning. UserError names the mode of any other image.
    """
    picture, applied = _opened(path, _LABEL_FORMATS)
    if applied != 1 or _orientation(picture) != 1:
        raise UserError(
            f"{path} has an EXIF orientation, which label images must not have; save it upright without one."
        )
    bits = _stored_bits(picture, path)
    if picture.mode == "L" and bits in (2, 4):
        raise UserError(
            f"{path} is a greyscale {picture.format} of {bits} bits, whose values decoders scale to 0 to 255, so they "
            f"are not class indices; save it as a palette PNG or with 8 bits."
        )
    if picture.mode in ("P", "L", "I", "I;16", "I;16B", "I;16L"):
        return np.asarray(picture).astype(np.int64)
    if picture.mode == "1" and values <= 2:
        return np.asarray(picture).astype(np.int64)
    if picture.mode == "RGBA" and np.asarray(picture)[..., 3].min() == 255:
        picture = picture.convert("RGB")
    if picture.mode == "RGB":
        return _by_colour(np.asarray(picture), path)
    reason = ", which cannot distinguish more than one class" if picture.mode == "1" else ""
    raise UserError(
        f"{path} is an image of mode {picture.mode}{reason}; a label image must be a palette or greyscale PNG whose "
        f"values are class indices, or RGB in VOC's colours."
    )


def _stored_bits(picture: Pictures.Image, path: Path) -> int | None:
    """The bit depth of a PNG or TIFF; None for other formats."""
    if isinstance(picture, TiffImageFile):
        return int(picture.tag_v2.get(BITSPERSAMPLE, (1,))[0])
    with path.open("rb") as stream:
        header = stream.read(25)
    return header[24] if header.startswith(b"\x89PNG") else None


def _opened(path: Path, formats: tuple[str, ...], decode: bool = True) -> tuple[Pictures.Image, int]:
    """The only frame, which is decoded after its header has been checked, and the EXIF orientation that was applied.

    Pillow turns TIFF images upright when it decodes them, and no others.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be read: it is not a regular file.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} has more than {MAX_FILE_BYTES:,} bytes, the limit for an image; make it smaller.")
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")  # Pillow only warns about its own size limit and about damaged EXIF
            picture = Pictures.open(stream, formats=formats)
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{path} has {picture.width} x {picture.height} pixels, more than the limit of {MAX_PIXELS:,}; "
                    f"make it smaller."
                )
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
                raise UserError(f"{path} contains several images; save the labelled one as a separate file.")
            tagged = _orientation(picture) if isinstance(picture, TiffImageFile) else 1
            if decode:
                picture.load()
    except UserError:
        raise
    except Pictures.DecompressionBombError as error:
        raise UserError(f"{path} has more pixels than the limit of {MAX_PIXELS:,}; make it smaller.") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} cannot be read: it is not an image in any of the formats {', '.join(formats)}; convert it to one "
            f"of them."
        ) from error
    except Exception as error:  # decoders raise arbitrary exceptions on damaged files
        raise UserError(f"{path} cannot be read ({error}); replace the file.") from error
    return picture, tagged if tagged != 1 and _orientation(picture) == 1 else 1


def _orientation(picture: Pictures.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or invalid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # like image viewers, ignore EXIF that cannot be parsed
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _has_more_than_8_bits(picture: Pictures.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;")


def _to_rgb(picture: Pictures.Image) -> Pictures.Image:
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _to_8_bit(picture: Pictures.Image, path: Path) -> Image:
    """A greyscale image of more than 8 bits as RGB, scaled by the smallest bit depth that fits its brightest pixel.

    A 12-bit camera stores 0 to 4095 in 16 bits without recording the depth; read as 16 bits, the image would be nearly
    black. Floats that do not exceed 1 are fractions of white.
    """
    values = np.asarray(picture).astype(np.float32)
    darkest, brightest = float(values.min()), float(values.max())
    depths = (1, *_DEPTHS) if picture.mode == "F" else _DEPTHS
    white = next((depth for depth in depths if brightest <= depth), None)
    if white is None or not darkest >= 0:
        raise UserError(
            f"{path} of mode {picture.mode} has values from {darkest:g} to {brightest:g}; scale greyscale values to 0 "
            f"to 65535, or floats to 0 to 1."
        )
    grey = (values * (255 / white)).round().astype(np.uint8)
    return np.stack([grey] * 3, -1)


def _by_colour(rgb: Image, path: Path) -> NDArray[np.int64]:
    """Class indices from VOC's colours."""
    weights = np.array([65536, 256, 1])
    palette_codes = np.array(palette()).reshape(256, 3) @ weights
    order = np.argsort(palette_codes)
    packed = rgb.astype(np.int64) @ weights
    indices = order[np.searchsorted(palette_codes[order], packed).clip(max=255)]
    unknown = palette_codes[indices] != packed
    if unknown.any():
        colour = tuple(rgb[unknown][0].tolist())
        raise UserError(
            f"{path} is an image of mode RGB with {unknown.sum()} pixels in colours outside VOC's palette, such as "
            f"{colour}; a label image must be a palette or greyscale PNG whose values are class indices, or RGB in "
            f"VOC's colours."
        )
    values: NDArray[np.int64] = indices.astype(np.int64)
    return values
