"""Run lengths compatible with pycocotools, and label images."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_masks

from factory.dataset.masks import (
    Mask,
    decode_label_png,
    decode_rle,
    encode_label_png,
    encode_rle,
    label_map,
    mask_to_xywh,
    palette,
    unpack_runs,
)

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda shape: arrays(bool, shape))


@settings(max_examples=80, deadline=None)
@given(mask=MASKS)
def test_rle_round_trip_gives_the_text_of_pycocotools(mask: Mask) -> None:
    encoded = encode_rle(mask)
    expected = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded["counts"] == expected["counts"].decode()
    assert (decode_rle(encoded) == mask).all()


@settings(max_examples=40, deadline=None)
@given(mask=MASKS)
def test_area_and_box_match_pycocotools(mask: Mask) -> None:
    encoded = encode_rle(mask)
    assert int(coco_masks.area(dict(encoded))) == mask.sum()
    if mask.any():
        assert coco_masks.toBbox(dict(encoded)).tolist() == mask_to_xywh(mask)


def test_large_mask_round_trip() -> None:
    mask = np.zeros((1024, 2000), bool)
    mask[100:900, 3:1990] = True
    mask[300, 77] = False
    assert (decode_rle(encode_rle(mask)) == mask).all()


def test_run_lengths_of_pycocotools_are_read_without_warnings() -> None:
    mask = np.eye(3, 5, dtype=np.uint8)
    with warnings.catch_warnings(action="error"):
        decoded = decode_rle(coco_masks.encode(np.asfortranarray(mask)))
    assert (decoded == mask).all()
    decoded[:] = True  # as an array of its own


def test_run_lengths_of_another_size_are_rejected() -> None:
    broken = encode_rle(np.ones((4, 4), bool)) | {"size": [5, 5]}
    with pytest.raises(ValueError, match="add up to 16"):
        decode_rle(broken)


@pytest.mark.parametrize("given", [{"id": 1, "segmentation": {}}, [[1.0, 2.0, 3.0]], "abc", None])
def test_values_without_run_lengths_are_rejected(given: Any) -> None:
    with pytest.raises(ValueError, match="give the `segmentation` of an annotation"):
        decode_rle(given)


def test_run_lengths_that_are_not_compressed_are_rejected() -> None:
    runs: Any = [0, 4]
    with pytest.raises(ValueError, match="must be compressed text, got a list"):
        decode_rle({"size": [2, 2], "counts": runs})


def test_negative_run_lengths_are_rejected() -> None:
    assert unpack_runs("5O<") == [5, -1, 12]
    with pytest.raises(ValueError, match="run lengths"):
        decode_rle({"size": [4, 4], "counts": "5O<"})


def test_colours_are_those_of_voc() -> None:
    """Label images in RGB are read by these colours."""
    colours = np.array(palette()).reshape(256, 3)[[0, 1, 2, 4, 15, 20, 255]].tolist()
    assert colours == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
    assert palette() is palette(), "it is computed once, not for each label image"


def test_label_png_round_trip() -> None:
    dog, unsure = np.zeros((6, 5), bool), np.zeros((6, 5), bool)
    dog[1:3, 2:4] = True
    unsure[2:5, 2:5] = True
    labels = decode_label_png(encode_label_png(label_map((6, 5), [dog], [18], unsure)))
    assert set(np.unique(labels)) == {0, 18, 255}
    assert (labels == 18).sum() == dog.sum()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/", "a character outside '0' to 'o'"),
        ("0P", "end in the middle of a number"),
        ("PPPPPPP0", "more than 35 bits"),
        ("é", "not ASCII"),
    ],
)
def test_text_that_is_not_a_run_length_encoding_is_rejected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_runs(text)


def test_empty_masks_and_texts() -> None:
    assert unpack_runs("") == []
    assert mask_to_xywh(np.zeros((3, 4), bool)) == [0, 0, 0, 0]


def test_label_image_without_a_palette_is_rejected() -> None:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    with pytest.raises(ValueError, match=r"must be a palette PNG \(mode P\), got mode L"):
        decode_label_png(stream.getvalue())
