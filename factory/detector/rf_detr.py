"""The image processor of RF-DETR without torchvision: the same operations as in transformers, in torch alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from factory.dataset.records import Image
from factory.detector.preprocessing import Preprocessor


class RfDetrProcessor:
    """Preprocessing, and `post_process_instance_segmentation` with the maps of single instances."""

    def __init__(self, settings: Mapping[str, Any], source: str) -> None:
        self._preprocess = Preprocessor(settings, source)

    def __call__(self, images: Sequence[Image], **_: Any) -> dict[str, Tensor]:
        """Float (B, 3, h, w) of RGB images of any sizes."""
        return {"pixel_values": torch.cat([self._preprocess.resized_as_float(image) for image in images])}

    def post_process_instance_segmentation(
        self, outputs: Any, threshold: float, target_sizes: Sequence[tuple[int, int]], return_binary_maps: bool = True
    ) -> list[dict[str, Any]]:
        """For each image: `segmentation`, bool (N, H, W), and `segments_info` with label_id and score.

        The most probable pairs of query and class, as many as there are queries, are kept above the threshold.
        """
        assert return_binary_maps
        results = []
        for logits, masks, size in zip(outputs.logits, outputs.pred_masks, target_sizes, strict=True):
            queries, classes = logits.shape
            scores, positions = logits.sigmoid().view(-1).topk(min(queries, queries * classes))
            keep = scores > threshold
            # In chunks: the masks of all queries at the size of the image take hundreds of megabytes.
            parts = [
                functional.interpolate(part[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0] > 0
                for part in masks[positions[keep] // classes].split(32)
            ]
            maps = torch.cat(parts) if parts else torch.zeros((0, *size), dtype=torch.bool)
            non_empty = maps.flatten(1).any(1)
            pairs = zip(positions[keep][non_empty] % classes, scores[keep][non_empty], strict=True)
            info = [{"label_id": int(label), "score": round(float(score), 6)} for label, score in pairs]
            results.append({"segmentation": maps[non_empty], "segments_info": info})
        return results
