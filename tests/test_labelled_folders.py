"""PASCAL VOC folders as written by people and tools: read correctly, or refused with a clear error."""

import codecs
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from factory.config.vocabulary import from_names, parse_classes, voc
from factory.dataset.masks import encode_label_png, palette
from factory.errors import UserError
from factory.labelled.folders import open_labelled
from factory.labelled.interface import LabelledImage
from factory.labelled.picture import read_photograph, read_values
from factory.labelled.voc import VocFolder

DOG, CAT = 12, 8
LABELS = np.zeros((40, 60), np.uint8)
LABELS[5:20, 5:25], LABELS[20:30, 30:50] = DOG, CAT
PHOTO = np.zeros((40, 60, 3), np.uint8)
PHOTO[5:20, 5:25], PHOTO[20:30, 30:50] = (250, 0, 0), (0, 250, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image with a dog and a cat."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    Image.fromarray(PHOTO).save(tmp_path / "JPEGImages/a.jpg", quality=95)
    (tmp_path / "SegmentationClass/a.png").write_bytes(encode_label_png(LABELS))
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    return tmp_path


def loaded(folder: Path) -> LabelledImage:
    labelled = open_labelled(folder, "val", None, voc())
    (key,) = labelled.keys
    return labelled.load(key)


def labels_match(sample: LabelledImage) -> bool:
    """Whether red pixels are labelled as dog and green ones as cat."""
    red, green = sample.image[..., 0] > 128, sample.image[..., 1] > 128
    return bool((red == (sample.labels == DOG)).mean() > 0.97 and (green == (sample.labels == CAT)).mean() > 0.97)


LISTS: dict[str, bytes] = {
    "bom": codecs.BOM_UTF8 + b"a\r\n",
    "utf-16": "a\r\n".encode("utf-16"),
    "no-end": b"a",
    "blank-ends": b"\n a \t\n\n\n",
    "file": b"a.jpg\n",
    "path": b"JPEGImages/a.jpg\n",
    "pairs": b"/JPEGImages/a.jpg /SegmentationClass/a.png\n",
    "pairs-tab": b"JPEGImages/a.jpg\tSegmentationClass/a.png\r\n",
    "pairs-windows": rb"JPEGImages\a.jpg SegmentationClass\a.png",
}


@pytest.mark.parametrize("name", LISTS)
def test_every_format_of_image_lists_is_read(name: str, folder: Path) -> None:
    (folder / "ImageSets/Segmentation/val.txt").write_bytes(LISTS[name])
    assert open_labelled(folder, "val", None, voc()).keys == ["a"]
    assert labels_match(loaded(folder))


def test_an_image_list_may_contain_absolute_paths_spaces_and_dots(folder: Path) -> None:
    for name in ("my dog.v1", "sub/b"):
        for part, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (folder / part / "sub").mkdir(exist_ok=True)
            (folder / part / f"{name}.{suffix}").write_bytes((folder / part / f"a.{suffix}").read_bytes())
    text = f"my dog.v1\nmy dog.v1.jpg\n{folder}/JPEGImages/a.jpg\nsub/b\nJPEGImages/sub/b.jpg\n"
    (folder / "ImageSets/Segmentation/val.txt").write_text(text)
    labelled = open_labelled(folder, "val", None, voc())
    assert labelled.keys == ["my dog.v1", "my dog.v1", "a", "sub/b", "sub/b"]
    assert all(labels_match(labelled.load(key)) for key in labelled.keys)
    assert labelled.notes == (f"The image set val of {folder} lists 2 images more than once.",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../a", "does not name an image of the folder"),
        ("/etc/passwd", "does not name an image of the folder"),
        ("/JPEGImages/../../a.jpg /SegmentationClass/a.png", "contains more than one name"),
        ("/JPEGImages/a.jpg /SegmentationClassAug/a.png", "contains more than one name"),
        ("/JPEGImages/a.jpg /SegmentationClass/b.png", "contains more than one name"),
        ("a -1", "contains more than one name"),
        ("a b c", "contains more than one name"),
        ("C:\\data\\a.jpg", "does not name an image of the folder"),
        ("SegmentationClass/a.png", "does not name an image of the folder"),
        ("b", r"JPEGImages/b.jpg does not exist"),
        ("a\x00", r"line 2 contains the control character U\+0000"),
    ],
)
def test_an_invalid_image_list_is_refused_by_line(line: str, message: str, folder: Path) -> None:
    (folder / "ImageSets/Segmentation/val.txt").write_text(f"a\n{line}\n")
    with pytest.raises(UserError, match=message) as error:
        open_labelled(folder, "val", None, voc())
    assert "line 2" in str(error.value) or line == "b"


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a.PNG", "a.tif", "a.webp", "a.bmp"])
def test_images_may_have_any_common_suffix(name: str, folder: Path) -> None:
    (folder / "JPEGImages/a.jpg").unlink()
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(name[2:].lower(), name[2:].upper())
    Image.fromarray(PHOTO).save(folder / "JPEGImages" / name, kind)
    assert labels_match(loaded(folder))


