"""The batch of a recipe: a number, or `auto` until the dataset is created."""

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

AUTO_BATCH = 0
"""`batch: auto`, until the dataset is created."""


def _batch(value: Any) -> Any:
    if value == "auto":
        return AUTO_BATCH
    if str(value) == str(AUTO_BATCH):
        raise ValueError("Input should be at least 1, or auto")
    return value


BatchSize = Annotated[
    int,
    BeforeValidator(_batch),
    PlainSerializer(lambda size: "auto" if size == AUTO_BATCH else size, return_type=int | str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 1024}, {"const": "auto"}]}),
]
