"""Evaluation of the embedded models: classes found, mask quality, variety, memorisation, time and memory."""

import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from factory.config.vocabulary import caption, coco
from factory.stickers.atlas import HELD_OUT_STYLE, TRAIN_STYLES
from factory.stickers.detector import MIN_SCORE, DetectedInstance, StickerDetector
from factory.stickers.evaluate_parts import (
    Report,
    RoundTrip,
    classes_found,
    detect_all,
    mask_iou,
    mirrored_agreement,
    round_trip,
)
from factory.stickers.partial_results import PartialResults
from factory.stickers.sampling import Sampling, sample
from factory.stickers.training_scenes import cached_scene, scene_classes, training_scene
from factory.training.sheet import tile

_VARIETY_IMAGES = 50
_VARIETY_CLASSES = ("dog", "bicycle", "pizza", "umbrella", "chair")
_MEMORISATION_SCENES = 4000
_SECOND_AREA = 0.3
"""Area of the second instance of a class, relative to the largest, from which the class counts as drawn twice."""


@dataclass(frozen=True)
class EvaluationSize:
    """Numbers of generated images, and of rendered scenes for the metrics of the detector and the autoencoder."""

    images_per_class: int
    pairs: int
    scenes: int


@dataclass(frozen=True)
class DrawnImages:
    """Images of one object by class, and images of two objects with their classes."""

    singles: dict[str, list[Image.Image]]
    pairs: list[tuple[tuple[str, ...], Image.Image]]


@dataclass(frozen=True)
class Found:
    """Shares, 0 to 1, of the prompted classes that a detector finds in the generated images."""

    one_object: float
    one_object_by_class: dict[str, float]
    one_object_is_largest: float
    both_of_two: float
    single_drawn_twice: float
    """Images of one object in which the class is found twice."""
    pair_drawn_twice: float
    """Images of two objects in which at least one of the classes is found twice."""


@dataclass(frozen=True)
class Evaluation:
    """All metrics of `docs/embedded.md`; shares and IoUs are 0 to 1."""

    sampling: Sampling
    images_per_class: int
    pairs: int
    found: Found
    found_by_judge: Found | None
    autoencoder: RoundTrip
    scenes: int
    mask_miou_train: float
    mask_miou_held_out: float
    mask_iou_by_class_train: dict[str, float]
    mask_iou_by_class_held_out: dict[str, float]
    mirrored_agreement: float
    variety: dict[str, dict[str, float]]
    nearest_scene: dict[str, float]
    seconds_for_100_images: float
    peak_memory_mib: float
    threads: int


@dataclass(frozen=True)
class Judges:
    """The detector that is evaluated and used for evaluation, and a second one that is trained independently."""

    detector: StickerDetector
    second: StickerDetector | None


def evaluate(
    pipeline: StableDiffusionPipeline,
    judges: Judges,
    out: Path,
    partial: PartialResults,
    size: EvaluationSize,
    sampling: Sampling,
    report: Report,
) -> Evaluation:
    """Measure everything that `partial` does not contain yet, and write `classes.png` and `pairs.png` to `out`."""
    detector, second = judges.detector, judges.second
    cost = partial.metrics("cost", lambda: time_and_memory(pipeline, sampling))
    report("100 images: {seconds:.1f} s, peak {mib:.0f} MiB".format(**cost))
    images = draw_images(pipeline, out, partial, size, sampling, report)
    singles = [picture for pictures in images.singles.values() for picture in pictures]
    mirrored = singles[:400] + [picture for _, picture in images.pairs]

    def variety(name: str) -> dict[str, float]:
        return partial.metrics(f"variety of {name}", lambda: variety_of(pipeline, detector, name, sampling, report))

    found = partial.metrics("found", lambda: asdict(found_in(detector, images)))
    report("found: one object {one_object:.1%}, both of two {both_of_two:.1%}".format(**found))
    found_by_judge = partial.metrics("judge", lambda: asdict(found_in(second, images))) if second else None
    train_iou = partial.metrics("train", lambda: mask_iou(detector, TRAIN_STYLES, size.scenes, report))
    held_out_iou = partial.metrics("held-out", lambda: mask_iou(detector, (HELD_OUT_STYLE,), size.scenes, report))
    agreement = partial.metrics("mirrored", lambda: {"mean": mirrored_agreement(detector, mirrored, report)})
    kept = partial.metrics("autoencoder", lambda: asdict(round_trip(pipeline.vae, detector, size.scenes, report)))
    return Evaluation(
        sampling=sampling,
        images_per_class=size.images_per_class,
        pairs=size.pairs,
        found=Found(**found),
        found_by_judge=Found(**found_by_judge) if found_by_judge else None,
        autoencoder=RoundTrip(**kept),
        scenes=size.scenes,
        mask_miou_train=float(np.mean(list(train_iou.values()))),
        mask_miou_held_out=float(np.mean(list(held_out_iou.values()))),
        mask_iou_by_class_train=train_iou,
        mask_iou_by_class_held_out=held_out_iou,
        mirrored_agreement=agreement["mean"],
        variety={name: variety(name) for name in _VARIETY_CLASSES},
        nearest_scene=partial.metrics("nearest scene", lambda: nearest_scene(singles, report)),
        seconds_for_100_images=cost["seconds"],
        peak_memory_mib=cost["mib"],
        threads=torch.get_num_threads(),
    )


