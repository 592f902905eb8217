"""Run lengths as pycocotools reads them, and label pictures that give back what was put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_masks

from factory.dataset.masks import (
    Mask,
    decode_label_png,
    decode_rle,
    encode_label_png,
    encode_rle,
    label_map,
    mask_to_xywh,
)

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda shape: arrays(bool, shape))


@settings(max_examples=80, deadline=None)
@given(mask=MASKS)
def test_a_mask_survives_its_encoding_and_pycocotools_writes_the_same_text(mask: Mask) -> None:
    encoded = encode_rle(mask)
    theirs = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded["counts"] == theirs["counts"].decode()
    assert (decode_rle(encoded) == mask).all()


@settings(max_examples=40, deadline=None)
@given(mask=MASKS)
def test_pycocotools_reads_our_area_and_box(mask: Mask) -> None:
    encoded = encode_rle(mask)
    assert int(coco_masks.area(dict(encoded))) == mask.sum()
    if mask.any():
        assert coco_masks.toBbox(dict(encoded)).tolist() == mask_to_xywh(mask)


def test_a_large_mask_survives() -> None:
    mask = np.zeros((1024, 2000), bool)
    mask[100:900, 3:1990] = True
    mask[300, 77] = False
    assert (decode_rle(encode_rle(mask)) == mask).all()


def test_run_lengths_that_do_not_fill_the_image_are_refused() -> None:
    broken = encode_rle(np.ones((4, 4), bool)) | {"size": [5, 5]}
    with pytest.raises(ValueError, match="add up to 16"):
        decode_rle(broken)


def test_a_label_picture_gives_back_ids_background_and_ignore() -> None:
    dog, unsure = np.zeros((6, 5), bool), np.zeros((6, 5), bool)
    dog[1:3, 2:4] = True
    unsure[2:5, 2:5] = True
    labels = decode_label_png(encode_label_png(label_map((6, 5), [dog], [18], unsure)))
    assert set(np.unique(labels)) == {0, 18, 255}
    assert (labels == 18).sum() == dog.sum()
