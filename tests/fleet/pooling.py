"""A server that speaks vLLM's protocol of token embeddings, and computes them by transformers, on a port of its own."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Embed = Callable[[torch.Tensor], torch.Tensor]
"""Tokens shaped `(1, tokens)` to the model's last hidden states, shaped `(1, tokens, size)`."""


class PoolingServer(ThreadingHTTPServer):
    """See the module's docstring."""

    daemon_threads = True

    def __init__(self, embed: Embed, port: int = 0) -> None:
        self.embed = embed
        self.asked: list[list[list[int]]] = []
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: PoolingServer

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._answer(200 if found else 404, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/pooling" or body.pop("model") != "tiny":
            self._answer(404, {"error": "no such path or model"})
            return
        prompts = body.pop("input")
        if body != {"task": "token_embed", "use_activation": False, "encoding_format": "base64"}:
            self._answer(400, {"error": f"unknown options {sorted(body)}"})
            return
        self.server.asked.append(prompts)
        with torch.no_grad():
            made = [self.server.embed(torch.tensor([prompt]))[0].float() for prompt in prompts]
        data = [base64.b64encode(one.contiguous().numpy().tobytes()).decode() for one in made]
        self._answer(200, {"object": "list", "data": [{"index": n, "data": one} for n, one in enumerate(data)]})

    def _answer(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at `asked`."""


@contextmanager
def serving(embed: Embed, port: int = 0) -> Iterator[PoolingServer]:
    """A server for the length of a block; `server_port` is where."""
    with PoolingServer(embed, port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
