"""The training scenes of the embedded text-to-image model, and the cache of their latents."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from factory.config.vocabulary import caption, coco
from factory.files.atomic import replaced_atomically
from factory.stickers.atlas import DRAWN_STYLES
from factory.stickers.backgrounds import MODEL_KIND_SHARES
from factory.stickers.scenes import Scene, render_scene
from factory.stickers.train_autoencoder import to_tensor
from factory.training.precision import autocast

SCENE_MIN_VISIBLE = 1.0
"""Objects do not hide each other. Where they did in the training data, the model merged the objects of one image in
four."""
NUM_SCENES = 20_000
_SCENE_SEED = 4
_PAIR_SHARE = 0.65
_EMPHASIS = {
    **dict.fromkeys(("bicycle", "bird", "horse"), 3),
    **dict.fromkeys(("person", "dog", "skis", "snowboard", "baseball bat", "tennis racket"), 2),
    **dict.fromkeys(("fork", "knife", "spoon", "scissors", "hair drier", "toothbrush"), 2),
}
"""How many times as often a class is shown as the others, alone and in pairs. These classes are thin or finely
structured, and the model learns them most slowly."""
_ENCODING_BATCH = 48


def all_captions() -> list[str]:
    """The captions of every class and of every ordered pair, on which the tokenizer is trained."""
    names = coco().names
    return [caption((a,)) for a in names] + [caption((a, b)) for a in names for b in names if a != b]


def scene_classes(index: int) -> tuple[str, ...]:
    """The class or the two classes of the index-th training scene."""
    rng = np.random.default_rng((_SCENE_SEED, index))
    number = 2 if rng.random() < _PAIR_SHARE else 1
    names = coco().names
    weights = np.array([_EMPHASIS.get(name, 1) for name in names])
    chosen = rng.choice(len(names), number, replace=False, p=weights / weights.sum())
    return tuple(names[index] for index in chosen)


def training_scene(seed: tuple[int, ...], class_names: tuple[str, ...]) -> Scene:
    """A scene in the style of the training data."""
    return render_scene(
        seed, class_names, styles=DRAWN_STYLES, kind_shares=MODEL_KIND_SHARES, min_visible=SCENE_MIN_VISIBLE
    )


def cached_scene(index: int) -> Scene:
    """The index-th of the scenes that `scene_latents` encodes."""
    return training_scene((_SCENE_SEED, index), scene_classes(index))


def scene_latents(
    autoencoder: AutoencoderTiny, folder: Path, cache: Path, device: str, report: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """Latents (N, 6, 32, 32) and object coverage (N, 32, 32), both float16, cached in the file `cache`.

    The latents are scaled to unit variance. `folder` is the folder of the autoencoder. A cache that is damaged, or that
    of another autoencoder or of other scenes, is rebuilt.
    """
    weights = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    scenes = f"{DRAWN_STYLES} {MODEL_KIND_SHARES} {SCENE_MIN_VISIBLE} {_SCENE_SEED} {_PAIR_SHARE} {_EMPHASIS}"
    fingerprint = hashlib.sha256(weights + scenes.encode()).hexdigest()
    if cache.exists():
        saved = _cached(cache)
        if saved.get("autoencoder") == fingerprint and len(saved["latents"]) == NUM_SCENES:
            return saved["latents"], saved["coverage"]
        report(f"{cache} is damaged, or was created with another autoencoder or other scenes; encoding again")
    parts = []
    for first in range(0, NUM_SCENES, _ENCODING_BATCH):
        indices = range(first, min(first + _ENCODING_BATCH, NUM_SCENES))
        parts.append(_encoded(autoencoder, [cached_scene(k) for k in indices], device))
        if first // 2400 != (first + _ENCODING_BATCH) // 2400:
            report(f"scene {first + len(indices)} of {NUM_SCENES} encoded")
    stacked: dict[str, Any] = {
        "latents": torch.cat([latents for latents, _ in parts]),
        "coverage": torch.cat([coverage for _, coverage in parts]),
        "autoencoder": fingerprint,
    }
    cache.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(cache) as partial, partial.open("wb") as stream:
        torch.save(stacked, stream)
    return stacked["latents"], stacked["coverage"]


def _cached(cache: Path) -> dict[str, Any]:
    """The content of the cache; empty if it is damaged."""
    try:
        return dict(torch.load(cache, weights_only=True))
    except Exception:  # truncated files raise many kinds of errors
        return {}


def _encoded(autoencoder: AutoencoderTiny, scenes: list[Scene], device: str) -> tuple[Tensor, Tensor]:
    pixels = torch.stack([to_tensor(scene.image) for scene in scenes]).to(device, memory_format=torch.channels_last)
    with torch.no_grad(), autocast(device):
        latents = autoencoder.encode(pixels).latents * autoencoder.config["scaling_factor"]
    objects = torch.from_numpy(np.stack([scene.instance_map > 0 for scene in scenes])).float()[:, None]
    factor = objects.shape[-1] // latents.shape[-1]
    return latents.cpu().half().contiguous(), nn.functional.avg_pool2d(objects, factor)[:, 0].half()
