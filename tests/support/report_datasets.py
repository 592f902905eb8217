"""Datasets for report tests: all that a report shows, without a model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.plan import Plan, PlannedSample
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.encode import encode_sample
from factory.dataset.masks import Mask
from factory.dataset.receipts import Tally, commit
from factory.dataset.records import Grounded, Image, Instance, Rejection, Sample
from factory.dataset.rejected_images import RejectedImages
from factory.dataset.storage import Store
from factory.generation.filters import difference_hash

NAMES = ("dog", "cat", "traffic light", "bus", "hair drier")
REASONS = ("mask_small", "detector_disagrees", "mask_small", "low_confidence")
EXHAUSTED = 7
"""The index of the sample that is exhausted."""


def draw_image(rng: np.random.Generator) -> Image:
    """A smooth random image, so that JPEG changes it little and hashes differ."""
    coarse = rng.integers(0, 256, (5, 6, 3)).astype(np.float64)
    rows, columns = np.linspace(0, 3.99, 96), np.linspace(0, 4.99, 128)
    r, c = rows.astype(int), columns.astype(int)
    y, x = (rows - r)[:, None, None], (columns - c)[None, :, None]
    top = coarse[r][:, c] * (1 - x) + coarse[r][:, c + 1] * x
    bottom = coarse[r + 1][:, c] * (1 - x) + coarse[r + 1][:, c + 1] * x
    return (top * (1 - y) + bottom * y).astype(np.uint8)


def draw_mask(number: int, rng: np.random.Generator) -> Mask:
    """A disc in the left (0) or right (1) half."""
    rows, columns = np.ogrid[:96, :128]
    row, column = rng.integers(20, 76), rng.integers(20, 44) + 64 * number
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < rng.integers(5, 20) ** 2)


def make_sample(planned: PlannedSample, attempt: int, reasons: list[str], content: int = 0) -> Sample:
    """A sample whose content depends on its index and `content`; samples 3 and 11 have the same image."""
    rng = np.random.default_rng(1000 * content + (11 if planned.index == 3 else planned.index))
    image = draw_image(rng)
    classes = planned.prompt.classes[:2]
    instances = [
        Instance(name, 0.5 + 0.5 * float(rng.random()), draw_mask(number, rng)) for number, name in enumerate(classes)
    ]
    scores: dict[str, float | str] = {
        "contrast": 1.0,
        "detector_iou": round(float(rng.random()), 4),
        "image_hash": f"{difference_hash(image):016x}",
    }
    rejections = tuple(Rejection(k, planned.seed(0, k), reason) for k, reason in enumerate(reasons))
    return Sample(planned, attempt, planned.seed(0, attempt), image, Grounded(tuple(instances)), scores, rejections)


def make_report_set(folder: Path, content: int = 0, **options: Any) -> tuple[Store, Recipe]:
    """A finished dataset of 20 samples in 4 shards, with rejections, one exhausted sample, and two workers."""
    defaults = {"n": 20, "classes": NAMES, "objects": {1: 0.5, 2: 0.5}, "shard_size": 5, "attempts": 3}
    recipe = make_recipe(defaults | {"filters": {"min_detector_iou": 0.1}} | options)
    store, plan = Store(str(folder)), Plan(recipe)
    store.create("recipe.yaml", recipe.to_yaml().encode())
    for number in range(len(plan)):
        planned, rejected, thumbnails = plan.shard(number), Counter[str](), RejectedImages()
        samples, exhausted = [], []
        for sample in planned.samples:
            count = recipe.attempts if sample.index == EXHAUSTED else sample.index % 3
            reasons = [REASONS[(sample.index + k) % len(REASONS)] for k in range(count)]
            rejected.update(reasons)
            for attempt, reason in enumerate(reasons):
                thumbnails.add(make_sample(sample, attempt, [], content), reason)
            if count == recipe.attempts:
                exhausted.append(sample.index)
            else:
                accepted = make_sample(sample, count, reasons, content)
                samples.append(encode_sample(accepted, recipe.vocabulary(), {"format": 2}, 95))
        run_info: dict[str, dict[str, Any]] = {
            "seconds": {"generate": 2.0 + number, "encode": 0.5},
            "versions": {"dataset-factory": "0.2.0"},
            "worker": {
                "host": f"node{number % 2}",
                "device": "cpu",
                "pid": "7",
                "finished": f"2026-11-0{number + 1}T00:00Z",
            },
        }
        tally = Tally(len(samples) + sum(rejected.values()), rejected, tuple(exhausted))
        thumbnails.save(store, number)
        commit(store, planned, samples, tally, recipe.fingerprint(), run_info)
    store.put("progress.json", json.dumps({"status": "done", "lost_workers": 2, "errors": ["lost a worker"]}).encode())
    return store, recipe
