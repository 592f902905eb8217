"""Recipe fields that hold the name of something predefined, or a list or table of their own."""

from typing import Any

from pydantic import BeforeValidator


def named_or(other: str, *names: str) -> BeforeValidator:
    """Reject a text that is none of the names with one message; Pydantic would print one per type of the field.

    `other` describes what the field may hold instead of a name.
    """

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in names:
            raise ValueError(f"must be {', '.join(names)} or {other}")
        return value

    return BeforeValidator(check)
