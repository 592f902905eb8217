"""The export command: invalid input, output, and the examples in its documentation."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from factory.config.plan import Plan
from factory.config.vocabulary import from_names
from factory.dataset.default_target import default_target
from factory.dataset.masks import encode_label_png
from factory.dataset.preview import preview_image
from factory.dataset.receipts import Tally
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.export.coco import supercategory
from factory.export.interface import ExportInfo, ExportSample
from factory.export.run import Export, Options
from factory.export.voc import VocFormat
from factory.segmenter.data import DatasetSource
from tests.support.export_datasets import FORMATS, SHARD_SIZE, SHARDS, VAL, commit_shard, content, make_dataset, run
from tests.support.in_process import invoke


def test_folder_with_other_files_is_rejected_unchanged(store: Store, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty.*thesis\.txt.*--out"):
        run(store, tmp_path, "coco")
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format_name": "voc"}, 'format: "coco" -> "voc"'),
        ({"val": 0.5}, "val: 0.3 -> 0.5"),
        ({"polygons": True}, "polygons: false -> true"),
    ],
)
def test_export_with_other_options_is_rejected_unchanged(
    store: Store, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    run(store, tmp_path, "coco")
    before = content(tmp_path)
    with pytest.raises(UserError, match=rf"contains a different export \(in \.export\): {message}"):
        run(store, tmp_path, **{"format_name": "coco", **changed})
    assert content(tmp_path) == before


def test_export_of_another_dataset_is_rejected(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path / "coco", "coco")
    other, _ = make_dataset(tmp_path / "other", seed=7)
    with pytest.raises(UserError, match=r"contains a different export \(in \.export\): dataset: "):
        run(other, tmp_path / "coco", "coco")


def test_export_resumes_after_a_damaged_shard_is_repaired(store: Store, tmp_path: Path) -> None:
    damaged, _ = make_dataset(tmp_path / "set")
    tar = tmp_path / "set" / "train" / "000002.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-5000])
    with pytest.raises(UserError, match=r"train/000002.tar .* is damaged.*verify .* --repair"):
        run(damaged, tmp_path / "coco", "coco")
    tar.write_bytes(whole)
    run(damaged, tmp_path / "coco", "coco")
    run(store, tmp_path / "undamaged", "coco")
    assert content(tmp_path / "coco") == content(tmp_path / "undamaged")


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("x", {"format_name": "pascal"}, "must be one of coco, voc, yolo, hf; got 'pascal'"),
        ("x", {"format_name": "coco", "val": 1.5}, "less than 1; got 1.5"),
        ("x", {"format_name": "coco", "val": float("nan")}, "less than 1; got nan"),
        ("x", {"format_name": "voc", "polygons": True}, "--polygons requires --format coco"),
        ("set/coco", {"format_name": "coco"}, "is inside the dataset"),
        ("file", {"format_name": "coco"}, "is a file"),
        ("file/x", {"format_name": "coco"}, "cannot be written"),
        ("loop", {"format_name": "coco"}, "loop cannot be written"),
    ],
)
def test_invalid_input_raises_a_clear_error(tmp_path: Path, to: str, options: dict[str, Any], message: str) -> None:
    store, _ = make_dataset(tmp_path / "set", [0], n=SHARD_SIZE)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=message):
        run(store, tmp_path / to, **options)
    assert not (tmp_path / "x").exists()


def test_dataset_without_finished_shards_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a dataset"):
        run(Store(str(tmp_path / "nothing")), tmp_path / "x", "coco")
    with pytest.raises(UserError, match="has no finished shards yet"):
        run(make_dataset(tmp_path / "unfinished", [])[0], tmp_path / "x", "coco", partial=True)


@pytest.mark.parametrize("form", FORMATS)
def test_dataset_without_samples_is_rejected(tmp_path: Path, form: str) -> None:
    """A run would not generate more; a preview and a training say the same."""
    store, recipe = make_dataset(tmp_path / "my set", [], n=SHARD_SIZE)
    indices = tuple(sample.index for sample in Plan(recipe).shard(0).samples)
    commit_shard(store, recipe, 0, [], Tally(50, {"mask_empty": 50}, indices))
    readers: tuple[Callable[[], object], ...] = (
        lambda: run(store, tmp_path / "x", form),
        lambda: preview_image(store, 1),
        lambda: DatasetSource(store, recipe.vocabulary()),
    )
    for read in readers:
        with pytest.raises(UserError, match=r"has no samples: every .* rejected; `factory report '.*my set'` shows by"):
            read()
    assert not (tmp_path / "x").exists()


def test_image_that_a_power_failure_emptied_is_written_again(store: Store, tmp_path: Path) -> None:
    """Some file systems keep the size of a file and lose its content."""
    run(store, tmp_path, "coco")
    before, image = content(tmp_path), next((tmp_path / "train").iterdir())
    image.write_bytes(bytes(image.stat().st_size))
    for part in (tmp_path / ".export/parts").iterdir():
        part.unlink()
    run(store, tmp_path, "coco")
    assert content(tmp_path) == before


def test_shard_that_was_lost_again_before_its_export_ended_leaves_no_image(tmp_path: Path) -> None:
    growing, _ = make_dataset(tmp_path / "set", shards=(0, 1))
    run(growing, tmp_path / "out", "coco", partial=True)
    before = content(tmp_path / "out")
    (tmp_path / "out/train/notes.txt").write_text("mine")
    make_dataset(tmp_path / "set", shards=(2,))

    def interrupt(done: int) -> None:
        if done == 3 * SHARD_SIZE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Export(growing, tmp_path / "out", Options("coco", VAL), partial=True).run(interrupt)
    assert list((tmp_path / "out").glob(f"*/{2 * SHARD_SIZE:09d}.jpg"))
    growing.delete("receipts/000002.json")
    run(growing, tmp_path / "out", "coco", partial=True)
    assert content(tmp_path / "out") == before | {"train/notes.txt": b"mine"}


def test_concurrent_exports_to_the_same_folder_are_rejected(store: Store, tmp_path: Path) -> None:
    second = Export(store, tmp_path / "coco", Options("coco", VAL))

    def intrude(done: int) -> None:
        with pytest.raises(UserError, match=r"another command is writing to .*coco; wait"):
            second.run()

    Export(store, tmp_path / "coco", Options("coco", VAL)).run(intrude)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["pets:v1", os.fsdecode(b"caf\xe9"), "50% [a] b#c?"])
def test_folders_may_have_any_name(
    store: Store, name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow took a relative path with a colon for a URL, and rejected one that is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    run(store, Path(name), form)
    run(store, tmp_path / "plain", form)
    assert content(tmp_path / name) == content(tmp_path / "plain")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("out/", "out-coco"),
        ("a/out", "a/out-coco"),
        ("s3://bucket/sets/pets", "bucket-sets-pets-ca4963-coco"),
        ("s3://pets/", "pets-2530ef-coco"),
        ("https://host:9000/b/../my set", "host-9000-b-..-my-set-4b9b73-coco"),
    ],
)
def test_default_target_is_next_to_the_dataset(address: str, expected: str) -> None:
    assert default_target(address, "coco") == Path(expected)


@pytest.mark.parametrize("address", ["/", "file:///"])
def test_root_of_the_file_system_has_no_default_target(address: str) -> None:
    with pytest.raises(UserError, match="give one with --out"):
        default_target(address, "coco")


def test_datasets_in_buckets_have_different_default_targets() -> None:
    sets = ["s3://a/x/data", "s3://b/y/data", "s3://a-x/data", "gs://a/x/data", "s3://a/x/" + 200 * "data", "s3://a/x"]
    targets = [default_target(address, "report") for address in sets]
    assert len(set(targets)) == len(sets)
    assert max(len(target.name) for target in targets) < 120
    assert default_target("s3://a/x//data/", "report") == targets[0]


def test_command_prints_a_summary(store: Store, tmp_path: Path) -> None:
    command = ["export", store.address, "--format", "yolo", "--out", str(tmp_path / "yolo"), "--json"]
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["out"], summary["format"]) == (str(tmp_path / "yolo"), "yolo")
    assert (summary["train"] + summary["val"], summary["shards"], summary["complete"]) == (25, SHARDS, True)
    again = invoke(*command[:-1])
    assert f"{summary['train']} samples for training, {summary['val']} for validation" in again.stdout


DOCS = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
NOT_INSTALLED = ("ultralytics", "detectron2", "BaseSegDataset")
EXAMPLES = [
    code
    for code in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    if not any(name in code for name in NOT_INSTALLED)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", EXAMPLES)
def test_documentation_examples_run(store: Store, tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_supercategories_are_those_of_coco_and_object() -> None:
    names = ["lynx", "person", "bicycle", "boat", "traffic light", "bench", "bird", "giraffe", "suitcase", "cake"]
    assert [supercategory(entry) for entry in from_names(names).classes] == [
        "object", "person", "vehicle", "vehicle", "outdoor", "outdoor", "animal", "animal", "accessory", "food",
    ]  # fmt: skip


def test_voc_export_has_at_most_254_objects_per_image(tmp_path: Path) -> None:
    """The number 255 of an object would mean that its pixels are ignored."""
    dogs, blank = from_names(["dog"]), np.zeros((2, 3), np.uint8)
    annotation, image = {"category_id": dogs.classes[0].id, "bbox": [0, 0, 1, 1]}, {"width": 3, "height": 2}
    output = VocFormat(ExportInfo(tmp_path, dogs, "0" * 64))

    def write(objects: int) -> None:
        record = {"image": image, "annotations": [annotation] * objects}
        output.write(
            0, [ExportSample("000000000", "train", b"", encode_label_png(blank), record, (blank > 0,) * objects)]
        )

    write(254)
    with pytest.raises(UserError, match="000000000 has 255 objects, but VOC supports at most 254"):
        write(255)


def test_rows_of_a_parquet_file_do_not_depend_on_its_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_dataset(tmp_path / "set", shards=range(2))
    run(store, tmp_path / "whole", "hf", partial=True)
    monkeypatch.setattr("factory.export.hf._GROUP_BYTES", 1)
    run(store, tmp_path / "groups", "hf", partial=True)
    whole, groups = (pq.ParquetFile(next((tmp_path / name / "data").glob("train-*"))) for name in ("whole", "groups"))
    assert (whole.num_row_groups, groups.num_row_groups) == (1, groups.metadata.num_rows)
    assert whole.read().equals(groups.read())
