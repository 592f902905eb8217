"""Open a detector by the recipe's name for it, pin what it is, and say which classes it knows."""

import json
from pathlib import Path
from typing import Any

from factory.detector.interface import Detector
from factory.detector.labels import translation
from factory.errors import UserError
from factory.generator.load import EMBEDDED, folder_digest, pin_revision
from factory.recipe import Recipe

TORCHVISION, DETECTRON2 = "torchvision:", "detectron2:"
_OWN = "UperNetForSemanticSegmentation"
_FORMS = (
    f"`{EMBEDDED}`, a folder or hub id of a transformers model, {TORCHVISION}maskrcnn_resnet50_fpn_v2 or "
    f"{DETECTRON2}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
)


def open_detector(recipe: Recipe, device: str) -> Detector:
    """The detector of a recipe with its weights loaded. UserError where it cannot be had or misses a class."""
    name = recipe.masks.detector
    if name.startswith(TORCHVISION):
        from factory.detector.torchvision import TorchvisionDetector

        return TorchvisionDetector(recipe, name.removeprefix(TORCHVISION), device)
    if name.startswith(DETECTRON2):
        from factory.detector.detectron2 import Detectron2Detector

        return Detectron2Detector(recipe, name.removeprefix(DETECTRON2), device)
    folder = detector_folder(name)
    if folder is not None and _architecture(folder) == _OWN:
        from factory.detector.embedded import EmbeddedDetector

        return EmbeddedDetector(recipe, folder, device)
    from factory.detector.universal import UniversalDetector

    return UniversalDetector(recipe, name if folder is None else str(folder), device)


def pin_detector(name: str) -> str:
    """What stands for the detector's exact content: a folder's digest, the hub's commit, or a library's weights."""
    if name.startswith(TORCHVISION):
        from factory.detector.torchvision import pin

        return pin(name.removeprefix(TORCHVISION))
    if name.startswith(DETECTRON2):
        from factory.detector.detectron2 import pin as pin_config

        return pin_config(name.removeprefix(DETECTRON2))
    folder = detector_folder(name)
    return pin_revision(name) if folder is None else folder_digest(folder)


def check_classes(recipe: Recipe) -> None:
    """UserError, before any worker starts, where a folder's detector misses a class that prompts name."""
    name = recipe.masks.detector
    if name.startswith((TORCHVISION, DETECTRON2)) or (folder := detector_folder(name)) is None:
        return
    labels = _config(folder).get("id2label") or {}
    translation(recipe.vocabulary(), [str(label) for label in labels.values()], recipe.planned_names())


def detector_folder(name: str) -> Path | None:
    """Where a detector lies; None for a hub id. UserError where a folder is meant and holds none."""
    if name == EMBEDDED:
        from factory.stickers.embedded import detector_folder as embedded

        return embedded()
    path = Path(name).expanduser()
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return None
    if not (path / "config.json").is_file():
        raise UserError(f"{name} holds no detector (there is no config.json); give {_FORMS}.")
    return path


def _architecture(folder: Path) -> str:
    named = _config(folder).get("architectures") or [""]
    return str(named[0])


def _config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert isinstance(data, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise UserError(f"{folder / 'config.json'} is no model's config ({error}); copy the model again.") from error
    return data
