"""Segmenters trained on shards and labelled folders, and evaluated like PASCAL VOC."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.splits import seen_classes
from factory.config.vocabulary import coco, from_names, voc
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.generation.inversion_recipe import RealOptions, recipe_of_folder
from factory.generation.pin import pin_recipe
from factory.labelled.coco import CocoFolder
from factory.labelled.interface import LabelledImage
from factory.labelled.voc import VocFolder
from factory.segmenter import model
from factory.segmenter.data import DatasetSource
from factory.segmenter.evaluate import Confusion, summarise
from factory.segmenter.measure import RealImages, evaluate_here
from factory.segmenter.model import load_segmenter, new_segmenter, save_segmenter
from factory.segmenter.run import SegmenterTraining, train_here
from factory.segmenter.training import augmented
from tests.support.coco_folder import write_annotations
from tests.support.datasets import make_dataset
from tests.support.tiny_segmenter import NAMES, saved_tiny, tiny


@pytest.mark.parametrize("kind", ["segformer", "maskformer", "mask2former"])
def test_a_segmenter_learns_and_scores_have_the_image_size(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = tiny(kind)
    samples = [sample.decode() for sample in VocFolder(folder, "train", voc()).samples(0)[:4]]
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples]))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for _ in range(8):
        loss = model.loss(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model.scores(images).shape == (4, 21, 64, 64)


@pytest.mark.parametrize("kind", ["segformer", "maskformer", "mask2former"])
def test_a_saved_segmenter_gives_the_same_scores(kind: str, tmp_path: Path) -> None:
    model = tiny(kind).eval()
    save_segmenter(model, tmp_path / kind, {})
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    loaded = load_segmenter(tmp_path / kind)
    assert loaded.names == tuple(NAMES)
    with torch.no_grad():
        assert torch.allclose(model.scores(images), loaded.scores(images), atol=1e-5)


@pytest.mark.parametrize("kind", ["segformer", "maskformer", "mask2former"])
@pytest.mark.parametrize("side", [64, None])
def test_transformers_predicts_with_the_folder_as_the_segmenter_does(
    kind: str, side: int | None, tmp_path: Path
) -> None:
    """The folder had no preprocessor_config.json, so that `pipeline` could not open it."""
    from PIL import Image
    from transformers import pipeline

    torch.manual_seed(0)
    save_segmenter(tiny(kind), tmp_path, {"run": {"side": side}})
    predict, model = pipeline("image-segmentation", str(tmp_path)), load_segmenter(tmp_path)
    small = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    image = Image.fromarray(small).resize((256, 192), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    given = predict.image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(given, model._normalised(model._at_training_scale(pixels)), atol=0.03)
    with torch.no_grad():
        expected = model.scores(pixels).argmax(1)[0].numpy()
    found = predict(image, subtask="semantic")
    masks = {segment["label"]: np.asarray(segment["mask"]) > 0 for segment in found}
    agreement = sum((mask & (expected == NAMES.index(name))).sum() for name, mask in masks.items())
    assert agreement / expected.size > 0.98


def test_images_are_scored_at_the_scale_of_the_training(tmp_path: Path) -> None:
    """In crops of 64 pixels, the objects of larger images are smaller. They were only scored at their own size."""
    save_segmenter(tiny("segformer"), tmp_path, {"run": {"side": 64}})
    model, read = load_segmenter(tmp_path), []
    model.network.register_forward_pre_hook(
        lambda network, arguments, given: read.append(given["pixel_values"].shape[-2:]), with_kwargs=True
    )
    images = torch.randint(0, 255, (1, 3, 192, 240), dtype=torch.uint8)
    with torch.no_grad():
        assert model.scores(images).shape == (1, 21, 192, 240)
        same_size = model.scores(images[..., :64, :80])
        model.side = None
        assert torch.equal(model.scores(images[..., :64, :80]), same_size)
    assert read == [(64, 80)] * 3


def test_images_of_extreme_aspect_ratio_are_squeezed() -> None:
    """They were enlarged to a shorter side as long as a crop: one of 1 x 600 pixels required 24 GB."""
    model = tiny("segformer")
    model.side = 64
    assert model.input_size(4, 64) == (64, 1024)
    assert model.input_size(1, 60_000) == (64, 1024)
    with torch.no_grad():
        assert model.scores(torch.zeros(1, 3, 600, 1, dtype=torch.uint8)).shape == (1, 21, 600, 1)
    strip = LabelledImage("k", np.zeros((1, 60_000, 3), np.uint8), np.full((1, 60_000), 3, np.uint8))
    assert 3 in augmented(np.random.default_rng(0), strip, 64)[1]


def test_the_scores_of_all_classes_are_not_held_in_the_size_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 81 classes of COCO required 16 GB for a photograph of 48 megapixels."""
    torch.manual_seed(0)
    network, sizes, interpolate = tiny("segformer").eval(), list[int](), model.functional.interpolate

    def counting(scores: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        sizes.append(scores.shape[1])
        return interpolate(scores, *size, **options)

    images = torch.randint(0, 255, (2, 3, 64, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.scores(images).argmax(1)
        assert len(expected.unique()) > 3
        assert torch.equal(network.labels(images), expected)
        monkeypatch.setattr(model, "_MAX_SCORES", 4 * images[:, 0].numel())
        monkeypatch.setattr(model.functional, "interpolate", counting)
        assert torch.equal(network.labels(images), expected)
    assert sizes[-6:] == [4, 4, 4, 4, 4, 1]


def test_a_batch_holds_fewer_images_if_the_network_enlarges_them() -> None:
    from factory.segmenter import evaluate

    small = [LabelledImage("k", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))] * 9
    assert [len(batch) for batch in evaluate._by_size(small, lambda height, width: (1024, 1024))] == [4, 4, 1]


def test_an_evaluation_holds_one_batch_of_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 images of a part were decoded first: 9 GB for photographs of 12 megapixels."""
    from factory.segmenter import evaluate

    monkeypatch.setattr(evaluate, "_MAX_BATCH_PIXELS", 4 * 64)
    decoded = list[int]()

    def samples() -> Iterator[LabelledImage]:
        for side in (8, 8, 8, 8, 8, 16, 16, 32, 8):
            decoded.append(side)
            yield LabelledImage("k", np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8))

    batches = evaluate._by_size(samples(), lambda height, width: (height, width))
    assert len(next(batches)) == 4
    assert len(decoded) == 5
    assert [[image.labels.shape[0] for image in batch] for batch in batches] == [[8], [16], [16], [32], [8]]


def test_shards_and_folders_have_the_same_classes(shards: Path, folder: Path) -> None:
    source = DatasetSource(Store(str(shards)), voc())
    assert source.size == 10
    for part in range(source.parts()):
        for sample in (lazy.decode() for lazy in source.samples(part)):
            assert sample.image.shape == (64, 64, 3)
            assert sample.labels.max() <= 20
    wide = VocFolder(folder, "val", coco())
    narrow = VocFolder(folder, "val", voc())
    wide_labels, narrow_labels = (
        {int(k) for k in np.unique(part.samples(0)[0].decode().labels)} - {0, 255} for part in (wide, narrow)
    )
    assert {coco().names[k - 1] for k in wide_labels} == {
        coco().resolve(voc().names[k - 1]).name for k in narrow_labels
    }


def test_images_of_unseen_classes_are_left_out(folder: Path) -> None:
    everything = VocFolder(folder, "trainval", voc())
    seen = VocFolder(folder, "trainval", voc(), seen_classes(voc(), "1"))
    assert 0 < seen.size < everything.size
    unseen = {voc().names.index(name) + 1 for name in voc().unseen("1")}
    for lazy in seen.samples(0):
        assert not unseen & set(np.unique(lazy.decode().labels).tolist())


def test_an_augmented_crop_is_square_and_ignores_pixels_outside() -> None:
    labels = np.full((40, 100), 3, np.uint8)
    sample = LabelledImage("k", np.full((40, 100, 3), 200, np.uint8), labels)
    seen = set()
    for seed in range(20):
        image, cropped = augmented(np.random.default_rng(seed), sample, 64)
        assert image.shape == (64, 64, 3)
        assert cropped.shape == (64, 64)
        assert set(np.unique(cropped)) <= {3, 255}
        seen |= set(np.unique(cropped).tolist())
    assert seen == {3, 255}


def test_the_confusion_matrix_matches_vocs_devkit() -> None:
    confusion = Confusion(4)
    confusion.add(np.array([[0, 0, 1, 1, 2, 2, 2, 255]], np.uint8), np.array([[0, 1, 1, 1, 2, 0, 0, 2]], np.uint8))
    confusion.add(np.array([[2, 0, 0]], np.uint8), np.array([[2, 0, 0]], np.uint8))
    result = summarise(confusion, ["background", "a", "b", "c"], ["b"], 2)
    assert result.by_class == pytest.approx({"background": 3 / 6, "a": 2 / 3, "b": 2 / 4, "c": np.nan}, nan_ok=True)
    assert result.miou == pytest.approx((3 / 6 + 2 / 3 + 2 / 4) / 3)
    assert (result.seen, result.unseen) == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    assert result.harmonic == pytest.approx(4 / 7)


def test_train_and_evaluate_on_shards_and_a_folder(shards: Path, folder: Path, tmp_path: Path) -> None:
    start = saved_tiny(tmp_path / "tiny")
    run = SegmenterTraining(
        out=str(tmp_path / "run"),
        shards=(str(shards),),
        architecture=str(start),
        real=str(folder),
        real_classes="seen",
        split="1",
        steps=4,
        batch=4,
        side=64,
        threads=1,
    )
    result = evaluate_here(train_here(run, lambda text: None), RealImages(folder, split="1"), threads=1)
    assert result.images == 6
    assert 0 <= result.miou <= 1


def test_coco_images_give_the_same_figures_as_voc_images(folder: Path, tmp_path: Path) -> None:
    ids = {entry.name: entry.id for entry in voc().classes}
    annotations = write_annotations(VocFolder(folder, "val", voc()), tmp_path / "instances.json", ids)
    run = SegmenterTraining(
        out=str(tmp_path / "run"),
        architecture=str(saved_tiny(tmp_path / "tiny")),
        real=str(folder / "JPEGImages"),
        annotations=str(annotations),
        steps=2,
        batch=2,
        side=64,
        threads=1,
    )
    model = train_here(run.absolute(), lambda text: None)
    on_voc = evaluate_here(model, RealImages(folder, split="1"), threads=1)
    images = RealImages(folder / "JPEGImages", annotations=annotations, split="1")
    on_coco = evaluate_here(model, images, threads=1)
    assert (on_coco.images, on_coco.by_class) == (on_voc.images, pytest.approx(on_voc.by_class, nan_ok=True))
    with pytest.raises(UserError, match="has no category that is in your list of classes"):
        CocoFolder(folder / "JPEGImages", annotations, from_names(("unicorn",), "here"))


def test_inverted_images_are_mixed_in_if_they_show_only_seen_classes(
    shards: Path, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for split in ("1", "2"):
        options = RealOptions("voc", folder, None, None, "voc", split, 4, "noise", None, 0.2, 3, 0.01)
        recipe = recipe_of_folder(options, {"model": str(tiny_model), "shard_size": 4, "batch": 2}, {})[0]
        make_dataset(pin_recipe(recipe), tmp_path / split)
    run = SegmenterTraining(
        out=str(tmp_path / "run"),
        shards=(str(shards),),
        architecture=str(saved_tiny(tmp_path / "tiny", "mask2former")),
        real=str(tmp_path / "1"),
        real_classes="seen",
        split="1",
        steps=2,
        batch=4,
        side=64,
        threads=1,
    )
    assert (train_here(run.absolute(), lambda text: None) / "segmenter.json").is_file()
    with pytest.raises(UserError, match=r"--annotations has no effect because --real .* is a dataset"):
        train_here(replace(run, annotations="instances.json"))
    with pytest.raises(UserError, match="unseen in split 1; make it with `factory invert --split 1`"):
        train_here(replace(run, real=str(tmp_path / "2"), out=str(tmp_path / "other")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train imports Ray Data, which warns
def test_two_processes_train_together(
    shards: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Ray Train, with paths relative to the current directory."""
    from factory.config.sections import EngineRecipe
    from factory.training.distributed import train_on_several

    monkeypatch.chdir(tmp_path)
    save_segmenter(tiny("segformer"), Path("tiny"), {})
    run = SegmenterTraining("run", (str(shards),), "voc", "tiny", str(folder), steps=4, batch=4, side=64, threads=1)
    trained = train_on_several(train_here, run.absolute(), 2, EngineRecipe())
    assert trained == tmp_path / "run" / "model"
    assert evaluate_here(trained, RealImages(folder), threads=1).images
    with pytest.raises(UserError, match="is not divisible by the 3 devices"):
        train_on_several(train_here, run, 3, EngineRecipe())
    with pytest.raises(UserError, match=r"belongs to another run .*batch was 4, is 8"):
        train_on_several(train_here, replace(run.absolute(), batch=8), 2, EngineRecipe())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "there is nothing to train on"),
        ({"real": "here", "real_classes": "seen"}, "--real-classes seen requires --split"),
        ({"real": "here", "split": "1"}, "--split 1 has no effect with --real-classes all"),
        ({"shards": ("set",), "real_classes": "seen", "split": "1"}, "--real-classes seen requires --real"),
        ({"shards": ("set",), "annotations": "instances.json"}, "--annotations requires --real"),
        ({"shards": ("set",), "real_set": "train"}, "--real-set requires --real"),
        ({"shards": ("set",), "real_share": 0.2}, "--real-share requires --real"),
        ({"real": "FOLDER", "real_share": 0.2}, "--real-share 0.2 has no effect, because --real is all"),
        ({"real": "FOLDER", "real_set": "val", "annotations": "a.json"}, "--real-set val has no effect with --annot"),
        ({"real": "ORACLE", "real_set": "val"}, "--real-set val has no effect because --real .* is a dataset"),
        ({"out": "/dev/null/run"}, "--out /dev/null/run cannot be written: /dev/null is not a folder"),
        ({"real": "here"}, "is not a PASCAL VOC folder"),
        ({"shards": ("nowhere",)}, "is not a dataset"),
        ({"real": "FOLDER", "architecture": "nothing"}, "there is no architecture nothing"),
        ({"real": "FOLDER", "classes": "dog,cat"}, "which is not in your list of classes; give"),
    ],
)
def test_invalid_training_data_raises_a_clear_error(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    if change.get("real") == "FOLDER":
        change = change | {"real": str(folder)}
    if change.get("real") == "ORACLE":
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "recipe.yaml").write_text("n: 1\n")
        change = change | {"real": str(tmp_path / "set")}
    with pytest.raises(UserError, match=message):
        train_here(SegmenterTraining(**{"out": str(tmp_path / "run"), "steps": 1, "threads": 1, **change}))


def test_the_default_segmenter_has_the_classes_of_the_vocabulary() -> None:
    model = new_segmenter("segformer", NAMES)
    assert model.scores(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 21, 64, 64)
    assert 3e6 < sum(weight.numel() for weight in model.parameters()) < 4.5e6


def test_the_harmonic_mean_is_0_if_no_class_is_found_and_undefined_without_unseen_classes() -> None:
    nothing_found = Confusion(3)
    nothing_found.add(np.array([[0, 1, 2]], np.uint8), np.zeros((1, 3), np.uint8))
    names = ("background", "dog", "cat")
    result = summarise(nothing_found, names, ("cat",), 1)
    assert (result.seen, result.unseen, result.harmonic) == (0, 0, 0)
    assert np.isnan(summarise(nothing_found, names, (), 1).harmonic)
