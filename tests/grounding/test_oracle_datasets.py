"""Oracle datasets: valid, with seen classes only, and streamed from any step."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.config.unseen_words import check_no_unseen_classes
from factory.config.vocabulary import voc
from factory.dataset.masks import IGNORE
from factory.dataset.storage import Store
from factory.dataset.verify import verify
from factory.errors import UserError
from factory.generation.components import load_components
from factory.generator.interface import Request
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleDataset, OracleSample, OracleSource
from factory.training.stream import SampleStream
from tests.export.test_hub_loading import ORACLE
from tests.export.test_hub_loading import make_dataset as make_full_dataset
from tests.support.datasets import BandDetector, make_dataset
from tests.support.export_datasets import samples_of
from tests.support.in_process import invoke
from tests.support.oracle_datasets import EVERYTHING, SEEN, oracle_recipe


def test_an_oracle_dataset_verifies_and_has_seen_classes_only(oracle: Path) -> None:
    report = verify(Store(str(oracle)))
    assert (report.samples, report.damaged, report.missing) == (16, {}, [])
    for sample in OracleDataset(Store(str(oracle))).samples(0):
        assert set(sample.prompt.classes) <= set(SEEN)
        assert sample.latent.dtype == np.float16
        assert all((sample.labels == k).any() for k in range(1, len(sample.prompt.classes) + 1))


def test_a_sample_has_the_stored_labels_numbered_as_in_its_prompt(tmp_path: Path) -> None:
    store, _ = make_full_dataset(tmp_path, **ORACLE)
    stored = {key: (row, labels) for key, row, labels, _ in samples_of(store)}
    for sample in OracleDataset(store).samples(1):
        row, labels = stored[sample.key]
        ids = {annotation["category_name"]: annotation["category_id"] for annotation in row["annotations"]}
        for k, name in enumerate(sample.prompt.classes, 1):
            assert ((sample.labels == k) == (labels == ids[name])).all()
        assert sample.found == (True,) * len(sample.prompt.classes)
        assert (labels == IGNORE).any()
        assert ((sample.labels == IGNORE) == (labels == IGNORE)).all()
        assert (sample.latent == int(sample.key)).all()
        assert sample.noise_level == row["noise_level"] > 0


def test_samples_without_an_accepted_image_are_not_counted(tmp_path: Path) -> None:
    store, _ = make_full_dataset(tmp_path, empty=(0,), **ORACLE)
    dataset = OracleDataset(store)
    keys = dataset.keys(False, 0.3) + dataset.keys(True, 0.3)
    assert sorted(keys) == [f"{index:09d}" for index in range(10, 20)]
    assert OracleSource([dataset], 0.3).size == len(dataset.keys(False, 0.3)) < 10


def test_a_samples_latent_reproduces_its_features(tiny_model: Path) -> None:
    recipe = oracle_recipe(tiny_model)
    generator = PipelineGenerator(recipe, needs=EVERYTHING)
    planned = Plan(recipe).shard(0).samples[:3]
    generated = generator.generate([Request(sample.prompt, sample.seed(0, 0)) for sample in planned])
    latents = torch.from_numpy(np.stack([g.latent for g in generated if g.latent is not None])).float()
    read = generator.read(latents, [sample.prompt for sample in planned])
    for k, image in enumerate(generated):
        for name, block in image.features.items():
            assert torch.allclose(read.features[name][k], block, atol=0.02)
        for name, maps in image.cross_attention.items():
            assert torch.allclose(read.cross_attention[name][k][:, : maps.shape[1]], maps, atol=1e-3)


def test_undetected_classes_are_left_out_and_uncertain_pixels_ignored(tiny_model: Path) -> None:
    sure, unsure = BandDetector(SEEN[::2]), BandDetector(SEEN[1::2], score=0.4)

    class Both:
        def detect(self, images: Any, classes: object = None) -> Any:
            return [a + b for a, b in zip(sure.detect(images), unsure.detect(images), strict=True)]

    recipe = oracle_recipe(tiny_model, objects={2: 1.0}, attempts=1)
    parts = load_components(recipe, detector=Both())
    requests = [Request(s.prompt, 1) for s in Plan(recipe).shard(0).samples]
    grounded = parts.grounder.ground(parts.generator.generate(requests), [request.prompt for request in requests])
    left_out = 0
    for result, request in zip(grounded, requests, strict=True):
        expected = [name for name in request.prompt.classes if name in SEEN[::2]]
        assert [instance.class_name for instance in result.instances] == expected
        assert (result.ignore is not None) == (len(expected) < 2)
        assert {detection.class_name for detection in result.detections} == set(request.prompt.classes)
        left_out += len(expected) == 1
    assert left_out


def test_a_sample_without_detections_is_rejected_with_its_reason(tiny_model: Path, tmp_path: Path) -> None:
    recipe = oracle_recipe(tiny_model, n=4, shard_size=4, attempts=2)
    (receipt,) = make_dataset(recipe, tmp_path / "none", BandDetector(SEEN, score=0.1))
    assert dict(receipt.rejected) == {"mask_empty": 8}
    assert receipt.short == (0, 1, 2, 3)


def test_a_sample_of_an_unseen_class_is_refused(oracle: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "leaky"))
    for name in Store(str(oracle)).list(""):
        store.create(name, Store(str(oracle)).get(name) or b"")
    tar = store.get("train/000000.tar") or b""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(fileobj=stream, mode="w") as new:
        for member in old:
            data = old.extractfile(member).read()
            if member.name.endswith(".json"):
                data = json.dumps(json.loads(data) | {"classes": ["dog"]}).encode()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    store.delete("train/000000.tar")
    store.create("train/000000.tar", stream.getvalue())
    with pytest.raises(UserError, match="shows dog, which split 1 leaves unseen"):
        list(OracleDataset(store).samples(0))


def test_a_dataset_with_a_changed_recipe_is_refused(oracle: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "changed"))
    for name in Store(str(oracle)).list(""):
        store.create(name, Store(str(oracle)).get(name) or b"")
    text = (store.get("recipe.yaml") or b"").decode().replace("  - bird", "  - dog")
    store.compare_and_swap("recipe.yaml", text.encode(), store.get("recipe.yaml"))
    with pytest.raises(UserError, match="was made with another recipe"):
        OracleDataset(store)


def test_the_fingerprint_is_computed_once_not_for_each_shard(oracle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a recipe with 100,000 prompts or images takes 0.2 s."""
    calls, fingerprint = list[Recipe](), Recipe.fingerprint

    def counted(recipe: Recipe) -> str:
        calls.append(recipe)
        return fingerprint(recipe)

    monkeypatch.setattr(Recipe, "fingerprint", counted)
    assert len(OracleDataset(Store(str(oracle))).receipts) > 1
    assert len(calls) == 1


