import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from factory.config.vocabulary import coco
from factory.errors import UserError
from factory.files.embedded_models import pipeline_folder
from factory.stickers import train_detector
from factory.stickers.detector import StickerDetector
from factory.stickers.tokens import MAX_TOKENS, train_tokenizer
from factory.stickers.train_detector import DetectorTask, label_map, new_network
from factory.stickers.training_scenes import all_captions
from factory.training.checkpoint import restore, save_checkpoint
from factory.training.loop import train
from factory.training.options import TrainOptions
from tests.support.overfit import losses_on_one_batch


class _Line:
    """A tiny model that is trained by the same loop as the real ones."""

    name = "line"

    def __init__(self, stop_at: int | None = None, data: str = "a line") -> None:
        self.depends_on = {"data": data}
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 1))
        self.stop_at = stop_at

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        if step == self.stop_at:
            raise KeyboardInterrupt
        inputs = torch.randn(batch, 3)
        return (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def metrics(self, model: nn.Module) -> dict[str, float]:
        return {"bias": float(model[0].bias.mean())}

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), folder / "weights.pt")

    def load(self, folder: Path) -> None:
        self.model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))


OPTIONS = TrainOptions(steps=40, batch=4, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=10)


def _silent(text: str) -> None:
    pass


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path) -> None:
    whole = train(_Line(), OPTIONS, tmp_path / "whole", _silent)
    with pytest.raises(KeyboardInterrupt):
        train(_Line(stop_at=27), OPTIONS, tmp_path / "cut", _silent)
    reports: list[str] = []
    resumed = train(_Line(), OPTIONS, tmp_path / "cut", reports.append)
    assert any("resuming at step 20 of 40" in report for report in reports)
    expected, found = (torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, resumed))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_an_interrupt_waits_for_the_step_and_writes_a_checkpoint(tmp_path) -> None:
    class Interrupted(_Line):
        def loss(self, step: int, batch: int, seed: int) -> Tensor:
            if step == 26:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(step, batch, seed)

    whole = train(_Line(), OPTIONS, tmp_path / "whole", _silent)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(), OPTIONS, tmp_path / "cut", _silent)
    reports: list[str] = []
    resumed = train(_Line(), OPTIONS, tmp_path / "cut", reports.append)
    assert any("resuming at step 27 of 40" in report for report in reports)
    expected, found = (torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, resumed))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_training_starts_from_the_weights_of_a_trained_model(tmp_path) -> None:
    first = train(_Line(), OPTIONS, tmp_path / "first", _silent)
    still = TrainOptions(steps=1, batch=4, learning_rate=0.0, start=str(first))
    second = train(_Line(), still, tmp_path / "second", _silent)
    before, after = (torch.load(folder / "weights.pt", weights_only=True) for folder in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(UserError, match=r"training of the line cannot start from .* \(there is no such folder\)"):
        train(_Line(), TrainOptions(1, 4, 0.1, start=str(tmp_path / "nowhere")), tmp_path / "third", _silent)
    assert not (tmp_path / "third").exists()


def test_loss_and_time_left_are_reported_and_logged(tmp_path) -> None:
    reports: list[str] = []
    train(_Line(), OPTIONS, tmp_path, reports.append)
    assert any("loss" in report and "min left" in report for report in reports)
    *steps, metrics = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps] == [20, 40]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert metrics.keys() == {"step", "bias"}
    assert list((tmp_path / "board").iterdir())
    assert (tmp_path / "samples-000040.png").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path) -> None:
    train(_Line(), OPTIONS, tmp_path, _silent)
    other = TrainOptions(steps=40, batch=8, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=10)
    with pytest.raises(UserError, match="batch was 4, is 8"):
        train(_Line(), other, tmp_path, _silent)
    with pytest.raises(UserError, match="data was a line, is a curve"):
        train(_Line(data="a curve"), OPTIONS, tmp_path, _silent)


def test_a_truncated_checkpoint_raises_a_clear_error(tmp_path) -> None:
    train(_Line(), OPTIONS, tmp_path, _silent)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        train(_Line(), OPTIONS, tmp_path, _silent)


def test_zero_steps_and_a_missing_gpu_are_refused() -> None:
    with pytest.raises(UserError, match="at least one step"):
        TrainOptions(steps=0, batch=4, learning_rate=1e-3)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="PyTorch finds no GPU"):
            TrainOptions(steps=1, batch=4, learning_rate=1e-3, device="cuda")


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


def test_masks_boxes_and_scores_of_an_instance_are_consistent(tmp_path) -> None:
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


def test_a_folder_without_a_detector_raises_a_clear_error(tmp_path) -> None:
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
    from factory.stickers.scenes import render_scene

    scene = render_scene(0, ("dog", "toothbrush"))
    assert set(label_map(scene).ravel()) == {0, coco().names.index("dog") + 1, 80}


def test_only_the_text_between_the_markers_of_a_table_is_replaced(tmp_path) -> None:
    from factory.evaluation.markdown import write_table

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- evaluation -->\nold \\1\n<!-- evaluation -->\nafter\n")
    write_table(page, "new \\1\n", "evaluation")
    write_table(page, "newer \\2\n", "evaluation")
    assert page.read_text() == "before\n<!-- evaluation -->\nnewer \\2\n<!-- evaluation -->\nafter\n"


def test_table_is_replaced_whatever_the_name_of_the_class_file(tmp_path: Path) -> None:
    """The marker of Protocol II contains the value of --classes."""
    from factory.evaluation.markdown import write_table

    for name in ("protocol-2-c++.txt", "protocol-2-classes (1).txt"):
        for text in ("old\n", "new\n"):
            write_table(tmp_path / "page.md", text, name)
        assert (tmp_path / "page.md").read_text().endswith(f"<!-- {name} -->\nnew\n<!-- {name} -->\n")
    assert "old" not in (tmp_path / "page.md").read_text()


def test_a_mirrored_image_has_the_mirrored_masks() -> None:
    detector = StickerDetector(new_network())
    pixels = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    mirrored = detector.probabilities(pixels.flip(2)).flip(3)
    assert torch.allclose(detector.probabilities(pixels), mirrored, atol=1e-3)
