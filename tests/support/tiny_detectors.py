"""Tiny random models of each documented detector class of transformers, saved with their image processors.

Label 0 is "N/A", the k-th class is label k. The weights of the class layers are large, so that the queries of one image
name different classes with high scores.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_detector import tiny_mask2former


def tiny_maskformer(folder: Path, class_names: Sequence[str]) -> Path:
    """MaskFormer on a ResNet."""
    from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation
    from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil

    torch.manual_seed(0)
    config = MaskFormerConfig(
        backbone_config=_resnet(), fpn_feature_size=32, mask_feature_size=32, **_labels(class_names),
        decoder_config={
            "model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 20,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
            "encoder_ffn_dim": 32, "use_pretrained_backbone": False,
        },
    )  # fmt: skip
    model = MaskFormerForInstanceSegmentation(config)
    processor = MaskFormerImageProcessorPil(size={"height": 64, "width": 64}, ignore_index=255)
    return _save(folder, model, processor, model.class_predictor)


def tiny_oneformer(folder: Path, class_names: Sequence[str]) -> Path:
    """OneFormer on a Swin; its image processor names a list of classes that does not exist, like those on the hub."""
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation
    from transformers.models.oneformer.image_processing_pil_oneformer import OneFormerImageProcessorPil

    from factory.stickers.tokens import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["the task is instance"])
    config = OneFormerConfig(
        backbone_config=_swin(), num_queries=20, task_seq_len=12, max_seq_len=12, text_encoder_context_length=12,
        text_encoder_width=32, text_encoder_num_layers=1, text_encoder_vocab_size=len(tokenizer), conv_dim=32,
        mask_dim=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, dim_feedforward=32, query_dec_layers=1, is_training=False, **_labels(class_names),
    )  # fmt: skip
    model = OneFormerForUniversalSegmentation(config)
    processor = OneFormerImageProcessorPil(size={"height": 64, "width": 64}, ignore_index=255, class_info_file="")
    processor.class_info_file, processor.repo_path = "coco_panoptic.json", "nobody/nothing"
    tokenizer.save_pretrained(folder)
    decoder = model.model.transformer_module.decoder
    with torch.no_grad():
        decoder.mask_embed.layers[-1].layers[0].weight.mul_(30)
    return _save(folder, model, processor, decoder.class_embed)


def tiny_eomt(folder: Path, class_names: Sequence[str]) -> Path:
    """EoMT, which pads images that are not square."""
    from transformers import EomtConfig, EomtForUniversalSegmentation
    from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

    torch.manual_seed(0)
    config = EomtConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8, num_blocks=1,
        num_upscale_blocks=1, num_queries=20, num_register_tokens=1, **_labels(class_names),
    )  # fmt: skip
    model = EomtForUniversalSegmentation(config)
    processor = EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    with torch.no_grad():
        model.mask_head.fc3.weight.mul_(50)
    return _save(folder, model, processor, model.class_predictor)


def tiny_detr(folder: Path, class_names: Sequence[str]) -> Path:
    """DETR with its head for masks, on a ResNet."""
    from transformers import DetrConfig, DetrForSegmentation
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    torch.manual_seed(0)
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=_resnet(),
        num_queries=10, d_model=128, encoder_layers=1, decoder_layers=1, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=32, decoder_ffn_dim=32, **_labels(class_names),
    )  # fmt: skip
    model = DetrForSegmentation(config)
    processor = DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return _save(folder, model, processor, model.detr.class_labels_classifier)


def tiny_rf_detr(folder: Path, class_names: Sequence[str]) -> Path:
    """RF-DETR with masks; the settings of its image processor, which requires torchvision, are written directly."""
    from transformers import RfDetrConfig, RfDetrForInstanceSegmentation

    torch.manual_seed(0)
    config = RfDetrConfig(
        num_queries=10, d_model=32, decoder_ffn_dim=32, decoder_layers=1, decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2, decoder_n_points=2, group_detr=1, intermediate_size=32,
        backbone_config={
            "model_type": "rf_detr_dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "num_windows": 1, "out_features": ["stage1", "stage2"],
        },
        **_labels(class_names),
    )  # fmt: skip
    model = RfDetrForInstanceSegmentation(config)
    with torch.no_grad():
        model.model.class_embed.weight.mul_(30)
    settings = {
        "image_processor_type": "RfDetrImageProcessor", "size": {"height": 64, "width": 64}, "resample": 2,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


TINY_DETECTORS: dict[str, Callable[[Path, Sequence[str]], Path]] = {
    "mask2former": tiny_mask2former,
    "maskformer": tiny_maskformer,
    "oneformer": tiny_oneformer,
    "eomt": tiny_eomt,
    "detr": tiny_detr,
    "rf_detr": tiny_rf_detr,
}
"""By the type that their config.json names."""


def _labels(class_names: Sequence[str]) -> dict[str, Any]:
    labels = dict(enumerate(["N/A", *class_names]))
    return {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}


def _resnet() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _save(folder: Path, model: Any, processor: Any, classes: Any) -> Path:
    with torch.no_grad():
        classes.weight.mul_(30)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
