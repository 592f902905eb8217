"""Load the diffusers pipeline that a recipe names, and pin its revision."""

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
"""Suffixes of single files that hold a whole Stable Diffusion model."""

_MAIN_FILES = ("model_index.json", "config.json")
"""Every model of diffusers or transformers has one of them."""

_CONFIG_FILES = ["*.json", "*/*.json", "*.txt", "*/*.txt"]


def model_folder(model: str) -> Path | None:
    """The folder or checkpoint file of a model; None for a hub id. Raises UserError if a path is named but missing."""
    if model == EMBEDDED:
        from factory.files.embedded_models import pipeline_folder

        return pipeline_folder()
    path = Path(split_checkpoint(model)[1] or model).expanduser()
    if path.is_file() and path.suffix not in CHECKPOINTS:
        raise UserError(
            f"{path} is not a model; give `{EMBEDDED}`, a diffusers folder, a checkpoint file that ends in "
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
    """(pipeline that configures it, file) of a checkpoint named FILE or PIPELINE@FILE; (None, None) otherwise."""
    if not model.endswith(CHECKPOINTS):
        return None, None
    before, at, file = model.partition("@")
    return (before, file) if at else (None, model)


def pin_generator(generator: GeneratorRecipe) -> GeneratorRecipe:
    """The generator with the model's absolute path and revision, and its own solver if it was distilled for it.

    Fields that are already pinned and a solver that was given are kept. Raises UserError if there is no such model.
    """
    model = generator.model
    config, file = split_checkpoint(model)
    path = model_folder(model)
    if file is not None:
        model = f"{_absolute(config or _configured_like(Path(file).expanduser()))}@{Path(file).expanduser().absolute()}"
    elif path is not None and model != EMBEDDED:
        model = str(path.absolute())
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
    """Check from its small files that a worker can load this model; return the folder that holds them."""
    folder = config_folder(generator)
    complete = model_folder(generator.model) is not None and split_checkpoint(generator.model)[1] is None
    check_layout(folder, generator, weights=complete)
    return folder


def config_folder(generator: GeneratorRecipe) -> Path:
    """The folder with a model's configurations and tokenizers; for a hub model they are downloaded, the weights not."""
    config, file = split_checkpoint(generator.model)
    if file is not None:
        config = config or _configured_like(Path(file).expanduser())
        path, revision = model_folder(config), (generator.revision or "").partition("+")[2] or None
        return path if path is not None else _downloaded(config, revision, _CONFIG_FILES)
    path = model_folder(generator.model)
    return path if path is not None else _downloaded(generator.model, generator.revision, _CONFIG_FILES)


def pin_revision(model: str) -> str:
    """An identifier of the model's exact content: the hub's commit, or a digest of the files.

    A checkpoint that a hub pipeline configures has both, joined by "+".
    """
    config, file = split_checkpoint(model)
    path = model_folder(model)
    if file is not None and path is not None:
        config = config or _configured_like(path)
        configured = model_folder(config)
        if configured is None:
            return f"{_digest([path], path.parent)}+{_hub_commit(config)}"
        small = [file for file in _files(configured) if file.suffix in (".json", ".txt")]
        return hashlib.sha256((_digest([path], path.parent) + _digest(small, configured)).encode()).hexdigest()[:40]
    if path is None:
        return _hub_commit(model)
    check_pipeline_folder(path)
    return folder_digest(path)


def folder_digest(folder: Path) -> str:
    """40 hex digits over the names and contents of a folder's files, except hidden ones."""
    return _digest(_files(folder), folder)


def check_pipeline_folder(folder: Path) -> None:
    """Raise UserError unless the folder holds a pipeline of one of KINDS."""
    read_index(folder)


def load_pipeline(recipe: GeneratorRecipe, device: str) -> Any:
    """The pipeline on its device in the recipe's precision, in eval mode and without a safety checker.

    Raises UserError if a file is missing or broken, or if weights and configuration do not match.
    """
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.generator.weights import assemble

    _, file = split_checkpoint(recipe.model)
    path = model_folder(recipe.model)
    if file is not None:
        folder, checkpoint = config_folder(recipe), path
    else:
        folder, checkpoint = path if path is not None else _downloaded_whole(recipe), None
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
    path = model_folder(model)
    return model if path is None else str(path.absolute())


def _configured_like(file: Path) -> str:
    """The hub id of the pipeline that fits a checkpoint, inferred from its tensors' names."""
    from factory.generator.single_file import reference_pipeline

    return reference_pipeline(file)


def _hub_commit(model: str) -> str:
    """The newest commit of a hub model, or the local cache's if the hub does not answer."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        return str(HfApi().model_info(model).sha)
    except Exception as error:
        answer = " ".join(str(error).split())[:200]
    for file in _MAIN_FILES:
        with contextlib.suppress(Exception):
            return Path(hf_hub_download(model, file, local_files_only=True)).parent.name
    raise UserError(f"{_no_model(model)} (the hub answered: {answer}).")


def _no_model(model: str) -> str:
    """A message that there is neither a folder nor a hub model of this name, with folders of similar names."""
    import difflib

    parent, _, name = model.partition("/")
    folders = sorted(path.name for path in Path(parent).iterdir() if path.is_dir()) if Path(parent).is_dir() else []
    similar = difflib.get_close_matches(name, folders, 1, 0.4)
    hint = ""
    if similar:
        hint = f" (did you mean {parent}/{similar[0]}?)"
    elif folders:
        hint = f", {parent} has {', '.join(folders[:5])}"
    return (
        f"there is no folder {model}{hint}, and no hub model of that id can be read from the hub or the local cache; "
        f"check the name and the network"
    )


def _downloaded(model: str, revision: str | None, patterns: list[str]) -> Path:
    """The local snapshot of a hub model's matching files, from the cache alone if the hub does not answer."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:
        answer = " ".join(str(error).split())[:200]
        raise UserError(f"{_no_model(model)} (revision {revision}; the hub answered: {answer}).") from error


def _downloaded_whole(recipe: GeneratorRecipe) -> Path:
    """The local snapshot of a hub pipeline, with the variant of the weights that exists."""
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
