"""A caller by HTTP, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

TIMEOUT_S = 120.0


class Answer(NamedTuple):
    """An answer that came whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def opened(
    address: str, method: str, path: str, body: object = None, headers: Mapping[str, str] = {}
) -> Iterator[http.client.HTTPResponse]:
    """An answer to be read while it comes. A `body` that isn't bytes goes as JSON."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    sent = dict(headers)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("content-type", "application/json")
    try:
        connection.request(method, path, body, sent)
        yield connection.getresponse()
    finally:
        connection.close()


def ask(address: str, method: str, path: str, body: object = None, headers: Mapping[str, str] = {}) -> Answer:
    """A whole answer, whatever its status."""
    with opened(address, method, path, body, headers) as response:
        return Answer(response.status, response.headers, response.read())
