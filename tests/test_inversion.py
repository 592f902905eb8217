"""Inversion of real images: datasets, reconstruction quality and errors."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from factory.cli.main import app
from factory.config.plan import Plan
from factory.config.recipe import Recipe, load_recipe, make_recipe
from factory.config.vocabulary import coco, voc
from factory.dataset.storage import Store
from factory.dataset.verify import verify
from factory.errors import UserError
from factory.generation.inversion_recipe import RealOptions, check_labels, mean_psnr, recipe_of_folder
from factory.generation.pin import pin_recipe
from factory.generation.preflight import _check_inversion, preflight
from factory.generation.run import generate
from factory.generator.families import FAMILIES
from factory.generator.interface import Request
from factory.generator.inversion import InvertingGenerator, psnr
from factory.grounder.data import OracleDataset
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.labelled.coco import CocoFolder
from factory.labelled.voc import VocFolder
from factory.stickers.voc_folder import write_voc_folder
from tests.support.datasets import make_dataset
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc") / "rendered"
    write_voc_folder(root, voc(), 20, ("noto",), size=96)
    return root


def _options(folder: Path, **changes: Any) -> RealOptions:
    plain = RealOptions("voc", folder, "train", None, "voc", "1", 6, "ddim", 4, 0.37, 3, 0.01)
    return replace(plain, **changes)


def _recipe(folder: Path, model: Path, **changes: Any) -> Recipe:
    given = {"model": str(model), "shard_size": 3, "batch": 2}
    return pin_recipe(recipe_of_folder(_options(folder, **changes), given, {})[0])


def test_an_inverted_dataset_verifies_and_has_the_true_masks(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = _recipe(folder, tiny_model)
    make_dataset(recipe, tmp_path / "set")
    store = Store(str(tmp_path / "set"))
    report = verify(store)
    assert (report.samples, report.damaged) == (6, {})
    truth = VocFolder(folder, "train", voc())
    assert recipe.real is not None
    for key, sample in zip(recipe.real.keys, OracleDataset(store).samples(0), strict=False):
        loaded = truth.load(key)
        assert set(sample.prompt.classes) <= set(voc().seen("1"))
        assert sample.labels.shape == (64, 64)
        for k, name in enumerate(sample.prompt.classes, 1):
            expected = (loaded.labels == voc().names.index(name) + 1).mean()
            assert (sample.labels == k).mean() == pytest.approx(expected, abs=0.02)
        assert (sample.labels == 255).any()
    assert 5 < mean_psnr(store, recipe) < 99


def test_a_folder_that_contains_an_image_twice_gives_a_sound_dataset(
    folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "voc"
    shutil.copytree(folder, copied)
    real = _recipe(copied, tiny_model).real
    assert real is not None
    for part in ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"):
        shutil.copy(copied / part.format(real.keys[0]), copied / part.format(real.keys[4]))
    recipe = _recipe(copied, tiny_model, method="noise")
    assert recipe.real is not None
    assert recipe.real.keys == real.keys
    first = make_dataset(recipe, tmp_path / "set")
    assert len(first) == 2
    assert verify(Store(str(tmp_path / "set"))).damaged == {}


def test_the_same_recipe_file_makes_the_same_bytes(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = _recipe(folder, tiny_model)
    first = make_dataset(recipe, tmp_path / "one")
    again = make_recipe(load_recipe(tmp_path / "one" / "recipe.yaml"))
    assert again.fingerprint() == recipe.fingerprint()
    assert [receipt.tar for receipt in make_dataset(again, tmp_path / "two")] == [receipt.tar for receipt in first]


def test_changed_or_missing_labels_are_rejected_before_anything_is_written(
    folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A resumed or repaired dataset must not mix labels; a repair must not delete what it cannot generate again."""
    copied = Path(shutil.copytree(folder, tmp_path / "voc"))
    recipe = _recipe(copied, tiny_model, method="noise", max_images=3)
    assert recipe.real is not None
    check_labels(recipe)
    store = Store(str(tmp_path / "set"))
    store.create("recipe.yaml", recipe.to_yaml().encode())
    store.create("train/000000.tar", b"left by a run that was killed")
    _, second, _ = (copied / f"SegmentationClass/{key}.png" for key in recipe.real.keys)
    labels = np.asarray(Image.open(second))
    Image.fromarray(labels[::-1]).save(second)
    for change, message in (
        (lambda: None, "but they are now"),
        (second.unlink, "does not exist"),
        (lambda: shutil.rmtree(copied), "is not a PASCAL VOC folder"),
    ):
        change()
        for to in (store, Store(str(tmp_path / "new"))):
            with pytest.raises(UserError, match=message):
                generate(recipe, to)
        result = CliRunner().invoke(app, ["verify", store.address, "--repair"])
        assert message in str(result.exception)
        assert set(store.list("")) == {"recipe.yaml", "train/000000.tar", ".lock"}
        assert not (tmp_path / "new").exists()


