"""Generate datasets in this process, without the engine."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.description import write_description
from factory.dataset.receipts import Receipt, commit
from factory.dataset.records import Image, Instance
from factory.dataset.storage import Store
from factory.detector.interface import Detector
from factory.generation.components import load_components
from factory.generation.shard import produce


def make_dataset(recipe: Recipe, folder: Path, detector: Detector | None = None) -> list[Receipt]:
    """Generate and commit all shards of a recipe. The recipe is used unchanged."""
    store, components, receipts = Store(str(folder)), load_components(recipe, detector=detector), []
    store.create("recipe.yaml", recipe.to_yaml().encode())
    run_info: dict[str, dict[str, Any]] = {
        "seconds": {"generate": 1.0},
        "versions": {"torch": "2"},
        "worker": {"host": "here"},
    }
    with ThreadPoolExecutor(1) as encoder:
        for number in range(len(Plan(recipe))):
            planned = Plan(recipe).shard(number)
            produced = produce(planned, recipe, components, encoder)
            samples = [job.result() for job in produced.samples]
            receipts.append(commit(store, planned, samples, produced.tally, recipe.fingerprint(), run_info))
    write_description(store, recipe)
    return receipts


class BandDetector:
    """Detects a brightness band for each class, which works even for images of a random model.

    The k-th of `names` is the k-th quantile band of brightness, so its masks can be learned from features.
    """

    def __init__(self, names: tuple[str, ...], score: float = 0.9) -> None:
        self._names, self._bands, self._score = names, len(names), score

    def detect(self, images: Sequence[Image], classes: object = None) -> list[list[Instance]]:
        """One instance of every class per image."""
        return [self._detect_image(image) for image in images]

    def _detect_image(self, image: Image) -> list[Instance]:
        grey = image.astype(np.float64).mean(2)
        grey += np.linspace(0, 1e-3, grey.size).reshape(grey.shape)  # makes pixel values unique, so no band is empty
        edges = np.quantile(grey, np.linspace(0, 1, self._bands + 1))
        edges[-1] += 1
        bands = [(edges[k] <= grey) & (grey < edges[k + 1]) for k in range(self._bands)]
        return [Instance(name, self._score, bands[k]) for k, name in enumerate(self._names)]
