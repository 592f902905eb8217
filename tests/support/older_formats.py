"""Samples and recipes as earlier versions wrote them, to test that their datasets can still be read."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from factory.config.recipe import Recipe
from factory.dataset.encode import EncodedSample


def older_masks(masks: Mapping[str, Any]) -> dict[str, Any]:
    """The `masks` section of a recipe in formats 1 and 2."""
    kept = {name: value for name, value in masks.items() if name != "noise_level"}
    return {**kept, "capture": "sampling", "timesteps": [80]}


def older_sample(sample: EncodedSample, recipe: Recipe) -> EncodedSample:
    """A sample with the json member of format 1 or 2."""
    record = json.loads(sample.members["json"])
    masks = record["provenance"]["masks"]
    for name in ("noise_level", "noise_seed", "blocks"):
        del masks[name]
    for name in ("lora", "lora_revision", "lora_scale", "quantize"):
        del record["provenance"]["generator"][name]
    masks |= {"capture": recipe.masks.capture, "timesteps": list(recipe.masks.timesteps or ())}
    if record.pop("noise_level", None) is not None:
        record["timestep"] = 80
    if recipe.format == 1:
        tried = [attempt for attempt in record.pop("attempts") if attempt["outcome"] != "accepted"]
        record["rejected"] = [
            {"attempt": attempt["attempt"], "seed": attempt["seed"], "reason": attempt["outcome"]} for attempt in tried
        ]
        if recipe.oracle is not None:
            record.setdefault("detections", [])
    return replace(sample, members={**sample.members, "json": json.dumps(record).encode()})
