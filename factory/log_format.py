"""Logging of commands and workers on request: FACTORY_LOG_FORMAT=json writes one JSON object per line to stderr.

Fields of an event that a program may search for (`shard`, `dataset`, ...) are passed as `extra={"fields": {...}}`.
"""

import json
import logging
import os
import socket
import sys
import time
from typing import Any

from factory.errors import UserError, printable

FORMAT, LEVEL = "FACTORY_LOG_FORMAT", "FACTORY_LOG_LEVEL"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class TextFormatter(logging.Formatter):
    """Text without control characters, which names in files of others may contain."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return printable(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (UTC), level, logger, message, host, pid, the fields, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        data: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "host": socket.gethostname(),
            "pid": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


def wants_json() -> bool:
    """Whether FACTORY_LOG_FORMAT requests JSON."""
    return os.environ.get(FORMAT, "").lower() == "json"


def configure() -> None:
    """Configure the logger `factory` of this process by FACTORY_LOG_FORMAT and FACTORY_LOG_LEVEL.

    Without either, Python prints warnings as plain text. The level is INFO by default. UserError if a variable has an
    unknown value.
    """
    format_name, level = os.environ.get(FORMAT, "").lower(), os.environ.get(LEVEL, "").upper()
    if format_name not in ("", "json", "text"):
        raise UserError(f"{FORMAT} must be json or text, got {os.environ[FORMAT]!r}.")
    if level not in ("", *_LEVELS):
        raise UserError(f"{LEVEL} must be one of {', '.join(_LEVELS)}, got {os.environ[LEVEL]!r}.")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(TextFormatter())
    if not format_name and not level:
        return
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if format_name == "json" else text)
    log = logging.getLogger("factory")
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(level or "INFO")
