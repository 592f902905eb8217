"""Shares of images by number of objects."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator

from factory.config.class_balance import MAX_OBJECTS
from factory.errors import UserError


def _each_once(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """The shares by number of objects.

    Raises ValueError if they are not a mapping, and for two keys that are the same number, such as 1 and "01", because
    one of their shares would be lost.
    """
    if not isinstance(value, Mapping):
        raise ValueError("must map numbers of objects to shares, as in {1: 0.5, 2: 0.5}")
    shares = validate(value)
    if len(shares) < len(value):
        raise ValueError(f"must contain each number of objects once, got {', '.join(map(str, value))}")
    return shares


ObjectShares = Annotated[
    dict[int, float],
    WrapValidator(_each_once),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^[1-{MAX_OBJECTS}]$"},
            "additionalProperties": {"type": "number", "minimum": 0},
            "minProperties": 1,
        }
    ),
]
"""The field `objects` of a recipe."""


def check_objects(objects: Mapping[int, float], classes: int) -> None:
    """Raise ValueError for invalid shares, and for more objects than the number of classes allows."""
    shares = {count: share for count, share in objects.items() if share}
    if not shares or any(not (1 <= count <= MAX_OBJECTS and 0 < share < math.inf) for count, share in shares.items()):
        raise ValueError(
            f'objects must be 1 to {MAX_OBJECTS} with shares above 0, such as "1:0.5,2:0.5", got {dict(objects)}'
        )
    needed = {count: count if count < 3 else 3 * (count - 1) for count in shares}
    for count, least in needed.items():
        if classes < least:
            raise ValueError(f"{count} objects per prompt require at least {least} classes, got {classes}")


def parse_objects(text: str) -> dict[int, float]:
    """Parse "1:0.5,2:0.5" into shares by number of objects; "2" means "2:1", and "1,2" equal shares."""
    usage = '--objects requires number:share pairs such as "1:0.5,2:0.5"'
    parts = text.split(",")
    shares: dict[int, float] = {}
    if len({":" in part for part in parts}) > 1:  # a missing share would count as 1, twice as much as 0.5
        raise UserError(f"{usage}; give a share to all of them or to none, got {text!r}.")
    for part in parts:
        count, colon, share = part.partition(":")
        try:
            number, value = int(count), float(share) if colon else 1.0
        except ValueError as error:
            raise UserError(f"{usage}, got {text!r}.") from error
        if not math.isfinite(value) or value < 0:
            raise UserError(f"{usage}; a share must be a number of at least 0, got {share.strip()!r} in {text!r}.")
        if number in shares:
            raise UserError(f"{usage}; each number of objects is allowed once, got {number} twice in {text!r}.")
        shares[number] = value
    return shares
