"""Exports, read back by the libraries that they are for."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from factory.cli.main import app
from factory.errors import UserError
from factory.export import run as export_run
from factory.export.folder import STATE
from factory.export.hf import HuggingFaceFormat
from factory.export.interface import ExportSample, split_of
from factory.export.run import Export, Options, default_target
from factory.masks import Mask, decode_label_png, encode_rle
from factory.plan import Plan
from factory.receipts import Tally, commit
from factory.recipe import Recipe, make_recipe
from factory.records import Grounded, Instance, Sample
from factory.shards.encode import encode_sample
from factory.shards.tar import unpack
from factory.store import Store

NAMES = ("dog", "cat", "traffic light", "bus", "hair drier")
SHARD_SIZE, SHARDS, VAL = 5, 5, 0.3
FORMATS = ("coco", "voc", "yolo", "hf")


def shape(kind: int, dice: np.random.Generator) -> Mask:
    """A disc, a ring, two parts of which one is a pixel at the border, or a ragged patch; in the left or right half."""
    rows, columns = np.ogrid[:48, :64]
    mask = (rows - dice.integers(15, 30)) ** 2 + (columns - 16) ** 2 < 12**2
    if kind == 1:
        mask &= (rows - 22) ** 2 + (columns - 16) ** 2 > 4**2
    if kind == 2:
        mask[0, 0] = True
    if kind == 3:
        mask &= dice.random((48, 64)) < 0.8
    return mask


def make_sample(planned: Any) -> Sample:
    dice = np.random.default_rng(planned.index)
    image = dice.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    instances = []
    for place, name in enumerate(planned.prompt.classes):
        mask = shape(int(dice.integers(4)), dice)
        instances.append(Instance(name, 0.5 + place / 10, mask if place == 0 else mask[:, ::-1] & ~instances[0].mask))
    taken = np.logical_or.reduce([instance.mask for instance in instances])
    ignore = ~taken & (np.arange(48) > 44)[:, None]
    return Sample(planned, 0, planned.index, image, Grounded(tuple(instances), ignore), {})


def make_set(folder: Path, shards: Any = range(SHARDS), **more: Any) -> tuple[Store, Recipe]:
    """Shards as the engine commits them, of pictures that need no model."""
    wanted = {"n": SHARD_SIZE * SHARDS, "classes": NAMES, "objects": {1: 0.5, 2: 0.5}, "shard_size": SHARD_SIZE}
    recipe = make_recipe(wanted | more)
    store, about = Store(str(folder)), {"seconds": {}, "versions": {}, "worker": {}}
    store.create("recipe.yaml", recipe.to_yaml().encode())
    for number in shards:
        planned = Plan(recipe).shard(number)
        samples = [encode_sample(make_sample(one), recipe.vocabulary(), {}, 90) for one in planned.samples]
        commit(store, planned, samples, Tally(len(samples), {}, ()), recipe.fingerprint(), about)
    return store, recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_set(tmp_path_factory.mktemp("export") / "set")[0]


@pytest.fixture(autouse=True)
def small_parquet_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards to a file."""
    size = 2 * 70_000
    monkeypatch.setitem(export_run.FORMATS, "hf", lambda subject, polygons: HuggingFaceFormat(subject, size))


def samples_of(store: Store) -> Iterator[tuple[str, dict[str, Any], Any, bytes]]:
    for name in store.list("train"):
        for sample in unpack(store.get(name) or b""):
            row = json.loads(sample.members["json"])
            yield sample.key, row, decode_label_png(sample.members["seg.png"]), sample.members["jpg"]


def run(store: Store, to: Path, form: str, partial: bool = False, **options: Any) -> export_run.Summary:
    return Export(store, to, Options(form, **{"val": VAL, **options}), partial).run()


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def expected_keys(store: Store, split: str) -> list[str]:
    return [key for key, *_ in samples_of(store) if split_of(key, VAL) == split]


# Polygons


def filled(polygons: list[list[float]], shape: tuple[int, ...]) -> Mask:
    from pycocotools import mask as coco_masks

    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(polygons, *shape))).astype(bool)


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


# The split


def test_the_split_is_drawn_by_the_key_alone_with_the_share_that_was_asked_for() -> None:
    keys = [f"{index:09d}" for index in range(20_000)]
    held = [key for key in keys if split_of(key, 0.05) == "val"]
    assert 900 < len(held) < 1100
    assert set(held) < {key for key in keys if split_of(key, 0.1) == "val"}
    assert not any(split_of(key, 0) == "val" for key in keys)


# The readers


