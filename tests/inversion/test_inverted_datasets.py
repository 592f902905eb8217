"""Datasets of inverted images: their bytes, masks and labels, and what grounders learn from them."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factory.config.recipe import load_recipe, make_recipe
from factory.config.splits import seen_classes
from factory.config.vocabulary import coco, voc
from factory.dataset.storage import Store
from factory.dataset.verify import verify
from factory.errors import UserError
from factory.generation.inversion_recipe import check_labels, recipe_of_folder
from factory.generation.pin import pin_recipe
from factory.generation.reconstruction import mean_psnr
from factory.generation.run import generate
from factory.grounder.data import OracleDataset
from factory.grounder.iou import IoUMeter
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.labelled.voc import VocFolder
from tests.inversion.conftest import inverting_recipe, real_options
from tests.support.datasets import make_dataset
from tests.support.in_process import invoke
from tests.support.tiny_pipeline import tiny_pipeline


def test_an_inverted_dataset_verifies_and_has_the_true_masks(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = inverting_recipe(folder, tiny_model)
    make_dataset(recipe, tmp_path / "set")
    store = Store(str(tmp_path / "set"))
    report = verify(store)
    assert (report.samples, report.damaged) == (6, {})
    truth = VocFolder(folder, "train", voc())
    assert recipe.real is not None
    for key, sample in zip(recipe.real.keys, OracleDataset(store).samples(0), strict=False):
        loaded = truth.load(key)
        assert set(sample.prompt.classes) <= set(seen_classes(voc(), "1"))
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
    real = inverting_recipe(copied, tiny_model).real
    assert real is not None
    for part in ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"):
        shutil.copy(copied / part.format(real.keys[0]), copied / part.format(real.keys[4]))
    recipe = inverting_recipe(copied, tiny_model, method="noise")
    assert recipe.real is not None
    assert recipe.real.keys == real.keys
    first = make_dataset(recipe, tmp_path / "set")
    assert len(first) == 2
    assert verify(Store(str(tmp_path / "set"))).damaged == {}


def test_the_same_recipe_file_makes_the_same_bytes(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = inverting_recipe(folder, tiny_model)
    first = make_dataset(recipe, tmp_path / "one")
    again = make_recipe(load_recipe(tmp_path / "one" / "recipe.yaml"))
    assert again.fingerprint() == recipe.fingerprint()
    assert [receipt.tar for receipt in make_dataset(again, tmp_path / "two")] == [receipt.tar for receipt in first]


def test_changed_or_missing_labels_are_rejected_before_anything_is_written(
    folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A resumed or repaired dataset must not mix labels; a repair must not delete what it cannot generate again."""
    copied = Path(shutil.copytree(folder, tmp_path / "voc"))
    recipe = inverting_recipe(copied, tiny_model, method="noise", max_images=3)
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
        (second.unlink, "has no file"),
        (lambda: shutil.rmtree(copied), "is not a PASCAL VOC folder"),
    ):
        change()
        for to in (store, Store(str(tmp_path / "new"))):
            with pytest.raises(UserError, match=message):
                generate(recipe, to)
        result = invoke("verify", store.address, "--repair")
        assert message in str(result.exception)
        assert set(store.list("")) == {"recipe.yaml", "train/000000.tar", ".lock"}
        assert not (tmp_path / "new").exists()


