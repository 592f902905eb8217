"""A PASCAL VOC folder with one image of a dog and a cat."""

from pathlib import Path

import numpy as np
from PIL import Image

from factory.config.vocabulary import voc
from factory.dataset.masks import encode_label_png
from factory.labelled.folders import open_labelled
from factory.labelled.interface import LabelledImage

DOG, CAT = 12, 8
LABELS = np.zeros((40, 60), np.uint8)
LABELS[5:20, 5:25], LABELS[20:30, 30:50] = DOG, CAT
PHOTO = np.zeros((40, 60, 3), np.uint8)
PHOTO[5:20, 5:25], PHOTO[20:30, 30:50] = (250, 0, 0), (0, 250, 0)


def write_folder(tmp_path: Path) -> Path:
    """One image with a dog and a cat."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    Image.fromarray(PHOTO).save(tmp_path / "JPEGImages/a.jpg", quality=95)
    (tmp_path / "SegmentationClass/a.png").write_bytes(encode_label_png(LABELS))
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    return tmp_path


def loaded(folder: Path) -> LabelledImage:
    labelled = open_labelled(folder, "val", None, voc())
    (key,) = labelled.keys
    return labelled.load(key)


def labels_match(sample: LabelledImage) -> bool:
    """Whether red pixels are labelled as dog and green ones as cat."""
    red, green = sample.image[..., 0] > 128, sample.image[..., 1] > 128
    return bool((red == (sample.labels == DOG)).mean() > 0.97 and (green == (sample.labels == CAT)).mean() > 0.97)