def coco_eval(truth: Any, kind: str) -> Any:
    from pycocotools.cocoeval import COCOeval

    found = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "score": row["score"]}
        | ({"segmentation": truth.annToRLE(row)} if kind == "segm" else {"bbox": row["bbox"]})
        for row in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_reads_the_coco_export_and_finds_it_equal_to_itself(
    store: Store, tmp_path: Path, polygons: bool
) -> None:
    from pycocotools.coco import COCO

    summary = run(store, tmp_path / "coco", "coco", polygons=polygons)
    seen, ids = 0, set[int]()
    for split in ("train", "val"):
        truth = COCO(str(tmp_path / "coco" / "annotations" / f"instances_{split}.json"))
        assert {row["id"]: (row["name"], row["supercategory"]) for row in truth.dataset["categories"]} == {
            18: ("dog", "animal"), 17: ("cat", "animal"), 10: ("traffic light", "outdoor"), 6: ("bus", "vehicle"),
            89: ("hair drier", "indoor"),
        }  # fmt: skip
        assert [row["file_name"] for row in truth.dataset["images"]] == [
            f"{key}.jpg" for key in expected_keys(store, split)
        ]
        ids |= set(truth.anns)
        for _, row, _, image in (r for r in samples_of(store) if split_of(r[0], VAL) == split):
            file = tmp_path / "coco" / split / row["image"]["file_name"]
            assert file.read_bytes() == image
            for annotation in row["annotations"]:
                there = truth.anns[annotation["id"]]
                assert isinstance(there["segmentation"], list) is polygons
                assert encode_rle(truth.annToMask(there).astype(bool)) == annotation["segmentation"]
                assert (there["bbox"], there["area"]) == (annotation["bbox"], annotation["area"])
                seen += 1
        for kind in ("segm", "bbox"):
            assert coco_eval(truth, kind)[0] == 1.0
    assert len(ids) == seen > SHARD_SIZE * SHARDS
    assert (summary.train, summary.val, summary.complete) == (
        len(expected_keys(store, "train")),
        len(expected_keys(store, "val")),
        True,
    )


def supervision() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells that it goes without OpenCV
        import supervision

    return supervision


def overlap(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())


def check_detections(dataset: Any, store: Store, split: str, least: float) -> None:
    """Every object is there with its class; masks, where there are any, overlap at least so much."""
    rows = {key: (row, labels) for key, row, labels, _ in samples_of(store) if split_of(key, VAL) == split}
    assert {Path(path).stem for path in dataset.image_paths} == set(rows)
    for path, image, found in dataset:
        row, labels = rows[Path(path).stem]
        assert image.shape == (48, 64, 3)
        names = [dataset.classes[place] for place in found.class_id]
        assert names == [annotation["category_name"] for annotation in row["annotations"]]
        for mask, annotation in zip(found.mask if least else (), row["annotations"], strict=bool(least)):
            assert overlap(mask, labels == annotation["category_id"]) >= least


@pytest.mark.parametrize("polygons", [False, True])
def test_supervision_reads_the_coco_export(store: Store, tmp_path: Path, polygons: bool) -> None:
    run(store, tmp_path, "coco", polygons=polygons)
    files = str(tmp_path / "val"), str(tmp_path / "annotations" / "instances_val.json")
    dataset = supervision().DetectionDataset.from_coco(*files)
    check_detections(dataset, store, "val", 0.6 if polygons else 1)


def test_supervision_reads_the_yolo_export(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "yolo")
    for split in ("train", "val"):
        folders = str(tmp_path / "images" / split), str(tmp_path / "labels" / split)
        dataset = supervision().DetectionDataset.from_yolo(*folders, str(tmp_path / "data.yaml"))
        assert dataset.classes == list(NAMES)
        check_detections(dataset, store, split, 0.6)


def test_a_yolo_line_is_one_object_whose_polygon_is_its_mask(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "yolo")
    for key, row, _, _ in samples_of(store):
        lines = (tmp_path / "labels" / split_of(key, VAL) / f"{key}.txt").read_text().splitlines()
        for line, annotation in zip(lines, row["annotations"], strict=True):
            number, *points = line.split()
            assert NAMES[int(number)] == annotation["category_name"]
            shares = np.array([float(point) for point in points])
            assert shares.min() >= 0
            assert shares.max() <= 1
            polygon = (shares.reshape(-1, 2) * (64, 48)).ravel().tolist()
            assert encode_rle(filled([polygon], (48, 64))) == annotation["segmentation"]


