"""The whole chain of a job on real model classes with tiny random weights, stopped in the middle and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.errors import UserError
from factory.job import load_job, run_job
from factory.stickers.voc_folder import write_voc_folder
from factory.testing.tiny_detector import tiny_mask2former
from factory.vocabulary import voc

JOB = Path(__file__).parents[1] / "jobs" / "voc.yaml"


def commands() -> dict[str, Any]:
    import typer

    from factory.cli.main import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def values(tiny_model: Path, tmp_path: Path) -> dict[str, str]:
    """The job's own values, small: random weights find something of most classes, and every filter lets it pass."""
    recipe = {
        "generator": {"model": str(tiny_model), "steps": 2},
        "masks": {"score": 0.05, "ignore_score": 0.05},
        "filters": {"min_area": None, "max_area": None, "duplicate_distance": None, "max_border": None},
        "batch": 4,
        "shard_size": 4,
        "attempts": 40,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    write_voc_folder(tmp_path / "VOC2012", voc(), 10, ("noto",), size=64)
    return {
        "n": "8",
        "recipe": str(tmp_path / "tiny.yaml"),
        "detector": str(tiny_mask2former(tmp_path / "detector", voc().names, queries=100)),
        "real": str(tmp_path / "VOC2012"),
        "device": "cpu",
        "grounder_steps": "2",
        "segmenter_steps": "2",
        "images": "2",
        "side": "64",
        "architecture": "segformer",
    }


def test_the_chain_for_voc_runs_from_class_names_to_the_score_of_a_segmenter(
    values: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "out", list[str]()
    broken = load_job(JOB, out, commands(), {**values, "segmenter_steps": "0"})
    with pytest.raises(UserError, match="step 6, train-segmenter, ended with 2"):
        run_job(broken, told.append)
    tar = (out / "set" / "train" / "000000.tar").read_bytes()
    capfd.readouterr()

    told.clear()
    run_job(load_job(JOB, out, commands(), values), told.append)
    assert [line.split("] ")[1].startswith("done before") for line in told] == [True] * 5 + [False] * 2
    assert (out / "set" / "train" / "000000.tar").read_bytes() == tar
    protocol = json.loads((out / "protocol-1" / "protocol-1.json").read_text())
    assert {row["method"] for row in protocol["results"]} == {"attention", "guided"}
    config = json.loads((out / "grounder" / "model" / "config.json").read_text())
    assert config["oracle"]["masks"]["detector"] == values["detector"]
    assert set(config["classes_seen"]) == set(voc().seen("1"))
    assert "harmonic" in capfd.readouterr().out