def test_an_oracle_recipe_with_unseen_classes_is_refused(tiny_model: Path) -> None:
    row = {"text": "a dog", "classes": {"dog": "dog"}}
    with pytest.raises(UserError, match="names dog, unseen classes of its split"):
        oracle_recipe(tiny_model, prompts=[row])
    with pytest.raises(UserError, match=r"masks.noise_level replaces them: timestep 100 .* is 0.256"):
        oracle_recipe(tiny_model, masks={"source": "detector", "timesteps": [100]})
    with pytest.raises(UserError, match="must be `detector`"):
        oracle_recipe(tiny_model, masks={"source": "attention"})


def test_an_ordinary_dataset_is_not_an_oracle(tiny_recipe: Recipe, tmp_path: Path) -> None:
    make_dataset(tiny_recipe, tmp_path / "plain")
    with pytest.raises(UserError, match="is a dataset of images with masks, not an oracle dataset"):
        OracleDataset(Store(str(tmp_path / "plain")))


def test_the_stream_is_the_same_from_any_step(oracle: Path) -> None:
    def keys(stream: SampleStream[OracleSample], step: int) -> list[str]:
        return [row.key for row in stream.batch(step)]

    opened = OracleDataset(Store(str(oracle)))
    source = OracleSource([opened], 0.1)
    whole = SampleStream([source], 5, 0)
    batches = [keys(whole, step) for step in range(12)]
    assert keys(SampleStream([OracleSource([opened], 0.1)], 5, 0), 7) == batches[7]
    held_out = set(opened.keys(True, 0.1))
    assert held_out
    assert not held_out & {key for batch in batches for key in batch}
    first = [key for batch in batches for key in batch][: source.size]
    assert len(set(first)) == source.size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "voc", "--n", "4"], "to select the seen classes"),
        (
            ["--classes", "voc", "--n", "4", "--split", "9"],
            "there is no split '9' for voc; give 1, 2, 3, zs3, or a file with one unseen class",
        ),
        (
            ["--classes", "dog,cat", "--n", "4", "--split", "1"],
            "there is no split '1' for your list of classes; give a file with one unseen class",
        ),
        (["--classes", "voc", "--n", "4", "--split", "nowhere.txt"], "there is no split file nowhere.txt"),
    ],
)
def test_a_missing_split_raises_a_clear_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke("bootstrap-oracle", "--shards", tmp_path / "set", *arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("text", "options", "objects"),
    [
        ("n: 4", [], {1: 0.5, 2: 0.5}),
        ("n: 4\nobjects: {2: 1.0}", [], {2: 1.0}),
        ("n: 4\nobjects: {2: 1.0}", ["--objects", "1:1"], {1: 1.0}),
        ("n: 4\nprompts: [{text: a cat, classes: {cat: cat}}]", [], {1: 0.5, 2: 0.5}),
    ],
)
def test_objects_of_the_recipe_file_take_precedence_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: list[str], objects: dict[int, float]
) -> None:
    def started(recipe: Recipe, *_: Any) -> None:
        raise UserError(f"objects {recipe.objects}")

    monkeypatch.setattr("factory.generation.run.generate", started)
    (tmp_path / "recipe.yaml").write_text(f"classes: voc\n{text}\n")
    given = ["--recipe", tmp_path / "recipe.yaml", "--split", "1", *options]
    result = invoke("bootstrap-oracle", "--shards", tmp_path / "set", *given)
    assert str(result.exception) == f"objects {objects}"


