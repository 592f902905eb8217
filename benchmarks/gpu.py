"""Images per second on a GPU: `factory`'s generator with masks and encoded samples, and a bare diffusers loop.

    python -m benchmarks.gpu sd15 sdxl --n 64 --batch 8
    python -m benchmarks.gpu --model stabilityai/sdxl-turbo --n 64

Shapes have random weights (benchmarks/shapes.py); `--model` measures a real one. *bare* samples images with the stock
pipeline and drops them. *factory* also reads the attention masks and encodes the samples of a shard, as a worker does.
*peak* is the share of the largest rate that the GPU reaches in a product of two square matrices of the same precision;
only the denoiser's operations are counted. Without a GPU, a tiny model is measured on the CPU, which says nothing about
GPUs: it only shows that the benchmark runs.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import NO_FILTERS, command_line, options_of, positive, run
from benchmarks.shapes import SHAPES, random_pipeline
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generation.shard import produce
from factory.generator.pipeline import PipelineGenerator
from factory.hf_logging import quiet_model_libraries

_MATRIX = 8192


def recipe_of(model: Path | str, options: argparse.Namespace, device: str) -> Recipe:
    """A recipe for two shards, of which the first warms up."""
    generator: dict[str, Any] = {"model": str(model), "dtype": options.dtype if device == "cuda" else "float32"}
    generator |= {"channels_last": options.channels_last, "compile": options.compile}
    generator |= {"steps": options.steps} if options.steps else {}
    data: dict[str, Any] = {"n": 2 * options.n, "shard_size": options.n, "batch": options.batch}
    data |= {"attempts": 1, "classes": "voc"}
    data |= {"generator": generator, "masks": {"source": "attention"}, "filters": NO_FILTERS}
    return pin_recipe(make_recipe(data))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of a call, including what the GPU still has to do."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def factory_rate(recipe: Recipe, components: Any, device: str) -> float:
    """Samples per second of a worker: images, masks, filters and encoded files."""
    shards = [Plan(recipe).shard(number) for number in range(2)]
    with ThreadPoolExecutor(2) as encoder:

        def generate(shard: Any) -> None:
            for sample in produce(shard, recipe, components, encoder).samples:
                sample.result()

        generate(shards[0])
        return len(shards[1].samples) / seconds(lambda: generate(shards[1]), device)


def call(generator: PipelineGenerator, prompts: list[str], steps: int) -> None:
    """Call the stock pipeline."""
    height, width = generator.pixels
    options = generator.family.guidance_options(generator.settings.guidance, "", len(prompts))
    options |= {"height": height, "width": width, "output_type": "np", **generator.family.call}
    with torch.inference_mode():
        generator.pipeline(prompt=prompts, num_inference_steps=steps, **options)


def bare_rate(recipe: Recipe, generator: PipelineGenerator, device: str) -> float:
    """Images per second of the stock pipeline."""
    texts = [sample.prompt.text for sample in Plan(recipe).shard(1).samples]

    def generate(batch: list[str]) -> None:
        call(generator, batch, recipe.generator.steps)

    batches = [texts[first : first + recipe.batch] for first in range(0, len(texts), recipe.batch)]
    generate(batches[0])
    return len(texts) / seconds(lambda: [generate(batch) for batch in batches], device)


def operations(recipe: Recipe, generator: PipelineGenerator) -> float:
    """Floating-point operations of the denoiser for one image."""
    counted: list[int] = []
    # In inference mode, the counter fails where a module is called with a parameter that requires a gradient (Sana).
    denoiser = getattr(generator.pipeline, generator.family.denoiser).requires_grad_(False)
    forward = denoiser.forward

    def count(*arguments: Any, **named: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            output = forward(*arguments, **named)
        counted.append(counter.get_total_flops())
        return output

    denoiser.forward = count
    try:
        call(generator, ["a photograph of a dog"], 1)
    finally:
        denoiser.forward = forward
    return float(sum(counted)) * recipe.generator.steps


def largest_rate(dtype: torch.dtype, device: str) -> float:
    """Operations per second in a product of two large square matrices."""
    side = _MATRIX if device == "cuda" else 1024
    matrix = torch.randn(side, side, device=device).to(dtype)
    spans = [seconds(lambda: matrix @ matrix, device) for _ in range(6)]
    return float(2 * side**3 / min(spans))


def table_row(name: str, model: Path | str, options: argparse.Namespace, device: str) -> str:
    """The table's row of a model."""
    recipe = recipe_of(model, options, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    components = load_components(recipe, device)
    assert isinstance(components.generator, PipelineGenerator)
    generator = components.generator
    generator.pipeline.set_progress_bar_config(disable=True)
    bare = bare_rate(recipe, generator, device)
    factory = factory_rate(recipe, components, device)
    denoiser = getattr(generator.pipeline, generator.family.denoiser)
    share = factory * operations(recipe, generator) / largest_rate(denoiser.dtype, device)
    settings = recipe.generator
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return (
        f"| {name} | {settings.dtype} | {settings.steps} | {recipe.batch} | {bare:.3f} | {factory:.3f} | "
        f"{factory / bare:.3f} | {share:.0%} | {memory:.1f} GiB |"
    )


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__)
    parser.add_argument("shapes", nargs="*", help="Sizes with random weights.")
    parser.add_argument("--model", action="append", default=[], help="Folder or hub id of a real model.")
    parser.add_argument("--n", type=positive, default=32, help="Images per measurement.")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--steps", type=int, default=0, help="Solver steps; by default those of the model's card.")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="Compile the denoiser; a U-Net only in *factory*.")
    options = options_of(parser)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if unknown := set(options.shapes) - set(SHAPES):
        parser.error(f"there is no shape {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    if device == "cuda" and not options.shapes and not options.model:
        parser.error(f"give a shape ({', '.join(SHAPES)}) or --model")
    warnings.simplefilter("ignore")
    quiet_model_libraries()
    print(torch.cuda.get_device_name() if device == "cuda" else "no GPU: a tiny model on the CPU")
    print("| model | precision | steps | batch | bare, images/s | factory, samples/s | ratio | peak | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        if device == "cpu":
            from tests.support.tiny_families import tiny_family

            print(table_row("tiny", tiny_family("sd", Path(directory) / "tiny"), options, device))
            return
        for shape in options.shapes:
            folder = random_pipeline(shape, Path(directory) / shape, torch.bfloat16)
            print(table_row(shape, folder, options, device), flush=True)
        for model in options.model:
            print(table_row(model, model, options, device), flush=True)


if __name__ == "__main__":
    run(main)
