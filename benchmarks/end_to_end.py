"""Samples per second of `factory generate`, compared with two loops on the same model.

    python -m benchmarks.end_to_end --n 128

The bare loop is the standard diffusers pipeline in batches: images only, and nothing is written. It runs in the
precision that `generate` chooses for this machine, and in float32, the default of diffusers. The method of the paper's
released code is one image at a time, 50 DDIM steps, float32, saved as PNG; at most 16 images are made with it. Start-up
time is excluded everywhere.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command_line, options_of, positive, run
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import init_or_resume
from factory.engine.machine import usable_cpus
from factory.generation.hardware import for_hardware
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
    torch.set_num_threads(usable_cpus())
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
    parser = command_line(__doc__)
    parser.add_argument("--n", type=positive, default=128)
    parser.add_argument("--model", default="stickers")
    parser.add_argument("--masks", default="stickers")
    options = options_of(parser)
    data = {"n": options.n, "shard_size": 16, "generator": {"model": options.model}, "masks": {"source": options.masks}}
    recipe = for_hardware(pin_recipe(make_recipe(data)), None)
    dtype = recipe.generator.dtype
    with tempfile.TemporaryDirectory() as folder:
        init_or_resume(Store(f"{folder}/set"), recipe)
        accepted, attempts = factory_rate(recipe, Path(folder) / "set")
        rates = {f"bare diffusers loop, {dtype}": bare_rate(recipe)}
        plain = recipe.model_copy(update={"generator": recipe.generator.model_copy(update={"dtype": "float32"})})
        if dtype != "float32":
            rates["bare diffusers loop, float32"] = bare_rate(plain)
        rates["method of the paper's released code"] = released_rate(plain, Path(folder), min(16, options.n))
    print("| method | images per second | factory / method |\n|---|---|---|")
    print(f"| factory, {dtype}: all images | {attempts:.2f} | |\n| factory, {dtype}: accepted | {accepted:.2f} | |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} | {attempts / rate:.2f} |")
    print(json.dumps({"factory": attempts} | rates))


if __name__ == "__main__":
    run(main)
