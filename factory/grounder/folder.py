"""A trained grounder on disk: safetensors, a config that says what it fits, a card and its figures."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.files.paths import local_path
from factory.files.strict_json import dumps
from factory.generator.load import EMBEDDED, folder_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

MODULES = ("guided", "paper", "paper-cfg")
CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
_KIND = "factory-grounder"


@dataclass(frozen=True)
class GrounderConfig:
    """What a grounder is and what it fits.

    `module` is one of MODULES with its `options`; `backbone` the shapes that it reads (see `Backbone`); `model` and
    `revision` the text-to-image model that it was trained on; `capture` and `timestep` where features are read.
    `classes_seen` are the classes of its training, `data` the fingerprints of its oracles. `oracle` is how those were
    made, as a recipe's `generator` and `masks`: what it is measured with unless told otherwise.
    """

    module: str
    options: Mapping[str, Any]
    backbone: Mapping[str, Any]
    model: str
    revision: str
    capture: str
    timestep: int
    classes_seen: tuple[str, ...]
    split: str
    data: tuple[str, ...]
    steps: int
    oracle: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    format: int = 1
    kind: str = field(default=_KIND)


def grounder_folder(name: str) -> Path:
    """Where a grounder lies: the embedded one's folder, or the one named. UserError where there is none."""
    from factory.files.embedded_models import grounder_folder as embedded

    folder = embedded() if name == EMBEDDED else local_path(name, "the grounder").expanduser()
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"there are no masks from {name!r}: it is neither attention, detector nor {EMBEDDED}, and no folder with "
            f"{CONFIG} and {WEIGHTS}. Train one with `factory train-grounder`."
        )
    return folder


def read_config(folder: Path) -> GrounderConfig:
    """UserError where the folder's config is none of a grounder."""
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if data.get("kind") != _KIND or data.get("module") not in MODULES:
            raise ValueError(f"its kind is {data.get('kind')!r}, its module {data.get('module')!r}")
        return GrounderConfig(**{**data, "classes_seen": tuple(data["classes_seen"]), "data": tuple(data["data"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG} is no grounder's config ({error}); train one with `train-grounder`."
        ) from error


def pin_grounder(name: str) -> str:
    """A digest of the grounder's folder."""
    return folder_digest(grounder_folder(name))


def check_fits(name: str, config: GrounderConfig, generator: GeneratorRecipe) -> None:
    """UserError unless the grounder was trained on this very text-to-image model, and finds what it reads."""
    if config.module == "paper-cfg" and config.capture == "sampling" and generator.guidance <= 1:
        raise UserError(
            f"the grounder {name} reads both halves of classifier-free guidance, and with a guidance of "
            f"{generator.guidance:g} there is one; give a guidance above 1."
        )
    if config.revision != generator.revision:
        raise UserError(
            f"the grounder {name} was trained on {config.model} of revision {config.revision[:12]}, and the model is "
            f"{generator.model} of revision {str(generator.revision)[:12]}: the features are others. Train a grounder "
            f"on this model with `factory bootstrap-oracle` and `factory train-grounder`, or take --masks attention."
        )


def build_module(config: GrounderConfig) -> "nn.Module":
    """The network with fresh weights."""
    from factory.grounder.modules.backbone import Backbone
    from factory.grounder.modules.guided import GuidedModule, GuidedOptions
    from factory.grounder.modules.paper import PaperModule
    from factory.grounder.modules.published import PublishedModule

    backbone = Backbone.from_dict(config.backbone)
    if config.module == "paper":
        return PaperModule(backbone)
    if config.module == "paper-cfg":
        return PublishedModule(backbone)
    return GuidedModule(backbone, GuidedOptions(**config.options))


def save_grounder(module: "nn.Module", config: GrounderConfig, metrics: Mapping[str, Any], folder: Path) -> None:
    """Write the folder; the weights in half precision. UserError for weights that are no finite numbers."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _halved(name, value.detach().cpu()).contiguous() for name, value in module.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / METRICS).write_text(dumps(metrics, indent=1) + "\n")
    (folder / CARD).write_text(card(config, metrics))
    (folder / CONFIG).write_text(dumps(asdict(config), indent=1) + "\n")


def _halved(name: str, value: "Tensor") -> "Tensor":
    """A floating-point weight in half precision, where that does not overflow."""
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise UserError(f"the grounder's weight {name} holds NaN or infinity, so it was not written; train it again.")
    half = value.half()
    return half if half.isfinite().all() else value


def load_grounder(folder: Path) -> tuple["nn.Module", GrounderConfig]:
    """The network in float32, ready to be asked, and its config.

    UserError where the weights are cut off, foreign or no finite numbers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    module = build_module(config)
    try:
        module.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / WEIGHTS} does not hold this grounder ({said}); copy or train it again.") from error
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{folder / WEIGHTS} holds NaN or infinity in {name}; train the grounder again.")
    return module.eval(), config


def card(config: GrounderConfig, metrics: Mapping[str, Any]) -> str:
    """The folder's README: what it is, what it saw, how good it was."""
    rows = "\n".join(
        f"| {name} | {value:.4f} |" for name, value in metrics.items() if isinstance(value, float) and value == value
    )
    return f"""---
tags: [image-segmentation, grounding]
---
# Grounder `{config.module}`

Turns the features and attention of a text-to-image model into one mask per class of the prompt.

| | |
|---|---|
| text-to-image model | {config.model}, revision {config.revision} |
| features read | {config.capture}, timestep {config.timestep} |
| oracle sets | {", ".join(config.data)} |
| split | {config.split} |
| steps | {config.steps} |

Classes seen in training ({len(config.classes_seen)}): {", ".join(config.classes_seen)}. No human label was used.

| held-out seen data | |
|---|---|
{rows}

Use: `factory generate --masks THIS_FOLDER --model MODEL ...`
"""
