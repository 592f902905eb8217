"""Converts the checkpoint that the authors of the paper released to a grounder folder."""

from dataclasses import dataclass
from pathlib import Path

from factory.config.prompts import captioned
from factory.config.recipe import make_recipe
from factory.config.splits import seen_classes, split_name
from factory.errors import UserError
from factory.files.digest import sha256
from factory.files.paths import check_writable_folder
from factory.generator.load import pin_generator
from factory.grounder.folder import CONFIG, GrounderConfig, save_grounder
from factory.hf_logging import quiet_model_libraries
from factory.training.devices import check_device_name, chosen_device

_NOISE_LEVEL = 0.0397
"""The released module reads features at the last of 50 DDIM steps, timestep 1."""
_SAMPLING = {"steps": 50, "guidance": 5.0, "solver": "ddim"}


@dataclass(frozen=True)
class Release:
    """A released checkpoint, the text-to-image model that it was trained on, and the split that it was trained for.

    `detector` provides the reference masks when the grounder is evaluated.
    """

    checkpoint: Path
    model: str
    classes: str
    split: str
    detector: str | None


def import_released(release: Release, out: Path, device: str) -> Path:
    """Write and return the folder that `generate --masks` and `evaluate-grounder` read.

    The model is loaded and called once for the shapes of its features. Raises UserError if the checkpoint does not fit.
    """
    if (out / CONFIG).exists():
        raise UserError(f"{out} already holds a grounder; give another --out.")
    check_writable_folder(out, "--out")
    check_device_name(device)
    detector = {} if release.detector is None else {"detector": release.detector}
    masks = {"source": "attention", "noise_level": _NOISE_LEVEL, **detector}
    generator = {"model": release.model, **_SAMPLING}
    digest = _digest(release.checkpoint)
    recipe = make_recipe({"n": 1, "classes": release.classes, "generator": generator, "masks": masks})
    recipe = recipe.model_copy(update={"generator": pin_generator(recipe.generator)})
    vocabulary = recipe.vocabulary()
    seen = seen_classes(vocabulary, release.split)

    quiet_model_libraries()
    import torch

    from factory.generator.pipeline import PipelineGenerator
    from factory.grounder.modules.backbone import Backbone
    from factory.grounder.modules.published import PublishedModule
    from factory.grounder.released import load_released

    reader = PipelineGenerator(recipe, chosen_device(device), PublishedModule.needs)
    prompts = [captioned(vocabulary, vocabulary.names[:1])]
    backbone = Backbone.of(reader.read(torch.zeros(1, *reader.latent_shape), prompts))
    module = PublishedModule(backbone)
    load_released(module, release.checkpoint)
    config = GrounderConfig(
        module="paper-cfg",
        options={},
        backbone=backbone.to_dict(),
        model=recipe.generator.model,
        revision=str(recipe.generator.revision),
        noise_level=_NOISE_LEVEL,
        classes_seen=seen,
        split=split_name(release.split),
        data=(f"released checkpoint, sha256 {digest}",),
        steps=0,
        oracle={"generator": _SAMPLING, "masks": detector},
    )
    save_grounder(module.eval(), config, {}, out)
    return out


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error.strerror}); give the released file.") from error
