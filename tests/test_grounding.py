"""Oracle sets, the modules that learn from them, their training, and the grounders that come of it."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from factory.errors import UserError
from factory.generate import pinned
from factory.generator.capture import Capture
from factory.generator.interface import FEATURES, LATENT, MAPS, WORDS, Captured, Request
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleSet, OracleStream
from factory.grounder.folder import load_grounder
from factory.grounder.loss import binary_loss, competing_loss
from factory.grounder.modules.backbone import Backbone
from factory.grounder.modules.guided import GuidedModule, GuidedOptions
from factory.grounder.modules.paper import PaperModule
from factory.grounder.tally import IouTally
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.plan import Plan
from factory.produce.components import load_components
from factory.recipe import Recipe, make_recipe
from factory.store import Store
from factory.testing.sets import BandDetector, make_set
from factory.training.loop import TrainOptions, train
from factory.verify import verify
from factory.vocabulary import voc

SEEN = voc().seen("1")
EVERYTHING = frozenset({FEATURES, MAPS, WORDS, LATENT})
OPTIONS = TrainOptions(steps=12, batch=4, learning_rate=1e-3, ema_decay=0.5, checkpoint_every=3)


def _recipe(model: Path, **more: Any) -> Recipe:
    data = {
        "n": 16,
        "classes": "voc",
        "objects": {1: 0.5, 2: 0.5},
        "shard_size": 8,
        "batch": 4,
        "generator": {"model": str(model), "steps": 4, "guidance": 4.0},
        "masks": {"source": "detector", "capture": "sampling", "timesteps": [200]},
        "filters": {"min_area": None, "duplicate_distance": None, "max_border": None},
        "oracle": {"split": "1", "seen": list(SEEN)},
    }
    return pinned(make_recipe(data | more))


@pytest.fixture(scope="module")
def oracle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "set"
    make_set(_recipe(tiny_model), folder, BandDetector(voc().names))
    return folder


@pytest.fixture(scope="module")
def captured(tiny_model: Path) -> tuple[Captured, torch.Tensor]:
    """Of two prompts with two classes and one with one."""
    recipe = _recipe(tiny_model)
    prompts = sorted((s.prompt for s in Plan(recipe).shard(0).samples), key=lambda prompt: -len(prompt.classes))
    generator = PipelineGenerator(recipe, needs=EVERYTHING)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    read = generator.read(latents, 200, [prompts[0], prompts[1], prompts[-1]])
    return read, torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def _train(folder: Path, out: Path, module: str = "guided", stop_at: int | None = None) -> Path:
    task = GrounderTask([OracleSet(Store(str(folder)))], GrounderOptions(module=module), "cpu", OPTIONS.steps)
    if stop_at is not None:
        whole = task.loss

        def loss(step: int, batch: int, seed: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return whole(step, batch, seed)

        task.loss = loss  # type: ignore[method-assign]
    return train(task, OPTIONS, out, lambda text: None)


@pytest.fixture(scope="module")
def trained(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(oracle, tmp_path_factory.mktemp("trained"))


def test_an_oracle_set_is_sound_and_names_seen_classes_only(oracle: Path) -> None:
    report = verify(Store(str(oracle)))
    assert (report.samples, report.damaged, report.missing) == (16, {}, [])
    for sample in OracleSet(Store(str(oracle))).samples(0):
        assert set(sample.prompt.classes) <= set(SEEN)
        assert sample.latent.dtype == np.float16
        assert all((sample.labels == k).any() for k in range(1, len(sample.prompt.classes) + 1))


def test_the_latent_of_a_sample_gives_its_features_again(tiny_model: Path) -> None:
    recipe = _recipe(tiny_model)
    generator = PipelineGenerator(recipe, needs=EVERYTHING)
    planned = Plan(recipe).shard(0).samples[:3]
    made = generator.generate([Request(sample.prompt, sample.seed(0, 0)) for sample in planned])
    latents = torch.from_numpy(np.stack([one.latent for one in made if one.latent is not None])).float()
    read = generator.read(latents, made[0].timestep, [sample.prompt for sample in planned])
    for place, one in enumerate(made):
        for name, block in one.features.items():
            assert torch.allclose(read.features[name][place], block, atol=0.02)
        for name, maps in one.maps.items():
            assert torch.allclose(read.maps[name][place][:, : maps.shape[1]], maps, atol=1e-3)


def test_what_the_detector_does_not_find_is_left_out_and_what_it_doubts_is_ignored(tiny_model: Path) -> None:
    sure, unsure = BandDetector(SEEN[::2]), BandDetector(SEEN[1::2], score=0.4)

    class Both:
        def detect(self, images: Any) -> Any:
            return [a + b for a, b in zip(sure.detect(images), unsure.detect(images), strict=True)]

    recipe = _recipe(tiny_model, objects={2: 1.0}, attempts=1)
    parts = load_components(recipe, detector=Both())
    requests = [Request(s.prompt, 1) for s in Plan(recipe).shard(0).samples]
    grounded = parts.grounder.ground(parts.generator.generate(requests), [one.prompt for one in requests])
    left_out = 0
    for one, request in zip(grounded, requests, strict=True):
        wanted = [name for name in request.prompt.classes if name in SEEN[::2]]
        assert [instance.class_name for instance in one.instances] == wanted
        assert (one.ignore is not None) == (len(wanted) < 2)
        assert {row.class_name for row in one.detections} == set(request.prompt.classes)
        left_out += len(wanted) == 1
    assert left_out


def test_a_sample_in_which_nothing_is_found_is_rejected_with_its_reason(tiny_model: Path, tmp_path: Path) -> None:
    recipe = _recipe(tiny_model, n=4, shard_size=4, attempts=2)
    (receipt,) = make_set(recipe, tmp_path / "none", BandDetector(SEEN, score=0.1))
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
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith(".json"):
                data = json.dumps(json.loads(data) | {"classes": ["dog"]}).encode()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    store.delete("train/000000.tar")
    store.create("train/000000.tar", stream.getvalue())
    with pytest.raises(UserError, match="names dog, which split 1 leaves unseen"):
        list(OracleSet(store).samples(0))


def test_a_set_whose_recipe_was_changed_is_refused(oracle: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "changed"))
    for name in Store(str(oracle)).list(""):
        store.create(name, Store(str(oracle)).get(name) or b"")
    text = (store.get("recipe.yaml") or b"").decode().replace("  - bird", "  - dog")
    store.swap("recipe.yaml", text.encode(), store.get("recipe.yaml"))
    with pytest.raises(UserError, match="was made by another recipe"):
        OracleSet(store)


def test_a_recipe_of_an_oracle_that_leaks_is_refused(tiny_model: Path) -> None:
    row = {"text": "a dog", "classes": {"dog": "dog"}}
    with pytest.raises(UserError, match=r"names \['dog'\], which its split leaves unseen"):
        _recipe(tiny_model, prompts=[row])
    with pytest.raises(UserError, match="takes features from one timestep"):
        _recipe(tiny_model, masks={"source": "detector", "timesteps": [100, 300]})
    with pytest.raises(UserError, match="takes masks from the detector"):
        _recipe(tiny_model, masks={"source": "attention"})


def test_an_ordinary_set_is_no_oracle(tiny_recipe: Recipe, tmp_path: Path) -> None:
    make_set(tiny_recipe, tmp_path / "plain")
    with pytest.raises(UserError, match="is no oracle set but one of images with masks"):
        OracleSet(Store(str(tmp_path / "plain")))


def test_the_papers_module_has_the_papers_size_on_stable_diffusion() -> None:
    """Both guidance halves joined: 15360, 14080, 8320 and 5120 channels; 18.8 M parameters."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        capture = Capture(unet, frozenset({FEATURES}))
        with capture.watching(1), torch.no_grad():
            unet(torch.empty(1, 4, 64, 64), torch.tensor(1), torch.empty(1, 77, 768))
    one = Backbone.of(Captured(capture.blocks, {}, torch.empty(1, 1, 768)))
    assert len(one.blocks) == 25
    both = replace(one, blocks={name: (2 * channels, level) for name, (channels, level) in one.blocks.items()})
    assert {level: both.channels(level) for level in both.levels()} == {8: 15360, 4: 14080, 2: 8320, 1: 5120}
    with torch.device("meta"):
        module = PaperModule(both)
    assert [block.body[0].num_features for block in module.mix] == [48, 112, 240]
    assert module.tokens.in_features == 3840
    assert round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1) == 18.8


