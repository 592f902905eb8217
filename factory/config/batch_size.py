"""The batch of a recipe: a number, or `auto` until the dataset is created."""

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

AUTO_BATCH = 0
"""`batch: auto`, until the dataset is created."""
_MAX_BATCH = 1024


def read_batch(value: Any) -> Any:
    """The number that a batch means; ValueError if it is neither a number in the range nor `auto`."""
    if value == "auto":
        return AUTO_BATCH
    # Pydantic reads numbers from text and from 8.0, but its messages about bounds would allow 0 and not mention `auto`.
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    number = int(text) if text.removeprefix("-").isdecimal() else None
    if isinstance(value, str | int | float) and (number is None or not 1 <= number <= _MAX_BATCH):
        raise ValueError(f"must be a whole number from 1 to {_MAX_BATCH}, or auto")
    return value


BatchSize = Annotated[
    int,
    BeforeValidator(read_batch),
    PlainSerializer(lambda size: "auto" if size == AUTO_BATCH else size, return_type=int | str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": _MAX_BATCH}, {"const": "auto"}]}),
]
