"""What a segmenter's batches are made of: shares over steps, empty shards, crops without labels; and its weights."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.config.vocabulary import from_names, voc
from factory.dataset.masks import IGNORE
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.labelled.interface import LabelledImage
from factory.labelled.voc import VocFolder
from factory.segmenter.data import DatasetSource, LabelledStream, Shares
from factory.segmenter.model import load_segmenter, new_segmenter
from factory.segmenter.run import SegmenterTraining, train_here
from factory.segmenter.training import SegmenterOptions, SegmenterTask, augmented
from tests.test_segmenter import NAMES, folder, saved_tiny, shards, tiny  # noqa: F401


@pytest.mark.parametrize("shares", [(0.98, 0.02), (0.49, 0.49, 0.02), (1, 1, 1), (10_000, 10, 3), (0.1,) * 10, (1,)])
def test_shares_hold_over_steps(shares: tuple[float, ...]) -> None:
    """At no step is a source further from its share than a few samples, and every batch is full."""
    batch, dealt = 8, Shares(shares, 8)
    for step in range(1, 400):
        assert sum(dealt.next()) == batch
        wanted = np.array(shares) / sum(shares) * batch * step
        assert np.abs(np.array(dealt.given) - wanted).max() <= len(shares)
    assert all(given > 0 for given, share in zip(dealt.given, shares, strict=True) if share / sum(shares) > 1 / 3000)


@pytest.mark.parametrize("shares", [(1.0, -0.1), (float("nan"), 1.0), (0.0, 0.0), (float("inf"), 1.0)])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="Shares of a batch are"):
        Shares(shares, 8)


def test_a_share_of_two_percent_is_used_and_the_same_from_any_step_on(shards: Path, folder: Path) -> None:  # noqa: F811
    sources = [DatasetSource(Store(str(shards)), voc()), VocFolder(folder, "train", voc())]

    def stream() -> LabelledStream:
        return LabelledStream(sources, 4, 0, [0.98, 0.02])

    whole = stream()
    batches = [[row.key for row in whole.batch(step)] for step in range(60)]
    real = [sum(len(key) != 9 for key in batch) for batch in batches]  # a set's keys have nine digits
    assert sum(real) in (4, 5)
    assert [row.key for row in stream().batch(33)] == batches[33]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"real_share": 0.0}, "--real-share is 0.0"),
        ({"real_share": 1.0}, "--real-share is 1.0"),
        ({"real_share": float("nan")}, "--real-share is nan"),
        ({"real_share": 0.01}, "4 steps of 4 would use no sample of .*rendered, whose share is 0.01; give at least 25"),
    ],
)
def test_a_source_that_would_never_be_used_is_refused(
    shards: Path,  # noqa: F811
    folder: Path,  # noqa: F811
    tmp_path: Path,
    change: dict[str, Any],
    told: str,
) -> None:
    run = SegmenterTraining(str(tmp_path / "run"), (str(shards),), real=str(folder), steps=4, batch=4, threads=1)
    with pytest.raises(UserError, match=told):
        train_here(replace(run, **change))


def test_a_training_with_the_classes_in_another_order_is_another_training(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    start = saved_tiny(tmp_path / "tiny")
    names = voc().names
    run = SegmenterTraining(
        str(tmp_path / "run"), (), ",".join(names), str(start), str(folder), steps=2, batch=2, side=64, threads=1
    )
    train_here(run, lambda text: None)
    turned = ",".join(reversed(names))
    with pytest.raises(UserError, match=r"classes was airplane, .*, is tv, train"):
        train_here(replace(run, classes=turned), lambda text: None)
    with pytest.raises(UserError, match=r"can begin with .*its classes are background, aeroplane"):
        train_here(replace(run, classes=turned, start=str(start), out=str(tmp_path / "other")), lambda text: None)


class _HalfEmpty:
    """A source whose first part has no sample, as a shard in which nothing was accepted."""

    def __init__(self, source: DatasetSource) -> None:
        self._source, self.size, self.identity = source, source.size, source.identity

    def parts(self) -> int:
        return self._source.parts() + 1

    def samples(self, part: int) -> Any:
        return self._source.samples(part - 1) if part else []


def test_a_first_shard_without_a_sample_does_not_end_a_training(shards: Path) -> None:  # noqa: F811
    source = _HalfEmpty(DatasetSource(Store(str(shards)), voc()))
    task = SegmenterTask([source], voc(), SegmenterOptions(side=32), "cpu")
    assert task.sample_sheet(task.model.eval()).size == (10 * 32, 3 * 32)


def test_a_crop_has_a_labelled_pixel_wherever_the_sample_has_one() -> None:
    labels = np.full((40, 400), IGNORE, np.uint8)
    labels[20:22, 390:393] = 7
    row = LabelledImage("k", np.zeros((40, 400, 3), np.uint8), labels)
    for seed in range(50):
        assert 7 in augmented(np.random.default_rng(seed), row, 32)[1]
    empty = LabelledImage("k", row.image, np.full_like(labels, IGNORE))
    assert (augmented(np.random.default_rng(0), empty, 32)[1] == IGNORE).all()


@pytest.mark.parametrize("kind", ["segformer", "maskformer", "mask2former"])
def test_an_image_that_is_ignored_whole_teaches_nothing(kind: str) -> None:
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


def _changed(start: Path, place: Path, change: Any) -> Path:
    """A copy of a segmenter's folder with other weights."""
    shutil.copytree(start, place)
    weights = load_file(place / "model.safetensors")
    change(weights)
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    return place


