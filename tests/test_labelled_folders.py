"""PASCAL VOC folders as written by people and tools: read correctly, or refused with a clear error."""

import codecs
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from factory.config.vocabulary import coco, from_names, voc
from factory.dataset.masks import encode_label_png, palette
from factory.errors import UserError
from factory.labelled.coco import CocoFolder
from factory.labelled.folders import open_labelled
from factory.labelled.voc import VocFolder
from tests.support.voc_folder import CAT, DOG, LABELS, PHOTO, labels_match, loaded, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


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
    for name in ("my dog.v1", "sub/b", "10:30:00"):
        for part, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (folder / part / "sub").mkdir(exist_ok=True)
            (folder / part / f"{name}.{suffix}").write_bytes((folder / part / f"a.{suffix}").read_bytes())
    text = f"my dog.v1\nmy dog.v1.jpg\n{folder}/JPEGImages/a.jpg\nsub/b\nJPEGImages/sub/b.jpg\n10:30:00\n"
    (folder / "ImageSets/Segmentation/val.txt").write_text(text)
    labelled = open_labelled(folder, "val", None, voc())
    assert labelled.keys == ["my dog.v1", "my dog.v1", "a", "sub/b", "sub/b", "10:30:00"]
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
        ("https://host/a.jpg", "does not name an image of the folder"),
        ("SegmentationClass/a.png", "does not name an image of the folder"),
        ("b", r"JPEGImages has no file b with a suffix"),
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


def test_subfolders_may_be_links(folder: Path) -> None:
    """Their images were said not to exist."""
    originals = folder / "originals"
    for name, file in (("JPEGImages", "a.jpg"), ("SegmentationClass", "a.png")):
        (originals / name).mkdir(parents=True)
        (folder / name / file).rename(originals / name / file)
        (folder / name / "city").symlink_to(originals / name)
        (originals / name / "loop").symlink_to(folder / name)
    (folder / "ImageSets/Segmentation/val.txt").write_text("city/a\n")
    assert open_labelled(folder, "val", None, voc()).keys == ["city/a"]


def test_links_between_subfolders_do_not_depend_on_the_order_of_the_file_system(folder: Path) -> None:
    """Each subfolder links to the other; a folder that the walk had passed was skipped behind its link."""
    for name, file in (("JPEGImages", "a.jpg"), ("SegmentationClass", "a.png")):
        for own, other in (("north", "south"), ("south", "north")):
            (folder / name / own).mkdir()
            shutil.copy(folder / name / file, folder / name / own)
            (folder / name / own / "other").symlink_to(folder / name / other)
    keys = ["north/a", "north/other/a", "south/a", "south/other/a"]
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(keys))
    assert open_labelled(folder, "val", None, voc()).keys == keys


def test_a_missing_image_is_named_with_the_suffixes_that_are_read(folder: Path) -> None:
    """The message named a.jpg, although another suffix would have done."""
    (folder / "JPEGImages/a.jpg").rename(folder / "JPEGImages/a.gif")
    with pytest.raises(
        UserError, match=r"JPEGImages has no file a with a suffix \.jpg, \.jpeg, \.png, .*image set val"
    ):
        open_labelled(folder, "val", None, voc())


def test_an_image_of_another_size_than_its_labels_is_refused_at_once(folder: Path) -> None:
    """It ended a training after hours; the corrected folder is other data, so its checkpoint was lost."""
    with Image.open(folder / "JPEGImages/a.jpg") as picture:
        picture.resize((30, 20)).save(folder / "JPEGImages/a.jpg")
    with pytest.raises(UserError, match=r"a.png has 60 x 40 pixels, but its image has 30 x 20; both must have"):
        open_labelled(folder, "val", None, voc())
    Image.fromarray(PHOTO.swapaxes(0, 1)).save(folder / "JPEGImages/a.jpg")  # without an orientation
    with pytest.raises(UserError, match=r"a.png has 60 x 40 pixels, but its image has 40 x 60; both must have"):
        open_labelled(folder, "val", None, voc())
    (folder / "JPEGImages/a.jpg").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"a.jpg cannot be read: it is not an image in any of the formats"):
        open_labelled(folder, "val", None, voc())


def test_two_images_of_the_same_key_are_refused(folder: Path) -> None:
    Image.fromarray(PHOTO).save(folder / "JPEGImages/a.png")
    with pytest.raises(UserError, match=r"contains both a.jpg and a.png; remove one of them"):
        loaded(folder)


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


