"""`factory models`: the supported models and whether they are available."""

from importlib.util import find_spec
from typing import Any

from factory.cli.messages import to_stdout
from factory.cli.shared_options import AsJson
from factory.config.stickers import EMBEDDED_MODELS
from factory.files.strict_json import dumps


def models(as_json: AsJson = False) -> None:
    """List the embedded models, mask sources and detectors, and whether each is installed.

    Example: factory models
    """
    from factory.generator.families import FAMILIES

    entries = known()
    if as_json:
        to_stdout(dumps(entries))
        return
    for entry in entries:
        state = "installed" if entry["present"] else "missing"
        to_stdout(f"{entry['option']:<10} {entry['name']:<28} {state:<9} {entry['about']}")
    names = ", ".join(family.name for family in FAMILIES)
    to_stdout(f"--model also accepts a diffusers folder, a hub id or a checkpoint file of these families: {names}.")
    to_stdout("--masks also accepts the folder of a grounder.")
    to_stdout("--detector also accepts a folder or hub id of Mask2Former, MaskFormer and others (docs/detectors.md).")


def known() -> list[dict[str, Any]]:
    """The entries: the option that accepts the model, its name, whether it is present, and a description."""
    from factory.files.embedded_models import detector_folder, grounder_folder, pipeline_folder

    embedded_detector = (detector_folder() / "config.json").is_file()
    models = [
        ("--model", name, (pipeline_folder(name) / "model_index.json").is_file(), model.about)
        for name, model in EMBEDDED_MODELS.items()
    ]
    grounders = [
        ("--masks", name, (grounder_folder(name) / "config.json").is_file(), f"embedded grounder of the model {name}")
        for name in EMBEDDED_MODELS
    ]
    entries = [
        *models,
        ("--masks", "attention", True, "cross-attention to the class name; works with any model, without training"),
        ("--masks", "detector", embedded_detector, "masks of the detector that --detector selects"),
        *grounders,
        ("--detector", "stickers", embedded_detector, "embedded detector, 80 COCO classes"),
        ("--detector", "sam3:MODEL", True, "SAM 3 with text prompts, any class"),
        ("--detector", "grounding-dino:MODEL+SAM2", True, "boxes of GroundingDINO for any class, masks of SAM 2"),
        ("--detector", "owlv2:MODEL+SAM2", True, "boxes of OWLv2 for any class, masks of SAM 2"),
        ("--detector", "clipseg:MODEL", True, "coarse masks for any class"),
        ("--detector", "torchvision:NAME", _torchvision(), "Mask R-CNN from torchvision, 80 COCO classes"),
        ("--detector", "detectron2:CONFIG", _installed("detectron2"), "Mask R-CNN from detectron2's model zoo"),
        ("--detector", "ultralytics:NAME@FILE", _installed("ultralytics"), "YOLO segmentation models of ultralytics"),
    ]
    return [
        {"option": option, "name": name, "present": present, "about": about} for option, name, present, about in entries
    ]


def _installed(library: str) -> bool:
    return find_spec(library) is not None


def _torchvision() -> bool:
    """Whether torchvision is installed and matches torch."""
    from factory.torchvision_guard import torchvision_fault

    return _installed("torchvision") and torchvision_fault() is None
