"""Time and memory to list the receipts of a dataset in a local folder, and to plan its missing shard.

    python -m benchmarks.resume --shards 100000

`generate` also reads the receipt index, which `benchmarks.driver` measures.
"""

import resource
import tempfile
import time
from pathlib import Path

from benchmarks.common import command_line, options_of, positive, run
from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.dataset.receipts import committed_shards, missing_shards, receipt_name
from factory.dataset.storage import Store


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--shards", type=positive, default=100_000)
    options = options_of(parser)
    recipe = make_recipe({"n": options.shards * 250, "shard_size": 250})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "receipts").mkdir()
        for number in range(options.shards):
            if number != options.shards // 2:
                (Path(folder) / receipt_name(number)).write_bytes(b"{}" * 500)
        start = time.perf_counter()
        plan, store = Plan(recipe), Store(folder)
        missing = missing_shards(plan, committed_shards(store))
        shard = plan.shard(missing[0])
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        "| receipts | missing shards found | first sample to generate | seconds | peak memory |\n|---|---|---|---|---|"
    )
    print(f"| {options.shards - 1} | {missing} | {shard.samples[0].key} | {seconds:.2f} | {memory:.0f} MB |")


if __name__ == "__main__":
    run(main)
