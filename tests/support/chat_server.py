"""A server with the HTTP interface of OpenAI-compatible language models, and a tiny causal model of transformers."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "a", "an", "the", "old", "small", "two", "in", "on", "at", "under", "beside", "snow", "grass", "rain", "field",
    "hill", "dawn", "night", "wall", "photo", "dog", "dogs", "cat", "cats", "bus", "sky", "grey",
)  # fmt: skip
"""The words of the tiny model: its random weights draw them almost evenly, so some of its lines pass the checks."""


def tiny_language_model(folder: Path, chat: bool = False) -> Path:
    """Write a Llama with random weights, whose tokenizer has one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unknown>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>")
    if chat:
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} dog{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, eos_token_id=0, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Reply = Callable[[dict[str, Any]], Any]
"""The answer to the body of a request: a text, a status code, or a tuple of status, headers and raw body."""


def scripted(body: dict[str, Any]) -> str:
    """A prompt for the objects of the instruction; every third answer has a fault."""
    objects = re.search(r"Show these objects: (.*)\.", body["messages"][0]["content"])
    assert objects is not None
    seed = body["seed"]
    faults = {0: "A picture of nothing.", 3: f"Two cats, {objects[1]} and a puppy in a park."}
    return faults.get(seed % 6, f'Prompt: "{objects[1].capitalize()} on a quiet road, picture {seed}."')


@contextmanager
def chat_server(reply: Reply = scripted, models: tuple[str, ...] = ("small",)) -> Iterator[tuple[str, list[Any]]]:
    """(the server's address, the requests that it got: (path, headers, body)) while it runs in a thread."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, dict(self.headers), None))
            self._send(200, {}, json.dumps({"data": [{"id": name} for name in models]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            answer = reply(body)
            if isinstance(answer, int):
                self._send(answer, {}, json.dumps({"error": {"message": f"status {answer}"}}).encode())
            elif isinstance(answer, tuple):
                self._send(*answer)
            else:
                content = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
                self._send(200, {}, json.dumps(content).encode())

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
