"""COCO instances files from any source: ids are normalised, and invalid fields are refused by name."""

import json
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
from factory.labelled.interface import spread
from factory.labelled.segmentation import to_mask
from tests.support.coco_instances import DOG, DOG_BOX, Change, counts, instances, opened


def set_ids(images: list[Any], annotated: list[Any], categories: list[Any], named: list[Any]) -> Change:
    def change(data: dict[str, Any]) -> None:
        for entries, name, values in (
            (data["images"], "id", images), (data["annotations"], "image_id", annotated),
            (data["categories"], "id", categories), (data["annotations"], "category_id", named),
        ):  # fmt: skip
            for entry, value in zip(entries, values, strict=True):
                entry[name] = value

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
def test_ids_are_normalised(ids: tuple[list[Any], ...], tmp_path: Path) -> None:
    folder = opened(tmp_path, set_ids(*ids))
    assert counts(folder) == [(300, 0), (0, 200)]
    assert folder.notes == ()


def test_keys_of_integer_ids_do_not_change(tmp_path: Path) -> None:
    """Recipes of inverted datasets contain them."""
    assert opened(tmp_path, lambda data: None).keys == ["1", "2"]


@pytest.mark.parametrize("ids", [(1, 1), (None, None), ("x", "x")])
def test_annotation_ids_are_ignored(ids: tuple[Any, Any], tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        for annotation, value in zip(data["annotations"], ids, strict=True):
            annotation["id"] = value
            if value is None:
                del annotation["id"]

    assert counts(opened(tmp_path, change)) == [(300, 0), (0, 200)]


@pytest.mark.parametrize("name", ["Dog", "dog ", "DOG", "  dog"])
def test_categories_are_matched_like_class_names(name: str, tmp_path: Path) -> None:
    assert counts(opened(tmp_path, lambda data: data["categories"][0].update(name=name)))[0] == (300, 0)
    folder = opened(tmp_path, lambda data: data["categories"][0].update(name="Dining_Table"))
    assert (folder.load("1").labels == coco().names.index("dining table") + 1).sum() == 300


def test_notes_count_what_is_not_used(tmp_path: Path) -> None:
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
    notes = " ".join(folder.notes)
    for message in (
        "objects of 'unicorn' (2) become background because coco has no such class",
        "ignored 5 annotations without pixels",
        "ignored 2 annotations of an image that the file does not list",
        "ignored 1 annotation of a category that the file does not list",
    ):
        assert message in notes


def test_invert_reports_notes_and_refuses_an_unneeded_annotation_file(tmp_path: Path) -> None:
    opened(tmp_path, lambda data: data["annotations"][0].update(segmentation=[]))
    reports: list[str] = []
    options = RealOptions("coco", tmp_path, None, tmp_path / "a.json", "coco", "all", None, "noise", None, 0.2, 3, 0.01)
    recipe, left_out = recipe_of_folder(options, {}, {}, reports.append)
    assert (recipe.n, left_out) == (1, 1)
    assert "ignored 1 annotation without pixels" in reports[0]
    options = RealOptions("voc", tmp_path, None, tmp_path / "a.json", "voc", "all", None, "noise", None, 0.2, 3, 0.01)
    with pytest.raises(UserError, match="give it with --layout coco"):
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
def test_optional_fields_and_unambiguous_variants_are_read(change: Change, tmp_path: Path) -> None:
    assert counts(opened(tmp_path, change)) == [(300, 0), (0, 200)]


@pytest.mark.parametrize("area", [None, 0, "0.0"])
def test_an_object_without_area_is_sorted_by_its_pixel_count(area: object, tmp_path: Path) -> None:
    """Some tools write an area of 0 for every object; the last one in the file then hid the others."""

    def change(data: dict[str, Any]) -> None:
        full = {"image_id": 1, "category_id": 7, "segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]], "area": area}
        data["annotations"] = [data["annotations"][0] | {"area": area}, full]

    assert counts(opened(tmp_path, change))[0] == (300, 2400 - 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["images"][1].update(id="1.0"), "two images with the id 1"),
        (lambda data: data["categories"][1].update(id="3"), "two categories with the id 3"),
        (lambda data: data["images"][1].update(file_name="1.png"), "images 1 and 2 have the same file_name 1.png"),
        (lambda data: data["images"][1].pop("file_name"), "image 2 has no file_name"),
        (lambda data: data["images"][1].pop("id"), "an image: id must be an integer or a string, got None"),
        (lambda data: data["images"][1].update(id=1.5), "id must be an integer or a string, got 1.5"),
        (lambda data: data["images"][1].update(id=True), "id must be an integer or a string, got True"),
        (
            lambda data: data["images"][1].update(file_name="../1.png"),
            r"file_name '../1.png' is outside the image folder",
        ),
        (lambda data: data["images"][1].update(file_name="a/../../1.png"), "is outside the image folder"),
        (lambda data: data["images"][1].update(file_name=r"..\1.png"), "is outside the image folder"),
        (lambda data: data["images"][1].update(file_name="3.png"), "3.png does not exist"),
        (
            lambda data: data["images"][1].update(width=0),
            "image 2: width must be a positive whole number of pixels, got 0",
        ),
        (
            lambda data: data["images"][1].update(height="x"),
            "image 2: height must be a positive whole number of pixels, got 'x'",
        ),
        (
            lambda data: data["images"][1].update(height=float("nan")),
            "height must be a positive whole number of pixels, got nan",
        ),
        (lambda data: data["images"][1].update(height=10**9), "more than the limit of 100,000,000"),
        (lambda data: data["categories"][1].pop("name"), "the name of category 7 must be a string, got None"),
        (
            lambda data: data["annotations"][1].update(area="big"),
            "annotation 1 .*area must be a non-negative number, got 'big'",
        ),
        (lambda data: data["annotations"][1].update(area=-1), "area must be a non-negative number, got -1"),
        (lambda data: data["annotations"][1].update(iscrowd="yes"), "iscrowd must be 0 or 1, got 'yes'"),
        (lambda data: data.pop("annotations"), "no list of objects under 'annotations'"),
        (lambda data: data.update(images={"1": {}}), "no list of objects under 'images'"),
        (lambda data: data.update(annotations=[1]), "no list of objects under 'annotations'"),
        (lambda data: data.update(annotations=[]), "no object with pixels whose class is in coco"),
        (lambda data: data["categories"].clear(), "has no category that is in coco; choose"),
        (
            lambda data: [annotation.update(segmentation=[]) for annotation in data["annotations"]],
            "no object with pixels whose class is in coco: 2 have no pixels",
        ),
    ],
)
def test_invalid_fields_are_refused_by_file_id_and_field(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path, change)
    assert "a.json" in str(error.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    opened(tmp_path, lambda data: None)
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_bytes(json.dumps(instances()).encode(encoding))
        assert counts(CocoFolder(tmp_path, tmp_path / "a.json", coco())) == [(300, 0), (0, 200)]


def test_masks_equal_those_of_pycocotools(tmp_path: Path) -> None:
    random, annotations = np.random.default_rng(0), []
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
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 1, "category_id": 3, "segmentation": value, "area": 1}
            )
    (tmp_path / "a.json").write_text(json.dumps(instances() | {"annotations": annotations}))
    with redirect_stdout(StringIO()):
        reference = COCO(str(tmp_path / "a.json"))
    for annotation in annotations:
        mask = to_mask(annotation["segmentation"], 40, 60)
        assert np.array_equal(mask, reference.annToMask(annotation).astype(bool))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_rotated_to_the_size_of_its_annotation(orientation: int, tmp_path: Path) -> None:
    folder = opened(tmp_path, lambda data: None)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.new("RGB", (60, 40))
    upright.paste((250, 0, 0), (5, 5, 25, 20))
    transposes = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes, the inverse of EXIF's
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(transposes[orientation]))
    stored.save(tmp_path / "1.png", exif=exif)
    sample = folder.load("1")
    assert np.array_equal(sample.image[..., 0] > 128, sample.labels == DOG)


