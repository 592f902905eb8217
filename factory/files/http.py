"""Requests to servers that users name: a check of their URLs, and `open_url`, which follows no redirects."""

from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener


def is_http_url(text: str) -> bool:
    """Whether the HTTP client accepts a URL; it supports no user and password.

    Checked here, because the error of the client would show the URL, which may be secret.
    """
    try:
        url = urlsplit(text)
        has_host = bool(url.hostname) and url.username is None and url.port != 0
    except ValueError:  # the port or an address in brackets is invalid
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return url.scheme in ("http", "https") and has_host and plain


class _NoRedirect(HTTPRedirectHandler):
    """Makes a redirect an error: urllib would send an API key to the other host, and a GET in place of a POST."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


open_url = build_opener(_NoRedirect).open
