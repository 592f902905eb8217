"""Agreement of attention masks with the detector's masks, by the settings with which attention is read.

    python -m benchmarks.masks --n 64

All rows use the same images. A class counts if the detector finds it with a score of at least 0.5; the metric is the
mean intersection over union of these masks. The defaults of the recipe's `masks` section are based on this benchmark.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from factory.config.plan import Plan
from factory.config.prompts import Prompt
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.masks import intersection_over_union
from factory.dataset.records import Grounded
from factory.detector.interface import Detector
from factory.detector.load import open_detector
from factory.generation.pin import pin_recipe
from factory.generator.interface import ATTENTION, Generated, Request
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.attention import AttentionGrounder

TIMESTEPS = ([30], [100], [300], [500], [700], [100, 300, 500])
THRESHOLDS = (None, 0.3, 0.4, 0.5, 0.6)
LEVELS = (None, (1,), (2,), (4,), (1, 2), (2, 4))


def oracle_masks(detector: Detector, generated: Sequence[Generated]) -> list[Grounded]:
    """Detections with a score of at least 0.5."""
    found = detector.detect([sample.image for sample in generated])
    return [Grounded(tuple(i for i in instances if i.score >= 0.5)) for instances in found]


def agreement(grounded: Sequence[Grounded], oracle: Sequence[Grounded], prompts: Sequence[Prompt]) -> tuple[float, int]:
    """(mean IoU, number of classes that counted)."""
    values = []
    for prediction, truth, prompt in zip(grounded, oracle, prompts, strict=True):
        for name in prompt.classes:
            expected, predicted = truth.of_class(name), prediction.of_class(name)
            if expected is not None:
                values.append(0.0 if predicted is None else intersection_over_union(predicted, expected))
    return float(np.mean(values)) if values else 0.0, len(values)


def generate(recipe: Recipe) -> tuple[list[Generated], list[Prompt]]:
    """The images of a recipe, with their attention."""
    generator, samples = PipelineGenerator(recipe, needs=frozenset({ATTENTION})), list(Plan(recipe).samples())
    generated: list[Generated] = []
    for start in range(0, len(samples), recipe.batch):
        batch = samples[start : start + recipe.batch]
        generated += generator.generate([Request(sample.prompt, sample.seed(recipe.seed, 0)) for sample in batch])
    return generated, [sample.prompt for sample in samples]


def rows(recipe: Recipe, detector: Detector) -> list[tuple[float, int, str]]:
    """(mean IoU, classes, settings) of every combination, best first."""
    result, oracle = [], None
    for mode in ("finished", "sampling"):
        for times in TIMESTEPS:
            chosen = recipe.masks.model_copy(update={"capture": mode, "timesteps": tuple(times)})
            generated, prompts = generate(recipe.model_copy(update={"masks": chosen}))
            oracle = oracle or oracle_masks(detector, generated)
            for spread in (True, False):
                samples = generated if spread else [replace(s, attention=_unspread(s)) for s in generated]
                for levels in LEVELS:
                    for threshold in THRESHOLDS:
                        setting = chosen.model_copy(update={"levels": levels, "threshold": threshold})
                        found = AttentionGrounder(setting).ground(samples, prompts)
                        description = (
                            f"{mode} {times} levels {levels or 'all'} threshold {threshold or 'found'} spread {spread}"
                        )
                        result.append((*agreement(found, oracle, prompts), description))
    return sorted(result, reverse=True)


def _unspread(one: Generated) -> object:
    assert one.attention is not None
    return replace(one.attention, self_attention=None, self_attention_shape=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--model", default="stickers")
    parser.add_argument("--show", type=int, default=15)
    options = parser.parse_args()
    recipe = pin_recipe(
        make_recipe({"n": options.n, "objects": {1: 0.5, 2: 0.5}, "generator": {"model": options.model}})
    )
    table = rows(recipe, open_detector(recipe, "cpu"))
    print("| mean IoU | classes | read how |\n|---|---|---|")
    for value, count, description in table[: options.show]:
        print(f"| {value:.3f} | {count} | {description} |")


if __name__ == "__main__":
    main()
