"""The base of all sections of a recipe."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of all sections: immutable; rejects unknown fields, and numbers that are infinite, NaN or boolean."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_lax_values(cls, data: Any) -> Any:
        """Reject values that Pydantic would convert silently to something unintended.

        It reads `n: true` and `levels: [true]` as 1, and YAML 1.1 reads `yes` and `on` as true. Sets have another order
        in every process, but class ids and the choice of prompts depend on the order.
        """
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if field is None:
                continue
            types = _types_of(field.annotation)
            if isinstance(value, bool) and bool not in types:
                raise ValueError(f"{name} must not be a boolean, got {str(value).lower()}")
            if {int, float} & types and any(isinstance(item, bool) for item in _items(value)):
                raise ValueError(f"{name} must contain numbers, not booleans")
            if isinstance(value, set | frozenset):
                raise ValueError(f"{name} must be a list, got a set, which has no order")
        return data


def plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe as they would be in a file: programs may also give sections and instances of `Path`."""
    return {name: _plain(value) for name, value in fields.items()}


def given_fields(section: Section) -> dict[str, Any]:
    """The fields of a section that were set explicitly. Other defaults depend on the model and the hardware."""
    return {name: value for name, value in section if name in section.model_fields_set}


def _plain(value: Any) -> Any:
    """A field as plain data. Deeper levels are left alone: in a file, nested aliases expand to gigabytes."""
    if isinstance(value, Section):
        value = given_fields(value)
    if isinstance(value, dict):
        return {name: os.fspath(item) if isinstance(item, os.PathLike) else item for name, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _items(value: Any) -> Iterable[Any]:
    """The items of a list, or the values of a mapping; empty for anything else."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _types_of(annotation: Any) -> set[Any]:
    """All types that occur in a field's annotation."""
    return {annotation}.union(*(_types_of(part) for part in get_args(annotation)))
