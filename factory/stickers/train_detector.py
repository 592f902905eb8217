"""Training task of the embedded detector: semantic segmentation of rendered scenes in the training styles."""

import colorsys
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

from factory.config.vocabulary import coco
from factory.files.digest import folder_digest
from factory.generator.weights import load_model
from factory.stickers.atlas import DRAWN_STYLES, HELD_OUT_STYLE, TRAIN_STYLES
from factory.stickers.detector import MIN_SCORE, DetectedInstance, StickerDetector, network_input
from factory.stickers.scenes import Scene, random_class_names, render_scene
from factory.stickers.text_to_image import open_autoencoder, open_in_float32
from factory.stickers.train_autoencoder import quantised
from factory.training.precision import autocast
from factory.training.sheet import tile

_BACKGROUND_WEIGHT = 0.3
"""Weight of background pixels in the loss. It is part of the model, because detection undoes it in the masks."""
_SIDES = (96, 112, 128, 144, 160, 176)
"""Input sides, one of which is drawn per step, so that the network learns objects of many sizes."""
_DRAWN_SHARE = 0.25
"""Share of the scenes in the style of the text-to-image model, on whose images the detector is used."""
_VARIANTS_SHARE = 0.3
"""Share of the scenes with variants, other drawings of the classes. The held-out style shows some classes in a way in
which no default drawing of the training styles shows them."""
_RECONSTRUCTED_SHARE = 0.15
_MAX_LATENT_NOISE = 0.5
JUDGE_WIDTHS = (40, 80, 160, 256)
"""Channels of the second detector (`judge`), with which metrics are checked for errors of the first."""


def new_network(widths: tuple[int, ...] = (48, 96, 192, 320), seed: int = 0) -> UperNetForSemanticSegmentation:
    """The architecture with random weights (5.6 M parameters at the default widths)."""
    torch.manual_seed(seed)
    names = coco().names
    labels = {0: "background", **{k + 1: name for k, name in enumerate(names)}}
    backbone = ResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=list(widths),
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
            background_weight=_BACKGROUND_WEIGHT,
            id2label=labels,
            label2id={name: k for k, name in labels.items()},
        )
    )


class DetectorTask:
    """Pixel-wise cross-entropy on augmented scenes.

    Some scenes are decoded from noisy latents of the autoencoder, like the images that the detector will be used on.
    """

    name = "detector"

    def __init__(self, device: str, autoencoder: Path, judge: bool = False) -> None:
        self.device = device
        self.depends_on: Mapping[str, str] = {"autoencoder": folder_digest(autoencoder)}
        self.autoencoder = open_autoencoder(autoencoder, device)
        network = new_network(JUDGE_WIDTHS, seed=1) if judge else new_network()
        self.model = network.to(device, memory_format=torch.channels_last)
        if judge:
            self.name = "judge"

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of a batch of new scenes."""
        names = coco().names
        rng = np.random.default_rng((seed, 4, step))
        images, labels = [], []
        for position in range(batch):
            styles = DRAWN_STYLES if rng.random() < _DRAWN_SHARE else TRAIN_STYLES
            variants = bool(rng.random() < _VARIANTS_SHARE)
            class_names = random_class_names(rng, names)
            scene = render_scene((seed, 4, step, position), class_names, styles=styles, variants=variants)
            image, label_image = augmented(rng, scene)
            images.append(image)
            labels.append(label_image)
        side = int(rng.choice(_SIDES))
        reconstructed = self._reconstructed(np.stack(images), rng)
        pixels = network_input(torch.from_numpy(reconstructed).to(self.device), side)
        truth = torch.from_numpy(np.stack(labels)).to(self.device)
        targets = functional.interpolate(truth[:, None].float(), (side // 2, side // 2), mode="nearest-exact")[:, 0]
        with autocast(self.device):
            logits = quarter_logits(self.model, pixels)
        logits = functional.interpolate(logits.float(), (side // 2, side // 2), mode="bilinear")
        weight = torch.ones(len(names) + 1, device=self.device)
        weight[0] = _BACKGROUND_WEIGHT
        return functional.cross_entropy(logits, targets.long(), weight)

    def _reconstructed(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The images (B, H, W, 3), with a random share of them decoded from noisy latents."""
        selected = rng.random(len(images)) < _RECONSTRUCTED_SHARE
        if not selected.any():
            return images
        pixels = torch.from_numpy(images[selected]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), autocast(self.device):
            latents = self.autoencoder.encode(pixels).latents
            spread = torch.from_numpy(rng.uniform(0, _MAX_LATENT_NOISE, (int(selected.sum()), 1, 1, 1))).to(latents)
            noise = torch.randn(latents.shape).to(latents) / self.autoencoder.config["scaling_factor"]
            decoded = self.autoencoder.decode(latents + spread * noise).sample.float()
        reconstructed = images.copy()
        reconstructed[selected] = quantised(decoded).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return reconstructed

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        """Detections in scenes of the training styles, then of the held-out style."""
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

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """No metrics during training; use `factory stickers evaluate`."""
        return {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a transformers folder with float16 weights that loads in float32."""
        assert isinstance(model, UperNetForSemanticSegmentation)
        model.to(torch.float16).save_pretrained(folder)
        open_in_float32(folder)

    def load(self, folder: Path) -> None:
        """Load saved weights."""
        self.model.load_state_dict(load_model(UperNetForSemanticSegmentation, folder, "detector").state_dict())


def quarter_logits(model: UperNetForSemanticSegmentation, pixels: Tensor) -> Tensor:
    """The logits (B, 81, side / 4, side / 4) before upsampling, for `pixels` (B, 3, side, side) of `network_input`."""
    logits: Tensor = model.decode_head(model.backbone(pixels).feature_maps)
    return logits


def label_map(scene: Scene) -> NDArray[np.uint8]:
    """uint8 (size, size): 0 is background, k the k-th COCO class."""
    labels = [0, *(coco().names.index(name) + 1 for name in scene.class_names)]
    return np.array(labels, np.uint8)[scene.instance_map]


def augmented(rng: np.random.Generator, scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image, uint8 (H, W, 3), and labels, uint8 (H, W), with random colours, outlines, framing, blur and noise."""
    size = scene.image.shape[0]
    pixels = scene.image.astype(np.float32)
    for number in range(1, len(scene.class_names) + 1):
        mask = scene.instance_map == number
        if rng.random() < 0.4:
            pixels[mask] = pixels[mask] @ _hue_matrix(rng.uniform(-0.5, 0.5), rng.uniform(0, 1.4))
        if rng.random() < 0.3:
            pixels[mask] = pixels[mask] * np.float32(rng.uniform(0.6, 1.3)) + np.float32(rng.uniform(-20, 40))
    if rng.random() < 0.4:
        pixels = _inked(rng, np.clip(pixels, 0, 255), scene.instance_map)
    labels = label_map(scene)
    if rng.random() < 0.5:
        pixels, labels = _reframed(rng, pixels, labels)
    if rng.random() < 0.5:
        low = int(size * rng.uniform(0.3, 0.7))
        pixels = _resized(_resized(pixels, low), size)
    if rng.random() < 0.3:
        pixels = np.float32(255) * (np.clip(pixels, 0, 255) / np.float32(255)) ** np.float32(rng.uniform(0.6, 1.6))
    gain, offset = rng.uniform(0.7, 1.25) * rng.uniform(0.9, 1.1, 3), 128 + rng.uniform(-25, 25)
    pixels = (pixels - 128) * gain.astype(np.float32) + np.float32(offset)
    if rng.random() < 0.3:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(2, 12))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


