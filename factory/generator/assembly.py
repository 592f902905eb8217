"""Assembles a pipeline from the components of a folder, or from a checkpoint that the folder configures."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.generator.layout import UNUSED, component_class, component_names, family_in, read_index
from factory.generator.schedulers import loaded_class
from factory.generator.single_file import load_checkpoint
from factory.generator.weights import explained, load_part, load_tokenizer, torch_dtype


def assemble(folder: Path, checkpoint: Path | None, recipe: GeneratorRecipe) -> Any:
    """Load the pipeline of a folder, or of a checkpoint that the folder configures, on the CPU.

    Weights are read directly in the precision of the recipe. UserError names a broken component.
    """
    import diffusers

    index = read_index(folder)
    models, tokenizers = component_names(index)
    parts: dict[str, Any] = dict.fromkeys(UNUSED)
    if checkpoint is not None:
        parts |= explained(recipe.model, "checkpoint", lambda: load_checkpoint(checkpoint, folder, torch_dtype(recipe)))
    for name in models:
        if name not in parts:
            parts[name] = explained(recipe.model, name, partial(load_part, folder, index, name, recipe))
    scheduler = getattr(diffusers, loaded_class(component_class(index, "scheduler", str(folder))))
    parts["scheduler"] = explained(
        recipe.model, "scheduler", lambda: scheduler.from_config(scheduler.load_config(folder / "scheduler"))
    )
    for name in tokenizers:
        kind = component_class(index, name, str(folder))
        parts[name] = explained(recipe.model, name, partial(load_tokenizer, folder / name, kind))
    kind = getattr(diffusers, index["_class_name"])
    accepted = inspect.signature(kind.__init__).parameters
    parts |= {name: value for name, value in index.items() if name in accepted and not isinstance(value, list)}
    # A watermark would depend on whether the package for it is installed.
    parts |= {"requires_safety_checker": False, "add_watermarker": False}
    missing = {name: None for name in family_in(index).optional if name not in parts}
    # Not `from_pretrained`: it requires the indexed class even of a component that is passed to it.
    return kind(**{name: part for name, part in {**missing, **parts}.items() if name in accepted})
