"""`factory train-segmenter` and `factory evaluate-segmenter`: what they pass on and what they print."""

import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from factory.config.sections import EngineRecipe
from factory.config.vocabulary import coco, from_names, voc
from factory.errors import UserError
from factory.labelled.folders import open_labelled
from factory.segmenter import measure, run
from factory.segmenter.classes import common_vocabulary
from factory.segmenter.data import DatasetSource
from factory.segmenter.evaluate import SegmenterScore, score
from factory.segmenter.model import new_segmenter, save_segmenter
from factory.segmenter.training import SegmenterTask
from factory.training import distributed
from factory.training.loop import STOP
from tests.support.export_datasets import make_dataset
from tests.support.in_process import invoke, output
from tests.support.tiny_segmenter import saved_tiny, tiny
from tests.support.voc_folder import write_folder


def test_segmenter_is_measured_on_a_folder(tmp_path: Path) -> None:
    model, folder = saved_tiny(tmp_path / "model"), write_folder(tmp_path / "voc")
    data = json.loads(output("evaluate-segmenter", model, "--real", folder, "--split", "1", "--threads", 1, "--json"))
    assert (data["images"], len(data["by_class"])) == (1, 21)
    assert data["by_class"]["dog"] is not None


def test_a_file_defines_the_unseen_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages advised a file where only names of splits were accepted."""
    model, folder = saved_tiny(tmp_path / "model"), write_folder(tmp_path / "voc")
    (tmp_path / "mine.txt").write_text("# of mine\ndog\ntv\n")
    given, unseen = ["--real", folder, "--split", tmp_path / "mine.txt"], list[tuple[str, ...]]()
    score = SegmenterScore({}, 0, 0, 0, 0, 1)
    monkeypatch.setattr(measure, "evaluate", lambda model, images, names, *rest: unseen.append(names) or score)
    output("evaluate-segmenter", model, *given)
    assert unseen == [("dog", "tvmonitor")]
    training = run.SegmenterTraining(str(tmp_path / "out"), real=str(folder), real_set="val", real_classes="seen")
    with pytest.raises(UserError, match=r"there is no split file mine\.txt; give a file with one unseen class"):
        run.check(replace(training, split="mine.txt"))
    (tmp_path / "mine.txt").write_text("cow\n")
    monkeypatch.chdir(tmp_path)
    (source,) = run.check(replace(training, split="mine.txt").absolute()).sources
    assert source.size == 1


def test_scores_are_printed_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    score = SegmenterScore({"background": 0.5, "dog": 0.25, "cat": math.nan}, 0.375, 0.25, math.nan, math.nan, 7)
    monkeypatch.setattr(measure, "evaluate_here", lambda *arguments: score)
    lines = output("evaluate-segmenter", "model", "--real", "voc", "--split", "1").splitlines()
    assert [line.split() for line in lines] == [
        ["background", "50.0"],
        ["dog", "25.0"],
        ["cat", "none"],
        ["mIoU", "with", "background", "37.5", "over", "7", "images"],
        ["seen", "25.0", "unseen", "none", "harmonic", "mean", "none"],
    ]
    assert "seen" not in output("evaluate-segmenter", "model", "--real", "voc")


def test_training_gets_the_options_and_names_the_next_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = list[tuple[Any, ...]]()
    monkeypatch.setattr(run, "train_here", lambda options, report: runs.append((options,)) or Path("m"))
    monkeypatch.setattr(distributed, "train_on_several", lambda train, *rest: runs.append(rest) or Path("m"))
    monkeypatch.setattr(run, "check", lambda options: None)
    options = ["--classes", "coco", "--train-steps", 5, "--annotations", "a.json", "--start", "s"]
    text = output("train-segmenter", "set", "--out", "out", "--real", "r", *options)
    assert text == "Evaluate it with `factory evaluate-segmenter m --real VOC_FOLDER`.\n"
    output("train-segmenter", "set", "--out", "out", "--devices", 2, "--batch", 8, "--address", "auto")
    (here,), (several, devices, engine) = runs
    assert (here.shards, here.steps, here.annotations, here.start, here.real) == (("set",), 5, "a.json", "s", "r")
    assert (several.out, several.batch, devices) == (str(Path("out").absolute()), 8, 2)
    assert engine == EngineRecipe(address="auto")


def test_progress_of_a_training_goes_to_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "train_here", lambda options, report: report("step 1") or Path("m"))
    monkeypatch.setattr("factory.stickers.recipes.run_recipe", lambda *args, report, **options: report("step 1"))
    for command in (["train-segmenter", "set", "--out", "out"], ["stickers", "train", "judge"]):
        result = invoke(*command)
        assert result.stderr == "step 1\n"
        assert "step" not in result.stdout


def test_only_real_images_of_seen_classes_require_a_valid_choice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--real-classes must be all or seen, got 'few'"):
        run.train_here(run.SegmenterTraining(str(tmp_path / "out"), real_classes="few", device="cpu"))


def test_classes_that_a_segmenter_does_not_know_are_not_blamed_on_an_option(tmp_path: Path) -> None:
    """The message asked for --classes, which the command then refused: they must be those of the segmenter."""
    folder = write_folder(tmp_path / "voc")
    (folder / "labels.txt").write_text("background\ndog\naxolotl\n")
    with pytest.raises(UserError, match="to evaluate a segmenter, train it with these classes"):
        measure.evaluate_here(saved_tiny(tmp_path / "model"), measure.RealImages(folder))


@pytest.mark.parametrize("batch", [None, 7])
def test_batch_must_be_divisible_by_the_devices(batch: int | None) -> None:
    options: Any = SimpleNamespace(out="out", batch=batch, threads=0)
    with pytest.raises(UserError, match="is not divisible by the 2 devices; choose a multiple of 2"):
        distributed.train_on_several(lambda run: Path(), options, 2, EngineRecipe())


def test_training_on_several_devices_is_stopped_by_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[bool]()

    @contextmanager
    def stopped() -> Any:
        yield lambda: True

    class Trainer:
        def fit(self) -> None:
            for _ in range(100):
                if (out / STOP).exists():
                    break
                distributed.threading.Event().wait(0.02)
            seen.append((out / STOP).exists())

    monkeypatch.setattr(distributed, "stop_requests", stopped)
    with pytest.raises(KeyboardInterrupt):
        distributed._fit(Trainer(), out, lambda stopping: None)
    assert seen == [True]
    assert not (out / STOP).exists()


def test_failed_training_on_several_devices_raises_its_error(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("lost")

    distributed._fit(SimpleNamespace(fit=lambda: None), tmp_path, lambda stopping: None)
    with pytest.raises(RuntimeError, match="lost"):
        distributed._fit(SimpleNamespace(fit=fail), tmp_path, lambda stopping: None)


def test_process_of_a_training_uses_its_device_and_ends_quietly_when_stopped() -> None:
    devices = list[str]()

    def train_here(options: run.SegmenterTraining) -> None:
        devices.append(options.device)
        raise KeyboardInterrupt

    options = run.SegmenterTraining("out", device="auto")
    distributed._train_process({"gpus": False, "run": options, "train_here": train_here})
    assert devices == ["cpu"]


def test_images_that_are_listed_twice_are_reported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "voc")
    (folder / "ImageSets/Segmentation/val.txt").write_text("a\na\n")
    messages = list[str]()
    measure.open_test(measure.RealImages(folder), voc(), messages.append)
    assert messages == [f"The image set val of {folder} lists 1 images more than once."]


def test_unusable_sources_and_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = make_dataset(tmp_path / "set", shards=range(0))
    with pytest.raises(UserError, match="has no samples yet; generate some with `factory generate --shards "):
        DatasetSource(store, voc())
    other = make_dataset(tmp_path / "other", shards=range(1))[0]
    with pytest.raises(UserError, match=r"the segmenter would not learn: .*\. Give all classes .* --classes "):
        DatasetSource(other, from_names(["axolotl"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is not a segmentation model \(.*give segformer, maskformer"):
        new_segmenter(str(tmp_path / "empty"), ["background", "dog"])
    model = tiny("segformer")
    monkeypatch.setattr(model, "_scores", lambda images: torch.full((len(images), 21, 40, 60), math.nan))
    with pytest.raises(UserError, match="predicts NaN or infinity; train it again"):
        score(model, open_labelled(write_folder(tmp_path / "voc"), "val", None, voc()))


def test_a_hub_that_does_not_answer_is_not_a_wrong_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message was "nvidia/mit-b0 is not a segmentation model"."""

    def unreachable(source: str) -> None:
        raise OSError("We couldn't connect to the hub.")

    monkeypatch.setattr("factory.segmenter.model.AutoConfig", SimpleNamespace(from_pretrained=unreachable))
    with pytest.raises(UserError, match=r"^owner/name can be read neither from the hub nor .*\(We couldn't .* hub\); "):
        new_segmenter("owner/name", ["background", "dog"])


