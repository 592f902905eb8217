"""PASCAL VOC folders as people and tools make them: read right, or refused with what is wrong."""

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
    found = open_labelled(folder, "val", None, voc())
    (key,) = found.keys
    return found.load(key)


def on_its_object(row: LabelledImage) -> bool:
    """Whether red is where the dog is labelled, and green where the cat is."""
    red, green = row.image[..., 0] > 128, row.image[..., 1] > 128
    return bool((red == (row.labels == DOG)).mean() > 0.97 and (green == (row.labels == CAT)).mean() > 0.97)


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
def test_an_image_list_of_every_form_names_the_image(name: str, folder: Path) -> None:
    (folder / "ImageSets/Segmentation/val.txt").write_bytes(LISTS[name])
    assert open_labelled(folder, "val", None, voc()).keys == ["a"]
    assert on_its_object(loaded(folder))


def test_a_list_may_name_images_by_their_whole_paths_and_with_blanks_and_dots(folder: Path) -> None:
    for name in ("my dog.v1", "sub/b"):
        for part, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (folder / part / "sub").mkdir(exist_ok=True)
            (folder / part / f"{name}.{suffix}").write_bytes((folder / part / f"a.{suffix}").read_bytes())
    text = f"my dog.v1\nmy dog.v1.jpg\n{folder}/JPEGImages/a.jpg\nsub/b\nJPEGImages/sub/b.jpg\n"
    (folder / "ImageSets/Segmentation/val.txt").write_text(text)
    found = open_labelled(folder, "val", None, voc())
    assert found.keys == ["my dog.v1", "my dog.v1", "a", "sub/b", "sub/b"]
    assert all(on_its_object(found.load(key)) for key in found.keys)
    assert found.notes == (f"The image set val of {folder} lists 2 images more than once.",)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("../a", "names no image of the folder"),
        ("/etc/passwd", "names no image of the folder"),
        ("/JPEGImages/../../a.jpg /SegmentationClass/a.png", "holds more than one name"),
        ("/JPEGImages/a.jpg /SegmentationClassAug/a.png", "holds more than one name"),
        ("/JPEGImages/a.jpg /SegmentationClass/b.png", "holds more than one name"),
        ("a -1", "holds more than one name"),
        ("a b c", "holds more than one name"),
        ("C:\\data\\a.jpg", "names no image of the folder"),
        ("SegmentationClass/a.png", "names no image of the folder"),
        ("b", r"JPEGImages/b.jpg cannot be read: there is none"),
        ("a\x00", r"line 2 contains the control character U\+0000"),
    ],
)
def test_a_list_that_names_something_else_is_refused_with_its_line(line: str, told: str, folder: Path) -> None:
    (folder / "ImageSets/Segmentation/val.txt").write_text(f"a\n{line}\n")
    with pytest.raises(UserError, match=told) as error:
        open_labelled(folder, "val", None, voc())
    assert "line 2" in str(error.value) or line == "b"


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a.PNG", "a.tif", "a.webp", "a.bmp"])
def test_an_image_may_have_any_usual_suffix(name: str, folder: Path) -> None:
    (folder / "JPEGImages/a.jpg").unlink()
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(name[2:].lower(), name[2:].upper())
    Image.fromarray(PHOTO).save(folder / "JPEGImages" / name, kind)
    assert on_its_object(loaded(folder))


def test_two_pictures_of_one_key_are_refused(folder: Path) -> None:
    Image.fromarray(PHOTO).save(folder / "JPEGImages/a.png")
    with pytest.raises(UserError, match=r"has both a.jpg and a.png; leave one of them"):
        loaded(folder)


TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    # What a camera that writes this orientation stores of an upright picture: the definition of EXIF's table.
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen),
    7: lambda seen: np.rot90(seen, 2).swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("square", [True, False])
def test_a_picture_is_turned_upright_as_it_was_labelled(orientation: int, square: bool, folder: Path) -> None:
    seen, labels = (PHOTO[:, :40], LABELS[:, :40]) if square else (PHOTO, LABELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](seen)))
    stored.save(folder / "JPEGImages/a.jpg", exif=exif, quality=95)
    (folder / "SegmentationClass/a.png").write_bytes(encode_label_png(np.ascontiguousarray(labels)))
    assert on_its_object(loaded(folder))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_that_fit_the_stored_pixels_alone_belong_to_those(orientation: int, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(folder / "JPEGImages/a.jpg", exif=exif, quality=95)
    assert on_its_object(loaded(folder))


def test_an_orientation_that_is_none_turns_nothing(folder: Path) -> None:
    data = (folder / "JPEGImages/a.jpg").read_bytes()
    for exif in (
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    ):
        block = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (folder / "JPEGImages/a.jpg").write_bytes(data[:2] + block + data[2:])
        assert on_its_object(loaded(folder))


@pytest.mark.parametrize(
    ("dtype", "white"), [("uint16", 255), ("uint16", 1023), ("uint16", 4095), ("uint16", 65535), ("int32", 16383)]
)
def test_grey_of_more_than_8_bits_is_scaled_by_its_depth(dtype: str, white: int, tmp_path: Path) -> None:
    values = np.linspace(0, white, 64).round().astype(dtype).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "g.tif")
    found = read_photograph(tmp_path / "g.tif").upright
    assert found.shape == (8, 8, 3)
    assert np.abs(found[..., 0].ravel() - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize(
    ("white", "told"),
    [
        (1.0, None),
        (255.0, None),
        (4095.0, None),
        (float("nan"), "values from nan"),
        (1e9, "to 1e.09"),
        (-3.0, "values from -3"),
    ],
)
def test_floats_are_scaled_or_refused(white: float, told: str | None, tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.float32)
    values[0, 0], values[0, 1] = white, white / 2
    Image.fromarray(values).save(tmp_path / "f.tif")
    if told is None:
        found = read_photograph(tmp_path / "f.tif").upright
        assert (found[0, 0, 0], found[0, 1, 0], found[7, 7, 0]) == (255, 128, 0)
        return
    with pytest.raises(UserError, match=told):
        read_photograph(tmp_path / "f.tif")


def test_a_palette_picture_with_transparency_and_grey_with_alpha_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(PHOTO).quantize(4)
    picture.save(tmp_path / "p.png", transparency=0)
    Image.fromarray(PHOTO).convert("LA").save(tmp_path / "la.png")
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "c.jpg")
    for name in ("p.png", "la.png", "c.jpg"):
        assert read_photograph(tmp_path / name).upright.shape == (40, 60, 3)


