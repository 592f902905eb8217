"""A COCO instances file with two images, and the folder that it describes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from factory.config.vocabulary import coco
from factory.labelled.coco import CocoFolder
from factory.labelled.folders import open_labelled

DOG, CAT = coco().names.index("dog") + 1, coco().names.index("cat") + 1
DOG_BOX, CAT_BOX = [5, 5, 25, 5, 25, 20, 5, 20], [30, 20, 50, 20, 50, 30, 30, 30]

Change = Callable[[dict[str, Any]], object]


def instances() -> dict[str, Any]:
    """Two images: the first shows a dog, the second a cat."""
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 60, "height": 40} for k in (1, 2)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [DOG_BOX], "area": 300, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 7, "segmentation": [CAT_BOX], "area": 200, "iscrowd": 0},
        ],
    }


def opened(folder: Path, change: Change, **options: Any) -> CocoFolder:
    """The folder of `instances` after a change."""
    for name in ("1.png", "2.png"):
        Image.new("RGB", (60, 40)).save(folder / name)
    data = copy.deepcopy(instances())
    change(data)
    (folder / "a.json").write_text(json.dumps(data))
    result = open_labelled(folder, "val", folder / "a.json", options.pop("vocabulary", coco()), **options)
    assert isinstance(result, CocoFolder)
    return result


def counts(folder: CocoFolder) -> list[tuple[int, int]]:
    """(dog pixels, cat pixels) of each image."""
    labels = [folder.load(key).labels for key in folder.keys]
    return [(int((image == DOG).sum()), int((image == CAT).sum())) for image in labels]