def test_more_steps_restore_the_image_better(folder: Path) -> None:
    """With the embedded model; the autoencoder sets the limit."""
    found = {}
    for steps in (4, 40):
        recipe = pin_recipe(recipe_of_folder(_options(folder, steps=steps, max_images=2), {}, {})[0])
        generator = InvertingGenerator(recipe)
        samples = Plan(recipe).shard(0).samples
        generated = generator.generate([Request(s.prompt, 0, s.index) for s in samples])
        found[steps] = np.mean([g.measured["psnr"] for g in generated])
        assert generated[0].noise_level == pytest.approx(0.37, abs=1 / steps)
    recipe = pin_recipe(recipe_of_folder(_options(folder, method="noise", max_images=2), {}, {})[0])
    generator = InvertingGenerator(recipe)
    generated = generator.generate([Request(s.prompt, 0, s.index) for s in Plan(recipe).shard(0).samples])
    assert generated[0].noise_level == 0
    limit = np.mean([g.measured["psnr"] for g in generated])
    assert found[4] < found[40] <= limit + 0.5


def test_a_grounder_learns_from_inverted_images(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    make_dataset(_recipe(folder, tiny_model), tmp_path / "set")
    task = GrounderTask([OracleDataset(Store(str(tmp_path / "set")))], GrounderOptions(), "cpu", 1)
    assert torch.isfinite(task.loss(0, 4, 0))


def test_a_model_of_finer_latents_is_inverted_and_learnt_from(folder: Path, tmp_path: Path) -> None:
    """Four pixels per latent, and a finest level without attention."""
    model = tiny_pipeline(tmp_path / "fine", fine=True)
    recipe = _recipe(folder, model, max_images=3)
    make_dataset(recipe, tmp_path / "set")
    sample = next(iter(OracleDataset(Store(str(tmp_path / "set"))).samples(0)))
    assert sample.latent.shape == (4, 16, 16)
    assert sample.labels.shape == (64, 64)
    for module in ("guided", "paper"):
        task = GrounderTask([OracleDataset(Store(str(tmp_path / "set")))], GrounderOptions(module), "cpu", 1)
        assert task.backbone.side == 16
        assert torch.isfinite(task.loss(0, 2, 0))


def test_a_consistency_model_is_not_inverted_step_by_step(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "lcm"))
    config = json.loads((model / "unet" / "config.json").read_text()) | {"time_cond_proj_dim": 8}
    (model / "unet" / "config.json").write_text(json.dumps(config))
    preflight(_recipe(folder, model, method="noise"))
    with pytest.raises(UserError, match="does not support DDIM inversion; give --method noise"):
        preflight(_recipe(folder, model))


