"""Cost of masks from a grounding module, relative to generating images without masks.

    python -m benchmarks.grounding --n 64

The modules have random weights, which do not affect their speed. All methods alternate batch by batch, and the median
of the ratios is reported. Uses one thread, like a worker.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import command_line, options_of, positive, run
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.attention import AttentionGrounder
from factory.grounder.folder import GrounderConfig, build_module, save_grounder
from factory.grounder.modules.backbone import Backbone
from factory.grounder.trained import TrainedGrounder, collate
from factory.hf_logging import quiet_model_libraries


def module_grounder(recipe: Recipe, module: str, folder: Path) -> TrainedGrounder:
    """A grounder with fresh weights that fits the recipe's model."""
    needs = frozenset({"features", "cross_attention", "class_embeddings"})
    sample = next(Plan(recipe).samples())
    made = PipelineGenerator(recipe, needs=needs).generate([Request(sample.prompt, 0)])
    config = GrounderConfig(
        module=module,
        options={},
        backbone=Backbone.of(collate(made)).to_dict(),
        model=recipe.generator.model,
        revision=str(recipe.generator.revision),
        noise_level=0.256,
        classes_seen=(),
        split="",
        data=(),
        steps=0,
    )
    save_grounder(build_module(config), config, {}, folder)
    return TrainedGrounder(folder)


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--n", type=positive, default=64)
    parser.add_argument("--model", default="stickers")
    options = options_of(parser)
    quiet_model_libraries()
    data = {"n": options.n, "objects": {1: 0.5, 2: 0.5}, "generator": {"model": options.model}}
    recipe = make_recipe(data | {"masks": {"source": "attention"}})
    if options.n <= recipe.batch:
        parser.error(f"--n must be above {recipe.batch}, because the first batch is not measured; got {options.n}")
    recipe = pin_recipe(recipe)
    plain = PipelineGenerator(recipe)
    methods: dict[str, Callable[[list[Request]], object]] = {"images only": plain.generate}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("guided", "paper"):
            grounder = module_grounder(recipe, name, Path(folder) / name)
            generator = PipelineGenerator(recipe, needs=grounder.needs)
            methods[f"`{name}`"] = lambda requests, g=generator, m=grounder: m.ground(
                g.generate(requests), [request.prompt for request in requests]
            )
        attention = AttentionGrounder(recipe.masks)
        recording = PipelineGenerator(recipe, needs=attention.needs)
        methods["`attention`"] = lambda requests: attention.ground(
            recording.generate(requests), [request.prompt for request in requests]
        )
        timings = measure(recipe, methods)
    print(f"one thread, {recipe.generator.steps} steps\n")
    print("| | seconds per image | ratio to images only |\n|---|---|---|")
    for name, seconds in timings.items():
        ratio = statistics.median(s / base for s, base in zip(seconds, timings["images only"], strict=True))
        print(f"| {name} | {statistics.median(seconds):.4f} | {ratio:.3f} |")


def measure(recipe: Recipe, methods: dict[str, Callable[[list[Request]], object]]) -> dict[str, list[float]]:
    """Seconds per image of each method, by batch; the first batch is excluded."""
    samples = list(Plan(recipe).samples())
    timings: dict[str, list[float]] = {name: [] for name in methods}
    for start in range(0, len(samples), recipe.batch):
        requests = [Request(sample.prompt, sample.seed(0, 0)) for sample in samples[start : start + recipe.batch]]
        for name, method in methods.items():
            start_time = time.perf_counter()
            method(requests)
            if start:
                timings[name].append((time.perf_counter() - start_time) / len(requests))
    return timings


if __name__ == "__main__":
    run(main)
