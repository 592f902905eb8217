"""Notifications: a webhook, a command, and failures that never fail a night."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from factory.files.strict_json import dumps
from factory.nightly import notify, steps
from factory.nightly.budget import now
from factory.nightly.config import Notification
from factory.nightly.notify import send_all
from factory.nightly.outcome import Outcome
from factory.nightly.record import Verified
from factory.nightly.run import run_night
from factory.nightly.steps import prepare_night, start_night
from tests.nightly.conftest import DATE, Make, Put
from tests.support.bucket import Bucket


@contextmanager
def webhook(*statuses: int) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers with these status codes, then 200; yields its URL and what was posted."""
    received, remaining = list[Any](), list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Content-Type"], json.loads(body)))
            status = remaining.pop(0) if remaining else 200
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/T0/secret", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(state: str, *notifications: Notification, text: str = "hello") -> list[str]:
    warnings = list[str]()
    send_all(notifications, state, text, {"FACTORY_NIGHT": "{}"}, warnings.append)
    return warnings


def test_webhook_gets_the_json_of_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as (url, received):
        monkeypatch.setenv("HOOK", url)
        assert send("failed", Notification(webhook=url), Notification(webhook="$HOOK"), text="a\nb") == []
    assert received == [("/T0/secret", "application/json", {"text": "a\nb"})] * 2


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("complete", ["success", "always"]),
        ("partial", ["success", "always"]),
        ("failed", ["failure", "always"]),
        ("interrupted", ["always"]),
    ],
)
def test_each_kind_is_sent_for_its_states(state: str, expected: list[str], tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    kinds: tuple[Any, ...] = ("success", "failure", "always")
    send(state, *(Notification(on=on, command=(sys.executable, "-c", code, str(tmp_path / on))) for on in kinds))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"hello"}


def test_webhook_is_tried_again_after_a_server_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_PAUSES", (0.0, 0.0))
    with webhook(503, 429) as (url, received):
        assert send("failed", Notification(webhook=url)) == []
        assert len(received) == 3
    with webhook(404) as (url, received):
        (warning,) = send("failed", Notification(webhook=url))
        assert len(received) == 1, "a wrong URL stays wrong"
    assert warning == "a notification could not be sent (webhook of 127.0.0.1): ConnectionError: status 404"
    (warning,) = send("failed", Notification(webhook=url))
    assert "secret" not in warning, "the server is gone"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_webhook_that_is_redirected_has_not_received_the_message(status: int) -> None:
    """The client would follow some with a GET request without the message, and take the answer for success."""
    with webhook(status) as (url, received):
        (warning,) = send("failed", Notification(webhook=url))
    assert len(received) == 1
    assert warning.endswith(f"ConnectionError: status {status}, a redirect; give the URL that it leads to")


