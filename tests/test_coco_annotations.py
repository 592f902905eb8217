"""Files of COCO instances made by others: joined by what their ids mean, checked before C code sees them."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from factory.config.vocabulary import coco, voc
from factory.errors import UserError
from factory.generation.inversion_recipe import RealOptions, recipe_of_folder
from factory.labelled.coco import CocoFolder
from factory.labelled.folders import open_labelled
from factory.labelled.segmentation import MAX_OUTLINE, to_mask

DOG, CAT = coco().names.index("dog") + 1, coco().names.index("cat") + 1
DOG_BOX, CAT_BOX = [5, 5, 25, 5, 25, 20, 5, 20], [30, 20, 50, 20, 50, 30, 30, 30]

Change = Callable[[dict[str, Any]], object]


def plain() -> dict[str, Any]:
    """Two images: a dog in the first, a cat in the second."""
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 60, "height": 40} for k in (1, 2)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [DOG_BOX], "area": 300, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 7, "segmentation": [CAT_BOX], "area": 200, "iscrowd": 0},
        ],
    }


def opened(folder: Path, change: Change, **more: Any) -> CocoFolder:
    """The folder of `plain` after a change."""
    for name in ("1.png", "2.png"):
        Image.new("RGB", (60, 40)).save(folder / name)
    data = copy.deepcopy(plain())
    change(data)
    (folder / "a.json").write_text(json.dumps(data))
    found = open_labelled(folder, "val", folder / "a.json", more.pop("vocabulary", coco()), **more)
    assert isinstance(found, CocoFolder)
    return found


def counts(folder: CocoFolder) -> list[tuple[int, int]]:
    """(pixels of dog, pixels of cat) of each image."""
    rows = [folder.load(key).labels for key in folder.keys]
    return [(int((row == DOG).sum()), int((row == CAT).sum())) for row in rows]


def set_ids(images: list[Any], annotated: list[Any], categories: list[Any], named: list[Any]) -> Change:
    def change(data: dict[str, Any]) -> None:
        for rows, name, values in (
            (data["images"], "id", images), (data["annotations"], "image_id", annotated),
            (data["categories"], "id", categories), (data["annotations"], "category_id", named),
        ):  # fmt: skip
            for row, value in zip(rows, values, strict=True):
                row[name] = value

    return change


@pytest.mark.parametrize(
    "ids",
    [
        (["000001", "000002"], ["000001", "000002"], [3, 7], [3, 7]),
        (["1", "2"], [1, 2], [3, 7], [3, 7]),
        ([1, 2], ["1", "000002"], ["3", "7"], [3, 7]),
        ([1.0, 2.0], [1, 2], [3, 7], [3.0, 7.0]),
        ([-1, 0], ["-1", "0"], [0, -5], [0, "-5"]),
        (["n01_1", "x"], ["n01_1", " x "], ["3.0", "7"], [3, 7]),
        ([2**60 + 1, 2**60 + 2], [str(2**60 + 1), 2**60 + 2], [3, 7], [3, 7]),
        (["1e3", "1000"], ["1e3", "1000"], [3, 7], [3, 7]),
    ],
)
def test_ids_are_compared_by_what_they_mean(ids: tuple[list[Any], ...], tmp_path: Path) -> None:
    folder = opened(tmp_path, set_ids(*ids))
    assert counts(folder) == [(300, 0), (0, 200)]
    assert folder.notes == ()


def test_keys_of_whole_ids_are_as_they_were(tmp_path: Path) -> None:
    """They stand in recipes of inverted datasets."""
    assert opened(tmp_path, lambda data: None).keys == ["1", "2"]


@pytest.mark.parametrize("ids", [(1, 1), (None, None), ("x", "x")])
def test_annotations_belong_to_the_image_they_name_whatever_their_own_ids(ids: tuple[Any, Any], tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        for row, value in zip(data["annotations"], ids, strict=True):
            row["id"] = value
            if value is None:
                del row["id"]

    assert counts(opened(tmp_path, change)) == [(300, 0), (0, 200)]


@pytest.mark.parametrize("name", ["Dog", "dog ", "DOG", "  dog"])
def test_categories_are_found_as_classes_are(name: str, tmp_path: Path) -> None:
    assert counts(opened(tmp_path, lambda data: data["categories"][0].update(name=name)))[0] == (300, 0)
    folder = opened(tmp_path, lambda data: data["categories"][0].update(name="Dining_Table"))
    assert (folder.load("1").labels == coco().names.index("dining table") + 1).sum() == 300


def test_what_is_not_used_is_told_with_counts(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        dog = data["annotations"][0]
        data["categories"].append({"id": 9, "name": "unicorn"})
        data["annotations"] += [
            dog | {"category_id": 9}, dog | {"category_id": 9}, dog | {"image_id": 5}, dog | {"image_id": None},
            dog | {"category_id": 5}, dog | {"segmentation": []}, dog | {"segmentation": None},
            dog | {"segmentation": [[]]}, dog | {"segmentation": [[5, 5, 20, 15]]}, dog | {"segmentation": [[1, 2]]},
        ]  # fmt: skip
        del data["annotations"][-1]["area"]

    folder = opened(tmp_path, change)
    assert counts(folder) == [(300, 0), (0, 200)]
    told = " ".join(folder.notes)
    for part in (
        "objects of 'unicorn' (2) are background, for coco has no such class",
        "5 annotations have no segmentation with pixels and are not used",
        "2 annotations name an image that the file does not list",
        "1 annotations name a category that the file does not list",
    ):
        assert part in told


def test_labels_are_told_to_the_one_who_inverts_and_a_stray_file_of_instances_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, lambda data: data["annotations"][0].update(segmentation=[]))
    told: list[str] = []
    options = RealOptions("coco", tmp_path, "train", tmp_path / "a.json", "coco", "all", None, "noise", 4, 80, 3, 0.01)
    recipe, left_out = recipe_of_folder(options, {}, {}, told.append)
    assert (recipe.n, left_out) == (1, 1)
    assert "1 annotations have no segmentation with pixels" in told[0]
    options = RealOptions("voc", tmp_path, "train", tmp_path / "a.json", "voc", "all", None, "noise", 4, 80, 3, 0.01)
    with pytest.raises(UserError, match="give it with --dataset coco"):
        recipe_of_folder(options, {}, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["annotations"][0].pop("area"),
        lambda data: data["annotations"][0].update(area=None),
        lambda data: data["annotations"][0].update(area="300.0", iscrowd="0"),
        lambda data: data["annotations"][0].pop("iscrowd"),
        lambda data: data["images"][0].pop("width"),
        lambda data: data["images"][0].update(width=None, height=None),
        lambda data: data["images"][0].update(width="60", height=40.0),
        lambda data: data["annotations"][0].update(segmentation=DOG_BOX),
        lambda data: data["annotations"][0].update(segmentation=[[5, 5], [25, 5], [25, 20], [5, 20]]),
        lambda data: data["annotations"][0].update(segmentation=[[[5, 5], [25, 5], [25, 20], [5, 20]]]),
        lambda data: data["annotations"][0].update(segmentation=[[5, 5, 20, 15], DOG_BOX]),
        lambda data: data["images"][0].update(file_name="/1.png"),
    ],
)
def test_what_can_be_computed_or_means_one_thing_only_is_read(change: Change, tmp_path: Path) -> None:
    assert counts(opened(tmp_path, change)) == [(300, 0), (0, 200)]


def test_an_object_without_area_is_ordered_by_its_pixels(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        whole = {"image_id": 1, "category_id": 7, "segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]]}
        data["annotations"] = [data["annotations"][0] | {"area": None}, whole]

    assert counts(opened(tmp_path, change))[0] == (300, 2400 - 300)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data["images"][1].update(id="1.0"), "two images with the id 1"),
        (lambda data: data["categories"][1].update(id="3"), "two categories with the id 3"),
        (lambda data: data["images"][1].update(file_name="1.png"), "images 1 and 2 are both 1.png"),
        (lambda data: data["images"][1].pop("file_name"), "image 2 has no file_name"),
        (lambda data: data["images"][1].pop("id"), "an image: id is a whole number or a text, got None"),
        (lambda data: data["images"][1].update(id=1.5), "id is a whole number or a text, got 1.5"),
        (lambda data: data["images"][1].update(id=True), "id is a whole number or a text, got True"),
        (lambda data: data["images"][1].update(file_name="../1.png"), r"file_name '../1.png' leads out of the folder"),
        (lambda data: data["images"][1].update(file_name="a/../../1.png"), "leads out of the folder"),
        (lambda data: data["images"][1].update(file_name=r"..\1.png"), "leads out of the folder"),
        (lambda data: data["images"][1].update(file_name="3.png"), "3.png cannot be read: there is none"),
        (lambda data: data["images"][1].update(width=0), "image 2: width is a whole number of pixels, got 0"),
        (lambda data: data["images"][1].update(height="x"), "image 2: height is a whole number of pixels, got 'x'"),
        (lambda data: data["images"][1].update(height=float("nan")), "height is a whole number of pixels, got nan"),
        (lambda data: data["images"][1].update(height=10**9), "more than the 100,000,000 that are read"),
        (lambda data: data["categories"][1].pop("name"), "the name of category 7 is a text, got None"),
        (
            lambda data: data["annotations"][1].update(area="big"),
            "annotation 1 .*area is a number from 0 up, got 'big'",
        ),
        (lambda data: data["annotations"][1].update(area=-1), "area is a number from 0 up, got -1"),
        (lambda data: data["annotations"][1].update(iscrowd="yes"), "iscrowd is 0 or 1, got 'yes'"),
        (lambda data: data.pop("annotations"), "no list of objects under 'annotations'"),
        (lambda data: data.update(images={"1": {}}), "no list of objects under 'images'"),
        (lambda data: data.update(annotations=[1]), "no list of objects under 'annotations'"),
        (lambda data: data.update(annotations=[]), "no object with pixels in the classes of coco"),
        (lambda data: data["categories"].clear(), "has no category of the vocabulary coco"),
        (
            lambda data: [row.update(segmentation=[]) for row in data["annotations"]],
            "no object with pixels in the classes of coco: 2 have no pixels",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_file_id_and_field(change: Change, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as error:
        opened(tmp_path, change)
    assert "a.json" in str(error.value)


BAD: dict[str, tuple[Any, str]] = {
    "nan": ([[5, 5, float("nan"), 5, 25, 20]], "NaN or an infinite number"),
    "infinite": ([[5, 5, float("inf"), 5, 25, 20]], "NaN or an infinite number|reaches from"),
    "huge": ([[5, 5, 1e9, 5, 25, 20]], "reaches from 5 to 1e.09 where the image has 60 pixels"),
    "far below": ([[5, -1e18, 9, 5, 25, 20]], "reaches from -1e.18 to 20 where the image has 40 pixels"),
    "no float": ([[5, 5, 10**400, 5, 25, 20]], "too large"),
    "long": ([[0, 0, 60, 40] * 20_000], f"outline of a polygon has .* at most {MAX_OUTLINE:,}"),
    "odd": ([[5, 5, 25, 5, 25, 20, 5]], "has 7 numbers; x and y come in pairs"),
    "texts": ([["5", "5", "25", "5", "25", "20"]], "a list of numbers"),
    "null inside": ([[5, 5, None, 5, 25, 20]], "a list of numbers"),
    "mixed": ([DOG_BOX, 5], "a list of numbers"),
    "text": ("abc", "it is a str; allowed are polygons and run lengths"),
    "number": (7, "it is a int"),
    "other size": ({"size": [60, 40], "counts": [2400]}, r"of the size \[60, 40\], the image is \[40, 60\]"),
    "no size": ({"counts": [2400]}, "of the size None"),
    "huge size": ({"size": [2**31, 2**31], "counts": [1]}, "of the size"),
    "short": ({"size": [40, 60], "counts": [100, 50]}, "add up to 150, the image has 2400 pixels"),
    "too long": ({"size": [40, 60], "counts": [2000, 2**33]}, "add up to 8.58994e.09, the image has 2400"),
    "negative": ({"size": [40, 60], "counts": [2500, -100]}, "not all numbers from 0 up"),
    "nan run": ({"size": [40, 60], "counts": [float("nan")]}, "not all numbers from 0 up"),
    "infinite run": ({"size": [40, 60], "counts": [float("inf")]}, "add up to inf"),
    "half runs": ({"size": [40, 60], "counts": [1200.5, 1199.5]}, "add up to 2400"),
    "no runs": ({"size": [40, 60]}, "its run lengths are a NoneType"),
    "text of junk": ({"size": [40, 60], "counts": "zzz~"}, "cut short, or hold letters"),
    "text with null": ({"size": [40, 60], "counts": "0\x000"}, "cut short, or hold letters"),
    "empty text": ({"size": [40, 60], "counts": ""}, "cut short, or hold letters"),
    "text without end": ({"size": [40, 60], "counts": "PPPPPPP"}, "cut short, or hold letters"),
    "text of another size": ({"size": [40, 60], "counts": "0PPPPPPPPPPPPPPPPPPP1"}, "more than 32 bits"),
    "text too short": ({"size": [40, 60], "counts": "52203"}, "add up to 16, the image has 2400"),
    "negative text": ({"size": [40, 60], "counts": "O1"}, "not all numbers from 0 up"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_segmentation_is_refused_before_c_code_sees_it(name: str, tmp_path: Path) -> None:
    value, told = BAD[name]
    with pytest.raises(ValueError, match=told):
        to_mask(value, 40, 60)
    with pytest.raises(UserError, match=r"the segmentation of annotation 0 .*image 1, cannot be used: ") as error:
        opened(tmp_path, lambda data: data["annotations"][0].update(segmentation=value)).load("1")
    assert "a.json" in str(error.value)


def test_a_hostile_file_takes_little_memory(tmp_path: Path) -> None:
    """With a limit of its own on memory: NaN and huge coordinates took all of the machine's."""
    opened(tmp_path, lambda data: None)
    data = plain()
    for number, (value, _) in enumerate(BAD.values()):
        data["annotations"][0]["segmentation"] = value
        (tmp_path / f"{number}.json").write_text(json.dumps(data))
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
from pathlib import Path
from factory.errors import UserError
from factory.labelled.coco import CocoFolder
from factory.config.vocabulary import coco
refused = 0
for number in range({len(BAD)}):
    try:
        CocoFolder(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}) / f"{{number}}.json", coco()).load("1")
    except UserError:
        refused += 1