def test_two_images_of_the_same_key_are_refused(folder: Path) -> None:
    Image.fromarray(PHOTO).save(folder / "JPEGImages/a.png")
    with pytest.raises(UserError, match=r"contains both a.jpg and a.png; remove one of them"):
        loaded(folder)


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
def test_exif_orientation_is_applied(orientation: int, square: bool, folder: Path) -> None:
    upright, labels = (PHOTO[:, :40], LABELS[:, :40]) if square else (PHOTO, LABELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(folder / "JPEGImages/a.jpg", exif=exif, quality=95)
    (folder / "SegmentationClass/a.png").write_bytes(encode_label_png(np.ascontiguousarray(labels)))
    assert labels_match(loaded(folder))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_that_only_fit_the_stored_pixels_belong_to_them(orientation: int, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(folder / "JPEGImages/a.jpg", exif=exif, quality=95)
    assert labels_match(loaded(folder))


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


def as_rgb(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array(palette(), np.uint8).reshape(256, 3)[labels]


@pytest.mark.parametrize("kind", ["L", "P", "RGB", "RGBA", "I;16", "I", "tif", "bmp"])
def test_labels_are_read_from_every_lossless_mode(kind: str, folder: Path) -> None:
    with_edge = LABELS.copy()
    with_edge[5, 5:25] = 255
    picture = {
        "RGB": lambda: Image.fromarray(as_rgb(with_edge)),
        "RGBA": lambda: Image.fromarray(as_rgb(with_edge)).convert("RGBA"),
        "I;16": lambda: Image.fromarray(with_edge.astype(np.uint16)),
        "I": lambda: Image.fromarray(with_edge.astype(np.int32)),
    }.get(kind, lambda: Image.fromarray(with_edge))()
    if kind == "P":
        picture = picture.convert("P")
    (folder / "SegmentationClass/a.png").unlink()
    picture.save(folder / f"SegmentationClass/a.{kind if kind in ('tif', 'bmp') else 'tif' if kind == 'I' else 'png'}")
    assert np.array_equal(loaded(folder).labels, with_edge)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(LABELS > 0), "is an image of mode 1, which cannot distinguish more than one class"),
        (
            Image.fromarray(LABELS).convert("LA"),
            "is an image of mode LA; a label image must be a palette or grey",
        ),
        (Image.fromarray(PHOTO), r"mode RGB with 500 pixels in colours outside VOC's palette, such as \(250, 0, 0\)"),
        (Image.fromarray(np.dstack([as_rgb(LABELS), LABELS])), "is an image of mode RGBA"),
    ],
)
def test_a_label_image_of_another_mode_is_refused(picture: Image.Image, message: str, folder: Path) -> None:
    picture.save(folder / "SegmentationClass/a.png")
    with pytest.raises(UserError, match=message):
        loaded(folder)


def test_a_1_bit_label_image_is_read_for_one_class(folder: Path) -> None:
    (folder / "labels.txt").write_text("background\ndog\n")
    Image.fromarray(LABELS == DOG).save(folder / "SegmentationClass/a.png")
    labelled = open_labelled(folder, "val", None, from_names(["dog"]))
    assert np.array_equal(labelled.load("a").labels, LABELS == DOG)


def test_a_lossy_or_rotated_label_image_is_refused(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(LABELS).save(folder / "SegmentationClass/a.png", exif=exif)
    with pytest.raises(UserError, match="has an EXIF orientation"):
        loaded(folder)
    (folder / "SegmentationClass/a.png").unlink()
    Image.fromarray(LABELS).save(folder / "SegmentationClass/a.jpg")
    with pytest.raises(UserError, match="is in a lossy format"):
        loaded(folder)


def test_notes_count_values_without_a_class(folder: Path) -> None:
    unknown = LABELS.astype(np.uint16)
    unknown[0, :7], unknown[1, :3] = 21, 40_000
    Image.fromarray(unknown).save(folder / "SegmentationClass/a.png")
    labelled = open_labelled(folder, "val", None, voc())
    (note,) = labelled.notes
    assert "values 21 (7 pixels, 1 images), 40000 (3 pixels, 1 images) are not classes" in note
    assert (labelled.load("a").labels == 255).sum() == 10


def test_a_folder_without_labelled_classes_is_refused(folder: Path) -> None:
    Image.fromarray(np.where(LABELS > 0, 255, 0).astype(np.uint8)).save(folder / "SegmentationClass/a.png")
    with pytest.raises(UserError, match=r"shows a class: its values are 0 \(1900 pixels\), 255 \(500 pixels\)"):
        open_labelled(folder, "val", None, voc())
    open_labelled(folder, "val", None, voc(), checked=False)


@pytest.mark.parametrize(
    "text",
    [
        "background\ncat\ndog\n\n \n",
        "\ufeffBackground\r\n Cat \r\nDOG\r\n",
        "__ignore__\n_background_\ncat\ndog\n",
    ],
)
def test_class_lists_of_common_tools_are_read(text: str, folder: Path) -> None:
    (folder / "labels.txt").write_bytes(text.encode())
    small = np.where(LABELS == DOG, 2, np.where(LABELS == CAT, 1, 0)).astype(np.uint8)
    Image.fromarray(small).save(folder / "SegmentationClass/a.png")
    assert np.array_equal(loaded(folder).labels, LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\n", "begins with 'cat' instead of background"),
        ("", "begins with '' instead of background"),
        ("background\ncat\n\ndog\n", "line 3 of .* is blank"),
        ("background\ncat\nunicorn\n", "has the class 'unicorn', which is not in the vocabulary voc"),
    ],
)
def test_an_ambiguous_class_list_is_refused(text: str, message: str, folder: Path) -> None:
    (folder / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        VocFolder(folder, "val", voc())


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims the given size, with too few bytes of pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


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
