"""`factory prompts` with a server: keys, addresses, outages, and answers that are not those of a language model."""

import io
import json
import ssl
import threading
import time
from collections.abc import Iterator
from email.message import Message
from typing import Any
from urllib.error import HTTPError

import pytest

from factory.errors import TransientError, UserError
from factory.prompts.instructions import instruction
from factory.prompts.interface import Instruction, Sampling
from factory.prompts.server import ServerModel
from tests.support.chat_server import chat_server

SAMPLING = Sampling(max_tokens=12)


def test_key_may_end_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hunter22\n")
    with chat_server() as (url, requests):
        ServerModel(url, "small", SAMPLING, pauses=()).answer([instruction(["dog"], "k")], 1)
    assert {headers["Authorization"] for _, headers, _ in requests} == {"Bearer hunter22"}


@pytest.mark.parametrize("key", ["hunter22\nhunter23", "hunter22\N{EN DASH}"])
def test_key_that_no_header_can_hold_is_reported_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY contains") as raised:
        ServerModel("http://localhost:9", None, SAMPLING, pauses=())
    assert "hunter" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://localhost:port/v1", "http://host:99999", "http://a b/v1"])
def test_url_that_no_client_accepts_is_rejected_at_once(url: str) -> None:
    with pytest.raises(UserError, match="--lm must be a URL such as"):
        ServerModel(url, None, SAMPLING)


def test_interrupt_does_not_wait_for_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def complete(model: ServerModel, request: Instruction, seed: int) -> str:
        if seed == 1:
            raise KeyboardInterrupt
        assert answered.wait(20)
        return ""

    monkeypatch.setattr(ServerModel, "_complete", complete)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ServerModel("http://localhost:9", "small", SAMPLING).answer([instruction(["dog"], "k")] * 3, 1)
    assert time.monotonic() - started < 10
    answered.set()


def test_temporary_failures_are_repeated_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([503, 429, "A dog."])
    with chat_server(lambda body: next(answers)) as (url, requests):
        model = ServerModel(url, "small", SAMPLING, pauses=(0, 0))
        assert model.answer([instruction(["dog"], "k")], 1) == ["A dog."]
        assert len(requests) == 3
    assert [" is not available (503 " in message for message in caplog.messages] == [True]
    with pytest.raises(TransientError, match=r"does not respond \(.*refused.*\); finished batches are kept"):
        model.answer([instruction(["dog"], "k")], 1)


def test_parameters_that_a_model_does_not_support_are_replaced_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """As with OpenAI's models that reason."""

    def reply(body: dict[str, Any]) -> Any:
        refused = next((name for name in ("max_tokens", "top_p") if name in body), None)
        if refused is None:
            return "A dog."
        message = f"Unsupported parameter: '{refused}' is not supported with this model."
        return 400, {}, json.dumps({"error": {"message": message, "param": refused}}).encode()

    with chat_server(reply) as (url, requests):
        model = ServerModel(url, "small", SAMPLING, pauses=())
        assert model.answer([instruction(["dog"], "k")], 1) == ["A dog."]
        body = requests[-1][2]
        assert (body["max_completion_tokens"], body["temperature"], "top_p" in body) == (12, 1.0, False)
        assert model.answer([instruction(["dog"], "k")], 1) == ["A dog."]
        assert len(requests) == 4, "the model is not asked again"
    assert caplog.messages == ["small does not support top_p; requests leave it out."]


def test_a_truncated_answer_is_requested_again() -> None:
    truncated = (200, {"Content-Length": "1000"}, b'{"choices": [')
    answers: Iterator[Any] = iter([truncated, "A dog."])
    with chat_server(lambda body: next(answers)) as (url, _):
        assert ServerModel(url, "small", SAMPLING, pauses=(0,)).answer([instruction(["dog"], "k")], 1) == ["A dog."]


class BrokenResponse(io.BytesIO):
    """A response whose connection breaks while it is read."""

    def read(self, *_: Any) -> bytes:
        raise ssl.SSLError("record layer failure")


@pytest.mark.parametrize("status", [200, 503])
def test_a_connection_that_breaks_during_an_answer_is_a_temporary_failure(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: Any, timeout: float) -> BrokenResponse:
        if status == 200:
            return BrokenResponse()
        raise HTTPError(request.full_url, status, "Service Unavailable", Message(), BrokenResponse())

    monkeypatch.setattr("factory.prompts.server.open_url", broken)
    model = ServerModel("http://localhost:9", "small", SAMPLING, pauses=(0,))
    problem = "record layer failure" if status == 200 else "503 Service Unavailable"
    with pytest.raises(TransientError, match=rf"does not respond \(.*{problem}.*\)"):
        model.answer([instruction(["dog"], "k")], 1)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (401, r"rejected the request \(401 Unauthorized: status 401\); set OPENAI_API_KEY"),
        (404, "check the address and --lm-model"),
        ((200, {}, b"<html>"), "does not answer with JSON"),
        ((200, {}, b'{"choices": []}'), "does not answer as an OpenAI-compatible server"),
        ((200, {}, b"null"), "does not answer as an OpenAI-compatible server"),
        ((302, {"Location": "http://127.0.0.1:9/elsewhere"}, b""), "redirects to another address"),
    ],
)
def test_servers_that_refuse_are_reported(reply: Any, message: str) -> None:
    with chat_server(lambda body: reply) as (url, _), pytest.raises(UserError, match=message):
        ServerModel(url, "small", SAMPLING, pauses=()).answer([instruction(["dog"], "k")], 1)


def test_servers_of_several_models_require_a_name() -> None:
    with chat_server(models=("small", "large")) as (url, _):
        with pytest.raises(UserError, match=r"offers 2 models \(small, large\); name one with --lm-model"):
            ServerModel(url, None, SAMPLING, pauses=())
        assert ServerModel(f"{url}/v1/chat/completions", "large", SAMPLING).identity["model"] == "large"
    with pytest.raises(UserError, match="without user, password or query"):
        ServerModel("http://me:hunter22@host/v1", "small", SAMPLING)
