"""Time per image of each part of a worker with one thread.

    python -m benchmarks.worker --model stickers --dtype bfloat16 --channels-last

The time of the U-Net includes its call for the mask; `mask features` is that call with the preparation of its inputs.
`total` is the time of the whole worker, including filters and encoding.
"""

import functools
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.common import command_line, options_of, positive, run
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generation.shard import produce
from factory.generator.pipeline import PipelineGenerator
from factory.hf_logging import quiet_model_libraries

_SHARD = 16


def time_method(owner: Any, name: str, label: str, seconds: dict[str, float]) -> None:
    """Replace a method with one that adds its time to `seconds`."""
    method = getattr(owner, name)

    @functools.wraps(method)  # the sampler reads the signature of the denoiser
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - start

    setattr(owner, name, timed)


def seconds_by_part(recipe: Recipe, shards: int) -> dict[str, float]:
    """Seconds of each part for all shards but the first, which warms up."""
    components, seconds = load_components(recipe), defaultdict[str, float](float)
    assert isinstance(components.generator, PipelineGenerator)
    pipeline = components.generator.pipeline
    time_method(pipeline.unet, "forward", "U-Net", seconds)
    time_method(pipeline.vae.decoder, "forward", "decoding", seconds)  # the sampler replaces `decode`
    time_method(pipeline.text_encoder, "forward", "text encoder", seconds)
    time_method(components.generator, "_read", "mask features", seconds)
    time_method(components.grounder, "ground", "grounder", seconds)
    with ThreadPoolExecutor(1) as encoder:
        for shard in range(shards + 1):
            if shard == 1:
                seconds.clear()
                start = time.perf_counter()
            for future in produce(Plan(recipe).shard(shard), recipe, components, encoder).samples:
                future.result()
        seconds["total"] = time.perf_counter() - start
    return seconds


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--model", choices=("stickers", "stickers-turbo"), default="stickers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--shards", type=positive, default=4)
    options = options_of(parser)
    quiet_model_libraries()
    generator = {"model": options.model, "dtype": options.dtype, "channels_last": options.channels_last}
    data = {"n": _SHARD * (options.shards + 1), "shard_size": _SHARD, "attempts": 1, "generator": generator}
    recipe = pin_recipe(make_recipe(data | {"masks": {"source": options.model}}))
    print("| part | ms per image |\n|---|---|")
    for label, spent in sorted(seconds_by_part(recipe, options.shards).items(), key=lambda item: -item[1]):
        print(f"| {label} | {spent / (_SHARD * options.shards) * 1000:.1f} |")


if __name__ == "__main__":
    run(main)
