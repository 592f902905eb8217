"""Pins of models: a commit of the hub or a digest of files is found once, and holds for the dataset."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file

from factory.config.plan import Plan
from factory.config.sections import GeneratorRecipe, OracleRecipe
from factory.config.vocabulary import voc
from factory.errors import UserError
from factory.files.hub import hub_file
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generator.hub import cached_folder, hub_pipeline
from factory.generator.interface import Request
from factory.generator.load import config_folder, pin_generator, pin_revision
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.shared_recipe import shared_recipe
from tests.support.recipes import two_shards
from tests.support.tiny_open_vocabulary import bert_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER = "fedc" * 10


@pytest.fixture
def offline(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An unreachable hub, and a cache with one model and one detector."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(tiny_model, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    detector = tmp_path / "cache" / "models--someone--detector"
    shutil.copytree(tiny_model / "unet", detector / "snapshots" / COMMIT)
    shutil.copytree(cached / "refs", detector / "refs")
    return "someone/tiny"


def test_cached_hub_model_requires_no_network(offline: str, tiny_model: Path) -> None:
    pinned = pin_recipe(two_shards(offline, generator={"solver": "ddim"}, masks={"source": "attention"}))
    assert pinned.generator.revision == pin_revision("someone/detector") == COMMIT
    preflight(pinned)
    requests = [Request(sample.prompt, sample.seed(0, 0)) for sample in Plan(pinned).shard(0).samples]
    images = [
        PipelineGenerator(source).generate(requests)[0].image
        for source in (pinned, two_shards(tiny_model, generator={"solver": "ddim"}))
    ]
    assert np.array_equal(*images)


def test_a_download_of_some_files_of_a_repository_requires_no_network(
    offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub lists all files of a repository with the first download, also those that are not needed."""
    cache = pytest.importorskip("huggingface_hub._tree_cache")
    folder = tmp_path / "cache" / "models--someone--tiny"
    cache.write_tree_cache(str(folder), COMMIT, {"model.ckpt": cache.TreeCacheEntry(size=1, blob_id="0" * 40)})
    assert cached_folder(offline, COMMIT) == folder / "snapshots" / COMMIT
    assert cached_folder(offline, NEWER) is None


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_hub_model_whose_weights_exist_only_in_one_variant_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Sana is published in bfloat16 alone, with this variant in the names of its files."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))

    def download(model: str, variant: str | None, **_: Any) -> Path:
        found = list(folder.glob(f"*/*.{variant}.safetensors"))
        if variant is not None and not found:
            raise ValueError(f"You are trying to load model files of the `variant={variant}`.")
        target = tmp_path / str(variant)
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*[] if found else ["*.safetensors"]))
        return target

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    recipe = GeneratorRecipe(model="owner/name", revision=COMMIT)
    assert hub_pipeline("owner/name", COMMIT, recipe) == tmp_path / variant
    shutil.rmtree(folder / "unet")
    shutil.rmtree(tmp_path / "None")
    with pytest.raises(UserError, match=r"the model owner/name cannot be loaded: there is no .*unet/config\.json"):
        hub_pipeline("owner/name", COMMIT, recipe)


