"""A tiny HTTP proxy: writes down what it is asked for, and lets CONNECT through to one address, whatever was asked for.

So a name that nobody else knows can be reached by it, and only by it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

_PIECE_BYTES = 2**16
_HEAD_BYTES_MAX = 2**14


class HttpProxy:
    """Listens on a free port of 127.0.0.1 while its block lasts; without a target it refuses everybody."""

    def __init__(self, target: str = "") -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.asked: list[str] = []
        """First lines of requests, such as `CONNECT host:port HTTP/1.1`."""

    def __enter__(self) -> HttpProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.close()

    @property
    def environment(self) -> dict[str, str]:
        """Every variable by which a program may be told of it, and no exception."""
        names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
        urls = {name: self.url for lower in names for name in (lower, lower.upper())}
        return {**urls, "no_proxy": "", "NO_PROXY": "", "no_grpc_proxy": ""}

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES_MAX:
                piece = near.recv(1024)
                if not piece:
                    break
                head += piece
            self.asked.append(head.partition(b"\r\n")[0].decode("latin-1"))
            if not self._target:
                near.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            host, _, port = self._target.rpartition(":")
            with socket.create_connection((host, int(port))) as far:
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pass, args=(far, near), daemon=True)
                back.start()
                _pass(near, far)
                back.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
