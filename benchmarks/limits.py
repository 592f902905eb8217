"""What limits the results of Protocol I: the masks of the detector, the resolution, or the assignment of classes.

    python -m benchmarks.limits GROUNDER --judge runs/judge/model --classes voc --images 60

All values are mIoU in percent on the new images of Protocol I, pooled by class and averaged over classes:

- `module`: the grounder against the detector, as in Protocol I; also restricted to images in which the detector finds
  every class with a score of at least 0.7 or 0.9.
- `second detector`: a second, independently trained detector (`factory stickers train judge`) against the first. No
  grounder can be expected to agree with a detector much more than another detector does.
- `masks reduced`: the detector's own masks, reduced to the given side in pixels and enlarged again.
- `classes merged`: the module against the detector without distinguishing the classes of an image.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.common import command_line, options_of, positive, run
from factory.dataset.masks import IGNORE
from factory.dataset.records import Grounded
from factory.detector.embedded import EmbeddedDetector
from factory.detector.fitting import FittingDetector
from factory.detector.oracle import OracleGrounder
from factory.evaluation.grounder_results import GROUPS
from factory.evaluation.markdown import check_page, write_table
from factory.evaluation.protocol_1 import split_recipe
from factory.evaluation.split_evaluation import EvaluationBatch, SplitEvaluation
from factory.grounder.iou import IoUMeter
from factory.grounder.trained import TrainedGrounder, open_grounders
from factory.hf_logging import quiet_model_libraries

THRESHOLDS, SIDES = (0.7, 0.9), (16, 32, 64)
ROWS = (
    "module",
    *(f"module, detection scores of at least {threshold}" for threshold in THRESHOLDS),
    "second detector",
    *(f"masks reduced to {side} pixels" for side in SIDES),
    "classes merged",
)
Labels = NDArray[np.uint8]
Tallies = dict[str, IoUMeter]


def count(
    tallies: Tallies,
    batch: EvaluationBatch,
    grounder: TrainedGrounder,
    second: Sequence[Grounded],
    max_images: int,
) -> None:
    """Add a batch's complete images, up to `max_images` of the group, so that they are those of Protocol I."""
    shape = batch.generated[0][0].image.shape[:2]
    predicted = grounder.ground(batch.generated[1], batch.prompts)
    for k in batch.complete[: max_images - tallies["module"].images]:
        classes = batch.prompts[k].classes
        truth = batch.truths[k].label_map(classes, shape)
        mine = predicted[k].disjoint().label_map(classes, shape)
        tallies["module"].add(classes, mine, truth)
        lowest_score = min(instance.score for instance in batch.truths[k].instances)
        for threshold in THRESHOLDS:
            if lowest_score >= threshold:
                tallies[f"module, detection scores of at least {threshold}"].add(classes, mine, truth)
        if second:
            tallies["second detector"].add(classes, second[k].disjoint().label_map(classes, shape), truth)
        for side in SIDES:
            tallies[f"masks reduced to {side} pixels"].add(classes, resized(truth, len(classes), side), truth)
        tallies["classes merged"].add(
            ["object"], (mine > 0).astype(np.uint8), np.where(truth == IGNORE, truth, truth > 0)
        )


def resized(labels: Labels, classes: int, side: int) -> Labels:
    """Labels after reducing the mask of each class to `side` pixels and enlarging it again."""
    layers = torch.from_numpy(np.stack([labels == k for k in range(classes + 1)])).float()[None]
    small = functional.interpolate(layers, (side, side), mode="area")
    large = functional.interpolate(small, labels.shape, mode="bilinear", align_corners=False)
    return large[0].argmax(0).numpy().astype(np.uint8)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("grounder")
    parser.add_argument("--judge", type=Path, help="Folder of a second detector.")
    parser.add_argument("--classes", default="voc")
    parser.add_argument("--images", type=positive, default=60)
    parser.add_argument("--table", type=Path)
    options = options_of(parser)
    if options.table:
        check_page(options.table)
    quiet_model_libraries()
    ((name, grounder),) = open_grounders([options.grounder], "cpu", 1)
    recipe = split_recipe({name: grounder.config}, grounder.config.split, options.classes, 1)
    evaluation = SplitEvaluation({name: grounder}, recipe, "cpu")
    judge = None
    if options.judge:
        detector = EmbeddedDetector(recipe, options.judge, "cpu")
        judge = OracleGrounder(FittingDetector(detector, "the second detector", 1), recipe.masks)
    columns: dict[str, Tallies] = {}
    for group in GROUPS:
        tallies = columns[group] = defaultdict(IoUMeter)
        for batch in evaluation.batches(group, 3 * options.images):
            second = judge.ground(batch.generated[0], batch.prompts) if judge else []
            count(tallies, batch, grounder, second, options.images)
            if tallies["module"].images >= options.images:
                break
    measures = [name for name in ROWS if any(name in tallies for tallies in columns.values())]
    lines = [f"| | {' | '.join(GROUPS)} |", "|---" * (len(GROUPS) + 1) + "|"]
    for measure in measures:
        meters = [tallies[measure] for tallies in columns.values()]
        cells = [f"{100 * meter.miou:.1f} ({meter.images})" if meter.images else "" for meter in meters]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    command = f"python -m benchmarks.limits GROUNDER --classes {options.classes} --images {options.images}"
    command += f" --judge {options.judge}" if options.judge else ""
    text = f"`{command}` printed this table; the number of images is in brackets.\n\n" + "\n".join(lines) + "\n"
    print(text)
    if options.table:
        write_table(options.table, text, f"limits-{options.classes}")


if __name__ == "__main__":
    run(main)
