"""The paper's grounding module: text queries against mixed features (Li et al., ICCV 2023, section 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from factory.generator.interface import CLASS_EMBEDDINGS, FEATURES, Captured
from factory.grounder.modules.backbone import Backbone, level_of, resized

_FINEST_WIDTH = 128
HIDDEN, HEADS, FEED_FORWARD, LAYERS = 512, 8, 2048, 3
_TOKENS_PER_SIDE = 16


class PaperModule(nn.Module):
    """Mixes the features of all blocks from coarse to fine, and predicts masks by their dot product with text queries.

    Unlike in the released code, the images of a batch do not affect each other, evaluation uses running statistics, and
    only the conditional half of guidance is read, which gives 17.87 M parameters for Stable Diffusion 1. Features of
    transformers are normalised first. `PublishedModule` follows the released code.
    """

    needs = frozenset({FEATURES, CLASS_EMBEDDINGS})

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.levels = backbone.levels()
        self.widths = widths = [_FINEST_WIDTH >> k for k in range(len(self.levels))][::-1]
        self.reduce: nn.ModuleList = nn.ModuleList(
            _reduced(backbone.channels(level), width, backbone.transformer)
            for level, width in zip(self.levels, widths, strict=True)
        )
        joined = [sum(widths[: k + 1]) for k in range(1, len(widths))]
        self.mix = nn.ModuleList(ResidualBlock(channels) for channels in joined)
        channels = sum(widths)
        self.patch = max(1, backbone.side // _TOKENS_PER_SIDE)
        self.tokens = nn.Linear(channels * self.patch**2, HIDDEN)
        self.query = nn.Linear(backbone.class_channels, HIDDEN)
        layer = nn.TransformerDecoderLayer(HIDDEN, HEADS, FEED_FORWARD, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder: nn.Module = nn.TransformerDecoder(layer, LAYERS, norm=nn.LayerNorm(HIDDEN))
        self.mask_embedding = nn.Sequential(
            nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, channels)
        )

    def forward(self, captured: Captured, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) in the size of `images` (B, 3, H, W), of which nothing else is used."""
        assert captured.class_embeddings is not None
        features = self.mixed(captured)
        size = (features.shape[-2] // self.patch * self.patch, features.shape[-1] // self.patch * self.patch)
        patches = functional.unfold(resized(features, size), self.patch, stride=self.patch)
        queries = self.query(captured.class_embeddings)
        absent = (captured.class_embeddings == 0).all(-1)
        decoded = self.decoder(queries, self.tokens(patches.transpose(1, 2)), tgt_key_padding_mask=absent)
        logits = torch.einsum("bkc,bchw->bkhw", self.mask_embedding(decoded), features)
        return resized(logits, (images.shape[-2], images.shape[-1]))

    def mixed(self, captured: Captured) -> Tensor:
        """All blocks mixed to one map (B, C, h, w) at the finest level."""
        mixed: Tensor | None = None
        for k, (names, reduce) in enumerate(zip(self.levels.values(), self.reduce, strict=True)):
            level = reduce(level_of(captured, names))
            if mixed is None:
                mixed = level
                continue
            joined = torch.cat([resized(mixed, (level.shape[-2], level.shape[-1])), level], 1)
            mixed = self.mix[k - 1](joined)
        assert mixed is not None
        return mixed


def _reduced(channels: int, width: int, normalised: bool) -> nn.Module:
    """A 1 x 1 convolution, after a norm if the features need one, which those of the paper's U-Net do not."""
    convolution = nn.Conv2d(channels, width, 1)
    return nn.Sequential(nn.GroupNorm(1, channels), convolution) if normalised else convolution


class ResidualBlock(nn.Module):
    """Two layers of batch norm, ReLU and a 3 x 3 convolution with spectral norm, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
                )
            )
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        result: Tensor = maps + self.body(maps)
        return result
