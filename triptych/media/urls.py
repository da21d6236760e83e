"""Which URLs of media may be fetched: schemes, hosts and addresses that an operator allows. Pure: nothing is looked up.

By default none. A host that stands in a URL isn't enough: its name may mean any address, so addresses are checked where
they are looked up and connected to (`fetching`), and each redirect is checked like the first URL.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from triptych.errors import InvalidRequest

WEB_PORTS = {"http": 80, "https": 443}
"""Schemes that are fetched by HTTP, and their ports; all others are fsspec's."""
LOCAL_SCHEMES = ("file", "local")
"""By these clients would read the controller's own disk."""
URL_CHARS_MAX = 4096
"""Longest URL: signed ones have about 1500 characters."""
_UNICAST = ipaddress.ip_network("2000::/3")
"""All public IPv6 addresses that have been given out so far (RFC 4291)."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Networks that translate an IPv4 address which stands in the last 32 bits (RFC 6052)."""


@dataclass(frozen=True)
class UrlRules:
    """What an operator allows; see the settings `media_url_…` of the controller."""

    schemes: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """`example.org`, `*.example.org`, `example.org:8443`, or a bucket. Empty: any host of the web, and no bucket."""
    takes_private: bool = False
    """Whether addresses that aren't public may be connected to."""

    @classmethod
    def parse(cls, schemes: str, hosts: str, *, takes_private: bool) -> UrlRules:
        """Of settings with commas. Raises InvalidRequest for a scheme that reads the controller's own disk."""
        names = _listed(schemes)
        for name in names:
            if name in LOCAL_SCHEMES or not name.isidentifier():
                raise InvalidRequest(
                    "media_url_schemes", name, "schemes such as https or s3, never this machine's disk"
                )
        return cls(names, _listed(hosts), takes_private)

    def check(self, field: str, url: str) -> SplitResult:
        """The parts of a URL that may be fetched. Raises InvalidRequest, which names `field`, for any other."""
        if not self.schemes:
            raise InvalidRequest(field, url, "nothing: this fleet fetches no URLs; send the bytes, or upload them")
        if len(url) > URL_CHARS_MAX or "::" in url.partition("?")[0].partition("//")[0]:
            raise InvalidRequest(field, url[:80], f"one URL of at most {URL_CHARS_MAX} characters")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidRequest(field, url, "a URL") from error
        if parts.scheme not in self.schemes:
            raise InvalidRequest(field, url, f"a URL of the schemes {', '.join(self.schemes)}")
        if parts.username is not None or parts.password is not None:
            raise InvalidRequest(field, f"a URL of {parts.hostname} with a user's name", "a URL without one")
        if not parts.hostname or not self._takes(parts, port):
            raise InvalidRequest(field, url, self._hosts_accepted(parts.scheme))
        return parts

    def check_address(self, field: str, host: str, address: str) -> None:
        """Raise InvalidRequest for an address that isn't public, unless all are allowed."""
        if not self.takes_private and not is_public(address):
            raise InvalidRequest(field, f"a URL of {host}, whose address isn't public", "a URL with a public address")

    def _takes(self, parts: SplitResult, port: int | None) -> bool:
        host = parts.hostname or ""
        if parts.scheme not in WEB_PORTS:
            return host in self.hosts
        own_port = WEB_PORTS[parts.scheme]
        if not self.hosts:
            return port in (None, own_port)
        names = [host, *(f"*.{host.split('.', number)[number]}" for number in range(1, host.count(".") + 1))]
        if port in (None, own_port):
            return any(name in self.hosts for name in names)
        return any(f"{name}:{port}" in self.hosts for name in names)

    def _hosts_accepted(self, scheme: str) -> str:
        if self.hosts:
            return f"a URL of {', '.join(self.hosts)}"
        return "a URL of a host at its scheme's own port" if scheme in WEB_PORTS else "no bucket: none is allowed"


def is_public(address: str) -> bool:
    """Whether an IP address is one of the whole Internet, also of an IPv4 address that stands in an IPv6 one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.teredo is not None or found not in _UNICAST:
            return False
    return found.is_global and not found.is_multicast


def _listed(setting: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in setting.split(",") if name.strip())
