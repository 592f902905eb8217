"""New images of a split, with the masks of grounders and of a detector, for Protocol I."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.config.plan import PlannedSample
from factory.config.prompts import Prompt, captioned
from factory.config.recipe import Recipe
from factory.dataset.records import Grounded
from factory.detector.load import open_detector
from factory.detector.oracle import OracleGrounder
from factory.evaluation.grounder_results import GROUPS
from factory.generator.interface import Generated, Request
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.attention import AttentionGrounder
from factory.grounder.iou import IoUMeter
from factory.grounder.trained import TrainedGrounder

_SEED = 7_000_000
"""Differs from the default seeds of datasets."""


@dataclass(frozen=True)
class EvaluationBatch:
    """The images of a micro-batch from each generator, and the disjoint masks of the detector.

    The k-th image, `generated[m][k]`, is the same for every generator m; only the captured features differ.
    """

    prompts: Sequence[Prompt]
    generated: Sequence[Sequence[Generated]]
    truths: Sequence[Grounded]

    @property
    def complete(self) -> list[int]:
        """Indices of the images in which every class of the prompt has a mask."""
        return [k for k, truth in enumerate(self.truths) if len(truth.instances) == len(self.prompts[k].classes)]


class SplitEvaluation:
    """Grounders of one split, with the generators of their images and the detector of the reference masks.

    Images and reference masks are made as in the oracle dataset of the grounders. `generators` pairs each generator
    with the methods that use its features; the first one is for the attention baseline.
    """

    def __init__(self, grounders: dict[str, TrainedGrounder], recipe: Recipe, device: str) -> None:
        """`recipe` is that of `split_recipe` for these grounders."""
        config = next(iter(grounders.values())).config
        captured = {"noise_level": config.noise_level, "noise_seed": config.noise_seed}
        trained = recipe.model_copy(update={"masks": recipe.masks.model_copy(update=captured)})
        self._vocabulary, self._batch = recipe.vocabulary(), recipe.batch
        self._seen = list(config.classes_seen)
        self._unseen = [name for name in self._vocabulary.names if name not in config.classes_seen]
        self.detector = open_detector(recipe, device)
        self._oracle = OracleGrounder(self.detector, recipe.masks)
        attention = AttentionGrounder(recipe.masks)
        needs = frozenset[str]().union(*(grounder.needs for grounder in grounders.values()))
        baseline = PipelineGenerator(recipe, device, attention.needs)
        self.generators: list[tuple[PipelineGenerator, dict[str, Any]]] = [
            (baseline, {"attention": attention}),
            (PipelineGenerator(trained, device, needs, baseline.pipeline), {**grounders}),
        ]

    def batches(self, group: str, max_images: int) -> Iterator[EvaluationBatch]:
        """Up to `max_images` new images of a group, one of GROUPS; the same images in every call."""
        numbered = self._prompts(group, max_images)
        for start in range(0, len(numbered), self._batch):
            part = numbered[start : start + self._batch]
            prompts = [prompt for _, prompt in part]
            requests = [Request(prompt, PlannedSample(index, prompt).seed(_SEED, 0)) for index, prompt in part]
            generated = [generator.generate(requests) for generator, _ in self.generators]
            # As in an oracle dataset, an object without pixels of its own is not found: a detector may give two classes
            # to one object.
            truths = [truth.disjoint() for truth in self._oracle.ground(generated[0], prompts)]
            yield EvaluationBatch(prompts, generated, truths)

    def _prompts(self, group: str, count: int) -> list[tuple[int, Prompt]]:
        """Numbered prompts of a group: the first classes take turns, the second ones are random.

        Empty if the split has too few classes: a split file may name a single unseen class.
        """
        number, seen, unseen = GROUPS.index(group), self._seen, self._unseen
        random = np.random.default_rng((number, len(seen)))
        pools = ((seen,), (unseen,), (seen, seen), (seen, unseen), (unseen, unseen))[number]
        if any(len(pool) < pools.count(pool) for pool in pools):
            return []
        prompts = []
        for k in range(count):
            names = [pools[0][k % len(pools[0])]]
            for pool in pools[1:]:
                names.append(str(random.choice([name for name in pool if name not in names])))
            if random.random() < 0.5:
                names.reverse()
            prompts.append((number * 1_000_000 + k, captioned(self._vocabulary, names)))
        return prompts


def measure(evaluation: SplitEvaluation, group: str, max_images: int) -> dict[str, tuple[float, float, int, int]]:
    """(mIoU, mIoU of images, images counted, images tried) by method."""
    meters: dict[str, IoUMeter] = {name: IoUMeter() for _, methods in evaluation.generators for name in methods}
    counted = tried = 0
    # The detector does not find every class in every image, so up to three times as many images are generated.
    for batch in evaluation.batches(group, 3 * max_images):
        shape = batch.generated[0][0].image.shape[:2]
        kept = batch.complete[: max_images - counted]
        for generated, (_, methods) in zip(batch.generated, evaluation.generators, strict=True):
            for name, method in methods.items():
                predicted = method.ground(generated, batch.prompts)
                for k in kept:
                    classes = batch.prompts[k].classes
                    truth = batch.truths[k].label_map(classes, shape)
                    meters[name].add(classes, predicted[k].disjoint().label_map(classes, shape), truth)
        counted += len(kept)
        if counted >= max_images:
            tried += kept[-1] + 1  # the images of the batch after the last one that is needed are not counted
            break
        tried += len(batch.prompts)
    return {name: (meter.miou, meter.image_miou, counted, tried) for name, meter in meters.items()}
