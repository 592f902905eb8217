"""Trained grounders: in use, refused if they do not fit, and evaluated."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.config.rich_prompts import vocabulary_words
from factory.config.vocabulary import voc
from factory.dataset.records import Grounded, Instance
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from factory.grounder.data import OracleDataset
from factory.grounder.folder import grounder_folder, load_grounder, read_grounder_config
from factory.grounder.iou import IoUMeter
from tests.support.datasets import BandDetector
from tests.support.in_process import invoke
from tests.support.oracle_datasets import SEEN
from tests.support.tiny_pipeline import tiny_pipeline


def test_a_trained_grounder_works_in_generate(trained: Path, tiny_model: Path) -> None:
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
    assert recipe.masks.noise_level == json.loads((trained / "config.json").read_text())["noise_level"] == 0.37
    assert recipe.masks.grounder_revision is not None
    parts = load_components(recipe)
    requests = [Request(s.prompt, 1) for s in Plan(recipe).shard(0).samples]
    grounded = parts.grounder.ground(parts.generator.generate(requests), [request.prompt for request in requests])
    assert len(grounded) == 4
    assert all(instance.mask.shape == (64, 64) for result in grounded for instance in result.instances)
    alone = parts.grounder.ground(parts.generator.generate(requests[2:3]), [requests[2].prompt])[0]
    for instance, other in zip(alone.instances, grounded[2].instances, strict=True):
        assert (instance.mask != other.mask).mean() < 0.01


def test_a_trained_grounder_works_with_a_half_precision_model(trained: Path, tiny_model: Path) -> None:
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
    assert all(block.dtype == torch.float32 for image in generated for block in image.features.values())
    assert len(parts.grounder.ground(generated, [request.prompt for request in requests])) == 4


def test_a_grounder_of_another_backbone_is_refused(trained: Path, tmp_path: Path, tiny_model: Path) -> None:
    data = {"n": 4, "classes": "voc", "masks": {"source": str(trained)}}
    with pytest.raises(UserError, match="whose features differ"):
        pin_recipe(make_recipe(data))


def test_a_truncated_grounder_raises_a_clear_error(trained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "README.md", "metrics.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="does not fit the config"):
        load_grounder(tmp_path)
    with pytest.raises(UserError, match="unknown source of masks"):
        pin_recipe(make_recipe({"n": 4, "masks": {"source": str(tmp_path / "nowhere")}}))


@pytest.mark.parametrize(
    "change",
    [{"options": "all"}, {"backbone": {"blocks": {"mid": [10**9, 8]}}}, {"backbone": {"blocks": 1}}, {"backbone": {}}],
)
def test_a_config_of_another_form_is_refused_before_memory_is_allocated(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(grounder_folder("stickers"), tmp_path / "grounder"))
    config = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if value and isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.safetensors does not fit the config \(.+\)"):
        load_grounder(folder)


def test_the_card_and_the_config_name_the_training_data(trained: Path, oracle: Path) -> None:
    config = load_grounder(trained)[1]
    assert config.classes_seen == SEEN
    assert config.data == (OracleDataset(Store(str(oracle))).recipe.fingerprint(),)
    card = (trained / "README.md").read_text()
    assert all(name in card for name in SEEN)
    assert config.revision in card
    assert "No human label was used." in card


def test_iou_is_pooled_by_class_without_ignored_pixels() -> None:
    meter = IoUMeter()
    truth = np.array([[1, 1, 0, 255]])
    meter.add(["dog"], np.array([[1, 0, 0, 1]]), truth)
    meter.add(["dog"], np.array([[1, 1, 1, 0]]), truth)
    meter.add(["cat"], np.array([[1, 1, 0, 0]]), truth)
    assert meter.miou == pytest.approx((3 / 5 + 1) / 2)
    assert meter.image_miou == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_protocol_1_evaluates_every_group_of_a_split(
    trained: Path, oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the oracle's detector and a module trained for twelve steps."""
    from factory.evaluation.grounder_results import GROUPS, as_markdown, write_results
    from factory.evaluation.protocol_1 import protocol_1

    monkeypatch.setattr(
        "factory.evaluation.split_evaluation.open_detector", lambda recipe, device: BandDetector(voc().names)
    )
    messages: list[str] = []
    results = protocol_1([str(trained)], "voc", 6, report=messages.append)
    assert [(r.method, r.group) for r in results] == [(m, g) for g in GROUPS for m in ("attention", "guided")]
    assert all(0 <= r.miou <= 1 and r.images == 6 for r in results)
    assert len(messages) == len(GROUPS)
    write_results(results, "voc", tmp_path)
    table = (tmp_path / "protocol-1.md").read_text()
    assert table == as_markdown(results, "voc") + "\n"
    assert "| published, Mask R-CNN | 90.3 | 83.1 | 79.1 | 67.9 | 55.7 |" in table
    assert table.count("| `guided` |") == 1
    with pytest.raises(UserError, match="is not a split of"):
        protocol_1([str(trained)], "coco", 1)
    with pytest.raises(UserError, match="are both named guided; give them different names"):
        protocol_1([str(trained), str(trained)], "voc", 1)
    both = protocol_1([f"one={trained}", f"two={trained}"], "voc", 2, report=messages.append)
    assert [r.method for r in both[:3]] == ["attention", "one", "two"]
    assert all(first.miou == second.miou for first, second in zip(both[1::3], both[2::3], strict=True))


