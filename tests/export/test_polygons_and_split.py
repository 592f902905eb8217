"""Polygons are masks again when they are filled; the split is drawn by the key."""

from collections.abc import Iterator

import numpy as np

from factory.dataset.masks import Mask
from factory.export.interface import split_of
from tests.support.export_sets import filled


def every_small_mask_and_some_large() -> Iterator[Mask]:
    for bits in range(1, 2**9):
        yield (bits >> np.arange(9) & 1).astype(bool).reshape(3, 3)
    dice = np.random.default_rng(0)
    for _ in range(30):
        yield dice.random((40, 57)) < dice.uniform(0.1, 1)


def test_polygons_filled_by_pycocotools_are_the_mask_again() -> None:
    from factory.export.polygons import joined, parts_of

    for mask in every_small_mask_and_some_large():
        parts = parts_of(mask)
        assert all(len(ring) >= 4 for part in parts for ring in part)
        by_part = [joined(part).ravel().tolist() for part in parts]
        assert (filled(by_part, mask.shape) == mask).all(), mask
        at_once = joined([ring for part in parts for ring in part])
        assert (filled([at_once.ravel().tolist()], mask.shape) == mask).all(), mask
        assert at_once.min() >= 0
        assert (at_once <= mask.shape[::-1]).all()


def test_a_square_has_eight_points_and_a_hole_is_kept_beside_its_outline() -> None:
    from factory.export.polygons import parts_of

    mask = np.zeros((20, 20), bool)
    mask[3:15, 3:15] = True
    assert [len(ring) for ring in parts_of(mask)[0]] == [8]
    mask[6:9, 6:9] = False
    assert [[len(ring) for ring in part] for part in parts_of(mask)] == [[8, 8]]


def test_the_split_is_drawn_by_the_key_alone_with_the_share_that_was_asked_for() -> None:
    keys = [f"{index:09d}" for index in range(20_000)]
    held = [key for key in keys if split_of(key, 0.05) == "val"]
    assert 900 < len(held) < 1100
    assert set(held) < {key for key in keys if split_of(key, 0.1) == "val"}
    assert not any(split_of(key, 0) == "val" for key in keys)
