"""Time to render a scene. The target is 3 ms per image of 128 x 128 pixels on one core.

python -m benchmarks.scenes
"""

import time

import numpy as np

from benchmarks.common import command_line, options_of, run
from factory.config.vocabulary import coco
from factory.stickers.atlas import load_atlas
from factory.stickers.scenes import random_class_names, render_scene


def main() -> None:
    options_of(command_line(__doc__))
    load_atlas()
    rng = np.random.default_rng(0)
    classes = [random_class_names(rng, coco().names) for _ in range(500)]
    print("| side in pixels | median ms | 95th percentile ms |\n|---|---|---|")
    for size in (64, 128, 256):
        times = []
        for seed, names in enumerate(classes):
            start = time.process_time()
            render_scene(seed, names, size)
            times.append(1000 * (time.process_time() - start))
        print(f"| {size} | {np.median(times):.2f} | {np.percentile(times, 95):.2f} |")


if __name__ == "__main__":
    run(main)
