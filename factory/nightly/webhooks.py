"""The addresses of webhooks, which may be secret: a URL, or the environment variable that holds it."""

import os
import re

from factory.errors import UserError
from factory.files.http import is_http_url


def variable_of(webhook: str) -> str | None:
    """The environment variable that `$NAME` or `${NAME}` names; None for anything else."""
    named = re.fullmatch(r"\$(?:(\w+)|\{(\w+)\})", webhook)
    return None if named is None else named[1] or named[2]


def webhook_url(text: str) -> str:
    """The URL itself, or the value of the environment variable that `$NAME` or `${NAME}` names."""
    name = variable_of(text)
    if name is None:
        return text
    url = os.environ.get(name, "").strip()
    if not is_http_url(url):
        raise UserError(
            f"the environment variable {name}, which a notification names as its webhook, "
            f"{'is not a URL without user, password and spaces' if url else 'is not set'}; set it to the URL of the "
            f"webhook."
        )
    return url
