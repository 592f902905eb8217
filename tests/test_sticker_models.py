"""The training tasks of the embedded models, on a few scenes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from factory.config.stickers import STEPS
from factory.errors import UserError
from factory.files.embedded_models import detector_folder
from factory.stickers import recipes, train_diffusion, training_scenes
from factory.stickers.embedded import open_pipeline
from factory.stickers.recipes import run_recipe
from factory.stickers.text_to_image import (
    LATENT_CHANNELS,
    as_pipeline,
    dpm_solver,
    load_weights,
    new_text_to_image,
    open_autoencoder,
    save_pipeline,
)
from factory.stickers.tokens import train_tokenizer
from factory.stickers.train_autoencoder import AutoencoderTask, new_autoencoder, round_trip_psnr
from factory.stickers.train_detector import DetectorTask, _reframed, augmented, new_network
from factory.stickers.train_diffusion import DiffusionTask
from factory.stickers.train_turbo import STAGES, TurboTask
from factory.training.muon import Muon, muon_groups, orthogonalized
from tests.support.in_process import invoke
from tests.support.overfit import losses_on_one_batch


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with an untrained autoencoder and an untrained pipeline on its latents."""
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


def test_muon_updates_inner_matrices_and_adamw_the_rest() -> None:
    model = new_autoencoder()
    muon, adamw = muon_groups(model, 1e-3, 0.0)
    assert len(muon["params"]) + len(adamw["params"]) == len(list(model.parameters()))
    assert all(weight.ndim == 4 for weight in muon["params"])
    convolutions = [weight for weight in adamw["params"] if weight.ndim == 4]
    assert [tuple(weight.shape[:2]) for weight in convolutions] == [(48, 3), (3, 48)]


def test_the_autoencoder_learns_within_a_few_muon_steps() -> None:
    torch.manual_seed(0)
    task = AutoencoderTask("cpu")
    losses = losses_on_one_batch(task, Muon(muon_groups(task.model, 3e-3, 0.0)), 4, step=1)
    assert losses[-1] < 0.9 * losses[0]


