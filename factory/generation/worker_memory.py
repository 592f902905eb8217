"""Estimates the memory of a CPU worker from the files of its models, before any model is loaded."""

import contextlib
import json
import math
import re
import struct
from pathlib import Path

from factory.config.recipe import Recipe
from factory.config.sections import GeneratorRecipe
from factory.detector.open_names import parse_open_name
from factory.files.paths import expanded

_PROCESS = 0.75 * 2**30
"""Memory of a worker without models (Python, torch, Ray) in bytes."""
_ACTIVATIONS = 1.35
"""Memory per byte of weights, measured on Stable Diffusion 1.5 in float32: 5.8 GiB for 4.0 GiB of weights."""
_UNKNOWN = 6 * 2**30
"""Memory in bytes for a hub model that has not been downloaded yet: about that of Stable Diffusion 1.5."""
_BYTES = {"float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error)
_LARGEST_HEADER = 100 * 2**20
_PART = re.compile(r"-\d{5}-of-\d{5}")
"""The number of a file of weights that are stored in several files."""


def worker_memory(recipe: Recipe, detector_in_worker: bool) -> int:
    """The estimated peak memory of a CPU worker for this recipe, in bytes."""
    generator = _parameters_of_generator(recipe.generator)
    weights = generator * _BYTES[recipe.generator.dtype]
    if detector_in_worker:
        folders = _folders_of_detector(recipe.masks.detector)
        weights += sum(parameters(folder) for folder in folders) * _BYTES["float32"]
    needed = _PROCESS + _ACTIVATIONS * weights
    return int(needed if generator else max(needed, _UNKNOWN))


def parameters(folder: Path, skipped: str = "") -> int:
    """The number of parameters in a model folder, without those of the component `skipped`.

    Of several variants of the same weights, the largest counts.
    """
    index = folder / "model_index.json"
    components, unused = [folder], ("safety_checker", skipped)
    if index.is_file():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            components = [folder / name for name in json.loads(index.read_bytes()) if name not in unused]
    return sum(_of_component(component) for component in components if component.is_dir())


def _of_component(component: Path) -> int:
    by_variant: dict[str, int] = {}
    for path in component.iterdir():
        if path.suffix in (".safetensors", ".bin", ".pt", ".pth") and path.is_file():
            variant = _PART.sub("", path.name)
            by_variant[variant] = by_variant.get(variant, 0) + _of_file(path)
    return max(by_variant.values(), default=0)


def _of_file(path: Path) -> int:
    if path.suffix == ".safetensors":
        with contextlib.suppress(*_UNREADABLE), path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _LARGEST_HEADER)))
            return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return path.stat().st_size // 4  # a pickle: assume float32


def _parameters_of_generator(generator: GeneratorRecipe) -> int:
    """The number of parameters of the generator; 0 for a hub model whose weights have not been downloaded yet."""
    from factory.generator.hub import cached_folder
    from factory.generator.layout import family_in, read_index
    from factory.generator.load import model_folder, pipeline_commit, split_checkpoint

    pipeline, file = split_checkpoint(generator.model)
    if file is None:
        folder = model_folder(generator.model) or cached_folder(generator.model, generator.revision)
        return 0 if folder is None else parameters(folder)
    own = _of_file(expanded(file))
    if pipeline is None:
        return own
    folder = model_folder(pipeline) or cached_folder(pipeline, pipeline_commit(generator.revision))
    if folder is None:
        return own
    family = family_in(read_index(folder))
    return own if family.is_unet else own + parameters(folder, skipped=family.denoiser)


def _folders_of_detector(detector: str) -> list[Path]:
    open_name = parse_open_name(detector)
    models = (detector,) if open_name is None else open_name.models
    paths = [expanded(model) for model in models]
    return [path for path in paths if path.is_dir()]
