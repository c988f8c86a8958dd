"""A service with TLS and API keys: its certificate, its keys, and what to look for in its logs."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve_app.security.key_file import change_keys
from serve_app.security.keys import ApiKey, digest_of, new_key
from serve_app.security.scopes import Scope


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


class Secured:
    """Keys of three tenants, and the edit of a Serve file that asks for them over TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "keys.yaml"
        self.client = self.add("tenant-a", Scope.INFERENCE)
        self.prometheus = self.add("prometheus", Scope.ENERGY)
        self.operator = self.add("operator", Scope.INFERENCE, Scope.ENERGY)

    def add(self, name: str, *scopes: Scope) -> str:
        """A new key of the name; the key."""
        key = new_key()
        stored = ApiKey(name=name, digest=digest_of(key.encode()), scopes=frozenset(scopes))
        change_keys(self.file, lambda keys: [*keys, stored])
        return key

    def remove(self, name: str) -> None:
        change_keys(self.file, lambda keys: [one for one in keys if one.name != name])

    def edit(self, config) -> None:
        key, certificate = self_signed(self.folder)
        config["http_options"] |= {"ssl_keyfile": str(key), "ssl_certfile": str(certificate)}
        config["applications"][0]["args"]["energy"]["security"] = {
            "api_keys_file": str(self.file),
            "max_body_bytes": 2**20,
        }


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def files_with(markers: list[bytes], folders: list[Path]) -> list[str]:
    """Each file below the folders that has a marker in it, with the marker's place in the list."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    data = path.read_bytes()
                    found += [f"{path}: marker {n}" for n, m in enumerate(markers) if m in data]
    return found
