"""Writes a pipeline's weights as a single-file checkpoint with the tensor names of the original Stable Diffusion."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}


_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def write_checkpoint(pipeline: Any, file: Path, drop: str | None = None, open_clip: bool = False) -> Path:
    """Write a pipeline's U-Net, AutoencoderKL and text encoders, without the tensor `drop`.

    The names of the text encoder are those of CLIP, or as in Stable Diffusion 2 of `open_clip`; XL has one of each.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    layers = int(pipeline.unet.config.layers_per_block)
    for name, value in pipeline.unet.state_dict().items():
        tensors[f"model.diffusion_model.{_unet_name(name, layers)}"] = value
    last = len(pipeline.vae.config.block_out_channels) - 1
    for name, value in pipeline.vae.state_dict().items():
        original = _vae_name(name, last)
        convolution = ".attn_1." in original and value.ndim == 2
        tensors[f"first_stage_model.{original}"] = value[:, :, None, None] if convolution else value
    second = getattr(pipeline, "text_encoder_2", None)
    if open_clip:
        tensors |= _open_clip_names(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        prefix = "cond_stage_model." if second is None else "conditioner.embedders.0."
        for name, value in pipeline.text_encoder.state_dict().items():
            tensors[f"{prefix}transformer.text_model.{name.removeprefix('text_model.')}"] = value
    if second is not None:
        tensors |= _open_clip_names(second, "conditioner.embedders.1.model.")
    kept: Mapping[str, Tensor] = {name: value.contiguous() for name, value in tensors.items() if name != drop}
    save_file(dict(kept), file)
    return file


def _open_clip_names(text_encoder: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of a CLIP text encoder by the names of OpenCLIP, which joins queries, keys and values."""
    state = {name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}
    tensors = {"positional_embedding": state["embeddings.position_embedding.weight"]}
    tensors |= {"token_embedding.weight": state["embeddings.token_embedding.weight"]}
    if "text_projection.weight" in state:
        tensors["text_projection"] = state["text_projection.weight"].T
    for kind in ("weight", "bias"):
        tensors[f"ln_final.{kind}"] = state[f"final_layer_norm.{kind}"]
        for number in range(text_encoder.config.num_hidden_layers):
            layer, block = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
            joined = [state[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(joined)
            tensors[f"{block}.attn.out_proj.{kind}"] = state[f"{layer}.self_attn.out_proj.{kind}"]
            for ours, theirs in _OPEN_CLIP.items():
                tensors[f"{block}.{theirs}.{kind}"] = state[f"{layer}.{ours}.{kind}"]
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _unet_name(name: str, layers: int) -> str:
    for diffusers_name, original in _OUTER.items():
        if name.startswith(f"{diffusers_name}."):
            return name.replace(diffusers_name, original, 1)
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if match is None:
        match = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
        assert match is not None
        kind, index, rest = match.groups()
        number = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{number}.{_inner(kind, rest)}"
    side, block, kind, index, rest = match.groups()
    if side == "down":
        number = 1 + int(block) * (layers + 1) + (layers if kind == "downsamplers" else int(index))
        inner = rest.replace("conv", "op", 1) if kind == "downsamplers" else _inner(kind, rest)
        return f"input_blocks.{number}.{int(kind == 'attentions')}.{inner}"
    number = int(block) * (layers + 1) + (layers if kind == "upsamplers" else int(index))
    slot = {"resnets": 0, "attentions": 1, "upsamplers": 2}[kind]
    return f"output_blocks.{number}.{slot}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    part, _, end = rest.partition(".")
    return f"{_RESIDUAL[part]}.{end}"


def _vae_name(name: str, last: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for diffusers_name, original in _ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{diffusers_name}.", f"mid.attn_1.{original}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
