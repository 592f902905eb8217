"""Open a diffusers pipeline by the recipe's name for it, and pin its revision."""

import hashlib
import json
from pathlib import Path
from typing import Any

from factory.errors import UserError
from factory.recipe_parts import GeneratorRecipe

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline")
"""Classes of pipelines whose parts are put together as this project's generator expects."""

EMBEDDED = "stickers"


def model_folder(model: str) -> Path | None:
    """The folder of a model; None for a hub id. UserError where a folder is meant and none is there."""
    if model == EMBEDDED:
        from factory.stickers.embedded import pipeline_folder

        return pipeline_folder()
    path = Path(model).expanduser()
    if path.exists():
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(
            f"there is no model folder {model}; give `{EMBEDDED}`, a diffusers folder, or a hub id like owner/name."
        )
    return None


def pin_revision(model: str) -> str:
    """What stands for the model's exact content: the hub's commit, or a digest of the folder's files."""
    folder = model_folder(model)
    if folder is None:
        return _hub_commit(model)
    check_pipeline_folder(folder)
    return folder_digest(folder)


def folder_digest(folder: Path) -> str:
    """40 hex digits over the names and contents of a model folder's files; hidden files are passed over."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:40]


def check_pipeline_folder(folder: Path) -> None:
    """UserError unless the folder holds a pipeline of one of KINDS."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} holds no diffusers pipeline: there is no model_index.json. Give a folder that has one."
        )
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} does not tell the pipeline's class ({error}); save the pipeline again.") from error
    _check_kind(kind, str(folder))


def load_pipeline(recipe: GeneratorRecipe, device: str) -> Any:
    """The pipeline on its device, in the recipe's precision, without a safety checker, all parts in eval mode."""
    import torch
    from diffusers import DiffusionPipeline

    from factory.libraries import quiet_model_libraries

    quiet_model_libraries()
    folder = model_folder(recipe.model)
    source = recipe.model if folder is None else str(folder)
    if folder is not None:
        check_pipeline_folder(folder)
    options: dict[str, Any] = {"local_files_only": True} if folder is not None else {"revision": recipe.revision}
    try:
        kind = DiffusionPipeline.load_config(source, **options)["_class_name"]
        _check_kind(kind, source)
        if kind == "StableDiffusionPipeline":
            options |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = DiffusionPipeline.from_pretrained(source, low_cpu_mem_usage=False, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the model {source} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return pipeline.to(device, getattr(torch, recipe.dtype))


def _check_kind(kind: object, where: str) -> None:
    if kind not in KINDS:
        raise UserError(f"{where} is a {kind}; this release runs {', '.join(KINDS)}.")


def _hub_commit(model: str) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(model).sha)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"the hub does not tell the revision of {model}: {said}. Check the id and the network, or set "
            f"generator.revision in the recipe."
        ) from error
