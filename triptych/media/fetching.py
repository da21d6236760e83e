"""Fetches the bytes of a URL, by HTTP or fsspec, within bounds on bytes and seconds. Blocks: call it in a thread.

By HTTP a host's name is looked up once, each address is checked, and the connection goes to an address that was
checked: a name that means another address a moment later changes nothing. fsspec's own HTTP would look it up again.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, quote, urljoin

import fsspec

from triptych.errors import InvalidRequest
from triptych.media.urls import WEB_PORTS, UrlRules

REDIRECTS_MAX = 5
"""Browsers follow 20; a file's link needs two or three."""
FETCH_BYTES = 64 * 2**10
"""Read at a time; the clock is looked at in between."""
_MOVED = (301, 302, 303, 307, 308)
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"


class Deadline:
    """A moment of the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds
        self.seconds = seconds

    def left_s(self, field: str) -> float:
        """The seconds until then. Raises InvalidRequest where it has passed."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise too_slow(field, self.seconds)
        return left_s

    @property
    def has_passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self._end_s


def too_slow(field: str, seconds: float) -> InvalidRequest:
    """The error for a URL that takes too long."""
    return InvalidRequest(field, "a URL that takes too long", f"URLs that are fetched within {seconds:g} s")


def fetch(field: str, url: str, rules: UrlRules, bytes_max: int, deadline: Deadline) -> bytes:
    """The bytes of a URL. Raises InvalidRequest, which names `field`, for whatever keeps them away."""
    parts = rules.check(field, url)
    if parts.scheme not in WEB_PORTS:
        return _by_fsspec(field, url, parts, bytes_max, deadline)
    for _ in range(REDIRECTS_MAX + 1):
        found = _get(field, parts, rules, bytes_max, deadline)
        if isinstance(found, bytes):
            return found
        url = urljoin(parts.geturl(), found)
        parts = rules.check(field, url)
        if parts.scheme not in WEB_PORTS:
            raise InvalidRequest(field, url, "a URL that is redirected to http or https only")
    raise InvalidRequest(field, f"a URL with more than {REDIRECTS_MAX} redirects", f"at most {REDIRECTS_MAX}")


def _get(field: str, parts: SplitResult, rules: UrlRules, bytes_max: int, deadline: Deadline) -> bytes | str:
    """The body of one answer, or where it redirects to."""
    host = parts.hostname or ""
    port = parts.port or WEB_PORTS[parts.scheme]
    path = quote(parts.path or "/", safe=_PATH_SAFE) + (
        f"?{quote(parts.query, safe=_PATH_SAFE + '?')}" * bool(parts.query)
    )
    try:
        addresses = _looked_up(field, host, port, rules)
        connection = _Checked(field, host, port, addresses, deadline, is_secret=parts.scheme == "https")
        with contextlib.closing(connection), _ended_at(connection, deadline.left_s(field)):
            connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "triptych"})
            answer = connection.getresponse()
            if answer.status in _MOVED and (target := answer.getheader("Location")):
                return target
            if answer.status != http.client.OK:
                raise InvalidRequest(
                    field, f"a URL that {host} answers with {answer.status}", "one that is answered with 200"
                )
            return _body(field, answer, bytes_max, deadline)
    except InvalidRequest:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        if deadline.has_passed:
            raise too_slow(field, deadline.seconds) from error
        shown = f"a URL of {host} that can't be fetched ({type(error).__name__})"
        raise InvalidRequest(field, shown, "a URL whose server answers") from error


def _looked_up(field: str, host: str, port: int, rules: UrlRules) -> list[str]:
    """The host's addresses, all of them allowed."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        rules.check_address(field, host, address)
    return found


class _Checked(http.client.HTTPConnection):
    """A connection to the first of some addresses that answers, whatever the host's name means by then."""

    def __init__(
        self, field: str, host: str, port: int, addresses: list[str], deadline: Deadline, *, is_secret: bool
    ) -> None:
        super().__init__(host, port)
        self.default_port = WEB_PORTS["https" if is_secret else "http"]  # the Host header leaves it out
        self._field = field
        self._addresses = addresses
        self._deadline = deadline
        self._is_secret = is_secret

    def connect(self) -> None:
        """Called by `request`. Raises OSError, InvalidRequest."""
        last: OSError = OSError("no address")
        for address in self._addresses:
            try:
                self.sock = socket.create_connection((address, self.port), self._deadline.left_s(self._field))
                break
            except OSError as error:
                last = error
        else:
            raise last
        if self._is_secret:
            secret = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock = secret  # before the handshake, so that `_ended_at` ends that, too
            secret.do_handshake()


@contextlib.contextmanager
def _ended_at(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Break the connection after a while: a timeout of the socket begins anew with every byte that comes."""

    def end() -> None:
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _body(field: str, answer: http.client.HTTPResponse, bytes_max: int, deadline: Deadline) -> bytes:
    said = answer.length
    if said is not None and said > bytes_max:
        raise _too_large(field, f"{said} bytes", bytes_max)
    if (coding := answer.getheader("Content-Encoding", "identity")) != "identity":
        raise InvalidRequest(field, f"a URL whose bytes come as {coding}", "the file's own bytes")
    body = bytearray()
    while piece := answer.read1(FETCH_BYTES):
        body += piece
        if len(body) > bytes_max:
            raise _too_large(field, f"more than {bytes_max} bytes", bytes_max)
        deadline.left_s(field)
    deadline.left_s(field)
    if said is not None and len(body) < said:
        raise InvalidRequest(
            field, f"a URL of which {len(body)} of {said} bytes came", "a URL that gives all its bytes"
        )
    return bytes(body)


def _too_large(field: str, shown: str, bytes_max: int) -> InvalidRequest:
    return InvalidRequest(field, f"a URL of {shown}", f"at most {bytes_max} bytes, with the rest of the request")


def _by_fsspec(field: str, url: str, parts: SplitResult, bytes_max: int, deadline: Deadline) -> bytes:
    """A file of a bucket. fsspec's own timeouts end what hangs; the clock is looked at between pieces."""
    try:
        system, path = fsspec.url_to_fs(url)
        body = bytearray()
        with system.open(path, "rb") as file:
            while piece := file.read(FETCH_BYTES):
                body += piece
                if len(body) > bytes_max:
                    raise _too_large(field, f"more than {bytes_max} bytes", bytes_max)
                deadline.left_s(field)
        return bytes(body)
    except InvalidRequest:
        raise
    except Exception as error:  # stores raise whatever their libraries do; the caller is told
        shown = f"a URL of {parts.netloc} that can't be fetched ({type(error).__name__})"
        raise InvalidRequest(field, shown, f"a file that is there, in a store that {parts.scheme} reaches") from error


def check_schemes(rules: UrlRules) -> None:
    """Raise InvalidRequest for a scheme of which fsspec has no library here."""
    for scheme in rules.schemes:
        if scheme in WEB_PORTS:
            continue
        try:
            found: Any = fsspec.get_filesystem_class(scheme)
        except (ValueError, ImportError) as error:
            accepted = f"https, http, or a scheme of fsspec whose library is installed ({error})"
            raise InvalidRequest("media_url_schemes", scheme, accepted) from error
        assert found is not None
