"""Loads the detector of a recipe, pins its content, and lists the classes that it knows."""

import importlib
from pathlib import Path
from typing import Any

from factory.config.recipe import Recipe
from factory.config.sections import MaskRecipe
from factory.config.stickers import STICKERS
from factory.detector.interface import Detector
from factory.detector.labels import translation
from factory.detector.open_names import TYPES, absolute, check_types, local_folder, parse_open_name, pin_open_name
from factory.errors import UserError
from factory.files.decode import read_json_object
from factory.files.digest import folder_digest
from factory.files.paths import expanded
from factory.generator.determinism import be_deterministic
from factory.generator.load import pin_revision

TORCHVISION, DETECTRON2, ULTRALYTICS = "torchvision:", "detectron2:", "ultralytics:"
_LIBRARIES = (TORCHVISION, DETECTRON2, ULTRALYTICS)
"""Prefixes of detectors of other libraries; each has a module of its name with `labels`, `pin` and `load_model`."""
KINDS = (*TYPES, *(prefix.removesuffix(":") for prefix in _LIBRARIES))
"""What a detector's name can begin with, before a colon."""
_EMBEDDED_ARCHITECTURE = "UperNetForSemanticSegmentation"
_FORMS = (
    f"`{STICKERS}`, a folder or hub id of a transformers model, or KIND:MODEL as in sam3:facebook/sam3 or "
    f"{ULTRALYTICS}yolo11n-seg@yolo11n-seg.pt (`factory models` lists the kinds)"
)


def open_detector(recipe: Recipe, device: str) -> Detector:
    """The detector of a recipe, with its weights loaded.

    Raises UserError if it cannot be loaded, differs from the pinned revision, or does not know a class.
    """
    from factory.detector.fitting import FittingDetector

    check_pin(recipe.masks)
    be_deterministic(device, tf32=recipe.generator.dtype == "tf32")
    return FittingDetector(_opened(recipe, device), recipe.masks.detector, recipe.generator.threads)


def _opened(recipe: Recipe, device: str) -> Detector:
    name = recipe.masks.detector
    open_name = parse_open_name(name)
    if open_name is not None:
        from factory.detector.open_vocabulary import OpenVocabularyDetector

        return OpenVocabularyDetector(recipe, open_name, device)
    if name.startswith(TORCHVISION):
        from factory.detector.torchvision import TorchvisionDetector

        return TorchvisionDetector(recipe, name.removeprefix(TORCHVISION), device)
    if name.startswith(DETECTRON2):
        from factory.detector.detectron2 import Detectron2Detector

        return Detectron2Detector(recipe, name.removeprefix(DETECTRON2), device)
    if name.startswith(ULTRALYTICS):
        from factory.detector.ultralytics import UltralyticsDetector

        return UltralyticsDetector(recipe, name.removeprefix(ULTRALYTICS), device)
    folder = detector_folder(name)
    if folder is not None and _architecture(folder) == _EMBEDDED_ARCHITECTURE:
        from factory.detector.embedded import EmbeddedDetector

        return EmbeddedDetector(recipe, folder, device)
    from factory.detector.transformers import TransformersDetector

    return TransformersDetector(recipe, name if folder is None else str(folder), device)


def with_pinned_detector(recipe: Recipe) -> MaskRecipe:
    """The mask section of the recipe, with the absolute path of the detector and its pinned content.

    Raises UserError, before anything is written, if there is no such detector, if it does not know a class that
    prompts name, if it differs from the pinned revision, or if a weight file does not fit its model.
    """
    named = _absolute(recipe.masks.detector)
    masks = recipe.masks.model_copy(update={"detector": named})
    if masks.detector_revision is None:
        masks = masks.model_copy(update={"detector_revision": pin_detector(named)})
    else:
        check_pin(masks)
    check_classes(recipe.model_copy(update={"masks": masks}))
    check_file(named)
    return masks


