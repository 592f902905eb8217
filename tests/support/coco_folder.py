"""Writes a labelled folder in COCO format, independently of the exporter, to test its readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from factory.labelled.voc import VocFolder


def write_annotations(folder: VocFolder, file: Path, ids: dict[str, int]) -> Path:
    """Write the instances file of a VOC folder's images, with one instance per class.

    `ids` are the category ids by class name. The keys of the folder must be decimal numbers. Ignored pixels become a
    crowd, which readers ignore.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = dict(enumerate(ids, 1))
    for key in folder.keys:
        labels = folder.load(key).labels
        height, width = labels.shape
        images.append({"id": int(key), "file_name": f"{key}.jpg", "width": width, "height": height})
        for label in sorted({*np.unique(labels).tolist()} - {0}):
            packed = coco_masks.encode(np.asfortranarray(labels == label).astype(np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(key),
                    "category_id": ids[names.get(label, names[1])],
                    "segmentation": {"size": [height, width], "counts": packed["counts"].decode()},
                    "area": int((labels == label).sum()) if label in names else 0,
                    "iscrowd": int(label not in names),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return file
