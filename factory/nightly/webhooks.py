"""The addresses of webhooks, which may be secret: a URL, or the environment variable that holds it."""

import os
import re
from urllib.parse import urlsplit

from factory.errors import UserError


def variable_of(webhook: str) -> str | None:
    """The environment variable that `$NAME` or `${NAME}` names; None for anything else."""
    named = re.fullmatch(r"\$(?:(\w+)|\{(\w+)\})", webhook)
    return None if named is None else named[1] or named[2]


def is_webhook_url(text: str) -> bool:
    """Whether a message can be posted to a URL; the HTTP client supports no user and password.

    Checked here, because the error of the client would show the URL, which is secret.
    """
    try:
        url = urlsplit(text)
        has_host = bool(url.hostname) and url.username is None and url.port != 0
    except ValueError:  # the port or an address in brackets is invalid
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return url.scheme in ("http", "https") and has_host and plain


def webhook_url(text: str) -> str:
    """The URL itself, or the value of the environment variable that `$NAME` or `${NAME}` names."""
    name = variable_of(text)
    if name is None:
        return text
    url = os.environ.get(name, "").strip()
    if not is_webhook_url(url):
        raise UserError(
            f"the environment variable {name}, which a notification names as its webhook, "
            f"{'is not a URL without user, password and spaces' if url else 'is not set'}; set it to the URL of the "
            f"webhook."
        )
    return url