def draw_images(
    pipeline: StableDiffusionPipeline,
    out: Path,
    partial: PartialResults,
    size: EvaluationSize,
    sampling: Sampling,
    report: Report,
) -> DrawnImages:
    """Draw images of every class and of random pairs, and write the sheets `classes.png` and `pairs.png` to `out`."""
    names = coco().names
    single_names = [name for name in names for _ in range(size.images_per_class)]
    rng = np.random.default_rng(20)
    pair_names = [tuple(names[k] for k in rng.choice(len(names), 2, replace=False)) for _ in range(size.pairs)]

    def drawn(label: str, kind: str, groups: list[tuple[str, ...]], first_seed: int) -> list[Image.Image]:
        def draw(indices: range) -> list[Image.Image]:
            prompts = [caption(groups[k]) for k in indices]
            return sample(pipeline, prompts, [first_seed + k for k in indices], sampling=sampling)

        return partial.images(kind, len(groups), draw, lambda done: report(f"{label}: {done} of {len(groups)}"))

    pictures = drawn("one object", "single", [(name,) for name in single_names], 1_000_000)
    singles: dict[str, list[Image.Image]] = {name: [] for name in names}
    for name, picture in zip(single_names, pictures, strict=True):
        singles[name].append(picture)
    tile([[singles[name][0] for name in names[row : row + 16]] for row in range(0, 80, 16)]).save(out / "classes.png")
    doubles = drawn("two objects", "pair", pair_names, 2_000_000)
    first = doubles[:80]
    tile([first[row : row + 16] for row in range(0, len(first), 16)]).save(out / "pairs.png")
    return DrawnImages(singles, list(zip(pair_names, doubles, strict=True)))


def time_and_memory(pipeline: StableDiffusionPipeline, sampling: Sampling) -> dict[str, float]:
    """`seconds` for 100 images, and this process's peak resident memory so far in `mib`."""
    start = time.perf_counter()
    prompts = [caption((name,)) for name in (coco().names * 2)[:100]]
    sample(pipeline, prompts, range(100), sampling=sampling)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def found_in(detector: StickerDetector, images: DrawnImages) -> Found:
    """The shares of the prompted classes that the detector finds."""
    by_class, largest, single_twice = {}, [], []
    for name, pictures in images.singles.items():
        instances = detect_all(detector, pictures)
        by_class[name] = float(np.mean([name in classes_found(found) for found in instances]))
        largest += [bool(f) and max(f, key=lambda i: i.mask.sum()).class_name == name for f in instances]
        single_twice += [_drawn_twice(found, name) for found in instances]
    pairs = list(zip((p for p, _ in images.pairs), detect_all(detector, [p for _, p in images.pairs]), strict=True))
    return Found(
        one_object=float(np.mean(list(by_class.values()))),
        one_object_by_class=by_class,
        one_object_is_largest=float(np.mean(largest)),
        both_of_two=float(np.mean([set(pair) <= classes_found(found) for pair, found in pairs])),
        single_drawn_twice=float(np.mean(single_twice)),
        pair_drawn_twice=float(np.mean([any(_drawn_twice(found, name) for name in pair) for pair, found in pairs])),
    )


