"""The recipes of the embedded models, on a handful of scenes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from factory.errors import UserError
from factory.files.embedded_models import detector_folder
from factory.stickers import train_diffusion, training_scenes
from factory.stickers.embedded import open_pipeline
from factory.stickers.text_to_image import (
    as_pipeline,
    load_weights,
    new_text_to_image,
    open_autoencoder,
    save_pipeline,
)
from factory.stickers.tokens import train_tokenizer
from factory.stickers.train_autoencoder import AutoencoderTask, new_autoencoder, round_trip_psnr
from factory.stickers.train_detector import DetectorTask, augmented, new_network
from factory.stickers.train_diffusion import DiffusionTask
from factory.stickers.train_turbo import STAGES, TurboTask
from factory.training.muon import Muon, muon_groups, orthogonalized
from tests.support.learning import losses_on_one_batch


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An untrained autoencoder and an untrained pipeline on its latents, with a small cache of scenes."""
    folder = tmp_path_factory.mktemp("models")
    autoencoder = new_autoencoder()
    autoencoder.save_pretrained(folder / "vae")
    tokenizer = train_tokenizer(training_scenes.all_captions())
    save_pipeline(as_pipeline(new_text_to_image(tokenizer, "cpu"), tokenizer, autoencoder), folder / "pipeline")
    return folder


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(training_scenes, "NUM_SCENES", 24)
    monkeypatch.setattr(train_diffusion, "_TEST_SCENES", 4)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((24, 60), (60, 24)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)).float())
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_muon_takes_inner_matrices_and_adamw_the_rest() -> None:
    model = new_autoencoder()
    muon, adamw = muon_groups(model, 1e-3, 0.0)
    assert len(muon["params"]) + len(adamw["params"]) == len(list(model.parameters()))
    assert all(weight.ndim == 4 for weight in muon["params"])
    convolutions = [weight for weight in adamw["params"] if weight.ndim == 4]
    assert [tuple(weight.shape[:2]) for weight in convolutions] == [(48, 3), (3, 48)]


def test_the_autoencoder_learns_within_a_few_steps_of_muon() -> None:
    torch.manual_seed(0)
    task = AutoencoderTask("cpu")
    losses = losses_on_one_batch(task, Muon(muon_groups(task.model, 3e-3, 0.0)), 4, step=1)
    assert losses[-1] < 0.9 * losses[0]


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    class Darker(torch.nn.Module):
        """Takes 10 grey levels away, but not below black."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, pixels):
            return type("Encoded", (), {"latents": pixels})

        def decode(self, latents):
            return type("Decoded", (), {"sample": latents - 10 / 127.5})

    assert round_trip_psnr(Darker(), 16) == pytest.approx(20 * np.log10(255 / 10), abs=0.5)


def test_a_saved_pipeline_opens_without_options_and_draws(folders) -> None:
    """Weights are float16, and parts that open in different dtypes would not fit each other."""
    pipeline = StableDiffusionPipeline.from_pretrained(folders / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert {pipeline.unet.dtype, pipeline.text_encoder.dtype, pipeline.vae.dtype} == {torch.float32}
    image = pipeline("a photograph of a dog", num_inference_steps=1).images[0]
    assert image.size == (128, 128)


def test_the_text_to_image_model_learns_and_is_validated_on_other_scenes(folders, few_scenes, tmp_path) -> None:
    task = DiffusionTask(folders / "vae", tmp_path / "latents.pt", "cpu", lambda text: None)
    assert task.training_scenes == 24 - 4
    assert task.latents.shape == (24, 4, 32, 32)
    losses = losses_on_one_batch(task, Muon(muon_groups(task.model, 3e-3, 0.01)), 3)
    assert losses[-1] < losses[0]
    figures = task.figures(task.model)
    assert figures.keys() == {"error_300", "error_500", "error_700", "error_850"}


def test_the_students_target_lands_where_two_steps_of_its_teacher_land(folders, few_scenes, tmp_path) -> None:
    stage = STAGES[0]
    task = TurboTask(stage, folders / "pipeline", folders / "vae", tmp_path / "latents.pt", "cpu", lambda text: None)
    level = torch.tensor([1000, 500, 125])
    noisy = torch.randn(3, 4, 32, 32)
    landed = torch.randn(3, 4, 32, 32)
    v = task._v_that_lands(noisy, landed, level, level - 125)
    signal, spread = task._scales(level)
    clean, noise = signal * noisy - spread * v, signal * v + spread * noisy
    assert torch.allclose(task._mixed(clean, noise, level - 125), landed, atol=1e-3)


def test_a_few_step_model_starts_from_its_teacher_and_its_loss_is_finite(folders, few_scenes, tmp_path) -> None:
    for stage in STAGES:
        task = TurboTask(
            stage, folders / "pipeline", folders / "vae", tmp_path / "latents.pt", "cpu", lambda text: None
        )
        teacher, student = task.teacher.state_dict(), task.model.state_dict()
        assert all(torch.equal(teacher[key], student[key]) for key in teacher)
        loss = task.loss(0, 2, 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(weight.grad is None for weight in task.teacher.parameters())


def test_augmented_labels_stay_those_of_the_scene() -> None:
    from factory.stickers.scenes import render_scene

    for seed in range(8):
        scene = render_scene((1, seed), ("dog", "cup"))
        image, labels = augmented(np.random.default_rng(seed), scene)
        assert image.shape == (128, 128, 3)
        assert set(np.unique(labels)) <= {0, 17, 42}
        assert (labels > 0).any()


def test_the_command_measures_an_autoencoder(folders) -> None:
    from typer.testing import CliRunner

    from factory.cli.main import app

    options = ["--autoencoder", str(folders / "vae"), "--scenes", "4", "--json"]
    result = CliRunner().invoke(app, ["stickers", "evaluate-autoencoder", *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures.keys() == {"scenes", "psnr", "kept_single", "kept_pairs", "roughness"}
    assert 0 <= figures["kept_single"] <= 1
    assert 0 < figures["roughness"] < 1


def test_an_autoencoder_of_another_factor_is_refused(tmp_path) -> None:
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="8 times smaller"):
        DiffusionTask(tmp_path, tmp_path / "latents.pt", "cpu", lambda text: None)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_pipeline_or_autoencoder_that_lacks_a_tensor_is_refused_wherever_it_is_opened(
    folders, tmp_path, part
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(folders / "pipeline", folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    weights.pop(min(weights))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"the {part} of .* is missing 1 of its"):
        open_pipeline(folder)
    if part == "vae":
        for opened in (
            lambda: open_autoencoder(folder / part, "cpu"),
            lambda: AutoencoderTask("cpu").load(folder / part),
        ):
            with pytest.raises(UserError, match=r"the autoencoder of .* is missing 1 of its"):
                opened()
    else:
        with pytest.raises(UserError, match=f"the {part} of .* is missing 1 of its"):
            load_weights(new_text_to_image(train_tokenizer(training_scenes.all_captions()), "cpu"), folder)


def test_a_detector_to_begin_with_that_lacks_a_tensor_is_refused(tmp_path) -> None:
    shutil.copytree(detector_folder(), tmp_path / "detector")
    (file,) = (tmp_path / "detector").glob("*.safetensors")
    weights = load_file(file)
    weights.pop(min(weights))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"the detector of .* is missing 1 of its"):
        DetectorTask.load(SimpleNamespace(model=new_network()), tmp_path / "detector")
