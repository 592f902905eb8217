"""`factory stickers draw`, `evaluate` and `train`, with a model and a detector that need no weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factory.config.stickers import EMBEDDED_MODELS
from factory.config.vocabulary import coco
from factory.errors import TransientError, UserError
from factory.files.embedded_models import pipeline_folder
from factory.files.lock import sole_writer
from factory.stickers import contact_sheet, embedded, evaluate, recipes, train_autoencoder, train_detector
from factory.stickers.detector import DetectedInstance
from factory.stickers.evaluate_parts import RoundTrip
from tests.support import in_process

NAMES = coco().names
MISSED = "cat"
"""The class that the detector does not find."""


def drawn(prompt: str) -> Image.Image:
    """A square for each class of a caption; its red value is the number of the class."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 2] = len(prompt)
    named = sorted((name for name in NAMES if f" {name}" in f"{prompt} "), key=len)
    named = [name for name in named if not any(name != other and name in other for other in named)]
    for place, name in enumerate(named):
        pixels[8:30, 4 + 32 * place : 26 + 32 * place, 0] = NAMES.index(name) + 1
    return Image.fromarray(pixels)


class RedDetector:
    """Finds the squares of `drawn`, except those of one class."""

    def detect(self, pictures: Sequence[Image.Image]) -> list[list[DetectedInstance]]:
        found = []
        for picture in pictures:
            red = np.asarray(picture)[..., 0]
            names = {int(value): NAMES[value - 1] for value in np.unique(red) if value}
            found.append(
                [DetectedInstance(name, 0.9, (0, 0, 1, 1), red == k) for k, name in names.items() if name != MISSED]
            )
        return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the models; the options of each call of the sampler."""
    made = list[dict[str, Any]]()

    def sample(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> list[Image.Image]:
        progress: Callable[[int], None] = options.pop("progress", lambda done: None)
        made.append(asdict(options["sampling"]) | {"prompts": list(prompts)})
        progress(len(prompts))
        return [drawn(prompt) for prompt in prompts]

    for module in (evaluate, contact_sheet):
        monkeypatch.setattr(module, "sample", sample)
    for module in (embedded, contact_sheet):
        monkeypatch.setattr(module, "open_pipeline", lambda model: SimpleNamespace(vae=None))
        monkeypatch.setattr(module, "open_detector", lambda folder=None: RedDetector())
    monkeypatch.setattr(embedded, "model_digests", lambda *models: {"models": repr(models)})
    ious = dict.fromkeys(NAMES, 0.5) | {"dog": 1.0}
    monkeypatch.setattr(evaluate, "mask_iou", lambda detector, styles, scenes, report: ious)
    monkeypatch.setattr(evaluate, "round_trip", lambda *arguments: RoundTrip(80, 31.5, 0.99, 0.98, 0.25))
    monkeypatch.setattr(evaluate, "_VARIETY_CLASSES", ("dog",))
    monkeypatch.setattr(evaluate, "_VARIETY_IMAGES", 2)
    monkeypatch.setattr(evaluate, "_MEMORISATION_SCENES", 2)
    scene = evaluate.training_scene((1, 1), ("dog",))
    other = evaluate.training_scene((1, 2), ("bus",))
    monkeypatch.setattr(evaluate, "training_scene", lambda seed, names: other if seed[1] % 2 else scene)
    return made


def invoke(*arguments: object) -> Any:
    return in_process.invoke("stickers", *arguments)


def detector_in(folder: Path) -> Path:
    """A folder that looks like a detector."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("areas", "scores", "twice"),
    [((100, 30), (0.9, 0.5), 1.0), ((100, 29), (0.9, 0.9), 0.0), ((100, 90), (0.9, 0.49), 0.0), ((100,), (0.9,), 0.0)],
)
def test_a_class_with_two_confident_instances_of_similar_areas_is_drawn_twice(
    areas: tuple[int, ...], scores: tuple[float, ...], twice: float
) -> None:
    masks = [np.arange(400).reshape(20, 20) < area for area in areas]
    dogs = [DetectedInstance("dog", score, (0, 0, 1, 1), mask) for score, mask in zip(scores, masks, strict=True)]
    cat = DetectedInstance("cat", 0.9, (0, 0, 1, 1), masks[0])
    detector: Any = SimpleNamespace(detect=lambda pictures: [[*dogs, cat]] * len(pictures))
    blank = Image.new("RGB", (20, 20))
    images = evaluate.DrawnImages({"dog": [blank], "cat": [blank]}, [(("dog", "cat"), blank), (("cat", "bus"), blank)])
    found = evaluate.found_in(detector, images)
    assert (found.single_drawn_twice, found.pair_drawn_twice) == (twice / 2, twice / 2)


