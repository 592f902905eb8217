"""Exports can be read by their target libraries."""

import json
import os
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from factory.config.vocabulary import from_names
from factory.dataset.description import write_description
from factory.dataset.masks import Mask, decode_label_png, encode_rle
from factory.dataset.storage import Store
from factory.export.interface import ExportInfo, ExportSample, split_of
from factory.export.yolo import YoloFormat
from tests.support.export_datasets import (
    NAMES,
    SHARD_SIZE,
    SHARDS,
    VAL,
    expected_keys,
    filled,
    make_dataset,
    run,
    samples_of,
)


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
def test_pycocotools_reads_the_coco_export(store: Store, tmp_path: Path, polygons: bool) -> None:
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
                exported = truth.anns[annotation["id"]]
                assert isinstance(exported["segmentation"], list) is polygons
                assert encode_rle(truth.annToMask(exported).astype(bool)) == annotation["segmentation"]
                assert (exported["bbox"], exported["area"]) == (annotation["bbox"], annotation["area"])
                seen += 1
        for kind in ("segm", "bbox"):
            assert coco_eval(truth, kind)[0] == 1.0
    assert len(ids) == seen > SHARD_SIZE * SHARDS
    assert (summary.train, summary.val, summary.complete) == (
        len(expected_keys(store, "train")),
        len(expected_keys(store, "val")),
        True,
    )


def test_json_files_are_ascii(tmp_path: Path) -> None:
    """pycocotools and many programs open them in the encoding of the locale, such as that of Windows."""
    store, recipe = make_dataset(tmp_path / "set", [0], n=SHARD_SIZE, classes=["dog", "狗"])
    write_description(store, recipe)
    run(store, tmp_path / "coco", "coco")
    for name, classes in (("set/dataset.json", "classes"), ("coco/annotations/instances_train.json", "categories")):
        rows = json.loads((tmp_path / name).read_bytes().decode("ascii"))[classes]
        assert [row["name"] for row in rows] == ["dog", "狗"]


def supervision() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that OpenCV is missing
        import supervision

    return supervision


def overlap(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())


def check_detections(dataset: Any, store: Store, split: str, min_overlap: float) -> None:
    """Every object exists with its class; masks overlap by at least `min_overlap`, unless it is 0."""
    rows = {key: (row, labels) for key, row, labels, _ in samples_of(store) if split_of(key, VAL) == split}
    assert {Path(path).stem for path in dataset.image_paths} == set(rows)
    for path, image, found in dataset:
        row, labels = rows[Path(path).stem]
        assert image.shape == (48, 64, 3)
        names = [dataset.classes[index] for index in found.class_id]
        assert names == [annotation["category_name"] for annotation in row["annotations"]]
        for mask, annotation in zip(found.mask if min_overlap else (), row["annotations"], strict=bool(min_overlap)):
            assert overlap(mask, labels == annotation["category_id"]) >= min_overlap


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


def test_yolo_polygons_match_the_masks(store: Store, tmp_path: Path) -> None:
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


def test_yolo_polygons_of_large_images_match_the_masks(tmp_path: Path) -> None:
    mask = np.zeros((1499, 2001), bool)
    mask[601:1498, 77:2000] = True
    mask[750:888, 617:1666] = False
    dogs = from_names(("dog",), "the test")
    record = {"image": {"width": 2001, "height": 1499}, "annotations": [{"category_id": dogs.classes[0].id}]}
    sample = ExportSample("000000000", "train", b"", b"", record, (mask,))
    YoloFormat(ExportInfo(tmp_path, dogs, "0" * 64)).write(0, [sample])
    _, *points = (tmp_path / "labels/train/000000000.txt").read_text().split()
    polygon = (np.array(points, float).reshape(-1, 2) * (2001, 1499)).ravel().tolist()
    assert (filled([polygon], mask.shape) == mask).all()


def test_empty_yolo_split_refers_to_the_other(store: Store, tmp_path: Path) -> None:
    import yaml

    run(store, tmp_path, "yolo", val=0.0)
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {
        "train": "images/train", "val": "images/train", "names": dict(enumerate(NAMES)),
    }  # fmt: skip


