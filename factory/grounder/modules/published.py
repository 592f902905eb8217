"""The paper's grounding module as released by its authors; it reads both halves of classifier-free guidance."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from factory.generator.interface import CLASS_EMBEDDINGS, FEATURES, HALVES, Captured
from factory.grounder.modules.backbone import Backbone, level_of, resized
from factory.grounder.modules.paper import FEED_FORWARD, HEADS, HIDDEN, LAYERS, PaperModule

_EPSILON = 1e-4


class PublishedModule(PaperModule):
    """`PaperModule` in the form of the released weights: 18.8 M parameters for Stable Diffusion 1.

    It reads both halves of guidance, which have 15360, 14080, 8320 and 5120 channels from coarse to fine. Each level is
    mixed at the size of the next finer level. Attention, levels and tokens have no biases, and the decoder has no final
    norm.

    The released code also normalises with batch statistics in evaluation, and processes one image at a time. Here each
    image has its own statistics, so that it does not depend on the rest of the batch.
    """

    needs = frozenset({FEATURES, CLASS_EMBEDDINGS, HALVES})

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.reduce = nn.ModuleList(
            nn.Conv2d(backbone.channels(level), width, 1, bias=False)
            for level, width in zip(self.levels, self.widths, strict=True)
        )
        self.mix = nn.ModuleList(PublishedBlock(sum(self.widths[: k + 1])) for k in range(1, len(self.widths)))
        self.tokens = nn.Linear(self.tokens.in_features, HIDDEN, bias=False)
        self.query = nn.Linear(backbone.class_channels, HIDDEN, bias=False)
        self.decoder: nn.Module = PublishedDecoder()

    def mixed(self, captured: Captured) -> Tensor:
        """All blocks mixed to one map (B, C, h, w) at the finest level."""
        levels = [
            reduce(level_of(captured, names)) for names, reduce in zip(self.levels.values(), self.reduce, strict=True)
        ]
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        mixed = resized(levels[0], sizes[min(1, len(sizes) - 1)])
        for k, (level, mix) in enumerate(zip(levels[1:], self.mix, strict=True), 1):
            size = sizes[min(k + 1, len(sizes) - 1)]
            mixed = mix(torch.cat([resized(mixed, size), resized(level, size)], 1))
        return mixed


class PublishedBlock(nn.Module):
    """Two layers of norm, ReLU and a 3 x 3 convolution with spectral norm, added to the output of the first ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        first = functional.relu(functional.instance_norm(maps, eps=_EPSILON))
        second = functional.relu(functional.instance_norm(self.conv1(first), eps=_EPSILON))
        result: Tensor = first + self.conv2(second)
        return result


class PublishedDecoder(nn.Module):
    """Pre-norm layers of self-attention, cross-attention to the image's tokens and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PublishedLayer() for _ in range(LAYERS))

    def forward(self, queries: Tensor, memory: Tensor, tgt_key_padding_mask: Tensor) -> Tensor:
        """(B, K, HIDDEN) from queries of that shape and memory (B, N, HIDDEN); the mask (B, K) marks absent queries."""
        for layer in self.layers:
            queries = layer(queries, memory, tgt_key_padding_mask)
        return queries


class PublishedLayer(nn.Module):
    """One layer of the decoder; its weights have the names of PyTorch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(HIDDEN, HEADS, bias=False, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(HIDDEN, HEADS, bias=False, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(HIDDEN, FEED_FORWARD), nn.Linear(FEED_FORWARD, HIDDEN)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)

    def forward(self, queries: Tensor, memory: Tensor, absent: Tensor) -> Tensor:
        """One layer; shapes as in `PublishedDecoder`."""
        normalised = self.norm1(queries)
        queries = (
            queries + self.self_attn(normalised, normalised, normalised, key_padding_mask=absent, need_weights=False)[0]
        )
        queries = queries + self.multihead_attn(self.norm2(queries), memory, memory, need_weights=False)[0]
        result: Tensor = queries + self.linear2(functional.relu(self.linear1(self.norm3(queries))))
        return result
