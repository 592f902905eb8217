"""Loads single models and tokenizers, and checks every tensor.

The libraries only warn about missing tensors and continue with uninitialised memory in their place.
"""

import re
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError, first_few, one_line
from factory.generator.layout import component_class, weights_variant

_IGNORED = re.compile(r"(^|\.)position_ids$|^lm_head\.weight$")
"""A table of the numbers 0, 1, 2 ..., which older releases stored, and the output layer of a language model, which a
text encoder does not have."""
_MOST_TOKENS = 1_000_000
"""A larger `model_max_length` is the default of transformers where a tokenizer has none."""


def torch_dtype(recipe: GeneratorRecipe) -> torch.dtype:
    """The type of the weights; "tf32" is a mode of multiplying float32."""
    dtype: torch.dtype = getattr(torch, "float32" if recipe.dtype == "tf32" else recipe.dtype)
    return dtype


def check_tensors(name: str, where: object, missing: Collection[str], unexpected: Collection[str], total: int) -> None:
    """Raise UserError unless weights and configuration have the same tensors; the configuration has `total`."""
    for faulty, what in (
        (missing, f"is missing {len(missing)} of its {total} tensors"),
        ([key for key in unexpected if not _IGNORED.search(key)], "has tensors that its configuration does not have"),
    ):
        if faulty:
            raise UserError(
                f"the {name} of {where} {what} ({first_few(sorted(faulty))}): its weights and configuration do "
                f"not match, or a file is truncated. Download or save the model again."
            )


def load_model(kind: Any, folder: Path, name: str) -> Any:
    """A model of diffusers or transformers in float32 and eval mode; `name` is used in messages.

    Raises UserError if its file is broken or lacks a tensor.
    """
    return explained(str(folder), name, lambda: _load_checked(kind, folder, name, folder, dtype=torch.float32))


def load_tokenizer(folder: Path, kind: str) -> Any:
    """The tokenizer of the class that a pipeline's index names; of a processor, its tokenizer alone.

    Raises UserError if its file requires sentencepiece, which is not installed, or if one of CLIP has no length.
    """
    import transformers

    if not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model")) and find_spec("sentencepiece") is None:
        raise UserError(
            f"the tokenizer in {folder} is a file of sentencepiece, which is not installed; run `pip install "
            f"sentencepiece`."
        )
    # PixtralProcessor needs torchvision for images that no text-to-image call has.
    named = transformers.AutoTokenizer if kind.endswith("Processor") else getattr(transformers, kind)
    tokenizer = named.from_pretrained(folder, local_files_only=True)
    if kind.startswith("CLIP") and tokenizer.model_max_length > _MOST_TOKENS:
        raise UserError(
            f"the tokenizer in {folder} does not say how many tokens the text encoder reads (model_max_length in "
            f"tokenizer_config.json); download or save the pipeline again."
        )
    return tokenizer


def model_class(name: str) -> Any:
    """The class of diffusers, or else of transformers, with this name."""
    import diffusers
    import transformers

    return getattr(diffusers if hasattr(diffusers, name) else transformers, name)


def explained(model: str, name: str, load: Callable[[], Any]) -> Any:
    """The result of `load`; errors of the libraries about missing, truncated or unrelated files become UserError."""
    try:
        return load()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"the {name} of the model {model} cannot be loaded: {one_line(error, 300)}.") from error


def load_part(folder: Path, index: dict[str, Any], name: str, recipe: GeneratorRecipe) -> nn.Module:
    """The model `name` of a pipeline in the recipe's precision, on the CPU. UserError if a tensor is missing."""
    kind = model_class(component_class(index, name, str(folder)))
    return _load_checked(
        kind, folder / name, name, recipe.model, dtype=torch_dtype(recipe), variant=weights_variant(folder / name)
    )


def _load_checked(kind: Any, folder: Path, name: str, source: object, **options: Any) -> nn.Module:
    of_diffusers = kind.__module__.startswith("diffusers.")
    extra = {"low_cpu_mem_usage": False} if of_diffusers else {}
    model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options, **extra)
    check_tensors(name, source, info["missing_keys"], info["unexpected_keys"], len(model.state_dict()))
    if of_diffusers:
        # diffusers converts no weight if the first tensor has its type already, which the table of positions of Stable
        # Diffusion 3 always has in files in float32.
        for weight in model.parameters():
            weight.data = weight.data.to(options["dtype"])
    loaded: nn.Module = model.eval()
    return loaded
