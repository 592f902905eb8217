"""Images of labelled folders: orientation, bit depth, palettes and limits."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from factory.config.class_option import parse_classes
from factory.dataset.masks import encode_label_png
from factory.errors import UserError
from factory.labelled.picture import fits, read_photograph, read_values
from factory.labelled.voc import VocFolder
from tests.support.voc_folder import LABELS, PHOTO, labels_match, loaded, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    # By EXIF orientation: what a camera stores of an upright image.
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_exif_orientation_is_applied(orientation: int, square: bool, suffix: str, folder: Path) -> None:
    upright, labels = (PHOTO[:, :40], LABELS[:, :40]) if square else (PHOTO, LABELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    (folder / "JPEGImages/a.jpg").unlink()
    stored.save(folder / f"JPEGImages/a.{suffix}", exif=exif, quality=95)
    (folder / "SegmentationClass/a.png").write_bytes(encode_label_png(np.ascontiguousarray(labels)))
    assert labels_match(loaded(folder))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_labels_that_only_fit_the_stored_pixels_belong_to_them(orientation: int, suffix: str, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (folder / "JPEGImages/a.jpg").unlink()
    Image.fromarray(PHOTO).save(folder / f"JPEGImages/a.{suffix}", exif=exif, quality=95)
    assert labels_match(loaded(folder))


def test_an_orientation_that_follows_the_pixels_of_a_png_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    (tmp_path / "a.png").write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert fits(tmp_path / "a.png", 40, 60)
    assert fits(tmp_path / "a.png", 60, 40)
    assert not fits(tmp_path / "a.png", 60, 41)


def test_an_invalid_orientation_is_ignored(folder: Path) -> None:
    data = (folder / "JPEGImages/a.jpg").read_bytes()
    for exif in (
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    ):
        block = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (folder / "JPEGImages/a.jpg").write_bytes(data[:2] + block + data[2:])
        assert labels_match(loaded(folder))


@pytest.mark.parametrize(
    ("dtype", "white"), [("uint16", 255), ("uint16", 1023), ("uint16", 4095), ("uint16", 65535), ("int32", 16383)]
)
def test_greyscale_of_more_than_8_bits_is_scaled_by_its_depth(dtype: str, white: int, tmp_path: Path) -> None:
    values = np.linspace(0, white, 64).round().astype(dtype).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "g.tif")
    image = read_photograph(tmp_path / "g.tif").upright
    assert image.shape == (8, 8, 3)
    assert np.abs(image[..., 0].ravel() - np.linspace(0, 255, 64)).max() <= 1


def test_colours_of_16_bits_keep_their_upper_byte(tmp_path: Path) -> None:
    """The decoders of Pillow do; docs/real.md says so."""
    values = np.linspace(0, 65535, 96).astype(">u2").reshape(4, 8, 3)
    (tmp_path / "c.png").write_bytes(png_of(8, 4, 16, b"".join(b"\0" + row.tobytes() for row in values)))
    assert np.array_equal(read_photograph(tmp_path / "c.png").upright, values >> 8)
    assert np.abs((values >> 8) - values / 257).max() < 1


@pytest.mark.parametrize(
    ("white", "message"),
    [
        (1.0, None),
        (255.0, None),
        (4095.0, None),
        (float("nan"), "values from nan"),
        (1e9, "to 1e.09"),
        (-3.0, "values from -3"),
    ],
)
def test_floats_are_scaled_or_refused(white: float, message: str | None, tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.float32)
    values[0, 0], values[0, 1] = white, white / 2
    Image.fromarray(values).save(tmp_path / "f.tif")
    if message is None:
        image = read_photograph(tmp_path / "f.tif").upright
        assert (image[0, 0, 0], image[0, 1, 0], image[7, 7, 0]) == (255, 128, 0)
        return
    with pytest.raises(UserError, match=message):
        read_photograph(tmp_path / "f.tif")


def test_palette_images_with_transparency_and_images_with_alpha_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(PHOTO).quantize(4)
    picture.save(tmp_path / "p.png", transparency=0)
    Image.fromarray(PHOTO).convert("LA").save(tmp_path / "la.png")
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "c.jpg")
    for name in ("p.png", "la.png", "c.jpg"):
        assert read_photograph(tmp_path / name).upright.shape == (40, 60, 3)


def png_of(width: int, height: int, depth: int = 8, pixels: bytes = bytes(100)) -> bytes:
    """A colour PNG; its header claims the given size, for which there can be too few bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_values_below_0_are_ignored(folder: Path) -> None:
    values = LABELS.astype(np.int32)
    values[0, :9] = -240
    (folder / "SegmentationClass/a.png").unlink()
    Image.fromarray(values).save(folder / "SegmentationClass/a.tif")
    assert (loaded(folder).labels[0, :9] == 255).all()


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    for read in (lambda path: read_photograph(path), lambda path: read_values(path, 21)):
        with pytest.raises(UserError, match=r"more (pixels )?than the limit of 100,000,000"):
            read(tmp_path / "bomb.png")


def test_a_damaged_file_and_other_formats_are_refused(folder: Path) -> None:
    path = folder / "JPEGImages/a.jpg"
    whole = path.read_bytes()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n(%pipe%id) (r) file\n"
    cut = png_of(60, 40)
    for data in (b"", b"GIF89a", eps, whole[: len(whole) // 2], cut, os.urandom(2000)):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a.jpg cannot be read"):
            read_photograph(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="it is not a regular file"):
        read_photograph(path)


def test_several_images_in_one_file_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="contains several images"):
        read_photograph(tmp_path / "pages.tif")


def test_a_vocabulary_too_large_for_uint8_labels_is_refused(folder: Path) -> None:
    names = ",".join(f"class {chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(255))
    with pytest.raises(UserError, match="labels can represent 254 classes"):
        VocFolder(folder, "val", parse_classes(names))