def test_models_are_evaluated_and_the_tables_written(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    detector_in(Path("second"))
    page, out = tmp_path / "page.md", tmp_path / "out"
    options = ["--images-per-class", 1, "--pairs", 3, "--scenes", 80, "--judge", "second", "--table", page]
    result = invoke("evaluate", "--out", out, *options, "--steps", 2, "--guidance", 1)
    assert result.exit_code == 0, repr(result.exception)
    assert {tuple(call[name] for name in ("steps", "guidance", "schedule")) for call in calls} == {(2, 1.0, "constant")}
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["found"]["one_object"] == figures["found_by_judge"]["one_object"] == round(79 / 80, 4)
    assert (figures["found"]["one_object_by_class"][MISSED], figures["found"]["both_of_two"]) == (0.0, 1.0)
    assert figures["mirrored_agreement"] == 1.0
    assert figures["mask_miou_train"] == round((79 * 0.5 + 1) / 80, 4)
    with Image.open(out / "classes.png") as sheet:
        assert sheet.size == (16 * 64, 5 * 64)
    text = page.read_text()
    assert text.count("<!-- evaluation -->") == text.count("<!-- evaluation-classes -->") == 2
    command = (
        "`factory stickers evaluate --judge second --images-per-class 1 --pairs 3 --scenes 80 --steps 2 --guidance 1"
    )
    assert text.count(f"{command} --guidance-schedule constant` printed this table.") == 2
    for row in (
        "| one object: class found, score >= 0.5, mean of 80 classes | 98.8% | >= 98 % |",
        "| classes found in under 85 % of their images | 1 | 0 |",
        "| a class is drawn twice: images of one object, of two objects | 0.0%, 0.0% |  |",
        "| the second judge: two objects | 100.0% |  |",
        "| autoencoder, objects still found: one, two | 99.0%, 98.0% | >= 99 % |",
        "| dog | 100% | 1.00 | 1.00 |",
        "| cat | 0% | 0.50 | 0.50 |",
    ):
        assert row in text
    assert "Found least often: cat 0%, " in text
    assert text.split("-->\n")[1].removesuffix("<!-- evaluation ") in result.stdout


def test_interrupted_evaluation_resumes_with_the_same_models(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    out, whole = tmp_path / "out", tmp_path / "whole"
    options = ["--images-per-class", 1, "--pairs", 26, "--scenes", 80]
    assert invoke("evaluate", "--out", whole, *options).exit_code == 0
    whole_calls = len(calls)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "round_trip", interrupt)
        assert invoke("evaluate", "--out", out, *options).exit_code != 0
    assert not (out / "evaluation.json").exists()
    (out / "partial/pair-00025.png").unlink()
    interrupted = len(calls)
    assert invoke("evaluate", "--out", out, *options).exit_code == 0
    resumed = [call["prompts"] for call in calls[interrupted:]]
    assert [len(prompts) for prompts in resumed] == [1, 2]
    figures = [json.loads((folder / "evaluation.json").read_text()) for folder in (whole, out)]
    for measured in figures:
        del measured["seconds_for_100_images"], measured["peak_memory_mib"]
    assert figures[0] == figures[1]
    assert not (out / "partial").exists()
    assert len(calls) == 2 * whole_calls + 1

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "round_trip", interrupt)
        invoke("evaluate", "--out", out, *options)
    repeated = len(calls)
    assert invoke("evaluate", "--out", out, *options, "--detector", detector_in(tmp_path / "other")).exit_code == 0
    assert len(calls) == repeated + whole_calls


