"""The default sampling settings of a model: those of its model card, of its configuration, or of its family."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.generator.family import Family
from factory.generator.layout import component_class, family_in, read_config, read_index
from factory.generator.schedulers import NOT_REPEATABLE, is_consistency, is_turbo

_CARD = "README.md"
_LONGEST_CARD = 2**20
_CODE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_STEPS = re.compile(r"\bnum_inference_steps\s*=\s*(\d+)\b")
_MAX_STEPS, _MAX_GUIDANCE = 200, 30.0
_FEW = 4
_LCM_GUIDANCE = 8.0
_TURBO = re.compile(r"turbo|schnell|lightning|hyper(?!real)|(?<!de)(?<!de-)(?<!un)distill", re.IGNORECASE)


def default_settings(folder: Path, name: str) -> dict[str, Any]:
    """The fields `steps` and `guidance` of a pipeline's recipe, and `solver` if its own has to be replaced.

    They come from the first example in the model card that sets the steps, else from the configuration, else from the
    family. A field may be missing; its default then holds. `name` is what the user called the pipeline: some few-step
    models can only be recognised by it.
    """
    index = read_index(folder)
    family = family_in(index)
    return _by_configuration(folder, index, family, name) | _by_card(folder / _CARD, family)


def _by_card(card: Path, family: Family) -> dict[str, Any]:
    """The settings of the first example in the card that sets the number of steps."""
    try:
        with card.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(_LONGEST_CARD)
    except OSError:
        return {}
    for code in _CODE.findall(text):
        steps = _STEPS.search(code)
        if steps is None or not 1 <= int(steps[1]) <= _MAX_STEPS:
            continue
        found: dict[str, Any] = {"steps": int(steps[1])}
        guidance = re.search(rf"\b{family.guidance_argument}\s*=\s*(\d+(?:\.\d+)?)\b", code)
        if guidance is not None and float(guidance[1]) <= _MAX_GUIDANCE:
            found["guidance"] = float(guidance[1])
        return found
    return {}


def _by_configuration(folder: Path, index: Mapping[str, Any], family: Family, name: str) -> dict[str, Any]:
    denoiser = read_config(folder, family.denoiser)
    kind = component_class(index, "scheduler", str(folder))
    few_steps: dict[str, Any] = {"steps": _FEW}
    if kind in NOT_REPEATABLE:
        return {"solver": "dpm++"}
    if family.is_unet:
        if is_consistency(kind, denoiser):
            embedded = denoiser.get("time_cond_proj_dim") is not None
            return few_steps | {"guidance": _LCM_GUIDANCE if embedded else 1.0}
        return few_steps | {"guidance": 0.0} if is_turbo(kind, read_config(folder, "scheduler")) else {}
    if index["_class_name"] == "FluxPipeline" and not denoiser.get("guidance_embeds"):
        return few_steps | {"guidance": 0.0}
    if index.get("is_distilled"):
        return few_steps | {"guidance": 1.0}
    if _TURBO.search(Path(name.rstrip("/")).name):
        guided_by_input = family.guided_by_input(str(index["_class_name"]), denoiser)
        return few_steps | {"guidance": family.default_guidance if guided_by_input else 0.0}
    return {"steps": family.default_steps, "guidance": family.default_guidance}
