"""A process's certificate, its key and its authority: three files in one folder, read again when they change.

    ca.crt      the authority (or authorities) that others' certificates must come from
    tls.crt     this process's certificate, and what leads from it to the authority
    tls.key     its key

The names are those of Kubernetes' TLS secrets, so cert-manager's output can be mounted as it is. A folder with
`ca.crt` alone serves clients that prove who they are by a token.

Files are replaced one after another: a set that doesn't fit together is not used, the one before stays.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import grpc

from triptych.errors import InvalidRequest
from triptych.security.live_files import LiveFiles

CA_FILE = "ca.crt"
CERTIFICATE_FILE = "tls.crt"
KEY_FILE = "tls.key"

AuthContext = Mapping[str, Iterable[bytes]]
"""What gRPC knows of a connection's caller."""
SPIFFE_PREFIX = "spiffe://triptych/"
"""Begins the SPIFFE ids of roles."""
_PEM_KEY = "x509_pem_cert"
"""Property of gRPC's authentication context: the caller's certificate, after it was verified."""
CALLERS_REMEMBERED = 4096
"""Certificates that need not be parsed with every call, 1 to 2 KiB each."""


class _Files(NamedTuple):
    """The files' content; certificate and key are empty where there are none."""

    authority: bytes
    certificate: bytes
    key: bytes


class Certificates:
    """What a folder holds now. Threads: any; gRPC asks from threads of its own."""

    def __init__(self, folder: Path) -> None:
        """Read the folder. Raises InvalidRequest."""
        self._folder = folder
        paths = [folder / name for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE)]
        self._files: LiveFiles[_Files] = LiveFiles("certificates", paths, lambda before: _read(folder, before))

    @property
    def has_own(self) -> bool:
        """Whether there is a certificate of this process, and not just an authority."""
        return bool(self._files.get().certificate)

    def refresh(self) -> int:
        """Look at the files and take up a change; the version in use. A set that is no good is logged and left."""
        self._files.get()
        return self._files.version

    def server_credentials(self, *, require_client: bool) -> grpc.ServerCredentials:
        """For a port that shows the certificate and, if asked to, wants one of the authority from the caller.

        gRPC asks for news with every connection. Raises InvalidRequest where there is only an authority.
        """
        if not self.has_own:
            raise InvalidRequest("tls", str(self._folder), f"a folder with {CERTIFICATE_FILE} and {KEY_FILE}")
        given = -1

        def news() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            version = self.refresh()
            if given == version:
                return None
            given = version
            return self._configuration(require_client)

        # The stub leaves out that None means no change.
        return grpc.dynamic_ssl_server_credentials(self._configuration(require_client), news, require_client)  # type: ignore[arg-type]

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a server of the authority, as of now."""
        files = self._files.get()
        return grpc.ssl_channel_credentials(files.authority, files.key or None, files.certificate or None)

    def _configuration(self, require_client: bool) -> grpc.ServerCertificateConfiguration:
        files = self._files.get()
        roots = files.authority if require_client else None
        return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], roots)


def role_and_name(auth_context: AuthContext) -> tuple[str, str]:
    """The role that a caller's verified certificate names, and its common name; empty where there isn't just one.

    The role is what follows `spiffe://triptych/` in the certificate's SPIFFE id, for example `encoder`. Other trust
    domains of the same authority have no role here. The name is the subject's common name and nothing else.

    Both are read from the certificate itself: of gRPC's own properties the common name is the first of several, and
    ends at a NUL, so that a certificate for `alice\\0x` would be alice's.
    """
    (pem,) = list(auth_context.get(_PEM_KEY, ())) or (b"",)
    return _role_and_name(pem) if pem else ("", "")


@lru_cache(maxsize=CALLERS_REMEMBERED)
def _role_and_name(pem: bytes) -> tuple[str, str]:
    from cryptography import x509  # here, because a fleet without certificates doesn't need it

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = alternative.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return "", ""
    has_role = len(uris) == 1 and uris[0].startswith(SPIFFE_PREFIX)
    return uris[0].removeprefix(SPIFFE_PREFIX) if has_role else "", names[0] if len(names) == 1 else ""


def _read(folder: Path, before: _Files | None) -> _Files:
    """Read a set and prove that it fits together; a certificate that was there must stay. Raises InvalidRequest."""
    accepted = f"a folder with {CA_FILE} and, for all but clients with a token, {CERTIFICATE_FILE} and {KEY_FILE}"
    try:
        authority = (folder / CA_FILE).read_bytes()
        had_own = before is not None and bool(before.certificate)
        has_own = had_own or (folder / CERTIFICATE_FILE).exists() or (folder / KEY_FILE).exists()
        certificate = (folder / CERTIFICATE_FILE).read_bytes() if has_own else b""
        key = (folder / KEY_FILE).read_bytes() if has_own else b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=authority.decode("ascii"))
        if has_own:
            context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    except (OSError, ValueError) as error:  # SSLError is an OSError; a key that needs a password, a ValueError
        raise InvalidRequest("tls", str(folder), f"{accepted} ({error})") from error
    return _Files(authority, certificate, key)