def _spreading(backbone: Backbone) -> GuidedModule:
    return GuidedModule(backbone, GuidedOptions(spread=True))


@pytest.mark.parametrize("kind", [PaperModule, GuidedModule, _spreading])
def test_an_image_has_the_same_masks_alone_and_in_a_batch(captured: Any, kind: Any) -> None:
    read, pictures = captured
    module = kind(Backbone.of(read)).eval()
    with torch.no_grad():
        together = module(read, pictures)
        assert together.shape == (3, 2, 64, 64)
        for place, classes in enumerate((2, 2, 1)):
            part = Captured(
                {name: block[place : place + 1] for name, block in read.features.items()},
                {name: maps[place : place + 1, :, :classes] for name, maps in read.maps.items()},
                read.words[place : place + 1, :classes],
            )
            alone = module(part, pictures[place : place + 1])
            assert torch.allclose(alone[0], together[place, :classes], atol=1e-4)


def test_a_class_that_was_not_found_and_pixels_that_are_ignored_teach_nothing() -> None:
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[:, :4], labels[:, 4:6] = 1, 255
    found = torch.tensor([[True, False], [True, True]])
    for loss in (competing_loss, binary_loss):
        (gradient,) = torch.autograd.grad(loss(logits, labels, found), logits)
        assert (gradient[0, 1] == 0).all()
        assert (gradient[:, :, 4:6] == 0).all()
        assert (gradient[1, 1, 6:] != 0).all()


