"""A certificate of one's own, for a server on loopback."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def self_signed(folder: Path) -> tuple[Path, Path]:
    """(private key, certificate) for 127.0.0.1, as PEM files."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "jouleserve test")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(private, hashes.SHA256())
    )
    key_path, certificate_path = folder / "tls.key", folder / "tls.crt"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    key_path.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    key_path.chmod(0o600)
    certificate_path.write_bytes(certificate.public_bytes(pem))
    return key_path, certificate_path
