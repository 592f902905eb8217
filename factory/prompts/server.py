"""A language model behind an OpenAI-compatible server, such as vLLM, llama.cpp, Ollama or a hosted service."""

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request

from factory.dataset.ordered_map import ordered_map
from factory.errors import TransientError, UserError
from factory.files.http import is_http_url, open_url
from factory.prompts.interface import Instruction, Sampling

KEY = "OPENAI_API_KEY"
"""The environment variable with the API key, which is sent only to the server."""

_CONCURRENT = 32
_MAX_BYTES = 4 * 2**20
_TIMEOUT = 300.0
_TEMPORARY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_UNSUPPORTED = re.compile(r"Unsupported (?:parameter|value): '(\w+)'")
"""How OpenAI rejects a parameter, such as sampling parameters for reasoning models."""
_log = logging.getLogger(__name__)


class _UnsupportedError(UserError):
    """A model does not support a parameter of the request."""

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class ServerModel:
    """Sends instructions as chat completions, several at a time, and repeats requests that fail temporarily.

    The server receives a seed with each request, but need not use it. `pauses` are the seconds to wait before each
    retry.
    """

    def __init__(self, url: str, model: str | None, sampling: Sampling, pauses: Sequence[float] = _PAUSES) -> None:
        """Raises UserError if the server does not answer as an OpenAI-compatible server, or offers several models."""
        self._base, self._sampling, self._pauses = _base(url), sampling, tuple(pauses)
        self._unsupported: set[str] = set()
        self._waited = False
        self._model = model or self._only_model()
        self.identity = {"server": self._base, "model": self._model}

    def load(self) -> None:
        """Nothing to do: the server has loaded the model."""

    def answer(self, instructions: Sequence[Instruction], seed: int) -> list[str]:
        """Raises TransientError if the server stays unavailable, and UserError if it rejects a request."""

        def send(position: int) -> str:
            return self._complete(instructions[position], seed + position)

        positions = range(len(instructions))
        return [text for _, text in ordered_map(send, positions, _CONCURRENT, ahead=len(positions), name="senders")]

    def _complete(self, instruction: Instruction, seed: int) -> str:
        body = {"model": self._model, "messages": [{"role": "user", "content": instruction.chat}]}
        answer = self._with_sampling(body, seed)
        with suppress(KeyError, IndexError, TypeError):
            content = answer["choices"][0]["message"]["content"]
            if content is None or isinstance(content, str):
                return content or ""
        raise UserError(f"{self._base} does not answer as an OpenAI-compatible server does: {str(answer)[:120]}.")

    def _with_sampling(self, body: Mapping[str, Any], seed: int) -> Any:
        """The answer to a request with the sampling parameters that the model supports."""
        sampling = self._sampling
        while True:
            wanted = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed % 2**31}
            sent = {name: value for name, value in wanted.items() if name not in self._unsupported}
            limit = "max_completion_tokens" if "max_tokens" in self._unsupported else "max_tokens"
            sent[limit] = sampling.max_tokens
            try:
                return self._request("/chat/completions", {**body, **sent})
            except _UnsupportedError as error:
                if error.parameter not in sent or error.parameter == "max_completion_tokens":
                    raise
                if error.parameter not in self._unsupported and error.parameter in wanted:
                    _log.warning("%s does not support %s; requests leave it out.", self._model, error.parameter)
                self._unsupported.add(error.parameter)

    def _only_model(self) -> str:
        answer = self._request("/models", None)
        listed = answer.get("data") if isinstance(answer, Mapping) else None
        names = [str(entry["id"]) for entry in listed or () if isinstance(entry, Mapping) and "id" in entry]
        if len(names) != 1:
            offers = f"offers {len(names)} models ({', '.join(names[:5])})" if names else "lists no model"
            raise UserError(f"{self._base} {offers}; name one with --lm-model.")
        return names[0]

    def _request(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """The JSON answer to a GET, or to a POST of `body`."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        problem = ""
        for pause in (*self._pauses, None):
            try:
                with open_url(Request(self._base + path, data, headers), timeout=_TIMEOUT) as response:
                    return json.loads(_body(response))
            except HTTPError as error:
                with error:
                    problem = f"{error.code} {error.reason}: {_message(error)}".rstrip(": ")
                if unsupported := _UNSUPPORTED.search(problem):
                    raise _UnsupportedError(self._refused(error.code, problem), unsupported[1]) from error
                if error.code not in _TEMPORARY:
                    raise UserError(self._refused(error.code, problem)) from error
            except (OSError, HTTPException) as error:  # no connection, or one that broke: URLError is an OSError
                problem = " ".join(str(getattr(error, "reason", error)).split())[:160] or type(error).__name__
            except ValueError as error:
                raise UserError(f"{self._base} does not answer with JSON; give the address of its API.") from error
            if pause is not None:
                self._report_wait(problem)
                time.sleep(pause)
        raise TransientError(
            f"the language model server {self._base} does not respond ({problem}); finished batches are kept, rerun "
            f"the same command to resume."
        )

    def _report_wait(self, problem: str) -> None:
        """Say once why nothing happens: an address may be mistyped, or a server still be starting."""
        if not self._waited:
            self._waited = True
            seconds = sum(self._pauses)
            _log.warning("%s is not available (%s); trying again for up to %.0f s.", self._base, problem, seconds)

    def _refused(self, code: int, problem: str) -> str:
        if 300 <= code < 400:
            return f"{self._base} redirects to another address ({problem}); give that address."
        remedy = {
            401: f"set {KEY} to its API key",
            403: f"check the permissions of the API key in {KEY}",
            404: "check the address and --lm-model",
        }
        advice = remedy.get(code, "see the documentation of the server")
        return f"the language model server {self._base} rejected the request ({problem}); {advice}."


def is_url(text: str) -> bool:
    """Whether `--lm` names a server."""
    return text.startswith(("http://", "https://"))


def _base(url: str) -> str:
    """The address up to /v1; raises UserError for a URL with a password or query, which would be written to files."""
    if not is_http_url(url) or (parts := urlsplit(url)).query or parts.fragment:
        raise UserError(
            f"--lm must be a URL such as http://localhost:8000/v1 without user, password or query; set {KEY} "
            f"for an API key."
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _key() -> str:
    """The API key; "" if there is none. UserError if it cannot be sent: the HTTP client would quote it."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY} contains a character that no API key has; set it to the key alone.")
    return key


def _body(response: HTTPResponse) -> bytes:
    """The body of a response, up to the limit. Raises IncompleteRead if the connection ended before its end."""
    body = response.read(_MAX_BYTES)
    if response.length and len(body) < _MAX_BYTES:
        raise IncompleteRead(body, response.length)
    return body


def _message(error: HTTPError) -> str:
    """The server's own explanation, in one line; empty if the connection ends before it."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, HTTPException):
        return ""
    try:
        content = json.loads(text)["error"]
        text = str(content["message"] if isinstance(content, dict) else content)
    except (ValueError, KeyError, TypeError):
        pass  # not in the usual form: shown as it is
    return " ".join(text.split())[:200]
