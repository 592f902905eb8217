"""Recipes that invert a labelled folder: which images they use, and which folders and models they reject."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from factory.config.plan import Plan
from factory.config.vocabulary import coco, voc
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import init_or_resume
from factory.errors import UserError
from factory.generation.inversion_recipe import RealOptions, recipe_of_folder
from factory.generation.preflight import _check_inversion, preflight
from factory.generator.families import FAMILIES
from factory.labelled.coco import CocoFolder
from tests.inversion.conftest import inverting_recipe, real_options


def test_a_consistency_model_is_not_inverted_step_by_step(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "lcm"))
    config = json.loads((model / "unet" / "config.json").read_text()) | {"time_cond_proj_dim": 8}
    (model / "unet" / "config.json").write_text(json.dumps(config))
    preflight(inverting_recipe(folder, model, method="noise"))
    with pytest.raises(UserError, match="does not support DDIM inversion; give --method noise"):
        preflight(inverting_recipe(folder, model))


def test_images_with_unseen_classes_are_left_out(folder: Path) -> None:
    recipe, left_out = recipe_of_folder(real_options(folder, max_images=None), {}, {})
    everything, _ = recipe_of_folder(real_options(folder, max_images=None, split="all"), {}, {})
    assert recipe.n + left_out == 16
    assert recipe.n < everything.n
    unseen = set(voc().unseen("1"))
    assert not any(unseen & set(sample.prompt.classes) for sample in Plan(recipe).samples())


@pytest.fixture
def coco_folder(tmp_path: Path) -> tuple[Path, Path]:
    """Two images: a dog before a cat, and a crowd beside a unicorn."""
    images = tmp_path / "images"
    images.mkdir()
    for number in (7, 9):
        Image.new("RGB", (40, 30), (200, 100, 50)).save(images / f"{number}.jpg")

    def box(image: int, number: int, category: int, x: int, y: int, side: int, crowd: int = 0) -> dict[str, Any]:
        corners = [x, y, x + side, y, x + side, y + side, x, y + side]
        about = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "area": side * side}
        if crowd:
            from pycocotools import mask

            dense = np.zeros((30, 40), np.uint8, order="F")
            dense[y : y + side, x : x + side] = 1
            packed = mask.encode(dense)
            return about | {"segmentation": {"size": packed["size"], "counts": packed["counts"].decode()}}
        return about | {"segmentation": [corners]}

    names = {17: "cat", 18: "dog", 99: "unicorn"}
    data = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 40, "height": 30} for k in (7, 9)],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        "annotations": [
            box(7, 1, 18, 10, 10, 8), box(7, 2, 17, 4, 4, 20), box(9, 3, 17, 0, 0, 6),
            box(9, 4, 18, 20, 10, 10, crowd=1), box(9, 5, 99, 30, 0, 5),
        ],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(data))
    return images, tmp_path / "instances.json"


def test_coco_instances_are_merged_smaller_in_front_and_crowds_are_ignored(coco_folder: tuple[Path, Path]) -> None:
    images, annotations = coco_folder
    folder = CocoFolder(images, annotations, coco())
    cat, dog = coco().names.index("cat") + 1, coco().names.index("dog") + 1
    first, second = (folder.load(key).labels for key in folder.keys)
    assert (first == dog).sum() == 64
    assert (first == cat).sum() == 400 - 64
    assert (second == 255).sum() == 100
    assert (second == cat).sum() == 36
    assert second[2, 32] == 0


def test_a_coco_folder_becomes_a_recipe(coco_folder: tuple[Path, Path]) -> None:
    images, annotations = coco_folder
    options = RealOptions("coco", images, None, annotations, "coco", "all", None, "noise", None, 0.23, 3, 0.01)
    recipe, left_out = recipe_of_folder(options, {}, {})
    assert (recipe.n, left_out) == (2, 0)
    assert [sample.prompt.text for sample in Plan(recipe).samples()] == [
        "a photograph of a cat and a dog",
        "a photograph of a cat",
    ]


def test_an_unseen_class_without_a_pixel_of_its_own_excludes_its_image(coco_folder: tuple[Path, Path]) -> None:
    """An image that shows a crowd of an unseen class, or such an object behind others, was used for training."""
    images, annotations = coco_folder
    split = annotations.with_name("unseen.txt")
    split.write_text("dog\n")
    options = RealOptions("coco", images, None, annotations, "coco", str(split), None, "noise", None, 0.23, 3, 0.01)
    with pytest.raises(UserError, match=r"no image of .* can be used: 2 contain classes outside split"):
        recipe_of_folder(options, {}, {})
    data = json.loads(annotations.read_text())
    data["annotations"][3].update(category_id=17)  # the crowd is one of cats
    annotations.write_text(json.dumps(data))
    recipe, _ = recipe_of_folder(options, {}, {})
    assert recipe.real is not None
    assert list(recipe.real.keys) == ["9"]
    data["annotations"].append({**data["annotations"][2], "category_id": 18, "area": 40})  # a dog behind the cat
    annotations.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"no image of .* can be used"):
        recipe_of_folder(options, {}, {})


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_dataset_with_options_that_are_rejected_today_is_resumed_without_them(
    layout: str, folder: Path, coco_folder: tuple[Path, Path], tmp_path: Path
) -> None:
    """Earlier versions stored --inversion-steps of the method noise, and --real-set of COCO images."""
    images, annotations = coco_folder
    options = real_options(folder, method="noise")
    if layout == "coco":
        options = RealOptions("coco", images, None, annotations, "coco", "all", None, "noise", None, 0.23, 3, 0.01)
    recipe, _ = recipe_of_folder(options, {}, {})
    assert recipe.real is not None
    unused = {"steps": 20} | ({"image_set": "val"} if layout == "coco" else {})
    stored = recipe.model_copy(update={"real": recipe.real.model_copy(update=unused)})
    store = Store(str(tmp_path / "set"))
    init_or_resume(store, stored)
    store.put("receipts/000000.json", b"{}")
    assert init_or_resume(store, recipe).fingerprint() == stored.fingerprint() != recipe.fingerprint()
    ddim = recipe.model_copy(update={"real": recipe.real.model_copy(update={"method": "ddim"})})
    with pytest.raises(UserError, match=r"real\.method: .*, or give another --shards"):
        init_or_resume(store, ddim)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": Path("nowhere")}, "is not a PASCAL VOC folder: it has no folder JPEGImages. Give the folder that"),
        ({"image_set": "test"}, "has no image set test: there is no "),
        ({"min_area": 1.0}, "no image of"),
        ({"dataset": "coco"}, "give --annotations instances_train2017.json"),
        ({"dataset": "coco", "image_set": "val"}, "--real-set val has no effect with --layout coco"),
        ({"method": "noise", "steps": 50}, "--inversion-steps 50 has no effect with --method noise"),
        ({"dataset": "coco", "annotations": Path("nowhere.json")}, "nowhere.json does not exist"),
        ({"classes": "coco", "split": "9"}, "there is no split '9' for coco"),
    ],
)
def test_an_unusable_folder_raises_a_clear_error(folder: Path, change: dict[str, Any], message: str) -> None:
    if "annotations" in change:
        message = f"{Path('nowhere.json').absolute()}"
    with pytest.raises(UserError) as error:
        recipe_of_folder(real_options(folder, **change), {}, {})
    assert message in str(error.value)


def test_models_that_cannot_be_inverted_are_named() -> None:
    transformer = next(family for family in FAMILIES if not family.is_unet)
    recipe: Any = SimpleNamespace(real=SimpleNamespace(method="ddim"), generator=SimpleNamespace(model="m"))
    with pytest.raises(UserError, match=f"m is of the family {re.escape(transformer.name)}; real images can be inver"):
        _check_inversion(recipe, transformer, "FlowMatchEulerDiscreteScheduler", {}, {})
    with pytest.raises(UserError, match="m has a FlowMatchEulerDiscreteScheduler, whose noise levels DDIM inversion"):
        _check_inversion(recipe, FAMILIES[0], "FlowMatchEulerDiscreteScheduler", {}, {})
