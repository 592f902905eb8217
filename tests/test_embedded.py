"""The shipped weights: their size and format, and that they are trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.config.splits import seen_classes
from factory.config.stickers import EMBEDDED_MODELS
from factory.config.vocabulary import caption, coco
from factory.detector.load import open_detector as open_any_detector
from factory.detector.oracle import OracleGrounder
from factory.errors import UserError
from factory.files.embedded_models import grounder_folder, models_folder, pipeline_folder
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from factory.generator.load import pin_revision
from factory.grounder.folder import read_grounder_config
from factory.stickers.atlas import TRAIN_STYLES
from factory.stickers.embedded import open_detector, open_pipeline
from factory.stickers.evaluate_parts import classes_found, mask_iou
from factory.stickers.sampling import Sampling, sample


def _mebibytes(folder: Path, pattern: str = "*") -> float:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file()) / 2**20


def test_shipped_files_are_within_their_size_limits() -> None:
    assert _mebibytes(models_folder(), "*.safetensors") <= 64
    assert _mebibytes(models_folder().parent / "data") <= 8


def test_all_shipped_weights_are_half_precision() -> None:
    from safetensors import safe_open

    files = sorted(models_folder().rglob("*.safetensors"))
    assert len(files) == 9  # two pipelines of three models, two grounders, a detector
    for path in files:
        with safe_open(path, "pt") as weights:
            kinds = {weights.get_tensor(key).dtype for key in sorted(weights.keys())}
        assert torch.float32 not in kinds, path


@pytest.mark.parametrize("model", EMBEDDED_MODELS)
def test_the_pipelines_consist_of_standard_classes(model: str) -> None:
    index = json.loads((pipeline_folder(model) / "model_index.json").read_text())
    libraries = {value[0] for key, value in index.items() if isinstance(value, list) and value[0] is not None}
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert libraries == {"diffusers", "transformers"}
    unet = open_pipeline(model).unet
    assert len(unet.config.block_out_channels) >= 3
    assert unet.config.in_channels == 6


def test_an_image_depends_on_its_own_seed_only() -> None:
    pipeline = open_pipeline()
    prompt = caption(("dog",))
    first, second = sample(pipeline, [prompt] * 2, [1, 2], batch=2)
    again, other = sample(pipeline, [prompt] * 2, [1, 3], batch=2)
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(second), np.asarray(other))
    assert first.size == (128, 128)


def test_the_detector_agrees_with_the_ground_truth_of_rendered_scenes() -> None:
    """A threshold far below the reported IoU and far above chance, which shows that the shipped weights are trained."""
    ious = mask_iou(open_detector(), TRAIN_STYLES, 80, lambda text: None)
    assert np.mean(list(ious.values())) > 0.55


@pytest.mark.parametrize("model", EMBEDDED_MODELS)
def test_a_folder_is_sampled_as_the_embedded_model_of_its_kind(model: str) -> None:
    assert Sampling.of_model(str(pipeline_folder(model))) == Sampling.of_model(model)


@pytest.mark.parametrize("model", EMBEDDED_MODELS)
def test_images_show_the_class_of_their_prompt(model: str) -> None:
    """The detector assigns a class more pixels in images of that class than in images of other classes."""
    names = ("zebra", "apple", "toilet", "cow", "suitcase", "banana", "person", "carrot", "dog", "pizza")
    prompts = [caption((name,)) for name in names]
    pictures = sample(open_pipeline(model), prompts, range(len(names)), sampling=Sampling.of_model(model))
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    columns = [1 + coco().names.index(name) for name in names]
    shares = open_detector().probabilities(pixels).mean((2, 3))[:, columns]
    own = shares.diagonal().mean()
    others = (shares.sum() - shares.diagonal().sum()) / (len(names) * (len(names) - 1))
    assert own > 10 * others


@pytest.mark.parametrize("model", EMBEDDED_MODELS)
def test_the_grounder_agrees_with_the_detector_on_seen_and_unseen_classes(model: str) -> None:
    """On those of 24 images in which the detector is confident; half of the images show unseen classes."""
    config = read_grounder_config(grounder_folder(model))
    assert config.revision == pin_revision(model)
    seen = [name for name in seen_classes(coco(), "1") if name in config.classes_seen]
    assert len(seen) == 65
    names = [*coco().unseen("1")[:12], *seen[::6][:12]]
    data = {"n": len(names), "classes": names, "batch": 12, "generator": {"model": model}}
    recipe = pin_recipe(make_recipe(data))
    assert recipe.masks.source == model
    parts, oracle = load_components(recipe), OracleGrounder(open_any_detector(recipe, "cpu"), recipe.masks)
    samples = list(Plan(recipe).samples())
    prompts = [sample.prompt for sample in samples]
    generated = parts.generator.generate([Request(sample.prompt, sample.seed(0, 0)) for sample in samples])
    ious: dict[str, list[float]] = {"seen": [], "unseen": []}
    predictions, truths = parts.grounder.ground(generated, prompts), oracle.ground(generated, prompts)
    for prediction, truth, prompt in zip(predictions, truths, prompts, strict=True):
        if truth.instances:
            predicted, expected = (
                result.instances[0].mask if result.instances else np.zeros((128, 128), bool)
                for result in (prediction, truth)
            )
            group = "seen" if prompt.classes[0] in seen else "unseen"
            ious[group].append((predicted & expected).sum() / (predicted | expected).sum())
    assert min(len(values) for values in ious.values()) >= 6
    assert np.mean(ious["seen"]) > 0.6
    assert np.mean(ious["unseen"]) > 0.6


def test_no_images_give_no_instances() -> None:
    assert open_detector().detect([]) == []
    (plain,) = open_detector().detect([Image.new("RGB", (128, 128), (90, 120, 60))])
    assert classes_found(plain) == set()


@pytest.mark.parametrize(
    ("opener", "message"), [(open_pipeline, "pipeline"), (open_detector, "is not a detector folder")]
)
def test_a_folder_without_a_model_raises_a_clear_error(tmp_path, opener, message) -> None:
    with pytest.raises(UserError, match=message):
        opener(tmp_path)
