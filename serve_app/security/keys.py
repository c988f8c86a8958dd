"""API keys as they are stored and looked up: by hash, in a time that does not tell.

Keys are 256 random bits, so a plain SHA-256 is right: there is no dictionary to try, and scrypt or
argon2 would cost milliseconds a request and hand a flood of wrong keys the CPU.

A lookup hashes what was presented and asks a dict for the digest. How long that takes may depend on
the digest, which the sender cannot steer without inverting SHA-256, and Python's dict compares
digests only once 64 bits of a hash seeded at random per process agree; a missing key is hashed and
looked up too. So no time tells how much of a key was right, nor whether one came.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.security.scopes import Scope

TENANT_HEADER = "x-jouleserve-tenant"  # from the gate to the request log: the name of the key
KEY_IN_SCOPE = "jouleserve.key"  # the same for what is behind the gate; no client can set it
PREFIX = "jsk-"  # scanners for leaked secrets find it
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_KEY_BYTES = 32
_ID_DIGITS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key without its secret. `name`: its tenant; `digest`: SHA-256 of the key, 32 bytes;
    `expires_s`: Unix time from which it is good for nothing, None = never."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    expires_s: float | None = None

    @property
    def id(self) -> str:
        """What tells two keys of one name apart, in lists and on the command line."""
        return self.digest.hex()[:_ID_DIGITS]

    def expired(self, now_s: float) -> bool:
        """Whether it is good for nothing at this Unix time."""
        return self.expires_s is not None and now_s >= self.expires_s


class KeyRing:
    """The keys in force."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, presented: bytes) -> ApiKey | None:
        """The key that was presented (b"" for none), expired or not; None: it is unknown."""
        return self._by_digest.get(digest_of(presented))


def digest_of(key: bytes) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key).digest()


def new_key() -> str:
    """A new key: 256 bits from the system's random source."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)
