"""What the embedded models can do, in figures: classes found, mask quality, variety, copies, time and memory."""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from factory.stickers.atlas import HELD_OUT_STYLE, TRAIN_STYLES
from factory.stickers.detector import Instance, StickerDetector
from factory.stickers.sampling import sample
from factory.stickers.scenes import Scene, random_class_names, render_scene
from factory.stickers.training_scenes import scene_classes, training_scene
from factory.training.loop import tile
from factory.vocabulary import caption, coco

MIN_SCORE = 0.5
_VARIETY_IMAGES = 50
_VARIETY_CLASSES = ("dog", "bicycle", "pizza", "umbrella", "chair")
_COPY_SCENES = 4000

Report = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """Every figure of `docs/embedded.md`; shares and IoUs are 0..1."""

    images_per_class: int
    one_object_found: float
    one_object_by_class: dict[str, float]
    one_object_is_largest: float
    pairs: int
    both_found: float
    scenes: int
    mask_miou_train: float
    mask_miou_held_out: float
    mask_iou_by_class_train: dict[str, float]
    mask_iou_by_class_held_out: dict[str, float]
    variety: dict[str, dict[str, float]]
    nearest_scene: dict[str, float]
    seconds_for_100_images: float
    peak_memory_mib: float
    threads: int


def evaluate(
    pipeline: StableDiffusionPipeline,
    detector: StickerDetector,
    out: Path,
    images_per_class: int = 10,
    pairs: int = 160,
    scenes: int = 600,
    report: Report = print,
) -> Evaluation:
    """Measure everything and write the sheets `classes.png`, `pairs.png` and `detector.png` to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    names = coco().names
    report("time and memory: 100 images")
    seconds, memory = time_and_memory(pipeline)
    report(f"  {seconds:.1f} s, peak {memory:.0f} MiB")
    by_class, largest, kept = one_object(pipeline, detector, images_per_class, report)
    tile([[kept[name][0] for name in names[row : row + 16]] for row in range(0, 80, 16)]).save(out / "classes.png")
    both, pictures = two_objects(pipeline, detector, pairs, report)
    tile([pictures[row : row + 16] for row in range(0, min(80, len(pictures)), 16)]).save(out / "pairs.png")
    train_iou = mask_iou(detector, TRAIN_STYLES, scenes, report)
    held_iou = mask_iou(detector, (HELD_OUT_STYLE,), scenes, report)
    variety = {name: variety_of(pipeline, detector, name, report) for name in _VARIETY_CLASSES}
    everything = [picture for row in kept.values() for picture in row]
    return Evaluation(
        images_per_class=images_per_class,
        one_object_found=float(np.mean(list(by_class.values()))),
        one_object_by_class=by_class,
        one_object_is_largest=largest,
        pairs=pairs,
        both_found=both,
        scenes=scenes,
        mask_miou_train=float(np.mean(list(train_iou.values()))),
        mask_miou_held_out=float(np.mean(list(held_iou.values()))),
        mask_iou_by_class_train=train_iou,
        mask_iou_by_class_held_out=held_iou,
        variety=variety,
        nearest_scene=nearest_scene(everything, report),
        seconds_for_100_images=seconds,
        peak_memory_mib=memory,
        threads=torch.get_num_threads(),
    )


def time_and_memory(pipeline: StableDiffusionPipeline) -> tuple[float, float]:
    """Seconds for 100 images of 16 steps, and this process's peak resident memory in MiB so far."""
    began = time.perf_counter()
    sample(pipeline, [caption((name,)) for name in (coco().names * 2)[:100]], range(100))
    seconds = time.perf_counter() - began
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_object(
    pipeline: StableDiffusionPipeline, detector: StickerDetector, images_per_class: int, report: Report
) -> tuple[dict[str, float], float, dict[str, list[Image.Image]]]:
    """By class, the share of images in which the detector finds it; over all, the share where it is the largest."""
    names = [name for name in coco().names for _ in range(images_per_class)]
    pictures = sample(
        pipeline,
        [caption((name,)) for name in names],
        [1_000_000 + k for k in range(len(names))],
        progress=lambda done: report(f"one object: {done} of {len(names)}"),
    )
    found = detect_all(detector, pictures)
    hits: dict[str, list[bool]] = {name: [] for name in coco().names}
    kept: dict[str, list[Image.Image]] = {name: [] for name in coco().names}
    largest = 0
    for name, picture, instances in zip(names, pictures, found, strict=True):
        hits[name].append(name in classes_found(instances))
        kept[name].append(picture)
        largest += bool(instances) and max(instances, key=lambda i: i.mask.sum()).class_name == name
    return {name: float(np.mean(row)) for name, row in hits.items()}, largest / len(names), kept


