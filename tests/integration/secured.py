"""A service with TLS and API keys: its certificate, its keys, and what to look for in its logs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from certificates import self_signed

from serve_app.security.key_file import change_keys
from serve_app.security.keys import ApiKey, digest_of, new_key
from serve_app.security.scopes import Scope


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
