"""`factory models`: what is known and present."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from factory.files.strict_json import dumps


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False) -> None:
    """List the models and sources of masks that this installation has.

    Example: factory models
    """
    rows = known()
    if as_json:
        typer.echo(dumps(rows))
        return
    for row in rows:
        present = "present" if row["present"] else "missing"
        typer.echo(f"{row['option']:<10} {row['name']:<28} {present:<8} {row['about']}")
    typer.echo("--model also takes any folder or hub id of a Stable Diffusion 1, 2 or XL pipeline of diffusers,")
    typer.echo(
        "--masks the folder of a grounder, --detector a folder or hub id of Mask2Former, MaskFormer and the like."
    )


def known() -> list[dict[str, Any]]:
    """The rows: the option that takes it, its name there, whether it is here, and what it is."""
    from factory.files.embedded_models import detector_folder, grounder_folder, pipeline_folder

    pipeline, detector = pipeline_folder(), detector_folder()
    rows = [
        (
            "--model",
            "stickers",
            (pipeline / "model_index.json").is_file(),
            "embedded text-to-image model, 80 COCO classes",
        ),
        ("--masks", "attention", True, "cross-attention of the class's words; any model, nothing trained"),
        ("--masks", "detector", (detector / "config.json").is_file(), "what the recipe's detector finds"),
        (
            "--masks",
            "stickers",
            (grounder_folder() / "config.json").is_file(),
            "embedded grounder",
        ),
        ("--detector", "stickers", (detector / "config.json").is_file(), "embedded detector of the 80 COCO classes"),
        ("--detector", "torchvision:NAME", _torchvision(), "Mask R-CNN of torchvision, 80 COCO classes"),
        ("--detector", "detectron2:CONFIG", _installed("detectron2"), "Mask R-CNN of detectron2's model zoo"),
    ]
    return [{"option": option, "name": name, "present": here, "about": about} for option, name, here, about in rows]


def _installed(library: str) -> bool:
    return find_spec(library) is not None


def _torchvision() -> bool:
    """Whether it is installed and matches torch."""
    from factory.hf_logging import torchvision_fault

    return _installed("torchvision") and torchvision_fault() is None
