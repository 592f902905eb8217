"""LoRAs: finds the file that a recipe names, its sampling settings, and merges it into the weights of a pipeline.

The low-rank changes are added to the weights when the model is loaded, so a pipeline with a LoRA is used like any
other. The `peft` library is not needed; diffusers converts the tensor names of other tools.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError, first_few, one_line
from factory.files.digest import file_digest
from factory.files.hub import hub_file
from factory.files.paths import expanded
from factory.generator.families import PIPELINES
from factory.generator.family import Family
from factory.generator.hub import hub_commit

_SUFFIX = ".safetensors"
_DEFAULT_FILE = "pytorch_lora_weights.safetensors"
_STEPS = re.compile(r"(\d+)[ _-]?steps?", re.IGNORECASE)
_PUBLISHED = re.compile(r"hyper[ _-]?(sd|flux)|(sdxl|image)[ _-]lightning")
_FEW = 4
_OF_UNETS = {
    "lcm": ("lcm", 1.0),
    "tcd": ("tcd", 0.0),
    "lightning": ("euler-trailing", 0.0),
    "hyper": ("ddim-trailing", 0.0),
    "turbo": ("euler-trailing", 0.0),
}
"""(solver, guidance) of few-step models of Stable Diffusion 1, 2 and XL."""
_METADATA = "lora_adapter_metadata"
_MODULE = re.compile(r"[\w.]+")
"""The name of a module, or its end."""
_OTHER_KINDS = ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_", "lora_B.bias")
"""Parts of the tensor names of adapters that are not a product of two matrices."""


def lora_file(generator: GeneratorRecipe) -> Path:
    """The file of the recipe's LoRA, downloaded if it is on the hub. Raises UserError if there is none."""
    assert generator.lora is not None
    path = expanded(generator.lora)
    if path.is_dir():
        files = sorted(path.glob(f"[!.]*{_SUFFIX}"))  # without those named ._NAME that macOS adds to copies
        if len(files) != 1:
            advice = "name one of them with --lora" if files else "give a LoRA in this format"
            raise UserError(f"{path} has {len(files) or 'no'} files that end in {_SUFFIX}; {advice}.")
        return files[0]
    if path.is_file():
        if path.suffix != _SUFFIX:
            raise UserError(f"{path} is not a LoRA that can be read; give a file that ends in {_SUFFIX}.")
        return path
    repository, file = _on_the_hub(generator.lora)
    try:
        return hub_file(repository, file, generator.lora_revision)
    except UserError as error:
        raise UserError(f"there is no file {path}, and {error}") from error


def check_lora(generator: GeneratorRecipe) -> None:
    """UserError if the recipe's LoRA is a local file that cannot be read, or another kind of adapter."""
    if generator.lora is not None and expanded(generator.lora).exists():
        with _opened(lora_file(generator)):
            pass


def pin_lora(generator: GeneratorRecipe) -> dict[str, Any]:
    """The absolute path of a LoRA and its revision: a digest of the file, or the commit of the hub."""
    assert generator.lora is not None
    path = expanded(generator.lora)
    if path.exists():
        return {"lora": str(path.absolute()), "lora_revision": file_digest(lora_file(generator))}
    repository, file = _on_the_hub(generator.lora)
    return {} if generator.lora_revision is not None else {"lora_revision": hub_commit(repository, file)}


def lora_settings(name: str, family: Family) -> dict[str, Any]:
    """Solver, steps, guidance and scale of the common few-step LoRAs, which are recognised by their names.

    Those with `cfg` in their names keep the guidance of the model.
    """
    lowered = name.lower()
    steps = _STEPS.search(lowered)
    settings: dict[str, Any] = {} if steps is None else {"steps": int(steps[1])}
    method = _method(lowered)
    if method is None:
        return settings
    if family.is_unet:
        solver, guidance = _OF_UNETS[method]
        guided: dict[str, Any] = {} if "cfg" in lowered else {"guidance": guidance}
        return {"steps": _FEW, **settings, "solver": solver, **guided}
    if method == "lightning":
        return {"steps": 8, **settings, "guidance": family.unguided_scale}
    if method == "hyper":  # the published LoRAs for Stable Diffusion 3 and FLUX.1 were made for this scale
        return {"steps": 8, **settings, "lora_scale": 0.125}
    return settings