def test_a_grounder_learns_from_inverted_images(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    make_dataset(inverting_recipe(folder, tiny_model), tmp_path / "set")
    task = GrounderTask([OracleDataset(Store(str(tmp_path / "set")))], GrounderOptions(), "cpu", 1)
    assert torch.isfinite(task.loss(0, 4, 0))


def test_a_model_of_finer_latents_is_inverted_and_learnt_from(folder: Path, tmp_path: Path) -> None:
    """Four pixels per latent, and a finest level without attention."""
    model = tiny_pipeline(tmp_path / "fine", fine=True)
    recipe = inverting_recipe(folder, model, max_images=3)
    make_dataset(recipe, tmp_path / "set")
    sample = next(iter(OracleDataset(Store(str(tmp_path / "set"))).samples(0)))
    assert sample.latent.shape == (4, 16, 16)
    assert sample.labels.shape == (64, 64)
    for module in ("guided", "paper"):
        task = GrounderTask([OracleDataset(Store(str(tmp_path / "set")))], GrounderOptions(module), "cpu", 1)
        assert task.backbone.side == 16
        assert torch.isfinite(task.loss(0, 2, 0))


def test_grounders_are_measured_on_true_masks(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.evaluation import real_masks
    from factory.evaluation.grounders_on_real import as_markdown, on_real
    from factory.training.loop import train
    from factory.training.options import TrainOptions

    model = shutil.copytree(tiny_model, tmp_path / "model")
    make_dataset(inverting_recipe(folder, model), tmp_path / "seen")
    make_dataset(inverting_recipe(folder, model, split="all", max_images=8), tmp_path / "all")
    task = GrounderTask([OracleDataset(Store(str(tmp_path / "seen")))], GrounderOptions(), "cpu", 2)
    options = TrainOptions(steps=2, batch=2, learning_rate=1e-3, ema_decay=0.5)
    grounder = train(task, options, tmp_path / "run", lambda text: None)
    assert "Trained on images with human labels." in (grounder / "README.md").read_text()
    (result,) = on_real([str(grounder)], [f"drawn={tmp_path / 'all'}"], report=lambda text: None)
    assert result.images == 8
    assert 0 <= result.miou <= 1
    assert 0 <= result.unseen <= 1
    assert result.area >= 0
    assert "| drawn | guided | 1 |" in as_markdown([result])
    predict = real_masks.predict

    def limited(*arguments: Any) -> np.ndarray:
        if len(arguments[-1]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(*arguments)

    monkeypatch.setattr(real_masks, "predict", limited)
    (in_parts,) = on_real([str(grounder)], [f"drawn={tmp_path / 'all'}"], report=lambda text: None)
    assert (in_parts.images, in_parts.miou) == (8, pytest.approx(result.miou, abs=0.01))
    messages: list[str] = []
    on_real([str(grounder)], [f"mine={tmp_path / 'seen'}"], report=messages.append)
    assert messages[0].startswith("guided was trained on mine, so its figures there say nothing about other images")
    assert len(messages) == 2
    make_dataset(pin_recipe(recipe_of_folder(real_options(folder, max_images=2), {}, {})[0]), tmp_path / "other")
    with pytest.raises(UserError, match="was trained on"):
        on_real([str(grounder)], [str(tmp_path / "other")])
    with (model / "unet" / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(UserError, match="the model now has revision"):
        on_real([str(grounder)], [str(tmp_path / "all")])


def test_a_class_that_a_grounder_has_seen_by_another_name_is_seen() -> None:
    """VOC images have a sofa; a grounder of COCO has seen couches. The sofa was averaged with the unseen classes."""
    from factory.evaluation.grounders_on_real import _result

    meter = IoUMeter()
    meter.add(("sofa", "train"), np.array([[1, 0, 0, 0]]), np.array([[1, 2, 0, 0]]))
    config: Any = SimpleNamespace(classes_seen=seen_classes(coco(), "1"), split="1")
    result = _result("guided", config, "voc", meter)
    assert (result.miou, result.seen, result.unseen) == (0.5, 1, 0)


def test_the_area_of_masks_is_compared_with_that_of_the_true_ones() -> None:
    """Ignored pixels do not count, and too large and too small masks of an image can compensate each other."""
    meter = IoUMeter()
    assert np.isnan(meter.area)
    meter.add(("dog", "cat"), np.array([[1, 1, 1, 2, 2]]), np.array([[1, 1, 0, 2, 255]]))
    assert meter.area == 4 / 3