def test_a_prompt_whose_text_mentions_an_unseen_class_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image showed the sofa without a mask, so the grounder learned that an unseen class is background."""
    monkeypatch.setattr("factory.generation.run.generate", lambda recipe, *_: pytest.fail("it started"))
    texts = ("a cat on a chair", "a cat on two couches", "a cat in a car")
    prompts = [{"text": text, "classes": {"cat": "cat"}} for text in texts]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"classes": "voc", "n": 4, "prompts": prompts}))
    given = ["--recipe", tmp_path / "recipe.yaml", "--split", "1", "--shards", tmp_path / "set"]
    error = str(invoke("bootstrap-oracle", *given).exception)
    assert "'a cat on two couches' mentions sofa, an unseen class of split 1, and 1 more mention" in error
    assert not (tmp_path / "set").exists()


def test_a_mention_of_an_unseen_class_is_found_in_a_text_without_spaces() -> None:
    def check(text: str) -> None:
        prompts = [{"text": text, "classes": {"猫": "猫"}}]
        oracle = {"split": "mine", "seen": ["猫", "热狗"]}
        masks = {"source": "detector"}
        check_no_unseen_classes(
            make_recipe({"n": 1, "classes": ["猫", "狗", "热狗"], "prompts": prompts, "oracle": oracle, "masks": masks})
        )

    check("一只猫和热狗")
    with pytest.raises(UserError, match="mentions 狗, an unseen class of split mine"):
        check("一只猫和狗在草地上")


def test_a_split_file_names_unseen_classes(tmp_path: Path) -> None:
    from factory.cli.options import assemble

    path = tmp_path / "mine.txt"
    options = {"classes": "voc", "n": 4, "masks": "detector", "noise_level": 0.23, "split": str(path)}
    path.write_text("# mine\ndog\ntv\n\n")
    recipe = assemble(None, None, options)
    assert recipe.oracle is not None
    assert recipe.oracle.split == "mine"
    assert set(voc().names) - set(recipe.oracle.seen) == {"dog", "tvmonitor"}
    path.write_text("\ndgo\n")
    with pytest.raises(UserError, match=r"mine\.txt, line 2: there is no class 'dgo' in voc; did you mean dog"):
        assemble(None, None, options)
    path.write_text("\n".join(voc().names))
    with pytest.raises(UserError, match="leaves 0 classes seen and 20 unseen"):
        assemble(None, None, options)