@pytest.mark.parametrize(
    "answer", [b"secret nonsense\r\n\r\n", b"HTTP/1.1 200 secret\r\n" + b"A: b\r\n" * 200 + b"\r\n", b""]
)
def test_server_that_does_not_speak_http_is_tried_again_and_not_quoted(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_PAUSES", (0.0,))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                connection, _address = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        (warning,) = send("failed", Notification(webhook=f"http://127.0.0.1:{server.getsockname()[1]}/T0/x"))
        thread.join(10)
    assert not thread.is_alive(), "tried twice"
    assert "could not be sent (webhook of 127.0.0.1): ConnectionError: " in warning
    assert "secret" not in warning


@pytest.mark.parametrize(
    "url",
    ["", "secret", "https://me:secret@host/", "https://host/a secret", "https://[secret/", "https://host:secret/"],
)
def test_variable_that_holds_no_usable_url_is_rejected_before_the_night(
    url: str, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    """Such a URL fails in the HTTP client, whose messages quote it."""
    monkeypatch.setenv("HOOK", url)
    outcome = run_night(context := make(notify=[{"on": "always", "webhook": "$HOOK"}]))
    assert (outcome.exit_code, outcome.unexpected) == (2, None)
    assert "variable HOOK, which a notification names as its webhook, is not" in outcome.message
    assert "secret" not in outcome.message + "".join(context.__dict__["messages"])


def test_variable_may_end_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as (url, received):
        monkeypatch.setenv("HOOK", f"{url}\n")
        assert send("failed", Notification(webhook="${HOOK}")) == []
    assert [path for path, _, _ in received] == ["/T0/secret"]


def test_notification_hides_the_credentials_of_the_store(
    make: Make, generated: Put, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "wJalrXUtnFEMIK7MDENG"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"signing with {key} failed")

    with webhook() as (url, received):
        context = generated(make(root="s3://b/nights", notify=[{"on": "always", "webhook": url}]))
        monkeypatch.setattr(steps, "verify", fail)
        outcome = run_night(context)
    assert "signing with *** failed" in received[0][2]["text"]
    assert key not in json.dumps([received[0][2], outcome.to_data()])


def test_command_is_run_without_a_shell(tmp_path: Path) -> None:
    code = "import sys, os, json; json.dump([sys.argv[2:], os.environ['FACTORY_NIGHT']], open(sys.argv[1], 'w'))"
    command = f"{sys.executable} -c \"{code}\" {tmp_path / 'out'} '$(touch {tmp_path / 'evil'})' ; rm"
    assert send("failed", Notification(command=command)) == []
    assert json.loads((tmp_path / "out").read_text()) == [[f"$(touch {tmp_path / 'evil'})", ";", "rm"], "{}"]
    assert not (tmp_path / "evil").exists()


def test_failing_and_hanging_commands_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(notify, "_COMMAND_TIMEOUT", 1.0)
    hanging = f"sh -c 'sleep 60 & echo $! > {tmp_path / 'pid'}; wait'"
    start = time.monotonic()
    warnings = send(
        "failed",
        Notification(command="sh -c 'echo no route >&2; exit 3'"),
        Notification(command="no-such-program --now"),
        Notification(command=hanging),
    )
    assert time.monotonic() - start < 10
    assert warnings[0].endswith("(command sh): ChildProcessError: exit code 3: no route")
    assert "(command no-such-program): FileNotFoundError" in warnings[1]
    assert warnings[2].endswith("(command sh): TimeoutError: it did not end within 1 s")


def test_command_is_killed_with_its_children_when_the_night_is_interrupted(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        send("failed", Notification(command=f"sh -c 'sleep 60 & echo $! > {tmp_path / 'pid'}; wait'"))
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_night_is_reported_and_a_failing_notification_does_not_fail_it(make: Make, generated: Put) -> None:
    with webhook(404) as (url, received):
        context = generated(make(notify=[{"on": "success", "webhook": url}, {"on": "failure", "webhook": url}]))
        assert run_night(context).exit_code == 0
        assert len(received) == 1
        assert run_night(context).unchanged
        assert len(received) == 1, "nothing happened, so nothing is sent"
        run_night(make(recipe={"batch": 1}, notify=[{"webhook": url}]))
    assert any("a notification could not be sent" in text for text in context.__dict__["messages"])
    text = received[0][2]["text"]
    assert text.startswith(
        "factory nightly 2026-11-25: complete. All samples of the night are generated and verified.\n12 of 12 samples, "
    )
    assert "factory nightly 2026-11-25: failed: " in received[1][2]["text"]


def test_command_is_told_about_any_number_of_shards_and_any_text(tmp_path: Path, make: Make) -> None:
    """An environment variable holds 128 KiB; the command of a night with many damaged shards would not start."""
    context = make()
    recipe, totals = prepare_night(context, None)
    verified = Verified(shards=100_000, of=100_000, damaged=tuple(range(100_000)), at=now())
    night = start_night(context, None, recipe, totals).changed(
        state="failed", verified=verified, quarantined=tuple(range(100_000)), error="\U0001f40d" * 100_000
    )
    outcome = Outcome(DATE, context.config.root, "failed", 5, "\U0001f40d" * 100_000, night)
    code = "import sys, os, json; open(sys.argv[1], 'w').write(os.environ['FACTORY_NIGHT'])"
    command = (sys.executable, "-c", code, str(tmp_path / "sent.json"))
    warnings = list[str]()
    variables = {"FACTORY_NIGHT": dumps(outcome.to_short_data())}
    send_all([Notification(on="failure", command=command)], "failed", outcome.to_text(), variables, warnings.append)
    assert not warnings
    sent = json.loads((tmp_path / "sent.json").read_text())
    assert (sent["verified"]["shards"], len(sent["verified"]["damaged"])) == (100_000, 1000)
    assert (len(sent["quarantined"]), len(sent["message"]), len(sent["error"])) == (1000, 2000, 2000)
    assert len(outcome.to_data()["verified"]["damaged"]) == 100_000
