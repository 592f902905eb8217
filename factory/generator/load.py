"""Open a diffusers pipeline by the recipe's name for it, and pin its revision."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.layout import KINDS, UNUSED, check_layout, read_config, read_index
from factory.generator.schedulers import own_solver_needed

__all__ = [
    "CHECKPOINTS",
    "EMBEDDED",
    "KINDS",
    "check_generator",
    "check_pipeline_folder",
    "config_folder",
    "folder_digest",
    "load_pipeline",
    "model_folder",
    "pin_generator",
    "pin_revision",
]

EMBEDDED = "stickers"

CHECKPOINTS = (".safetensors", ".ckpt")
"""Ends of the names of single files that hold a whole Stable Diffusion model."""

_MAIN_FILES = ("model_index.json", "config.json")
"""One of them is in every model of diffusers and of transformers."""

_CONFIG_FILES = ["*.json", "*/*.json", "*.txt", "*/*.txt"]


def model_folder(model: str) -> Path | None:
    """The folder or checkpoint file of a model; None for a hub id. UserError where one is meant and none is there."""
    if model == EMBEDDED:
        from factory.files.embedded_models import pipeline_folder

        return pipeline_folder()
    path = Path(split_checkpoint(model)[1] or model).expanduser()
    if path.is_file() and path.suffix not in CHECKPOINTS:
        raise UserError(
            f"{path} is a file; a model is `{EMBEDDED}`, a diffusers folder, a checkpoint that ends in "
            f"{' or '.join(CHECKPOINTS)}, or a hub id like owner/name."
        )
    if path.exists():
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or path.suffix in CHECKPOINTS:
        raise UserError(
            f"there is no model folder {model}; give `{EMBEDDED}`, a diffusers folder, a checkpoint file, or a hub id "
            f"like owner/name."
        )
    return None


def split_checkpoint(model: str) -> tuple[str | None, str | None]:
    """(pipeline that configures it, file) of a single-file checkpoint, named FILE or PIPELINE@FILE; else twice None."""
    if not model.endswith(CHECKPOINTS):
        return None, None
    before, at, file = model.partition("@")
    return (before, file) if at else (None, model)


def pin_generator(generator: GeneratorRecipe) -> GeneratorRecipe:
    """The generator with the model's absolute path, its revision, and its own solver where it was distilled for it.

    Fields that are already pinned, and a solver that was given, stay. UserError where there is no such model.
    """
    model = generator.model
    config, file = split_checkpoint(model)
    place = model_folder(model)
    if file is not None:
        model = f"{_absolute(config or _configured_like(Path(file).expanduser()))}@{Path(file).expanduser().absolute()}"
    elif place is not None and model != EMBEDDED:
        model = str(place.absolute())
    changes: dict[str, Any] = {"model": model}
    if generator.revision is None:
        changes["revision"] = pin_revision(model)
    pinned = generator.model_copy(update=changes)
    if "solver" in generator.model_fields_set:
        return pinned
    folder = config_folder(pinned)
    kind = str(read_index(folder).get("scheduler", ["", ""])[1])
    if own_solver_needed(kind, read_config(folder, "scheduler"), read_config(folder, "unet")):
        return pinned.model_copy(update={"solver": "model"})
    return pinned


def check_generator(generator: GeneratorRecipe) -> Path:
    """Find what would stop a worker from opening this model, from its small files alone; the folder that has them."""
    folder = config_folder(generator)
    complete = model_folder(generator.model) is not None and split_checkpoint(generator.model)[1] is None
    check_layout(folder, generator, weights=complete)
    return folder


def config_folder(generator: GeneratorRecipe) -> Path:
    """The folder with the configurations and tokenizers of a model; a hub model's are downloaded, its weights not."""
    config, file = split_checkpoint(generator.model)
    if file is not None:
        config = config or _configured_like(Path(file).expanduser())
        place, revision = model_folder(config), (generator.revision or "").partition("+")[2] or None
        return place if place is not None else _downloaded(config, revision, _CONFIG_FILES)
    place = model_folder(generator.model)
    return place if place is not None else _downloaded(generator.model, generator.revision, _CONFIG_FILES)