def test_training_starts_with_the_weights_of_a_segmenter(tmp_path: Path) -> None:
    start = tiny("segformer")
    save_segmenter(start, tmp_path / "start", {})
    task: Any = SimpleNamespace(vocabulary=voc(), model=tiny("segformer"))
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), task.model.parameters(), strict=True))
    SegmenterTask.load(task, tmp_path / "start")
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), task.model.parameters(), strict=True))


def test_classes_are_those_of_the_data_by_default(tmp_path: Path) -> None:
    for name, classes in (("one", "coco"), ("two", ["axolotl", "dog"]), ("three", ["dog", "axolotl"])):
        make_dataset(tmp_path / name, shards=range(1), classes=classes)
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))

    def learned(*datasets: str, **options: Any) -> tuple[str, ...]:
        return run.check(run.SegmenterTraining(str(tmp_path / "out"), datasets, **options)).vocabulary.names

    assert learned(one) == coco().names
    assert learned(two, three) == ("axolotl", "dog")
    assert learned(one, two, classes=",".join(["axolotl", *coco().names]))[0] == "axolotl"
    folder = write_folder(tmp_path / "voc")
    assert learned(real=str(folder), real_set="val") == voc().names
    with pytest.raises(UserError, match=r"two has other classes than .*one \(such as axolotl, person, "):
        learned(one, two)
    start = saved_tiny(tmp_path / "start")
    assert learned(real=str(folder), real_set="val", start=str(start)) == voc().names
    with pytest.raises(UserError, match="one has 60 classes that the segmenter would not learn"):
        learned(one, start=str(start))
    with pytest.raises(UserError, match=r"start was trained for other classes than --classes gives \(such as truck"):
        learned(one, start=str(start), classes="coco")