def _reframed(
    rng: np.random.Generator, pixels: NDArray[np.float32], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A random window of 0.75 to 1.3 times the image's side, whose width and height then change by up to 20 % each.

    Half of the windows are rotated by up to 45 degrees. Pixels outside the image repeat its edge and are background.
    """
    size = labels.shape[0]
    width, height = size * rng.uniform(0.75, 1.3) * rng.uniform(0.8, 1.2, 2)
    left, top = (rng.uniform(min(0, size - side), max(0, size - side)) for side in (width, height))
    angle = rng.uniform(-math.pi / 4, math.pi / 4) if rng.random() < 0.5 else 0.0
    offsets = (np.arange(size) + 0.5) / size - 0.5
    x, y = offsets[None] * width, offsets[:, None] * height
    columns = left + width / 2 + math.cos(angle) * x - math.sin(angle) * y
    rows = top + height / 2 + math.sin(angle) * x + math.cos(angle) * y
    inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    columns, rows = (np.clip(indices.astype(int), 0, size - 1) for indices in (columns, rows))
    # Objects at the edge are smeared across the outside; these pixels are labelled as background.
    return pixels[rows, columns], np.where(inside, labels[rows, columns], 0).astype(np.uint8)


def _resized(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32)


def _inked(
    rng: np.random.Generator, pixels: NDArray[np.float32], instance_map: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Objects with flat colours and dark lines along their outlines and inner edges, like in comics."""
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
    """A 3 x 3 matrix for RGB row vectors that rotates hues by `turn` full turns and scales saturation."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cos, sin = np.cos(2 * np.pi * turn) * saturation, np.sin(2 * np.pi * turn) * saturation
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix: NDArray[np.float32] = (np.linalg.inv(to_yiq) @ rotation @ to_yiq).T.astype(np.float32)
    return matrix


def draw_instances(picture: Image.Image, instances: list[DetectedInstance]) -> Image.Image:
    """The image with a coloured mask, box and label for each instance with a score of at least `MIN_SCORE`."""
    pixels = np.asarray(picture).astype(np.float32)
    kept = [instance for instance in instances if instance.score >= MIN_SCORE]
    for instance in kept:
        pixels[instance.mask] = 0.55 * pixels[instance.mask] + 0.45 * np.array(_colour(instance.class_name))
    drawn = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for instance in kept:
        left, top, right, bottom = instance.box_xyxy
        pen.rectangle((left, top, right - 1, bottom - 1), outline=_colour(instance.class_name))
        label = f"{instance.class_name} {instance.score:.2f}"
        position = (min(left, max(0, drawn.width - 6 * len(label))), max(0, top - 10))
        pen.text(position, label, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return drawn


def _colour(class_name: str) -> tuple[int, int, int]:
    hue = (coco().names.index(class_name) * 0.618) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
