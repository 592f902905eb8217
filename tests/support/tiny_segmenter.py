"""Segmenters with random weights that train in milliseconds."""

from pathlib import Path

from transformers import (
    DetrConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    SegformerConfig,
    SwinConfig,
)

from factory.config.vocabulary import voc
from factory.segmenter.model import Segmenter, save_segmenter

NAMES = ["background", *voc().names]


def tiny(kind: str) -> Segmenter:
    """A segmenter of the VOC classes: `kind` is segformer, maskformer or mask2former."""
    id_maps = {"id2label": dict(enumerate(NAMES)), "label2id": {name: k for k, name in enumerate(NAMES)}}
    if kind == "segformer":
        from transformers import SegformerForSemanticSegmentation

        config = SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
            **id_maps,
        )  # fmt: skip
        return Segmenter(SegformerForSemanticSegmentation(config), NAMES)
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    if kind == "maskformer":
        decoder = DetrConfig(
            d_model=32, encoder_layers=1, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32,
            num_queries=6, use_timm_backbone=False, backbone_config=swin,
        )  # fmt: skip
        maskformer = MaskFormerConfig(
            backbone_config=swin, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **id_maps
        )
        return Segmenter(MaskFormerForInstanceSegmentation(maskformer), NAMES)
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=6, **id_maps,
    )  # fmt: skip
    return Segmenter(Mask2FormerForUniversalSegmentation(config), NAMES)


def saved_tiny(folder: Path, kind: str = "segformer") -> Path:
    """The folder of a saved `tiny` segmenter."""
    save_segmenter(tiny(kind), folder, {})
    return folder
