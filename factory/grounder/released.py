"""The checkpoint layout in which the paper's authors released their grounding module, read into this project's.

Names and shapes are those of the repository Lipurple/Grounded-Diffusion, file `ldm/models/seg_module.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from factory.errors import UserError
from factory.grounder.modules.paper import LAYERS
from factory.grounder.modules.published import PublishedModule

_LEVELS = ("low", "mid", "high", "highest")
_DECODER = "transfromer_decoder"  # spelt so in the release
_DECODER_PARTS = (
    "self_attn.in_proj_weight",
    "self_attn.out_proj.weight",
    "multihead_attn.in_proj_weight",
    "multihead_attn.out_proj.weight",
    *(f"{part}.{kind}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3") for kind in ("weight", "bias")),
)


@dataclass(frozen=True)
class Entry:
    """One tensor of the release: its name, its shape, and the name of this project's; None where it is not used."""

    name: str
    shape: tuple[int, ...]
    own: str | None


def layout(module: PublishedModule) -> list[Entry]:
    """Every tensor of a released checkpoint for a module of these sizes. UserError unless it has four levels."""
    if len(module.levels) != len(_LEVELS):
        raise UserError(
            f"the released module reads a U-Net of {len(_LEVELS)} levels, and this one has {len(module.levels)}; it "
            f"fits Stable Diffusion 1."
        )
    own = module.state_dict()
    pairs = [(name, own_name) for name, own_name in _renamed()]
    entries = [Entry(name, tuple(own[own_name].shape), own_name) for name, own_name in pairs]
    for place, level in enumerate(_LEVELS[1:]):
        channels = own[f"mix.{place}.conv1.bias"].shape[0]
        block = f"{level}_feature_mix_conv"
        entries += [Entry(f"{block}.stored_{kind}{n}", (channels,), None) for n in (1, 2) for kind in ("mean", "var")]
        entries += [Entry(f"{block}.conv{n}.u0", (1, channels), None) for n in (1, 2)]
        entries += [Entry(f"{block}.conv{n}.sv0", (1,), None) for n in (1, 2)]
    return entries


def _renamed() -> Iterator[tuple[str, str]]:
    """(name in the release, name here) of what is a weight in both."""
    for place, level in enumerate(_LEVELS):
        yield f"{level}_feature_conv.0.weight", f"reduce.{place}.weight"
    for place, level in enumerate(_LEVELS[1:]):
        for conv in ("conv1", "conv2"):
            theirs, own = f"{level}_feature_mix_conv.{conv}", f"mix.{place}.{conv}"
            yield f"{theirs}.weight", f"{own}.parametrizations.weight.original"
            yield f"{theirs}.bias", f"{own}.bias"
    for number in range(LAYERS):
        for part in _DECODER_PARTS:
            yield f"{_DECODER}.layers.{number}.{part}", f"decoder.layers.{number}.{part}"
    for number in range(3):
        for kind in ("weight", "bias"):
            yield f"mlp.layers.{number}.{kind}", f"mask_embedding.{2 * number}.{kind}"
    yield "to_k.weight", "tokens.weight"
    yield "to_q.weight", "query.weight"


def load_released(module: PublishedModule, path: Path) -> None:
    """Fill a module with the weights of a released checkpoint.

    UserError where the file is none, and where one tensor is missing, unknown, of another shape or no finite number.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} cannot be read ({said}); download it again.") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} is no checkpoint of the released module: it is no table of tensors.")
    entries = layout(module)
    _check(path, entries, weights)
    own = {entry.own: weights[entry.name].float() for entry in entries if entry.own is not None}
    for place, level in enumerate(_LEVELS[1:]):
        for conv in ("conv1", "conv2"):
            matrix = weights[f"{level}_feature_mix_conv.{conv}.weight"].float().flatten(1)
            row = functional.normalize(weights[f"{level}_feature_mix_conv.{conv}.u0"].float() @ matrix)
            # One step of the power method, which the release takes whenever it is used.
            own[f"mix.{place}.{conv}.parametrizations.weight.0._v"] = row[0]
            own[f"mix.{place}.{conv}.parametrizations.weight.0._u"] = functional.normalize(row @ matrix.T)[0]
    module.load_state_dict(own)


def _check(path: Path, entries: list[Entry], weights: Mapping[str, Tensor]) -> None:
    shapes = {entry.name: entry.shape for entry in entries}
    wrong = [f"{name} is missing" for name in shapes if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in shapes]
    wrong += [
        f"{name} is {'x'.join(map(str, value.shape))} and not {'x'.join(map(str, shapes[name]))}"
        for name, value in weights.items()
        if name in shapes and tuple(value.shape) != shapes[name]
    ]
    wrong += [f"{name} holds NaN or infinity" for name, value in weights.items() if not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"{path} does not hold the released module for this text-to-image model: {wrong[0]}"
            + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")
            + "; it was trained on Stable Diffusion 1."
        )
