"""Sends notifications about a night to a webhook or a command. Failures are only reported."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request

from factory.files.http import open_url
from factory.nightly.config import Notification
from factory.nightly.record import GOOD
from factory.nightly.webhooks import webhook_url

_TIMEOUT = 10.0
_COMMAND_TIMEOUT = 60.0
_PAUSES = (1.0, 4.0)
"""Seconds before each further attempt to reach a webhook."""
_STATES = {"success": GOOD, "failure": ("failed",)}


def check_variables(notifications: tuple[Notification, ...]) -> None:
    """UserError if the environment variable that contains a webhook is not set."""
    for notification in notifications:
        if notification.webhook is not None:
            webhook_url(notification.webhook)


def send_all(
    notifications: tuple[Notification, ...],
    state: str,
    text: str,
    variables: Mapping[str, str],
    log: Callable[[str], None],
) -> None:
    """Send the notifications that are due for a night in this state; never raises.

    A command gets the text on standard input and `variables` in its environment.
    """
    for notification in notifications:
        if notification.on != "always" and state not in _STATES[notification.on]:
            continue
        try:
            if notification.webhook is not None:
                _post(webhook_url(notification.webhook), text)
            elif notification.command is not None:
                _run(notification.command, text, variables)
        except Exception as error:  # a notification must never fail the night
            log(f"a notification could not be sent ({_named(notification)}): {type(error).__name__}: {error}")


def _post(url: str, text: str) -> None:
    """Post {"text": ...}, which Slack, Mattermost and others accept. Errors do not show the URL: it may be secret."""
    body = json.dumps({"text": text}).encode()
    for pause in (*_PAUSES, None):
        request = Request(url, body, {"Content-Type": "application/json"})
        try:
            with open_url(request, timeout=_TIMEOUT):
                return
        except HTTPError as error:
            reason, permanent = f"status {error.code}", error.code < 500 and error.code != 429
            if 300 <= error.code < 400:
                reason += ", a redirect; give the URL that it leads to"
            error.close()
        except (OSError, ValueError, HTTPException) as error:  # the text of the latter may come from the server
            reason, permanent = str(getattr(error, "reason", "") or type(error).__name__), False
        if permanent or pause is None:
            raise ConnectionError(reason) from None
        time.sleep(pause)


def _run(command: str | tuple[str, ...], text: str, variables: Mapping[str, str]) -> None:
    """Run a command without a shell and wait for it; after a minute or on Ctrl-C, kill it and its children."""
    process = subprocess.Popen(
        shlex.split(command) if isinstance(command, str) else list(command),
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            output, _ = process.communicate(text, timeout=_COMMAND_TIMEOUT)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # a signal to this process does not reach another session
            process.wait()  # leaving `with` does not wait after a KeyboardInterrupt
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"it did not end within {_COMMAND_TIMEOUT:.0f} s") from None
            raise
    if process.returncode:
        last = output.strip().splitlines()[-1:]
        raise ChildProcessError(f"exit code {process.returncode}{': ' + last[0][:200] if last else ''}")


def _named(notification: Notification) -> str:
    if notification.webhook is not None:
        return f"webhook of {urlsplit(notification.webhook).hostname or notification.webhook}"
    command = notification.command or ""
    return f"command {shlex.split(command)[0] if isinstance(command, str) else command[0]}"
