"""Environment variables of the driver that its workers need too, on whichever machine they run."""

import os
from collections.abc import Mapping

_PREFIXES = ("AWS_", "GOOGLE_", "GCS_", "AZURE_")
_NAMES = frozenset({"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR"})

AT_START = {
    # Each thread of a worker would otherwise keep what it once needed, 260 MB in all (docs/performance.md).
    "MALLOC_ARENA_MAX": "1",
}
"""What must be set before a worker's process starts; nothing secret, for Ray shows it in its logs and process list."""


def of_the_driver() -> dict[str, str]:
    """How to reach object stores and the model hub: endpoint, region, credentials, profile.

    Travels to the workers as an argument of their actors. A `runtime_env` would put secrets into Ray's logs and, as
    part of a command line, into the process list.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) or name in _NAMES}


def adopt(variables: Mapping[str, str]) -> None:
    """Set the driver's variables in a worker, except for files that do not exist on its machine."""
    for name, value in variables.items():
        is_file = value.startswith("/") and not name.endswith("_URI")
        if not is_file or os.path.exists(value):
            os.environ[name] = value