def test_voc_export_files(store: Store, tmp_path: Path) -> None:
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
    # torchvision and others read the boxes of the images that are listed in Main.
    for name, keys in sets.items():
        assert (tmp_path / "ImageSets/Main" / f"{name}.txt").read_text().split() == keys


def test_voc_classes_keep_their_numbers(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path / "set", [0], classes="voc", n=SHARD_SIZE)
    run(store, tmp_path / "voc", "voc")
    for key, _, labels, _ in samples_of(store):
        label_png = (tmp_path / "voc" / "SegmentationClass" / f"{key}.png").read_bytes()
        assert (decode_label_png(label_png) == labels).all()
    assert (tmp_path / "voc" / "labels.txt").read_text().splitlines()[1:] == list(recipe.vocabulary().names)


def test_voc_boxes_count_from_1_and_include_the_last_pixel(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "voc")
    for key, row, *_ in samples_of(store):
        tree = ElementTree.parse(tmp_path / "Annotations" / f"{key}.xml")
        assert [tree.findtext(f"size/{name}") for name in ("width", "height", "depth")] == ["64", "48", "3"]
        found = [[int(side.text or "") for side in box] for box in tree.iter("bndbox")]
        boxes = [annotation["bbox"] for annotation in row["annotations"]]
        assert found == [[left + 1, top + 1, left + width, top + height] for left, top, width, height in boxes]


def test_supervision_reads_the_voc_boxes(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "voc")
    folders = str(tmp_path / "JPEGImages"), str(tmp_path / "Annotations")
    dataset = supervision().DetectionDataset.from_pascal_voc(*folders)
    rows = {key: row for key, row, *_ in samples_of(store)}
    assert len(dataset) == len(rows)
    for path, _, found in dataset:
        annotations = rows[Path(path).stem]["annotations"]
        assert [dataset.classes[index] for index in found.class_id] == [row["category_name"] for row in annotations]
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
            assert objects["category_id"] == [item["category_id"] for item in expected["annotations"]]
            assert [NAMES[index] for index in objects["category"]] == [
                item["category_name"] for item in expected["annotations"]
            ]
            assert objects["bbox"] == [item["bbox"] for item in expected["annotations"]]
            for counts, number in zip(objects["rle"], objects["category_id"], strict=True):
                mask = coco_masks.decode({"size": [row["height"], row["width"]], "counts": counts})
                assert (mask.astype(bool) == (labels == number)).all()


@pytest.mark.filterwarnings("ignore")
def test_card_and_parquet_files_have_the_same_features(store: Store, tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet as pq
    import yaml

    run(store, tmp_path, "hf", val=0.0)
    header, text = (tmp_path / "README.md").read_text().split("---")[1:]
    assert "`category_id` by class: 18 dog, 17 cat, 10 traffic light, 6 bus, 89 hair drier." in text
    card = yaml.safe_load(header)
    schema = pq.read_schema(tmp_path / "data" / "train-00000-of-00003.parquet")
    declared = datasets.Features._from_yaml_list(card["dataset_info"]["features"])
    assert declared == datasets.Features.from_arrow_schema(schema)
    assert declared.arrow_schema.remove_metadata().equals(schema.remove_metadata())
    files = sorted((tmp_path / "data").iterdir())
    groups = [pq.read_metadata(file).row_group(0).total_byte_size for file in files]
    size = sum(groups)
    assert card["dataset_info"]["splits"] == [{"name": "train", "num_bytes": size, "num_examples": SHARD_SIZE * SHARDS}]
    assert card["dataset_info"]["dataset_size"] == size
    assert card["dataset_info"]["download_size"] == sum(file.stat().st_size for file in files)
    builder = datasets.load_dataset_builder(str(tmp_path))
    assert (builder.info.splits["train"].num_bytes, builder.info.download_size) == (size, sum(
        file.stat().st_size for file in files
    ))  # fmt: skip
    assert [path.name for path in (tmp_path / "data").iterdir() if "validation" in path.name] == []
