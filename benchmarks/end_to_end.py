"""Samples per second of `factory generate`, compared with two loops on the same model.

    python -m benchmarks.end_to_end --n 128

`bare` is the standard diffusers pipeline in batches: images only, and nothing is written. `released` is the method of
the paper's released code: one image at a time, 50 DDIM steps, saved as PNG. Start-up time is excluded everywhere.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.state import init_or_resume
from factory.dataset.storage import Store
from factory.generation.pin import pin_recipe
from factory.generation.progress import Snapshot
from factory.generation.run import generate
from factory.generator.load import load_pipeline


def factory_rate(recipe: Recipe, folder: Path) -> tuple[float, float]:
    """(accepted samples per second, attempts per second), from the moment when all workers are ready.

    Samples that a worker finishes while another one is still loading do not count.
    """
    first: list[tuple[float, int, int]] = []

    def watch(snapshot: Snapshot) -> None:
        if snapshot.workers and not snapshot.pending_workers and not first:
            attempts = snapshot.accepted + sum(snapshot.rejected.values())
            first.append((time.perf_counter(), snapshot.accepted, attempts))

    totals = generate(recipe, Store(str(folder)), watch=watch).totals
    start, accepted, attempts = first[0]
    taken = time.perf_counter() - start
    return (totals.accepted - accepted) / taken, (totals.attempts - attempts) / taken


def bare_rate(recipe: Recipe) -> float:
    """Images per second of the standard pipeline on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    pipeline = _standard_pipeline(recipe, "DPMSolverMultistepScheduler")
    texts = [sample.prompt.text for sample in Plan(recipe).samples()]
    _generate(pipeline, texts[: recipe.batch], recipe, recipe.generator.steps)
    start = time.perf_counter()
    for first in range(0, len(texts), recipe.batch):
        _generate(pipeline, texts[first : first + recipe.batch], recipe, recipe.generator.steps)
    return len(texts) / (time.perf_counter() - start)


def released_rate(recipe: Recipe, folder: Path, count: int) -> float:
    """Images per second with one image at a time and 50 DDIM steps, each saved as PNG."""
    pipeline = _standard_pipeline(recipe, "DDIMScheduler")
    texts = [sample.prompt.text for sample in Plan(recipe).samples()][:count]
    start = time.perf_counter()
    for number, text in enumerate(texts):
        _generate(pipeline, [text], recipe, 50)[0].save(folder / f"{number}.png")
    return len(texts) / (time.perf_counter() - start)


def _standard_pipeline(recipe: Recipe, scheduler: str) -> Any:
    import diffusers

    pipeline = load_pipeline(recipe.generator, "cpu")
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate(pipeline: Any, texts: list[str], recipe: Recipe, steps: int) -> list[Any]:
    with torch.inference_mode():
        return list(pipeline(texts, num_inference_steps=steps, guidance_scale=recipe.generator.guidance).images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--model", default="stickers")
    parser.add_argument("--masks", default="stickers")
    options = parser.parse_args()
    data = {"n": options.n, "shard_size": 16, "generator": {"model": options.model}, "masks": {"source": options.masks}}
    recipe = pin_recipe(make_recipe(data))
    with tempfile.TemporaryDirectory() as folder:
        init_or_resume(Store(f"{folder}/set"), recipe)
        accepted, attempts = factory_rate(recipe, Path(folder) / "set")
        bare, released = bare_rate(recipe), released_rate(recipe, Path(folder), min(16, options.n))
    print("| way | per second | factory / it |\n|---|---|---|")
    print(f"| factory, images tried | {attempts:.2f} | |\n| factory, samples accepted | {accepted:.2f} | |")
    print(f"| bare diffusers loop | {bare:.2f} | {attempts / bare:.2f} |")
    print(f"| released code's way | {released:.2f} | {accepted / released:.1f} |")
    print(json.dumps({"ratio_to_bare": attempts / bare, "factor_to_released": accepted / released}))


if __name__ == "__main__":
    main()
