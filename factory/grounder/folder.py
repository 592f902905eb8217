"""A trained grounder on disk: weights in safetensors, a config, a card and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.config.sections import GeneratorRecipe
from factory.config.stickers import EMBEDDED_MODELS
from factory.errors import UserError, one_line
from factory.files.atomic import write_atomically
from factory.files.decode import read_json_object
from factory.files.digest import folder_digest
from factory.files.paths import expanded, local_path, split_named_path
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from torch import Tensor, nn

    from factory.grounder.modules.guided import GuidedModule
    from factory.grounder.modules.paper import PaperModule

MODULES = ("guided", "paper", "paper-cfg")
CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
_KIND, _FORMAT = "factory-grounder", 2


@dataclass(frozen=True)
class GrounderConfig:
    """The config.json of a grounder.

    `module` is one of MODULES, with its `options`; `backbone` are the shapes that it reads (see `Backbone`); `model`
    and `revision` identify the text-to-image model that it was trained on, and `lora` the revision and scale of the
    LoRA. Features are read at `noise_level` with `noise_seed`. `classes_seen` are the classes of its training, and
    `data` the fingerprints of its oracle datasets. `oracle` contains `generator` and `masks` of their recipe, which are
    used for evaluation.
    """

    module: str
    options: Mapping[str, Any]
    backbone: Mapping[str, Any]
    model: str
    revision: str
    noise_level: float
    classes_seen: tuple[str, ...]
    split: str
    data: tuple[str, ...]
    steps: int
    oracle: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    noise_seed: int = 0
    lora: str | None = None
    format: int = _FORMAT
    kind: str = _KIND


def grounder_folder(name: str) -> Path:
    """The folder of an embedded grounder, or the given folder. Raises UserError if it contains no grounder."""
    from factory.files.embedded_models import grounder_folder as embedded

    folder = embedded(name) if name in EMBEDDED_MODELS else expanded(local_path(name, "the grounder"))
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        inner = folder / "model"
        if (inner / CONFIG).is_file():
            raise UserError(f"{name} is the folder of a training run; give its grounder, {inner}.")
        raise UserError(
            f"there is no grounder {name!r}; give {', '.join(EMBEDDED_MODELS)}, or a folder with {CONFIG} and "
            f"{WEIGHTS}, as `factory train-grounder` writes it."
        )
    return folder


def named_grounders(named: Sequence[str]) -> list[tuple[str, Path, GrounderConfig]]:
    """(name, folder, config) of each "NAME=FOLDER" or "FOLDER"; the default name is that of the module.

    Raises UserError if a folder holds no grounder, or if two grounders of one split have the same name.
    """
    found: list[tuple[str, Path, GrounderConfig]] = []
    for text in named:
        label, address = split_named_path(text)
        folder = grounder_folder(address)
        config = read_grounder_config(folder)
        name = label or config.module
        if any((name, config.split) == (other, known.split) for other, _, known in found):
            raise UserError(
                f"two grounders of split {config.split} are both named {name}; give them different names: "
                f"first=FOLDER second=FOLDER."
            )
        found.append((name, folder, config))
    return found


def read_grounder_config(folder: Path) -> GrounderConfig:
    """The config of a grounder's folder. Raises UserError if it is not one."""
    try:
        data = read_json_object(folder / CONFIG)
        if data.get("kind") != _KIND or data.get("module") not in MODULES:
            raise ValueError(f"its kind is {data.get('kind')!r} and its module {data.get('module')!r}")
        if data.get("format") != _FORMAT:
            raise ValueError(f"its format is {data.get('format')!r}, but this version reads format {_FORMAT}")
        return GrounderConfig(**{**data, "classes_seen": tuple(data["classes_seen"]), "data": tuple(data["data"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG} is not a grounder's config ({error}); train a grounder with `factory train-grounder`."
        ) from error


def pin_grounder(name: str) -> str:
    """A digest of the grounder's folder."""
    return folder_digest(grounder_folder(name))


def check_fits(name: str, config: GrounderConfig, generator: GeneratorRecipe) -> None:
    """Raise UserError unless the grounder was trained on exactly this text-to-image model."""
    if config.lora != generator.adapter:
        raise UserError(
            f"the grounder {name} was trained on a model with the LoRA {config.lora or 'none'}, but the recipe has "
            f"{generator.adapter or 'none'}, which changes the features; train a grounder with this LoRA."
        )
    if config.revision != generator.revision:
        raise UserError(
            f"the grounder {name} was trained on {config.model} of revision {config.revision[:12]}, but the model is "
            f"{generator.model} of revision {str(generator.revision)[:12]}, whose features differ; train a grounder on "
            f"this model with `factory bootstrap-oracle` and `factory train-grounder`, or use --masks attention."
        )


def module_class(name: str) -> "type[GuidedModule | PaperModule]":
    """The class of a module in MODULES; its `needs` names what the generator must capture."""
    from factory.grounder.modules.guided import GuidedModule
    from factory.grounder.modules.paper import PaperModule
    from factory.grounder.modules.published import PublishedModule

    classes: dict[str, type[GuidedModule | PaperModule]] = {
        "guided": GuidedModule,
        "paper": PaperModule,
        "paper-cfg": PublishedModule,
    }
    return classes[name]


def build_module(config: GrounderConfig) -> "GuidedModule | PaperModule":
    """The network with random weights."""
    from factory.grounder.modules.backbone import Backbone
    from factory.grounder.modules.guided import GuidedModule, GuidedOptions

    backbone, kind = Backbone.from_dict(config.backbone), module_class(config.module)
    if issubclass(kind, GuidedModule):
        return kind(backbone, GuidedOptions.from_dict(config.options))
    return kind(backbone)


def save_grounder(
    module: "nn.Module", config: GrounderConfig, metrics: Mapping[str, Any], folder: Path, human_labels: bool = False
) -> None:
    """Write the folder, with weights in half precision. Raises UserError for NaN or infinite weights.

    `human_labels` is whether a part of the training data has masks from human labels.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _halved(name, value.detach().cpu()).contiguous() for name, value in module.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(weights))
    write_atomically(folder / METRICS, dumps(metrics, indent=1) + "\n")
    write_atomically(folder / CARD, card(config, metrics, human_labels))
    write_atomically(folder / CONFIG, dumps(asdict(config), indent=1) + "\n")


def _halved(name: str, value: "Tensor") -> "Tensor":
    """A floating-point weight in half precision, unless that overflows."""
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise UserError(f"the grounder's weight {name} contains NaN or infinity, so it was not saved; train it again.")
    half = value.half()
    return half if half.isfinite().all() else value


_MISFITS = (RuntimeError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What building a network from a config raises if a value has another type, or the weights other shapes."""


def load_grounder(folder: Path) -> tuple["GuidedModule | PaperModule", GrounderConfig]:
    """The network in float32 and eval mode, and its config.

    Raises UserError if the weights are truncated, do not fit, or are NaN or infinite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_grounder_config(folder)
    try:
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
        with torch.device("meta"):  # without memory, because a config of others may describe a network of any size
            build_module(config).load_state_dict(weights, assign=True)
        module = build_module(config)
        module.load_state_dict(weights)
    except (SafetensorError, OSError, *_MISFITS) as error:
        raise UserError(
            f"{folder / WEIGHTS} does not fit the config ({one_line(error)}); copy or train it again."
        ) from error
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{folder / WEIGHTS} contains NaN or infinity in {name}; train the grounder again.")
    return module.eval(), config


def card(config: GrounderConfig, metrics: Mapping[str, Any], human_labels: bool) -> str:
    """The folder's README: the model, its training data and its metrics."""
    rows = "\n".join(
        f"| {name} | {value:.4f} |" for name, value in metrics.items() if isinstance(value, float) and value == value
    )
    labels = "Trained on images with human labels." if human_labels else "No human label was used."
    return f"""---
tags: [image-segmentation, grounding]
---
# Grounder `{config.module}`

Turns the features and attention of a text-to-image model into one mask per class of the prompt.

| | |
|---|---|
| text-to-image model | {config.model}, revision {config.revision} |
| features read at | noise level {config.noise_level:g}, noise seed {config.noise_seed} |
| oracle datasets | {", ".join(config.data)} |
| split | {config.split} |
| steps | {config.steps} |

Classes seen in training ({len(config.classes_seen)}): {", ".join(config.classes_seen)}. {labels}

| held-out seen data | |
|---|---|
{rows}

Use: `factory generate --masks THIS_FOLDER --model MODEL ...`
"""
