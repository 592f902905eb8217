"""The file progress.json, which shows other programs the progress of a run."""

import contextlib
from typing import Any

from factory.dataset.storage import Store
from factory.errors import UserError
from factory.files.decode import decode_json
from factory.files.strict_json import canonical

PROGRESS = "progress.json"
_PATIENCE = 10.0


def read_progress(store: Store) -> dict[str, Any]:
    """The content of progress.json; empty if there is none or it is invalid."""
    data = store.get_derived(PROGRESS) or b"{}"
    try:
        return dict(decode_json(data))
    except (ValueError, TypeError):
        return {}


def put_progress(store: Store, data: dict[str, Any]) -> None:
    """Write progress.json for monitoring; failures are ignored."""
    with contextlib.suppress(UserError):
        store.with_patience(_PATIENCE).put(PROGRESS, canonical(data) + b"\n")
