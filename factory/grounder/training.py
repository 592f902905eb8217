"""Trains a grounder on oracle datasets. Each step recomputes the features with one call of the denoiser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor, nn

from factory.errors import UserError
from factory.generator.interface import Captured
from factory.generator.memory import FittingParts
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleDataset, OracleSample, OracleSource, first_samples, held_out_samples
from factory.grounder.folder import GrounderConfig, build_module, load_grounder, module_class, save_grounder
from factory.grounder.iou import IoUMeter
from factory.grounder.loss import binary_loss, competing_loss
from factory.grounder.modules.backbone import Backbone
from factory.grounder.modules.guided import GuidedOptions
from factory.grounder.shared_recipe import shared_recipe
from factory.grounder.trained import images_to_tensor, labels_of, not_finite
from factory.training.precision import autocast
from factory.training.processes import rank_and_world
from factory.training.sheet import tile
from factory.training.stream import SampleStream

HELD_OUT = 0.05
_MAX_VALIDATION = 128
_MAX_SHOWN = 16
_NOT_STORED = {"revision", "threads"}
_DETECTION = {"detector", "score", "ignore_score"}


@dataclass(frozen=True)
class GrounderOptions:
    """The module and its loss.

    `competing` selects cross-entropy over background and classes for the guided module instead of the paper's loss per
    class; `dice` is the weight of its soft dice loss.
    """

    module: str = "guided"
    guided: GuidedOptions = field(default_factory=GuidedOptions)
    dice: float = 1.0
    competing: bool = True

    @property
    def identity(self) -> str:
        """The options as checkpoints record them, with the stored names of `GuidedOptions`."""
        guided = ", ".join(f"{name}={value!r}" for name, value in self.guided.to_dict().items())
        return (
            f"GrounderOptions(module={self.module!r}, guided=GuidedOptions({guided}), dice={self.dice!r}, "
            f"competing={self.competing!r})"
        )


class GrounderTask:
    """The task of predicting oracle masks from features, measured on held-out samples."""

    name = "grounder"

    def __init__(self, datasets: Sequence[OracleDataset], options: GrounderOptions, device: str, steps: int) -> None:
        self.datasets, self.options, self.device = datasets, options, device
        self.depends_on = {"network": options.identity, "data": ", ".join(dataset.identity for dataset in datasets)}
        recipe = shared_recipe(datasets)
        self.recipe = recipe.model_copy(
            update={"generator": recipe.generator.model_copy(update={"threads": torch.get_num_threads()})}
        )
        self.reader = PipelineGenerator(self.recipe, device, module_class(options.module).needs)
        self.validation = held_out_samples(datasets, HELD_OUT, _MAX_VALIDATION)
        (first,) = first_samples(datasets[0], 1)
        self.backbone = Backbone.of(self._read([first]), transformer=not self.reader.family.is_unet)
        self.config = self._config(steps)
        torch.manual_seed(0)
        self.model: nn.Module = build_module(self.config).to(device)
        self._stream: tuple[tuple[int, int], SampleStream[OracleSample]] | None = None
        self._parts = FittingParts("the masks of one sample", "predicts")

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of one step's batch."""
        if self._stream is None or self._stream[0] != (batch, seed):
            self._stream = (batch, seed), SampleStream([OracleSource(self.datasets, HELD_OUT)], batch, seed)
        return self.loss_of(self._stream[1].batch(step, *rank_and_world()))

    def loss_of(self, samples: Sequence[OracleSample]) -> Tensor:
        """The loss of the given samples."""
        with autocast(self.device):
            logits = self.model(self._read(samples), self._images(samples))
        labels = torch.from_numpy(np.stack([s.labels for s in samples])).to(self.device)
        found = _found(samples, logits.shape[1]).to(self.device)
        if self.options.module != "guided" or not self.options.competing:
            return binary_loss(logits, labels, found)
        return competing_loss(logits, labels, found, self.options.dice)

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """mIoU, 0 to 1, on the held-out samples with one object, with two, and with more."""
        meters: dict[str, IoUMeter] = {"one": IoUMeter(), "two": IoUMeter(), "more": IoUMeter()}
        for start in range(0, len(self.validation), 16):
            samples = self.validation[start : start + 16]
            for sample, labels in zip(samples, self._predict(model, samples), strict=True):
                if all(sample.found):
                    meter = meters[{1: "one", 2: "two"}.get(len(sample.found), "more")]
                    meter.add(sample.prompt.classes, labels, sample.labels)
        return {f"miou_{name}": meter.miou for name, meter in meters.items() if meter.images}

    def sample_sheet(self, model: nn.Module) -> Pictures.Image:
        """Held-out images, with the oracle's and the module's masks below each."""
        samples = self.validation[:_MAX_SHOWN] or first_samples(self.datasets[0], _MAX_SHOWN)
        predicted = self._predict(model, samples)
        return tile(
            [
                [Pictures.fromarray(s.image) for s in samples],
                [_tinted(s.image, s.labels) for s in samples],
                [_tinted(s.image, labels) for s, labels in zip(samples, predicted, strict=True)],
            ]
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the grounder's folder, with its metrics on the held-out samples."""
        model.eval()
        with torch.no_grad():
            human_labels = any(dataset.recipe.real is not None for dataset in self.datasets)
            save_grounder(model, self.config, self.metrics(model), folder, human_labels)

    def load(self, folder: Path) -> None:
        """Initialise the module from a grounder of the same kind."""
        module, config = load_grounder(folder)
        if (config.module, dict(config.backbone)) != (self.config.module, dict(self.config.backbone)):
            raise ValueError(f"its {config.module} module does not fit: it is of another kind or backbone")
        self.model.load_state_dict(module.state_dict())

    def _config(self, steps: int) -> GrounderConfig:
        generator, oracle = self.recipe.generator, self.recipe.oracle
        assert oracle is not None
        options = self.options.guided.to_dict() if self.options.module == "guided" else {}
        return GrounderConfig(
            module=self.options.module,
            options=options,
            backbone=self.backbone.to_dict(),
            model=generator.model,
            revision=str(generator.revision),
            noise_level=self.reader.level,
            noise_seed=self.recipe.masks.noise_seed,
            lora=generator.adapter,
            classes_seen=oracle.seen,
            split=oracle.split,
            data=tuple(dataset.recipe.fingerprint() for dataset in self.datasets),
            steps=steps,
            oracle={
                "generator": generator.model_dump(mode="json", exclude=_NOT_STORED),
                "masks": self.recipe.masks.model_dump(mode="json", include=_DETECTION),
            },
        )

    def _read(self, samples: Sequence[OracleSample]) -> Captured:
        latents = torch.from_numpy(np.stack([s.latent for s in samples])).float()
        with autocast(self.device):
            captured = self.reader.read(latents, [s.prompt for s in samples], [s.noise_level for s in samples])
        broken = not_finite(captured)
        if broken:
            raise UserError(
                f"{self.recipe.generator.model} returns NaN or infinity in {broken} for samples {samples[0].key} to "
                f"{samples[-1].key}: its weights are broken or overflow in {self.recipe.generator.dtype}."
            )
        return captured

    def _images(self, samples: Sequence[OracleSample]) -> Tensor:
        return images_to_tensor([s.image for s in samples]).to(self.device)

    def _predict(self, model: nn.Module, samples: Sequence[OracleSample]) -> list[NDArray[np.int64]]:
        """The labels of each sample; with larger batches than in training, as long as they fit into memory."""
        return self._parts.apply(lambda part: list(self._predict_together(model, part)), samples)

    def _predict_together(self, model: nn.Module, samples: Sequence[OracleSample]) -> NDArray[np.int64]:
        logits = model(self._read(samples), self._images(samples)).float()
        return labels_of(logits.masked_fill(~_present(samples, logits.shape[1]).to(self.device), -1e4))


def _found(samples: Sequence[OracleSample], max_classes: int) -> Tensor:
    """bool (B, K): whether the detector found the k-th class."""
    return torch.tensor([[*s.found, *[False] * (max_classes - len(s.found))] for s in samples])


def _present(samples: Sequence[OracleSample], max_classes: int) -> Tensor:
    """bool (B, K, 1, 1): whether a prompt has a k-th class."""
    return torch.tensor([[k < len(s.found) for k in range(max_classes)] for s in samples])[:, :, None, None]


def _tinted(image: NDArray[np.uint8], labels: NDArray[Any]) -> Pictures.Image:
    """The image with its objects tinted; the first is red."""
    pixels = image.astype(np.float32)
    for k, colour in ((1, (255, 40, 40)), (2, (40, 90, 255)), (3, (40, 220, 60)), (4, (250, 200, 30))):
        pixels[labels == k] = 0.5 * pixels[labels == k] + 0.5 * np.array(colour, np.float32)
    return Pictures.fromarray(pixels.astype(np.uint8))