def test_missing_inputs_of_grounder_commands_raise_clear_errors(tmp_path: Path) -> None:
    result = invoke("train-grounder", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert isinstance(result.exception, UserError)
    assert "is not a dataset" in str(result.exception)
    result = invoke("evaluate-grounder", tmp_path / "nowhere")
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("there is no grounder")  # attention and detector would not be accepted


def test_every_grounder_is_checked_before_the_first_evaluation(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.evaluation.protocol_1 import protocol_1

    monkeypatch.setattr(
        "factory.evaluation.split_evaluation.open_detector", lambda recipe, device: BandDetector(voc().names)
    )
    other, messages = shutil.copytree(trained, tmp_path / "other"), list[str]()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"split": "2", "classes_seen": ["unicorn"]}))
    with pytest.raises(UserError, match="a grounder of split 2 was trained on unicorn"):
        protocol_1([str(trained), str(other)], "voc", 1, report=messages.append)
    assert not messages


def test_the_embedded_detector_is_not_the_reference_for_photographs_without_a_warning(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the reference of grounders without a detector, those of inverted images and of the authors."""
    from factory.evaluation import protocol_1

    def evaluate(model: str) -> None:
        recipe = make_recipe({"n": 1, "classes": "voc", "generator": {"model": model}})
        monkeypatch.setattr(protocol_1, "split_recipe", lambda *_: recipe)
        protocol_1.protocol_1([str(trained)], "voc", 1, "cpu")

    monkeypatch.setattr(protocol_1, "_evaluate_split", lambda *_: [])
    evaluate("stickers")
    assert not caplog.messages
    evaluate(str(tiny_pipeline(tmp_path / "model", words=vocabulary_words())))
    assert "The detector stickers was trained on stickers" in caplog.text


def test_a_hub_model_is_measured_at_the_commit_of_the_training(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.evaluation import protocol_1

    monkeypatch.setattr(protocol_1, "pin_recipe", lambda recipe: recipe)
    config = replace(load_grounder(trained)[1], model="owner/name", revision="a" * 40, oracle={})
    recipe = protocol_1.split_recipe({"guided": config}, "1", "voc", 1)
    assert (recipe.generator.model, recipe.generator.revision) == ("owner/name", "a" * 40)


def test_a_grounder_of_other_classes_is_measured_with_its_class_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only voc and coco were accepted, although a split file defines a split of any classes."""
    from factory.evaluation import protocol_1

    monkeypatch.setattr(protocol_1, "pin_recipe", lambda recipe: recipe)
    config = replace(
        read_grounder_config(grounder_folder("stickers")), model="owner/name", revision="a" * 40, oracle={}
    )
    config = replace(config, classes_seen=("axolotl", "dog"), split="unseen")
    (tmp_path / "classes.txt").write_text("axolotl\ndog\nlynx\n", encoding="utf-8")
    recipe = protocol_1.split_recipe({"guided": config}, "unseen", str(tmp_path / "classes.txt"), 1)
    assert recipe.vocabulary().names == ("axolotl", "dog", "lynx")
    with pytest.raises(UserError, match="which is not a split of axolotl,cat"):
        protocol_1.split_recipe({"guided": config}, "unseen", "axolotl,cat", 1)


@pytest.mark.parametrize(("seen", "missing"), [(voc().names[1:], "two unseen"), (voc().names[:1], "two seen")])
def test_groups_that_a_split_has_too_few_classes_for_are_left_out(
    seen: tuple[str, ...], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split file can name one unseen class. The last group then ended the command, and all results were lost."""
    from factory.evaluation import split_evaluation
    from factory.evaluation.grounder_results import GROUPS, GrounderResult, as_markdown

    evaluation = split_evaluation.SplitEvaluation.__new__(split_evaluation.SplitEvaluation)
    unseen = [name for name in voc().names if name not in seen]
    parts = {"_vocabulary": voc(), "_batch": 8, "_seen": list(seen), "_unseen": unseen, "generators": [({}, {"a": 0})]}
    for name, part in parts.items():
        setattr(evaluation, name, part)
    counts = {group: len(evaluation._prompts(group, 4)) for group in GROUPS}
    assert counts == {group: 0 if group == missing else 4 for group in GROUPS}
    figures = split_evaluation.measure(evaluation, missing, 4)["a"]
    assert figures[2:] == (0, 0)
    results = [GrounderResult("a", "s", group, *figures) for group in GROUPS]
    assert f"| `a` |{'  |' * 5}" in as_markdown(results, "voc")


def test_an_object_to_which_the_detector_gives_two_classes_is_one_object() -> None:
    """Its second class has no pixel of its own, so every grounder would have an IoU of 0."""
    from factory.evaluation import split_evaluation

    evaluation = split_evaluation.SplitEvaluation.__new__(split_evaluation.SplitEvaluation)
    mask = np.ones((2, 2), bool)
    truth = Grounded((Instance("dog", 0.9, mask), Instance("cat", 0.6, mask)))
    generator = SimpleNamespace(generate=lambda requests: [None] * len(requests))
    oracle = SimpleNamespace(ground=lambda generated, prompts: [truth] * len(prompts))
    parts = {"_vocabulary": voc(), "_batch": 2, "_seen": ["dog", "cat"], "_unseen": [], "_oracle": oracle}
    for name, part in (parts | {"generators": [(generator, {})]}).items():
        setattr(evaluation, name, part)
    (batch,) = evaluation.batches("two seen", 2)
    assert batch.complete == []


def test_the_table_counts_images_of_splits_with_different_methods() -> None:
    from factory.evaluation.grounder_results import GROUPS, GrounderResult, as_markdown

    methods = (("attention", "1"), ("guided", "1"), ("paper", "1"), ("attention", "2"), ("guided", "2"))
    results = [
        GrounderResult(method, split, group, 0.5, 0.5, 100, 120) for method, split in methods for group in GROUPS
    ]
    table = as_markdown(results, "voc")
    assert "Averaged over split 1, 2. Images: 200 one seen, 200 one unseen" in table
    assert "| `guided` | 50.0 |" in table
    assert "| `paper`, only split 1 | 50.0 |" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--real", "inverted", "--out", "results"], "--out is an option of Protocol I"),
        (["--real", "inverted", "--images", "50"], "--images is an option of Protocol I"),
        (["--real", "inverted", "--classes", "coco"], "--classes is an option of Protocol I"),
        (["--out", "FILE"], "--out .* cannot be written: .*file is not a folder"),
        (["--table", "FILE/page.md"], "cannot be written: .*file is not a folder"),
        (["--table", "FOLDER"], "is a folder; give the path of a Markdown file"),
        (["--table", "BINARY"], "is not a readable text file in UTF-8"),
    ],
)
def test_results_that_could_not_be_written_are_refused_before_the_evaluation(
    tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    names = {"FILE": tmp_path / "file", "FOLDER": tmp_path, "BINARY": tmp_path / "binary"}
    for name, path in names.items():
        options = [option.replace(name, str(path)) for option in options]
    result = invoke("evaluate-grounder", "nowhere", *options)
    assert isinstance(result.exception, UserError)
    assert re.search(message, str(result.exception))


def test_results_are_printed_and_written_beside_their_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from factory.evaluation import grounders_on_real, protocol_1
    from factory.evaluation.grounder_results import GROUPS, GrounderResult

    generated = [GrounderResult("guided", "1", group, 0.5, 0.4, 9, 10) for group in GROUPS]
    real = [grounders_on_real.RealResult("guided", "1", "voc", 0.75, 0.8, math.nan, 1.1, 9)]
    monkeypatch.setattr(protocol_1, "protocol_1", lambda *arguments: generated)
    monkeypatch.setattr(grounders_on_real, "on_real", lambda *arguments: real)
    page, out = tmp_path / "page.md", tmp_path / "out"
    result = invoke("evaluate-grounder", "g", "--classes", "voc", "--images", 7, "--out", out, "--table", page)
    assert result.exit_code == 0, repr(result.exception)
    assert "`factory evaluate-grounder ... --classes voc --images 7` printed this table." in page.read_text()
    assert page.read_text().count("<!-- protocol-1-voc -->") == 2
    assert json.loads((out / "protocol-1.json").read_text())
    assert "| `guided` |" in result.stdout
    result = invoke("evaluate-grounder", "g", "--real", "inverted", "--table", page)
    assert "| voc | guided | 1 | 75.0 | 80.0 |  | 110.0 | 9 |" in result.stdout
    assert "`factory evaluate-grounder ... --real ...` printed this table." in page.read_text()
    (data,) = json.loads(invoke("evaluate-grounder", "g", "--real", "inverted", "--json").stdout)
    assert (data["miou"], data["unseen"]) == (0.75, None)


def test_real_images_must_be_a_dataset_of_invert(trained: Path, oracle: Path) -> None:
    from factory.evaluation.grounders_on_real import on_real

    with pytest.raises(UserError, match="is not a dataset of real images; create one with `factory invert"):
        on_real([str(trained)], [str(oracle)], "cpu")
