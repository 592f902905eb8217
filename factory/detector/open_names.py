"""Names of open-vocabulary detectors: `sam3:MODEL`, `clipseg:MODEL`, `grounding-dino:MODEL+SAM2`, `owlv2:MODEL+SAM2`.

Each MODEL is a folder or a hub id. Importing this module loads no model library.
"""

from dataclasses import dataclass
from pathlib import Path

from factory.errors import UserError
from factory.files.decode import read_json_object
from factory.files.digest import folder_digest
from factory.files.hub import hub_file
from factory.files.paths import expanded
from factory.generator.load import pin_revision

TYPES = {
    "sam3": ("sam3", "sam3_video"),
    "clipseg": ("clipseg",),
    "grounding-dino": ("grounding-dino", "mm-grounding-dino"),
    "owlv2": ("owlv2",),
}
"""The types in config.json by kind; published weights of SAM 2 and 3 are those of their video models."""
MASK_TYPES = ("sam2", "sam2_video")
WITH_BOXES = ("grounding-dino", "owlv2")
"""The kinds that find boxes and require a SAM 2 for masks."""
_EXAMPLES = {
    "grounding-dino": "grounding-dino:IDEA-Research/grounding-dino-tiny+facebook/sam2.1-hiera-small",
    "owlv2": "owlv2:google/owlv2-base-patch16-ensemble+facebook/sam2.1-hiera-small",
}


@dataclass(frozen=True)
class OpenName:
    """A parsed name: the kind, and its models: one, or a model for boxes and a SAM 2 for masks."""

    kind: str
    models: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{'+'.join(self.models)}"

    def types(self) -> list[tuple[str, tuple[str, ...]]]:
        """(model, its possible types) of each model."""
        return list(zip(self.models, (TYPES[self.kind], MASK_TYPES), strict=False))

    def revisions(self, pin: str | None) -> list[str | None]:
        """The revision of each model in a pin of `pin_open_name`; None for each without a pin."""
        return [None] * len(self.models) if pin is None else [*pin.split("+")]


def parse_open_name(name: str) -> OpenName | None:
    """The parts of an open-vocabulary detector's name; None for any other name. UserError if a part is missing."""
    kind, colon, models_text = name.partition(":")
    if not colon or kind not in TYPES:
        return None
    models = tuple(part.strip() for part in models_text.split("+"))
    syntax = f"{kind}:MODEL+SAM2, as in {_EXAMPLES[kind]}" if kind in WITH_BOXES else f"{kind}:MODEL"
    if len(models) != (2 if kind in WITH_BOXES else 1) or not all(models):
        raise UserError(
            f"the detector {name!r} must have the form {syntax}; each part is a folder or a hub id without a + in its "
            f"name."
        )
    return OpenName(kind, models)


def local_folder(model: str, kind: str = "model", allowed: str = "the folder or hub id of a model") -> Path | None:
    """The folder of a model; None for a hub id. UserError if a path is named that holds no model.

    Its message calls the model a `kind` and names the `allowed` values.
    """
    path = expanded(model)
    if not path.exists() and model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return None
    if not (path / "config.json").is_file():
        problem = f"{model} is not a {kind}: it has no config.json" if path.exists() else f"there is no folder {model}"
        raise UserError(f"{problem}; give {allowed}.")
    return path


def absolute(name: OpenName) -> OpenName:
    """The name with absolute paths, so that it is valid in workers with another working directory."""
    folders = [local_folder(model) for model in name.models]
    pairs = zip(name.models, folders, strict=True)
    return OpenName(name.kind, tuple(model if folder is None else str(folder.absolute()) for model, folder in pairs))


def pin_open_name(name: OpenName, pinned: str | None = None) -> str:
    """The digest of each folder and the commit of each hub model, joined by "+".

    Commits are taken from `pinned` if it is given, because a hub model is loaded at its pinned commit.
    """
    pinned_revisions = pinned.split("+") if pinned is not None else []
    if pinned is not None and len(pinned_revisions) != len(name.models):
        return f"{len(name.models)} models"
    revisions = []
    for position, model in enumerate(name.models):
        folder = local_folder(model)
        if folder is not None:
            revisions.append(folder_digest(folder))
        else:
            revisions.append(pinned_revisions[position] if pinned_revisions else pin_revision(model))
    return "+".join(revisions)


def check_types(name: OpenName, revision: str | None) -> None:
    """Raise UserError unless the config.json of each model is of the right type; those of hub models are downloaded."""
    for (model, types), pinned in zip(name.types(), name.revisions(revision), strict=True):
        model_type = _model_type(model, pinned)
        if model_type not in types:
            raise UserError(
                f"{model} is of the type {model_type!r}, but the detector {name.kind} requires {' or '.join(types)} "
                f"here; see docs/detectors.md."
            )


def _model_type(model: str, revision: str | None) -> str:
    folder = local_folder(model)
    path = hub_file(model, "config.json", revision) if folder is None else folder / "config.json"
    try:
        return str(read_json_object(path)["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not the config of a transformers model ({error}); copy the model again.") from error