def test_every_training_of_an_autoencoder_starts_with_the_same_weights() -> None:
    """A training that was interrupted before its first checkpoint had another result."""
    first, second = (AutoencoderTask("cpu").model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_psnr_is_computed_from_the_mean_squared_error() -> None:
    class Darker(torch.nn.Module):
        """Subtracts 10 grey levels."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, pixels):
            return type("Encoded", (), {"latents": pixels})

        def decode(self, latents):
            return type("Decoded", (), {"sample": latents - 10 / 127.5})

    assert round_trip_psnr(Darker(), 16) == pytest.approx(20 * np.log10(255 / 10), abs=0.5)


def test_a_saved_pipeline_loads_without_options_and_generates(folders) -> None:
    """Weights are float16; parts that load in different dtypes would be incompatible."""
    pipeline = StableDiffusionPipeline.from_pretrained(folders / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert {pipeline.unet.dtype, pipeline.text_encoder.dtype, pipeline.vae.dtype} == {torch.float32}
    image = pipeline("a photograph of a dog", num_inference_steps=1).images[0]
    assert image.size == (128, 128)


def test_the_text_to_image_model_learns_and_is_validated_on_held_out_scenes(folders, few_scenes, tmp_path) -> None:
    task = DiffusionTask(folders / "vae", tmp_path / "latents.pt", "cpu", lambda text: None)
    assert task.training_scenes == 24 - 4
    assert task.latents.shape == (24, LATENT_CHANNELS, 32, 32)
    losses = losses_on_one_batch(task, Muon(muon_groups(task.model, 3e-3, 0.01)), 3)
    assert losses[-1] < losses[0]
    metrics = task.metrics(task.model)
    assert metrics.keys() == {"error_224", "error_353", "error_494", "error_608", "error_800"}


def test_a_damaged_cache_of_latents_is_rebuilt(folders, few_scenes, tmp_path) -> None:
    cache, reports = tmp_path / "latents.pt", []
    whole = DiffusionTask(folders / "vae", cache, "cpu", reports.append).latents
    cache.write_bytes(cache.read_bytes()[:-1000])
    assert torch.equal(DiffusionTask(folders / "vae", cache, "cpu", reports.append).latents, whole)
    assert reports[0].startswith(f"{cache} is damaged, or was created with another autoencoder")


def test_the_students_target_reaches_the_result_of_two_teacher_steps(folders, few_scenes, tmp_path) -> None:
    stage = STAGES[0]
    task = TurboTask(stage, folders / "pipeline", folders / "vae", tmp_path / "latents.pt", "cpu", lambda text: None)
    level = torch.tensor([1000, 500, 125])
    noisy = torch.randn(3, LATENT_CHANNELS, 32, 32)
    result = torch.randn(3, LATENT_CHANNELS, 32, 32)
    v = task._v_reaching(noisy, result, level, level - 125)
    signal, spread = task._scales(level)
    clean, noise = signal * noisy - spread * v, signal * v + spread * noisy
    assert torch.allclose(task._mixed(clean, noise, level - 125), result, atol=1e-3)


def test_a_few_step_model_starts_from_its_teacher_with_a_finite_loss(folders, few_scenes, tmp_path) -> None:
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


def test_a_finished_stage_of_another_teacher_is_not_used(folders, few_scenes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(TurboTask, "sample_sheet", lambda task, model: Image.new("RGB", (8, 8)))
    shutil.copytree(folders / "pipeline", tmp_path / "diffusion/model")
    shutil.copytree(folders / "vae", tmp_path / "autoencoder/model")
    model = run_recipe("turbo", tmp_path, steps=1, batch=1, report=lambda text: None)
    assert run_recipe("turbo", tmp_path, steps=1, batch=1, report=lambda text: None) == model
    new_teacher = new_text_to_image(train_tokenizer(training_scenes.all_captions()), "cpu")
    new_teacher.unet.save_pretrained(tmp_path / "diffusion/model/unet")
    with pytest.raises(UserError, match=r"turbo-8.* belongs to another run \(teacher was"):
        run_recipe("turbo", tmp_path, steps=1, batch=1, report=lambda text: None)


def test_only_the_first_stage_starts_with_given_weights(folders, few_scenes, tmp_path, monkeypatch) -> None:
    starts = []

    def train(task, options, out, report):
        starts.append(options.start)
        return folders / "pipeline"

    monkeypatch.setattr(recipes, "train", train)
    shutil.copytree(folders / "pipeline", tmp_path / "diffusion/model")
    run_recipe("turbo", tmp_path, start=tmp_path / "earlier", report=lambda text: None)
    assert starts == [str(tmp_path / "earlier"), None]


def test_augmentation_keeps_the_labels_of_the_scene() -> None:
    from factory.stickers.scenes import render_scene

    for seed in range(8):
        scene = render_scene((1, seed), ("dog", "cup"))
        image, labels = augmented(np.random.default_rng(seed), scene)
        assert image.shape == (128, 128, 3)
        assert set(np.unique(labels)) <= {0, 17, 42}
        assert (labels > 0).any()


def test_a_rotated_window_moves_the_labels_with_the_pixels() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[10:40, 20:50] = 7
    pixels = np.repeat(labels[..., None], 3, 2).astype(np.float32)
    rng = np.random.default_rng(0)
    windows = [_reframed(rng, pixels, labels) for _ in range(20)]
    assert all((image[moved > 0] == 7).all() for image, moved in windows)
    assert all((image[moved == 0] == 0).mean() > 0.9 for image, moved in windows)  # 7 only where an edge is repeated
    corners = {tuple(np.argwhere(moved)[0]) for _, moved in windows}
    assert len(corners) == len(windows)


def test_the_command_evaluates_an_autoencoder(folders) -> None:

    options = ["--autoencoder", str(folders / "vae"), "--scenes", "4", "--json"]
    result = invoke("stickers", "evaluate-autoencoder", *options)
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics.keys() == {"scenes", "psnr", "kept_single", "kept_pairs", "roughness"}
    assert 0 <= metrics["kept_single"] <= 1
    assert 0 < metrics["roughness"] < 1


def test_an_autoencoder_with_another_factor_is_refused(tmp_path) -> None:
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="downsamples images 8 times"):
        DiffusionTask(tmp_path, tmp_path / "latents.pt", "cpu", lambda text: None)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_pipeline_or_autoencoder_with_a_missing_tensor_is_refused(folders, tmp_path, part) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(folders / "pipeline", folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    weights.pop(min(weights))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"the {part} of .* is missing 1 of its"):
        open_pipeline(folder)
    if part == "vae":
        for opened in (
            lambda: open_autoencoder(folder / part, "cpu"),
            lambda: AutoencoderTask("cpu").load(folder / part),
        ):
            with pytest.raises(UserError, match=r"the autoencoder of .* is missing 1 of its"):
                opened()
    else:
        with pytest.raises(UserError, match=rf"the {part} of .* is missing 1 of its"):
            load_weights(new_text_to_image(train_tokenizer(training_scenes.all_captions()), "cpu"), folder)


def test_start_weights_of_a_detector_with_a_missing_tensor_are_refused(tmp_path) -> None:
    shutil.copytree(detector_folder(), tmp_path / "detector")
    (file,) = (tmp_path / "detector").glob("*.safetensors")
    weights = load_file(file)
    weights.pop(min(weights))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"the detector of .* is missing 1 of its"):
        DetectorTask.load(SimpleNamespace(model=new_network()), tmp_path / "detector")


def test_the_sampler_restores_the_spread_of_colours_and_layouts() -> None:
    """Coarse structure is the mean of many latents, whose noise is small; the schedule must hide it nevertheless.

    For Gaussian data, the best denoiser is known, so the spread after sampling can be computed. The mean of all 32 x 32
    latents has 18 times the standard deviation of its noise; smaller regions have less.
    """
    scheduler = dpm_solver()
    for spread in (18.0, 9.0, 4.5, 2.2):
        scheduler.set_timesteps(STEPS)
        sample = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        for timestep in scheduler.timesteps:
            alpha = scheduler.alphas_cumprod[timestep].double()
            clean = sample * alpha.sqrt() * spread**2 / (alpha * spread**2 + 1 - alpha)
            noise = (sample - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
            sample = scheduler.step(velocity, timestep, sample).prev_sample
        assert sample.item() / spread == pytest.approx(1, abs=0.05), spread
