"""Previews of datasets."""

import io
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factory.dataset import preview
from factory.dataset.preview import preview_image
from factory.dataset.storage import Store
from factory.errors import UserError
from tests.support.export_datasets import make_dataset
from tests.support.in_process import output


def test_preview_of_more_samples_than_the_format_has_room_for_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_dataset(tmp_path, shards=range(1))
    drawn = list[int]()

    def cells(_: Store) -> Iterator[Image.Image]:
        for number in count():
            drawn.append(number)
            yield Image.new("RGB", (2, 2))

    monkeypatch.setattr(preview, "_cells", cells)
    for suffix, most, given in ((".webp", 368, 369), (".jpg", 1468, 1500), (".png", 1468, 10**9)):
        with pytest.raises(UserError, match=rf"as {suffix} has room for {most} samples, got {given}; give a smaller"):
            preview_image(store, given, suffix)
        assert len(drawn) == most + 1, "memory does not grow with --n"
        drawn.clear()


def test_command_prints_the_file_as_json(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, shards=range(1))
    out = tmp_path / "sheet.png"
    assert json.loads(output("preview", store.address, "--out", out, "--json")) == {"out": str(out)}
    assert out.is_file()


def test_preview_keeps_the_proportions_of_images(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, shards=range(1))
    pixels = np.asarray(Image.open(io.BytesIO(preview_image(store, 1, ".png"))))
    drawn = (pixels[: preview.CELL, : preview.CELL] < 250).any((1, 2))
    assert drawn.nonzero()[0].tolist() == list(range(20, 140)), "160 x 120 pixels of an image of 64 x 48"
