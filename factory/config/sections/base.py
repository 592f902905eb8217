"""The base of all sections of a recipe."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of all sections: immutable, without unknown fields, and without infinite, NaN or boolean numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_numbers(cls, data: Any) -> Any:
        """Reject booleans for numbers: Pydantic reads `n: true` as 1, and YAML 1.1 reads `yes` and `on` as true."""
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and bool not in _types_of(field.annotation):
                raise ValueError(f"{name} must not be a boolean, got {str(value).lower()}")
        return data


def _types_of(annotation: Any) -> set[Any]:
    """All types that occur in a field's annotation."""
    return {annotation}.union(*(_types_of(part) for part in get_args(annotation)))
