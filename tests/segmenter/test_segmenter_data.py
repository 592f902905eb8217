"""A segmenter's batches (shares of sources, empty shards, crops without labels) and its weights."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from factory.config.vocabulary import coco, from_names, voc
from factory.dataset.masks import IGNORE
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.labelled.interface import LabelledImage
from factory.labelled.voc import VocFolder
from factory.segmenter.data import DatasetSource
from factory.segmenter.model import load_segmenter, new_segmenter
from factory.segmenter.run import SegmenterTraining, train_here
from factory.segmenter.training import SegmenterOptions, SegmenterTask, augmented
from factory.training.stream import SampleStream, Shares
from tests.support.export_datasets import make_dataset, samples_of
from tests.support.tiny_segmenter import NAMES, saved_tiny, tiny


@pytest.mark.parametrize("shares", [(0.98, 0.02), (0.49, 0.49, 0.02), (1, 1, 1), (10_000, 10, 3), (0.1,) * 10, (1,)])
def test_shares_hold_over_time(shares: tuple[float, ...]) -> None:
    """Every batch is full, and at every step each source is within a few samples of its share."""
    batch, counts = 8, Shares(shares, 8)
    for step in range(1, 400):
        assert sum(counts.next()) == batch
        expected = np.array(shares) / sum(shares) * batch * step
        assert np.abs(np.array(counts.totals) - expected).max() <= len(shares)
    assert all(total > 0 for total, share in zip(counts.totals, shares, strict=True) if share / sum(shares) > 1 / 3000)


@pytest.mark.parametrize("shares", [(1.0, -0.1), (float("nan"), 1.0), (0.0, 0.0), (float("inf"), 1.0)])
def test_invalid_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="the shares of the sources must be"):
        Shares(shares, 8)


def test_a_share_of_two_percent_is_used_and_does_not_depend_on_the_first_step(shards: Path, folder: Path) -> None:
    sources = [DatasetSource(Store(str(shards)), voc()), VocFolder(folder, "train", voc())]

    def stream() -> SampleStream[LabelledImage]:
        return SampleStream(sources, 4, 0, [0.98, 0.02])

    whole = stream()
    batches = [[sample.key for sample in whole.batch(step)] for step in range(60)]
    real = [sum(len(key) != 9 for key in batch) for batch in batches]  # generated keys have nine digits
    assert sum(real) in (4, 5)
    assert [sample.key for sample in stream().batch(33)] == batches[33]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real_share": 0.0}, "--real-share is 0.0"),
        ({"real_share": 1.0}, "--real-share is 1.0"),
        ({"real_share": float("nan")}, "--real-share is nan"),
        (
            {"real_share": 0.01},
            "4 steps of 4 samples would use no sample of .*rendered, whose share is 0.01; give at least 25",
        ),
    ],
)
def test_a_source_without_samples_in_any_batch_is_refused(
    shards: Path,
    folder: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    run = SegmenterTraining(str(tmp_path / "run"), (str(shards),), real=str(folder), steps=4, batch=4, threads=1)
    with pytest.raises(UserError, match=message):
        train_here(replace(run, **change))


def test_classes_in_another_order_are_another_run(folder: Path, tmp_path: Path) -> None:
    start = saved_tiny(tmp_path / "tiny")
    names = voc().names
    run = SegmenterTraining(
        str(tmp_path / "run"), (), ",".join(names), str(start), str(folder), steps=2, batch=2, side=64, threads=1
    )
    train_here(run, lambda text: None)
    reordered = ",".join(reversed(names))
    with pytest.raises(UserError, match=r"classes was airplane, .*, is tv, train"):
        train_here(replace(run, classes=reordered), lambda text: None)
    with pytest.raises(UserError, match=r"than --classes gives \(the same in another order or by"):
        train_here(replace(run, classes=reordered, start=str(start), out=str(tmp_path / "other")), lambda text: None)


def test_other_labels_of_the_same_images_are_another_run(folder: Path, tmp_path: Path) -> None:
    start, real = saved_tiny(tmp_path / "tiny"), shutil.copytree(folder, tmp_path / "real")
    run = SegmenterTraining(
        str(tmp_path / "run"), architecture=str(start), real=str(real), steps=2, batch=2, side=64, threads=1
    )
    train_here(run, lambda text: None)
    first, second = (real / "SegmentationClass" / f"{VocFolder(real, 'train', voc()).keys[k]}.png" for k in (0, 1))
    shutil.copy(first, second)
    with pytest.raises(UserError, match=r"belongs to another run .data was .* labelled images"):
        train_here(run, lambda text: None)


def test_labels_of_a_dataset_are_numbered_as_in_the_vocabulary(tmp_path: Path) -> None:
    """Its label images contain category ids, in another order and with gaps. Ignored pixels are no background."""
    store, _ = make_dataset(tmp_path, shards=range(1))
    for lazy, (key, row, stored, _) in zip(DatasetSource(store, coco()).samples(0), samples_of(store), strict=True):
        sample, expected = lazy.decode(), np.where(stored == IGNORE, IGNORE, 0)
        for annotation in row["annotations"]:
            expected[stored == annotation["category_id"]] = coco().names.index(annotation["category_name"]) + 1
        assert sample.key == key
        assert (sample.labels == expected).all()
        assert IGNORE in sample.labels


class _HalfEmpty:
    """A source whose first part is empty, like a shard in which every sample was rejected."""

    def __init__(self, source: DatasetSource) -> None:
        self._source, self.size, self.identity = source, source.size, source.identity

    def parts(self) -> int:
        return self._source.parts() + 1

    def samples(self, part: int) -> Any:
        return self._source.samples(part - 1) if part else []


def test_an_empty_first_shard_does_not_fail(shards: Path) -> None:
    source = _HalfEmpty(DatasetSource(Store(str(shards)), voc()))
    task = SegmenterTask([source], voc(), SegmenterOptions(side=32), "cpu")
    assert task.sample_sheet(task.model.eval()).size == (10 * 32, 3 * 32)


def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crops(rank: int, world: int) -> list[bytes]:
        monkeypatch.setattr("factory.segmenter.training.rank_and_world", lambda: (rank, world))
        task = SegmenterTask([DatasetSource(Store(str(shards)), voc())], voc(), SegmenterOptions(side=32), "cpu")
        return [image.tobytes() + labels.tobytes() for image, labels in task._crops(3, 4, 0)]

    assert sorted(crops(0, 2) + crops(1, 2)) == sorted(crops(0, 1))


def test_a_crop_has_a_labelled_pixel_if_the_sample_has_one() -> None:
    labels = np.full((40, 400), IGNORE, np.uint8)
    labels[20:22, 390:393] = 7
    sample = LabelledImage("k", np.zeros((40, 400, 3), np.uint8), labels)
    for seed in range(50):
        assert 7 in augmented(np.random.default_rng(seed), sample, 32)[1]
    empty = LabelledImage("k", sample.image, np.full_like(labels, IGNORE))
    assert (augmented(np.random.default_rng(0), empty, 32)[1] == IGNORE).all()


@pytest.mark.parametrize("kind", ["segformer", "maskformer", "mask2former"])
def test_a_fully_ignored_image_does_not_contribute_to_the_loss(kind: str) -> None:
    torch.manual_seed(0)
    model = tiny(kind).eval()
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    labels = torch.full((2, 64, 64), IGNORE, dtype=torch.uint8)
    loss = model.loss(images, labels)
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())
    labels[0, :20] = 3
    torch.manual_seed(1)
    both = model.loss(images, labels)
    torch.manual_seed(1)
    alone = model.loss(images[:1], labels[:1])
    assert both.item() == pytest.approx(alone.item(), rel=1e-4)


def test_the_losses_of_two_processes_average_to_that_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nearly all pixels of one part are ignored."""
    from factory.training import processes

    torch.manual_seed(0)
    model = tiny("segformer").eval()
    images, labels = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8), torch.zeros(2, 64, 64, dtype=torch.uint8)
    labels[0, :, :32], labels[1, 1:] = 3, IGNORE
    whole, counted = model.loss(images, labels), (labels != IGNORE).sum()
    monkeypatch.setattr(processes, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.copy_(counted), raising=False)
    first, second = (model.loss(images[k : k + 1], labels[k : k + 1]).item() for k in (0, 1))
    assert (first + second) / 2 == pytest.approx(whole.item(), rel=1e-4)