def test_images_with_unseen_classes_are_left_out(folder: Path) -> None:
    recipe, left_out = recipe_of_folder(_options(folder, max_images=None), {}, {})
    everything, _ = recipe_of_folder(_options(folder, max_images=None, split="all"), {}, {})
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
    options = RealOptions("coco", images, "train", annotations, "coco", "all", None, "noise", 4, 0.23, 3, 0.01)
    recipe, left_out = recipe_of_folder(options, {}, {})
    assert (recipe.n, left_out) == (2, 0)
    assert [sample.prompt.text for sample in Plan(recipe).samples()] == [
        "a photograph of a cat and a dog",
        "a photograph of a cat",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": Path("nowhere")}, "is not a PASCAL VOC folder with an image set train: JPEGImages is missing"),
        ({"image_set": "test"}, "ImageSets/Segmentation/test.txt is missing"),
        ({"min_area": 1.0}, "no image of"),
        ({"dataset": "coco"}, "name it with --annotations"),
        ({"dataset": "coco", "annotations": Path("nowhere.json")}, "nowhere.json does not exist"),
        ({"classes": "coco", "split": "9"}, "There is no split '9' for coco"),
    ],
)
def test_an_unusable_folder_raises_a_clear_error(folder: Path, change: dict[str, Any], message: str) -> None:
    if "annotations" in change:
        message = f"{Path('nowhere.json').absolute()}"
    with pytest.raises(UserError) as error:
        recipe_of_folder(_options(folder, **change), {}, {})
    assert message in str(error.value)


def test_psnr_of_known_images() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 16, np.uint8)
    assert psnr(black, grey) == pytest.approx(24.05, abs=0.01)
    assert psnr(black, black) == 99


def test_grounders_are_measured_on_true_masks(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    from factory.evaluation.grounders_on_real import as_markdown, on_real
    from factory.training.loop import TrainOptions, train

    model = shutil.copytree(tiny_model, tmp_path / "model")
    make_dataset(_recipe(folder, model), tmp_path / "seen")
    make_dataset(_recipe(folder, model, split="all", max_images=8), tmp_path / "all")
    task = GrounderTask([OracleDataset(Store(str(tmp_path / "seen")))], GrounderOptions(), "cpu", 2)
    options = TrainOptions(steps=2, batch=2, learning_rate=1e-3, ema_decay=0.5)
    grounder = train(task, options, tmp_path / "run", lambda text: None)
    (result,) = on_real([str(grounder)], [f"drawn={tmp_path / 'all'}"], report=lambda text: None)
    assert result.images == 8
    assert 0 <= result.miou <= 1
    assert 0 <= result.unseen <= 1
    assert "| drawn | guided | 1 |" in as_markdown([result])
    make_dataset(pin_recipe(recipe_of_folder(_options(folder, max_images=2), {}, {})[0]), tmp_path / "other")
    with pytest.raises(UserError, match="was trained on"):
        on_real([str(grounder)], [str(tmp_path / "other")])
    with (model / "unet" / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(UserError, match="the model now has revision"):
        on_real([str(grounder)], [str(tmp_path / "all")])


def test_a_batch_of_images_that_does_not_fit_into_memory_is_inverted_in_parts(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(folder, tiny_model, method="noise")
    requests = [Request(s.prompt, 0, s.index) for s in Plan(recipe).shard(0).samples[:3]]
    generator, sizes = InvertingGenerator(recipe), []
    round_trip = generator.round_trip

    def limited(images: Any, prompts: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return round_trip(images, prompts)

    monkeypatch.setattr(generator, "round_trip", limited)
    assert len(generator.generate(requests)) == 3
    assert sizes == [3, 2, 1, 1, 1]


def test_models_that_cannot_be_inverted_are_named() -> None:
    transformer = next(family for family in FAMILIES if not family.is_unet)
    recipe: Any = SimpleNamespace(real=SimpleNamespace(method="ddim"), generator=SimpleNamespace(model="m"))
    with pytest.raises(UserError, match=f"m is of the family {re.escape(transformer.name)}; real images can be inver"):
        _check_inversion(recipe, transformer, "FlowMatchEulerDiscreteScheduler", {}, {})
    with pytest.raises(UserError, match="m has a FlowMatchEulerDiscreteScheduler, whose noise levels DDIM inversion"):
        _check_inversion(recipe, FAMILIES[0], "FlowMatchEulerDiscreteScheduler", {}, {})
