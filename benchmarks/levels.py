"""Agreement of attention masks with a detector's masks, by noise level and by blocks of a transformer or U-Net levels.

    python -m benchmarks.levels --n 64
    python -m benchmarks.levels --model black-forest-labs/FLUX.1-schnell --dtype bfloat16 --parts each --n 64 \
        --detector facebook/mask2former-swin-large-coco-instance

All rows read the same images, which are sampled once. A class counts if the detector finds it with a score of at least
0.5; the metric is the mean intersection over union of these masks. `--parts each` reads every block of a transformer on
its own, with a call of the denoiser for each block and level; the default reads eighths of the depth and the family's
own blocks. The row of a family in `factory/generator/families.py` holds what this benchmark finds best.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from benchmarks.common import command_line, options_of, positive, run
from factory.config.plan import Plan
from factory.config.prompts import Prompt
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.masks import intersection_over_union
from factory.dataset.records import Grounded
from factory.detector.interface import Detector
from factory.detector.load import open_detector
from factory.generation.pin import pin_recipe
from factory.generator.families import default_read_blocks
from factory.generator.interface import ATTENTION, LATENT, Attention, Generated, Request
from factory.generator.layers import transformer_blocks
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.attention import AttentionGrounder
from factory.hf_logging import quiet_model_libraries
from factory.training.devices import chosen_device

NOISE_LEVELS = (0.1, 0.25, 0.4, 0.515, 0.65, 0.8)
THRESHOLDS = (None, 0.3, 0.4, 0.5, 0.6)
LEVELS = (None, (1,), (2,), (4,), (1, 2), (2, 4))
_EIGHTHS = 8


@dataclass(frozen=True)
class Batch:
    """Images of one micro-batch with their latents and the detector's masks."""

    prompts: list[Prompt]
    generated: list[Generated]
    oracle: list[Grounded]


def sampled(generator: PipelineGenerator, recipe: Recipe, detector: Detector) -> list[Batch]:
    """The images of a recipe, and detections with a score of at least 0.5."""
    samples, batches = list(Plan(recipe).samples()), []
    for start in range(0, len(samples), recipe.batch):
        part = samples[start : start + recipe.batch]
        made = generator.generate([Request(sample.prompt, sample.seed(recipe.seed, 0)) for sample in part])
        found = detector.detect([image.image for image in made])
        oracle = [Grounded(tuple(i for i in instances if i.score >= 0.5)) for instances in found]
        batches.append(Batch([sample.prompt for sample in part], made, oracle))
    return batches


def block_sets(generator: PipelineGenerator, parts: str) -> list[tuple[int, ...] | None]:
    """The sets of blocks to read: None for a U-Net, whose levels are chosen after reading."""
    if generator.family.is_unet:
        return [None]
    denoiser = getattr(generator.pipeline, generator.family.denoiser)
    count = len(transformer_blocks(denoiser, generator.family))
    own = default_read_blocks(generator.family, count)
    if parts == "each":
        return [own, *((number,) for number in range(count))]
    edges = np.linspace(0, count, min(_EIGHTHS, count) + 1).astype(int).tolist()
    return [own, tuple(range(count)), *(tuple(range(a, b)) for a, b in pairwise(edges))]


def rows(
    recipe: Recipe, detector: Detector, device: str, parts: str, noise_levels: Sequence[float]
) -> list[tuple[float, int, str]]:
    """(mean IoU, classes, settings) of every combination, best first."""
    first = PipelineGenerator(recipe, device, frozenset({LATENT}))
    batches, result = sampled(first, recipe, detector), []
    for level in noise_levels:
        for blocks in block_sets(first, parts):
            masks = recipe.masks.model_copy(update={"noise_level": level, "blocks": blocks})
            chosen = recipe.model_copy(update={"masks": masks})
            reader = PipelineGenerator(chosen, device, frozenset({ATTENTION}), first.pipeline)
            attention = [_read(reader, batch) for batch in batches]
            for description, setting, spread in _settings(chosen, blocks):
                grounder, values = AttentionGrounder(setting), []
                for batch, own in zip(batches, attention, strict=True):
                    heat = own if spread else [replace(a, self_attention=None) for a in own]
                    images = [replace(g, attention=a) for g, a in zip(batch.generated, heat, strict=True)]
                    values += agreement(grounder.ground(images, batch.prompts), batch)
                mean = float(np.mean(values)) if values else 0.0
                result.append((mean, len(values), f"noise {level:g} {description}"))
    return sorted(result, reverse=True)


def _read(reader: PipelineGenerator, batch: Batch) -> list[Attention]:
    latents = np.stack([image.latent for image in batch.generated if image.latent is not None])
    return reader.attention(torch.from_numpy(latents).float(), batch.prompts)


def _settings(recipe: Recipe, blocks: tuple[int, ...] | None) -> Iterator[tuple[str, object, bool]]:
    """(description, `masks` section, whether heat is propagated along self-attention) of every combination."""
    for levels in LEVELS if blocks is None else (None,):
        for threshold in THRESHOLDS:
            for spread in (True, False):
                part = f"levels {levels or 'all'}" if blocks is None else f"blocks {blocks[0]}-{blocks[-1]}"
                setting = recipe.masks.model_copy(update={"levels": levels, "threshold": threshold})
                yield f"{part} threshold {threshold or 'found'} spread {spread}", setting, spread


def agreement(grounded: Sequence[Grounded], batch: Batch) -> list[float]:
    """The intersection over union of each class that the detector found."""
    values = []
    for prediction, truth, prompt in zip(grounded, batch.oracle, batch.prompts, strict=True):
        for name in prompt.classes:
            expected, predicted = truth.of_class(name), prediction.of_class(name)
            if expected is not None:
                values.append(0.0 if predicted is None else intersection_over_union(predicted, expected))
    return values


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--n", type=positive, default=64)
    parser.add_argument("--model", default="stickers")
    parser.add_argument("--detector", default="stickers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--width", type=positive)
    parser.add_argument("--height", type=positive)
    parser.add_argument("--parts", choices=("eighths", "each"), default="eighths")
    parser.add_argument("--noise-levels", type=float, nargs="+", default=NOISE_LEVELS)
    parser.add_argument("--show", type=positive, default=15)
    options = options_of(parser)
    quiet_model_libraries()
    size = {"width": options.width, "height": options.height}
    generator = {"model": options.model, "dtype": options.dtype, **size}
    masks = {"source": "attention", "detector": options.detector}
    data = {"n": options.n, "batch": options.batch, "objects": {1: 0.5, 2: 0.5}}
    recipe = pin_recipe(make_recipe(data | {"generator": generator, "masks": masks}))
    device = chosen_device(options.device)
    table = rows(recipe, open_detector(recipe, device), device, options.parts, options.noise_levels)
    print("| mean IoU | classes | read how |\n|---|---|---|")
    for value, count, description in table[: options.show]:
        print(f"| {value:.3f} | {count} | {description} |")


if __name__ == "__main__":
    run(main)