def test_a_resumed_training_has_the_classes_of_its_start(tmp_path: Path) -> None:
    """They became those of the dataset, so that the same command rejected its checkpoint as one of another run."""
    make_dataset(tmp_path / "set", shards=range(1), classes=["dog", "cat"])
    start = saved_tiny(tmp_path / "start")
    training = run.SegmenterTraining(str(tmp_path / "out"), (str(tmp_path / "set"),), start=str(start))
    assert run.check(training).vocabulary.names == voc().names
    (tmp_path / "out").mkdir()
    (tmp_path / "out/checkpoint.pt").touch()
    assert run.check(training).vocabulary.names == voc().names
    shutil.rmtree(start)
    assert run.check(training).vocabulary.names == ("dog", "cat")


def test_a_dataset_of_generated_images_is_not_real(tmp_path: Path) -> None:
    """It took the share of the labelled images, without a message."""
    make_dataset(tmp_path / "set", shards=range(1), classes=["dog", "cat"])
    dataset = str(tmp_path / "set")
    with pytest.raises(UserError, match=r"--real .*set is a dataset of generated images; give it without --real"):
        run.check(run.SegmenterTraining(str(tmp_path / "out"), (dataset,), real=dataset))


def test_a_segmenter_is_evaluated_with_its_own_classes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for vocabulary in (voc(), coco(), from_names(["dog", "axolotl"])):
        (folder / "segmenter.json").write_text(json.dumps({"names": ["background", *vocabulary.names]}))
        assert common_vocabulary([folder], None) == vocabulary
    assert common_vocabulary([folder], "dog,axolotl").names == ("dog", "axolotl")
    with pytest.raises(UserError, match=r"model was trained for other classes than --classes gives \(such as aero"):
        common_vocabulary([folder], "voc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": "background"}, "its names are not a list of texts"),
        ({"names": ["background", "dog"], "run": {"side": "128"}}, "its side is '128', not a number of pixels"),
        ({"names": ["background", "dog"], "run": {"side": 0}}, "its side is 0, not a number of pixels"),
    ],
)
def test_invalid_values_of_a_segmenter_are_named(content: dict[str, object], message: str, tmp_path: Path) -> None:
    """A wrong side ended in a traceback, after the labelled images had been read."""
    (tmp_path / "segmenter.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"is not a segmenter folder \({message}\)"):
        common_vocabulary([tmp_path], None)
