"""The column types of a dataset's shards, as Hugging Face dataset cards declare them.

Without them, `load_dataset(folder)` infers types from the first samples. That fails if the first shard is empty or, in
format 1, if a list is empty.
"""

from typing import Any

from factory.config.recipe import FORMAT, Recipe
from factory.dataset.manifest import MEASURES

Column = dict[str, Any]


def shard_features(recipe: Recipe) -> list[Column]:
    """The `features` of a card: the members of a sample, named as the builder `webdataset` names them."""
    latent = {"latent.npy": _sequence(_sequence(_sequence("float16")))} if recipe.oracle is not None else {}
    columns = {"jpg": _value("image"), "json": _struct(_record(recipe)), **latent, "seg.png": _value("image")}
    return _named({**columns, "__key__": _value("string"), "__url__": _value("string")})


def _record(recipe: Recipe) -> dict[str, Column]:
    """The columns of the json member. A field that only some datasets have is null in the others."""
    attempt = {"attempt": _value("int64"), "seed": _value("int64")}
    if recipe.format == 1:
        attempts = {"rejected": _structs({**attempt, "reason": _value("string")})}
    else:
        attempts = {"attempts": _structs({**attempt, "outcome": _value("string")})}
    oracle: dict[str, Column] = {}
    if recipe.oracle is not None:
        box = {"category_name": _value("string"), "score": _value("float64"), "bbox": _sequence("int64")}
        level = {"timestep": _value("int64")} if recipe.format < FORMAT else {"noise_level": _value("float64")}
        oracle = {**level, "detections": _structs(box)}
    return {
        "key": _value("string"),
        "image": _struct({"file_name": _value("string"), **_values("int64", "id", "width", "height")}),
        "annotations": _structs(_annotation()),
        "prompt": _value("string"),
        "classes": _sequence("string"),
        "seed": _value("int64"),
        "attempt": _value("int64"),
        **attempts,
        "filters": _struct({**_values("float64", *MEASURES), "image_hash": _value("string")}),
        "provenance": _struct(_provenance(recipe.format)),
        **oracle,
    }


def _annotation() -> dict[str, Column]:
    rle = {"counts": _value("string"), "size": _sequence("int64")}
    return {
        **_values("int64", "id", "image_id", "category_id", "area", "iscrowd"),
        "category_name": _value("string"),
        "segmentation": _struct(rle),
        "bbox": _sequence("int64"),
        "score": _value("float64"),
    }


def _provenance(format: int) -> dict[str, Column]:
    generator = {
        **_values("string", "model", "revision", "solver", "negative", "dtype"),
        "steps": _value("int64"),
        "guidance": _value("float64"),
    }
    if format >= FORMAT:
        generator |= {**_values("string", "lora", "lora_revision", "quantize"), "lora_scale": _value("float64")}
    if format < FORMAT:
        read = {"capture": _value("string"), "timesteps": _sequence("int64")}
    else:
        read = {"noise_level": _value("float64"), "noise_seed": _value("int64"), "blocks": _sequence("int64")}
    masks = {
        **_values("string", "source", "detector", "detector_revision", "grounder_revision"),
        **read,
        "levels": _sequence("int64"),
        "threshold": _value("float64"),
    }
    origin = {"format": _value("int64"), "recipe": _value("string")}
    return {**origin, "generator": _struct(generator), "masks": _struct(masks)}


def _value(kind: str) -> Column:
    return {"dtype": kind}


def _values(kind: str, *names: str) -> dict[str, Column]:
    return {name: _value(kind) for name in names}


def _sequence(element: str | Column) -> Column:
    return {"sequence": element}


def _struct(columns: dict[str, Column]) -> Column:
    return {"struct": _named(columns)}


def _structs(columns: dict[str, Column]) -> Column:
    return {"list": _named(columns)}


def _named(columns: dict[str, Column]) -> list[Column]:
    return [{"name": name, **column} for name, column in columns.items()]
