"""Training of the embedded models: their tokenizer, and the detector of stickers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from factory.config.vocabulary import coco
from factory.errors import UserError
from factory.files.embedded_models import detector_folder, pipeline_folder
from factory.stickers import train_detector
from factory.stickers.detector import StickerDetector
from factory.stickers.scenes import render_scene
from factory.stickers.tokens import MAX_TOKENS, train_tokenizer
from factory.stickers.train_detector import DetectorTask, label_map, new_network
from factory.stickers.training_scenes import all_captions
from factory.training.checkpoint import restore, save_checkpoint
from tests.support.overfit import losses_on_one_batch


def test_the_same_captions_give_the_same_tokens() -> None:
    """Pairs often have equal counts, and runs of one recipe must be able to load each other's weights."""
    vocabularies = [train_tokenizer(all_captions()).get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]


def test_the_tokenizer_accepts_any_text_and_has_a_token_for_every_caption_word() -> None:
    tokenizer = train_tokenizer(all_captions())
    assert tokenizer.tokenize("a photograph of a traffic light") == [
        *(word + "</w>" for word in ("a", "photograph", "of", "a", "traffic", "light"))
    ]
    for text in ("", "日本 snørkel 🦄", "x" * 500):
        ids = tokenizer(text, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
        assert len(ids) == MAX_TOKENS
    ids = tokenizer("日本 snørkel").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "日本 snørkel"


def test_masks_boxes_and_scores_of_an_instance_are_consistent(tmp_path: Path) -> None:
    network = new_network()
    folder = tmp_path / "detector"
    network.save_pretrained(folder)
    detector = StickerDetector.from_pretrained(folder)
    assert detector.class_names == coco().names
    picture = Image.new("RGB", (96, 64))
    (instances,) = detector.detect([picture])
    for instance in instances:
        left, top, right, bottom = instance.box_xyxy
        assert instance.mask.shape == (64, 96)
        assert instance.mask[top:bottom, left:right].sum() == instance.mask.sum()
        assert 0 < instance.score <= 1


@pytest.mark.parametrize("config", [None, '{"model_type": "segformer"}', "[]"])
def test_a_folder_without_a_detector_raises_a_clear_error(config: str | None, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="is not a detector folder"):
        StickerDetector.from_pretrained(tmp_path)


def test_a_detector_is_not_resumed_with_another_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_detector, "open_autoencoder", lambda *arguments: None)
    monkeypatch.setattr(train_detector, "new_network", lambda: nn.Conv2d(3, 1, 1))
    tasks = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        tasks.append(DetectorTask("cpu", tmp_path / name))
    first, second = ({"device": "cpu", **task.depends_on} for task in tasks)
    state: dict[str, Any] = {"model": tasks[0].model, "average": tasks[0].model}
    save_checkpoint("detector", tmp_path, state, first, 7)
    assert restore(tmp_path, state, first, tasks[0].depends_on) == 7
    with pytest.raises(UserError, match=r"belongs to another run \(autoencoder was"):
        restore(tmp_path, state, second, tasks[1].depends_on)


def test_the_detector_loss_decreases_within_a_few_steps() -> None:
    task = DetectorTask("cpu", autoencoder=pipeline_folder() / "vae")
    losses = losses_on_one_batch(task, torch.optim.AdamW(task.model.parameters(), lr=1e-3), 4)
    assert losses[-1] < losses[0]


def test_labels_of_a_scene_are_positions_in_the_vocabulary() -> None:
    scene = render_scene(0, ("dog", "toothbrush"))
    assert set(label_map(scene).ravel()) == {0, coco().names.index("dog") + 1, 80}


def test_a_mirrored_image_has_the_mirrored_masks() -> None:
    detector = StickerDetector(new_network())
    pixels = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    mirrored = detector.probabilities(pixels.flip(2)).flip(3)
    assert torch.allclose(detector.probabilities(pixels), mirrored, atol=1e-3)


def test_masks_are_cut_to_pixels_that_stay_foreground_without_the_background_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Uncut masks had 1.14 times the true area. An object that is uncertain everywhere keeps its region."""
    dog, cat = (coco().names.index(name) + 1 for name in ("dog", "cat"))
    probabilities = torch.zeros(1, 81, 64, 64)
    probabilities[:, dog, 8:28, 8:28], probabilities[:, dog, 10:26, 10:26] = 0.6, 0.9
    probabilities[:, cat, 40:60, 40:60] = 0.6
    probabilities[:, 0] = 1 - probabilities.sum(1)
    detector = StickerDetector(new_network())
    monkeypatch.setattr(detector, "probabilities", lambda pixels: probabilities)
    instances = {instance.class_name: instance for instance in detector.detect([Image.new("RGB", (64, 64))])[0]}
    assert instances["dog"].box_xyxy == (10, 10, 26, 26)
    assert instances["dog"].mask.sum() == 16 * 16
    assert instances["dog"].score == pytest.approx((0.9 * 256 + 0.6 * 144) / 400)
    assert instances["cat"].mask.sum() == 20 * 20
    labels = detector.labels(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert labels.unique().tolist() == [0, dog]


def test_the_weight_of_background_is_part_of_the_model(tmp_path: Path) -> None:
    """So a change of the masks is a change of the detector's revision, and of the fingerprint of its datasets."""
    config = json.loads((detector_folder() / "config.json").read_text(encoding="utf-8"))
    assert new_network().config.background_weight == config["background_weight"]
    folder = shutil.copytree(detector_folder(), tmp_path / "detector")
    del config["background_weight"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert StickerDetector.from_pretrained(folder).background_weight == 1


@pytest.mark.parametrize("weight", [0, 1.5, None, "0.3", True])
def test_an_invalid_weight_of_background_is_one_sentence(tmp_path: Path, weight: object) -> None:
    folder = shutil.copytree(detector_folder(), tmp_path / "detector")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "background_weight": weight}), encoding="utf-8")
    with pytest.raises(UserError, match=r"background_weight in .*config\.json is .*; it must be a number above 0"):
        StickerDetector.from_pretrained(folder)