def test_a_gated_repository_says_how_to_get_access(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        response: Any = SimpleNamespace(headers={}, request=None)
        raise GatedRepoError("401 Client Error.", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    message = (
        "owner/model is gated on the hub: accept its conditions at https://huggingface.co/owner/model, and set HF_T"
    )
    with pytest.raises(UserError, match=message):
        config_folder(GeneratorRecipe(model="owner/model", revision=COMMIT))
    with pytest.raises(UserError, match=message):
        hub_file("owner/model", "config.json", COMMIT)

    def not_found() -> None:
        raise OSError("owner/model is not a local folder and is not a valid model identifier")

    def download(*_: Any, **__: Any) -> Any:
        try:
            refuse()
        except GatedRepoError:
            not_found()

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    with pytest.raises(UserError, match=message):
        hub_pipeline("owner/model", COMMIT, GeneratorRecipe(model="owner/model", revision=COMMIT))


def test_new_commits_on_the_hub_do_not_change_the_pins_of_a_dataset(offline: str, tmp_path: Path) -> None:
    """Nor does an unreachable hub: of a LoRA, only its file is in the cache."""
    cache, file = tmp_path / "cache", tmp_path / "model.safetensors"
    lora = cache / "models--someone--lora"
    (lora / "snapshots" / COMMIT).mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, lora / "snapshots" / COMMIT / "pytorch_lora_weights.safetensors")
    shutil.copytree(cache / "models--someone--tiny" / "refs", lora / "refs")
    save_file({"x": torch.zeros(1)}, file)
    plain, whole = (
        two_shards(name, generator=settings, masks={"source": "attention"})
        for name, settings in ((offline, {"lora": "someone/lora"}), (f"{offline}@{file}", {}))
    )
    datasets = [pin_recipe(plain), pin_recipe(whole)]
    assert datasets[0].generator.lora_revision == COMMIT
    assert str(datasets[1].generator.revision).endswith(f"+{COMMIT}")
    for repository in cache.iterdir():
        (repository / "snapshots" / COMMIT).rename(repository / "snapshots" / NEWER)
        shutil.copytree(repository / "snapshots" / NEWER, repository / "snapshots" / COMMIT)
        (repository / "refs" / "main").write_text(NEWER)
    assert pin_recipe(plain).generator.lora_revision == NEWER, "a new dataset takes the new commit"
    for given, dataset in zip((plain, whole), datasets, strict=True):
        assert pin_recipe(given, dataset).fingerprint() == dataset.fingerprint()
        assert pin_recipe(dataset, dataset).fingerprint() == dataset.fingerprint(), "with recipe.yaml"
    save_file({"x": torch.ones(1)}, file)
    assert pin_recipe(whole, datasets[1]).fingerprint() != datasets[1].fingerprint(), "another file is noticed"


def test_new_commits_do_not_change_the_pins_of_a_detector_of_a_folder_and_a_hub_model(
    offline: str, tiny_model: Path, tmp_path: Path
) -> None:
    sam, folder = tmp_path / "cache" / "models--someone--sam2", tmp_path / "dino"
    for path, kind in ((sam / "snapshots" / COMMIT, "sam2"), (folder, "grounding-dino")):
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"model_type": kind}))
    bert_tokenizer(folder, [entry.display for entry in voc().classes])
    (sam / "refs").mkdir()
    (sam / "refs" / "main").write_text(COMMIT)
    given = two_shards(tiny_model, masks={"source": "detector", "detector": f"grounding-dino:{folder}+someone/sam2"})
    dataset = pin_recipe(given)
    assert str(dataset.masks.detector_revision).endswith(f"+{COMMIT}")
    shutil.copytree(sam / "snapshots" / COMMIT, sam / "snapshots" / NEWER)
    (sam / "refs" / "main").write_text(NEWER)
    assert pin_recipe(given, dataset).fingerprint() == dataset.fingerprint()
    (folder / "config.json").write_text(json.dumps({"model_type": "grounding-dino", "more": 1}))
    assert pin_recipe(given, dataset).fingerprint() != dataset.fingerprint(), "another folder is noticed"


def test_mistyped_folder_is_suggested(offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd-15").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no folder models/sd15 \(did you mean models/sd-15\?\), and no hub"):
        pin_generator(GeneratorRecipe(model="models/sd15"))


@pytest.mark.parametrize("model", ["someone/tiny", "someone/tiny@{file}"])
def test_new_commits_on_the_hub_change_nothing_for_a_dataset(
    offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    def on_the_hub(commit: str) -> None:
        for module in ("load", "lora"):
            monkeypatch.setattr(f"factory.generator.{module}.hub_commit", lambda *_: commit)

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    generator = {"solver": "ddim", "lora": "someone/lora"}
    given = two_shards(model.format(file=file), generator=generator, masks={"source": "attention"})
    on_the_hub(COMMIT)
    created = pin_recipe(given)
    on_the_hub("f" * 40)
    assert pin_recipe(given, created) == pin_recipe(created, created) == created
    recipe = created.model_copy(update={"oracle": OracleRecipe(split="1", seen=("dog",))})
    dataset: Any = SimpleNamespace(recipe=recipe, store=SimpleNamespace(address="oracle"))
    assert shared_recipe([dataset]) == recipe
    file.write_bytes(b"other weights")
    assert (pin_recipe(given, created) == created) is (model == "someone/tiny")
