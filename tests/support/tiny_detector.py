"""A detector of real transformers classes with tiny random weights that detects many classes in every image."""

from collections.abc import Sequence
from pathlib import Path

import torch


def tiny_mask2former(folder: Path, class_names: Sequence[str], queries: int = 20) -> Path:
    """Write a Mask2Former with its image processor; label 0 is "N/A", the k-th class is label k."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    torch.manual_seed(0)
    labels = dict(enumerate(["N/A", *class_names]))
    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=queries,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(30)  # otherwise all queries predict the same class
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}, ignore_index=255).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
