"""What a request is refused with: status, OpenAI's error object, headers. Nothing of the request
is ever in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.security.scopes import Scope

Reason = Literal["no_key", "wrong_key", "expired_key", "no_scope", "body", "headers"]
REASONS: tuple[Reason, ...] = (
    "no_key", "wrong_key", "expired_key", "no_scope", "body", "headers",
)  # fmt: skip
_CHALLENGE = b"Bearer"
_POLICY_VIOLATION = 1008  # RFC 6455: of a WebSocket that is closed


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One kind of refusal, ready to send."""

    reason: Reason
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def counted_as(self, reason: Reason) -> Refusal:
        """The same answer under another reason: the client must not learn which it was."""
        return Refusal(reason=reason, status=self.status, headers=self.headers, body=self.body)


def _refusal(
    reason: Reason, status: int, error: tuple[str, str, str], *headers: tuple[bytes, bytes]
) -> Refusal:
    """`error`: OpenAI's type and code, and the message."""
    kind, code, message = error
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return Refusal(
        reason=reason,
        status=status,
        headers=(
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"access-control-allow-origin", b"*"),  # as Ray's own answers: a page may read why
            *headers,
        ),
        body=body.encode(),
    )


NO_KEY = _refusal(
    "no_key",
    401,
    (
        "authentication_error",
        "invalid_api_key",
        "a valid API key is needed, in one header: `Authorization: Bearer KEY`",
    ),
    (b"www-authenticate", _CHALLENGE),
)
WRONG_KEY = NO_KEY.counted_as("wrong_key")
EXPIRED_KEY = NO_KEY.counted_as("expired_key")
NO_SCOPE = {
    scope: _refusal(
        "no_scope",
        403,
        (
            "permission_error",
            "insufficient_scope",
            f"this API key does not have the scope {scope.value!r}",
        ),
        (b"www-authenticate", f'Bearer error="insufficient_scope", scope="{scope}"'.encode()),
    )
    for scope in Scope
}
# The rest of the body is not read: the connection cannot carry another request.
_CLOSE = (b"connection", b"close")


def body_too_large(max_bytes: int) -> Refusal:
    """413."""
    message = f"the body is larger than {max_bytes} bytes (energy.security.max_body_bytes)"
    error = ("invalid_request_error", "request_too_large", message)
    return _refusal("body", 413, error, _CLOSE)


def headers_too_large(max_bytes: int) -> Refusal:
    """431."""
    message = f"the headers are larger than {max_bytes} bytes (energy.security.max_header_bytes)"
    error = ("invalid_request_error", "headers_too_large", message)
    return _refusal("headers", 431, error, _CLOSE)


async def refuse(scope: Any, send: Any, refusal: Refusal) -> None:
    """Answer an ASGI request, or the handshake of a WebSocket."""
    start = {"status": refusal.status, "headers": list(refusal.headers)}
    if scope["type"] == "http":
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": refusal.body})
    elif "websocket.http.response" in (scope.get("extensions") or {}):
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": refusal.body})
    else:
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""})
