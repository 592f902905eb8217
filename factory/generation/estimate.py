"""A trial of a recipe: its first samples made and thrown away, to tell what the whole will take."""

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
    """What one worker did: `rate` is accepted samples a second, `bytes_per_sample` their share of the tar."""

    accepted: int
    attempts: int
    seconds: float
    bytes_per_sample: float

    @property
    def rate(self) -> float:
        """Accepted samples a second; 0 where none was."""
        return self.accepted / self.seconds


def estimate_run(recipe: Recipe) -> Estimate:
    """Make two micro-batches of the recipe's first samples and time the second, on a GPU if there is one.

    The recipe is pinned. The first micro-batch warms caches up. Nothing is written.
    """
    import torch

    on_gpu = torch.cuda.is_available() and recipe.engine.gpus_per_worker != 0
    if not on_gpu:
        torch.set_num_threads(recipe.generator.threads)
    components = load_components(recipe, "cuda" if on_gpu else "cpu")
    samples = tuple(islice(Plan(recipe).samples(), 2 * recipe.batch))
    first, second = samples[: recipe.batch], samples[recipe.batch :] or samples
    with ThreadPoolExecutor(recipe.engine.writers) as encoder:
        for chosen in (first, second):
            start = time.perf_counter()
            produced = produce(PlannedShard(0, chosen, "trial", recipe.format), recipe, components, encoder)
            encoded = [job.result() for job in produced.samples]
            seconds = time.perf_counter() - start
    size = len(pack(encoded)) / len(encoded) if encoded else 0.0
    return Estimate(len(encoded), produced.tally.attempts, seconds, size)
