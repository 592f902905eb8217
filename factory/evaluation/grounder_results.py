"""The results of Protocol I, and their table."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from factory.evaluation.markdown import cell, percent
from factory.files.atomic import write_atomically
from factory.files.strict_json import dumps

GROUPS = ("one seen", "one unseen", "two seen", "seen + unseen", "two unseen")
"""The groups of prompts, which are the columns of tables 1 and 2 of the paper."""


@dataclass(frozen=True)
class GrounderResult:
    """The result of a method on a group of a split.

    `miou`, 0 to 1, pools the pixels of a class over all images of the group and averages over classes; `image_miou` is
    the mean IoU of all objects of all images. `images` counts the images in which the detector found every class of the
    prompt, out of `tried`. The values are NaN without images, for example if a split has too few classes for the group.
    """

    method: str
    split: str
    group: str
    miou: float
    image_miou: float
    images: int
    tried: int


def averaged(results: Sequence[GrounderResult]) -> Iterator[tuple[str, dict[str, float]]]:
    """(method, mIoU by group), averaged over the splits of the method, in the order of the methods."""
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        yield method, {group: float(np.mean([r.miou for r in own if r.group == group])) for group in GROUPS}


PAPER = {
    "voc": {"published, Mask R-CNN": (90.3, 83.1, 79.1, 67.9, 55.7), "published, DAAM": (64.8, 62.9, 48.2, 49.2, 51.0)},
    "coco": {
        "published, Mask R-CNN": (83.7, 73.2, 64.2, 56.3, 44.4),
        "published, DAAM": (61.7, 57.8, 49.8, 52.2, 40.8),
    },
}
"""The mIoU in the paper in percent, averaged over its three splits (tables 1 and 2)."""


def as_markdown(results: Sequence[GrounderResult], classes: str) -> str:
    """A table of mIoU in percent, with the figures of the paper in the first rows.

    A method that was not measured on all splits is marked with its splits.
    """
    lines = [f"| | {' | '.join(GROUPS)} |", "|---" * (len(GROUPS) + 1) + "|"]
    for name, figures in PAPER.get(classes, {}).items():
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in figures)} |")
    splits = dict.fromkeys(result.split for result in results)
    for method, by_group in averaged(results):
        own = dict.fromkeys(result.split for result in results if result.method == method)
        label = f"`{cell(method)}`" if own == splits else f"`{cell(method)}`, only split {', '.join(own)}"
        lines.append(f"| {label} | {' | '.join(percent(by_group[group]) for group in GROUPS)} |")
    # All methods of a split are measured on the same images.
    images = {(result.split, result.group): result.images for result in results}
    summary = ", ".join(f"{sum(images.get((split, group), 0) for split in splits)} {group}" for group in GROUPS)
    lines += ["", f"Averaged over split {', '.join(splits)}. Images: {summary}."]
    return "\n".join(lines)


def write_results(results: Sequence[GrounderResult], classes: str, out: Path) -> None:
    """Write `protocol-1.json` and `protocol-1.md` to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    data = {"classes": classes, "results": [asdict(result) for result in results], "average": dict(averaged(results))}
    write_atomically(out / "protocol-1.json", dumps(data, indent=1) + "\n")
    write_atomically(out / "protocol-1.md", as_markdown(results, classes) + "\n")
