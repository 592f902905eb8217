"""Estimates time and disk space for a recipe by generating its first samples and discarding them."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from factory.config.plan import Plan, PlannedShard
from factory.config.recipe import Recipe
from factory.dataset.tar import pack
from factory.generation.components import load_components
from factory.generation.shard import produce


@dataclass(frozen=True)
class Estimate:
    """The measurement of one worker; `bytes_per_sample` is the average size in the tar.

    Of the `planned` samples, those that are not `accepted` were rejected in every attempt.
    """

    planned: int
    accepted: int
    attempts: int
    seconds: float
    bytes_per_sample: float

    @property
    def rate(self) -> float:
        """Accepted samples per second."""
        return self.accepted / self.seconds


def estimate_run(recipe: Recipe) -> Estimate:
    """Generate two micro-batches of the recipe's first samples and time the second, on a GPU if there is one.

    The recipe must be pinned. The first micro-batch warms up caches. Nothing is written.
    """
    import torch

    on_gpu = torch.cuda.is_available() and recipe.engine.gpus_per_worker != 0
    if not on_gpu:
        torch.set_num_threads(recipe.generator.threads)
    components = load_components(recipe, "cuda" if on_gpu else "cpu")
    size = min(recipe.batch, recipe.shard_size)  # as in a shard
    samples = tuple(islice(Plan(recipe).samples(), 2 * size))
    first, second = samples[:size], samples[-size:]  # with few samples they overlap, but both are full
    with ThreadPoolExecutor(recipe.engine.writers) as encoder:
        for batch in (first, second):
            start = time.perf_counter()
            produced = produce(PlannedShard(0, batch, "trial", recipe.format), recipe, components, encoder)
            encoded = [future.result() for future in produced.samples]
            seconds = time.perf_counter() - start
    bytes_per_sample = len(pack(encoded)) / len(encoded) if encoded else 0.0
    return Estimate(len(second), len(encoded), produced.tally.attempts, seconds, bytes_per_sample)
