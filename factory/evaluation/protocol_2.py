"""Protocol II: several segmenters, each trained on something else, measured on the same labelled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from factory.errors import UserError
from factory.files.paths import local_path
from factory.segmenter.evaluate import SegmenterScore
from factory.segmenter.run import RealImages, evaluate_here

PAPER = {
    "voc": {
        "paper, one object": (62.8, 50.0, 55.7),
        "paper, two objects": (65.8, 60.1, 62.8),
        "paper, mixture": (69.5, 63.2, 66.2),
        "paper, real seen classes + mixture": (83.0, 71.3, 76.7),
    },
    "coco": {
        "paper, one object": (28.8, 32.6, 30.6),
        "paper, two objects": (37.3, 37.0, 37.1),
        "paper, mixture": (38.3, 38.1, 38.2),
        "paper, real seen classes + mixture": (50.0, 38.2, 43.2),
    },
}
"""The paper's Protocol II: mIoU of seen and unseen classes and their harmonic mean, in percent."""


@dataclass(frozen=True)
class SegmenterResult:
    """One segmenter on one labelled folder."""

    name: str
    folder: str
    real: str
    score: SegmenterScore


def compared(
    segmenters: Sequence[str],
    reals: Sequence[str],
    where: RealImages,
    device: str = "auto",
    threads: int = 0,
    report: Callable[[str], None] = print,
) -> list[SegmenterResult]:
    """Measure every segmenter ("NAME=FOLDER") on every labelled folder ("NAME=FOLDER"), read as `where` says.

    `where.root` is not looked at. UserError for a pair without a name, and what `evaluate_here` refuses; all pairs are
    read before anything is run.
    """
    named = [_pair(one, "segmenter") for one in segmenters]
    places = [_pair(one, "--real") for one in reals]
    rows = []
    for real, root in places:
        for name, folder in named:
            found = evaluate_here(folder, replace(where, root=root), device, threads, report)
            rows.append(SegmenterResult(name, str(folder), real, found))
            report(f"{real}: {name}: mIoU {found.miou:.3f}, harmonic {found.harmonic:.3f} ({found.images} images)")
    return rows


def as_markdown(rows: Sequence[SegmenterResult], classes: str) -> str:
    """A table for each labelled folder, in percent, the paper's figures above the first."""
    parts = []
    for number, real in enumerate(dict.fromkeys(row.real for row in rows)):
        mine = [row for row in rows if row.real == real]
        lines = [
            f"Tested on {real} ({mine[0].score.images} images):",
            "",
            "| trained on | seen | unseen | harmonic | mIoU with background |",
            "|---|---|---|---|---|",
        ]
        if not number:
            lines += [
                f"| {name} | {seen} | {unseen} | {harmonic} | |"
                for name, (seen, unseen, harmonic) in PAPER.get(classes, {}).items()
            ]
        lines += [f"| {row.name} | {' | '.join(_percent(row.score))} |" for row in mine]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _percent(score: SegmenterScore) -> list[str]:
    return [f"{100 * value:.1f}" for value in (score.seen, score.unseen, score.harmonic, score.miou)]


def _pair(text: str, what: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name.strip() and equals and folder):
        raise UserError(f"{what} {text!r} is no pair; give NAME=FOLDER, where NAME is what the table shall say.")
    return name.strip(), local_path(folder, what)
