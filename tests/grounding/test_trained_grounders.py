"""Grounders that training made: in use, refused where they do not fit, and measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.config.vocabulary import voc
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from factory.grounder.data import OracleSet
from factory.grounder.folder import load_grounder
from factory.grounder.tally import IoUMeter
from tests.support.grounding_sets import SEEN, command
from tests.support.sets import BandDetector


def test_a_trained_grounder_masks_what_generate_makes(trained: Path, tiny_model: Path) -> None:
    recipe = pin_recipe(
        make_recipe(
            {
                "n": 4,
                "classes": "voc",
                "generator": {"model": str(tiny_model), "steps": 4},
                "masks": {"source": str(trained)},
            }
        )
    )
    assert recipe.masks.timesteps == (timestep_of(trained),)
    assert recipe.masks.capture == "sampling"
    assert recipe.masks.grounder_revision is not None
    parts = load_components(recipe)
    requests = [Request(s.prompt, 1) for s in Plan(recipe).shard(0).samples]
    grounded = parts.grounder.ground(parts.generator.generate(requests), [one.prompt for one in requests])
    assert len(grounded) == 4
    assert all(instance.mask.shape == (64, 64) for one in grounded for instance in one.instances)
    alone = parts.grounder.ground(parts.generator.generate(requests[2:3]), [requests[2].prompt])[0]
    for mine, other in zip(alone.instances, grounded[2].instances, strict=True):
        assert (mine.mask != other.mask).mean() < 0.01


def test_a_text_to_image_model_in_half_precision_is_masked_too(trained: Path, tiny_model: Path) -> None:
    recipe = pin_recipe(
        make_recipe(
            {
                "n": 4,
                "classes": "voc",
                "generator": {"model": str(tiny_model), "steps": 4, "dtype": "bfloat16"},
                "masks": {"source": str(trained)},
            }
        )
    )
    parts = load_components(recipe)
    requests = [Request(s.prompt, 1) for s in Plan(recipe).shard(0).samples]
    generated = parts.generator.generate(requests)
    assert all(block.dtype == torch.float32 for one in generated for block in one.features.values())
    assert len(parts.grounder.ground(generated, [one.prompt for one in requests])) == 4


def timestep_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["timestep"])


def test_a_grounder_of_another_backbone_is_refused(trained: Path, tmp_path: Path, tiny_model: Path) -> None:
    data = {"n": 4, "classes": "voc", "masks": {"source": str(trained)}}
    with pytest.raises(UserError, match="the features are others"):
        pin_recipe(make_recipe(data))


def test_a_grounder_that_was_cut_short_is_told(trained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "README.md", "metrics.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="does not hold this grounder"):
        load_grounder(tmp_path)
    with pytest.raises(UserError, match="there are no masks from"):
        pin_recipe(make_recipe({"n": 4, "masks": {"source": str(tmp_path / "nowhere")}}))


def test_the_card_and_the_config_say_what_the_grounder_saw(trained: Path, oracle: Path) -> None:
    config = load_grounder(trained)[1]
    assert config.classes_seen == SEEN
    assert config.data == (OracleSet(Store(str(oracle))).recipe.fingerprint(),)
    card = (trained / "README.md").read_text()
    assert all(name in card for name in SEEN)
    assert config.revision in card


def test_iou_is_pooled_by_class_and_ignores_what_is_ignored() -> None:
    tally = IoUMeter()
    truth = np.array([[1, 1, 0, 255]])
    tally.add(["dog"], np.array([[1, 0, 0, 1]]), truth)
    tally.add(["dog"], np.array([[1, 1, 1, 0]]), truth)
    tally.add(["cat"], np.array([[1, 1, 0, 0]]), truth)
    assert tally.miou == pytest.approx((3 / 5 + 1) / 2)
    assert tally.image_miou == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_protocol_1_measures_every_group_of_the_grounders_split(
    trained: Path, oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detector is the one that the oracle was made by; the figures are those of a module of twelve steps."""
    from factory.detector import load
    from factory.evaluation.protocol_1 import GROUPS, as_markdown, protocol_1, write_results

    monkeypatch.setattr(load, "open_detector", lambda recipe, device: BandDetector(voc().names))
    told: list[str] = []
    results = protocol_1([str(trained)], "voc", 6, report=told.append)
    assert [(row.method, row.group) for row in results] == [(m, g) for g in GROUPS for m in ("attention", "guided")]
    assert all(0 <= row.miou <= 1 and row.images == 6 for row in results)
    assert len(told) == len(GROUPS)
    write_results(results, "voc", tmp_path)
    table = (tmp_path / "protocol-1.md").read_text()
    assert table == as_markdown(results, "voc") + "\n"
    assert "| paper, with SD and Mask R-CNN | 90.3 | 83.1 | 79.1 | 67.9 | 55.7 |" in table
    assert table.count("| `guided` |") == 1
    with pytest.raises(UserError, match="is no split of"):
        protocol_1([str(trained)], "coco", 1)
    with pytest.raises(UserError, match="would both be called guided; give them names"):
        protocol_1([str(trained), str(trained)], "voc", 1)
    both = protocol_1([f"one={trained}", f"two={trained}"], "voc", 2, report=told.append)
    assert [row.method for row in both[:3]] == ["attention", "one", "two"]
    assert all(first.miou == second.miou for first, second in zip(both[1::3], both[2::3], strict=True))


def test_train_and_evaluate_grounder_tell_what_is_missing(tmp_path: Path) -> None:
    result = command("train-grounder", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert isinstance(result.exception, UserError)
    assert "is not a dataset" in str(result.exception)
    result = command("evaluate-grounder", tmp_path / "nowhere")
    assert isinstance(result.exception, UserError)
    assert "there are no masks from" in str(result.exception)