def _drawn_twice(instances: list[DetectedInstance], name: str) -> bool:
    """Whether a class has two confident instances of similar areas; small ones may be parts of an object."""
    areas = sorted((i.mask.sum() for i in instances if i.class_name == name and i.score >= MIN_SCORE), reverse=True)
    return len(areas) > 1 and bool(areas[1] >= _SECOND_AREA * areas[0])


def variety_of(
    pipeline: StableDiffusionPipeline, detector: StickerDetector, name: str, sampling: Sampling, report: Report
) -> dict[str, float]:
    """Mean pairwise distance of 50 generated images, and of their mask centres, relative to 50 rendered scenes."""
    prompts = [caption((name,))] * _VARIETY_IMAGES
    seeds = [3_000_000 + k for k in range(_VARIETY_IMAGES)]
    drawn = sample(pipeline, prompts, seeds, sampling=sampling)
    rendered = [training_scene((8, k), (name,)) for k in range(_VARIETY_IMAGES)]
    renders = [Image.fromarray(scene.image) for scene in rendered]
    images = _pairwise(_thumbnails(drawn)) / _pairwise(_thumbnails(renders))
    positions = _pairwise(_centres(detect_all(detector, drawn), name)) / _pairwise(
        np.stack([_centre(scene.instance_map > 0) for scene in rendered])
    )
    report(f"variety of {name}, relative to renders: images {images:.2f}, mask positions {positions:.2f}")
    return {"images": images, "positions": positions}


def nearest_scene(pictures: list[Image.Image], report: Report) -> dict[str, float]:
    """Root-mean-square distance (0..1) from generated images to the nearest of many training scenes.

    The distance of newly rendered scenes is measured for comparison: an image that copies a training scene would be
    much nearer than any scene that the model has not seen.
    """
    scenes = [cached_scene(k) for k in range(_MEMORISATION_SCENES)]
    fresh = [training_scene((9, k), scene_classes(k)) for k in range(len(pictures))]
    known = _thumbnails([Image.fromarray(scene.image) for scene in scenes])
    generated = _nearest(_thumbnails(pictures), known)
    rendered = _nearest(_thumbnails([Image.fromarray(scene.image) for scene in fresh]), known)
    metrics = {
        "generated_min": float(generated.min()),
        "generated_median": float(np.median(generated)),
        "fresh_renders_min": float(rendered.min()),
        "fresh_renders_median": float(np.median(rendered)),
    }
    report("nearest training scene: " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items()))
    return metrics


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """The metrics, rounded for output."""

    def rounded(value: object) -> object:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    return {key: rounded(value) for key, value in asdict(evaluation).items()}


def _thumbnails(pictures: list[Image.Image]) -> NDArray[np.float32]:
    """Images as (N, 3072) vectors of 32 x 32 RGB pixels, 0..1."""
    small = [np.asarray(picture.resize((32, 32), Image.Resampling.BOX), np.float32) / 255 for picture in pictures]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)


def _pairwise(rows: NDArray[np.float32]) -> float:
    distances = np.sqrt(np.maximum(0, _squared(rows, rows)))
    return float(distances[np.triu_indices(len(rows), 1)].mean())


def _nearest(rows: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
    nearest: NDArray[np.float32] = np.sqrt(np.maximum(0, _squared(rows, known).min(1)) / rows.shape[1])
    return nearest


def _squared(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    squared: NDArray[np.float32] = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return squared


def _centres(found: list[list[DetectedInstance]], name: str) -> NDArray[np.float32]:
    masks = [instance.mask for instances in found for instance in instances if instance.class_name == name]
    return np.stack([_centre(mask) for mask in masks]) if len(masks) > 1 else np.zeros((2, 2), np.float32)


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows, columns = np.nonzero(mask)
    return np.array([rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]]).astype(np.float32)
