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
        pictures = AutoImageProcessor.from_pretrained(folder, backend="pil", class_info_file="")
        both = OneFormerProcessor(pictures, AutoTokenizer.from_pretrained(folder), task_seq_length=12)
        given = both(images=[image], task_inputs=["instance"], return_tensors="pt")
    else:
        pictures = AutoImageProcessor.from_pretrained(folder, backend="pil")
        given = pictures(images=[image], return_tensors="pt")
    names = ("pixel_values", "pixel_mask", "task_inputs")
    with torch.inference_mode():
        return pictures, network(**{name: value for name, value in given.items() if name in names})


def library_rows(folder: Path, image: np.ndarray, **options: Any) -> tuple[list[Row], torch.Tensor]:
    """Class id, score and mask of each segment in the library's order, and the segmentation itself."""
    pictures, answer = library_answer(folder, image)
    (found,) = pictures.post_process_instance_segmentation(answer, threshold=MIN_SCORE, **options)
    painted, segments = found["segmentation"], found["segments_info"]
    maps = list(painted) if options.get("return_binary_maps") else [painted == row["id"] for row in segments]
    rows = [(row["label_id"], row["score"], np.asarray(mask, bool)) for row, mask in zip(segments, maps, strict=False)]
    return rows, painted
