"""Guidance scales and schedules of the embedded text-to-image model: objects found, and variety of the images.

    python -m benchmarks.guidance

Every row uses the same prompts and seeds: two images of each class, 160 images of two classes, and 50 images of each of
three classes for the variety, which `factory stickers evaluate` measures in the same way.
"""

import tempfile
from pathlib import Path

from benchmarks.common import command_line, options_of, positive, run
from factory.config.guidance import GuidanceSchedule
from factory.config.stickers import STEPS
from factory.hf_logging import quiet_model_libraries
from factory.stickers.detector import StickerDetector
from factory.stickers.embedded import open_detector, open_pipeline
from factory.stickers.evaluate import EvaluationSize, draw_images, found_in, variety_of
from factory.stickers.partial_results import PartialResults
from factory.stickers.sampling import Sampling

SETTINGS: tuple[tuple[float, GuidanceSchedule], ...] = ((3, "constant"), (2, "linear"), (3, "linear"), (4, "linear"))
CLASSES = ("chair", "dog", "bicycle")


def table_row(sampling: Sampling, detector: StickerDetector, images_per_class: int, pairs: int) -> str:
    """A row of the table."""
    pipeline = open_pipeline()
    with tempfile.TemporaryDirectory() as folder:
        out, size = Path(folder), EvaluationSize(images_per_class, pairs, scenes=0)
        images = draw_images(pipeline, out, PartialResults(out, {}), size, sampling, lambda text: None)
    found = found_in(detector, images)
    measured = [variety_of(pipeline, detector, name, sampling, lambda text: None) for name in CLASSES]
    shown = ", ".join(f"{variety['images']:.2f}" for variety in measured)
    return (
        f"| {sampling.guidance:g}, {sampling.schedule} | {found.one_object:.1%} | {found.both_of_two:.1%} | {shown} |"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--images-per-class", type=positive, default=2)
    parser.add_argument("--pairs", type=positive, default=160)
    options = options_of(parser)
    quiet_model_libraries()
    detector = open_detector()
    print(f"| guidance | one object found | both of two found | variety: {', '.join(CLASSES)} |\n|---|---|---|---|")
    for guidance, schedule in SETTINGS:
        sampling = Sampling(STEPS, guidance, schedule)
        print(table_row(sampling, detector, options.images_per_class, options.pairs), flush=True)


if __name__ == "__main__":
    run(main)
