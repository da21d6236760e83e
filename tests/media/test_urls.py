"""Which URLs of media may be fetched, and how they are: real servers on this machine, good and hostile."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import InvalidRequest
from triptych.media.fetching import REDIRECTS_MAX, Deadline, check_schemes, fetch
from triptych.media.urls import UrlRules, is_public
from triptych_client import authority

FIELD = "media.image.url"
BODY = bytes(range(256)) * 300
PLACE = "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """Answers by the path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name, _, rest = self.path.strip("/").partition("/")
        getattr(self, f"say_{name}", self.say_nothing)(rest)

    def say_file(self, _rest: str) -> None:
        self.answer(200, BODY, {"Content-Length": str(len(BODY))})

    def say_pieces(self, _rest: str) -> None:
        pieces = [BODY[start : start + 1000] for start in range(0, len(BODY), 1000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        self.answer(200, body + b"0\r\n\r\n", {"Transfer-Encoding": "chunked"})

    def say_open(self, _rest: str) -> None:
        self.answer(200, BODY, {"Connection": "close"})
        self.close_connection = True

    def say_short(self, _rest: str) -> None:
        self.answer(200, BODY[:100], {"Content-Length": str(len(BODY))})
        self.close_connection = True

    def say_huge(self, _rest: str) -> None:
        self.answer(200, b"", {"Content-Length": str(2**40)})

    def say_endless(self, _rest: str) -> None:
        self.answer(200, b"", {"Connection": "close"})
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(BODY)

    def say_packed(self, _rest: str) -> None:
        self.answer(200, BODY, {"Content-Length": str(len(BODY)), "Content-Encoding": "gzip"})

    def say_moved(self, target: str) -> None:
        self.answer(302, b"", {"Location": target.replace("~", "//"), "Content-Length": "0"})

    def say_round(self, _rest: str) -> None:
        self.answer(307, b"", {"Location": "/round", "Content-Length": "0"})

    def say_nothing(self, _rest: str) -> None:
        self.answer(404, b"", {"Content-Length": "0"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Callers that go away are no error."""

    daemon_threads = True

    def handle_error(self, *_arguments: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def web_server(context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server on this machine, as `host:port`."""
    with Server((PLACE, 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"{PLACE}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says what `talk` writes to each connection."""
    with socket.create_server((PLACE, 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"{PLACE}:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with web_server() as place:
        yield place


def rules_for(*hosts: str, takes_private: bool = True) -> UrlRules:
    return UrlRules(("http", "https"), hosts, takes_private)


def got(url: str, rules: UrlRules, bytes_max: int = 2**20, seconds: float = 10.0) -> bytes:
    return fetch(FIELD, url, rules, bytes_max, Deadline(seconds))


@pytest.mark.parametrize("path", ["file", "pieces", "open", "moved//file"])
def test_a_files_bytes_come_whole(server: str, path: str) -> None:
    assert got(f"http://{server}/{path}", rules_for(server)) == BODY


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nothing", "a URL that 127.0.0.1 answers with 404'; accepted: one that is answered with 200"),
        ("short", "a URL of which 100 of 76800 bytes came"),
        ("huge", "a URL of 1099511627776 bytes'; accepted: at most 1048576 bytes"),
        ("endless", "a URL of more than 1048576 bytes'; accepted: at most 1048576 bytes"),
        ("packed", "a URL whose bytes come as gzip"),
        ("round", f"a URL with more than {REDIRECTS_MAX} redirects"),
        ("moved/ftp:~example.org/x", "ftp://example.org/x'; accepted: a URL of the schemes http, https"),
        ("moved/http:~other.example/x", "http://other.example/x'; accepted: a URL of 127.0.0.1:"),
        ("moved/file:~/etc/passwd", "accepted: a URL of the schemes http, https"),
    ],
)
def test_what_a_server_does_wrong_is_said(server: str, path: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        got(f"http://{server}/{path}", rules_for(server))
    assert str(raised.value).startswith(f"{FIELD} is ")
    assert said in str(raised.value)


def test_an_address_that_is_not_public_is_refused_wherever_it_comes_from(server: str) -> None:
    """By its number, by a name, and by the name of a redirect's target, which is looked up like the first."""
    port = server.rpartition(":")[2]
    for host in (PLACE, "localhost", "2130706433", "0x7f.1"):
        with pytest.raises(InvalidRequest, match=r"^media.image.url is .*address isn't public"):
            got(f"http://{host}:{port}/file", rules_for(f"{host}:{port}", takes_private=False))


class NamesItself(UrlRules):
    """Takes the first host's address whatever it is, and no other's: as if that one were public."""

    def check_address(self, field: str, host: str, address: str) -> None:
        if host != PLACE:
            super().check_address(field, host, address)


def test_a_redirect_to_an_address_that_is_not_public_is_refused(server: str) -> None:
    port = server.rpartition(":")[2]
    rules = NamesItself(("http",), (server, f"localhost:{port}"), takes_private=False)
    assert got(f"http://{server}/file", rules) == BODY
    with pytest.raises(InvalidRequest, match=r"a URL of localhost, whose address isn't public"):
        got(f"http://{server}/moved/http:~localhost:{port}/file", rules)


@pytest.mark.parametrize("drips", ["body", "headers", "nothing"])
def test_a_server_that_drips_is_left_in_time(drips: str) -> None:
    """Each byte comes soon enough for a socket's own timeout; all of them never do."""
    going = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        if drips == "body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        elif drips == "headers":
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not going.wait(0.05):
            if drips != "nothing":
                connection.sendall(b"x")

    with raw_server(talk) as place:
        started_s = time.monotonic()
        with pytest.raises(InvalidRequest, match=r"^media.image.url is 'a URL that takes too long'; accepted: .*0.5 s"):
            got(f"http://{place}/file", rules_for(place), seconds=0.5)
        assert time.monotonic() - started_s < 5
        going.set()


def test_a_port_where_nobody_listens_is_said() -> None:
    with socket.create_server((PLACE, 0)) as listening:
        place = f"{PLACE}:{listening.getsockname()[1]}"
    with pytest.raises(InvalidRequest, match=r"can't be fetched \(ConnectionRefusedError\)"):
        got(f"http://{place}/x", rules_for(place))


def test_a_server_must_show_a_certificate_that_is_vouched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an authority of the machine, or of OpenSSL's variable SSL_CERT_FILE; and for the URL's own host."""
    authority.init(tmp_path, [PLACE])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "controller" / "tls.crt", tmp_path / "controller" / "tls.key")
    with web_server(context) as place:
        port = place.rpartition(":")[2]
        rules = rules_for(place, f"localhost.localdomain:{port}")
        with pytest.raises(InvalidRequest, match="SSLCertVerificationError"):
            got(f"https://{place}/file", rules)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca" / "tls.crt"))
        assert got(f"https://{place}/file", rules) == BODY


def test_a_server_that_never_ends_its_handshake_is_left_in_time() -> None:
    going = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB, which comes byte by byte
        while not going.wait(0.05):
            connection.sendall(b"\x02")

    with raw_server(talk) as place:
        started_s = time.monotonic()
        with pytest.raises(InvalidRequest, match=r"^media.image.url is 'a URL "):
            got(f"https://{place}/file", rules_for(place), seconds=0.5)
        assert time.monotonic() - started_s < 5
        going.set()


def test_a_bucket_is_read_by_fsspec_if_it_is_named() -> None:
    rules = UrlRules(("memory",), ("bucket",))
    with fsspec.open("memory://bucket/cat.png", "wb") as file:
        file.write(BODY)
    assert got("memory://bucket/cat.png", rules) == BODY
    for url, said in (
        ("memory://other/cat.png", "accepted: a URL of bucket"),
        ("memory://bucket/dog.png", "FileNotFoundError"),
        ("simplecache::memory://bucket/cat.png", "accepted: "),
        ("file:///etc/passwd", "accepted: a URL of the schemes memory"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            got(url, rules)
    with pytest.raises(InvalidRequest, match="at most 1000 bytes"):
        got("memory://bucket/cat.png", rules, bytes_max=1000)
    with pytest.raises(InvalidRequest, match="no bucket: none is allowed"):
        got("memory://bucket/cat.png", UrlRules(("memory",)))


def test_by_default_nothing_is_fetched() -> None:
    rules = UrlRules.parse("", "", takes_private=False)
    with pytest.raises(InvalidRequest, match="this fleet fetches no URLs"):
        rules.check(FIELD, "https://example.org/cat.png")


@pytest.mark.parametrize("schemes", ["file", "https,local", "no-such-scheme", "nosuchscheme"])
def test_schemes_that_cannot_be_are_refused_at_the_start(schemes: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^media_url_schemes is "):
        check_schemes(UrlRules.parse(schemes, "", takes_private=False))


@pytest.mark.parametrize(
    ("hosts", "url", "is_taken"),
    [
        ("", "https://example.org/x", True),
        ("", "https://example.org:443/x", True),
        ("", "https://example.org:22/x", False),
        ("", "http://example.org/x", False),
        ("", "https://me:secret@example.org/x", False),
        ("", "https:///x", False),
        ("", "https://example.org:99999/x", False),
        ("example.org", "https://EXAMPLE.org/x", True),
        ("example.org", "https://www.example.org/x", False),
        ("example.org", "https://example.org.evil.net/x", False),
        ("*.example.org", "https://a.b.example.org/x", True),
        ("*.example.org", "https://example.org/x", False),
        ("*.example.org", "https://evilexample.org/x", False),
        ("example.org:8443", "https://example.org:8443/x", True),
        ("example.org:8443", "https://example.org/x", False),
    ],
)
def test_hosts_and_ports(hosts: str, url: str, is_taken: bool) -> None:
    rules = UrlRules.parse("https", hosts, takes_private=False)
    if is_taken:
        assert rules.check(FIELD, url).hostname
        return
    with pytest.raises(InvalidRequest, match=r"^media.image.url is ") as raised:
        rules.check(FIELD, url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::", "ff02::1", "::127.0.0.1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_in_any_form(address: ipaddress.IPv4Address) -> None:
    forms = (f"::ffff:{address}", str(ipaddress.IPv6Address((0x64FF9B << 96) | int(address))))
    assert {is_public(form) for form in forms} == {is_public(str(address))}
