"""Single-file checkpoints: a complete Stable Diffusion 1, 2 or XL model, or the transformer of another family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factory.errors import UserError
from factory.files.torch_files import unreadable_because
from factory.generator.layout import component_class, component_names, family_in, read_config, read_index
from factory.generator.weights import check_tensors, model_class

_QUANTISED = ("scaled_fp8", "scale_weight", "weight_scale", "comfy_quant", "absmax")
"""Suffixes of the names of scales, which quantised weights require."""
_LEVELS = 4
"""Dictionaries around the tensors, at most: a pickle can contain itself."""
_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_XL_CLIP, _XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def reference_pipeline(file: Path) -> str:
    """The hub id of the pipeline whose configurations and tokenizers fit a checkpoint, inferred from its tensors."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, infer_diffusers_model_type

    tensors = _read(file, shapes_only=True)
    unrecognised = infer_diffusers_model_type(tensors) == "v1"
    if unrecognised and not any(name.startswith("model.diffusion_model.") for name in tensors):
        raise UserError(
            f"{file} is not a Stable Diffusion checkpoint: no tensor's name starts with model.diffusion_model, and it "
            f"is not recognised as a transformer of another family. A LoRA, a ControlNet or a U-Net alone is not a "
            f"whole model; name a transformer with its pipeline as PIPELINE@FILE."
        )
    return str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])


def check_checkpoint(file: Path) -> None:
    """Raise UserError if a checkpoint cannot be read or has quantised weights; its weights are not loaded."""
    _read(file, shapes_only=True)


def load_checkpoint(file: Path, folder: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The models in a checkpoint by component name, on the CPU; `folder` holds their configurations.

    A checkpoint of a transformer contains only the transformer. Raises UserError if a tensor is missing, or if the
    prediction type differs from that of the scheduler in the folder.
    """
    index = read_index(folder)
    if not family_in(index).is_unet:
        return {family_in(index).denoiser: _load_transformer(file, folder, index, dtype)}
    tensors = _read(file)
    if "v_pred" in tensors and read_config(folder, "scheduler").get("prediction_type") != "v_prediction":
        raise UserError(
            f"{file} is a v-prediction model, but the scheduler of {folder} has another prediction type; name a "
            f"matching pipeline as PIPELINE@{file.name}."
        )
    models, _ = component_names(index)
    loaded = {}
    for name in models:
        model = _built(component_class(index, name, str(folder)), folder / name, dtype)
        loaded[name] = _filled(model, _converted(name, model, tensors), name, file, dtype)
    return loaded


def _load_transformer(file: Path, folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    name = family_in(index).denoiser
    kind = component_class(index, name, str(folder))
    tensors: Any = _read(file)
    model: Any = _built(kind, folder / name, dtype)
    expected = model.state_dict().keys()
    # A file may already have the names of diffusers, like the components in a pipeline folder.
    if 2 * len(expected & tensors.keys()) < len(expected):
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

        if kind not in SINGLE_FILE_LOADABLE_CLASSES:
            raise UserError(
                f"{file} has tensor names that diffusers cannot convert to those of a {kind}; give a file with the "
                f"tensor names of diffusers."
            )
        convert = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
        tensors = convert(config=dict(model.config), checkpoint=dict(tensors))
    return _filled(model, tensors, name, file, dtype)


def _built(kind: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A model with random weights of the type `dtype`, by its class and the folder of its configuration."""
    cls = model_class(kind)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if cls.__module__.startswith("diffusers."):
            model: nn.Module = cls.from_config(cls.load_config(folder))
        else:
            model = cls(cls.config_class.from_pretrained(folder))
    finally:
        torch.set_default_dtype(before)
    return model


def _filled(model: nn.Module, tensors: Mapping[str, Tensor], name: str, file: Path, dtype: torch.dtype) -> nn.Module:
    """The model with weights of these names. Raises UserError if one is missing."""
    result = model.load_state_dict(tensors, strict=False)
    check_tensors(name, file, result.missing_keys, (), len(model.state_dict()))
    return model.to(dtype).eval()


def _converted(name: str, model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a component under the names of its class; empty if the checkpoint contains none."""
    from diffusers.loaders import single_file_utils as convert

    remaining = dict(tensors)  # the converters remove the tensors that they read
    if name == "unet":
        return dict(convert.convert_ldm_unet_checkpoint(remaining, config=dict(model.config)))
    if name == "vae":
        return dict(convert.convert_ldm_vae_checkpoint(remaining, config=dict(model.config)))
    if name == "text_encoder_2" or any(key.startswith(_OPEN_CLIP) for key in tensors):
        prefix = _XL_OPEN_CLIP if name == "text_encoder_2" else _OPEN_CLIP
        converted = convert.convert_open_clip_checkpoint(model, remaining, prefix=prefix)
    else:
        prefix = _XL_CLIP if any(key.startswith(_XL_CLIP) for key in tensors) else _CLIP
        converted = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if hasattr(model, "text_model"):
        return dict(converted)
    return {key.removeprefix("text_model."): value for key, value in converted.items()}


def _read(file: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    """A checkpoint's tensors by name; with `shapes_only` on the meta device, where the format allows it.

    Pickled files are read without running code. Raises UserError if the file is broken, or quantised with scales.
    """
    try:
        tensors = _read_safetensors(file, shapes_only) if file.suffix == ".safetensors" else _read_pickle(file)
    except Exception as error:  # a broken pickle raises exceptions of many unrelated classes
        reason = unreadable_because(error)
        raise UserError(f"{file} cannot be read as a checkpoint ({reason}); download it again.") from error
    scale = next((name for name in tensors if name.rpartition(".")[2] in _QUANTISED), None)
    if scale is not None:
        raise UserError(
            f"{file} has quantised weights ({scale}), which are not supported; give a checkpoint in bfloat16, float16 "
            f"or float32, with generator.quantize or engine.offload on a small GPU."
        )
    return tensors


def _read_pickle(file: Path) -> dict[str, Tensor]:
    data: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    for _ in range(_LEVELS):
        data = data.get("state_dict", data)
    return {str(key): value for key, value in data.items() if isinstance(value, Tensor)}


def _read_safetensors(file: Path, shapes_only: bool) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        if not shapes_only:
            return {name: opened.get_tensor(name) for name in names}
        shapes = {name: opened.get_slice(name).get_shape() for name in names}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