def test_an_empty_split_of_yolo_points_to_the_other_one(store: Store, tmp_path: Path) -> None:
    import yaml

    run(store, tmp_path, "yolo", val=0.0)
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {
        "train": "images/train", "val": "images/train", "names": dict(enumerate(NAMES)),
    }  # fmt: skip


def test_the_voc_export_has_class_and_object_pictures_and_sets(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "voc")
    assert (tmp_path / "labels.txt").read_text().splitlines() == ["background", *NAMES]
    for key, row, labels, image in samples_of(store):
        classes, objects = (
            decode_label_png((tmp_path / folder / f"{key}.png").read_bytes())
            for folder in ("SegmentationClass", "SegmentationObject")
        )
        assert (tmp_path / "JPEGImages" / f"{key}.jpg").read_bytes() == image
        assert ((classes == 255) == (labels == 255)).all()
        assert ((objects == 255) == (labels == 255)).all()
        assert (labels == 255).any()
        for number, annotation in enumerate(row["annotations"], 1):
            mask = labels == annotation["category_id"]
            assert (classes[mask] == NAMES.index(annotation["category_name"]) + 1).all()
            assert ((objects == number) == mask).all()
        assert ((classes == 0) == (labels == 0)).all()
    sets = {name: (tmp_path / "ImageSets/Segmentation" / f"{name}.txt").read_text().split() for name in
            ("train", "val", "trainval")}  # fmt: skip
    assert sets["train"] == expected_keys(store, "train")
    assert sets["val"] == expected_keys(store, "val")
    assert sets["trainval"] == sets["train"] + sets["val"]


def test_vocs_own_classes_keep_vocs_numbers(tmp_path: Path) -> None:
    store, recipe = make_set(tmp_path / "set", [0], classes="voc", n=SHARD_SIZE)
    run(store, tmp_path / "voc", "voc")
    for key, _, labels, _ in samples_of(store):
        picture = (tmp_path / "voc" / "SegmentationClass" / f"{key}.png").read_bytes()
        assert (decode_label_png(picture) == labels).all()
    assert (tmp_path / "voc" / "labels.txt").read_text().splitlines()[1:] == list(recipe.vocabulary().names)


def test_supervision_reads_the_boxes_of_the_voc_export(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "voc")
    folders = str(tmp_path / "JPEGImages"), str(tmp_path / "Annotations")
    dataset = supervision().DetectionDataset.from_pascal_voc(*folders)
    rows = {key: row for key, row, *_ in samples_of(store)}
    assert len(dataset) == len(rows)
    for path, _, found in dataset:
        annotations = rows[Path(path).stem]["annotations"]
        assert [dataset.classes[place] for place in found.class_id] == [row["category_name"] for row in annotations]
        for (left, top, right, bottom), row in zip(found.xyxy.tolist(), annotations, strict=True):
            assert [left, top] == row["bbox"][:2]
            assert right - left + 1 == row["bbox"][2] or right - left == row["bbox"][2]
            assert bottom - top + 1 == row["bbox"][3] or bottom - top == row["bbox"][3]


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_loads_the_parquet_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    import datasets
    from pycocotools import mask as coco_masks

    run(store, tmp_path / "hf", "hf")
    names = sorted(path.name for path in (tmp_path / "hf" / "data").iterdir())
    assert names == [f"{s}-{k:05d}-of-00003.parquet" for s in ("train", "validation") for k in range(3)]
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded) == ["train", "validation"]
    assert loaded["train"].features["objects"]["category"].feature.names == list(NAMES)
    for name, split in (("train", "train"), ("validation", "val")):
        assert loaded[name]["key"][:] == expected_keys(store, split)
        rows = {key: (row, labels) for key, row, labels, _ in samples_of(store)}
        for row in loaded[name]:
            expected, labels = rows[row["key"]]
            assert row["image"].size == (row["width"], row["height"]) == (64, 48)
            assert row["prompt"] == expected["prompt"]
            assert (np.asarray(row["label"]) == labels).all()
            objects = row["objects"]
            assert objects["category_id"] == [one["category_id"] for one in expected["annotations"]]
            assert [NAMES[place] for place in objects["category"]] == [
                one["category_name"] for one in expected["annotations"]
            ]
            assert objects["bbox"] == [one["bbox"] for one in expected["annotations"]]
            for counts, number in zip(objects["rle"], objects["category_id"], strict=True):
                mask = coco_masks.decode({"size": [row["height"], row["width"]], "counts": counts})
                assert (mask.astype(bool) == (labels == number)).all()


