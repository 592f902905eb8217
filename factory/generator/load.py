"""Loads the diffusers pipeline of a recipe, and pins its revision."""

import hashlib
import re
from pathlib import Path
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.config.stickers import EMBEDDED_MODELS
from factory.errors import UserError
from factory.files.digest import digest_of, file_digest, files_in, folder_digest
from factory.files.paths import expanded
from factory.generator.default_settings import default_settings
from factory.generator.hub import hub_commit, hub_configuration, hub_pipeline
from factory.generator.layout import check_layout, family_in, read_index
from factory.generator.lora import check_lora, checkpoint_settings, lora_file, lora_settings, merge_lora, pin_lora
from factory.generator.placement import check_extras, placed

CHECKPOINTS = (".safetensors", ".ckpt")
"""Suffixes of single files with a complete Stable Diffusion model or the transformer of another pipeline."""

_KNOWN = " or ".join(f"`{name}`" for name in EMBEDDED_MODELS)


def model_folder(model: str) -> Path | None:
    """The folder or checkpoint file of a model; None for a hub id. Raises UserError if a path is named but missing."""
    if model in EMBEDDED_MODELS:
        from factory.files.embedded_models import pipeline_folder

        return pipeline_folder(model)
    path = expanded(split_checkpoint(model)[1] or model)
    if path.is_file() and path.suffix not in CHECKPOINTS:
        raise UserError(
            f"{path} is not a model; give {_KNOWN}, a diffusers folder, a checkpoint file that ends in "
            f"{' or '.join(CHECKPOINTS)}, or a hub id like owner/name."
        )
    if path.exists():
        return path
    missing = f"checkpoint file {path}" if path.suffix in CHECKPOINTS else f"model folder {model}"
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or path.suffix in CHECKPOINTS:
        raise UserError(
            f"there is no {missing}; give {_KNOWN}, a diffusers folder, a checkpoint file, or a hub id like owner/name."
        )
    return None


def split_checkpoint(model: str) -> tuple[str | None, str | None]:
    """(pipeline that configures it, file) of a checkpoint named FILE or PIPELINE@FILE; (None, None) otherwise.

    Paths may contain @: the separator is the first @ that is followed by the path of an existing file.
    """
    if not model.endswith(CHECKPOINTS):
        return None, None
    if "@" not in model or expanded(model).is_file():
        return None, model
    positions = [match.start() for match in re.finditer("@", model)]
    splits = [(model[:position], model[position + 1 :]) for position in positions]
    return next((split for split in splits if expanded(split[1]).is_file()), splits[0])


def pin_generator(generator: GeneratorRecipe) -> GeneratorRecipe:
    """The generator with the model's absolute path and revision, and with the settings of the model's card.

    Fields that are already pinned and settings that were given are kept. Raises UserError if there is no such model.
    """
    model = pinned_name(generator.model)
    changes: dict[str, Any] = {"model": model}
    if generator.revision is None:
        changes["revision"] = pin_revision(model)
    if generator.lora is not None:
        changes |= pin_lora(generator)
    pinned = generator.model_copy(update=changes)
    folder = config_folder(pinned)
    settings, family = default_settings(folder, generator.model), family_in(read_index(folder))
    file = split_checkpoint(generator.model)[1]
    if file is not None and family.is_unet and settings.get("guidance", family.default_guidance) > 1:
        settings |= checkpoint_settings(Path(file).name)  # the pipeline that configures it may be of another model
    if generator.lora is not None:
        settings |= lora_settings(Path(generator.lora).name, family)
    return pinned.model_copy(
        update={name: value for name, value in settings.items() if name not in generator.model_fields_set}
    )


def pinned_name(model: str) -> str:
    """The model with absolute paths; a checkpoint as PIPELINE@FILE. Raises UserError if there is no such model."""
    config, file = split_checkpoint(model)
    path = model_folder(model)
    if file is not None:
        return f"{_absolute(config or _configured_like(expanded(file)))}@{expanded(file).absolute()}"
    return str(path.absolute()) if path is not None and model not in EMBEDDED_MODELS else model


def check_generator(generator: GeneratorRecipe) -> Path:
    """Check from its small files that a worker can load this model; return the folder that holds them."""
    folder = config_folder(generator)
    pipeline, file = split_checkpoint(generator.model)
    local = model_folder(pipeline or generator.model) is not None
    if file is not None:
        from factory.generator.single_file import check_checkpoint

        check_checkpoint(expanded(file))
    check_lora(generator)
    check_layout(folder, generator, weights=local and _has_weights(folder, file), checkpoint=file is not None)
    return folder


def _has_weights(folder: Path, file: str | None) -> bool:
    """Whether weights are in the folder: a checkpoint of a U-Net is complete, others contain only a transformer."""
    return file is None or not family_in(read_index(folder)).is_unet


