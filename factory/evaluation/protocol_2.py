"""Protocol II of the paper: compares segmenters that were trained on different data on the same labelled images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config.splits import unseen_classes
from factory.config.vocabulary import Vocabulary
from factory.errors import UserError, counted
from factory.evaluation.markdown import cell, percent
from factory.files.paths import local_path
from factory.segmenter.classes import common_vocabulary
from factory.segmenter.measure import RealImages, evaluate, open_segmenter, open_test
from factory.training.devices import check_device_name, chosen_device

if TYPE_CHECKING:
    from factory.segmenter.evaluate import SegmenterScore

_log = logging.getLogger(__name__)

PAPER = {
    "voc": {
        "published, one object": (62.8, 50.0, 55.7),
        "published, two objects": (65.8, 60.1, 62.8),
        "published, mixture": (69.5, 63.2, 66.2),
        "published, real seen classes + mixture": (83.0, 71.3, 76.7),
    },
    "coco": {
        "published, one object": (28.8, 32.6, 30.6),
        "published, two objects": (37.3, 37.0, 37.1),
        "published, mixture": (38.3, 38.1, 38.2),
        "published, real seen classes + mixture": (50.0, 38.2, 43.2),
    },
}
"""The results in the paper: mIoU of seen and unseen classes and their harmonic mean, in percent."""
PAPER_SPLITS = {"voc": "zs3", "coco": "1"}
"""The splits of the results in the paper."""


@dataclass(frozen=True)
class SegmenterResult:
    """The score of one segmenter on one labelled folder."""

    name: str
    folder: str
    real: str
    score: "SegmenterScore"


def compare(
    segmenters: Sequence[str],
    reals: Sequence[str],
    images: RealImages,
    device: str = "auto",
    threads: int = 0,
    report: Callable[[str], None] = _log.info,
) -> list[SegmenterResult]:
    """Evaluate every segmenter ("NAME=FOLDER") on every labelled folder ("NAME=FOLDER").

    `images` says how to read the folders; its `root` is ignored. Everything is opened before the first evaluation, so
    that a wrong argument does not waste hours of work. Raises UserError for a pair without a name, for a repeated name,
    and as `evaluate_here` does.
    """
    named = _pairs(segmenters, "segmenter")
    roots = _pairs(reals, "--real")
    check_device_name(device)
    vocabulary = common_vocabulary(list(named.values()), images.classes)
    unseen = () if images.split is None else unseen_classes(vocabulary, images.split)
    opened = {real: open_test(replace(images, root=root), vocabulary, report) for real, root in roots.items()}
    device = chosen_device(device)
    for folder in named.values():
        open_segmenter(folder)
    results = []
    for real, labelled in opened.items():
        for name, folder in named.items():
            score = evaluate(open_segmenter(folder), labelled, unseen, device, threads, report)
            results.append(SegmenterResult(name, str(folder), real, score))
            over = counted(score.images, "image")
            report(f"{real}: {name}: mIoU {percent(score.miou)} with background, over {over}")
    return results


def shared_vocabulary(segmenters: Sequence[str], reals: Sequence[str], classes: str | None) -> Vocabulary:
    """The classes of the segmenters ("NAME=FOLDER"). UserError if they differ, also from the given `classes`.

    The arguments for labelled images are checked first, before any file is read.
    """
    _pairs(reals, "--real")
    return common_vocabulary(list(_pairs(segmenters, "segmenter").values()), classes)


def as_markdown(results: Sequence[SegmenterResult], classes: str, split: str | None) -> str:
    """A table in percent for each labelled folder; the first has the figures of the paper if they are of this split."""
    published = PAPER.get(classes, {}) if split == PAPER_SPLITS.get(classes) else {}
    parts = []
    for number, real in enumerate(dict.fromkeys(result.real for result in results)):
        folder_results = [result for result in results if result.real == real]
        lines = [
            f"Tested on {real} ({counted(folder_results[0].score.images, 'image')}):",
            "",
            "| trained on | seen | unseen | harmonic mean | mIoU with background |",
            "|---|---|---|---|---|",
        ]
        if not number:
            lines += [
                f"| {name} | {seen} | {unseen} | {harmonic} | |" for name, (seen, unseen, harmonic) in published.items()
            ]
        lines += [f"| {cell(result.name)} | {' | '.join(_percent(result.score))} |" for result in folder_results]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _percent(score: "SegmenterScore") -> list[str]:
    return [percent(value) for value in (score.seen, score.unseen, score.harmonic, score.miou)]


def _pairs(texts: Sequence[str], what: str) -> dict[str, Path]:
    """The folders by name; each name stands for a row or a table."""
    pairs: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name.strip() and equals and folder):
            raise UserError(f"{what} {text!r} is not a pair; give NAME=FOLDER, where NAME is shown in the table.")
        if name.strip() in pairs:
            raise UserError(f"two arguments {what} are both named {name.strip()}; give each folder another name.")
        pairs[name.strip()] = local_path(folder, what)
    return pairs
