"""Training a grounder on oracle sets: features recomputed with one U-Net call a step, never stored."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor, nn

from factory.errors import UserError
from factory.generator.interface import Captured
from factory.generator.load import pin_revision
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleDataset, OracleSample, OracleStream, first_samples, held_out_samples
from factory.grounder.folder import GrounderConfig, build_module, load_grounder, save_grounder
from factory.grounder.iou import IoUMeter
from factory.grounder.loss import binary_loss, competing_loss
from factory.grounder.modules.backbone import Backbone
from factory.grounder.modules.guided import GuidedOptions
from factory.grounder.trained import images_to_tensor, labels_of, not_finite
from factory.training.loop import rank_and_world, tile
from factory.training.precision import autocast

HELD_OUT = 0.05
_VALIDATED = 128
_SHOWN = 16
_OWN_GENERATOR = {"revision", "threads"}
_DETECTING = {"detector", "score", "ignore_score"}


@dataclass(frozen=True)
class GrounderOptions:
    """What is trained. The guided module's loss lets classes and background compete, or takes each class on its own
    as the paper's does; `dice` is the weight of soft dice in it."""

    module: str = "guided"
    guided: GuidedOptions = field(default_factory=GuidedOptions)
    dice: float = 1.0
    competing: bool = True


class GrounderTask:
    """Oracle masks from features, on held-out samples of which it is measured."""

    name = "grounder"

    def __init__(self, sets: Sequence[OracleDataset], options: GrounderOptions, device: str, steps: int) -> None:
        self.sets, self.options, self.device = sets, options, device
        self.made_of = {"network": str(options), "data": ", ".join(one.identity for one in sets)}
        recipe = one_backbone(sets)
        self.recipe = recipe.model_copy(
            update={"generator": recipe.generator.model_copy(update={"threads": torch.get_num_threads()})}
        )
        needs = _needs(options.module)
        self.reader = PipelineGenerator(self.recipe, device, needs)
        self.validation = held_out_samples(sets, HELD_OUT, _VALIDATED)
        (first,) = first_samples(sets[0], 1)
        self.backbone = Backbone.of(self._read([first]))
        self.config = self._config(first.timestep, steps)
        torch.manual_seed(0)
        self.model: nn.Module = build_module(self.config).to(device)
        self._stream: tuple[tuple[int, int], OracleStream] | None = None

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of one step's batch of oracle samples."""
        if self._stream is None or self._stream[0] != (batch, seed):
            self._stream = (batch, seed), OracleStream(self.sets, batch, seed, HELD_OUT)
        return self.loss_of(self._stream[1].batch(step, *rank_and_world()))

    def loss_of(self, samples: Sequence[OracleSample]) -> Tensor:
        """The loss of some oracle samples."""
        with autocast(self.device):
            logits = self.model(self._read(samples), self._pictures(samples))
        labels = torch.from_numpy(np.stack([row.labels for row in samples])).to(self.device)
        found = _found(samples, logits.shape[1]).to(self.device)
        if self.options.module != "guided" or not self.options.competing:
            return binary_loss(logits, labels, found)
        return competing_loss(logits, labels, found, self.options.dice)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """mIoU on held-out samples, over those of one object and of two: classes pooled, then averaged."""
        tallies: dict[str, IoUMeter] = {"one": IoUMeter(), "two": IoUMeter()}
        for start in range(0, len(self.validation), 16):
            samples = self.validation[start : start + 16]
            for row, labels in zip(samples, self._predict(model, samples), strict=True):
                if all(row.found):
                    tallies["one" if len(row.found) == 1 else "two"].add(row.prompt.classes, labels, row.labels)
        return {f"miou_{name}": tally.miou for name, tally in tallies.items() if tally.images}

    def sample_sheet(self, model: nn.Module) -> Pictures.Image:
        """Held-out images, below each its oracle mask and the module's."""
        samples = self.validation[:_SHOWN] or first_samples(self.sets[0], _SHOWN)
        predicted = self._predict(model, samples)
        return tile(
            [
                [Pictures.fromarray(row.image) for row in samples],
                [_tinted(row.image, row.labels) for row in samples],
                [_tinted(row.image, labels) for row, labels in zip(samples, predicted, strict=True)],
            ]
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        """The grounder's folder, with its figures on held-out samples."""
        model.eval()
        with torch.no_grad():
            save_grounder(model, self.config, self.figures(model), folder)

    def load(self, folder: Path) -> None:
        """Begin with the weights of a grounder of the same kind."""
        module, config = load_grounder(folder)
        if (config.module, dict(config.backbone)) != (self.config.module, dict(self.config.backbone)):
            raise ValueError(f"it is a {config.module} module of another backbone or kind")
        self.model.load_state_dict(module.state_dict())

    def _config(self, timestep: int, steps: int) -> GrounderConfig:
        generator, oracle = self.recipe.generator, self.recipe.oracle
        assert oracle is not None
        options = asdict(self.options.guided) if self.options.module == "guided" else {}
        return GrounderConfig(
            module=self.options.module,
            options=options,
            backbone=self.backbone.to_dict(),
            model=generator.model,
            revision=str(generator.revision),
            capture=self.recipe.masks.capture,
            timestep=timestep,
            classes_seen=oracle.seen,
            split=oracle.split,
            data=tuple(one.recipe.fingerprint() for one in self.sets),
            steps=steps,
            oracle={
                "generator": generator.model_dump(mode="json", exclude=_OWN_GENERATOR),
                "masks": self.recipe.masks.model_dump(mode="json", include=_DETECTING),
            },
        )

    def _read(self, samples: Sequence[OracleSample]) -> Captured:
        latents = torch.from_numpy(np.stack([row.latent for row in samples])).float()
        with autocast(self.device):
            captured = self.reader.read(latents, [row.timestep for row in samples], [row.prompt for row in samples])
        broken = not_finite(captured)
        if broken:
            raise UserError(
                f"{self.recipe.generator.model} gives NaN or infinity in {broken} for the samples {samples[0].key} to "
                f"{samples[-1].key}: its weights are broken or overflow in {self.recipe.generator.dtype}."
            )
        return captured

    def _pictures(self, samples: Sequence[OracleSample]) -> Tensor:
        return images_to_tensor([row.image for row in samples]).to(self.device)

    def _predict(self, model: nn.Module, samples: Sequence[OracleSample]) -> NDArray[np.int64]:
        logits = model(self._read(samples), self._pictures(samples)).float()
        return labels_of(logits.masked_fill(~_present(samples, logits.shape[1]).to(self.device), -1e4))


def one_backbone(sets: Sequence[OracleDataset]) -> Any:
    """The recipe that all sets share as far as features go; UserError where they, or the model here, differ."""
    first = sets[0].recipe
    for one in sets[1:]:
        if _seen_by(one) != _seen_by(sets[0]):
            raise UserError(
                f"{one.store.address} is another kind of oracle than {sets[0].store.address}: model, capture, "
                f"timestep, classes or split differ; a grounder is trained on sets that share them."
            )
    there = pin_revision(first.generator.model)
    if there != first.generator.revision:
        raise UserError(
            f"{sets[0].store.address} was made with {first.generator.model} of revision "
            f"{str(first.generator.revision)[:12]}; the model there now is of revision {there[:12]}, whose features "
            f"are others. Put the model back, or make the oracle set again."
        )
    return first


def _seen_by(one: OracleDataset) -> tuple[Any, ...]:
    recipe = one.recipe
    generator = (recipe.generator.model, recipe.generator.revision, recipe.generator.width, recipe.generator.height)
    return generator, recipe.masks.capture, recipe.masks.timesteps, recipe.classes, recipe.oracle


def _needs(module: str) -> frozenset[str]:
    from factory.grounder.modules.guided import GuidedModule
    from factory.grounder.modules.paper import PaperModule
    from factory.grounder.modules.published import PublishedModule

    needs: dict[str, frozenset[str]] = {
        "guided": GuidedModule.needs,
        "paper": PaperModule.needs,
        "paper-cfg": PublishedModule.needs,
    }
    return needs[module]


def _found(samples: Sequence[OracleSample], most: int) -> Tensor:
    return torch.tensor([[*row.found, *[False] * (most - len(row.found))] for row in samples])


def _present(samples: Sequence[OracleSample], most: int) -> Tensor:
    """bool (B, K, 1, 1): whether a prompt has a k-th class."""
    rows = [[k < len(row.found) for k in range(most)] for row in samples]
    return torch.tensor(rows)[:, :, None, None]


def _tinted(image: NDArray[np.uint8], labels: NDArray[Any]) -> Pictures.Image:
    """The image with its objects tinted, red first."""
    pixels = image.astype(np.float32)
    for place, colour in ((1, (255, 40, 40)), (2, (40, 90, 255)), (3, (40, 220, 60)), (4, (250, 200, 30))):
        pixels[labels == place] = 0.5 * pixels[labels == place] + 0.5 * np.array(colour, np.float32)
    return Pictures.fromarray(pixels.astype(np.uint8))
