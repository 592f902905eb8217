"""Datasets for export tests, created without a model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.encode import EncodedSample, encode_sample
from factory.dataset.masks import Mask, decode_label_png
from factory.dataset.receipts import Tally, commit
from factory.dataset.records import Grounded, Instance, Sample
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.export import run as export_run
from factory.export.interface import split_of
from factory.export.run import Export, Options

NAMES = ("dog", "cat", "traffic light", "bus", "hair drier")
SHARD_SIZE, SHARDS, VAL = 5, 5, 0.3
FORMATS = ("coco", "voc", "yolo", "hf")


def draw_shape(kind: int, rng: np.random.Generator) -> Mask:
    """A disc, a ring, a disc with a separate corner pixel, or a ragged disc, in the left half."""
    rows, columns = np.ogrid[:48, :64]
    mask = (rows - rng.integers(15, 30)) ** 2 + (columns - 16) ** 2 < 12**2
    if kind == 1:
        mask &= (rows - 22) ** 2 + (columns - 16) ** 2 > 4**2
    if kind == 2:
        mask[0, 0] = True
    if kind == 3:
        mask &= rng.random((48, 64)) < 0.8
    return mask


def make_sample(planned: Any) -> Sample:
    rng = np.random.default_rng(planned.index)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    instances = []
    for index, name in enumerate(planned.prompt.classes):
        mask = draw_shape(int(rng.integers(4)), rng)
        instances.append(Instance(name, 0.5 + index / 10, mask if index == 0 else mask[:, ::-1] & ~instances[0].mask))
    taken = np.logical_or.reduce([instance.mask for instance in instances])
    ignore = ~taken & (np.arange(48) > 44)[:, None]
    return Sample(planned, 0, planned.index, image, Grounded(tuple(instances), ignore), {})


def encoded_samples(recipe: Recipe, shard: int) -> list[EncodedSample]:
    """The samples of a shard, as `make_dataset` commits them."""
    planned = Plan(recipe).shard(shard)
    return [encode_sample(make_sample(sample), recipe.vocabulary(), {}, 90) for sample in planned.samples]


def commit_shard(
    store: Store, recipe: Recipe, shard: int, samples: list[EncodedSample] | None = None, tally: Tally | None = None
) -> None:
    """Commit a shard as a worker does: by default with all its samples, each accepted in its first attempt."""
    accepted = Tally(len(Plan(recipe).shard(shard).samples), {}, ())
    commit(
        store,
        Plan(recipe).shard(shard),
        encoded_samples(recipe, shard) if samples is None else samples,
        tally or accepted,
        recipe.fingerprint(),
        {"seconds": {}, "versions": {}, "worker": {}},
    )


def make_dataset(folder: Path, shards: Any = range(SHARDS), **options: Any) -> tuple[Store, Recipe]:
    """Commit shards as the engine does, with synthetic images that require no model."""
    defaults = {"n": SHARD_SIZE * SHARDS, "classes": NAMES, "objects": {1: 0.5, 2: 0.5}, "shard_size": SHARD_SIZE}
    recipe = make_recipe(defaults | options)
    store = Store(str(folder))
    store.create("recipe.yaml", recipe.to_yaml().encode())
    for number in shards:
        commit_shard(store, recipe, number)
    return store, recipe


def samples_of(store: Store) -> Iterator[tuple[str, dict[str, Any], Any, bytes]]:
    for name in store.list("train"):
        for sample in unpack(store.get(name) or b""):
            record = json.loads(sample.members["json"])
            yield sample.key, record, decode_label_png(sample.members["seg.png"]), sample.members["jpg"]


def run(store: Store, to: Path, format_name: str, partial: bool = False, **options: Any) -> export_run.ExportSummary:
    return Export(store, to, Options(format_name, **{"val": VAL, **options}), partial).run()


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def expected_keys(store: Store, split: str) -> list[str]:
    return [key for key, *_ in samples_of(store) if split_of(key, VAL) == split]


def filled(polygons: list[list[float]], shape: tuple[int, ...]) -> Mask:
    from pycocotools import mask as coco_masks

    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(polygons, *shape))).astype(bool)


def file_of(store: Store, name: str) -> Path:
    """The path of a file of a dataset in a folder."""
    assert store.folder is not None
    return store.folder / name
