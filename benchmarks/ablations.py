"""Ablations of the guided module: modules trained without one component each, evaluated with Protocol I.

    python -m benchmarks.ablations ORACLE --classes voc --steps 600 --images 60 --out runs/ablations

Every row uses the same oracle dataset, steps, batch size and seed, and is evaluated on the same images. The same
command resumes; rows that are trained are not trained again. `--rows` selects the rows whose names start with one of
the given prefixes.
"""

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import command_line, options_of, positive, run
from factory.dataset.storage import Store
from factory.evaluation.grounder_results import GROUPS, averaged
from factory.evaluation.markdown import check_page, write_table
from factory.evaluation.protocol_1 import protocol_1
from factory.grounder.data import OracleDataset
from factory.grounder.modules.guided import GuidedOptions
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.hf_logging import quiet_model_libraries
from factory.training.loop import train
from factory.training.options import TrainOptions

WHOLE = GrounderOptions()
PAPER = GrounderOptions(module="paper")
ROWS = {
    "guided": (WHOLE, 1e-3),
    "mean of the attention maps, no learned mixtures": (
        replace(WHOLE, guided=GuidedOptions(attention_mixtures=False)),
        1e-3,
    ),
    "without the maps of other classes": (replace(WHOLE, guided=GuidedOptions(other_classes=False)), 1e-3),
    "without the image": (replace(WHOLE, guided=GuidedOptions(image=False)), 1e-3),
    "without features": (replace(WHOLE, guided=GuidedOptions(features=False)), 1e-3),
    "without dice loss": (replace(WHOLE, dice=0.0), 1e-3),
    "separate classes, without dice loss": (replace(WHOLE, dice=0.0, competing=False), 1e-3),
    "guided, learning rate 0.0003": (WHOLE, 3e-4),
    "guided, learning rate 0.003": (WHOLE, 3e-3),
    "paper, learning rate 0.0001": (PAPER, 1e-4),
    "paper, learning rate 0.0003": (PAPER, 3e-4),
    "paper, learning rate 0.001": (PAPER, 1e-3),
}


def main() -> None:
    """Train and print the table."""
    parser = command_line(__doc__)
    parser.add_argument("oracle")
    parser.add_argument("--classes", default="voc")
    parser.add_argument("--steps", type=positive, default=600)
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--images", type=positive, default=60)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", nargs="+", default=[""])
    parser.add_argument(
        "--only-train", action="store_true", help="Skip the evaluation; run the same command without this option later."
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    options = options_of(parser)
    selected = {name: row for name, row in ROWS.items() if name.startswith(tuple(options.rows))}
    if not selected:
        parser.error(f"no row starts with {' or '.join(options.rows)}; the rows are: {'; '.join(ROWS)}")
    if options.table:
        check_page(options.table)
    quiet_model_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)
    sets = [OracleDataset(Store(options.oracle))]
    named = []
    for name, (module_options, rate) in selected.items():
        folder = options.out / name.translate({ord(" "): "-", ord(","): "", ord("'"): ""})
        plan = TrainOptions(steps=options.steps, batch=options.batch, learning_rate=rate, ema_decay=0.99)
        train(GrounderTask(sets, module_options, "cpu", options.steps), plan, folder)
        named.append(f"{name}={folder / 'model'}")
    if options.only_train:
        return
    results = protocol_1(named, options.classes, options.images, threads=options.threads or 1)
    lines = [f"| | {' | '.join(GROUPS)} | mean |", "|---" * (len(GROUPS) + 2) + "|"]
    for method, by_group in averaged(results):
        mean = sum(by_group.values()) / len(by_group)
        lines.append(f"| {method} | {' | '.join(f'{100 * by_group[g]:.1f}' for g in GROUPS)} | {100 * mean:.1f} |")
    arguments = f"--steps {options.steps} --batch {options.batch} --images {options.images}"
    text = f"`python -m benchmarks.ablations ... {arguments}` printed this table.\n\n" + "\n".join(lines) + "\n"
    print(text)
    if options.table:
        write_table(options.table, text, f"ablations-{options.classes}")


if __name__ == "__main__":
    run(main)