def as_rgb(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array(palette(), np.uint8).reshape(256, 3)[labels]


@pytest.mark.parametrize("kind", ["L", "P", "RGB", "RGBA", "I;16", "I", "tif", "bmp"])
def test_labels_are_read_from_every_kind_that_holds_them(kind: str, folder: Path) -> None:
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
    ("picture", "told"),
    [
        (Image.fromarray(LABELS > 0), "is a picture of mode 1; 1 bit tells object from background"),
        (Image.fromarray(LABELS).convert("LA"), "is a picture of mode LA; a label picture is a palette or grey PNG"),
        (Image.fromarray(PHOTO), r"mode RGB with 500 pixels in colours that VOC has not, as \(250, 0, 0\)"),
        (Image.fromarray(np.dstack([as_rgb(LABELS), LABELS])), "is a picture of mode RGBA"),
    ],
)
def test_a_label_picture_of_another_mode_is_refused_by_its_mode(picture: Image.Image, told: str, folder: Path) -> None:
    picture.save(folder / "SegmentationClass/a.png")
    with pytest.raises(UserError, match=told):
        loaded(folder)


def test_a_1_bit_picture_is_read_where_there_is_one_class(folder: Path) -> None:
    (folder / "labels.txt").write_text("background\ndog\n")
    Image.fromarray(LABELS == DOG).save(folder / "SegmentationClass/a.png")
    found = open_labelled(folder, "val", None, from_names(["dog"]))
    assert np.array_equal(found.load("a").labels, LABELS == DOG)


def test_a_label_picture_that_is_lossy_or_has_an_orientation_is_refused(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(LABELS).save(folder / "SegmentationClass/a.png", exif=exif)
    with pytest.raises(UserError, match="has an EXIF orientation"):
        loaded(folder)
    (folder / "SegmentationClass/a.png").unlink()
    Image.fromarray(LABELS).save(folder / "SegmentationClass/a.jpg")
    with pytest.raises(UserError, match="does not keep values exactly"):
        loaded(folder)


def test_values_without_a_class_are_told_with_counts_and_not_counted(folder: Path) -> None:
    strange = LABELS.astype(np.uint16)
    strange[0, :7], strange[1, :3] = 21, 40_000
    Image.fromarray(strange).save(folder / "SegmentationClass/a.png")
    found = open_labelled(folder, "val", None, voc())
    (note,) = found.notes
    assert "21 (7 pixels, 1 pictures), 40000 (3 pixels, 1 pictures) stand for no class" in note
    assert (found.load("a").labels == 255).sum() == 10


def test_a_folder_without_anything_to_learn_is_refused(folder: Path) -> None:
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
def test_a_list_of_classes_is_read_as_tools_write_it(text: str, folder: Path) -> None:
    (folder / "labels.txt").write_bytes(text.encode())
    small = np.where(LABELS == DOG, 2, np.where(LABELS == CAT, 1, 0)).astype(np.uint8)
    Image.fromarray(small).save(folder / "SegmentationClass/a.png")
    assert np.array_equal(loaded(folder).labels, LABELS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cat\ndog\n", "begins with 'cat', not with background"),
        ("", "begins with '', not with background"),
        ("background\ncat\n\ndog\n", "line 3 of .* is blank"),
        ("background\ncat\nunicorn\n", "has the class 'unicorn', which the vocabulary voc has not"),
    ],
)
def test_a_list_of_classes_that_would_shift_them_is_refused(text: str, told: str, folder: Path) -> None:
    (folder / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=told):
        VocFolder(folder, "val", voc())


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with the first bytes of its pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_claims_too_many_pixels_is_refused_by_its_header(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    for read in (lambda path: read_photograph(path), lambda path: read_values(path, 21)):
        with pytest.raises(UserError, match="more than the 100,000,000"):
            read(tmp_path / "bomb.png")


def test_a_file_that_is_no_picture_or_a_damaged_one_is_refused(folder: Path) -> None:
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
    with pytest.raises(UserError, match="it is no file"):
        read_photograph(path)


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="holds several pictures"):
        read_photograph(tmp_path / "pages.tif")


def test_a_vocabulary_that_labels_have_no_room_for_is_refused(folder: Path) -> None:
    names = ",".join(f"class {chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(255))
    with pytest.raises(UserError, match="room for 254 classes"):
        VocFolder(folder, "val", parse_classes(names))
