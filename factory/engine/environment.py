"""Environment variables of the driver that its workers need as well, on any node."""

import os
from collections.abc import Mapping

_PREFIXES = ("AWS_", "GOOGLE_", "GCS_", "AZURE_", "FACTORY_STORE_")
_NAMES = frozenset(
    {
        "ALLOW_HTTP",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "FACTORY_LOG_FORMAT",
        "FACTORY_LOG_LEVEL",
    }
)
_PATHS = ("_FILE", "_DIR", "_PATH", "_CA_BUNDLE", "_APPLICATION_CREDENTIALS", "_SERVICE_ACCOUNT")
"""The ends of names whose values may be paths. A secret key may start with "/" as well: it is base64."""

AT_START = {
    # With one malloc arena per thread, memory that a thread has freed would stay reserved (260 MB).
    "MALLOC_ARENA_MAX": "1",
}
"""Variables that must be set before a worker process starts. No secrets: Ray shows them in its logs."""


def of_the_driver() -> dict[str, str]:
    """Settings for object stores, the model hub (endpoint, region, credentials, profile) and logging.

    They are passed to the workers as an actor argument. A `runtime_env` would expose secrets in Ray's logs and, as
    part of a command line, in the process list.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) or name in _NAMES}


def adopt(variables: Mapping[str, str]) -> None:
    """Set the driver's variables in a worker, except paths that do not exist on its node."""
    for name, value in variables.items():
        is_path = name.endswith(_PATHS) and value.startswith("/")
        if not is_path or os.path.exists(value):
            os.environ[name] = value