print(refused)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout.strip(), result.returncode) == (str(len(BAD)), 0), result.stderr[-500:]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"images": ' + "[" * 100_000, "is nested too deeply"),
        ("[]", "it holds a list, not an object"),
        ('{"images": [', "is no file of COCO instances"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "is no file of COCO instances"),
        ("\x00\x01\x02", "is no file of COCO instances"),
    ],
)
def test_a_file_that_is_no_json_or_too_deep_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=told):
        CocoFolder(tmp_path, tmp_path / "a.json", coco())


def test_a_file_of_too_many_bytes_or_values_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(plain()))
    for name, least, told in (
        ("MAX_JSON_BYTES", 100, "more than 100 bytes"),
        ("MAX_JSON_VALUES", 10, "about .* values"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"factory.labelled.annotations.{name}", least)
            patch.setattr("json.loads", None)
            with pytest.raises(UserError, match=told):
                CocoFolder(tmp_path, tmp_path / "a.json", coco())


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    opened(tmp_path, lambda data: None)
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_bytes(json.dumps(plain()).encode(encoding))
        assert counts(CocoFolder(tmp_path, tmp_path / "a.json", coco())) == [(300, 0), (0, 200)]


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    random, rows = np.random.default_rng(0), []
    for number in range(120):
        polygons = [
            (random.uniform(-5, 65, (size, 2))).round(2).ravel().tolist()
            for size in random.integers(4, 9, 1 + number % 3)
        ]
        dense = np.asfortranarray(random.random((40, 60)) < 0.1 * (number % 9)).astype(np.uint8)
        packed = coco_mask.encode(dense)
        flat = dense.ravel(order="F")
        edges = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
        runs = [0] * int(flat[0]) + np.diff(edges).tolist()
        for value in (
            polygons, {"size": [40, 60], "counts": packed["counts"].decode()}, {"size": [40, 60], "counts": runs}
        ):  # fmt: skip
            rows.append({"id": len(rows) + 1, "image_id": 1, "category_id": 3, "segmentation": value, "area": 1})
    (tmp_path / "a.json").write_text(json.dumps(plain() | {"annotations": rows}))
    with redirect_stdout(StringIO()):
        theirs = COCO(str(tmp_path / "a.json"))
    for row in rows:
        assert np.array_equal(to_mask(row["segmentation"], 40, 60), theirs.annToMask(row).astype(bool))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_to_the_size_of_its_annotation(orientation: int, tmp_path: Path) -> None:
    folder = opened(tmp_path, lambda data: None)
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = Image.new("RGB", (60, 40))
    seen.paste((250, 0, 0), (5, 5, 25, 20))
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes, the inverse of EXIF's
    stored = seen if orientation == 1 else seen.transpose(Image.Transpose(turns[orientation]))
    stored.save(tmp_path / "1.png", exif=exif)
    row = folder.load("1")
    assert np.array_equal(row.image[..., 0] > 128, row.labels == DOG)


def test_images_of_another_size_and_unseen_classes_are_as_before(tmp_path: Path) -> None:
    folder = opened(tmp_path, lambda data: data["images"][0].update(width=61))
    with pytest.raises(UserError, match=r"1.png is 60 x 40 and its annotation 61 x 40"):
        folder.load("1")
    assert opened(tmp_path, lambda data: None, vocabulary=voc(), only=["cat"]).keys == ["2"]
