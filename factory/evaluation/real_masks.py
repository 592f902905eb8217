"""The masks of grounders on inverted real images."""

from collections.abc import Sequence

import numpy as np
import torch

from factory.generator.memory import FittingParts
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleDataset, OracleSample
from factory.grounder.iou import IoUMeter
from factory.grounder.trained import TrainedGrounder, images_to_tensor, labels_of

_BATCH = 8


def measure(grounder: TrainedGrounder, dataset: OracleDataset, device: str) -> IoUMeter:
    """The IoU with the labels of all samples of a dataset. Batches that do not fit into GPU memory are divided."""
    reader = PipelineGenerator(dataset.recipe, device, grounder.needs)
    meter, parts = IoUMeter(), FittingParts("one image and its masks", "segments")
    for number in dataset.receipts:
        samples = list(dataset.samples(number))
        for start in range(0, len(samples), _BATCH):
            batch = samples[start : start + _BATCH]
            predicted = parts.apply(lambda part: list(predict(grounder, reader, part)), batch)
            for sample, labels in zip(batch, predicted, strict=True):
                meter.add(sample.prompt.classes, labels, sample.labels)
    return meter


@torch.no_grad()
def predict(grounder: TrainedGrounder, reader: PipelineGenerator, samples: Sequence[OracleSample]) -> np.ndarray:
    """Labels (B, H, W), in which 0 is background and k the k-th class of the sample's prompt.

    `reader` recomputes the features from the latents of the samples.
    """
    latents = torch.from_numpy(np.stack([s.latent for s in samples])).float()
    captured = reader.read(latents, [s.prompt for s in samples], [s.noise_level for s in samples])
    logits = grounder.logits(captured, images_to_tensor([s.image for s in samples]))
    for k, sample in enumerate(samples):
        logits[k, len(sample.prompt.classes) :] = -1e4  # classes of other prompts in the batch
    return labels_of(logits)
