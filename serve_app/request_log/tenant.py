"""Who a request is booked to: the name of the API key where the gate asks for keys; else the OpenAI
`user` field, else a hash of the API key, else nobody."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal, NamedTuple

from serve_app.request_log.row import TenantKind
from serve_app.security.keys import TENANT_HEADER

_KEY_HEADERS = ("authorization", "api-key", "x-api-key")
_MAX_USER_CHARS = 256
_HASH_DIGITS = 16  # 64 bits: any two of a million tenants collide with probability 3e-8


class Tenant(NamedTuple):
    """A name that groups requests, and what it was made from."""

    name: str | None
    kind: TenantKind | None


NOBODY = Tenant(None, None)


class TenantRule:
    """Turns what a request says about its sender into a `Tenant`. Never raises.

    An API key is only ever hashed: SHA-256 of the key, the first 64 bits in hexadecimal. With a
    `secret` it is HMAC-SHA256, so that a reader of the log cannot try out weak keys; the secret has
    to be the same in all replicas for their rows to match.

    `gated`: every request has passed the gate, which names the key's tenant in a header that it
    lets nobody else set. Then a `user` field books nothing to anybody.
    """

    def __init__(
        self,
        policy: Literal["as_given", "hashed", "off"],
        secret: bytes | None = None,
        *,
        gated: bool = False,
    ) -> None:
        self._policy = policy
        self._secret = secret
        self._gated = gated

    def tenant(self, user: object, headers: Mapping[str, str]) -> Tenant:
        """Return the tenant; `headers` have lower-case names."""
        if self._policy == "off":
            return NOBODY
        if self._gated:
            name = headers.get(TENANT_HEADER)
            return Tenant(name, "key") if name else NOBODY
        if isinstance(user, str) and user.strip():
            if self._policy == "hashed":
                return Tenant(self._hash(user.strip()), "user_hash")
            return Tenant(_printable(user.strip()), "user")
        for name in _KEY_HEADERS:
            key = headers.get(name, "").strip()
            scheme, _, rest = key.partition(" ")
            if scheme.lower() == "bearer":
                key = rest.strip()
            if key:
                return Tenant(self._hash(key), "key_hash")
        return NOBODY

    def _hash(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        if self._secret is not None:
            digest = hmac.digest(self._secret, data, "sha256")
        else:
            digest = hashlib.sha256(data).digest()
        return digest.hex()[:_HASH_DIGITS]


def _printable(text: str) -> str:
    """The text with nothing that could spoil a terminal or a file, and of bounded length."""
    safe = text[:_MAX_USER_CHARS].encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in safe)
