"""Time and memory to find the missing shard of a dataset with 100,000 receipts.

python -m benchmarks.resume --shards 100000
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.dataset.receipts import committed, missing, receipt_name
from factory.dataset.storage import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    options = parser.parse_args()
    recipe = make_recipe({"n": options.shards * 250, "shard_size": 250})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "receipts").mkdir()
        for number in range(0, options.shards, 2):
            (Path(folder) / receipt_name(number)).write_bytes(b"{}" * 500)
            (Path(folder) / receipt_name(number + 1)).write_bytes(b"{}" * 500)
        (Path(folder) / receipt_name(options.shards // 2)).unlink()
        start = time.perf_counter()
        plan, store = Plan(recipe), Store(folder)
        missing_shards = missing(plan, committed(store))
        shard = plan.shard(missing_shards[0])
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("| receipts | missing found | first sample to make | seconds | peak memory |\n|---|---|---|---|---|")
    print(f"| {options.shards - 1} | {missing_shards} | {shard.samples[0].key} | {seconds:.2f} | {memory:.0f} MB |")


if __name__ == "__main__":
    main()