def test_the_stream_is_the_same_from_any_step_on(oracle: Path) -> None:
    def keys(stream: OracleStream, step: int) -> list[str]:
        return [row.key for row in stream.batch(step)]

    opened = OracleSet(Store(str(oracle)))
    whole = OracleStream([opened], 5, 0, 0.1)
    batches = [keys(whole, step) for step in range(12)]
    assert keys(OracleStream([opened], 5, 0, 0.1), 7) == batches[7]
    held_out = set(opened.keys(True, 0.1))
    assert held_out
    assert not held_out & {key for batch in batches for key in batch}
    first = [key for batch in batches for key in batch][: whole.size]
    assert len(set(first)) == whole.size


@pytest.mark.parametrize("module", ["guided", "paper"])
def test_a_training_that_was_cut_off_ends_in_the_same_grounder(oracle: Path, tmp_path: Path, module: str) -> None:
    whole = load_grounder(_train(oracle, tmp_path / "whole", module))[0].state_dict()
    with pytest.raises(KeyboardInterrupt):
        _train(oracle, tmp_path / "cut", module, stop_at=8)
    resumed = load_grounder(_train(oracle, tmp_path / "cut", module))[0].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_trained_grounder_masks_what_generate_makes(trained: Path, tiny_model: Path) -> None:
    recipe = pinned(
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


def timestep_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["timestep"])


def test_a_grounder_of_another_backbone_is_refused(trained: Path, tmp_path: Path, tiny_model: Path) -> None:
    data = {"n": 4, "classes": "voc", "masks": {"source": str(trained)}}
    with pytest.raises(UserError, match="the features are others"):
        pinned(make_recipe(data))


