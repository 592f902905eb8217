"""Training libraries read the shards without changes."""

import io
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from factory.config.recipe import Recipe, make_recipe
from factory.dataset.manifest import SCHEMA, read_manifest
from factory.dataset.masks import decode_label_png
from factory.dataset.receipts import Receipt
from tests.support.datasets import make_dataset

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "schemas"
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def generated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, list[Receipt]]:
    """A dataset generated without the engine."""
    recipe = make_recipe(
        {
            "n": 8,
            "classes": "coco",
            "objects": {2: 1},
            "shard_size": 4,
            "generator": {"model": str(tiny_model), "steps": 2},
            "filters": {"min_area": None, "duplicate_distance": None},
        }
    )
    folder = tmp_path_factory.mktemp("readers") / "set"
    receipts = make_dataset(recipe, folder)
    return folder, recipe, receipts


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_every_sample(generated: Any) -> None:
    import webdataset as wds

    # warnings of webdataset image decoders convert a palette to colours, so labels require their own handler.
    labels = wds.handle_extension("seg.png", decode_label_png)
    url = str(generated[0] / "train" / "{000000..000001}.tar")
    rows = list(wds.WebDataset(url, shardshuffle=False).decode(labels, "pil"))
    assert len(rows) == 8
    for row in rows:
        assert row["jpg"].size == (64, 64)
        assert {a["category_id"] for a in row["json"]["annotations"]} <= set(np.unique(row["seg.png"]).tolist())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("example", [text for text in EXAMPLES if "load_dataset" not in text])
def test_the_examples_of_the_documentation_read_a_dataset(
    generated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    (tmp_path / "out").symlink_to(generated[0])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("num_workers=4", "num_workers=0"), names)
    if "DataLoader" in example:
        assert names["images"].shape == (8, 3, 64, 64)
        values = set(names["targets"].unique().tolist())
        assert values <= {*range(81), 255}
        assert values & set(range(1, 81))
    else:
        assert names["sample"]


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_streams_every_sample(
    generated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    import datasets

    files = sorted(str(path) for path in (generated[0] / "train").glob("*.tar"))
    stream = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", streaming=True, cache_dir=str(tmp_path)
    )
    rows = list(stream)
    assert len(rows) == 8
    assert rows[0]["jpg"].size == (64, 64)
    assert rows[0]["json"]["annotations"][0]["category_name"] in rows[0]["json"]["classes"]
    assert rows[0]["seg.png"].mode == "P"
    assert rows[0]["seg.png"].size == (64, 64)


def test_pycocotools_masks_match_the_label_image(generated: Any) -> None:
    from pycocotools import mask as coco_masks

    from factory.dataset.tar import unpack

    count = 0
    for path in (generated[0] / "train").glob("*.tar"):
        for sample in unpack(path.read_bytes()):
            labels = np.asarray(Image.open(io.BytesIO(sample.members["seg.png"])))
            for annotation in json.loads(sample.members["json"])["annotations"]:
                mask = coco_masks.decode(annotation["segmentation"]).astype(bool)
                assert (labels[mask] == annotation["category_id"]).all()
                assert int(coco_masks.area(annotation["segmentation"])) == annotation["area"] == mask.sum()
                assert coco_masks.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
                count += 1
    assert count >= 8


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / name).read_text()))


def test_files_match_the_published_schemas(generated: Any) -> None:
    from factory.dataset.tar import unpack

    folder, recipe, _ = generated
    for path in (folder / "train").glob("*.tar"):
        for sample in unpack(path.read_bytes()):
            validator("annotation.json").validate(json.loads(sample.members["json"]))
    for path in (folder / "receipts").glob("*.json"):
        validator("receipt.json").validate(json.loads(path.read_text()))
    validator("recipe.json").validate(recipe.model_dump(mode="json"))


def test_published_recipe_schema_matches_the_model() -> None:
    assert json.loads((SCHEMAS / "recipe.json").read_text()) == published_recipe_schema()


def published_recipe_schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def test_published_manifest_schema_matches_the_writer(generated: Any) -> None:
    import pyarrow as pa

    published = pa.ipc.read_schema(pa.py_buffer((SCHEMAS / "manifest.arrow").read_bytes()))
    assert published.equals(SCHEMA)
    rows = [
        row
        for path in sorted((generated[0] / "manifest").glob("*.parquet"))
        for row in read_manifest(path.read_bytes())
    ]
    assert [row["index"] for row in rows] == list(range(8))


@pytest.mark.parametrize("broken", [{"annotations": None}, {"seed": "7"}, {"extra": 1}])
def test_annotation_schema_rejects_invalid_records(generated: Any, broken: dict[str, Any]) -> None:
    from factory.dataset.tar import unpack

    sample = next(unpack((generated[0] / "train" / "000000.tar").read_bytes()))
    assert not validator("annotation.json").is_valid(json.loads(sample.members["json"]) | broken)


def test_card_describes_the_dataset_and_its_code_runs(
    generated: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe, _ = generated
    text = (folder / "README.md").read_text()
    assert text.startswith("---\ntask_categories:\n- image-segmentation\n")
    assert recipe.fingerprint() in text
    assert "| samples | 8 of 8, in 2 shards," in text
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of webdataset
        exec(text.split("```python\n")[1].split("```")[0], {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("(64, 64) (0, ") for line in lines)
