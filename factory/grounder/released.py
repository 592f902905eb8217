"""Converts checkpoints of the grounding module that the authors of the paper released to `PublishedModule`.

Names and shapes are those of the repository Lipurple/Grounded-Diffusion, file `ldm/models/seg_module.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from factory.errors import UserError
from factory.files.torch_files import unreadable_because
from factory.grounder.modules.paper import LAYERS
from factory.grounder.modules.published import PublishedModule

_LEVELS = ("low", "mid", "high", "highest")
_DECODER = "transfromer_decoder"  # spelled like this in the release
_DECODER_PARTS = (
    "self_attn.in_proj_weight",
    "self_attn.out_proj.weight",
    "multihead_attn.in_proj_weight",
    "multihead_attn.out_proj.weight",
    *(f"{part}.{kind}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3") for kind in ("weight", "bias")),
)


@dataclass(frozen=True)
class Entry:
    """One tensor of the release: its name, its shape, and its name in `PublishedModule`, None if it is not used."""

    name: str
    shape: tuple[int, ...]
    target: str | None


def layout(module: PublishedModule) -> list[Entry]:
    """The tensors of a released checkpoint for a module of this size. Raises UserError unless it has four levels."""
    if len(module.levels) != len(_LEVELS):
        raise UserError(
            f"the released module reads a U-Net of {len(_LEVELS)} levels, but this one has {len(module.levels)}; give "
            f"a Stable Diffusion 1 model."
        )
    state = module.state_dict()
    entries = [Entry(name, tuple(state[target].shape), target) for name, target in _renamed()]
    for k, level in enumerate(_LEVELS[1:]):
        channels = state[f"mix.{k}.conv1.bias"].shape[0]
        block = f"{level}_feature_mix_conv"
        entries += [Entry(f"{block}.stored_{kind}{n}", (channels,), None) for n in (1, 2) for kind in ("mean", "var")]
        entries += [Entry(f"{block}.conv{n}.u0", (1, channels), None) for n in (1, 2)]
        entries += [Entry(f"{block}.conv{n}.sv0", (1,), None) for n in (1, 2)]
    return entries


def _renamed() -> Iterator[tuple[str, str]]:
    """(name in the release, name in `PublishedModule`) of the weights in both."""
    for k, level in enumerate(_LEVELS):
        yield f"{level}_feature_conv.0.weight", f"reduce.{k}.weight"
    for k, level in enumerate(_LEVELS[1:]):
        for conv in ("conv1", "conv2"):
            released, target = f"{level}_feature_mix_conv.{conv}", f"mix.{k}.{conv}"
            yield f"{released}.weight", f"{target}.parametrizations.weight.original"
            yield f"{released}.bias", f"{target}.bias"
    for number in range(LAYERS):
        for part in _DECODER_PARTS:
            yield f"{_DECODER}.layers.{number}.{part}", f"decoder.layers.{number}.{part}"
    for number in range(3):
        for kind in ("weight", "bias"):
            yield f"mlp.layers.{number}.{kind}", f"mask_embedding.{2 * number}.{kind}"
    yield "to_k.weight", "tokens.weight"
    yield "to_q.weight", "query.weight"


def load_released(module: PublishedModule, path: Path) -> None:
    """Load the weights of a released checkpoint into a module.

    Raises UserError if the file is not one, or if a tensor is missing, unknown, of another shape, NaN or infinite.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({unreadable_because(error)}); download it again."
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} is not a checkpoint of the released module: it is not a dictionary of tensors.")
    entries = layout(module)
    _check(path, entries, weights)
    state = {entry.target: weights[entry.name].float() for entry in entries if entry.target is not None}
    for k, level in enumerate(_LEVELS[1:]):
        for conv in ("conv1", "conv2"):
            matrix = weights[f"{level}_feature_mix_conv.{conv}.weight"].float().flatten(1)
            right = functional.normalize(weights[f"{level}_feature_mix_conv.{conv}.u0"].float() @ matrix)
            # One step of the power iteration of spectral normalisation, as in every call of the released code.
            state[f"mix.{k}.{conv}.parametrizations.weight.0._v"] = right[0]
            state[f"mix.{k}.{conv}.parametrizations.weight.0._u"] = functional.normalize(right @ matrix.T)[0]
    module.load_state_dict(state)


def _check(path: Path, entries: list[Entry], weights: Mapping[str, Tensor]) -> None:
    shapes = {entry.name: entry.shape for entry in entries}
    wrong = [f"{name} is missing" for name in shapes if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in shapes]
    wrong += [
        f"{name} is {'x'.join(map(str, value.shape))} and not {'x'.join(map(str, shapes[name]))}"
        for name, value in weights.items()
        if name in shapes and tuple(value.shape) != shapes[name]
    ]
    wrong += [f"{name} contains NaN or infinity" for name, value in weights.items() if not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"{path} is not the released module for this text-to-image model: {wrong[0]}"
            + (f", and {len(wrong) - 1} more differences" if len(wrong) > 1 else "")
            + "; the module was trained on Stable Diffusion 1."
        )
