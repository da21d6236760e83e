"""A small certificate authority for fleets without a mesh or cert-manager: one CA, one certificate for each role.

    DIR/ca/            tls.crt, tls.key     the authority; keep its key away from the fleet's machines
    DIR/<role>/        ca.crt, tls.crt, tls.key     what a process of that role gets as `--tls`

The files have the names of Kubernetes' TLS secrets. A certificate says its role by a SPIFFE id,
`spiffe://triptych/<role>`. Those of servers are valid for the hosts that are named, and for this machine.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from triptych.errors import InvalidRequest
from triptych.security.certificates import CA_FILE, CERTIFICATE_FILE, KEY_FILE, SPIFFE_PREFIX
from triptych.security.live_files import replace_file

HOLDERS = ("controller", "encoder", "transformer", "decoder", "client", "admin")
"""Holders of certificates. A client may submit and read; an admin has every right."""
CALLERS = ("client", "admin")
"""Those of them that serve nothing."""
AUTHORITY = "ca"
DAYS_DEFAULT = 365
"""How long a role's certificate is valid: a year, as most authorities give."""
AUTHORITY_DAYS = 3650
"""Ten years: a change of authority means a visit to every machine."""
_BACKDATED = datetime.timedelta(minutes=5)
"""Clocks of two machines differ."""


def init(folder: Path, hosts: Sequence[str], days: int = DAYS_DEFAULT) -> None:
    """Make an authority in a new folder, and a certificate for every role that is valid for `hosts`.

    Raises InvalidRequest for a folder that has an authority or anything else under the roles' names, a bad host name or
    number of days.
    """
    if (folder / AUTHORITY).exists():
        raise InvalidRequest("folder", str(folder), "one without an authority; `triptych certs renew` renews")
    for name in (AUTHORITY, *HOLDERS):
        if os.path.lexists(folder / name):
            raise InvalidRequest("folder", str(folder), f"one without {folder / name}, which isn't overwritten")
    names = _names(hosts)
    _check_days(days)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"triptych {secrets.token_hex(4)}")])
    builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS, is_authority=True)
    certificate = builder.sign(key, hashes.SHA256())
    for role in HOLDERS:
        _issue(folder, role, certificate, key, names, days)
    _write(folder / AUTHORITY, None, certificate, key)  # last, since it says that all is there


def renew(folder: Path, hosts: Sequence[str] = (), days: int = DAYS_DEFAULT, roles: Sequence[str] = HOLDERS) -> None:
    """Make new certificates and keys for `roles`, by the authority of `folder`; without `hosts`, for the same ones.

    Processes that use these files take them up with their next connection. Raises InvalidRequest.
    """
    _check_days(days)
    try:
        certificate = x509.load_pem_x509_certificate((folder / AUTHORITY / CERTIFICATE_FILE).read_bytes())
        key = serialization.load_pem_private_key((folder / AUTHORITY / KEY_FILE).read_bytes(), None)
        kept = x509.load_pem_x509_certificate((folder / HOLDERS[0] / CERTIFICATE_FILE).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequest("folder", str(folder), f"one that `triptych certs init` made ({error})") from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    names = _names(hosts) if hosts else _hosts_of(kept)
    for role in roles:
        _issue(folder, role, certificate, key, names, days)


def _issue(
    folder: Path,
    role: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    days: int,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
    spiffe_id = x509.UniformResourceIdentifier(SPIFFE_PREFIX + role)
    # A caller must not be able to pass for a server.
    serves = role not in CALLERS
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
    own_names = [spiffe_id, *(names if serves else [])]
    builder = _builder(subject, authority.subject, key.public_key(), days, is_authority=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(own_names), critical=False)
    _write(folder / role, authority, builder.sign(authority_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, *, is_authority: bool
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _BACKDATED).not_valid_after(now + datetime.timedelta(days=days))
    constraints = x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None)
    usage = x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
    return builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not host or not host.isascii() or ":" in host or "/" in host:
                raise InvalidRequest("host", host, "a DNS name or an IP address, without a port") from None
            names.append(x509.DNSName(host))
    return names


def _hosts_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name for name in extension if not isinstance(name, x509.UniformResourceIdentifier)]


def _check_days(days: int) -> None:
    if not 1 <= days <= AUTHORITY_DAYS:
        raise InvalidRequest("days", days, f"1 to {AUTHORITY_DAYS}")


def _write(
    folder: Path, authority: x509.Certificate | None, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    """Key first: a process that reads in between sees a pair that doesn't match, and looks again later."""
    folder.mkdir(parents=True, exist_ok=True)
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    replace_file(folder / KEY_FILE, pem, 0o600)
    replace_file(folder / CERTIFICATE_FILE, certificate.public_bytes(encoding), 0o644)
    if authority is not None:
        replace_file(folder / CA_FILE, authority.public_bytes(encoding), 0o644)
