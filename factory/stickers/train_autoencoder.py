"""Training task of the embedded autoencoder: 4x downsampling, 6 channels, trained on rendered scenes."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from factory.config.vocabulary import coco
from factory.generator.weights import load_model
from factory.stickers.scenes import random_class_names, render_scene
from factory.stickers.text_to_image import LATENT_CHANNELS
from factory.training.precision import autocast
from factory.training.sheet import tile

_CROP = 64
_CROPS_PER_SCENE = 2
_WIDTH = 48
_LATENT_NOISE = 0.05
_OBJECT_WEIGHT = 2.0
_SQUARE_WEIGHT = 10.0  # L1 and squared error have equal gradients at an error of 0.05, which is 32 dB
_EQUIVARIANCE = 0.25
_TEST_SCENES = 96


def new_autoencoder() -> AutoencoderTiny:
    """The architecture with random weights (1.2 M parameters), without normalisation layers, which lose colours.

    It has three levels, so that the latents have a quarter of the image's side. At an eighth, stripes, keys and faces
    are lost. The weights are the same for every call.
    """
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(_WIDTH,) * 3,
        decoder_block_out_channels=(_WIDTH,) * 3,
        num_encoder_blocks=(1, 3, 4),
        num_decoder_blocks=(5, 3, 1),
        latent_channels=LATENT_CHANNELS,
    )


class AutoencoderTask:
    """Reconstruction of crops of rendered scenes, with a weak prior on the latents."""

    name = "autoencoder"
    depends_on: ClassVar[Mapping[str, str]] = {}

    def __init__(self, device: str) -> None:
        self.device = device
        self.model = new_autoencoder().to(device, memory_format=torch.channels_last)

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of a batch of new scenes.

        Latents that are average-pooled 2x or 4x must decode to the image that is pooled in the same way. This scale
        equivariance makes latents easy to learn for diffusion models (Kouzelis et al., EQ-VAE, 2025).
        """
        pixels, objects = _crops(step, batch, seed)
        pixels = pixels.to(self.device, memory_format=torch.channels_last)
        objects = objects.to(self.device)
        factor = 2 if step % 2 else 4
        with autocast(self.device):
            latents = self.model.encode(pixels).latents
            noisy = latents + _LATENT_NOISE * torch.randn_like(latents)
            decoded = self.model.decode(noisy).sample.float()
            pooled = self.model.decode(functional.avg_pool2d(noisy, factor)).sample.float()
        small = functional.avg_pool2d(pixels, factor), functional.avg_pool2d(objects, factor)
        loss = reconstruction_loss(decoded, pixels, objects) + _EQUIVARIANCE * reconstruction_loss(pooled, *small)
        return loss + 1e-3 * latents.float().square().mean()

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        """Scenes next to their reconstructions."""
        assert isinstance(model, AutoencoderTiny)
        names = coco().names
        scenes = [render_scene((77, k), random_class_names(np.random.default_rng(k), names)) for k in range(24)]
        pixels = torch.stack([to_tensor(scene.image) for scene in scenes]).to(self.device)
        decoded = model.decode(model.encode(pixels).latents).sample
        pairs = [(Image.fromarray(scene.image), to_image(y)) for scene, y in zip(scenes, decoded, strict=True)]
        return tile([[picture for pair in pairs[row : row + 4] for picture in pair] for row in range(0, 24, 4)])

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """The reconstruction PSNR in dB, over new scenes of all training styles and backgrounds."""
        assert isinstance(model, AutoencoderTiny)
        return {"psnr": round_trip_psnr(model, _TEST_SCENES)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model in half precision, with the scaling factor that normalises its latents to unit variance."""
        assert isinstance(model, AutoencoderTiny)
        model.eval()
        with torch.no_grad():
            latents = model.encode(_crops(0, 256, 12345)[0].to(self.device)).latents
        model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        model.to(torch.float16).save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Load saved weights."""
        self.model.load_state_dict(load_model(AutoencoderTiny, folder, "autoencoder").state_dict())


def reconstruction_loss(decoded: Tensor, pixels: Tensor, objects: Tensor) -> Tensor:
    """L1 and squared error of pixels, and L1 of horizontal and vertical differences; objects have triple weight.

    L1 alone leaves large errors on edges, which limit the PSNR; the squared error reduces them. The squared error of
    8 x 8 means preserves hues: without it, training ignores a whole colour axis early on.

    `decoded` and `pixels` are (B, 3, H, W) in -1..1, `objects` is (B, 1, H, W), 1 on objects and 0 elsewhere.
    """
    weight = 1 + _OBJECT_WEIGHT * objects
    error = decoded - pixels
    across = (weight[..., 1:] * error.diff(dim=3).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=2).abs()).mean()
    tint = functional.avg_pool2d(error, 8).square().mean()
    return (weight * (error.abs() + _SQUARE_WEIGHT * error.square())).mean() + across + down + 4 * tint


@torch.no_grad()
def round_trip_psnr(model: AutoencoderTiny, scenes: int) -> float:
    """The PSNR in dB of 8-bit images after encoding and decoding, from the mean squared error over new scenes."""
    names = coco().names
    device = next(model.parameters()).device
    total = 0.0
    for first in range(0, scenes, 16):
        drawn = [
            render_scene((78, k), random_class_names(np.random.default_rng((78, k)), names))
            for k in range(first, min(first + 16, scenes))
        ]
        pixels = torch.stack([to_tensor(scene.image) for scene in drawn]).to(device)
        decoded = model.decode(model.encode(pixels).latents).sample.float()
        total += ((quantised(decoded) - (pixels + 1) * 127.5) ** 2).mean(dim=(1, 2, 3)).sum().item()
    return float(10 * np.log10(255**2 / (total / scenes)))


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert uint8 (H, W, 3) to float32 (3, H, W) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """Convert float (3, H, W) in -1..1 to an image."""
    return Image.fromarray(quantised(pixels.float()).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def quantised(pixels: Tensor) -> Tensor:
    """Pixel values in -1..1, which are clipped, as whole numbers in 0..255 of the same dtype."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round()


def _crops(step: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, crop, crop) and object masks (B, 1, crop, crop)."""
    rng = np.random.default_rng((seed, 1, step))
    names = coco().names
    crops, objects = [], []
    for position in range(batch):
        if position % _CROPS_PER_SCENE == 0:  # rendering takes a tenth of a training step
            scene = render_scene((seed, 1, step, position), random_class_names(rng, names))
        y, x = rng.integers(0, scene.image.shape[0] - _CROP + 1, 2)
        crops.append(to_tensor(scene.image[y : y + _CROP, x : x + _CROP]))
        objects.append(torch.from_numpy(scene.instance_map[y : y + _CROP, x : x + _CROP] > 0)[None].float())
    return torch.stack(crops), torch.stack(objects)
