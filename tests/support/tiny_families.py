"""A tiny pipeline of every family's real classes with random weights, created in about a second without a download."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_diffusion_transformers import pixart, qwen_image, sana, sd3, z_image
from tests.support.tiny_flux import chroma, flux, flux2, flux2_klein
from tests.support.tiny_pipeline import tiny_pipeline

BUILDERS: dict[str, Callable[[], Any]] = {
    "sd3": sd3,
    "flux-dev": lambda: flux(True),
    "flux-schnell": lambda: flux(False),
    "flux2": flux2,
    "flux2-klein-base": lambda: flux2_klein(False),
    "flux2-klein": lambda: flux2_klein(True),
    "chroma": chroma,
    "pixart-sigma": pixart,
    "sana": sana,
    "z-image": z_image,
    "qwen-image": qwen_image,
}
"""The transformer families; U-Nets are made by `tiny_pipeline`."""

SIDES = {"sana": 128}
"""The images' sides in pixels where they are not 64."""


def tiny_family(name: str, folder: Path) -> Path:
    """Write a pipeline of 4 x 4 image tokens to `folder`: a row of BUILDERS, `sd` or `sdxl`."""
    if name in ("sd", "sdxl"):
        return tiny_pipeline(folder, xl=name == "sdxl")
    torch.manual_seed(0)
    pipeline = BUILDERS[name]()
    with torch.no_grad():  # zero-initialised layers would hide what the inputs do
        for value in pipeline.transformer.parameters():
            if not value.any():
                value.normal_(std=0.1)
    pipeline.save_pretrained(folder)
    if name == "flux2":
        index = json.loads((folder / "model_index.json").read_text())
        index["tokenizer"] = ["transformers", "PixtralProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder
