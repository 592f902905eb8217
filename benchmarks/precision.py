"""Speed and accuracy of float32 and bfloat16 on the CPU.

    python -m benchmarks.precision --steps 8 --images 16

Measures the time of a segmenter's training step (SegFormer-B0, 16 images of 128 x 128 pixels), of an image of the
embedded model, and of an image that is inverted with 50 DDIM steps. Also reports the PSNR of its reconstruction, and
that of the autoencoder alone, which no inversion can exceed.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import command_line, median_seconds, options_of, positive, run
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import voc
from factory.generation.inversion_recipe import RealOptions, recipe_of_folder
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from factory.generator.inversion import InvertingGenerator
from factory.generator.pipeline import PipelineGenerator
from factory.hf_logging import quiet_model_libraries
from factory.segmenter.model import new_segmenter
from factory.stickers.voc_folder import write_voc_folder

PRECISIONS = ("float32", "bfloat16")


def segmenter_step(precision: str, steps: int) -> float:
    model = new_segmenter("segformer", ["background", *voc().names]).to(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (16, 128, 128, 3), dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)
    labels = torch.randint(0, 20, (16, 128, 128), dtype=torch.uint8, generator=random)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model.loss(images, labels)
        loss.backward()

    return median_seconds(step, steps)


def requests_of(recipe: Recipe) -> list[Request]:
    return [Request(sample.prompt, 0, sample.index) for sample in Plan(recipe).shard(0).samples]


def drawing(precision: str, images: int) -> float:
    recipe = pin_recipe(make_recipe({"n": images, "classes": "voc", "generator": {"dtype": precision}}))
    generator = PipelineGenerator(recipe)
    return median_seconds(lambda: generator.generate(requests_of(recipe)), 2) / images


def inverting(precision: str, images: int, folder: Path, method: str = "ddim") -> tuple[float, float]:
    """(seconds per image, mean PSNR in dB)."""
    steps = 50 if method == "ddim" else None
    options = RealOptions("voc", folder, "trainval", None, "voc", "all", images, method, steps, 0.23, 3, 0.01)
    recipe = pin_recipe(recipe_of_folder(options, {"generator": {"dtype": precision}}, {})[0])
    generator = InvertingGenerator(recipe)
    start = time.perf_counter()
    generated = generator.generate(requests_of(recipe))
    elapsed = time.perf_counter() - start
    return elapsed / len(generated), float(np.mean([sample.measured["psnr"] for sample in generated]))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=positive, default=8)
    parser.add_argument("--images", type=positive, default=16)
    options = options_of(parser)
    quiet_model_libraries()
    threads = torch.get_num_threads()
    print("| | segmenter, s a step | drawing, s an image | inverting, s an image | PSNR, dB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_voc_folder(Path(folder), voc(), 2 * options.images, ("noto",), seed=22)
        for precision in PRECISIONS:
            torch.set_num_threads(threads)
            step = segmenter_step(precision, options.steps)
            drawn = drawing(precision, options.images)
            inverted, psnr = inverting(precision, options.images, Path(folder))
            print(f"| {precision} | {step:.3f} | {drawn:.3f} | {inverted:.2f} | {psnr:.2f} |", flush=True)
        print(f"| autoencoder alone | | | | {inverting('float32', options.images, Path(folder), 'noise')[1]:.2f} |")
    print(f"\nThe step on {threads} threads, the rest on one.")


if __name__ == "__main__":
    run(main)
