"""Addresses: every `host:port` that a user or a peer gives is parsed here, before gRPC sees it.

gRPC takes more than `host:port`, and misreads it: a port above 65535 becomes another port, `::1:7502` a host on port
443, `unix:7070` a file.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from triptych.errors import InvalidRequest

PORT_MAX = 65_535
HOST_CHARS_MAX = 253
"""Longest host name in the DNS."""

ACCEPTED = "host:port without a scheme, such as 127.0.0.1:7070, node-1:7070 or [::1]:7070, with a port from 1 to 65535"
ACCEPTED_TO_SERVE = f"{ACCEPTED}, or 0 for a free one"
ACCEPTED_DATABASE = "postgresql://user@host:port/database without a password, which comes from PGPASSWORD or PGPASSFILE"
ACCEPTED_ENGINE = f"process: or vllm: before {ACCEPTED}"
ACCEPTED_PROXY = "http://host:port or http://user:password@host:port, with a port from 1 to 65535"

_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
"""A part of a host name. The standard has no underscore, but container engines make such names."""
_NUMBERS = re.compile(r"[0-9.]+")
_UNSPECIFIED = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Address:
    """A host and a port; as text `host:port`, an IPv6 address in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def is_unspecified(self) -> bool:
        """Whether it stands for all addresses of this machine. It is for serving, not for other machines."""
        return self.host in _UNSPECIFIED


def parse(field: str, text: str, *, to_serve: bool = False) -> Address:
    """Parse an address. Port 0 is allowed only `to_serve`. Raises InvalidRequest, which names `field`."""
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    least = 0 if to_serve else 1
    if (
        not colon
        or not _PORT.fullmatch(port)
        or not least <= int(port) <= PORT_MAX
        or not _is_host(bare)
        or is_bracketed is not (":" in bare)
    ):
        raise InvalidRequest(field, text, ACCEPTED_TO_SERVE if to_serve else ACCEPTED)
    return Address(bare, int(port))


def parse_several(field: str, text: str) -> list[Address]:
    """Parse addresses with commas, and maybe spaces, between them, one at least. Raises InvalidRequest."""
    return [parse(field, part) for part in re.split(" *, *", text)]


PROCESS_ENGINE, VLLM_ENGINE = "process", "vllm"
"""Kinds of engines of text encoders: a process of ours, a server of vLLM's."""


def parse_engine(field: str, text: str) -> tuple[str, Address]:
    """Where text encoders run, `process:HOST:PORT` or `vllm:HOST:PORT`: kind and address. Raises InvalidRequest."""
    kind, _colon, address = text.partition(":")
    if kind not in (PROCESS_ENGINE, VLLM_ENGINE):
        raise InvalidRequest(field, text, ACCEPTED_ENGINE)
    return kind, parse(field, address)


def parse_host(field: str, text: str) -> str:
    """Parse a host without a port; an IPv6 address may have brackets. Raises InvalidRequest."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not _is_host(bare) or (bare != text and ":" not in bare):
        raise InvalidRequest(field, text, "a host name or an IP address, without a port")
    return bare


def bracketed(host: str) -> str:
    """A host as it is written before a port."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether a host's name alone means this machine: `localhost`, 127.0.0.0/8, ::1, 0.0.0.0 and ::."""
    address = _ip(host)
    if address is None:
        return host.lower().rstrip(".") == "localhost"
    plain = getattr(address, "ipv4_mapped", None) or address
    return plain.is_loopback or plain.is_unspecified


def host_of_url(field: str, text: str) -> str:
    """The host of `http://host:port`, or of `host:port`. Raises InvalidRequest."""
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
        parts.port  # noqa: B018  (raises ValueError)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not _is_host(host):
        raise InvalidRequest(field, text, "http://host:port or https://host:port")
    return host


def parse_database(field: str, text: str) -> str:
    """The URL of a PostgreSQL database, without a password: anybody on a machine may read its command lines.

    Raises InvalidRequest, which shows nothing of the text.
    """
    try:
        parts = urlsplit(text)
        has_password = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        has_password = True
    if has_password or parts.scheme not in ("postgresql", "postgres"):
        raise InvalidRequest(field, "something else", ACCEPTED_DATABASE)
    return text


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that supports CONNECT."""

    url: str
    """With user and password, as gRPC takes it. Never show it."""
    address: Address

    def __str__(self) -> str:
        return f"http://{self.address}"


def parse_proxy(field: str, text: str) -> Proxy | None:
    """Parse a proxy's URL; None for an empty text. Raises InvalidRequest, which shows no password."""
    if not text:
        return None
    refused = InvalidRequest(field, "something else", ACCEPTED_PROXY)
    try:
        parts = urlsplit(text)
        netloc = parts.netloc.rpartition("@")[2]
        is_plain = parts.scheme == "http" and parts.path in ("", "/") and not (parts.query or parts.fragment)
        if not is_plain or not text.isascii() or not text.isprintable() or " " in text:
            raise refused
        return Proxy(text.rstrip("/"), parse(field, netloc))
    except ValueError:  # urlsplit's error, or one of `parse`, which would show the text
        raise refused from None


def proxy_options(proxy: Proxy | None) -> tuple[tuple[str, Any]]:
    """Options that make gRPC use this proxy, or none, and ignore the environment."""
    return (("grpc.http_proxy", proxy.url),) if proxy is not None else (("grpc.enable_http_proxy", 0),)


def is_exempt(host: str, no_proxy: str) -> bool:
    """Whether a list in the form of `no_proxy` names a host, as gRPC reads it: suffixes of names, and networks."""
    address = _ip(host)
    for entry in filter(None, (part.strip() for part in no_proxy.split(","))):
        if host.lower().endswith(entry.lower()):
            return True
        if address is not None and "/" in entry:
            try:
                network = ipaddress.ip_network(entry, strict=False)
            except ValueError:
                continue
            if address in network:
                return True
    return False


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    if _ip(host) is not None:
        return True
    if not host or len(host) > HOST_CHARS_MAX or _NUMBERS.fullmatch(host):
        return False
    return all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split("."))
