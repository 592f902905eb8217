"""What each ingredient of the guided module is worth: trained without it, measured by Protocol I.

    python benchmarks/ablations.py ORACLE_SET --classes voc --steps 600 --images 60 --out runs/ablations

Every row has the same oracle set, steps, batch and seed. Rows that are trained already are only measured.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from factory.grounder.data import OracleSet
from factory.grounder.modules.guided import GuidedOptions
from factory.grounder.protocol import GROUPS, protocol_1
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.libraries import quiet_model_libraries
from factory.store import Store
from factory.training.loop import TrainOptions, train

WHOLE = GrounderOptions()
ROWS = {
    "guided": WHOLE,
    "without learnt mixtures of maps": replace(WHOLE, guided=GuidedOptions(learnt_maps=False)),
    "without the other classes' maps": replace(WHOLE, guided=GuidedOptions(others=False)),
    "without the picture": replace(WHOLE, guided=GuidedOptions(picture=False)),
    "without features": replace(WHOLE, guided=GuidedOptions(features=False)),
    "without dice": replace(WHOLE, dice=0.0),
    "without competition (binary cross-entropy)": replace(WHOLE, dice=0.0, competing=False),
    "with maps spread by likeness": replace(WHOLE, guided=GuidedOptions(spread=True)),
    "paper": GrounderOptions(module="paper"),
}


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle")
    parser.add_argument("--classes", default="voc")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    quiet_model_libraries()
    sets = [OracleSet(Store(options.oracle))]
    lines = []
    for number, (name, chosen) in enumerate(ROWS.items()):
        folder = options.out / f"{number}"
        rate = 3e-4 if chosen.module == "paper" else 1e-3
        plan = TrainOptions(steps=options.steps, batch=options.batch, learning_rate=rate, ema_decay=0.99)
        if not (folder / "model" / "config.json").exists():
            train(GrounderTask(sets, chosen, "cpu", options.steps), plan, folder)
        results = protocol_1([str(folder / "model")], options.classes, options.images, report=lambda text: None)
        by_group = {row.group: 100 * row.miou for row in results if row.method != "attention"}
        mean = sum(by_group.values()) / len(by_group)
        lines.append(f"| {name} | {' | '.join(f'{by_group[group]:.1f}' for group in GROUPS)} | {mean:.1f} |")
        print(lines[-1], flush=True)
    print(f"\n`python benchmarks/ablations.py ... --steps {options.steps} --images {options.images}`\n")
    print(f"| | {' | '.join(GROUPS)} | mean |")
    print("|---" * (len(GROUPS) + 2) + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
