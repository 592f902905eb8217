"""Read a U-Net's attention and block outputs while it runs, without changing what it computes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MAX_WITHIN = 1024
"""Self-attention is kept of the finest level with at most this many places."""


class Capture:
    """Sums of attention over layers, heads and calls, and the block outputs of the last call.

    Of a batch only the last `batch` images are read: the conditional half, where guidance put the other before it.
    """

    def __init__(self, unet: nn.Module, attention: bool, features: bool) -> None:
        self.unet, self.attention, self.features = unet, attention, features
        self.cross: dict[int, Tensor] = {}
        self.layers: dict[int, int] = {}
        self.within: dict[int, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, batch: int) -> Iterator[None]:
        """Listen to the U-Net's calls inside the `with`."""
        handles: list[Any] = []
        if self.attention:
            for name, module in self.unet.named_modules():
                if name.endswith((".attn1", ".attn2")):
                    handles.append(module.register_forward_pre_hook(self._attention_hook(batch), with_kwargs=True))
        if self.features:
            handles += self._feature_hooks(batch)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _attention_hook(self, batch: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden, words = args[0], kwargs.get("encoder_hidden_states")
            places = hidden.shape[1]
            if words is None and places > MAX_WITHIN:
                return
            probabilities = _attention(module, hidden[-batch:], hidden[-batch:] if words is None else words[-batch:])
            if words is None:
                self.within[places] = self.within.get(places, 0) + probabilities
            else:
                self.cross[places] = self.cross.get(places, 0) + probabilities
                self.layers[places] = self.layers.get(places, 0) + 1

        return hook

    def _feature_hooks(self, batch: int) -> list[Any]:
        """The outputs of conv_in and of every layer of the down, mid and up blocks: 25 in Stable Diffusion 1 and 2."""

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                value = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
                self.blocks[name] = value[-batch:].detach()

            return hook

        unet: Any = self.unet
        handles = [unet.conv_in.register_forward_hook(keep("in.0"))]
        number = 1
        for block in unet.down_blocks:
            for layer in _layers(block):
                handles.append(layer.register_forward_hook(keep(f"in.{number}")))
                number += 1
            for sampler in getattr(block, "downsamplers", None) or []:
                handles.append(sampler.register_forward_hook(keep(f"in.{number}")))
                number += 1
        handles.append(unet.mid_block.register_forward_hook(keep("mid")))
        number = 0
        for block in unet.up_blocks:
            for layer in _layers(block):
                handles.append(layer.register_forward_hook(keep(f"out.{number}")))
                number += 1
        return handles


def _layers(block: Any) -> list[nn.Module]:
    """The last module of each layer of a block: its transformer, or its residual block where it has none."""
    attentions = getattr(block, "attentions", None)
    return list(attentions if attentions else block.resnets)


def _attention(module: Any, hidden: Tensor, words: Tensor) -> Tensor:
    """Attention probabilities, float32 (batch, places, tokens), mean over heads."""
    query = module.head_to_batch_dim(module.to_q(hidden)).float()
    key = module.head_to_batch_dim(module.to_k(words)).float()
    scores = torch.baddbmm(
        torch.empty(1, 1, 1, device=query.device), query, key.transpose(1, 2), beta=0, alpha=float(module.scale)
    )
    return scores.softmax(-1).reshape(hidden.shape[0], -1, *scores.shape[1:]).mean(1)


def level_shape(places: int, latents: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a level with so many places, for latents of (height, width)."""
    height, width = latents
    scale = math.sqrt(height * width / places)
    shape = round(height / scale), round(width / scale)
    if shape[0] * shape[1] != places:
        down = round(scale)
        shape = -(-height // down), -(-width // down)
    assert shape[0] * shape[1] == places, f"{places} places do not come from latents of {height} x {width}"
    return shape
