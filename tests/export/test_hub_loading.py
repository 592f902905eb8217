"""Hugging Face `datasets` loads generated datasets directly, whatever their samples contain."""

import functools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.card import card
from factory.dataset.description import write_description
from factory.dataset.encode import encode_sample
from factory.dataset.manifest import read_manifest
from factory.dataset.receipts import Tally, commit, manifest_name
from factory.dataset.records import Detection, Rejection, Sample, provenance
from factory.dataset.storage import Store
from factory.dataset.totals import current_totals
from factory.dataset.verify import verify
from factory.export.run import Export, Options
from tests.support.export_datasets import NAMES, make_sample
from tests.support.older_formats import older_masks, older_sample

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of `datasets`
SCHEMAS = Path(__file__).parents[2] / "schemas"
SCORES = {"contrast": 9.0, "area_smallest": 0.1, "area_largest": 0.2, "border": 0.0, "confidence": 0.5, "overlap": 0.0,
          "image_hash": "e33070788a8924e4"}  # fmt: skip
ORACLE = {"oracle": {"split": "all", "seen": list(NAMES)}, "masks": {"source": "detector", "noise_level": 0.23}}
REAL = {
    "oracle": ORACLE["oracle"],
    "masks": {"source": "labels", "noise_level": 0.23},
    "prompts": [{"text": "a photograph of a dog", "classes": {"dog": "dog"}}] * 20,
    "real": {"dataset": "voc", "root": "/data/VOC2012", "keys": [str(k) for k in range(20)], "labels_digest": "0" * 64},
}


def make_full_sample(planned: Any, recipe: Recipe) -> Sample:
    """A sample in a shard of 10; only the last ones of a shard have rejections."""
    sample, position = make_sample(planned), planned.index % 10
    scores = dict(SCORES)
    scores["duplicate_distance"] = 64 if position == 0 else 7
    rejections = tuple(Rejection(k, k, "low_confidence") for k in range(2 if position > 6 else 0))
    sample = replace(sample, scores=scores, rejections=rejections, attempt=len(rejections))
    if recipe.oracle is None:
        return sample
    scores |= {"psnr": 30.5} if recipe.real else {}
    detections = () if recipe.real else (Detection("dog", 0.9, (0, 0, 5, 5)),)
    latent = np.full((4, 3, 2), planned.index, np.float16)
    grounded = replace(sample.grounded, detections=detections)
    return replace(sample, latent=latent, noise_level=0.25, grounded=grounded, scores=scores)


