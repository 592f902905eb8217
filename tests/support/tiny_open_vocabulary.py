"""Tiny random models of the open-vocabulary detectors of transformers, saved with the files of their processors.

Their weights are enlarged where the scores would otherwise all be alike.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from factory.config.recipe import Recipe, make_recipe
from factory.stickers.tokens import train_tokenizer

CLASSES = ["dog", "traffic light", "espresso machine", "axolotl"]
MIN_SCORE = 0.3
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def one_of_each(parent: Path) -> dict[str, Path]:
    """The folder of a model of each kind, by the kind's name."""
    return {
        "sam3": tiny_sam3(parent / "sam3", CLASSES),
        "sam2": tiny_sam2(parent / "sam2"),
        "grounding-dino": tiny_grounding_dino(parent / "dino", CLASSES),
        "mm-grounding-dino": tiny_grounding_dino(parent / "mm", CLASSES, mm=True),
        "owlv2": tiny_owlv2(parent / "owlv2", CLASSES),
        "clipseg": tiny_clipseg(parent / "clipseg", CLASSES),
    }


def recipe(detector: str, **changes: Any) -> Recipe:
    """A recipe of two samples whose masks are those of `detector`."""
    masks = {"source": "detector", "detector": detector, "ignore_score": 0.05} | changes.pop("masks", {})
    return make_recipe({"n": 2, "classes": CLASSES, "masks": masks} | changes)


def tiny_sam3(folder: Path, words: Sequence[str]) -> Path:
    """SAM 3 on 56 x 56 pixels with 12 queries."""
    from transformers import Sam3Config, Sam3Model

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer(words, 32)
    part = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "window_size": 2,
                "global_attn_indexes": [1], "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=_clip_text(tokenizer, 32),
        geometry_encoder_config=part,
        detr_encoder_config=part,
        detr_decoder_config=part | {"num_queries": 12},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip
    model = Sam3Model(config).eval()
    with torch.no_grad():
        model.mask_decoder.mask_embedder.layers[-1].weight.mul_(30)
        for name, parameter in model.dot_product_scoring.named_parameters():
            parameter.mul_(6 if name.endswith("weight") else 1)
        model.detr_decoder.presence_head.layer3.bias.fill_(1)
    tokenizer.save_pretrained(folder)
    _write_images(folder, "Sam3ImageProcessor", {"height": 56, "width": 56}, [0.5] * 3, [0.5] * 3)
    model.save_pretrained(folder)
    return folder


def tiny_sam2(folder: Path) -> Path:
    """SAM 2 on 64 x 64 pixels."""
    from transformers import Sam2Config, Sam2Model

    torch.manual_seed(0)
    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
                "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 4, 4, 4],
                "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
            },
            "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )  # fmt: skip
    model = Sam2Model(config).eval()
    _write_images(folder, "Sam2ImageProcessor", {"height": 64, "width": 64}, _MEAN, _STD)
    model.save_pretrained(folder)
    return folder


def as_video_models(sam2: Path, sam3: Path, folder: Path) -> tuple[Path, Path]:
    """Folders like those on the hub, whose configs and weights are those of the video models: (SAM 2, SAM 3)."""
    from transformers import (
        Sam2Config,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam3Config,
        Sam3VideoConfig,
        Sam3VideoModel,
    )

    image2, image3 = Sam2Config.from_pretrained(sam2).to_dict(), Sam3Config.from_pretrained(sam3)
    parts = {name: image2[name] for name in ("prompt_encoder_config", "mask_decoder_config")}
    memory = {
        "image_size": 64, "memory_attention_hidden_size": 32, "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32, "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 16, "mask_downsampler_embed_dim": 32, "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 32,
    }  # fmt: skip
    tracker = parts | memory | {"vision_config": image3.vision_config.to_dict()}
    for source, name, video in (
        (sam2, "sam2", Sam2VideoModel(Sam2VideoConfig(vision_config=image2["vision_config"], **parts, **memory))),
        (sam3, "sam3", Sam3VideoModel(Sam3VideoConfig(detector_config=image3.to_dict(), tracker_config=tracker))),
    ):
        video.save_pretrained(folder / name)
        for path in source.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                (folder / name / path.name).write_bytes(path.read_bytes())
    return folder / "sam2", folder / "sam3"


def tiny_grounding_dino(folder: Path, words: Sequence[str], mm: bool = False) -> Path:
    """GroundingDINO, or MM-GroundingDINO, with 20 queries."""
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
        SwinConfig,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    torch.manual_seed(0)
    tokenizer = bert_tokenizer(folder, words)
    kinds = (
        (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)
        if mm
        else (GroundingDinoConfig, GroundingDinoForObjectDetection)
    )
    config = kinds[0](
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        ),
        num_queries=20, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_text_len=64,
    )  # fmt: skip
    model = kinds[1](config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("class_embed.0.bias"):
                parameter.zero_()  # MM-GroundingDINO starts with low probabilities
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def tiny_owlv2(folder: Path, words: Sequence[str]) -> Path:
    """OWLv2 on 64 x 64 pixels with a box for each of 16 patches."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer(["a photo of", *words], 16)
    part = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**part, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**part, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    model = Owlv2ForObjectDetection(config).eval()
    tokenizer.save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def tiny_clipseg(folder: Path, words: Sequence[str]) -> Path:
    """CLIPSeg on 64 x 64 pixels."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer(words, 77)
    part = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={
            **part, "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**part, "image_size": 64, "patch_size": 16},
        projection_dim=32, reduce_dim=16, extract_layers=[0, 1, 2], decoder_intermediate_size=16,
    )  # fmt: skip
    model = CLIPSegForImageSegmentation(config).eval()
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 64, "width": 64}, image_mean=_MEAN, image_std=_STD).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _clip_tokenizer(words: Sequence[str], length: int) -> Any:
    tokenizer = train_tokenizer(words)
    tokenizer.model_max_length = length
    return tokenizer


def bert_tokenizer(folder: Path, words: Sequence[str]) -> Any:
    from transformers import BertTokenizer

    pieces = sorted({word for text in words for word in text.lower().split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *pieces]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip_text(tokenizer: Any, length: int) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
        "projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": length,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def _write_images(folder: Path, kind: str, size: dict[str, int], mean: list[float], std: list[float]) -> None:
    """The settings of an image processor that cannot be created without torchvision."""
    settings = {
        "image_processor_type": kind, "size": size, "image_mean": mean, "image_std": std, "do_resize": True,
        "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 2,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