def test_only_found_classes_are_measured_as_the_model_is_used(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    options = ["--found-only", "--pipeline", "stickers-turbo", "--images-per-class", 1, "--pairs", 1, "--json"]
    result = invoke("evaluate", "--out", tmp_path, *options, "--judge", detector_in(tmp_path / "second"))
    assert result.exit_code == 0, repr(result.exception)
    figures = json.loads(result.stdout)
    assert figures["found"]["one_object"] == figures["found_by_judge"]["one_object"] == pytest.approx(79 / 80)
    usual = EMBEDDED_MODELS["stickers-turbo"]
    expected = {(usual.steps, usual.guidance, usual.schedule)}
    assert {tuple(call[name] for name in ("steps", "guidance", "schedule")) for call in calls} == expected
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize("metrics", [None, "{"])
def test_images_without_readable_metrics_are_not_those_of_the_models(
    calls: list[dict[str, Any]], metrics: str | None, tmp_path: Path
) -> None:
    """An interrupted deletion of the images of other models leaves some, perhaps without the file that names them."""
    (tmp_path / "partial").mkdir()
    for number in range(25):
        Image.new("RGB", (64, 64)).save(tmp_path / f"partial/single-{number:05d}.png")
    if metrics is not None:
        (tmp_path / "partial/metrics.json").write_text(metrics)
    result = invoke("evaluate", "--out", tmp_path, "--found-only", "--images-per-class", 1, "--pairs", 1)
    assert json.loads(result.stdout)["found"]["one_object"] == pytest.approx(79 / 80)


def test_one_process_at_a_time_evaluates_in_a_folder(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    """The default folder is the same for all models: a second evaluation took images of the first for its own."""
    with sole_writer(tmp_path / "evaluation.lock", tmp_path):
        result = invoke("evaluate", "--out", tmp_path, "--found-only")
    assert isinstance(result.exception, TransientError), repr(result.exception)
    assert not calls


@pytest.mark.parametrize("index", ["{}", "[]", "{"])
def test_folder_of_no_pipeline_is_refused(index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scheduler was read before it was checked."""
    monkeypatch.setattr(embedded, "open_detector", lambda folder: RedDetector())
    (tmp_path / "model_index.json").write_text(index)
    result = invoke("evaluate", "--out", tmp_path / "out", "--pipeline", tmp_path)
    assert isinstance(result.exception, UserError), repr(result.exception)
    assert f"{tmp_path}/model_index.json " in str(result.exception)


@pytest.mark.parametrize("option", [["--scenes", "80"], ["--table", "page.md"]])
def test_options_of_the_whole_evaluation_are_rejected_with_found_only(option: list[str], tmp_path: Path) -> None:
    result = invoke("evaluate", "--out", tmp_path / "out", "--found-only", *option)
    assert f"{option[0]} has no effect with --found-only" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_images_are_drawn_beside_their_masks(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.jpg"
    result = invoke("draw", "--classes", "dog,cat,bus", "--n", 12, "--pairs", "--out", out)
    assert result.exit_code == 0, repr(result.exception)
    assert result.stdout == f"12 images, all prompted classes found in 4; left: image, right: masks.\n{out}\n"
    pairs = [set(prompt.split(" ")) & {"dog", "cat", "bus"} for prompt in calls[0]["prompts"]]
    assert pairs[:3] == [{"dog", "cat"}, {"cat", "bus"}, {"bus", "dog"}]
    assert all(len(pair) == 2 for pair in pairs), "every third pass over the classes drew only one per image"
    assert calls[0]["steps"] == EMBEDDED_MODELS["stickers"].steps
    with Image.open(out) as sheet:
        assert (sheet.format, sheet.width) == ("JPEG", 5 * 2 * 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "sheet.tiff"], "--out must end in .png, .jpg, .jpeg, .webp, got sheet.tiff."),
        (["--out", "FOLDER/x.png"], "x.png is a folder; give the path of an image file."),
        (["--out", "FOLDER/file/y.png"], "cannot be written: "),
        (["--classes", "dog", "--pairs"], "2 classes per image require at least as many in --classes, got dog."),
        (["--classes", "unicorn"], "do not know 'unicorn'"),
    ],
)
def test_sheet_that_could_not_be_drawn_is_refused_before_the_work(
    calls: list[dict[str, Any]], options: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.png").mkdir()
    (tmp_path / "file").write_text("")
    result = invoke("draw", *(option.replace("FOLDER", str(tmp_path)) for option in options))
    assert isinstance(result.exception, UserError), repr(result.exception)
    assert message in str(result.exception)
    assert not calls


def test_training_takes_models_from_its_folder_or_the_embedded_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, runs = list[tuple[Any, ...]](), list[tuple[Any, ...]]()

    def task(name: str) -> Callable[..., Any]:
        def make(*arguments: Any, **options: Any) -> Any:
            made.append((name, *arguments, *options.values()))
            return SimpleNamespace(name=name)

        return make

    monkeypatch.setattr(train_autoencoder, "AutoencoderTask", task("autoencoder"))
    monkeypatch.setattr(train_detector, "DetectorTask", task("judge"))
    monkeypatch.setattr(recipes, "train", lambda task, options, out, report: runs.append((task.name, options, out)))
    for part, options in (("autoencoder", ["--steps", 7, "--device", "auto"]), ("judge", ["--batch", 3, "--seed", 5])):
        assert invoke("train", part, "--out", tmp_path, *options).exit_code == 0
    (tmp_path / "file").write_text("")
    assert "file is not a folder" in str(invoke("train", "judge", "--out", tmp_path / "file").exception)
    (tmp_path / "autoencoder/model").mkdir(parents=True)
    assert invoke("train", "judge", "--out", tmp_path).exit_code == 0
    assert made == [
        ("autoencoder", "cuda" if torch.cuda.is_available() else "cpu"),
        ("judge", "cpu", pipeline_folder() / "vae", True),
        ("judge", "cpu", tmp_path / "autoencoder/model", True),
    ]
    assert [(options.steps, options.batch, options.seed) for _, options, _ in runs] == [
        (7, 8, 0),
        (4000, 3, 5),
        (4000, 32, 0),
    ]
    assert [out for *_, out in runs] == [tmp_path / name for name in ("autoencoder", "judge", "judge")]


@pytest.mark.parametrize(("part", "first"), [("judge", "judge"), ("turbo", "turbo-8")])
def test_training_that_is_resumed_does_not_need_its_start(
    part: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, start = list[Path](), tmp_path / "moved away"
    monkeypatch.setattr(recipes, "run_recipe", lambda part, out, **options: starts.append(options["start"]))
    command = ["train", part, "--out", tmp_path, "--start", start]
    assert "--start must be the folder of a trained model" in str(invoke(*command).exception)
    (tmp_path / first).mkdir()
    (tmp_path / first / "checkpoint.pt").touch()
    assert invoke(*command).exit_code == 0
    assert starts == [start]
