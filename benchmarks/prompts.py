"""Prompts of the style `rich` in tokens, and the pairs of classes of `--cooccurrence coco`.

    python -m benchmarks.prompts --tokenizer FOLDER

FOLDER is the tokenizer of a text-to-image model, such as `tokenizer` in a folder of Stable Diffusion.
"""

import time
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.common import command_line, options_of, positive, run
from factory.config.cooccurrence import pair_weights
from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.config.vocabulary import coco

SIZES = (1, 2, 3, 6)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--n", type=positive, default=3000)
    options = options_of(parser)
    if not options.tokenizer.is_dir():
        parser.error(f"--tokenizer must be the folder of a tokenizer, got {options.tokenizer}")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    print("| objects | mean tokens | most tokens | different prompts | prompts/s | pairs that COCO never shows |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        print(table_row(tokenizer, size, options.n))


def table_row(tokenizer: Any, size: int, n: int) -> str:
    data = {"n": n, "objects": {size: 1.0}, "prompt_style": "rich"} | ({"cooccurrence": "coco"} if size > 1 else {})
    start = time.perf_counter()
    prompts = [sample.prompt for sample in Plan(make_recipe(data)).samples()]
    rate = n / (time.perf_counter() - start)
    lengths = [len(ids) for ids in tokenizer([prompt.text for prompt in prompts], verbose=False).input_ids]
    matrix, position = pair_weights("coco", coco(), coco().names), coco().names.index
    pairs = [pair for prompt in prompts for pair in combinations(prompt.classes, 2)]
    absent = sum(not matrix[position(first)][position(second)] for first, second in pairs) / max(1, len(pairs))
    mean, different = sum(lengths) / n, len({prompt.text for prompt in prompts})
    return f"| {size} | {mean:.1f} | {max(lengths)} | {different} | {rate:.0f} | {absent:.1%} |"


if __name__ == "__main__":
    run(main)