def config_folder(generator: GeneratorRecipe) -> Path:
    """The folder with the configurations and tokenizers of a model; for a hub model, only these are downloaded."""
    config, file = split_checkpoint(generator.model)
    if file is not None:
        config = config or _configured_like(expanded(file))
        path = model_folder(config)
        commit = pipeline_commit(generator.revision)
        return path if path is not None else hub_configuration(config, commit, generator, checkpoint=True)
    path = model_folder(generator.model)
    if path is not None:
        return path
    return hub_configuration(generator.model, generator.revision, generator, checkpoint=False)


def pin_revision(model: str, pinned: str | None = None) -> str:
    """An identifier of the content of a model: the hub commit, or a digest of the files.

    A checkpoint that a hub pipeline configures has both, joined by "+". The commit is taken from `pinned`, an earlier
    revision of the model, if it is given: a hub model is loaded at its pinned commit, whatever the hub has.
    """
    config, file = split_checkpoint(model)
    path = model_folder(model)
    if file is not None and path is not None:
        config = config or _configured_like(path)
        configured = model_folder(config)
        if configured is None:
            return f"{file_digest(path)}+{pipeline_commit(pinned) or hub_commit(config)}"
        files = list(files_in(configured))
        if not _has_weights(configured, file):
            files = [own for own in files if own.suffix in (".json", ".txt")]
        return hashlib.sha256((file_digest(path) + digest_of(files, configured)).encode()).hexdigest()[:40]
    if path is None:
        return pinned or hub_commit(model)
    read_index(path)  # raises UserError unless the folder holds a pipeline of a supported class
    return folder_digest(path)


def check_unchanged(generator: GeneratorRecipe, dataset: str) -> None:
    """Raise UserError if a local model or LoRA is no longer the one with which a dataset was generated.

    A hub model is loaded at its pinned commit, so newer commits do not matter.
    """
    parts = []
    if generator.revision is not None and model_folder(generator.model) is not None:
        parts.append(("model", generator.model, generator.revision, pin_revision(generator.model)))
    if generator.lora is not None and generator.lora_revision is not None:
        current = pin_lora(generator).get("lora_revision", generator.lora_revision)
        parts.append(("LoRA", generator.lora, generator.lora_revision, current))
    for kind, name, pinned, current in parts:
        # After "+" is the commit of a hub pipeline that configures a local checkpoint.
        if current.partition("+")[0] != pinned.partition("+")[0]:
            raise UserError(
                f"{dataset} was made with {name} of revision {pinned[:12]}, but the {kind} now has revision "
                f"{current[:12]}, whose features differ; restore the {kind}, or create the dataset again."
            )


def load_pipeline(recipe: GeneratorRecipe, device: str, offload: bool = False) -> Any:
    """The pipeline on its device in the recipe's precision, in eval mode and without a safety checker.

    With `offload` its models stay in host memory while they are not used. Raises UserError if a file is missing or
    broken, if weights and configuration do not match, or if the model does not fit on the device.
    """
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.generator.assembly import assemble
    from factory.generator.memory import loading

    check_extras(recipe, offload)
    folder, checkpoint = _files_of(recipe)
    pipeline = assemble(folder, checkpoint, recipe)
    if recipe.lora is not None:
        merge_lora(pipeline, lora_file(recipe), recipe.lora_scale)
    with loading(f"the model {recipe.model}"):
        return placed(pipeline, family_in(read_index(folder)), recipe, device, offload)


def _files_of(recipe: GeneratorRecipe) -> tuple[Path, Path | None]:
    """(folder with the configurations and the weights that are used, checkpoint file), downloaded and checked."""
    config, file = split_checkpoint(recipe.model)
    path = model_folder(recipe.model)
    if file is None:
        folder = path if path is not None else hub_pipeline(recipe.model, recipe.revision, recipe)
        check_layout(folder, recipe)
        return folder, None
    folder = config_folder(recipe)
    from_folder = _has_weights(folder, file)
    config = config or _configured_like(expanded(file))
    if from_folder and model_folder(config) is None:
        skipped = family_in(read_index(folder)).denoiser
        folder = hub_pipeline(config, pipeline_commit(recipe.revision), recipe, skipped)
    check_layout(folder, recipe, weights=from_folder, checkpoint=True)
    return folder, path


def pipeline_commit(revision: str | None) -> str | None:
    """The commit of the hub pipeline that configures a checkpoint, from the checkpoint's revision DIGEST+COMMIT."""
    return (revision or "").partition("+")[2] or None


def _absolute(model: str) -> str:
    path = model_folder(model)
    return model if path is None else str(path.absolute())


def _configured_like(file: Path) -> str:
    """The hub id of the pipeline that fits a checkpoint, inferred from its tensors' names."""
    from factory.generator.single_file import reference_pipeline

    return reference_pipeline(file)