def two_objects(
    pipeline: StableDiffusionPipeline, detector: StickerDetector, pairs: int, report: Report
) -> tuple[float, list[Image.Image]]:
    """The share of images of random pairs in which the detector finds both classes."""
    rng = np.random.default_rng(20)
    names = [tuple(coco().names[k] for k in rng.choice(80, 2, replace=False)) for _ in range(pairs)]
    pictures = sample(
        pipeline,
        [caption(pair) for pair in names],
        [2_000_000 + k for k in range(pairs)],
        progress=lambda done: report(f"two objects: {done} of {pairs}"),
    )
    found = detect_all(detector, pictures)
    return float(np.mean([set(p) <= classes_found(i) for p, i in zip(names, found, strict=True)])), pictures


def mask_iou(detector: StickerDetector, styles: tuple[str, ...], scenes: int, report: Report) -> dict[str, float]:
    """Per class, intersection over union of its pixels pooled over fresh renders, no score threshold applied."""
    names = coco().names
    rng = np.random.default_rng(30)
    overlap, union = np.zeros(81), np.zeros(81)
    for first in range(0, scenes, 20):
        batch = [
            render_scene((6, k), (names[k % 80], *random_class_names(rng, names, 2))[: 1 + k % 3], styles=styles)
            for k in range(first, min(first + 20, scenes))
        ]
        pixels = torch.from_numpy(np.stack([scene.image for scene in batch])).to(detector.device)
        predicted = detector.probabilities(pixels).argmax(1).cpu().numpy()
        truth = np.stack([_labels(scene) for scene in batch])
        for k in np.union1d(np.unique(predicted), np.unique(truth)):
            overlap[k] += ((predicted == k) & (truth == k)).sum()
            union[k] += ((predicted == k) | (truth == k)).sum()
    report(f"mask IoU on {scenes} renders of {', '.join(styles)}: {np.mean(overlap[1:] / union[1:].clip(1)):.3f}")
    return {name: float(overlap[k] / max(1, union[k])) for k, name in enumerate(names, 1)}


def variety_of(
    pipeline: StableDiffusionPipeline, detector: StickerDetector, name: str, report: Report
) -> dict[str, float]:
    """Mean pairwise distance of 50 generated images, and of the centres of their masks, over that of 50 renders."""
    prompts = [caption((name,))] * _VARIETY_IMAGES
    drawn = sample(pipeline, prompts, [3_000_000 + k for k in range(_VARIETY_IMAGES)])
    rendered = [training_scene((8, k), (name,)) for k in range(_VARIETY_IMAGES)]
    renders = [Image.fromarray(scene.image) for scene in rendered]
    images = _pairwise(_thumbnails(drawn)) / _pairwise(_thumbnails(renders))
    places = _pairwise(_centres(detect_all(detector, drawn), name)) / _pairwise(
        np.stack([_centre(scene.instance_map > 0) for scene in rendered])
    )
    report(f"variety of {name}: images {images:.2f}, positions {places:.2f} of that of renders")
    return {"images": images, "positions": places}


def nearest_scene(pictures: list[Image.Image], report: Report) -> dict[str, float]:
    """Root-mean-square distance (0..1) from generated images to their nearest of many training scenes.

    Beside it, the same distance from fresh renders to those scenes: an image that copies a scene would be far
    nearer than any render that the model never saw.
    """
    scenes = [training_scene((3, k), scene_classes(k)) for k in range(_COPY_SCENES)]
    fresh = [training_scene((9, k), scene_classes(k)) for k in range(len(pictures))]
    known = _thumbnails([Image.fromarray(scene.image) for scene in scenes])
    generated = _nearest(_thumbnails(pictures), known)
    rendered = _nearest(_thumbnails([Image.fromarray(scene.image) for scene in fresh]), known)
    figures = {
        "generated_min": float(generated.min()),
        "generated_median": float(np.median(generated)),
        "fresh_renders_min": float(rendered.min()),
        "fresh_renders_median": float(np.median(rendered)),
    }
    report("nearest training scene: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    return figures


def detect_all(detector: StickerDetector, pictures: list[Image.Image]) -> list[list[Instance]]:
    """The instances in each picture, found in batches."""
    return [found for k in range(0, len(pictures), 20) for found in detector.detect(pictures[k : k + 20])]


def classes_found(instances: list[Instance]) -> set[str]:
    """The classes with an instance of at least `MIN_SCORE`."""
    return {instance.class_name for instance in instances if instance.score >= MIN_SCORE}


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """The figures, rounded for print."""

    def rounded(value: object) -> object:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    return {key: rounded(value) for key, value in asdict(evaluation).items()}


def _labels(scene: Scene) -> NDArray[np.int64]:
    return np.array([0, *(coco().names.index(name) + 1 for name in scene.class_names)])[scene.instance_map]


def _thumbnails(pictures: list[Image.Image]) -> NDArray[np.float32]:
    """(N, 3072) of 32 x 32 pictures, 0..1."""
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


def _centres(found: list[list[Instance]], name: str) -> NDArray[np.float32]:
    masks = [instance.mask for instances in found for instance in instances if instance.class_name == name]
    return np.stack([_centre(mask) for mask in masks]) if len(masks) > 1 else np.zeros((2, 2), np.float32)


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows, columns = np.nonzero(mask)
    return np.array([rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]]).astype(np.float32)
