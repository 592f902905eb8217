"""Read a U-Net's attention and block outputs while it runs, without changing what it computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from factory.generator.interface import ATTENTION, CROSS_ATTENTION, FEATURES, HALVES

MAX_WITHIN = 1024
"""Self-attention is kept of the finest level with at most this many places."""


class Capture:
    """What the U-Net's calls showed, of those things that `needs` names.

    ATTENTION: `cross` and `within`, sums over layers, heads and calls. CROSS_ATTENTION: `cross_attention`, the maps of
    each layer by head, of the last call. FEATURES: `blocks`, outputs of the last call. All are float32, as grounders
    are, whatever the U-Net computes in. Of a batch only the last images are read: the conditional half, where guidance
    put the other before it. With HALVES the features of both are read, as (B, 2 C, h, w), the unconditional channels
    first.
    """

    def __init__(self, unet: nn.Module, needs: frozenset[str]) -> None:
        self.unet, self.needs = unet, needs
        self.cross: dict[int, Tensor] = {}
        self.layers: dict[int, int] = {}
        self.within: dict[int, Tensor] = {}
        self.cross_attention: dict[str, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, batch: int, groups: Tensor | None = None) -> Iterator[None]:
        """Listen to the U-Net's calls inside the `with`.

        `groups` (batch, tokens, groups), 0 or 1, says which tokens' attention is summed up; attention is read where it
        is given. The last three groups are not kept by layer.
        """
        handles: list[Any] = []
        if groups is not None and self.needs & {ATTENTION, CROSS_ATTENTION}:
            for name, module in self.unet.named_modules():
                if name.endswith(".attn2"):
                    handles.append(self._hooked(module, self._cross_hook(name, batch, groups)))
                elif name.endswith(".attn1") and ATTENTION in self.needs:
                    handles.append(self._hooked(module, self._within_hook(batch)))
        if FEATURES in self.needs:
            handles += self._feature_hooks(batch)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _hooked(module: nn.Module, hook: Any) -> Any:
        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _cross_hook(self, name: str, batch: int, groups: Tensor) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            text = kwargs["encoder_hidden_states"]
            probabilities = _attention(module, args[0][-batch:], text[-batch:])
            with torch.autocast(probabilities.device.type, enabled=False):
                summed = torch.einsum("bhpt,btg->bhgp", probabilities, groups)
            if CROSS_ATTENTION in self.needs:
                self.cross_attention[name] = summed[:, :, :-3]
            if ATTENTION in self.needs:
                places = summed.shape[-1]
                self.cross[places] = self.cross.get(places, 0) + summed.mean(1)
                self.layers[places] = self.layers.get(places, 0) + 1

        return hook

    def _within_hook(self, batch: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0][-batch:]
            places = hidden.shape[1]
            if places <= MAX_WITHIN:
                self.within[places] = self.within.get(places, 0) + _attention(module, hidden, hidden).mean(1)

        return hook

    def _feature_hooks(self, batch: int) -> list[Any]:
        """The outputs of conv_in and of every layer of the down, mid and up blocks: 25 in Stable Diffusion 1 and 2.

        As in the model's first release, the last layer of an up block is read behind the block's upsampler.
        """

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                value = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
                if HALVES in self.needs:
                    value = torch.cat([value[:batch], value[-batch:]], 1)
                # torch's GroupNorm dies on a CPU in its backward pass over neighbouring channels that need no gradient.
                # A slice is a view and would keep the unconditional half in memory, hence the copy.
                kept = value[-batch:].detach().to(torch.float32, copy=value.shape[0] > batch)
                self.blocks[name] = kept.contiguous()

            return hook

        unet: Any = self.unet
        inner = [unet.conv_in]
        for block in unet.down_blocks:
            inner += [*_layers(block), *(getattr(block, "downsamplers", None) or [])]
        outer: list[nn.Module] = []
        for block in unet.up_blocks:
            layers, samplers = _layers(block), list(getattr(block, "upsamplers", None) or [])
            outer += [*layers[: len(layers) - len(samplers)], *samplers]
        named = [(f"in.{number}", layer) for number, layer in enumerate(inner)]
        if unet.mid_block is not None:  # distilled U-Nets leave it out
            named.append(("mid", unet.mid_block))
        named += [(f"out.{number}", layer) for number, layer in enumerate(outer)]
        return [layer.register_forward_hook(keep(name)) for name, layer in named]


def _layers(block: Any) -> list[nn.Module]:
    """The last module of each layer of a block: its transformer, or its residual block where it has none."""
    attentions = getattr(block, "attentions", None)
    return list(attentions if attentions else block.resnets)


def _attention(module: Any, hidden: Tensor, context: Tensor) -> Tensor:
    """Attention probabilities, float32 (batch, heads, places, tokens), also where autocast is on."""
    query = module.head_to_batch_dim(module.to_q(hidden)).float()
    key = module.head_to_batch_dim(module.to_k(context)).float()
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.baddbmm(
            torch.empty(1, 1, 1, device=query.device), query, key.transpose(1, 2), beta=0, alpha=float(module.scale)
        )
    return scores.softmax(-1).reshape(hidden.shape[0], -1, *scores.shape[1:])


def level_shape(places: int, latents: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the U-Net level with so many places, for latents of (height, width).

    Each level is half of the one before. Where a side is odd, most U-Nets round up; those without padding round down.
    """
    for extra in (1, 0):
        height, width = latents
        while height * width > places:
            height, width = (height + extra) // 2, (width + extra) // 2
        if height * width == places:
            return height, width
    raise ValueError(f"{places} places are no level of a U-Net whose latents are {latents[0]} x {latents[1]}")