def checkpoint_settings(name: str) -> dict[str, Any]:
    """Solver, steps and guidance of a few-step Stable Diffusion in a single file, by its name; empty for others."""
    steps, lowered = _STEPS.search(name), name.lower()
    method = next((kind for kind in ("turbo", "lightning") if kind in lowered), None) or _method(lowered)
    if method is None:
        return {}
    solver, guidance = _OF_UNETS[method]
    return {"steps": _FEW if steps is None else int(steps[1]), "solver": solver, "guidance": guidance}


def _method(lowered: str) -> str | None:
    """How a few-step LoRA was made, by its name. "Hyper" and "lightning" alone may also be words for a style."""
    if (name := next((kind for kind in ("lcm", "tcd") if kind in lowered), None)) is not None:
        return name
    is_sure = _STEPS.search(lowered) is not None or _PUBLISHED.search(lowered) is not None
    return next((kind for kind in ("lightning", "hyper") if kind in lowered), None) if is_sure else None


def merge_lora(pipeline: Any, file: Path, scale: float) -> None:
    """Add a LoRA, multiplied by `scale`, to the weights of a pipeline on the CPU.

    Raises UserError if the file is not a LoRA, or not one for this model.
    """
    state, alphas = _converted(pipeline, file)
    parts = {name: module for name, module in pipeline.components.items() if hasattr(module, "named_modules")}
    unused = [key for key in state if key.split(".")[0] not in parts]
    if unused or not state:
        raise UserError(_not_for(pipeline, file, unused or ["no tensor of a LoRA"]))
    for name, module in parts.items():
        tensors = _of_component(state, name)
        if tensors:
            _merge(module, _with_peft_names(tensors, name), _of_component(alphas, name), scale, file, pipeline)


