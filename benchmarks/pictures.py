"""Figures for the documentation: generated masks, inverted images with reconstructions, segmenter predictions.

    python -m benchmarks.pictures masks GROUNDER GROUNDER --classes voc --images 40 --out docs/pictures/masks.jpg
    python -m benchmarks.pictures inverted INVERTED --grounder GROUNDER --out docs/pictures/inverted.jpg
    python -m benchmarks.pictures segmenters NAME=FOLDER NAME=FOLDER --real VOC_FOLDER --out segmenters.jpg

No image is selected by hand. `masks` shows, for every group of Protocol I, the images with the median and the worst IoU
of the first grounder. `inverted` shows the images of a dataset with the best, median and worst reconstruction.
`segmenters` shows the labelled images with the best, median and worst IoU of the first segmenter.
"""

import argparse
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw

from benchmarks.common import command_line, options_of, positive, run
from factory.dataset.masks import IGNORE, palette
from factory.dataset.records import Image
from factory.dataset.storage import Store
from factory.evaluation.grounder_results import GROUPS
from factory.evaluation.protocol_1 import split_recipe
from factory.evaluation.real_masks import predict
from factory.evaluation.split_evaluation import SplitEvaluation
from factory.files.paths import check_image_file
from factory.generator.inversion import InvertingGenerator, psnr
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleDataset, OracleSample
from factory.grounder.iou import IoUMeter
from factory.grounder.trained import TrainedGrounder, open_grounders
from factory.hf_logging import quiet_model_libraries
from factory.labelled.interface import LabelledImage
from factory.labelled.voc import VocFolder
from factory.segmenter.classes import common_vocabulary
from factory.segmenter.evaluate import Confusion
from factory.segmenter.model import Segmenter, load_segmenter

CELL, CAPTION, OPACITY = 144, 16, 0.6
Labels = NDArray[np.uint8]
Row = tuple[str, list[Image]]


def overlaid(image: Image, labels: Labels) -> Image:
    """The image with its labels overlaid; ignored pixels are grey."""
    colours = np.array(palette(), np.float32).reshape(256, 3)
    colours[IGNORE] = 128
    mixed = (1 - OPACITY) * image + OPACITY * colours[labels]
    return np.where((labels > 0)[..., None], mixed, image).astype(np.uint8)


