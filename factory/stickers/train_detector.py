"""Training recipe of the embedded detector: pixel classes of rendered scenes in the training styles."""

import colorsys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

from factory.stickers.atlas import HELD_OUT_STYLE, TRAIN_STYLES
from factory.stickers.detector import INPUT_SIDE, StickerDetector, network_input
from factory.stickers.scenes import Scene, random_class_names, render_scene
from factory.stickers.training import tile
from factory.vocabulary import coco

_BACKGROUND_WEIGHT = 0.3
_COARSE_SIDE = 96
_COARSE_SHARE = 0.8
"""Most of the steps see small pictures, which cost a third: classes are learnt there, outlines at full size."""


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
    """Cross-entropy of pixels, on scenes that are recoloured, blurred and noised as other pictures may be."""

    name = "detector"

    def __init__(self, device: str, steps: int) -> None:
        self.device = device
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
            images.append(augmented(rng, scene.image))
            labels.append(label_map(scene))
        side = _COARSE_SIDE if step < self.coarse_steps else INPUT_SIDE
        pixels = network_input(torch.from_numpy(np.stack(images)).to(self.device), side)
        truth = torch.from_numpy(np.stack(labels)).to(self.device)
        near = functional.interpolate(truth[:, None].float(), (side // 2, side // 2), mode="nearest-exact")[:, 0]
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            logits = quarter_logits(self.model, pixels)
        logits = functional.interpolate(logits.float(), (side // 2, side // 2), mode="bilinear")
        weight = torch.ones(len(names) + 1, device=self.device)
        weight[0] = _BACKGROUND_WEIGHT
        return functional.cross_entropy(logits, near.long(), weight)

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


def augmented(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with, at random, other colours, less sharpness, and noise."""
    size = image.shape[0]
    pixels = image.astype(np.float32)
    if rng.random() < 0.3:
        pixels = pixels @ _hue_matrix(rng.uniform(-0.5, 0.5), rng.uniform(0.3, 1.2))
    if rng.random() < 0.5:
        low = int(size * rng.uniform(0.3, 0.7))
        small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((low, low), Image.Resampling.BILINEAR)
        pixels = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
    pixels = (pixels - 128) * np.float32(rng.uniform(0.75, 1.2)) + np.float32(128 + rng.uniform(-20, 20))
    if rng.random() < 0.3:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(2, 10))
    return np.clip(pixels, 0, 255).astype(np.uint8)


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
