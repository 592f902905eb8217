"""Read a U-Net's attention and block outputs while it runs, without changing what it computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from factory.generator.interface import ATTENTION, CROSS_ATTENTION, FEATURES, HALVES

MAX_SELF_ATTENTION = 1024
"""Self-attention is captured at levels with at most this many positions; a map is quadratic in their number."""


class Capture:
    """Records the attention and features of the U-Net's calls that `needs` names.

    - ATTENTION: `cross` and `self_attention` by number of positions, averaged over heads, summed over layers and calls.
    - CROSS_ATTENTION: `cross_attention`, the maps of each layer by head, of the last call.
    - FEATURES: `blocks`, the block outputs of the last call.

    Everything is float32, the type of the grounders, whatever type the U-Net computes in. Only the last images of a
    batch are recorded: with classifier-free guidance these are the conditional half. With HALVES the features of both
    halves are recorded as (B, 2 C, h, w), the unconditional channels first.
    """

    def __init__(self, unet: nn.Module, needs: frozenset[str]) -> None:
        self.unet, self.needs = unet, needs
        self.cross: dict[int, Tensor] = {}
        self.layers: dict[int, int] = {}
        self.self_attention: dict[int, Tensor] = {}
        self.cross_attention: dict[str, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, batch: int, groups: Tensor | None = None) -> Iterator[None]:
        """Record the U-Net's calls made inside the `with` block.

        `groups` (batch, tokens, groups) of 0 and 1 names the tokens whose attention is summed; without it no attention
        is recorded. `cross_attention` omits the last three groups, which belong to no class.
        """
        handles: list[Any] = []
        if groups is not None and self.needs & {ATTENTION, CROSS_ATTENTION}:
            for name, module in self.unet.named_modules():
                if name.endswith(".attn2"):
                    handles.append(self._hooked(module, self._cross_hook(name, batch, groups)))
                elif name.endswith(".attn1") and ATTENTION in self.needs:
                    handles.append(self._hooked(module, self._self_attention_hook(batch)))
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
                positions = summed.shape[-1]
                self.cross[positions] = self.cross.get(positions, 0) + summed.mean(1)
                self.layers[positions] = self.layers.get(positions, 0) + 1

        return hook

    def _self_attention_hook(self, batch: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0][-batch:]
            positions = hidden.shape[1]
            if positions <= MAX_SELF_ATTENTION:
                total = self.self_attention.get(positions, 0)
                self.self_attention[positions] = total + _attention(module, hidden, hidden).mean(1)

        return hook

    def _feature_hooks(self, batch: int) -> list[Any]:
        """Hooks on conv_in and on every layer of the down, mid and up blocks: 25 in Stable Diffusion 1 and 2.

        As in Stable Diffusion's original code, the last layer of an up block is recorded after the block's upsampler.
        """

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                value = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
                if HALVES in self.needs:
                    value = torch.cat([value[:batch], value[-batch:]], 1)
                # Contiguous, because torch's GroupNorm crashes on a CPU in its backward pass over channels-last input
                # that needs no gradient. Copied, because a slice would keep the unconditional half in memory.
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
        if unet.mid_block is not None:  # some distilled U-Nets have none
            named.append(("mid", unet.mid_block))
        named += [(f"out.{number}", layer) for number, layer in enumerate(outer)]
        return [layer.register_forward_hook(keep(name)) for name, layer in named]


def _layers(block: Any) -> list[nn.Module]:
    """The last module of each layer of a block: its transformer, or its residual block where it has none."""
    attentions = getattr(block, "attentions", None)
    return list(attentions if attentions else block.resnets)


def _attention(module: Any, hidden: Tensor, context: Tensor) -> Tensor:
    """Attention probabilities, float32 (batch, heads, positions, tokens), even under autocast."""
    query = module.head_to_batch_dim(module.to_q(hidden)).float()
    key = module.head_to_batch_dim(module.to_k(context)).float()
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.baddbmm(
            torch.empty(1, 1, 1, device=query.device), query, key.transpose(1, 2), beta=0, alpha=float(module.scale)
        )
    return scores.softmax(-1).reshape(hidden.shape[0], -1, *scores.shape[1:])


def level_shape(positions: int, latents: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the U-Net level with this many positions, for latents of (height, width).

    Each level halves the one before. For odd sides most U-Nets round up; those without padding round down.
    """
    for rounding in (1, 0):
        height, width = latents
        while height * width > positions:
            height, width = (height + rounding) // 2, (width + rounding) // 2
        if height * width == positions:
            return height, width
    raise ValueError(f"no level of a U-Net with latents of {latents[0]} x {latents[1]} has {positions} positions")