def test_a_file_name_may_contain_colons_but_not_be_a_url(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "10:30:00.png")
    folder = opened(tmp_path, lambda data: data["images"][0].update(file_name="10:30:00.png"))
    assert counts(folder) == [(300, 0), (0, 200)]
    for name in ("https://host/1.png", r"C:\data\1.png"):
        with pytest.raises(UserError, match="is outside the image folder"):
            opened(tmp_path, lambda data, name=name: data["images"][0].update(file_name=name))


def test_images_of_another_size_are_refused_and_unseen_classes_left_out(tmp_path: Path) -> None:
    message = r"1.png has 60 x 40 pixels, but its annotation says 61 x 40; give the images for which .*a.json was made"
    with pytest.raises(UserError, match=message):
        opened(tmp_path, lambda data: data["images"][0].update(width=61))
    with pytest.raises(UserError, match=r"1.png has 60 x 40 pixels, but its annotation says 40 x 60; give the images"):
        opened(tmp_path, lambda data: data["images"][0].update(width=40, height=60))
    folder = opened(tmp_path, lambda data: data["images"][0].update(width=61), checked=False)
    with pytest.raises(UserError, match=message):
        folder.load("1")
    assert opened(tmp_path, lambda data: None, vocabulary=voc(), only=["cat"]).keys == ["2"]
    both = opened(
        tmp_path, lambda data: data["annotations"][0].update(image_id=2), vocabulary=voc(), only=["cat"], checked=False
    )
    assert both.keys == ["1"], "the other one also shows a dog"


def test_checked_images_are_spread_over_the_folder() -> None:
    checked = spread([str(number) for number in range(2500)])
    assert (checked[0], checked[-1], len(checked)) == ("0", "2499", 834)


def test_the_identity_covers_the_annotations_and_the_image_files(tmp_path: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        data["annotations"][0]["category_id"], data["annotations"][1]["category_id"] = 7, 3

    first, again, swapped = (opened(tmp_path, change).identity for change in (len, len, swap))
    assert first == again != swapped
    folder = opened(tmp_path, len)
    Image.effect_noise((60, 40), 50).convert("RGB").save(tmp_path / "1.png")
    assert folder.identity != first


def test_file_without_usable_images_is_refused(tmp_path: Path) -> None:
    def without_objects(data: dict[str, Any]) -> None:
        data["annotations"] = []
        data["images"] = []

    with pytest.raises(UserError, match="lists no image"):
        opened(tmp_path, without_objects)


def test_crowds_alone_are_refused_as_such(tmp_path: Path) -> None:
    """The message counted no annotation at all."""

    def crowds(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            annotation["iscrowd"] = 1

    with pytest.raises(UserError, match=r"no object with pixels .*: 0 have no pixels, 2 are crowds, 0 are of other"):
        opened(tmp_path, crowds)


def test_runs_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.labelled.segmentation.MAX_RUNS", 2)
    with pytest.raises(ValueError, match="it has 3 runs, more than the limit of 2"):
        to_mask({"size": [2, 2], "counts": [1, 2, 1]}, 2, 2)