def _of_component(values: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The values whose names start with that of a component, without it."""
    prefix = f"{component}."
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _on_the_hub(name: str) -> tuple[str, str]:
    """(repository, file) of OWNER/NAME or OWNER/NAME/FILE. Raises UserError for other names."""
    parts = name.split("/")
    if len(parts) < 2 or name.startswith((".", "/", "~")) or (len(parts) > 2 and not name.endswith(_SUFFIX)):
        raise UserError(
            f"there is no LoRA {name}; give a file that ends in {_SUFFIX}, a folder with one, or OWNER/NAME or "
            f"OWNER/NAME/FILE on the hub."
        )
    return "/".join(parts[:2]), "/".join(parts[2:]) or _DEFAULT_FILE


def _converted(pipeline: Any, file: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """(tensors by component and module, alpha by module) in the names of diffusers."""
    with _opened(file) as opened:
        settings = (opened.metadata() or {}).get(_METADATA, "{}")
        tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    convert = getattr(pipeline, "lora_state_dict", None)
    family = PIPELINES[type(pipeline).__name__]
    if convert is None:
        raise UserError(f"diffusers does not support LoRAs of the family {family.name}; remove --lora.")
    options: dict[str, Any] = {"unet_config": pipeline.unet.config} if family.is_unet else {}
    if "return_alphas" in inspect.signature(convert).parameters:
        options["return_alphas"] = True
    try:
        result = convert(tensors, **options)
    except Exception as error:
        raise UserError(_not_for(pipeline, file, [one_line(error)])) from error
    state, alphas = result if isinstance(result, tuple) else (result, {})
    by_module = {_module_of(key): float(value) for key, value in (alphas or {}).items()}
    try:
        return dict(state), by_module | _alphas_of_peft(json.loads(settings), state)
    except UserError:
        raise
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} has settings of peft that cannot be read ({one_line(error)}); download it again."
        ) from error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An open file of a LoRA. Raises UserError if it cannot be read or contains another kind of adapter."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            other = [name for name in names if any(kind in name for kind in _OTHER_KINDS) or name.endswith(".diff")]
            if other:
                raise UserError(
                    f"{file} is an adapter of a kind that is not supported ({other[0]}); supported are LoRAs, which "
                    f"change weights by a product of two matrices."
                )
            yield opened
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a LoRA ({error}); download it again.") from error


def _module_of(alpha: str) -> str:
    """The module of an alpha, which may be named as in older versions of diffusers."""
    name = alpha.removesuffix(".alpha").split(".down.")[0].split(".lora_")[0].replace(".processor.", ".")
    if name.startswith("text_encoder"):
        return re.sub(r"\.to_(q|k|v|out)_lora$", r".\1_proj", name)
    return re.sub(r"\.to_(q|k|v)_lora$", r".to_\1", name.replace(".to_out_lora", ".to_out.0"))


def _alphas_of_peft(metadata: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
    """The alpha of each module, from the settings of peft in the file."""
    alphas = {}
    for key in state:
        name, _, module = key.split(".lora_")[0].partition(".")
        if f"{name}.lora_alpha" in metadata:
            if metadata.get(f"{name}.use_rslora") or metadata.get(f"{name}.use_dora"):
                raise UserError(
                    "a LoRA with use_rslora or use_dora is not supported; use a LoRA without these settings."
                )
            patterns = metadata.get(f"{name}.alpha_pattern") or {}
            expression = next((pattern for pattern in patterns if not _MODULE.fullmatch(pattern)), None)
            if expression is not None:
                raise UserError(
                    f"a LoRA whose alpha_pattern contains a regular expression ({expression[:60]!r}) is not supported; "
                    f"use one whose alpha_pattern names modules."
                )
            # As in peft, a pattern is the end of a module's name, and the first one applies.
            own = (alpha for pattern, alpha in patterns.items() if f".{module}".endswith(f".{pattern}"))
            alphas[f"{name}.{module}"] = float(next(own, metadata[f"{name}.lora_alpha"]))
    return alphas


def _with_peft_names(tensors: Mapping[str, Any], component: str) -> dict[str, Any]:
    """A component's tensors with names that end in lora_A.weight and lora_B.weight."""
    from diffusers.utils import state_dict_utils as convert

    if any(".lora_A." in key for key in tensors):
        return dict(tensors)
    if component.startswith("text_encoder"):
        old = any("_lora." in key for key in tensors)
        kind = convert.StateDictType.DIFFUSERS_OLD if old else convert.StateDictType.DIFFUSERS
        return dict(convert.convert_state_dict_to_peft(dict(tensors), kind))
    return dict(convert.convert_unet_state_dict_to_peft(dict(tensors)))


def _merge(
    module: Any, pairs: Mapping[str, Any], alphas: Mapping[str, float], scale: float, file: Path, pipeline: Any
) -> None:
    import torch

    modules: dict[str, Any] = dict(module.named_modules())
    names = {key.split(".lora_")[0] for key in pairs}
    # Text encoders have no such prefix since transformers 5.
    targets: dict[str, Any] = {name: modules.get(name, modules.get(name.removeprefix("text_model."))) for name in names}
    unknown = [name for name, target in targets.items() if not hasattr(target, "weight")] + list(alphas.keys() - names)
    incomplete = [name for name in names if not {f"{name}.lora_A.weight", f"{name}.lora_B.weight"} <= pairs.keys()]
    if unknown or incomplete:
        raise UserError(_not_for(pipeline, file, unknown or incomplete))
    for name, target in targets.items():
        down, up = pairs[f"{name}.lora_A.weight"].float(), pairs[f"{name}.lora_B.weight"].float()
        rank = down.shape[0]
        change = up.flatten(1) @ down.flatten(1) * (scale * alphas.get(name, float(rank)) / rank)
        if change.numel() != target.weight.numel() or up.shape[0] != target.weight.shape[0]:
            raise UserError(_not_for(pipeline, file, [name]))
        with torch.no_grad():
            target.weight.copy_(target.weight.float() + change.reshape(target.weight.shape))


def _not_for(pipeline: Any, file: Path, names: list[str]) -> str:
    return (
        f"{file} is not a LoRA for this {type(pipeline).__name__}: it does not fit in {first_few(sorted(names))}; give "
        f"a LoRA of the same base model."
    )
