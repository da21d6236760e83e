"""Certificates as other authorities' tools make them: any subject, any names."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def issue(certs: Path, target: Path, common_names: Sequence[str], uris: Sequence[str]) -> Path:
    """A caller's folder with a certificate of the authority in `certs` (see `authority.init`); returns `target`."""
    ca = x509.load_pem_x509_certificate((certs / "ca" / "tls.crt").read_bytes())
    ca_key = serialization.load_pem_private_key((certs / "ca" / "tls.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    builder = x509.CertificateBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x"), *names])
    )
    builder = builder.issuer_name(ca.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(now + datetime.timedelta(1))
    alternative = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    certificate = builder.add_extension(alternative, critical=False).sign(ca_key, hashes.SHA256())
    target.mkdir()
    shutil.copy(certs / "client" / "ca.crt", target)
    (target / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (target / "tls.key").write_bytes(key.private_bytes(*private))
    return target
