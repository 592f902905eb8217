"""Reads attention and block outputs from one call of a denoiser, without changing its results.

Attention is read where it is computed: a `TorchFunctionMode` intercepts the queries and keys of every
`scaled_dot_product_attention`, after norms and rotary embeddings, with any attention processor.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from factory.generator.family import Family
from factory.generator.interface import ATTENTION, CROSS_ATTENTION, FEATURES, HALVES
from factory.generator.layers import feature_layers, level_shape, transformer_blocks

_MAX_POSITIONS_UNET, _MAX_POSITIONS_TRANSFORMER = 1024, 4096
"""Maximum number of positions of self-attention maps; a map is quadratic in it.

A map of 4096 positions takes 64 MiB per image; most transformers have as many at 1024 x 1024 pixels.
"""
OTHER_GROUPS = 3
"""Groups of tokens after those of the classes: what precedes the prompt, its other words, and what follows it."""


@dataclass(frozen=True)
class TextGroups:
    """The groups of tokens to which attention is read, by column of the text states that the denoiser reads.

    `groups` (B, columns, K + OTHER_GROUPS) of 0 and 1: the tokens of each class, then those of the other groups.
    `is_text` (B, columns) is False for padding, which is left out of the softmax for transformers but not for U-Nets.
    """

    groups: Tensor
    is_text: Tensor


@dataclass
class Reading:
    """The tensors that were read, float32 (block outputs of transformers: bfloat16), and the denoiser's `output`.

    `cross` and `self_attention` are averaged over heads and summed over `layers` layers, by (height, width) of the
    image tokens: (B, groups, height, width) and (B, positions, positions). `cross_attention` has the maps of each layer
    for the classes alone, (B, heads, K, height, width); `blocks` the outputs of each block, (B, C, height, width).
    """

    output: Any = None
    cross: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    layers: dict[tuple[int, int], int] = field(default_factory=dict)
    self_attention: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    cross_attention: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What to read: `needs` as in `factory.generator.interface`.

    Of transformers, `read_blocks` are the numbers of the blocks whose attention is averaged, and `feature_blocks` those
    of the blocks whose outputs are features.
    """

    needs: frozenset[str]
    read_blocks: Sequence[int] = ()
    feature_blocks: Sequence[int] = ()


