"""What masks by a grounding module add to the time of generating, as a ratio to images alone, in one run.

    python -m benchmarks.grounding --n 64

The modules have random weights, for their time does not depend on them; rounds of all ways alternate, and the median of
the ratios is told. One thread, as a worker has.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
        capture="sampling",
        timestep=80,
        classes_seen=(),
        split="",
        data=(),
        steps=0,
    )
    save_grounder(build_module(config), config, {}, folder)
    return TrainedGrounder(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--model", default="stickers")
    options = parser.parse_args()
    quiet_model_libraries()
    data = {"n": options.n, "objects": {1: 0.5, 2: 0.5}, "generator": {"model": options.model}}
    recipe = pin_recipe(
        make_recipe(data | {"masks": {"source": "attention", "capture": "sampling", "timesteps": [80]}})
    )
    plain = PipelineGenerator(recipe)
    ways: dict[str, Callable[[list[Request]], object]] = {"images only": plain.generate}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("guided", "paper"):
            grounder = module_grounder(recipe, name, Path(folder) / name)
            generator = PipelineGenerator(recipe, needs=grounder.needs)
            ways[f"`{name}`"] = lambda asked, g=generator, m=grounder: m.ground(
                g.generate(asked), [one.prompt for one in asked]
            )
        attention = AttentionGrounder(recipe.masks)
        watching = PipelineGenerator(recipe, needs=attention.needs)
        ways["`attention`, one step"] = lambda asked: attention.ground(
            watching.generate(asked), [one.prompt for one in asked]
        )
        taken = measure(recipe, ways)
    print(f"`python -m benchmarks.grounding --n {options.n}`: one thread, {recipe.generator.steps} steps\n")
    print("| | seconds an image | ratio to images only |\n|---|---|---|")
    for name, rows in taken.items():
        ratio = statistics.median(mine / alone for mine, alone in zip(rows, taken["images only"], strict=True))
        print(f"| {name} | {statistics.median(rows):.4f} | {ratio:.3f} |")


def measure(recipe: Recipe, ways: dict[str, Callable[[list[Request]], object]]) -> dict[str, list[float]]:
    """Seconds an image of each way, by micro-batch; the first is not counted."""
    samples = list(Plan(recipe).samples())
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for start in range(0, len(samples), recipe.batch):
        asked = [Request(one.prompt, one.seed(0, 0)) for one in samples[start : start + recipe.batch]]
        for name, way in ways.items():
            began = time.perf_counter()
            way(asked)
            if start:
                taken[name].append((time.perf_counter() - began) / len(asked))
    return taken


if __name__ == "__main__":
    main()
