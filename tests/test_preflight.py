"""Invalid recipes and models are rejected before a dataset is created, by `generate` and `plan` alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from factory.cli.main import app
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.config.sections import GeneratorRecipe
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import existing_recipe, init_or_resume, recipe_of
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generation.run import generate, prepare
from factory.generator.interface import Request
from factory.generator.load import load_pipeline, pin_generator, pin_revision
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.training import shared_recipe
from tests.support.datasets import make_dataset

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER = "fedc" * 10


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def recipe(folder: object, **extra: Any) -> Recipe:
    generator = {"model": str(folder), "steps": 2} | extra.pop("generator", {})
    return make_recipe({"n": 4, "classes": "voc", "shard_size": 2, "generator": generator, **extra})


def assert_rejected(invalid: Recipe, out: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(invalid, Store(str(out)))
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: shutil.rmtree(model / "tokenizer"), "tokenizer is not a tokenizer"),
        (lambda model: (model / "tokenizer" / "tokenizer.json").write_text("{"), r"the tokenizer in .* cannot be read"),
        (lambda model: (model / "unet" / "config.json").write_text("{"), r"config.json cannot be read"),
        (lambda model: shutil.rmtree(model / "vae"), r"there is no .*vae/config.json"),
        (
            lambda model: (model / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
            "unet holds no weights: there is none of",
        ),
        (lambda model: edit(model / "unet" / "config.json", in_channels=9), "has 9 input and 4 output channels"),
        (
            lambda model: edit(model / "unet" / "config.json", cross_attention_dim=48),
            "expects text embeddings of 48 channels",
        ),
        (
            lambda model: edit(model / "unet" / "config.json", addition_embed_type="text_time"),
            "has additional embeddings 'text_time'",
        ),
        (
            lambda model: edit(model / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
            "is a UNet3DConditionModel; supported are UNet2DConditionModel",
        ),
        (lambda model: edit(model / "model_index.json", text_encoder=[None, None]), "does not name a text_encoder"),
        (lambda model: edit(model / "unet" / "config.json", sample_size=None), "has no default size"),
    ],
)
def test_unusable_pipeline_is_rejected(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder)
    assert_rejected(recipe(folder), tmp_path / "out", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": {"width": 72}}, "must be multiples of 16"),
        (
            {"masks": {"source": "attention", "levels": [8]}},
            r"masks.levels \[8\] are not among the .* levels .* \[1, 2\]",
        ),
        ({"generator": {"solver": "model"}}, "would not be reproducible"),
        ({"generator": {"solver": "lcm", "steps": 60}}, "is a consistency model of at most 50 steps"),
        ({"masks": {"source": "attention", "blocks": [0]}}, "masks.blocks is for transformers"),
    ],
)
def test_recipe_that_does_not_fit_the_model_is_rejected(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "vae" / "config.json", block_out_channels=[8] * 5)
    edit(folder / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    assert_rejected(recipe(folder, **changes), tmp_path / "out", message)


def test_local_model_that_changed_under_a_pinned_recipe_is_rejected(folder: Path, tmp_path: Path) -> None:
    pinned = pin_recipe(recipe(folder))
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=2)
    found = pin_revision(str(folder))
    message = f"pins the text-to-image model .* as {pinned.generator.revision}, but its content is now {found}"
    assert_rejected(pinned, tmp_path / "out", message)


@pytest.mark.parametrize("line", ["two puppies at play\tdog", "a very " + "small " * 30 + "dog\tdog"])
def test_prompt_without_tokens_for_its_class_is_rejected(tiny_model: Path, tmp_path: Path, line: str) -> None:
    lines = [*(f"a photograph of a dog number {number}\tdog" for number in range(7)), line]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    common = ["--classes", "voc", "--n", "8", "--model", str(tiny_model), "--prompts", str(tmp_path / "prompts.txt")]
    out = tmp_path / "out"
    for command in (["plan"], ["generate", "--shards", str(out)]):
        result = CliRunner().invoke(app, [*command, *common, "--masks", "attention"])
        assert result.exit_code != 0
        assert "prompt 8: " in str(result.exception)
    assert not out.exists()
    result = CliRunner().invoke(app, ["plan", *common, "--masks", "detector", "--json"])
    assert result.exit_code == 0, result.exception


def test_captions_too_long_for_the_encoder_are_rejected(tiny_model: Path) -> None:
    names = [f"{'very ' * 8}long name number {letter}" for letter in "abcdefgh"]
    preflight(recipe(tiny_model, classes=names))
    with pytest.raises(UserError, match=r"sample \d+: the words .* come after the first 24 tokens"):
        preflight(recipe(tiny_model, classes=names, objects={1: 0.5, 2: 0.5}))


def test_missing_feature_extractor_is_ignored(folder: Path) -> None:
    edit(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    checked = recipe(folder)
    preflight(checked)
    load_pipeline(checked.generator, "cpu")


def test_sizes_not_divisible_by_the_unet_levels_work(tiny_model: Path, tmp_path: Path) -> None:
    odd = recipe(tiny_model, generator={"width": 72, "height": 40, "solver": "ddim"})
    preflight(odd)
    make_dataset(odd, tmp_path / "out")


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
    pinned = pin_recipe(recipe(offline, generator={"solver": "ddim"}, masks={"source": "attention"}))
    assert pinned.generator.revision == pin_revision("someone/detector") == COMMIT
    preflight(pinned)
    requests = [Request(sample.prompt, sample.seed(0, 0)) for sample in Plan(pinned).shard(0).samples]
    images = [
        PipelineGenerator(source).generate(requests)[0].image
        for source in (pinned, recipe(tiny_model, generator={"solver": "ddim"}))
    ]
    assert np.array_equal(*images)


def test_new_commits_on_the_hub_do_not_change_the_pins_of_a_dataset(offline: str, tmp_path: Path) -> None:
    """Nor does an unreachable hub: of a LoRA, only its file is in the cache."""
    cache, file = tmp_path / "cache", tmp_path / "model.safetensors"
    lora = cache / "models--someone--lora"
    (lora / "snapshots" / COMMIT).mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, lora / "snapshots" / COMMIT / "pytorch_lora_weights.safetensors")
    shutil.copytree(cache / "models--someone--tiny" / "refs", lora / "refs")
    save_file({"x": torch.zeros(1)}, file)
    plain, whole = (
        recipe(name, generator=settings, masks={"source": "attention"})
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
    (sam / "refs").mkdir()
    (sam / "refs" / "main").write_text(COMMIT)
    given = recipe(tiny_model, masks={"source": "detector", "detector": f"grounding-dino:{folder}+someone/sam2"})
    dataset = pin_recipe(given)
    assert str(dataset.masks.detector_revision).endswith(f"+{COMMIT}")
    shutil.copytree(sam / "snapshots" / COMMIT, sam / "snapshots" / NEWER)
    (sam / "refs" / "main").write_text(NEWER)
    assert pin_recipe(given, dataset).fingerprint() == dataset.fingerprint()
    edit(folder / "config.json", more=1)
    assert pin_recipe(given, dataset).fingerprint() != dataset.fingerprint(), "another folder is noticed"


def test_mistyped_folder_is_suggested(offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd-15").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no folder models/sd15 \(did you mean models/sd-15\?\), and no hub"):
        pin_generator(GeneratorRecipe(model="models/sd15"))


def test_dataset_that_another_driver_creates_meanwhile_is_found(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recipe(tiny_model)
    for name, action in (("a", existing_recipe), ("b", lambda store: init_or_resume(store, expected))):
        store, created = Store(str(tmp_path / name)), []
        get = store.get

        def late(name: str, get: Any = get, store: Store = store, created: list[Any] = created) -> Any:
            data = get(name)
            if not created:
                created.append(init_or_resume(Store(store.address), expected))
            return data

        monkeypatch.setattr(store, "get", late)
        assert action(store) == created[0]


def test_dataset_without_receipts_can_be_restarted_with_another_recipe(tiny_model: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    first, second = recipe(tiny_model), recipe(tiny_model, seed=1)
    init_or_resume(store, first)
    store.create("train/000000.tar", b"written by a worker that was killed before the receipt")
    assert init_or_resume(store, second).fingerprint() == second.fingerprint()
    assert recipe_of(store).fingerprint() == second.fingerprint()
    assert not store.list("train")
    store.create("receipts/000000.json", b"{}")
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        init_or_resume(store, first)


@pytest.mark.parametrize(
    ("n", "earlier", "problem"),
    [
        (300, [], None),
        (300, [100], None),
        (300, [100, 200], None),
        (300, [50], r"earlier: \[100, 200\] -> \[50\]"),
        (300, [200], r"earlier: \[100, 200\] -> \[200\]"),
        (400, [100, 200, 300], None),
        (400, [100, 250], r"earlier: \[100, 200, 300\] -> \[100, 250\]"),
        (200, [50], "cannot shrink to 200"),
    ],
)
def test_earlier_sizes_of_a_recipe_must_be_those_of_the_dataset(
    n: int, earlier: list[int], problem: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    """They determine the shards. A recipe file that is older than an extension does not have the latest ones."""
    store = Store(str(tmp_path / "out"))
    first = recipe(tiny_model).model_copy(update={"n": 300, "earlier": (100, 200)})
    init_or_resume(store, first)
    store.create("receipts/000000.json", b"{}")
    given = first.model_copy(update={"n": n, "earlier": tuple(earlier)})
    if problem is None:
        assert init_or_resume(store, given, extend=True).earlier == (100, 200, 300)[: n // 100 - 1]
    else:
        with pytest.raises(UserError, match=problem):
            init_or_resume(store, given, extend=True)
        assert recipe_of(store).earlier == (100, 200)


def test_recipe_of_an_older_format_does_not_continue_a_dataset_of_this_one(tiny_model: Path, tmp_path: Path) -> None:
    """Its fields have another meaning, so their comparison proves nothing."""
    store = Store(str(tmp_path / "out"))
    given = recipe(tiny_model)
    init_or_resume(store, given)
    with pytest.raises(UserError, match="has format 2; this version"):
        prepare(given.model_copy(update={"format": 2}), store)


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
    given = recipe(model.format(file=file), generator=generator, masks={"source": "attention"})
    on_the_hub(COMMIT)
    created = pin_recipe(given)
    on_the_hub("f" * 40)
    assert pin_recipe(given, created) == pin_recipe(created, created) == created
    dataset: Any = SimpleNamespace(recipe=created, store=SimpleNamespace(address="oracle"))
    assert shared_recipe([dataset]) == created
    file.write_bytes(b"other weights")
    assert (pin_recipe(given, created) == created) is (model == "someone/tiny")


@pytest.mark.parametrize("n", [3, 30])
def test_dataset_without_receipts_can_be_restarted_with_another_size(tiny_model: Path, tmp_path: Path, n: int) -> None:
    store = Store(str(tmp_path / "out"))
    first = recipe(tiny_model)
    init_or_resume(store, first)
    restarted = init_or_resume(store, first.model_copy(update={"n": n}))
    assert (restarted.n, restarted.earlier) == (n, ())
    assert recipe_of(store) == restarted.model_copy(update={"store": recipe_of(store).store})
    store.create("receipts/000000.json", b"{}")
    with pytest.raises(UserError, match=f"was created with n = {n}"):
        init_or_resume(store, first)
