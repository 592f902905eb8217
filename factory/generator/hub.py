"""Pipelines of the Hugging Face Hub: their newest commit, and their files in the local cache.

For a pinned commit, the cache is used before the hub: without a connection, huggingface_hub retries each request for 23
s, and with a connection, every worker would send the same requests.
"""

import contextlib
from pathlib import Path
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError, one_line
from factory.files.hub import check_not_gated, is_commit
from factory.generator.layout import (
    UNUSED,
    VARIANTS,
    check_layout,
    component_names,
    read_index,
    read_json,
    usable_values,
    weights_variant,
)

_MAIN_FILES = ("model_index.json", "config.json")
"""Files of which every model of diffusers or transformers has at least one."""
_CARD = "README.md"
_CONFIG_FILES = ["*.json", "*/*.json", "*.txt", "*/*.txt", "*/*.model", "*/*.jinja", _CARD]


def hub_commit(model: str, file: str | None = None) -> str:
    """The newest commit of a hub model, or that in the local cache if the hub does not respond.

    The cache is searched for `file`, by default a file that every model of diffusers or transformers has.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        return str(HfApi().model_info(model).sha)
    except Exception as error:
        failure = error
    for name in _MAIN_FILES if file is None else (file,):
        with contextlib.suppress(Exception):
            path = Path(hf_hub_download(model, name, local_files_only=True))
            return path.parents[name.count("/")].name
    check_not_gated(model, failure)
    raise UserError(f"{_no_model(model)} (the error was: {one_line(failure)}).")


def hub_configuration(model: str, revision: str | None, recipe: GeneratorRecipe, checkpoint: bool) -> Path:
    """The local folder with the configurations, tokenizers and card of a hub pipeline, without its weights.

    With a `checkpoint`, its weights come from another file. Raises UserError if there is no such model.
    """
    from huggingface_hub import snapshot_download

    cached = cached_folder(model, revision)
    if (
        cached is not None
        and (cached / _CARD).is_file()
        and _fits(cached, recipe, weights=False, checkpoint=checkpoint)
    ):
        return cached
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_CONFIG_FILES))
    except Exception as error:
        check_not_gated(model, error)
        raise UserError(f"{_no_model(model)} (revision {revision}; the error was: {one_line(error)}).") from error


def hub_pipeline(model: str, revision: str | None, recipe: GeneratorRecipe, skipped: str | None = None) -> Path:
    """The local folder of a hub pipeline, with the variant of the weights that exists, without those of `skipped`.

    Raises UserError if a file is missing on the hub, or if it does not answer and the cache is incomplete.
    """
    from diffusers import DiffusionPipeline

    cached = cached_folder(model, revision)
    fits = cached is not None and _fits(cached, recipe, weights=True, checkpoint=skipped is not None)
    if cached is not None and fits and _has_plain_weights(cached, skipped):
        return cached
    unused: dict[str, Any] = dict.fromkeys((*UNUSED, *((skipped,) if skipped else ())))
    problem = ""
    for variant in (None, *VARIANTS):
        try:
            folder = Path(DiffusionPipeline.download(model, revision=revision, variant=variant, **unused))
            check_layout(folder, recipe, checkpoint=skipped is not None)
        except UserError as error:
            problem = problem or str(error)
        except (OSError, ValueError) as error:
            check_not_gated(model, error)
            problem = problem or one_line(error, 300)
        else:
            return folder
    raise UserError(f"the model {model} cannot be loaded: {problem.removesuffix('.')}.")


def cached_folder(model: str, revision: str | None) -> Path | None:
    """The folder of a pinned commit in the local cache, which may be incomplete; None without a pin or a copy."""
    from huggingface_hub import try_to_load_from_cache

    if is_commit(revision):
        # Not `snapshot_download`, which rejects a copy without all files of the repository; only some are downloaded.
        with contextlib.suppress(Exception):  # any error of huggingface_hub means that there is no copy
            index = try_to_load_from_cache(model, "model_index.json", revision=revision)
            return Path(index).parent if isinstance(index, str) else None
    return None


def _fits(folder: Path, recipe: GeneratorRecipe, weights: bool, checkpoint: bool) -> bool:
    with contextlib.suppress(UserError):
        check_layout(folder, recipe, weights, checkpoint)
        return True
    return False


def _has_plain_weights(folder: Path, skipped: str | None) -> bool:
    """Whether the cache has every weight file of every component in the plain variant.

    Other variants are not taken from the cache alone, because workers with different caches would use different
    weights.
    """
    models, _ = component_names(read_index(folder))
    for name in models:
        if name == skipped:
            continue
        if weights_variant(folder / name) is not None:
            return False
        for index in (folder / name).glob("*.index.json"):
            with usable_values(folder):
                files = set(read_json(index)["weight_map"].values())
            if not all((folder / name / file).is_file() for file in files):
                return False
    return True


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