def test_a_grounder_that_was_cut_short_is_told(trained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "README.md", "metrics.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="does not hold this grounder"):
        load_grounder(tmp_path)
    with pytest.raises(UserError, match="there are no masks from"):
        pinned(make_recipe({"n": 4, "masks": {"source": str(tmp_path / "nowhere")}}))


def test_the_card_and_the_config_say_what_the_grounder_saw(trained: Path, oracle: Path) -> None:
    config = load_grounder(trained)[1]
    assert config.classes_seen == SEEN
    assert config.data == (OracleSet(Store(str(oracle))).recipe.fingerprint(),)
    card = (trained / "README.md").read_text()
    assert all(name in card for name in SEEN)
    assert config.revision in card


def test_iou_is_pooled_by_class_and_ignores_what_is_ignored() -> None:
    tally = IouTally()
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
    from factory.grounder.protocol import GROUPS, as_markdown, protocol_1, write_results

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train opens Ray Data, which uses fields of its own
def test_two_processes_train_what_one_does(oracle: Path, tmp_path: Path) -> None:
    """Through Ray Train, each with half of every batch."""
    from factory.engine.train import train_on_several
    from factory.grounder.run import Run, train_here
    from factory.recipe_parts import EngineRecipe

    run = Run((str(oracle),), str(tmp_path / "one"), steps=6, batch=4, threads=1)
    one = load_grounder(train_here(run, lambda text: None))[0].state_dict()
    again = replace(run, out=str(tmp_path / "two"))
    two = load_grounder(train_on_several(train_here, again, 2, EngineRecipe()))[0].state_dict()
    with pytest.raises(UserError, match="does not part evenly"):
        train_on_several(train_here, replace(run, batch=5), 2, EngineRecipe())
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=5e-3), name


def command(*arguments: str) -> Any:
    from typer.testing import CliRunner

    from factory.cli.main import app

    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--classes", "voc", "--n", "4"], "which classes are seen"),
        (
            ["--classes", "voc", "--n", "4", "--split", "9"],
            "There is no split '9' of voc; its splits are: 1, 2, 3, zs3",
        ),
        (["--classes", "dog,cat", "--n", "4", "--split", "1"], "There is no split '1' of custom; its splits are: none"),
        (["--classes", "voc", "--n", "4", "--split", "nowhere.txt"], "there is no split file nowhere.txt"),
    ],
)
def test_a_split_that_there_is_not_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    result = command("bootstrap-oracle", "--shards", tmp_path / "set", *arguments)
    assert isinstance(result.exception, UserError)
    assert told in str(result.exception)
    assert not (tmp_path / "set").exists()


def test_a_split_file_names_unseen_classes(tmp_path: Path) -> None:
    from factory.cli.options import assemble

    path = tmp_path / "mine.txt"
    options = {"classes": "voc", "n": 4, "masks": "detector", "timesteps": [80], "split": str(path)}
    path.write_text("# mine\ndog\ntv\n\n")
    recipe = assemble(None, None, options)
    assert recipe.oracle is not None
    assert recipe.oracle.split == "mine"
    assert set(voc().names) - set(recipe.oracle.seen) == {"dog", "tvmonitor"}
    path.write_text("dgo\n")
    with pytest.raises(UserError, match="There is no class 'dgo' in voc; did you mean dog"):
        assemble(None, None, options)
    path.write_text("\n".join(voc().names))
    with pytest.raises(UserError, match="leaves 0 classes seen and 20 unseen"):
        assemble(None, None, options)


def test_oracles_of_another_backbone_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    for name, timestep in (("one", 200), ("two", 500)):
        masks = {"source": "detector", "capture": "sampling", "timesteps": [timestep]}
        make_set(_recipe(model, n=4, masks=masks), tmp_path / name, BandDetector(voc().names))
    sets = [OracleSet(Store(str(tmp_path / name))) for name in ("one", "two")]
    with pytest.raises(UserError, match="is another kind of oracle"):
        GrounderTask(sets, GrounderOptions(), "cpu", 1)
    with (model / "unet" / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(UserError, match="the model there now is of revision"):
        GrounderTask(sets[:1], GrounderOptions(), "cpu", 1)


def test_a_checkpoint_that_was_cut_short_is_told(oracle: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(oracle, tmp_path, stop_at=8)
    data = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        _train(oracle, tmp_path)


def test_train_and_evaluate_grounder_tell_what_is_missing(tmp_path: Path) -> None:
    result = command("train-grounder", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert isinstance(result.exception, UserError)
    assert "holds no set" in str(result.exception)
    result = command("evaluate-grounder", tmp_path / "nowhere")
    assert isinstance(result.exception, UserError)
    assert "there are no masks from" in str(result.exception)
