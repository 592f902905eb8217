"""The shipped jobs end to end, on real model classes with tiny random weights, interrupted and resumed."""

import json
from pathlib import Path

import pytest
import yaml

from factory.config.splits import seen_classes
from factory.config.vocabulary import Vocabulary, coco, voc
from factory.errors import UserError
from factory.labelled.voc import VocFolder
from factory.stickers.voc_folder import write_voc_folder
from factory.workflow.run import load_workflow, run_workflow
from tests.support.coco_folder import write_annotations
from tests.support.in_process import commands
from tests.support.tiny_detector import tiny_mask2former

JOBS = Path(__file__).parents[1] / "jobs"


def small_values(tiny_model: Path, folder: Path, vocabulary: Vocabulary, queries: int) -> dict[str, str]:
    """Small values for a job: random weights detect something of most classes, and no filter rejects it."""
    recipe = {
        "generator": {"model": str(tiny_model), "steps": 2, "dtype": "bfloat16", "channels_last": True},
        "masks": {"score": 0.05, "ignore_score": 0.05},
        "filters": {"min_area": None, "max_area": None, "duplicate_distance": None, "max_border": None},
        "batch": 4,
        "shard_size": 4,
        "attempts": 40,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    write_voc_folder(folder / "real", vocabulary, 10, ("noto",), size=64)
    return {
        "n": "8",
        "recipe": str(folder / "tiny.yaml"),
        "detector": str(tiny_mask2former(folder / "detector", vocabulary.names, queries=queries)),
        "real": str(folder / "real"),
        "device": "cpu",
        "grounder_steps": "2",
        "segmenter_steps": "2",
        "images": "2",
        "side": "64",
        "architecture": "segformer",
    }


@pytest.mark.slow
def test_voc_job_runs_end_to_end_and_resumes(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # otherwise an unknown architecture is looked up on the hub, with retries
    values = {**small_values(tiny_model, tmp_path, voc(), 100), "inversion_steps": "4"}
    out, lines = tmp_path / "out", list[str]()
    with pytest.raises(UserError, match="train-segmenter: --train-steps must be"):
        load_workflow(JOBS / "voc.yaml", out, commands(), {**values, "segmenter_steps": "0"})
    broken = load_workflow(JOBS / "voc.yaml", out, commands(), {**values, "architecture": "nothing"})
    with pytest.raises(UserError, match=r"step 6 \(train-segmenter\) ended with exit code 2"):
        run_workflow(broken, lines.append)
    tar = (out / "dataset" / "train" / "000000.tar").read_bytes()

    lines.clear()
    run_workflow(load_workflow(JOBS / "voc.yaml", out, commands(), values), lines.append)
    assert [line.split("] ")[1].startswith("already completed") for line in lines] == [True] * 5 + [False] * 7
    assert (out / "dataset" / "train" / "000000.tar").read_bytes() == tar
    protocol = json.loads((out / "protocol-1" / "protocol-1.json").read_text())
    assert {row["method"] for row in protocol["results"]} == {"attention", "guided"}
    config = json.loads((out / "grounder" / "model" / "config.json").read_text())
    assert config["oracle"]["masks"]["detector"] == values["detector"]
    assert set(config["classes_seen"]) == set(seen_classes(voc(), "1"))
    assert "| real seen classes + mixture |" in (out / "protocol-2.md").read_text()
    assert "| VOC2012 | detector's and true masks | 1 |" in (out / "real.md").read_text()


@pytest.mark.slow  # 400 queries at 384 x 384 take minutes, for the same code as the VOC job
def test_coco_job_runs_end_to_end(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = small_values(tiny_model, tmp_path, coco(), 400)
    real = VocFolder(tmp_path / "real", "val", coco())
    ids = {entry.name: entry.id for entry in coco().classes}
    values |= {
        "n_oracle": "8",
        "real": str(real.root / "JPEGImages"),
        "annotations": str(write_annotations(real, tmp_path / "instances.json", ids)),
    }
    run_workflow(load_workflow(JOBS / "coco.yaml", tmp_path / "out", commands(), values))
    assert "over 2 images" in capfd.readouterr().out
