"""Recipe fields that contain a predefined name, or a custom list or table."""

from typing import Any

from pydantic import BeforeValidator


def named_or(other: str, *names: str) -> BeforeValidator:
    """Reject any other text with one message; Pydantic would print one for each type of the field.

    `other` describes what the field may hold instead of a name.
    """

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in names:
            raise ValueError(f"must be {', '.join(names)} or {other}")
        return value

    return BeforeValidator(check)
