"""Load a pipeline's components in the recipe's precision, and account for every tensor.

The libraries' own loading goes on where a file lacks tensors, with whatever was in memory, and says so in a remark.
"""

import inspect
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.layout import UNUSED, component_class, component_names, read_index, weights_variant
from factory.generator.schedulers import loaded_class

_IGNORED = re.compile(r"(^|\.)position_ids$")
"""A table of the numbers 0, 1, 2 ... that older releases of the libraries stored."""

_NAMED = 3


def torch_dtype(recipe: GeneratorRecipe) -> torch.dtype:
    """The type of the weights; "tf32" is a way to multiply float32."""
    found: torch.dtype = getattr(torch, "float32" if recipe.dtype == "tf32" else recipe.dtype)
    return found


def assemble(folder: Path, checkpoint: Path | None, recipe: GeneratorRecipe) -> Any:
    """The pipeline of a folder, or of a checkpoint that the folder configures, on the CPU.

    Weights are read in the recipe's precision, never in another first. UserError names the component that is broken.
    """
    import diffusers

    index = read_index(folder)
    models, tokenizers = component_names(index)
    parts: dict[str, Any] = dict.fromkeys(UNUSED)
    if checkpoint is not None:
        from factory.generator.single_file import load_checkpoint

        parts |= _explained(
            recipe.model, "checkpoint", lambda: load_checkpoint(checkpoint, folder, torch_dtype(recipe))
        )
    else:
        for name in models:
            parts[name] = _explained(recipe.model, name, partial(_load, folder, index, name, recipe))
    scheduler = getattr(diffusers, loaded_class(component_class(index, "scheduler", str(folder))))
    parts["scheduler"] = _explained(
        recipe.model, "scheduler", lambda: scheduler.from_config(scheduler.load_config(folder / "scheduler"))
    )
    for name in tokenizers:
        parts[name] = _explained(recipe.model, name, partial(_tokenizer, folder / name))
    kind = getattr(diffusers, index["_class_name"])
    taken = inspect.signature(kind.__init__).parameters
    parts |= {name: value for name, value in index.items() if name in taken and not isinstance(value, list)}
    parts["requires_safety_checker"] = False
    # Not `from_pretrained`: it wants the class in the index to be there even of a component that it is given.
    return kind(**{name: part for name, part in parts.items() if name in taken})


def check_tensors(name: str, where: object, missing: Collection[str], unexpected: Collection[str], of: int) -> None:
    """UserError unless weights and configuration have the same tensors; `of` is how many the configuration has."""
    for found, what in (
        (missing, f"lacks {len(missing)} of its {of} tensors"),
        ([key for key in unexpected if not _IGNORED.search(key)], "holds tensors that its configuration does not have"),
    ):
        if found:
            some = ", ".join(sorted(found)[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
            raise UserError(
                f"the {name} of {where} {what} ({some}): its weights and its configuration do not belong together, "
                f"or a file was cut. Download or save the model again."
            )


def load_model(kind: Any, folder: Path, name: str) -> Any:
    """A model of diffusers or transformers in float32 and eval mode; `name` is for sentences.

    UserError where its file is broken or lacks a tensor.
    """
    return _explained(str(folder), name, lambda: _whole(kind, folder, name, folder, dtype=torch.float32))


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _load(folder: Path, index: dict[str, Any], name: str, recipe: GeneratorRecipe) -> nn.Module:
    import diffusers
    import transformers

    kind_name = component_class(index, name, str(folder))
    kind = getattr(diffusers if hasattr(diffusers, kind_name) else transformers, kind_name)
    return _whole(
        kind, folder / name, name, recipe.model, dtype=torch_dtype(recipe), variant=weights_variant(folder / name)
    )


def _whole(kind: Any, folder: Path, name: str, said: object, **options: Any) -> nn.Module:
    more = {"low_cpu_mem_usage": False} if kind.__module__.startswith("diffusers.") else {}
    model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options, **more)
    check_tensors(name, said, info["missing_keys"], info["unexpected_keys"], len(model.state_dict()))
    loaded: nn.Module = model.eval()
    return loaded


def _explained(model: str, name: str, load: Callable[[], Any]) -> Any:
    """What `load` gives; UserError for what the libraries raise over files that are missing, cut off or foreign."""
    try:
        return load()
    except UserError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"the {name} of the model {model} cannot be loaded: {said}.") from error
