"""Checks of every family of text-to-image models, on the real model classes with small random weights.

    python -m benchmarks.families

Columns: images are bit-identical to those of the diffusers pipeline with the same seed; images in a batch equal those
generated alone (differences of 1 in 255 are rounding); attention masks are finite; the `guided` grounder has a finite
loss and gradient on an oracle dataset; seconds of the call that reads attention and features of one image, and that
time as a share of sampling the image with the default number of steps. Times on tiny weights say little about real
ones, because their text encoders are as small as their denoisers. `--model FOLDER` adds models of your own, at their
own size.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import NO_FILTERS, command_line, median_seconds, options_of, run
from factory.config.prompts import Prompt
from factory.config.recipe import Recipe, make_recipe
from factory.config.splits import seen_classes
from factory.config.vocabulary import voc
from factory.dataset.storage import Store
from factory.generation.pin import pin_recipe
from factory.generator.interface import ATTENTION, CROSS_ATTENTION, FEATURES, LATENT, Request
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.attention import AttentionGrounder
from factory.grounder.data import OracleDataset
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.hf_logging import quiet_model_libraries
from tests.support.datasets import BandDetector, make_dataset
from tests.support.tiny_families import BUILDERS, SIDES, tiny_family

TINY = ("sd", "sdxl", *BUILDERS)
PROMPTS = [
    Prompt("a photograph of a dog and a train", ("dog", "train"), ("dog", "train")),
    Prompt("a photograph of a cat", ("cat",), ("cat",)),
]
REQUESTS = [Request(prompt, 5 + number) for number, prompt in enumerate(PROMPTS)]


def recipe_of(model: Path | str, side: int | None, **changes: Any) -> Recipe:
    size = {} if side is None else {"width": side, "height": side}
    data: dict[str, Any] = {"n": 4, "classes": "voc", "shard_size": 4, "batch": 2, "attempts": 1}
    data |= {"generator": {"model": str(model), **size}, "masks": {"source": "attention"}, "filters": NO_FILTERS}
    return pin_recipe(make_recipe(data | changes))


def images_equal(generator: PipelineGenerator) -> bool:
    settings = generator.settings
    options = generator.family.guidance_options(settings.guidance, "", 1) | dict(generator.family.call)
    height, width = generator.pixels
    generator.pipeline.set_progress_bar_config(disable=True)
    for request in REQUESTS:
        expected = generator.pipeline(
            prompt=request.prompt.text,
            num_inference_steps=settings.steps,
            generator=torch.Generator().manual_seed(request.seed),
            height=height,
            width=width,
            **options,
        ).images[0]
        if not np.array_equal(generator.generate([request])[0].image, np.asarray(expected)):
            return False
    return True


def batch_equals_alone(generator: PipelineGenerator) -> bool:
    together = generator.generate(REQUESTS)
    alone = [generator.generate([request])[0] for request in REQUESTS]
    pairs = zip(together, alone, strict=True)
    return all(np.abs(a.image.astype(int) - b.image.astype(int)).max() <= 1 for a, b in pairs)


def attention_works(generator: PipelineGenerator) -> bool:
    generated = generator.generate(REQUESTS)
    grounded = AttentionGrounder(generator.recipe.masks).ground(generated, PROMPTS)
    maps = [level for image in generated if image.attention for level in image.attention.cross.values()]
    return len(grounded) == 2 and bool(maps) and all(np.isfinite(level).all() for level in maps)


def guided_works(recipe: Recipe, folder: Path) -> bool:
    seen = list(seen_classes(voc(), "1"))
    oracle = pin_recipe(
        recipe.model_copy(
            update={
                "masks": recipe.masks.model_copy(update={"source": "detector", "blocks": None}),
                "oracle": make_recipe({"n": 1, "classes": "voc", "oracle": {"split": "1", "seen": seen},
                                       "masks": {"source": "detector"}}).oracle,
            }
        )
    )  # fmt: skip
    make_dataset(oracle, folder, BandDetector(voc().names))
    task = GrounderTask([OracleDataset(Store(str(folder)))], GrounderOptions(), "cpu", 1)
    loss = task.loss(0, 2, 0)
    loss.backward()
    return bool(loss.isfinite()) and all(bool(w.grad.isfinite().all()) for w in task.model.parameters())


def read_seconds(recipe: Recipe, generator: PipelineGenerator) -> tuple[float, float]:
    """(seconds to read one image, seconds to sample it)."""
    needs = frozenset({CROSS_ATTENTION, FEATURES})
    reader = PipelineGenerator(recipe, generator.device, needs, generator.pipeline)
    plain = PipelineGenerator(recipe, generator.device, frozenset({LATENT}), generator.pipeline)
    (made,) = plain.generate(REQUESTS[:1])
    assert made.latent is not None
    latent = torch.from_numpy(made.latent[None]).float()
    reading = median_seconds(lambda: reader.read(latent, PROMPTS[:1]))
    return reading, median_seconds(lambda: plain.generate(REQUESTS[:1]))


def table_row(name: str, recipe: Recipe, device: str, folder: Path) -> str:
    torch.set_num_threads(recipe.generator.threads)
    generator = PipelineGenerator(recipe, device, frozenset({ATTENTION, FEATURES}))
    reading, sampling = read_seconds(recipe, generator)
    checks = [check(generator) for check in (images_equal, batch_equals_alone, attention_works)]
    checks.append(guided_works(recipe, folder))
    cells = " | ".join("yes" if passed else "NO" for passed in checks)
    share = f"{100 * reading / sampling:.0f} % of {recipe.generator.steps} steps"
    return f"| {name} ({generator.family.name}) | {cells} | {reading:.3f} ({share}) |"


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--model", action="append", default=[], help="Folder or hub id of a further model.")
    parser.add_argument("--only", nargs="*", choices=TINY, help="Tiny models; all by default, none if empty.")
    parser.add_argument("--device", default="cpu")
    options = options_of(parser)
    warnings.simplefilter("ignore")
    quiet_model_libraries()
    names = TINY if options.only is None else options.only
    print("| family | images equal | batch = alone | attention | guided | seconds of the read |\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            recipe = recipe_of(tiny_family(name, Path(directory) / name), SIDES.get(name, 64))
            print(table_row(name, recipe, options.device, Path(directory) / f"{name}-oracle"))
        for number, model in enumerate(options.model):
            print(table_row(model, recipe_of(model, None), options.device, Path(directory) / f"oracle-{number}"))


if __name__ == "__main__":
    run(main)
