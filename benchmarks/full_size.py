"""Time and peak memory of `generate` and `train-grounder` on the CPU with models of published sizes.

    python -m benchmarks.full_size sd15 sdxl

The weights are random, so the images are noise and no filter applies; the oracle masks are bands of brightness. Time
and memory do not depend on the weights. Peaks are the resident memory of the largest process.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import FACTORY, NO_FILTERS, command_line, options_of, positive, run
from benchmarks.memory import peaks
from benchmarks.shapes import random_pipeline
from factory.config.recipe import make_recipe
from factory.config.splits import seen_classes
from factory.config.vocabulary import voc
from factory.generation.pin import pin_recipe
from factory.hf_logging import quiet_model_libraries

_ORACLE = "--oracle"


def data_of(model: Path, dtype: str, steps: int, threads: int) -> dict[str, Any]:
    """The fields of a recipe for two samples."""
    return {
        "n": 2,
        "classes": "voc",
        "shard_size": 2,
        "batch": 1,
        "attempts": 1,
        "generator": {"model": str(model), "steps": steps, "dtype": dtype, "threads": threads},
        "masks": {"source": "attention"},
        "filters": NO_FILTERS,
    }


def oracle_dataset(model: Path, folder: Path, dtype: str, steps: int, threads: int) -> None:
    """Generate an oracle dataset with bands of brightness as masks."""
    from tests.support.datasets import BandDetector, make_dataset

    oracle = {"split": "1", "seen": list(seen_classes(voc(), "1"))}
    data = data_of(model, dtype, steps, threads) | {"masks": {"source": "detector"}, "oracle": oracle}
    make_dataset(pin_recipe(make_recipe(data)), folder, BandDetector(voc().names))


def print_rows(shape: str, folder: Path, dtype: str, steps: int, threads: int) -> None:
    """Print the table's rows of one model, whose files are written to `folder`."""
    model = random_pipeline(shape, folder / shape, getattr(torch, dtype))
    recipe, oracle = folder / "recipe.yaml", str(folder / "oracle")
    recipe.write_text(yaml.safe_dump(data_of(model, dtype, steps, threads)))
    generate = [*FACTORY, "generate", "--recipe", str(recipe), "--workers", "1", "--shards", str(folder / "set")]
    make_oracle = [sys.executable, "-m", "benchmarks.full_size", shape, _ORACLE, str(model), oracle]
    make_oracle += ["--dtype", dtype, "--steps", str(steps), "--threads", str(threads)]
    train = [*FACTORY, "train-grounder", oracle, "--steps", "2", "--batch", "2", "--device", "cpu"]
    train += ["--threads", str(threads), "--out", str(folder / "grounder")]
    for name, command in (
        (f"`generate`, 2 samples of {steps} steps, attention masks", generate),
        (f"oracle dataset, 2 samples of {steps} steps", make_oracle),
        ("`train-grounder`, 2 steps of 2 samples", train),
    ):
        driver, worker, seconds = peaks(command)
        print(f"| {shape} | {name} | {seconds:.0f} | {max(driver, worker) / 1024:.1f} GiB |", flush=True)


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__)
    parser.add_argument("shapes", nargs="+", choices=("sd15", "sdxl"))
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=positive, default=2)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument(_ORACLE, nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = options_of(parser)
    warnings.simplefilter("ignore")
    quiet_model_libraries()
    if options.oracle:
        model, out = map(Path, options.oracle)
        oracle_dataset(model, out, options.dtype, options.steps, options.threads)
        return
    print(f"{options.dtype}, {options.threads} threads; includes start-up and loading")
    print("| model | command | seconds | peak memory |\n|---|---|---|---|", flush=True)
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            print_rows(shape, Path(folder), options.dtype, options.steps, options.threads)


if __name__ == "__main__":
    run(main)