@pytest.mark.parametrize("bits", [2, 4])
def test_greyscale_label_image_of_fewer_than_8_bits_is_refused(bits: int, folder: Path) -> None:
    """Decoders scale the values: class 1 (aeroplane) of 4 bits became 17 (sheep)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = LABELS.shape
    row = b"\0" + b"\x11" * -(-width * bits // 8)
    (folder / "SegmentationClass/a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row * height))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match=f"a.png is a greyscale PNG of {bits} bits, whose values decoders scale"):
        loaded(folder)
    data = b"\x11" * (height * -(-width * bits // 8))
    tags = {256: width, 257: height, 258: bits, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    (folder / "SegmentationClass/a.png").unlink()
    (folder / "SegmentationClass/a.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()) + bytes(4)
    )  # fmt: skip
    with pytest.raises(UserError, match=f"a.tif is a greyscale TIFF of {bits} bits, whose values decoders scale"):
        loaded(folder)


def test_a_1_bit_label_image_is_read_for_one_class(folder: Path) -> None:
    (folder / "labels.txt").write_text("background\ndog\n")
    Image.fromarray(LABELS == DOG).save(folder / "SegmentationClass/a.png")
    labelled = open_labelled(folder, "val", None, from_names(["dog"]))
    assert np.array_equal(labelled.load("a").labels, LABELS == DOG)


def test_a_lossy_or_rotated_label_image_is_refused(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for suffix in ("png", "tif"):
        Image.fromarray(LABELS).save(folder / f"SegmentationClass/a.{suffix}", exif=exif)
        with pytest.raises(UserError, match=f"a.{suffix} has an EXIF orientation"):
            loaded(folder)
        (folder / f"SegmentationClass/a.{suffix}").unlink()
    Image.fromarray(LABELS).save(folder / "SegmentationClass/a.jpg")
    with pytest.raises(UserError, match=r"is in a lossy format, .* as PNG, TIFF or BMP"):
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
        ("background\ncat\nunicorn\n", "has the class 'unicorn', which is not in voc; give all classes"),
    ],
)
def test_an_ambiguous_class_list_is_refused(text: str, message: str, folder: Path) -> None:
    (folder / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        VocFolder(folder, "val", voc())


def test_a_folder_without_a_class_list_has_the_classes_of_voc(folder: Path) -> None:
    """The message was that the folder of an own class has the class "aeroplane"."""
    with pytest.raises(UserError, match=r"has no labels.txt, so .* 'aeroplane' is not in your list of classes; write"):
        VocFolder(folder, "val", from_names(["crack"]))


def test_the_identity_covers_images_and_labels_but_not_the_location(folder: Path, tmp_path: Path) -> None:
    """Checkpoints record it, so that a training cannot be resumed on other data with the same names."""

    def identity() -> str:
        return VocFolder(folder, "val", voc()).identity

    first = identity()
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    assert VocFolder(copy, "val", voc()).identity == first
    (folder / "SegmentationClass/a.png").write_bytes(encode_label_png(np.where(LABELS == DOG, CAT, LABELS)))
    other_labels = identity()
    Image.fromarray(PHOTO[:, ::-1]).save(folder / "JPEGImages/a.jpg", quality=50)
    assert len({first, other_labels, identity()}) == 3


def test_label_image_beside_its_visualisation_is_read(folder: Path) -> None:
    """Some tools write a coloured JPEG of each label image next to it."""
    Image.new("RGB", (60, 40)).save(folder / "SegmentationClass/a.jpg")
    assert labels_match(loaded(folder))


def test_value_255_may_have_a_name(folder: Path) -> None:
    names = [f"lynx {chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(254)]
    (folder / "labels.txt").write_text("\n".join(["background", *names, "void"]))
    labelled = VocFolder(folder, "val", from_names(names))
    assert set(np.unique(labelled.load("a").labels)) == {0, DOG, CAT}


def test_a_misspelt_image_set_is_told_from_a_wrong_folder(folder: Path) -> None:
    """Both messages asked for the folder that contains JPEGImages."""
    (folder / "ImageSets/Segmentation/trainval.txt").write_text("a\n")
    message = r"has no image set vall: there is no .*/vall\.txt; choose from .*trainval, val with --real-set\.$"
    with pytest.raises(UserError, match=message):
        VocFolder(folder, "vall", voc())
    message = r"not a PASCAL VOC folder: it has no folder JPEGImages\. .* for COCO images, also give --annotations\.$"
    with pytest.raises(UserError, match=message):
        VocFolder(folder / "JPEGImages", "val", voc())


def test_a_folder_in_the_place_of_annotations_is_not_said_to_be_missing(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no file .*/JPEGImages; give the folder of the COCO images"):
        CocoFolder(folder, folder / "JPEGImages", coco())


def test_folder_without_images_of_seen_classes_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"the image set val of .* has no image that can be used"):
        VocFolder(folder, "val", voc(), ["car"])


def test_file_that_is_too_large_for_an_image_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.labelled.picture.MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match="has more than 100 bytes, the limit for an image; make it smaller"):
        loaded(folder)


def test_exif_that_cannot_be_parsed_is_ignored(folder: Path) -> None:
    Image.fromarray(PHOTO).save(folder / "JPEGImages/a.jpg", quality=95, exif=b"Exif\x00\x00no TIFF header")
    assert labels_match(loaded(folder))