@pytest.mark.filterwarnings("ignore")
def test_the_card_and_the_parquet_files_tell_the_same_features(store: Store, tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet as pq
    import yaml

    run(store, tmp_path, "hf", val=0.0)
    card = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    schema = pq.read_schema(tmp_path / "data" / "train-00000-of-00003.parquet")
    told = datasets.Features._from_yaml_list(card["dataset_info"]["features"])
    assert told == datasets.Features.from_arrow_schema(schema)
    assert told.arrow_schema.remove_metadata().equals(schema.remove_metadata())
    assert card["dataset_info"]["splits"] == [{"name": "train", "num_examples": SHARD_SIZE * SHARDS}]
    assert [path.name for path in (tmp_path / "data").iterdir() if "validation" in path.name] == []


# Stopped and gone on with


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_stopped_at_any_sample_goes_on_to_the_same_bytes(
    store: Store, tmp_path: Path, form: str
) -> None:
    run(store, tmp_path / "calm", form)

    for stop_at in range(1, SHARD_SIZE * SHARDS + 1, 3):

        def stop(done: int, stop_at: int = stop_at) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Export(store, tmp_path / "disturbed", Options(form, VAL)).run(stop)
    run(store, tmp_path / "disturbed", form)
    assert content(tmp_path / "disturbed") == content(tmp_path / "calm")


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_stopped_at_any_rename_goes_on_to_the_same_bytes(
    store: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renames are where files appear: of units, of the end, and of what an earlier end over fewer shards left."""
    run(store, tmp_path / "calm", form)
    run(make_set(tmp_path / "set", [0, 1, 3])[0], tmp_path / "begun", form, partial=True)
    for stop in itertools.count():
        shutil.copytree(tmp_path / "begun", tmp_path / str(stop))
        renames = iter([os.replace] * stop)

        def sudden(*names: Any, renames: Any = renames) -> None:
            rename = next(renames, None)
            if rename is None:
                raise KeyboardInterrupt
            rename(*names)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", sudden)
            try:
                run(store, tmp_path / str(stop), form)
                break
            except KeyboardInterrupt:
                patch.undo()
        run(store, tmp_path / str(stop), form)
        assert content(tmp_path / str(stop)) == content(tmp_path / "calm")
    assert stop > 4


def test_a_killed_process_leaves_an_export_that_goes_on(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path / "calm", "hf")
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom factory.export import run\nfrom factory.store import Store\n"
        "from factory.export.hf import HuggingFaceFormat\n"
        "run.FORMATS['hf'] = lambda subject, polygons: HuggingFaceFormat(subject, 140_000)\n"
        f"job = run.Export(Store(sys.argv[1]), Path(sys.argv[2]), run.Options('hf', {VAL}))\n"
        "job.run(lambda done: os.kill(os.getpid(), 9) if done == 13 else None)\n"
    )
    program = [sys.executable, "-c", script, store.address, str(tmp_path / "killed")]
    assert subprocess.run(program, timeout=60).returncode == -9
    assert len(list((tmp_path / "killed" / STATE / "parts").iterdir())) == 1
    run(store, tmp_path / "killed", "hf")
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


@pytest.mark.parametrize("form", FORMATS)
def test_an_unfinished_set_is_exported_if_asked_for_and_completed_later(
    store: Store, tmp_path: Path, form: str
) -> None:
    growing, _ = make_set(tmp_path / "set", [0, 1, 3])
    with pytest.raises(UserError, match=r"3 of 5 shards are there.*--partial"):
        run(growing, tmp_path / "grown", form)
    assert not (tmp_path / "grown").exists()
    summary = run(growing, tmp_path / "grown", form, partial=True)
    assert (summary.train + summary.val, summary.complete) == (15, False)
    make_set(tmp_path / "set", [2, 4])
    assert run(growing, tmp_path / "grown", form).complete
    run(store, tmp_path / "calm", form)
    assert content(tmp_path / "grown") == content(tmp_path / "calm")


def test_a_finished_export_is_left_as_it_is(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "coco")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.j*")}
    run(store, tmp_path, "coco")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.j*")} == before


def test_the_samples_of_one_shard_at_most_are_in_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most = list[Any](), 0

    def counted(*arguments: Any) -> ExportSample:
        nonlocal most
        sample = ExportSample(*arguments)
        alive.append(weakref.ref(sample))
        most = max(most, sum(one() is not None for one in alive))
        return sample

    monkeypatch.setattr(export_run, "ExportSample", counted)
    for form in FORMATS:
        run(store, tmp_path / form, form)
    assert len(alive) == 4 * SHARD_SIZE * SHARDS
    assert most <= SHARD_SIZE


# Bad input


def test_a_folder_with_other_things_is_refused_and_left_as_it_is(store: Store, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty.*thesis\.txt.*--to"):
        run(store, tmp_path, "coco")
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"form": "voc"}, "format: coco -> voc"),
        ({"val": 0.5}, "val: 0.3 -> 0.5"),
        ({"polygons": True}, "polygons: False -> True"),
    ],
)
def test_an_export_with_other_options_is_refused_and_left_as_it_is(
    store: Store, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    run(store, tmp_path, "coco")
    before = content(tmp_path)
    with pytest.raises(UserError, match=f"holds another export: {told}"):
        run(store, tmp_path, **{"form": "coco", **changed})
    assert content(tmp_path) == before


def test_an_export_of_another_set_is_refused(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path / "coco", "coco")
    other, _ = make_set(tmp_path / "other", seed=7)
    with pytest.raises(UserError, match="holds another export: set: "):
        run(other, tmp_path / "coco", "coco")


def test_a_damaged_shard_is_told_and_the_export_goes_on_once_it_is_mended(store: Store, tmp_path: Path) -> None:
    damaged, _ = make_set(tmp_path / "set")
    tar = tmp_path / "set" / "train" / "000002.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-5000])
    with pytest.raises(UserError, match=r"train/000002.tar .* is damaged.*verify .* --repair"):
        run(damaged, tmp_path / "coco", "coco")
    tar.write_bytes(whole)
    run(damaged, tmp_path / "coco", "coco")
    run(store, tmp_path / "calm", "coco")
    assert content(tmp_path / "coco") == content(tmp_path / "calm")


@pytest.mark.parametrize(
    ("to", "options", "told"),
    [
        ("x", {"form": "pascal"}, "one of coco, voc, yolo, hf; got 'pascal'"),
        ("x", {"form": "coco", "val": 1.5}, "less than 1; got 1.5"),
        ("x", {"form": "coco", "val": float("nan")}, "less than 1; got nan"),
        ("x", {"form": "voc", "polygons": True}, "--polygons goes with --format coco"),
        ("set/coco", {"form": "coco"}, "lies inside the set"),
        ("file", {"form": "coco"}, "is a file"),
        ("file/x", {"form": "coco"}, "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, to: str, options: dict[str, Any], told: str) -> None:
    store, _ = make_set(tmp_path / "set", [0], n=SHARD_SIZE)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=told):
        run(store, tmp_path / to, **options)
    assert not (tmp_path / "x").exists()


def test_a_place_without_a_finished_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no set"):
        run(Store(str(tmp_path / "nothing")), tmp_path / "x", "coco")
    with pytest.raises(UserError, match="holds no finished shard yet"):
        run(make_set(tmp_path / "begun", [])[0], tmp_path / "x", "coco", partial=True)


def test_two_exports_do_not_write_the_same_folder_at_once(store: Store, tmp_path: Path) -> None:
    second = Export(store, tmp_path / "coco", Options("coco", VAL))

    def intrude(done: int) -> None:
        with pytest.raises(UserError, match="being written by another export"):
            second.run()

    Export(store, tmp_path / "coco", Options("coco", VAL)).run(intrude)


# The command


@pytest.mark.parametrize(
    ("address", "expected"),
    [("out/", "out-coco"), ("a/out", "a/out-coco"), ("s3://bucket/sets/pets", "pets-coco"), ("s3://pets", "pets-coco")],
)
def test_an_export_goes_beside_its_set(address: str, expected: str) -> None:
    assert default_target(address, "coco") == Path(expected)


def test_the_command_tells_what_it_wrote(store: Store, tmp_path: Path) -> None:
    command = ["export", store.address, "--format", "yolo", "--to", str(tmp_path / "yolo"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["train"] + told["val"], told["shards"], told["complete"]) == (25, SHARDS, True)
    again = CliRunner().invoke(app, command[:-1])
    assert f"{told['train']} samples for training, {told['val']} for validation" in again.stdout


DOCS = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
EXAMPLES = [code for code in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "ultralytics" not in code]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", EXAMPLES)
def test_the_examples_of_the_documentation_run(
    store: Store, tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    [form] = set(re.findall(r"out-(\w+)", code))
    run(store, Path(f"out-{form}"), form)
    names: dict[str, Any] = {}
    exec(code, names)
    if form == "hf":
        assert [mask.sum() for mask in names["masks"]] == names["row"]["objects"]["area"]
    assert len(EXAMPLES) == 5
