import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.config.vocabulary import caption, coco
from factory.detector.load import open_detector as open_any_detector
from factory.detector.oracle import OracleGrounder
from factory.errors import UserError
from factory.files.embedded_models import detector_folder, grounder_folder, models_folder, pipeline_folder
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from factory.generator.load import pin_revision
from factory.grounder.folder import read_config
from factory.stickers.atlas import TRAIN_STYLES
from factory.stickers.embedded import open_detector, open_pipeline
from factory.stickers.evaluate_parts import classes_found, mask_iou
from factory.stickers.sampling import sample


def _mebibytes(folder: Path, pattern: str = "*") -> float:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file()) / 2**20


def test_the_shipped_files_keep_their_size_limits() -> None:
    assert _mebibytes(pipeline_folder(), "*.safetensors") <= 48
    assert _mebibytes(detector_folder(), "*.safetensors") <= 20
    assert _mebibytes(grounder_folder()) <= 16
    assert _mebibytes(models_folder().parent / "data") <= 8


def test_every_shipped_weight_is_half_precision() -> None:
    from safetensors import safe_open

    files = sorted(models_folder().rglob("*.safetensors"))
    assert len(files) == 5
    for path in files:
        with safe_open(path, "pt") as weights:
            kinds = {weights.get_tensor(key).dtype for key in weights.keys()}  # noqa: SIM118 - not a mapping
        assert torch.float32 not in kinds, path


def test_the_pipeline_is_made_of_stock_classes() -> None:
    index = json.loads((pipeline_folder() / "model_index.json").read_text())
    libraries = {value[0] for key, value in index.items() if isinstance(value, list) and value[0] is not None}
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert libraries == {"diffusers", "transformers"}
    unet = open_pipeline().unet
    assert len(unet.config.block_out_channels) >= 3
    assert unet.config.in_channels == 4


def test_a_picture_depends_on_its_seed_and_not_on_its_neighbours_seed() -> None:
    pipeline = open_pipeline()
    prompt = caption(("dog",))
    first, second = sample(pipeline, [prompt] * 2, [1, 2], batch=2)
    again, other = sample(pipeline, [prompt] * 2, [1, 3], batch=2)
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(second), np.asarray(other))
    assert first.size == (128, 128)


def test_the_detector_agrees_with_the_truth_of_fresh_renders() -> None:
    """Far below the figure that is reported, far above chance: the shipped weights are the trained ones."""
    ious = mask_iou(open_detector(), TRAIN_STYLES, 80, lambda text: None)
    assert np.mean(list(ious.values())) > 0.55


def test_the_picture_follows_the_class_of_its_prompt() -> None:
    """The detector sees the prompted class far more in a picture of it than in pictures of other classes."""
    names = ("zebra", "apple", "toilet", "cow", "suitcase", "banana", "person", "carrot", "dog", "pizza")
    pictures = sample(open_pipeline(), [caption((name,)) for name in names], range(len(names)))
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    columns = [1 + coco().names.index(name) for name in names]
    shares = open_detector().probabilities(pixels).mean((2, 3))[:, columns]
    own = shares.diagonal().mean()
    others = (shares.sum() - shares.diagonal().sum()) / (len(names) * (len(names) - 1))
    assert own > 10 * others


def test_the_grounder_fits_the_model_and_finds_seen_and_unseen_classes_where_the_detector_does() -> None:
    """Of 24 pictures, half of classes that it never saw, those in which the detector is sure."""
    config = read_config(grounder_folder())
    assert config.revision == pin_revision("stickers")
    seen = [name for name in coco().seen("1") if name in config.classes_seen]
    assert len(seen) == 65
    names = [*coco().unseen("1")[:12], *seen[::6][:12]]
    recipe = pin_recipe(make_recipe({"n": len(names), "classes": names, "batch": 12}))
    assert recipe.masks.source == "stickers"
    parts, oracle = load_components(recipe), OracleGrounder(open_any_detector(recipe, "cpu"), recipe.masks)
    samples = list(Plan(recipe).samples())
    asked = [sample.prompt for sample in samples]
    made = parts.generator.generate([Request(sample.prompt, sample.seed(0, 0)) for sample in samples])
    found: dict[str, list[float]] = {"seen": [], "unseen": []}
    for mine, truth, prompt in zip(parts.grounder.ground(made, asked), oracle.ground(made, asked), asked, strict=True):
        if truth.instances:
            one, other = (
                row.instances[0].mask if row.instances else np.zeros((128, 128), bool) for row in (mine, truth)
            )
            group = "seen" if prompt.classes[0] in seen else "unseen"
            found[group].append((one & other).sum() / (one | other).sum())
    assert min(len(values) for values in found.values()) >= 6
    assert np.mean(found["seen"]) > 0.6
    assert np.mean(found["unseen"]) > 0.6


def test_no_picture_no_instances() -> None:
    assert open_detector().detect([]) == []
    (plain,) = open_detector().detect([Image.new("RGB", (128, 128), (90, 120, 60))])
    assert classes_found(plain) == set()


@pytest.mark.parametrize("opener", [open_pipeline, open_detector])
def test_a_folder_that_is_no_model_is_told_in_a_sentence(tmp_path, opener) -> None:
    with pytest.raises(UserError, match="holds no"):
        opener(tmp_path)