def _changed(start: Path, copy: Path, change: Any) -> Path:
    """A copy of a segmenter folder with changed weights."""
    shutil.copytree(start, copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("kind", ["segformer", "mask2former"])
def test_missing_unknown_or_nan_weights_are_named(kind: str, tmp_path: Path) -> None:
    start = saved_tiny(tmp_path / kind, kind)
    body = next(name for name in load_file(start / "model.safetensors") if "encoder" in name and name.endswith("bias"))
    incomplete = _changed(start, tmp_path / "incomplete", lambda weights: weights.pop(body))
    with pytest.raises(UserError, match=r"do not match its config: 1 missing .*bias"):
        load_segmenter(incomplete)
    with pytest.raises(UserError, match=r"is missing 1 weights of its network, starting with .*bias"):
        new_segmenter(str(incomplete), NAMES)
    broken = _changed(start, tmp_path / "broken", lambda weights: weights[body].fill_(float("nan")))
    for opened in (lambda: load_segmenter(broken), lambda: new_segmenter(str(broken), NAMES)):
        with pytest.raises(UserError, match=r"bias of .* contains NaN"):
            opened()
    other = new_segmenter(str(start), ["background", *from_names(("a", "b"), "here").names])
    assert other.scores(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1] == 3
    (start / "segmenter.json").write_text('{"names": ["background", "a"]}')
    with pytest.raises(UserError, match="mismatched"):
        load_segmenter(start)


def test_only_the_whole_head_or_its_classifier_may_be_missing_from_pretrained_weights(tmp_path: Path) -> None:
    start = saved_tiny(tmp_path / "segformer", "segformer")
    names = ["background", *from_names(("a", "b"), "here").names]

    def without_head(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith("decode_head.")]:
            del weights[name]

    assert new_segmenter(str(_changed(start, tmp_path / "body", without_head)), names).names == tuple(names)
    part = next(name for name in load_file(start / "model.safetensors") if name.endswith("0.proj.weight"))
    message = r"is missing 1 weights of its network, starting with decode_head\..*0\.proj\.weight"
    cut = _changed(start, tmp_path / "cut", lambda weights: weights.pop(part))
    with pytest.raises(UserError, match=message):
        new_segmenter(str(cut), names)
    wide = _changed(start, tmp_path / "wide", lambda weights: weights.update({part: torch.zeros(3, 5)}))
    with pytest.raises(UserError, match=message):
        new_segmenter(str(wide), names)
    unknown = {"segformer.encoder.unknown": torch.zeros(1)}
    foreign = _changed(start, tmp_path / "foreign", lambda weights: weights.update(unknown))
    with pytest.raises(
        UserError, match=r"contains 1 weights that do not match its config.json, starting with .*unknown"
    ):
        new_segmenter(str(foreign), names)


def test_a_label_image_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    key = (broken / "ImageSets/Segmentation/val.txt").read_text().split()[0]
    Image.new("P", (10, 10)).save(broken / "SegmentationClass" / f"{key}.png")
    with pytest.raises(UserError, match="has 10 x 10 pixels, but its image has 64 x 64"):
        VocFolder(broken, "val", voc()).samples(0)[0].decode()


def test_a_missing_image_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    key = (broken / "ImageSets/Segmentation/val.txt").read_text().split()[0]
    (broken / "JPEGImages" / f"{key}.jpg").unlink()
    with pytest.raises(UserError, match=f"JPEGImages has no file {key} with a suffix"):
        VocFolder(broken, "val", voc()).samples(0)[0].decode()
