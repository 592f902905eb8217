"""Training recipe of the embedded detector: pixel classes of rendered scenes in the training styles."""

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

from factory.stickers.atlas import HELD_OUT_STYLE, TRAIN_STYLES
from factory.stickers.detector import INPUT_SIDE, StickerDetector, network_input
from factory.stickers.scenes import Scene, random_class_names, render_scene
from factory.training.loop import tile
from factory.vocabulary import coco

_BACKGROUND_WEIGHT = 0.3
_COARSE_SIDE = 96
_COARSE_SHARE = 0.8
"""Most of the steps see small pictures, which cost a third: classes are learnt there, outlines at full size."""
_REPAINTED_SHARE = 0.2
_MAX_LATENT_NOISE = 0.5


def new_network() -> UperNetForSemanticSegmentation:
    """The architecture, with fresh weights (6.5 M parameters)."""
    names = coco().names
    labels = {0: "background", **{k + 1: name for k, name in enumerate(names)}}
    backbone = ResNetConfig(
        embedding_size=48,
        hidden_sizes=[48, 96, 192, 320],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=64,
            pool_scales=[1, 2, 3],
            use_auxiliary_head=False,
            id2label=labels,
            label2id={name: k for k, name in labels.items()},
        )
    )


class DetectorTask:
    """Cross-entropy of pixels, on scenes that are recoloured, blurred and noised as other pictures may be.

    Some go through an autoencoder with noise on their latents, as the pictures do that the detector is to label:
    without them a model that finds 99.6 % of single objects in renders finds 93 % after the autoencoder, and 68 %
    with noise of 0.4 standard deviations.
    """

    name = "detector"
    made_of: ClassVar[Mapping[str, str]] = {}

    def __init__(self, device: str, steps: int, autoencoder: Path) -> None:
        self.device = device
        self.autoencoder = AutoencoderTiny.from_pretrained(autoencoder, dtype=torch.float32).to(
            device, memory_format=torch.channels_last
        )
        self.coarse_steps = round(_COARSE_SHARE * steps)
        torch.manual_seed(0)
        self.model = new_network().to(device, memory_format=torch.channels_last)

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of one step's batch of fresh scenes."""
        names = coco().names
        rng = np.random.default_rng((seed, 4, step))
        images, labels = [], []
        for position in range(batch):
            scene = render_scene((seed, 4, step, position), random_class_names(rng, names))
            images.append(augmented(rng, scene))
            labels.append(label_map(scene))
        side = _COARSE_SIDE if step < self.coarse_steps else INPUT_SIDE
        repainted = self._repainted(np.stack(images), rng)
        pixels = network_input(torch.from_numpy(repainted).to(self.device), side)
        truth = torch.from_numpy(np.stack(labels)).to(self.device)
        near = functional.interpolate(truth[:, None].float(), (side // 2, side // 2), mode="nearest-exact")[:, 0]
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            logits = quarter_logits(self.model, pixels)
        logits = functional.interpolate(logits.float(), (side // 2, side // 2), mode="bilinear")
        weight = torch.ones(len(names) + 1, device=self.device)
        weight[0] = _BACKGROUND_WEIGHT
        return functional.cross_entropy(logits, near.long(), weight)

    def _repainted(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The images (B, H, W, 3), a share of them decoded from noisy latents."""
        chosen = rng.random(len(images)) < _REPAINTED_SHARE
        if not chosen.any():
            return images
        pixels = torch.from_numpy(images[chosen]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), torch.autocast(self.device.split(":")[0], torch.bfloat16):
            latents = self.autoencoder.encode(pixels).latents
            spread = torch.from_numpy(rng.uniform(0, _MAX_LATENT_NOISE, (int(chosen.sum()), 1, 1, 1))).to(latents)
            noise = torch.randn(latents.shape).to(latents) / self.autoencoder.config["scaling_factor"]
            decoded = self.autoencoder.decode(latents + spread * noise).sample.float()
        repainted = images.copy()
        painted = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        repainted[chosen] = painted.permute(0, 2, 3, 1).cpu().numpy()
        return repainted

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        """Instances found in scenes of the training styles, then of the held-out one."""
        assert isinstance(model, UperNetForSemanticSegmentation)
        detector = StickerDetector(model, self.device)
        names = coco().names
        rows = []
        for styles in (TRAIN_STYLES, (HELD_OUT_STYLE,)):
            rng = np.random.default_rng(9)
            scenes = [render_scene((99, k), random_class_names(rng, names), styles=styles) for k in range(24)]
            pictures = [Image.fromarray(scene.image) for scene in scenes]
            drawn = [draw_instances(p, i) for p, i in zip(pictures, detector.detect(pictures), strict=True)]
            rows += [drawn[:8], drawn[8:16], drawn[16:]]
        return tile(rows)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """None; `factory stickers evaluate` measures."""
        return {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """A transformers folder in half precision."""
        assert isinstance(model, UperNetForSemanticSegmentation)
        model.to(torch.float16).save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Begin with saved weights."""
        self.model.load_state_dict(UperNetForSemanticSegmentation.from_pretrained(folder).state_dict())


def quarter_logits(model: UperNetForSemanticSegmentation, pixels: Tensor) -> Tensor:
    """The network's logits at a quarter of its input's resolution, before its own upsampling to full size."""
    logits: Tensor = model.decode_head(model.backbone(pixels).feature_maps)
    return logits


def label_map(scene: Scene) -> NDArray[np.uint8]:
    """uint8 (size, size): 0 is background, k the k-th COCO class."""
    numbers = [0, *(coco().names.index(name) + 1 for name in scene.class_names)]
    return np.array(numbers, np.uint8)[scene.instance_map]


def augmented(rng: np.random.Generator, scene: Scene) -> NDArray[np.uint8]:
    """The scene's picture with, at random, other colours, inked lines, less sharpness, and noise."""
    size = scene.image.shape[0]
    pixels = scene.image.astype(np.float32)
    for number in range(1, len(scene.class_names) + 1):
        if rng.random() < 0.35:
            mask = scene.instance_map == number
            pixels[mask] = pixels[mask] @ _hue_matrix(rng.uniform(-0.5, 0.5), rng.uniform(0.3, 1.3))
    if rng.random() < 0.4:
        pixels = _inked(rng, np.clip(pixels, 0, 255), scene.instance_map)
    if rng.random() < 0.5:
        low = int(size * rng.uniform(0.3, 0.7))
        small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((low, low), Image.Resampling.BILINEAR)
        pixels = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
    pixels = (pixels - 128) * np.float32(rng.uniform(0.75, 1.2)) + np.float32(128 + rng.uniform(-20, 20))
    if rng.random() < 0.3:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(2, 10))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _inked(
    rng: np.random.Generator, pixels: NDArray[np.float32], instance_map: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The objects flattened and drawn with dark lines round them and along their inner edges, as in comics."""
    flat = ndimage.median_filter(pixels, size=(3, 3, 1)) if rng.random() < 0.5 else pixels
    grey = ndimage.gaussian_filter(flat.mean(axis=2), 0.7)
    edge = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) > rng.uniform(60, 160)
    outline = ndimage.grey_dilation(instance_map, size=(3, 3)) != ndimage.grey_erosion(instance_map, size=(3, 3))
    inside = instance_map > 0
    lines = (edge & inside) | outline
    if rng.random() < 0.3:
        lines = ndimage.binary_dilation(lines) & (inside | outline)
    ink = np.float32(rng.uniform(0, 60))
    inked: NDArray[np.float32] = np.where(lines[..., None], ink, np.where(inside[..., None], flat, pixels))
    return inked


def _hue_matrix(turn: float, saturation: float) -> NDArray[np.float32]:
    """A 3 x 3 matrix for row vectors of RGB that turns hues by `turn` of the circle and scales saturation."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cos, sin = np.cos(2 * np.pi * turn) * saturation, np.sin(2 * np.pi * turn) * saturation
    turned = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix: NDArray[np.float32] = (np.linalg.inv(to_yiq) @ turned @ to_yiq).T.astype(np.float32)
    return matrix


def draw_instances(picture: Image.Image, instances: list, min_score: float = 0.5) -> Image.Image:  # type: ignore[type-arg]
    """The picture with its instances tinted, boxed and named."""
    pixels = np.asarray(picture).astype(np.float32)
    kept = [instance for instance in instances if instance.score >= min_score]
    for instance in kept:
        pixels[instance.mask] = 0.55 * pixels[instance.mask] + 0.45 * np.array(_colour(instance.class_name))
    drawn = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for instance in kept:
        left, top, right, bottom = instance.box_xyxy
        pen.rectangle((left, top, right - 1, bottom - 1), outline=_colour(instance.class_name))
        label = f"{instance.class_name} {instance.score:.2f}"
        place = (min(left, max(0, drawn.width - 6 * len(label))), max(0, top - 10))
        pen.text(place, label, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return drawn


def _colour(class_name: str) -> tuple[int, int, int]:
    hue = (coco().names.index(class_name) * 0.618) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