@pytest.mark.parametrize("kind", ["segformer", "mask2former"])
def test_weights_that_are_missing_foreign_or_nan_are_named(kind: str, tmp_path: Path) -> None:
    start = saved_tiny(tmp_path / kind, kind)
    body = next(name for name in load_file(start / "model.safetensors") if "encoder" in name and name.endswith("bias"))
    lacking = _changed(start, tmp_path / "lacking", lambda weights: weights.pop(body))
    with pytest.raises(UserError, match=r"do not fit its config: 1 missing .*bias"):
        load_segmenter(lacking)
    with pytest.raises(UserError, match=r"does not give 1 of its network's weights, .*bias first"):
        new_segmenter(str(lacking), NAMES)
    broken = _changed(start, tmp_path / "broken", lambda weights: weights[body].fill_(float("nan")))
    for opened in (lambda: load_segmenter(broken), lambda: new_segmenter(str(broken), NAMES)):
        with pytest.raises(UserError, match=r"bias of .* holds NaN"):
            opened()
    other = new_segmenter(str(start), ["background", *from_names(("a", "b"), "here").names])
    assert other.scores(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1] == 3
    (start / "segmenter.json").write_text('{"names": ["background", "a"]}')
    with pytest.raises(UserError, match="mismatched"):
        load_segmenter(start)


def test_of_a_model_to_begin_with_only_the_whole_head_or_its_classifier_may_be_new(tmp_path: Path) -> None:
    start = saved_tiny(tmp_path / "segformer", "segformer")
    more = ["background", *from_names(("a", "b"), "here").names]

    def without_head(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith("decode_head.")]:
            del weights[name]

    assert new_segmenter(str(_changed(start, tmp_path / "body", without_head)), more).names == tuple(more)
    part = next(name for name in load_file(start / "model.safetensors") if name.endswith("0.proj.weight"))
    told = r"does not give 1 of its network's weights, decode_head\..*0\.proj\.weight first"
    cut = _changed(start, tmp_path / "cut", lambda weights: weights.pop(part))
    with pytest.raises(UserError, match=told):
        new_segmenter(str(cut), more)
    wide = _changed(start, tmp_path / "wide", lambda weights: weights.update({part: torch.zeros(3, 5)}))
    with pytest.raises(UserError, match=told):
        new_segmenter(str(wide), more)
    strange = {"segformer.encoder.strange": torch.zeros(1)}
    foreign = _changed(start, tmp_path / "foreign", lambda weights: weights.update(strange))
    with pytest.raises(UserError, match=r"holds 1 weights that its config.json does not have, .*strange first"):
        new_segmenter(str(foreign), more)