def drawn(heads: Sequence[str], rows: Sequence[Row]) -> Pictures.Image:
    """A grid of images with a caption below each row and a heading above each column."""
    sheet = Pictures.new("RGB", (len(heads) * CELL, CAPTION + len(rows) * (CELL + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((column * CELL + 4, 2), head, fill="black")
    for number, (caption, pictures) in enumerate(rows):
        top = CAPTION + number * (CELL + CAPTION)
        for column, picture in enumerate(pictures):
            cell = Pictures.fromarray(picture).resize((CELL - 2, CELL - 2), Pictures.Resampling.LANCZOS)
            sheet.paste(cell, (column * CELL, top))
        pen.text((4, top + CELL), caption, fill="black")
    return sheet


def rows_of_group(evaluation: SplitEvaluation, group: str, images: int, judge: str) -> list[Row]:
    """The images with the median and the worst IoU of the method `judge`."""
    found: list[tuple[float, Row]] = []
    for batch in evaluation.batches(group, 3 * images):
        predicted = {
            name: method.ground(made, batch.prompts)
            for made, (_, methods) in zip(batch.generated, evaluation.generators, strict=True)
            for name, method in methods.items()
        }
        for k in batch.complete:
            classes, image = batch.prompts[k].classes, batch.generated[0][k].image
            shape, tally = image.shape[:2], IoUMeter()
            truth = batch.truths[k].label_map(classes, shape)
            labels = {name: grounded[k].disjoint().label_map(classes, shape) for name, grounded in predicted.items()}
            tally.add(classes, labels[judge], truth)
            shown = [image, overlaid(image, truth), *(overlaid(image, own) for own in labels.values())]
            found.append((tally.image_miou, (f"{group}: {' + '.join(classes)}", shown)))
        if len(found) >= images:
            break
    if not found:  # a split with a single unseen class has no images of two
        return []
    found.sort(key=lambda row: row[0])
    chosen = (("median", found[len(found) // 2]), ("worst", found[0]))
    return [(f"{caption}, the {end} of {len(found)}, IoU {iou:.2f}", shown) for end, (iou, (caption, shown)) in chosen]


def masks(options: argparse.Namespace) -> Pictures.Image:
    grounders = dict(open_grounders(options.grounders, "cpu", 1))
    first_name, first = next(iter(grounders.items()))
    configs = {name: grounder.config for name, grounder in grounders.items()}
    evaluation = SplitEvaluation(grounders, split_recipe(configs, first.config.split, options.classes, 1), "cpu")
    rows = [row for group in GROUPS for row in rows_of_group(evaluation, group, options.images, first_name)]
    return drawn(["image", "detector", "attention", *grounders], rows)


def inverted(options: argparse.Namespace) -> Pictures.Image:
    opened = OracleDataset(Store(options.set))
    trip = InvertingGenerator(opened.recipe)
    ((name, grounder),) = open_grounders([options.grounder], "cpu", 1)
    reader = PipelineGenerator(opened.recipe, "cpu", grounder.needs)
    samples = [sample for number in opened.receipts for sample in opened.samples(number)][: options.images]
    scored = sorted((reconstruction_row(sample, trip, grounder, reader) for sample in samples), key=lambda row: row[0])
    rows = [(f"{text}, the {end}, {db:.1f} dB", shown) for end, group in ends(scored) for db, (text, shown) in group]
    return drawn(["image", "reconstruction", "true masks", name], rows)


def segmenters(options: argparse.Namespace) -> Pictures.Image:
    folders = {name: Path(folder) for name, _, folder in (model.partition("=") for model in options.models)}
    real = VocFolder(Path(options.real), "val", common_vocabulary([*folders.values()], None))
    models = {name: load_segmenter(folder) for name, folder in folders.items()}
    lazy = chain.from_iterable(real.samples(part) for part in range(real.parts()))
    samples = (sample.decode() for sample in islice(lazy, options.images))
    scored = sorted((prediction_row(sample, models) for sample in samples), key=lambda row: row[0])
    rows = [(f"{text}, the {end}, IoU {iou:.2f}", shown) for end, group in ends(scored) for iou, (text, shown) in group]
    return drawn(["image", "true labels", *models], rows)


def prediction_row(sample: LabelledImage, models: dict[str, Segmenter]) -> tuple[float, Row]:
    """The first segmenter's mean IoU on this image, including background, and the row of all predictions."""
    first = next(iter(models.values()))
    pixels = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        predictions = [model.scores(pixels).argmax(1)[0].numpy().astype(np.uint8) for model in models.values()]
    confusion = Confusion(len(first.names))
    confusion.add(sample.labels, predictions[0])
    shown = [sample.image, *(overlaid(sample.image, labels) for labels in (sample.labels, *predictions))]
    classes = " + ".join(first.names[k] for k in np.unique(sample.labels) if k not in (0, IGNORE))
    return float(np.nanmean(confusion.iou())), (classes, shown)


def ends(rows: Sequence[tuple[float, Row]]) -> list[tuple[str, Sequence[tuple[float, Row]]]]:
    """The two best, the two middle and the two worst of rows in ascending order."""
    middle = len(rows) // 2
    return [("best", rows[:-3:-1]), ("median", rows[middle - 1 : middle + 1]), ("worst", rows[1::-1])]


def reconstruction_row(
    sample: OracleSample, trip: InvertingGenerator, grounder: TrainedGrounder, reader: PipelineGenerator
) -> tuple[float, Row]:
    """PSNR of the round trip in dB, and the row of the image."""
    _, _, (back,) = trip.round_trip([sample.image], [sample.prompt])
    (labels,) = predict(grounder, reader, [sample])
    shown = [sample.image, back, overlaid(sample.image, sample.labels), overlaid(sample.image, labels)]
    return psnr(sample.image, back), (" + ".join(sample.prompt.classes), shown)


def main() -> None:
    parser = command_line(__doc__)
    what = parser.add_subparsers(required=True)
    of_masks = what.add_parser("masks")
    of_masks.add_argument("grounders", nargs="+")
    of_masks.add_argument("--classes", default="voc")
    of_masks.set_defaults(draw=masks)
    of_inverted = what.add_parser("inverted")
    of_inverted.add_argument("set")
    of_inverted.add_argument("--grounder", required=True)
    of_inverted.set_defaults(draw=inverted)
    of_segmenters = what.add_parser("segmenters")
    of_segmenters.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    of_segmenters.add_argument("--real", required=True)
    of_segmenters.set_defaults(draw=segmenters)
    for command in (of_masks, of_inverted, of_segmenters):
        command.add_argument("--images", type=positive, default=40)
        command.add_argument("--out", type=Path, required=True)
    options = options_of(parser)
    check_image_file(options.out, "--out")
    quiet_model_libraries()
    sheet = options.draw(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out, quality=88)
    print(options.out)


if __name__ == "__main__":
    run(main)
