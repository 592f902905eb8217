"""What limits the results of Protocol I: the masks of the detector, the resolution, or the assignment of classes.

    python -m benchmarks.limits GROUNDER --classes voc --images 60

All values are mIoU in percent on the new images of Protocol I, pooled by class and averaged over classes:

- `module`: the grounder against the detector, as in Protocol I; also restricted to images in which the detector finds
  every class with a score of at least 0.7 or 0.9.
- `detector, mirrored image`: the detector against itself on mirrored images. No grounder can be expected to agree with
  the detector more than the detector agrees with itself.
- `masks reduced`: the detector's own masks, reduced to the given side in pixels and enlarged again.
- `classes merged`: the module against the detector without distinguishing the classes of an image.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from factory.dataset.masks import IGNORE
from factory.dataset.records import Image, Instance
from factory.evaluation.markdown import write_table
from factory.evaluation.protocol_1 import GROUPS, split_recipe
from factory.evaluation.split_evaluation import EvaluationBatch, SplitEvaluation
from factory.grounder.iou import IoUMeter, label_map
from factory.grounder.trained import TrainedGrounder, open_grounders
from factory.hf_logging import quiet_model_libraries

THRESHOLDS, SIDES = (0.7, 0.9), (16, 32, 64)
Labels = NDArray[np.uint8]
Tallies = dict[str, IoUMeter]


def count(
    tallies: Tallies,
    batch: EvaluationBatch,
    grounder: TrainedGrounder,
    again: Sequence[Sequence[Instance]],
    max_images: int,
) -> None:
    """Add a batch's complete images, up to `max_images` of the group, so that they are those of Protocol I."""
    shape = batch.generated[0][0].image.shape[:2]
    predicted = grounder.ground(batch.generated[1], batch.prompts)
    for k in batch.complete[: max_images - tallies["module"].images]:
        classes = batch.prompts[k].classes
        truth = label_map(batch.truths[k].disjoint(), classes, shape)
        mine = label_map(predicted[k].disjoint(), classes, shape)
        tallies["module"].add(classes, mine, truth)
        lowest_score = min(instance.score for instance in batch.truths[k].instances)
        for threshold in THRESHOLDS:
            if lowest_score >= threshold:
                tallies[f"module, detection scores of at least {threshold}"].add(classes, mine, truth)
        tallies["detector, mirrored image"].add(classes, of_detections(again[k], classes, shape), truth)
        for side in SIDES:
            tallies[f"masks reduced to {side} pixels"].add(classes, resized(truth, len(classes), side), truth)
        tallies["classes merged"].add(
            ["object"], (mine > 0).astype(np.uint8), np.where(truth == IGNORE, truth, truth > 0)
        )


def of_detections(found: Sequence[Instance], classes: Sequence[str], shape: Sequence[int]) -> Labels:
    """Labels from detections with a score of at least 0.5, those with higher scores in front."""
    labels = np.zeros(tuple(shape), np.uint8)
    for instance in sorted(found, key=lambda instance: instance.score):
        if instance.score >= 0.5 and instance.class_name in classes:
            labels[instance.mask] = classes.index(instance.class_name) + 1
    return labels


def resized(labels: Labels, classes: int, side: int) -> Labels:
    """Labels after reducing the mask of each class to `side` pixels and enlarging it again."""
    layers = torch.from_numpy(np.stack([labels == k for k in range(classes + 1)])).float()[None]
    small = functional.interpolate(layers, (side, side), mode="area")
    large = functional.interpolate(small, labels.shape, mode="bilinear", align_corners=False)
    return large[0].argmax(0).numpy().astype(np.uint8)


def mirrored(images: Sequence[Image], evaluation: SplitEvaluation) -> list[list[Instance]]:
    """Detections in mirrored images, mirrored back."""
    found = evaluation.detector.detect([np.ascontiguousarray(image[:, ::-1]) for image in images])
    return [[Instance(i.class_name, i.score, i.mask[:, ::-1]) for i in instances] for instances in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grounder")
    parser.add_argument("--classes", default="voc")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    quiet_model_libraries()
    ((name, grounder),) = open_grounders([options.grounder], "cpu", 1)
    evaluation = SplitEvaluation(
        {name: grounder}, split_recipe({name: grounder.config}, grounder.config.split, options.classes, 1), "cpu"
    )
    columns: dict[str, Tallies] = {}
    for group in GROUPS:
        tallies = columns[group] = defaultdict(IoUMeter)
        for batch in evaluation.batches(group, 3 * options.images):
            again = mirrored([made.image for made in batch.generated[0]], evaluation)
            count(tallies, batch, grounder, again, options.images)
            if tallies["module"].images >= options.images:
                break
    measures = list(dict.fromkeys(name for tallies in columns.values() for name in tallies))
    lines = [f"| | {' | '.join(GROUPS)} |", "|---" * (len(GROUPS) + 1) + "|"]
    for measure in measures:
        meters = [tallies[measure] for tallies in columns.values()]
        cells = [f"{100 * meter.miou:.1f} ({meter.images})" if meter.images else "" for meter in meters]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    command = f"`python -m benchmarks.limits GROUNDER --classes {options.classes} --images {options.images}`"
    text = f"{command} printed this table; the number of images is in brackets.\n\n" + "\n".join(lines) + "\n"
    print(text)
    if options.table:
        write_table(options.table, text, f"limits-{options.classes}")


if __name__ == "__main__":
    main()