def pin_revision(model: str) -> str:
    """What stands for the model's exact content: the hub's commit, or a digest of the files.

    A checkpoint whose configuration is a hub pipeline's has both, joined by "+".
    """
    config, file = split_checkpoint(model)
    place = model_folder(model)
    if file is not None and place is not None:
        config = config or _configured_like(place)
        configured = model_folder(config)
        if configured is None:
            return f"{_digest([place], place.parent)}+{_hub_commit(config)}"
        small = [path for path in _files(configured) if path.suffix in (".json", ".txt")]
        return hashlib.sha256((_digest([place], place.parent) + _digest(small, configured)).encode()).hexdigest()[:40]
    if place is None:
        return _hub_commit(model)
    check_pipeline_folder(place)
    return folder_digest(place)


def folder_digest(folder: Path) -> str:
    """40 hex digits over the names and contents of a model folder's files; hidden files are passed over."""
    return _digest(_files(folder), folder)


def check_pipeline_folder(folder: Path) -> None:
    """UserError unless the folder holds a pipeline of one of KINDS."""
    read_index(folder)


def load_pipeline(recipe: GeneratorRecipe, device: str) -> Any:
    """The pipeline on its device, in the recipe's precision, without a safety checker, all parts in eval mode.

    UserError where a file is missing or broken, and where weights and configuration do not belong together.
    """
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.generator.weights import assemble

    _, file = split_checkpoint(recipe.model)
    place = model_folder(recipe.model)
    if file is not None:
        folder, checkpoint = config_folder(recipe), place
    else:
        folder, checkpoint = place if place is not None else _downloaded_whole(recipe), None
    check_layout(folder, recipe, weights=checkpoint is None)
    return assemble(folder, checkpoint, recipe).to(device)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _digest(paths: Any, folder: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:40]


def _absolute(model: str) -> str:
    place = model_folder(model)
    return model if place is None else str(place.absolute())


def _configured_like(file: Path) -> str:
    """The hub id of the pipeline that a checkpoint is configured like, found from its tensors' names."""
    from factory.generator.single_file import reference_pipeline

    return reference_pipeline(file)


def _hub_commit(model: str) -> str:
    """The commit of a hub model: the hub's newest, or that of the local cache where the hub does not answer."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        return str(HfApi().model_info(model).sha)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
    for file in _MAIN_FILES:
        with contextlib.suppress(Exception):
            return Path(hf_hub_download(model, file, local_files_only=True)).parent.name
    raise UserError(f"{_no_model(model)} (the hub said: {said}).")


def _no_model(model: str) -> str:
    """That there is neither a folder nor a hub model of this name, with the folders whose names are near."""
    import difflib

    parent, _, name = model.partition("/")
    there = sorted(path.name for path in Path(parent).iterdir() if path.is_dir()) if Path(parent).is_dir() else []
    near = difflib.get_close_matches(name, there, 1, 0.4)
    hint = f" (did you mean {parent}/{near[0]}?)" if near else f", {parent} has {', '.join(there[:5])}" if there else ""
    return (
        f"there is no folder {model}{hint}, and no hub model of that id can be read, here or from the local cache; "
        f"check the name and the network"
    )


def _downloaded(model: str, revision: str | None, patterns: list[str]) -> Path:
    """The local snapshot of a hub model's files that match; the cache alone serves where the hub does not answer."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{_no_model(model)} (revision {revision}; the hub said: {said}).") from error


def _downloaded_whole(recipe: GeneratorRecipe) -> Path:
    """The local snapshot of a hub pipeline, with the variant of its weights that is there."""
    from diffusers import DiffusionPipeline

    unused: dict[str, Any] = dict.fromkeys(UNUSED)
    problem = ""
    for variant in (None, "fp16"):
        try:
            folder = Path(DiffusionPipeline.download(recipe.model, revision=recipe.revision, variant=variant, **unused))
            check_layout(folder, recipe)
        except UserError as error:
            problem = str(error)
        except (OSError, ValueError) as error:
            problem = " ".join(str(error).split())[:300]
        else:
            return folder
    raise UserError(f"the model {recipe.model} cannot be loaded: {problem}")
