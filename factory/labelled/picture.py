"""Pictures that others made: decoded within limits, photographs as 8-bit RGB, label pictures as their values."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import UnidentifiedImageError

from factory.dataset.masks import palette
from factory.dataset.records import Image
from factory.errors import UserError

MAX_PIXELS = 100_000_000
"""Pictures with more are refused by their header: 300 MB as RGB."""

MAX_FILE_BYTES = 2**30

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")
"""Formats that cameras and labelling tools write. Others are never opened: Pillow hands EPS to Ghostscript."""

_LABEL_FORMATS = ("PNG", "TIFF", "BMP")
"""Those that keep values exactly."""

_DEPTHS = (255, 1023, 4095, 16383, 65535)
"""The largest values of 8, 10, 12, 14 and 16 bits."""

_TURNS = {
    2: Pictures.Transpose.FLIP_LEFT_RIGHT,
    3: Pictures.Transpose.ROTATE_180,
    4: Pictures.Transpose.FLIP_TOP_BOTTOM,
    5: Pictures.Transpose.TRANSPOSE,
    6: Pictures.Transpose.ROTATE_270,
    7: Pictures.Transpose.TRANSVERSE,
    8: Pictures.Transpose.ROTATE_90,
}
"""What brings a picture of each EXIF orientation upright."""


@dataclass(frozen=True)
class Photograph:
    """uint8 RGB (H, W, 3): `upright` is turned as EXIF says, and `stored` is not; the two are one without EXIF."""

    upright: Image
    stored: Image

    def of_size(self, height: int, width: int) -> Image | None:
        """The picture in the size of its labels, None where it has another.

        Labelling tools show a picture upright, so labels of that size belong to it; labels that fit the stored pixels
        alone were drawn on those.
        """
        fitting = (image for image in (self.upright, self.stored) if image.shape[:2] == (height, width))
        return next(fitting, None)


def read_photograph(path: Path) -> Photograph:
    """A photograph of any depth, grey or colour. UserError where there is none or it cannot be used."""
    picture = _decoded(path, _FORMATS)
    try:
        stored = Pictures.fromarray(_to_8_bit(picture, path)) if _deep(picture) else _to_rgb(picture)
        turn = _TURNS.get(_orientation(picture))
        plain = np.asarray(stored)
        return Photograph(plain if turn is None else np.asarray(stored.transpose(turn)), plain)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} of mode {picture.mode} cannot be made RGB ({error}); save it as JPEG or PNG."
        ) from error


def read_values(path: Path, values: int) -> NDArray[np.int64]:
    """The values (H, W) of a label picture, where `values` of them have a meaning, counted from 0.

    Palette and grey pictures hold them as they are, up to 32 bits; a colour picture is read by VOC's colours, and a
    1-bit picture where no more than two values have a meaning. UserError names the mode of any other.
    """
    picture = _decoded(path, _LABEL_FORMATS)
    if _orientation(picture) != 1:
        raise UserError(f"{path} has an EXIF orientation; a label picture is stored as it is seen: save it without.")
    if picture.mode in ("P", "L", "I", "I;16", "I;16B", "I;16L"):
        return np.asarray(picture).astype(np.int64)
    if picture.mode == "1" and values <= 2:
        return np.asarray(picture).astype(np.int64)
    if picture.mode == "RGBA" and np.asarray(picture)[..., 3].min() == 255:
        picture = picture.convert("RGB")
    if picture.mode == "RGB":
        return _by_colour(np.asarray(picture), path)
    told = "; 1 bit tells object from background and not which of the classes it is" if picture.mode == "1" else ""
    raise UserError(
        f"{path} is a picture of mode {picture.mode}{told}; a label picture is a palette or grey PNG whose values are "
        f"class indices, or RGB in VOC's colours."
    )


def _decoded(path: Path, formats: tuple[str, ...]) -> Pictures.Image:
    """The first and only frame, decoded after its header was looked at."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be read: it is no file.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} has more than {MAX_FILE_BYTES:,} bytes, the most that is read of a picture.")
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")  # Pillow's own limit only warns; damaged EXIF does too
            picture = Pictures.open(stream, formats=formats)
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{path} has {picture.width} x {picture.height} pixels, more than the {MAX_PIXELS:,} that are "
                    f"read; make it smaller."
                )
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
                raise UserError(f"{path} holds several pictures; save the one that is labelled in a file of its own.")
            picture.load()
    except UserError:
        raise
    except Pictures.DecompressionBombError as error:
        raise UserError(f"{path} has more than the {MAX_PIXELS:,} pixels that are read; make it smaller.") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} cannot be read: it is no picture of the formats {', '.join(formats)}; save it as one of them."
        ) from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UserError(f"{path} cannot be read ({error}); every image of the folder needs its picture.") from error
    return picture


def _orientation(picture: Pictures.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or none that is valid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = picture.getexif().get(0x0112, 1)
    except Exception:  # EXIF that cannot be parsed says nothing, as for every viewer
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _deep(picture: Pictures.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;")


def _to_rgb(picture: Pictures.Image) -> Pictures.Image:
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _to_8_bit(picture: Pictures.Image, path: Path) -> Image:
    """Grey of more than 8 bits, scaled by the smallest usual depth that holds its brightest pixel, as RGB.

    A 12-bit camera stores 0 to 4095 in 16 bits without saying so; read as 16 bits it would be nearly black. Floats that
    reach no more than 1 are shares of white.
    """
    values = np.asarray(picture).astype(np.float32)
    least, most = float(values.min()), float(values.max())
    depths = (1, *_DEPTHS) if picture.mode == "F" else _DEPTHS
    white = next((depth for depth in depths if most <= depth), None)
    if white is None or not least >= 0:
        raise UserError(
            f"{path} of mode {picture.mode} has values from {least:g} to {most:g}; grey values are 0 to 65535, or "
            f"floats from 0 to 1: scale it."
        )
    grey = (values * (255 / white)).round().astype(np.uint8)
    return np.stack([grey] * 3, -1)


def _by_colour(rgb: Image, path: Path) -> NDArray[np.int64]:
    """The indices of VOC's colours."""
    weights = np.array([65536, 256, 1])
    known = np.array(palette()).reshape(256, 3) @ weights
    order = np.argsort(known)
    wanted = rgb.astype(np.int64) @ weights
    place = np.searchsorted(known[order], wanted).clip(max=255)
    found = order[place]
    strange = known[found] != wanted
    if strange.any():
        colour = tuple(rgb[strange][0].tolist())
        raise UserError(
            f"{path} is a picture of mode RGB with {strange.sum()} pixels in colours that VOC has not, as {colour}; "
            f"a label picture is a palette or grey PNG whose values are class indices, or RGB in VOC's colours."
        )
    values: NDArray[np.int64] = found.astype(np.int64)
    return values