def make_dataset(folder: Path, empty: tuple[int, ...] = (), **options: Any) -> tuple[Store, Recipe]:
    """Two shards of ten samples each; shards in `empty` have none. Older formats are written as they were then."""
    data = {"n": 20, "classes": NAMES, "objects": {1: 0.5, 2: 0.5}, "shard_size": 10} | options
    recipe = make_recipe(data if data.get("format", 3) == 3 else data | {"masks": older_masks(data.get("masks", {}))})
    store, about = Store(str(folder)), {"seconds": {}, "versions": {}, "worker": {}}
    store.create("recipe.yaml", recipe.to_yaml().encode())
    for number in range(len(Plan(recipe))):
        planned = Plan(recipe).shard(number)
        samples = [] if number in empty else [make_full_sample(item, recipe) for item in planned.samples]
        encoded = [encode_sample(sample, recipe.vocabulary(), provenance(recipe), 90) for sample in samples]
        if recipe.format < 3:
            encoded = [older_sample(sample, recipe) for sample in encoded]
        exhausted = tuple(item.index for item in planned.samples) if number in empty else ()
        commit(store, planned, encoded, Tally(10, {}, exhausted), recipe.fingerprint(), about)
    write_description(store, recipe)
    return store, recipe


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`datasets.load_dataset` without network access and with a temporary cache."""
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    return functools.partial(datasets.load_dataset, split="train", cache_dir=str(tmp_path / "cache"))


DATASETS: dict[str, dict[str, Any]] = {"plain": {}, "oracle": ORACLE, "inverted": REAL}


@pytest.mark.parametrize("kind", DATASETS)
def test_all_documented_ways_to_load_a_dataset(tmp_path: Path, load: Any, kind: str) -> None:
    store, _ = make_dataset(tmp_path / "set", **DATASETS[kind])
    assert verify(store).damaged == {}
    for rows in (
        load("webdataset", data_files={"train": f"{store.address}/train/*.tar"}),
        load(store.address),
    ):
        assert rows.num_rows == 20
        outcomes = [[attempt["outcome"] for attempt in record["attempts"]] for record in rows["json"]]
        assert outcomes == (([["accepted"]] * 7 + [["low_confidence"] * 2 + ["accepted"]] * 3) * 2)
        assert [row["filters"]["duplicate_distance"] for row in rows["json"]] == ([64] + [7] * 9) * 2
        assert rows[3]["jpg"].size == rows[3]["seg.png"].size == (64, 48)
        assert ("latent.npy" in rows.features) == (kind != "plain")
    manifest = load("parquet", data_files={"train": f"{store.address}/manifest/*.parquet"})
    assert manifest["rejected"][:] == ([[]] * 7 + [["low_confidence"] * 2] * 3) * 2
    assert manifest["attempt"][:] == ([0] * 7 + [2] * 3) * 2
    assert manifest[0]["filters"]["psnr"] == (30.5 if kind == "inverted" else None)


def test_loading_format_1_and_an_empty_first_shard(tmp_path: Path, load: Any) -> None:
    store, recipe = make_dataset(tmp_path / "older", format=1)
    assert recipe.format == 1
    assert verify(store).damaged == {}
    rows = load(store.address)
    assert [len(row["rejected"]) for row in rows["json"]] == ([0] * 7 + [2] * 3) * 2
    empty, _ = make_dataset(tmp_path / "empty", empty=(0,))
    assert verify(empty).damaged == {}
    assert load(empty.address).num_rows == 10


@pytest.mark.parametrize(
    ("format", "schema"), [(1, "annotation-1.json"), (2, "annotation-2.json"), (3, "annotation.json")]
)
@pytest.mark.parametrize("kind", DATASETS)
def test_formats_match_their_schemas_and_cards(tmp_path: Path, format: int, schema: str, kind: str) -> None:
    from jsonschema import Draft202012Validator

    from factory.dataset.tar import unpack

    published = json.loads((SCHEMAS / schema).read_text())
    store, recipe = make_dataset(tmp_path, format=format, **DATASETS[kind])
    for number in (0, 1):
        for sample in unpack(store.get(f"train/{number:06d}.tar") or b""):
            Draft202012Validator(published).validate(json.loads(sample.members["json"]))
    header = yaml.safe_load(card(recipe, current_totals(store, Plan(recipe)), 1).split("---")[1])
    columns = {column["name"]: column for column in header["dataset_info"]["features"]}
    oracle = set() if recipe.oracle else {"timestep", "noise_level", "detections"}
    assert_named(columns["json"]["struct"], published, skip=oracle)


def assert_named(columns: list[dict[str, Any]], schema: dict[str, Any], skip: Any = ()) -> None:
    """The columns of a card match the properties of a schema at every depth."""
    properties = schema.get("properties", {})
    if properties:
        assert {column["name"] for column in columns} == set(properties) - set(skip)
    for column in columns:
        inner = properties.get(column["name"], {})
        if "struct" in column or "list" in column:
            assert_named(column.get("struct") or column["list"], inner.get("items", inner))


def test_resumed_dataset_keeps_its_format(tmp_path: Path) -> None:
    from factory.dataset.stored_recipe import init_or_resume

    store, older = make_dataset(tmp_path, format=1)
    assert init_or_resume(store, older) == older


def test_card_describes_the_recipe(tmp_path: Path) -> None:
    def text(**options: Any) -> str:
        recipe = make_recipe({"n": 20, "classes": NAMES} | options)
        return " ".join(card(recipe, current_totals(Store(str(tmp_path)), Plan(recipe)), 0).split())

    generated = text(generator={"model": "/models/x", "revision": "abc"}, masks={"source": "attention"})
    assert "No image is a photograph, and no image was labelled by a human." in generated
    assert "| text-to-image model | /models/x, revision abc |" in generated
    assert "- synthetic" in generated
    assert "masks by the model's own attention" in generated
    detected = text(**ORACLE, filters={"min_detector_iou": 0.5})
    assert "| detector | stickers, revision None |" in detected
    assert "split all; prompts only name its 5 seen classes" in detected
    inverted = text(**REAL)
    assert "real images with their labels" in inverted
    assert "No image was generated and no mask was found by a model" in inverted
    assert "20 of VOC2012, labels 000000000000" in inverted
    assert "DDIM inversion" in inverted
    assert not any(words in inverted for words in ("- synthetic", "labelled by a human", "sampling |", "dpm++"))
    assert "Generated from custom prompts" in text(prompts=REAL["prompts"])


def test_export_of_real_images_is_not_called_synthetic(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path / "set", **REAL)
    for form, file in (("hf", "README.md"), ("coco", "annotations/instances_train.json")):
        Export(store, tmp_path / form, Options(form, val=0.0)).run()
        text = (tmp_path / form / file).read_text()
        assert "Real images with their labels" in text
        assert "ynthetic" not in text


def test_format_1_manifest_keeps_its_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, _ = make_dataset(tmp_path, format=1)
    published = pa.ipc.read_schema(pa.py_buffer((SCHEMAS / "manifest-1.arrow").read_bytes()))
    data = store.get(manifest_name(0)) or b""
    assert pq.read_schema(pa.BufferReader(data)).equals(published)
    rows = read_manifest(data)
    assert dict(rows[1]["filters"])["duplicate_distance"] == 7
    assert [row["rejected"] for row in rows] == [[]] * 7 + [["low_confidence"] * 2] * 3


@pytest.mark.parametrize("lost", [None, "000000"])
def test_the_code_of_the_card_reads_all_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lost: str | None
) -> None:
    """Also those of a dataset in which a shard is missing."""
    store, recipe = make_dataset(tmp_path)
    if lost is not None:
        store.delete(f"receipts/{lost}.json")
        store.delete(f"train/{lost}.tar")
    samples = write_description(store, recipe).accepted
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) == samples > 0
