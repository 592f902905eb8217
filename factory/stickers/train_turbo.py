"""Training task of the few-step model: progressive distillation, with guidance distillation in the first stage.

Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models* (ICLR 2022), algorithm 2: one DDIM step
of the student must reach the result of two DDIM steps of its teacher. Meng et al., *On Distillation of Guided Diffusion
Models* (CVPR 2023): the teacher of the first stage uses classifier-free guidance and the student does not, which halves
the cost of every step. Here, the student learns a single guidance scale, with the linear schedule of the teacher.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from factory.config.guidance import CONSTANT, linear_scale
from factory.config.stickers import GUIDANCE
from factory.files.digest import folder_digest
from factory.stickers.sampling import Sampling
from factory.stickers.text_to_image import TextToImage, as_pipeline, load_weights, new_text_to_image
from factory.stickers.train_diffusion import DiffusionTask
from factory.training.precision import autocast

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Stage:
    """One stage, in which the student learns to use half as many steps as its teacher: `steps`."""

    steps: int
    guidance: float
    """Scale of the teacher's classifier-free guidance; 1 for a teacher with distilled guidance."""

    @property
    def name(self) -> str:
        """`turbo-STEPS`, or `turbo` for the last stage."""
        return "turbo" if self.steps == STAGES[-1].steps else f"turbo-{self.steps}"


STAGES = (Stage(8, GUIDANCE), Stage(4, 1.0))


class TurboTask(DiffusionTask):
    """One stage of the distillation, on the scenes that the teacher was trained on."""

    def __init__(
        self,
        stage: Stage,
        teacher: Path,
        autoencoder: Path,
        cache: Path,
        device: str,
        report: Callable[[str], None],
    ) -> None:
        super().__init__(autoencoder, cache, device, report)
        self.name = stage.name
        self.stage = stage
        self._teacher_digest = "".join(folder_digest(teacher / part) for part in ("unet", "text_encoder"))
        self.teacher = new_text_to_image(self.tokenizer, device)
        load_weights(self.teacher, teacher)
        self.teacher.eval().requires_grad_(False)
        assert isinstance(self.model, TextToImage)
        self.model.load_state_dict(self.teacher.state_dict())
        self.alphas = torch.cat([torch.ones(1), self.noise.alphas_cumprod.float()])
        """Cumulative alpha by noise level: 0 for clean latents, 1000 for pure noise."""

    @property
    def depends_on(self) -> Mapping[str, str]:
        """The autoencoder, the stage, its teacher, and the guidance of the teacher."""
        return {
            **super().depends_on,
            "stage": f"{self.stage.steps} steps, guidance {self.stage.guidance:g}, linear",
            "teacher": self._teacher_digest,
        }

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The squared error of the student's v against the v that reaches the teacher's result in one step.

        In terms of clean latents, this is the paper's SNR + 1 weighting.
        """
        rng = np.random.default_rng((seed, 5, step))
        indices = rng.integers(0, self.training_scenes, batch)
        latents = self.latents[indices].float().to(self.device)
        token_ids = self.token_ids[indices].to(self.device)
        stride = NUM_TRAIN_TIMESTEPS // self.stage.steps
        level = torch.from_numpy((1 + rng.permutation(np.arange(batch) % self.stage.steps)) * stride)
        noisy = self._mixed(latents, torch.randn(latents.shape).to(self.device), level)
        with torch.no_grad():
            middle = self._ddim(noisy, level, level - stride // 2, token_ids)
            result = self._ddim(middle, level - stride // 2, level - stride, token_ids)
        target = self._v_reaching(noisy, result, level, level - stride)
        with autocast(self.device):
            predicted = self.model(noisy, (level - 1).to(self.device), token_ids).float()
        return (predicted - target).square().mean()

    def pipeline(self, model: nn.Module) -> StableDiffusionPipeline:
        """The model as a standard pipeline with the scheduler of the distillation."""
        assert isinstance(model, TextToImage)
        return as_pipeline(model, self.tokenizer, self.autoencoder, few_steps=True)

    @property
    def sampling(self) -> Sampling:
        """The steps of the stage, without guidance."""
        return Sampling(self.stage.steps, 1.0, CONSTANT)

    def _scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas[level].to(self.device)[:, None, None, None]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def _mixed(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        signal, spread = self._scales(level)
        return signal * latents + spread * noise

    def _ddim(self, noisy: Tensor, level: Tensor, lower: Tensor, token_ids: Tensor) -> Tensor:
        """One guided DDIM step of the teacher from `level` to `lower`."""
        v = self._teacher_v(noisy, level, lower, token_ids)
        signal, spread = self._scales(level)
        return self._mixed(signal * noisy - spread * v, signal * v + spread * noisy, lower)

    def _teacher_v(self, noisy: Tensor, level: Tensor, lower: Tensor, token_ids: Tensor) -> Tensor:
        timesteps = (level - 1).to(self.device)
        with autocast(self.device):
            if self.stage.guidance == 1:
                v: Tensor = self.teacher(noisy, timesteps, token_ids).float()
                return v
            empty = self.empty.to(self.device).expand_as(token_ids)
            both = self.teacher(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat([empty, token_ids]))
        uncond, cond = both.float().chunk(2)
        position = 1 - (level + lower) / 2 / NUM_TRAIN_TIMESTEPS
        scale = torch.tensor([linear_scale(self.stage.guidance, float(x)) for x in position], device=self.device)
        return uncond + scale[:, None, None, None] * (cond - uncond)

    def _v_reaching(self, noisy: Tensor, result: Tensor, level: Tensor, lower: Tensor) -> Tensor:
        """The v with which one DDIM step from `level` reaches `result` at `lower`."""
        signal, spread = self._scales(level)
        lower_signal, lower_spread = self._scales(lower)
        ratio = lower_spread / spread
        clean = (result - ratio * noisy) / (lower_signal - ratio * signal)
        return (signal * noisy - clean) / spread