def check_pin(masks: MaskRecipe) -> None:
    """Raise UserError if the files of a pinned detector have changed. A hub model is loaded at its pinned commit."""
    name, pinned = masks.detector, masks.detector_revision
    if pinned is None:
        return
    open_name = parse_open_name(name)
    if open_name is None and not name.startswith(_LIBRARIES) and detector_folder(name) is None:
        return
    current = pin_detector(name) if open_name is None else pin_open_name(open_name, pinned)
    if current == pinned:
        return
    if name.startswith(TORCHVISION):
        from factory.detector.torchvision import same_pin

        if same_pin(current, pinned):
            return
    raise UserError(
        f"the recipe pins the detector {name} as {pinned}, but its content is now {current}; restore the pinned one, "
        f"or set masks.detector_revision to null and start a new dataset."
    )


def pin_detector(name: str) -> str:
    """An identifier of the detector's content: a folder's digest, the hub's commit, or a library's weights."""
    open_name = parse_open_name(name)
    if open_name is not None:
        return pin_open_name(open_name)
    if name.startswith(_LIBRARIES):
        module, model = _library(name)
        return str(module.pin(model))
    folder = detector_folder(name)
    return pin_revision(name) if folder is None else folder_digest(folder)


def check_classes(recipe: Recipe) -> None:
    """Raise UserError, before any worker starts, if the detector does not know a class that prompts name.

    An open-vocabulary detector knows all classes whose names it can read; the types of its models are checked as well.
    """
    open_name = parse_open_name(recipe.masks.detector)
    if open_name is not None:
        from factory.detector.open_texts import check_texts, texts_of

        check_types(open_name, recipe.masks.detector_revision)
        check_texts(open_name, recipe.masks.detector_revision, texts_of(recipe))
        return
    translation(recipe.vocabulary(), known_labels(recipe.masks), recipe.planned_names())


def check_file(name: str) -> None:
    """Raise UserError if a weight file after the @ does not fit its model completely.

    The model is built and loaded on the CPU as in a worker, which takes seconds, and discarded.
    """
    if "@" in name and name.startswith(_LIBRARIES):
        module, model = _library(name)
        module.load_model(model)


def known_labels(masks: MaskRecipe) -> list[str]:
    """The detector's labels in the order of their ids, read without its weights."""
    name = masks.detector
    if name.startswith(_LIBRARIES):
        module, model = _library(name)
        return list(module.labels(model))
    folder = detector_folder(name)
    if folder is not None and _architecture(folder) == _EMBEDDED_ARCHITECTURE:
        return [str(label) for label in (_config(folder).get("id2label") or {}).values()]
    from factory.detector.transformers import read_labels

    return read_labels(name if folder is None else str(folder), masks.detector_revision)


def _library(name: str) -> tuple[Any, str]:
    """(the module for the prefix of a name, the name without the prefix)."""
    library, _, model = name.partition(":")
    return importlib.import_module(f"factory.detector.{library}"), model


def detector_folder(name: str) -> Path | None:
    """The folder of a detector; None for a hub id. Raises UserError if a path is named that holds no detector."""
    if name == STICKERS:
        from factory.files.embedded_models import detector_folder as embedded

        return embedded()
    kind, colon, _ = name.partition(":")
    if colon and "/" not in kind and not expanded(name).exists():  # no hub id contains a colon
        raise UserError(f"there is no kind of detectors {kind!r}, got {name}; the kinds are {', '.join(KINDS)}.")
    return local_folder(name, "detector", _FORMS)


def _absolute(name: str) -> str:
    """The name with an absolute path, so that it is valid in workers with another working directory."""
    open_name = parse_open_name(name)
    if open_name is not None:
        return str(absolute(open_name))
    if name.startswith(_LIBRARIES):
        model, separator, file = name.partition("@")
        return f"{model}@{expanded(file).absolute()}" if separator and file else name
    folder = None if name == STICKERS else detector_folder(name)
    return name if folder is None else str(folder.absolute())


def _architecture(folder: Path) -> str:
    architectures = _config(folder).get("architectures") or [""]
    return str(architectures[0])


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json_object(folder / "config.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is not a model's config ({error}); copy the model again.") from error