class Reader:
    """Reads a denoiser. `grid` is the (height, width) of its image tokens, for a U-Net that of its latents."""

    def __init__(self, denoiser: nn.Module, family: Family, grid: tuple[int, int], target: Target) -> None:
        self.denoiser, self.family, self.grid, self.target = denoiser, family, grid, target
        self._attention = self._modules(family.attention)
        self._self_attention = {} if family.self_attention is None else self._modules(family.self_attention)
        self._averaged = {block for block, _ in self._numbered(target.read_blocks)}

    def read(self, arguments: Mapping[str, Any], batch: int, texts: TextGroups | None) -> Reading:
        """Call the denoiser, and read attention and features of the last `batch` images; with HALVES, of both halves.

        Without `texts` no attention is read. Autocast applies to the call.
        """
        from diffusers.models.attention_dispatch import attention_backend

        reading = Reading()
        mode = _AttentionMode(self, reading, batch, texts)
        with ExitStack() as stack:
            stack.enter_context(self._hooks(mode, reading, batch))
            stack.enter_context(attention_backend("native"))
            # Compiled blocks would be compiled again because of the hooks and the mode.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(mode)
            reading.output = self.denoiser(**arguments)
        return reading

    def is_averaged(self, name: str) -> bool:
        """Whether `attention` masks use the attention of this module."""
        return self.family.is_unet or name.rsplit(".", 1)[0] in self._averaged

    def shape(self, positions: int) -> tuple[int, int]:
        """(height, width) of this number of image tokens."""
        return level_shape(positions, self.grid) if self.family.is_unet else self.grid

    def _modules(self, ending: str) -> dict[str, nn.Module]:
        """The attention modules of this name; in a transformer, those of its blocks."""
        if self.family.is_unet:
            return {name: m for name, m in self.denoiser.named_modules() if name.endswith(f".{ending}")}
        blocks = transformer_blocks(self.denoiser, self.family)
        return {f"{name}.{ending}": getattr(block, ending) for name, block in blocks if hasattr(block, ending)}

    def _numbered(self, numbers: Sequence[int]) -> list[tuple[str, nn.Module]]:
        blocks = [] if self.family.is_unet else transformer_blocks(self.denoiser, self.family)
        return [blocks[number] for number in numbers]

    @contextmanager
    def _hooks(self, mode: "_AttentionMode", reading: Reading, batch: int) -> Iterator[None]:
        handles: list[Any] = []
        for name, module in {**self._attention, **self._self_attention}.items():
            handles += mode.follow(name, module, name in self._self_attention)
        if FEATURES in self.target.needs:
            if self.family.is_unet:
                layers = feature_layers(self.denoiser)
            else:
                layers = self._numbered(self.target.feature_blocks)
            handles += [layer.register_forward_hook(self._keep(name, reading, batch)) for name, layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str, reading: Reading, batch: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if not self.family.is_unet:
                # If the output is a pair, the text comes first in every family.
                value = output[-1] if isinstance(output, tuple) else output
                value = self._image_part(value)[-batch:].detach().transpose(1, 2)
                reading.blocks[name] = value.reshape(*value.shape[:2], *self.grid).to(torch.bfloat16).contiguous()
                return
            value = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            if HALVES in self.target.needs:
                value = torch.cat([value[:batch], value[-batch:]], 1)
            # Contiguous, because torch's GroupNorm crashes on a CPU in its backward pass over channels-last input that
            # needs no gradient.
            reading.blocks[name] = value.detach().float().contiguous()

        return hook

    def _image_part(self, sequence: Tensor) -> Tensor:
        """The image tokens (..., positions, channels) of a sequence, which may contain only padded image tokens."""
        count = self.grid[0] * self.grid[1]
        start = sequence.shape[-2] - count if self.family.tokens == "text first" else 0
        return sequence.narrow(-2, start, count)

    def text_tokens(self, sequence: Tensor) -> Tensor:
        """The text tokens (..., tokens, channels) of a joint sequence; empty if there are none."""
        count = self.grid[0] * self.grid[1]
        if self.family.tokens == "text first":
            return sequence.narrow(-2, 0, sequence.shape[-2] - count)
        start = -(-count // self.family.padded_to) * self.family.padded_to
        return sequence.narrow(-2, start, sequence.shape[-2] - start)

    def image_tokens(self, sequence: Tensor) -> Tensor:
        """The image tokens (..., tokens, channels) of a joint sequence; for cross-attention, the whole sequence."""
        return sequence if self.family.tokens == "cross" else self._image_part(sequence)


class _AttentionMode(TorchFunctionMode):
    """Records the attention of the modules that it follows while it is active."""

    def __init__(self, reader: Reader, reading: Reading, batch: int, texts: TextGroups | None) -> None:
        super().__init__()
        self._reader, self._reading, self._batch, self._texts = reader, reading, batch, texts
        self._current: tuple[str, bool] | None = None

    def follow(self, name: str, module: nn.Module, is_self: bool) -> list[Any]:
        """Hooks that tell which module computes attention; `is_self` marks the attention among image tokens alone."""
        if self._texts is None or not self._reader.target.needs & {ATTENTION, CROSS_ATTENTION}:
            return []

        def enter(*_: Any) -> None:
            self._current = name, is_self

        def leave(*_: Any) -> None:
            self._current = None

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._current is not None and func is functional.scaled_dot_product_attention:
            name, is_self = self._current
            query = args[0] if args else kwargs["query"]
            key = args[1] if len(args) > 1 else kwargs["key"]
            self._record(name, is_self, query[-self._batch :], key[-self._batch :], kwargs.get("scale"))
        return func(*args, **kwargs)

    def _record(self, name: str, is_self: bool, query: Tensor, key: Tensor, scale: float | None) -> None:
        """`query` and `key` are (B, heads, tokens, channels)."""
        reader, needs = self._reader, self._reader.target.needs
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        joint = reader.family.tokens != "cross"
        query = reader.image_tokens(query)
        averaged = ATTENTION in needs and reader.is_averaged(name)
        if is_self or joint:
            max_positions = _MAX_POSITIONS_UNET if reader.family.is_unet else _MAX_POSITIONS_TRANSFORMER
            if averaged and query.shape[2] <= max_positions:
                shape = reader.shape(query.shape[2])
                probabilities = _mean_over_heads(query, reader.image_tokens(key), scale, reader.family.is_unet)
                self._reading.self_attention[shape] = self._reading.self_attention.get(shape, 0) + probabilities
            if is_self:
                return
        if joint:
            key = reader.text_tokens(key)
        if averaged or CROSS_ATTENTION in needs:
            self._record_text(name, averaged, query, key, scale)

    def _record_text(self, name: str, averaged: bool, query: Tensor, key: Tensor, scale: float) -> None:
        assert self._texts is not None
        missing = key.shape[2] - self._texts.groups.shape[1]
        groups = functional.pad(self._texts.groups, (0, 0, 0, missing))
        if self._reader.family.is_unet:
            summed = _grouped(query, key, scale, groups)
        else:
            # One image at a time: the attention of all heads to all of the text is large.
            is_text = functional.pad(self._texts.is_text, (0, missing))
            parts = [slice(k, k + 1) for k in range(len(query))]
            summed = torch.cat([_grouped(query[k], key[k], scale, groups[k], is_text[k]) for k in parts])
        shape = self._reader.shape(query.shape[2])
        summed = summed.reshape(*summed.shape[:3], *shape)
        reading = self._reading
        if CROSS_ATTENTION in self._reader.target.needs:
            reading.cross_attention[name] = summed[:, :, :-OTHER_GROUPS]
        if averaged:
            reading.cross[shape] = reading.cross.get(shape, 0) + summed.mean(1)
            reading.layers[shape] = reading.layers.get(shape, 0) + 1


def _probabilities(query: Tensor, key: Tensor, scale: float, is_text: Tensor | None = None) -> Tensor:
    """Attention, float32 (B, heads, positions, tokens), even under autocast; `is_text` (B, tokens) excludes padding."""
    heads = query.shape[1]
    query, key = query.flatten(0, 1).float(), key.flatten(0, 1).float()
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.baddbmm(
            torch.empty(1, 1, 1, device=query.device), query, key.transpose(1, 2), beta=0, alpha=float(scale)
        )
    scores = scores.reshape(-1, heads, *scores.shape[1:])
    if is_text is not None:
        scores.masked_fill_(~is_text[:, None, None, :], -torch.inf)
    return scores.softmax(-1)


def _grouped(query: Tensor, key: Tensor, scale: float, groups: Tensor, is_text: Tensor | None = None) -> Tensor:
    """Attention summed over groups of tokens, float32 (B, heads, groups, positions)."""
    probabilities = _probabilities(query, key, scale, is_text)
    with torch.autocast(probabilities.device.type, enabled=False):
        return torch.einsum("bhpt,btg->bhgp", probabilities, groups)


def _mean_over_heads(query: Tensor, key: Tensor, scale: float, at_once: bool) -> Tensor:
    """Attention averaged over heads, (B, positions, positions). One image and head at a time needs less memory."""
    if at_once:
        return _probabilities(query, key, scale).mean(1)
    count, heads, positions = query.shape[:3]
    total = torch.zeros(count, positions, positions, device=query.device)
    for k in range(count):
        for head in range(heads):
            part = slice(k, k + 1), slice(head, head + 1)
            total[k] += _probabilities(query[part], key[part], scale)[0, 0] / heads
    return total
