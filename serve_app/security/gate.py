"""The door of the HTTP API: an ASGI layer that lets a request in or answers it at once.

Judged by the request's head alone, before a byte of the body is read. What goes on has no
credentials in it any more (no handler, log or trace behind the gate can show one), and the name
of its key in `x-jouleserve-tenant`, which nobody else can set.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_app.security.keys import KEY_IN_SCOPE, TENANT_HEADER, ApiKey
from serve_app.security.refusals import (
    EXPIRED_KEY,
    NO_KEY,
    NO_SCOPE,
    WRONG_KEY,
    Refusal,
    body_too_large,
    headers_too_large,
    refuse,
)
from serve_app.security.scopes import Scope, routed_path, scope_of
from serve_app.security.settings import SecuritySettings
from serve_app.security.watched import WatchedKeys

_TENANT = TENANT_HEADER.encode()
_CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key"})
_PER_HEADER_BYTES = 4  # ": " and the line's end
_PROTECTED_BY = {"openai": Scope.INFERENCE, "energy": Scope.ENERGY}


class Gate:
    """Judges requests by the settings in force. `now_s`: Unix time."""

    def __init__(self, settings: SecuritySettings, now_s: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.refused: Counter[str] = Counter()  # by reason
        self._now_s = now_s
        file = settings.api_keys_file
        self.keys = WatchedKeys(Path(file)) if file is not None else None
        open_scopes = set(_PROTECTED_BY.values()) - {_PROTECTED_BY[p] for p in settings.protect}
        self._open = frozenset(open_scopes)
        body, head = settings.max_body_bytes, settings.max_header_bytes
        self.body_refusal = body_too_large(body) if body is not None else None
        self._head_refusal = headers_too_large(head) if head is not None else None

    def judge(self, scope: Any) -> tuple[Refusal | None, Any]:
        """(why it is refused, None) or (None, the scope to go on with)."""
        headers = scope["headers"]
        refusal = self._of_size(scope, headers)
        if refusal is None and self.keys is not None:
            refusal, scope = self._of_key(scope, headers)
        return refusal, scope

    def _of_size(self, scope: Any, headers: Any) -> Refusal | None:
        most = self.settings.max_header_bytes
        if most is not None:
            size = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
            for name, value in headers:
                size += len(name) + len(value) + _PER_HEADER_BYTES
            if size > most:
                return self._head_refusal
        return None

    def _of_key(self, scope: Any, headers: Any) -> tuple[Refusal | None, Any]:
        needed = scope_of(routed_path(scope))
        if needed is None or needed in self._open or _is_preflight(scope, headers):
            return None, _handed_on(scope, headers, None)
        presented = [value for name, value in headers if name.lower() in _CREDENTIALS]
        # Two are one too many: whoever is behind may go by the other.
        key = self._find(presented[0] if len(presented) == 1 else b"")
        if isinstance(key, Refusal):
            return key, scope
        if needed not in key.scopes:
            return NO_SCOPE[needed], scope
        return None, _handed_on(scope, headers, key)

    def _find(self, credentials: bytes) -> ApiKey | Refusal:
        """The key that is good now; without one, why."""
        assert self.keys is not None
        presented = _bare(credentials)
        key = self.keys.ring.find(presented)
        if key is None:
            return WRONG_KEY if presented else NO_KEY
        return EXPIRED_KEY if key.expired(self._now_s()) else key


class GateMiddleware:
    """The gate around an ASGI application. `on_start` is told the gate, once per process."""

    def __init__(
        self,
        app: Any,
        *,
        settings: dict[str, Any],
        on_start: Callable[[Gate], None] = lambda _: None,
    ) -> None:
        self.app = app
        self.gate = Gate(SecuritySettings.model_validate(settings))
        on_start(self.gate)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal, onward = self.gate.judge(scope)
        if refusal is None and scope["type"] == "http":
            refusal, receive, send = self._limited(scope, receive, send)
        if refusal is not None:
            self.gate.refused[refusal.reason] += 1
            await refuse(scope, send, refusal)
            return
        try:
            await self.app(onward, receive, send)
        except Exception:
            if not (isinstance(send, _Limit) and send.hit):
                raise  # else it is about the body that we have cut off, and answered

    def _limited(self, scope: Any, receive: Any, send: Any) -> tuple[Refusal | None, Any, Any]:
        """Refuse by the announced length; where none is announced, count while it comes."""
        most, refusal = self.gate.settings.max_body_bytes, self.gate.body_refusal
        if most is None or refusal is None:
            return None, receive, send
        announced, chunked = None, False
        for name, value in scope["headers"]:
            lower = name.lower()
            if lower == b"content-length" and value.isdigit() and len(value) < 20:
                announced = max(int(value), announced or 0)
            elif lower in {b"content-length", b"transfer-encoding"}:
                chunked = True  # or a length that is none: the server may have let it pass
        if announced is not None and announced > most:
            return refusal, receive, send
        if announced is not None and not chunked:
            return None, receive, send  # the server holds the client to it
        limit = _Limit(self.gate, refusal, scope, receive, send)
        return None, limit.receive, limit


class _Limit:
    """One request of unknown length. Once it is too long, its client has been answered: the
    application hears that the client has left, and what it says is not sent."""

    def __init__(self, gate: Gate, refusal: Refusal, scope: Any, receive: Any, send: Any) -> None:
        self.hit = False
        self._gate = gate
        self._refusal = refusal
        self._scope = scope
        self._receive = receive
        self._send = send
        self._bytes = 0
        self._answering = False

    async def receive(self) -> Any:
        """The next message, counted."""
        if self.hit:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        self._bytes += len(message.get("body", b""))
        most = self._gate.settings.max_body_bytes
        if most is None or self._bytes <= most:
            return message
        self.hit = True
        self._gate.refused[self._refusal.reason] += 1
        if not self._answering:
            await refuse(self._scope, self._send, self._refusal)
        return {"type": "http.disconnect"}

    async def __call__(self, message: Any) -> None:
        """Send what the application says, unless the client has been answered."""
        if self.hit:
            return
        self._answering = True
        await self._send(message)


def _bare(credentials: bytes) -> bytes:
    """The key itself: with or without its scheme."""
    scheme, _, rest = credentials.strip().partition(b" ")
    return rest.strip() if scheme.lower() == b"bearer" else credentials.strip()


def _is_preflight(scope: Any, headers: Any) -> bool:
    """A browser's question whether a page may call; it never carries a key. The application's
    CORS layer answers it, or the router does: 405."""
    if scope.get("method") != "OPTIONS":
        return False
    names = {name.lower() for name, _ in headers}
    return b"origin" in names and b"access-control-request-method" in names


def _handed_on(scope: Any, headers: Any, key: ApiKey | None) -> Any:
    """The scope without credentials, and with the tenant that the key stands for."""
    dropped = _CREDENTIALS | {_TENANT}
    kept = [pair for pair in headers if pair[0].lower() not in dropped]
    if key is not None:
        kept.append((_TENANT, key.name.encode()))
    return {**scope, "headers": kept, KEY_IN_SCOPE: key and key.name}
