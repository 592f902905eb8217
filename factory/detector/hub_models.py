"""Loads models of transformers completely, without running code that comes with them."""

from pathlib import Path
from typing import Any

import torch

from factory.errors import UserError, counted, one_line
from factory.hf_logging import quiet_model_libraries

_COMPUTED = ("position_ids", "relative_position_index", "relative_coords_table")
"""Tables that published weights contain, and that current releases of transformers compute instead."""


def location(source: str, revision: str | None) -> dict[str, Any]:
    """Options of transformers to read a folder as it is, or a hub id at its commit."""
    return {"local_files_only": True} if Path(source).exists() else {"revision": revision}


def options(source: str, revision: str | None) -> dict[str, Any]:
    """Options of `from_pretrained`: those of `location`, and no code from the model."""
    return location(source, revision) | {"trust_remote_code": False}


def load_complete(kind: Any, source: str, revision: str | None, unused: tuple[str, ...] = ()) -> Any:
    """A model of the class `kind` in float32 on the CPU, in evaluation mode.

    Raises UserError if it cannot be loaded, or if the model and its weights do not have the same tensors, except for
    surplus ones whose name contains one of `unused`.
    """
    quiet_model_libraries()
    try:
        model, report = kind.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **options(source, revision)
        )
    except Exception as error:  # truncated or unrelated weights raise many types
        raise UserError(
            f"the detector {source} cannot be loaded ({one_line(error)}); copy it again, or check the network."
        ) from error
    check_complete(source, report, unused)
    return model.eval()


def load_tokenizer(source: str, revision: str | None) -> Any:
    """The tokenizer of a model; raises UserError if there is none."""
    from transformers import AutoTokenizer

    return _loaded("tokenizer", AutoTokenizer, source, revision)


def load_config(source: str, revision: str | None) -> Any:
    """The config of a model, with the defaults of its class."""
    from transformers import AutoConfig

    return _loaded("config", AutoConfig, source, revision)


def load_image_processor(source: str, revision: str | None) -> Any:
    """The image processor of a model, without torchvision: results must not depend on whether it is installed."""
    from transformers import AutoImageProcessor

    return _loaded("image processor", AutoImageProcessor, source, revision, backend="pil")


def _loaded(name: str, kind: Any, source: str, revision: str | None, **settings: Any) -> Any:
    """A component of a model by its class; `name` is used in messages."""
    try:
        return kind.from_pretrained(source, **settings, **options(source, revision))
    except Exception as error:
        raise UserError(
            f"the {name} of the detector {source} cannot be loaded ({one_line(error)}); copy the model again."
        ) from error


def check_complete(source: str, report: dict[str, Any], unused: tuple[str, ...]) -> None:
    """Raise UserError unless the model and its weights have the same tensors.

    Missing tensors would be filled with noise. Surplus tensors whose name contains one of `unused` are ignored.
    """
    ignored = (*unused, *_COMPUTED)
    unexpected = [name for name in report["unexpected_keys"] if not any(part in name for part in ignored)]
    faults = [("missing", report["missing_keys"]), ("unknown", unexpected)]
    differences = "; ".join(
        f"{counted(len(names), 'tensor is', 'tensors are')} {what}, such as {min(names)}"
        for what, names in faults
        if names
    )
    if differences:
        raise UserError(f"the weights of {source} do not fit its config.json: {differences}; copy the model again.")
