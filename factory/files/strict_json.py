"""Standard-conforming JSON: NaN and infinities become null."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Serialise `value` as JSON. NaN and infinities, which JSON does not support, are written as null."""
    return json.dumps(_with_nulls(value), indent=indent, allow_nan=False)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_with_nulls(item) for item in value]
    return value
