"""Standard-conforming JSON, and the canonical form of which digests are computed."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from factory.errors import UserError


def dumps(value: Any, indent: int | None = None) -> str:
    """Serialise `value` as JSON. NaN and infinities, which JSON does not support, are written as null."""
    return json.dumps(_with_nulls(value), indent=indent, allow_nan=False)


def canonical(data: object) -> bytes:
    """Canonical JSON of plain data: sorted keys, no whitespace, UTF-8."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 60) : error.end + 20]
        raise UserError(
            f"a name cannot be written as UTF-8, near {near!r}: a file or folder name has another encoding or an "
            f"incomplete character; rename it."
        ) from error


def _with_nulls(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_with_nulls(item) for item in value]
    return value
