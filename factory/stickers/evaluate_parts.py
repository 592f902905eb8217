"""Metrics of the autoencoder and the detector on newly rendered scenes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from PIL import Image

from factory.config.vocabulary import coco
from factory.dataset.masks import intersection_over_union
from factory.stickers.atlas import TRAIN_STYLES
from factory.stickers.detector import MIN_SCORE, DetectedInstance, StickerDetector
from factory.stickers.scenes import random_class_names, render_scene
from factory.stickers.train_autoencoder import round_trip_psnr, to_image, to_tensor
from factory.stickers.train_detector import label_map

_ROUGHNESS_SCENES = 32

Report = Callable[[str], None]


@dataclass(frozen=True)
class RoundTrip:
    """Reconstruction quality of the autoencoder. Shares refer to objects that the detector finds before encoding."""

    scenes: int
    psnr: float
    """In dB, over new scenes of all training styles and backgrounds."""
    kept_single: float
    kept_pairs: float
    roughness: float
    """Share of the latents' variance above half the Nyquist frequency; diffusion models learn rough latents poorly."""


def round_trip(autoencoder: AutoencoderTiny, detector: StickerDetector, scenes: int, report: Report) -> RoundTrip:
    """Encode and decode `scenes` new scenes of one object and as many of two objects."""
    single, pairs = (_kept(autoencoder, detector, scenes, objects) for objects in (1, 2))
    measured = RoundTrip(scenes, round_trip_psnr(autoencoder, scenes), single, pairs, _roughness(autoencoder))
    report(
        f"autoencoder: {measured.psnr:.2f} dB, objects kept {measured.kept_single:.1%} (one), "
        f"{measured.kept_pairs:.1%} (two)"
    )
    return measured


def mask_iou(detector: StickerDetector, styles: tuple[str, ...], scenes: int, report: Report) -> dict[str, float]:
    """IoU by class, with pixels pooled over new scenes and without a score threshold."""
    names = coco().names
    rng = np.random.default_rng(30)
    overlap, union = np.zeros(81), np.zeros(81)
    for first in range(0, scenes, 20):
        batch = [
            render_scene((6, k), (names[k % 80], *random_class_names(rng, names, 2))[: 1 + k % 3], styles=styles)
            for k in range(first, min(first + 20, scenes))
        ]
        pixels = torch.from_numpy(np.stack([scene.image for scene in batch])).to(detector.device)
        predicted = detector.labels(pixels).cpu().numpy()
        truth = np.stack([label_map(scene) for scene in batch])
        for k in np.union1d(np.unique(predicted), np.unique(truth)):
            overlap[k] += ((predicted == k) & (truth == k)).sum()
            union[k] += ((predicted == k) | (truth == k)).sum()
    report(f"mask IoU on {scenes} renders of {', '.join(styles)}: {np.mean(overlap[1:] / union[1:].clip(1)):.3f}")
    return {name: float(overlap[k] / max(1, union[k])) for k, name in enumerate(names, 1)}


def mirrored_agreement(detector: StickerDetector, pictures: list[Image.Image], report: Report) -> float:
    """Mean IoU by class between the masks that the detector finds in an image and in its mirror image.

    A class that is found in only one of the two counts as 0.
    """
    plain = detect_all(detector, pictures)
    mirrored = detect_all(detector, [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in pictures])
    ious = []
    for original, flipped in zip(plain, mirrored, strict=True):
        for name in sorted(classes_found(original) | classes_found(flipped)):
            mask, flipped_mask = _mask(original, name), _mask(flipped, name)
            if mask is None or flipped_mask is None:
                ious.append(0.0)
            else:
                ious.append(intersection_over_union(mask, flipped_mask[:, ::-1]))
    agreement = float(np.mean(ious)) if ious else 0.0
    report(f"agreement with itself on {len(pictures)} mirrored images: {agreement:.1%}")
    return agreement


def detect_all(detector: StickerDetector, pictures: list[Image.Image]) -> list[list[DetectedInstance]]:
    """The instances in each image, detected in batches."""
    return [instances for k in range(0, len(pictures), 20) for instances in detector.detect(pictures[k : k + 20])]


def classes_found(instances: list[DetectedInstance]) -> set[str]:
    """The classes of instances with a score of at least `MIN_SCORE`."""
    return {instance.class_name for instance in instances if instance.score >= MIN_SCORE}


def _mask(instances: list[DetectedInstance], name: str) -> NDArray[np.bool_] | None:
    masks = [i.mask for i in instances if i.class_name == name and i.score >= MIN_SCORE]
    return np.logical_or.reduce(masks) if masks else None


@torch.no_grad()
def _kept(autoencoder: AutoencoderTiny, detector: StickerDetector, scenes: int, objects: int) -> float:
    names = coco().names
    device = next(autoencoder.parameters()).device
    before = after = 0
    for first in range(0, scenes, 20):
        drawn = []
        for k in range(first, min(first + 20, scenes)):
            rng = np.random.default_rng((31, objects, k))
            chosen = tuple(names[int(c)] for c in rng.choice(len(names), objects, replace=False))
            drawn.append(render_scene((31, objects, k), chosen, styles=TRAIN_STYLES))
        pixels = torch.stack([to_tensor(scene.image) for scene in drawn]).to(device)
        decoded = autoencoder.decode(autoencoder.encode(pixels).latents).sample
        originals = detector.detect([Image.fromarray(scene.image) for scene in drawn])
        copies = detector.detect([to_image(picture) for picture in decoded])
        for scene, original, copy in zip(drawn, originals, copies, strict=True):
            found = classes_found(original) & set(scene.class_names)
            before += len(found)
            after += len(found & classes_found(copy))
    return after / max(1, before)


@torch.no_grad()
def _roughness(autoencoder: AutoencoderTiny) -> float:
    names = coco().names
    seeds = [(32, k) for k in range(_ROUGHNESS_SCENES)]
    drawn = [render_scene(seed, random_class_names(np.random.default_rng(seed), names)) for seed in seeds]
    device = next(autoencoder.parameters()).device
    latents = autoencoder.encode(torch.stack([to_tensor(scene.image) for scene in drawn]).to(device)).latents.float()
    latents = latents - latents.mean(dim=(2, 3), keepdim=True)
    power = torch.fft.fft2(latents).abs().square().mean(dim=(0, 1))
    down, across = (torch.fft.fftfreq(side, device=device).abs() for side in power.shape)
    rough = torch.maximum(down[:, None], across[None]) > 0.25
    return float(power[rough].sum() / power.sum())
