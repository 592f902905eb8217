"""Detections computed with transformers alone, as in its documentation."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

MIN_SCORE = 0.05

Row = tuple[int, float, np.ndarray]


def library_answer(folder: Path, image: np.ndarray) -> tuple[Any, Any]:
    """The image processor, and the model's raw output for one image."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForInstanceSegmentation,
        AutoModelForUniversalSegmentation,
        AutoTokenizer,
        OneFormerProcessor,
    )

    kind = AutoConfig.from_pretrained(folder).model_type
    model = AutoModelForInstanceSegmentation if kind == "rf_detr" else AutoModelForUniversalSegmentation
    network = model.from_pretrained(folder).eval()
    if kind == "oneformer":
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", class_info_file="")
        processor = OneFormerProcessor(image_processor, AutoTokenizer.from_pretrained(folder), task_seq_length=12)
        inputs = processor(images=[image], task_inputs=["instance"], return_tensors="pt")
    else:
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        inputs = image_processor(images=[image], return_tensors="pt")
    names = ("pixel_values", "pixel_mask", "task_inputs")
    with torch.inference_mode():
        return image_processor, network(**{name: value for name, value in inputs.items() if name in names})


def library_rows(folder: Path, image: np.ndarray, **options: Any) -> tuple[list[Row], torch.Tensor]:
    """Class id, score and mask of each segment in the library's order, and the segmentation itself."""
    image_processor, output = library_answer(folder, image)
    (result,) = image_processor.post_process_instance_segmentation(output, threshold=MIN_SCORE, **options)
    painted, segments = result["segmentation"], result["segments_info"]
    maps = list(painted) if options.get("return_binary_maps") else [painted == segment["id"] for segment in segments]
    rows = [
        (segment["label_id"], segment["score"], np.asarray(mask, bool))
        for segment, mask in zip(segments, maps, strict=False)
    ]
    return rows, painted
