"""Replaces the labels of labelled images by the masks of a grounder, to tell what limits Protocol II: masks or images.

    factory invert --real runs/protocol-2/real --recipe jobs/recipes/stickers-bf16.yaml --split all --method noise \
        --shards runs/relabel/noise
    python -m benchmarks.relabel runs/relabel/noise --grounder runs/protocol-2/grounder/model --out runs/relabel/folder
    factory train-segmenter --real runs/relabel/folder --steps 4000 --out runs/relabel/segmenter

The first argument is a dataset of `factory invert`, from whose latents the grounder reads its features. The result is a
PASCAL VOC folder with the same images. A segmenter that is trained on it differs from one that is trained on the true
labels only by the masks, and from one that is trained on generated images with masks of this grounder only by the
images.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import command_line, options_of, run
from factory.dataset.masks import palette_image
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.evaluation.real_masks import predict
from factory.files.atomic import write_atomically
from factory.generator.load import check_unchanged
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleDataset, OracleSample
from factory.grounder.folder import check_fits
from factory.grounder.trained import TrainedGrounder, open_grounders
from factory.hf_logging import quiet_model_libraries

BATCH = 8
IMAGES, LABELS, SETS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("dataset", help="A dataset of `factory invert`.")
    parser.add_argument("--grounder", required=True)
    parser.add_argument("--out", type=Path, required=True, help="A new folder.")
    options = options_of(parser)
    if options.out.exists():
        raise UserError(f"{options.out} exists; give a new folder.")
    dataset = OracleDataset(Store(options.dataset))
    check_unchanged(dataset.recipe.generator, dataset.store.address)
    quiet_model_libraries()
    ((name, grounder),) = open_grounders([options.grounder], "cpu", 1)
    check_fits(name, grounder.config, dataset.recipe.generator)
    relabel(dataset, grounder, options.out)


def relabel(dataset: OracleDataset, grounder: TrainedGrounder, out: Path) -> None:
    """Write the images of a dataset and the masks of a grounder to a PASCAL VOC folder; its image set is "train"."""
    for folder in (IMAGES, LABELS, SETS):
        (out / folder).mkdir(parents=True)
    reader = PipelineGenerator(dataset.recipe, "cpu", grounder.needs)
    names = dataset.recipe.vocabulary().names
    keys: list[str] = []
    for number in dataset.receipts:
        samples = list(dataset.samples(number))
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            for sample, labels in zip(batch, predict(grounder, reader, batch), strict=True):
                save(sample, labels, names, out)
                keys.append(sample.key)
        print(f"{len(keys)} images", flush=True)
    write_atomically(out / "labels.txt", "".join(f"{name}\n" for name in ("background", *names)))
    write_atomically(out / SETS / "train.txt", "".join(f"{key}\n" for key in keys))


def save(sample: OracleSample, labels: np.ndarray, names: tuple[str, ...], out: Path) -> None:
    """Write one image with its labels, uint8 (H, W), in which k is the k-th class of the sample's prompt."""
    values = np.array([0, *(names.index(name) + 1 for name in sample.prompt.classes)], np.uint8)
    Image.fromarray(sample.image).save(out / IMAGES / f"{sample.key}.jpg", quality=95)
    palette_image(values[labels]).save(out / LABELS / f"{sample.key}.png")


if __name__ == "__main__":
    run(main)
