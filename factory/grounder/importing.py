"""Convert the checkpoint that the paper's authors released to a grounder's folder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from factory.config.prompts import captioned
from factory.config.recipe import make_recipe
from factory.errors import UserError
from factory.generator.load import pin_generator
from factory.grounder.folder import CONFIG, GrounderConfig, save_grounder
from factory.hf_logging import quiet_model_libraries

_TIMESTEP = 1
"""The released module reads features at the last of 50 DDIM steps."""
_SAMPLING = {"steps": 50, "guidance": 5.0, "solver": "ddim"}


@dataclass(frozen=True)
class Release:
    """A released checkpoint, the text-to-image model that it was trained on, and the split that it was trained for.

    `detector` gives the true masks when the grounder is measured.
    """

    checkpoint: Path
    model: str
    classes: str = "voc"
    split: str = "1"
    detector: str | None = None


def import_released(release: Release, out: Path, device: str = "auto") -> Path:
    """Write and return the folder that `generate --masks` and `evaluate-grounder` read.

    The model is loaded and called once for the shapes of its features. Raises UserError if the checkpoint does not fit.
    """
    quiet_model_libraries()
    import numpy as np

    from factory.generator.pipeline import PipelineGenerator
    from factory.grounder.modules.backbone import Backbone
    from factory.grounder.modules.published import PublishedModule
    from factory.grounder.released import load_released
    from factory.training.devices import chosen_device

    if (out / CONFIG).exists():
        raise UserError(f"{out} already holds a grounder; give another --out.")
    detector = {} if release.detector is None else {"detector": release.detector}
    masks = {"source": "attention", "capture": "sampling", "timesteps": [_TIMESTEP], **detector}
    generator = {"model": release.model, **_SAMPLING}
    digest = _digest(release.checkpoint)
    recipe = make_recipe({"n": 1, "classes": release.classes, "generator": generator, "masks": masks})
    recipe = recipe.model_copy(update={"generator": pin_generator(recipe.generator)})
    vocabulary = recipe.vocabulary()
    seen = tuple(vocabulary.seen(release.split))
    reader = PipelineGenerator(recipe, chosen_device(device), PublishedModule.needs)
    latents = reader.encode_images(np.zeros((1, *reader.pixels, 3), np.uint8))
    backbone = Backbone.of(reader.read(latents, _TIMESTEP, [captioned(vocabulary, vocabulary.names[:1])]))
    module = PublishedModule(backbone)
    load_released(module, release.checkpoint)
    config = GrounderConfig(
        module="paper-cfg",
        options={},
        backbone=backbone.to_dict(),
        model=recipe.generator.model,
        revision=str(recipe.generator.revision),
        capture="sampling",
        timestep=_TIMESTEP,
        classes_seen=seen,
        split=release.split,
        data=(f"released checkpoint, sha256 {digest}",),
        steps=0,
        oracle={"generator": _SAMPLING, "masks": detector},
    )
    save_grounder(module.eval(), config, {}, out)
    return out


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error.strerror}); give the released file.") from error
