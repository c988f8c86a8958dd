"""One API call on its way through the replica: who sent it, when, and how it ended."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from serve_app.engine.tap import FinishedRequest
from serve_app.request_log.row import Outcome
from serve_app.request_log.tenant import NOBODY, Tenant, TenantRule

_PREFIXES = {"/v1/chat/completions": "chatcmpl", "/v1/completions": "cmpl"}
_OVERLOADED = (429, 503)
_ERROR_EVENT = 'data: {"error"'
_DONE = "data: [DONE]"


class Call:
    """What the request path notes. `response_id` is the `id` of the OpenAI response."""

    __slots__ = (
        "arrived_s", "arrived_utc_s", "ended_s", "energy", "left_engine", "outcome", "response_id",
        "sequences", "tenant",
    )  # fmt: skip

    def __init__(self, tenant: Tenant = NOBODY, response_id: str = "") -> None:
        self.tenant = tenant
        self.response_id = response_id
        self.arrived_utc_s = time.time()
        self.arrived_s = time.monotonic()
        self.ended_s: float | None = None
        self.outcome: Outcome | None = None
        self.energy: dict[str, Any] | None = None  # as the client was told it
        self.sequences: list[FinishedRequest] = []
        self.left_engine = False  # the engine has said so

    def named(self, prefix: str, request: Any) -> Call:
        """Take the response's name from a request that Ray has stamped: vLLM gets that id alone."""
        self.response_id = f"{prefix}-{getattr(request, 'request_id', '')}"
        return self

    def answered(self, answer: Any) -> None:
        """Note one item that Ray's LLM server yields: a whole answer, or a list of SSE events."""
        for item in answer if isinstance(answer, list) else (answer,):
            if isinstance(item, str):
                self.event(item)
            elif (error := getattr(item, "error", None)) is not None:
                self.refused(getattr(error, "code", None))
            elif getattr(item, "usage", None) is not None:
                self.completed()

    def event(self, event: str) -> None:
        """Note one SSE event."""
        if event.startswith(_ERROR_EVENT):
            self.outcome = "failed"
        elif _DONE in event:
            self.completed()

    def refused(self, status: Any) -> None:
        """Note an error answer: below 500 and on overload the request was not taken."""
        refused = isinstance(status, int) and (status < 500 or status in _OVERLOADED)
        self.outcome = "rejected" if refused else "failed"

    def completed(self) -> None:
        """Note the last byte of an answer. A client that leaves after it has been served."""
        if self.outcome is None:
            self.outcome = "completed"


def ray_call(request: Any, raw_request_info: Any, rule: TenantRule) -> Call:
    """Return the call of a request in ingress mode, not yet named."""
    given = getattr(raw_request_info, "headers", None) or {}
    headers = {str(name).lower(): str(value) for name, value in given.items()}
    return Call(rule.tenant(getattr(request, "user", None), headers))


class _Body(msgspec.Struct):
    """What a request body tells us; all else in it is skipped unread."""

    user: str | None = None
    request_id: str | None = None


async def asgi_call(scope: Any, receive: Any, rule: TenantRule) -> tuple[Call, Any, Any]:
    """Return the call of a raw request, and the scope and `receive` to go on with.

    vLLM names the response after the header X-Request-Id, else after `request_id` in the body, else
    by chance. In the last case we choose, so that a request whose client leaves before the first
    byte is known by its name too.
    """
    body, replay = await _read(receive)
    try:
        told = msgspec.json.decode(body, type=_Body)
    except msgspec.MsgspecError:
        told = _Body()
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
    name = headers.get("x-request-id") or told.request_id
    if not name:
        name = uuid.uuid4().hex
        scope = {**scope, "headers": [*scope["headers"], (b"x-request-id", name.encode())]}
    prefix = next((v for k, v in _PREFIXES.items() if str(scope["path"]).endswith(k)), "")
    return Call(rule.tenant(told.user, headers), f"{prefix}-{name}"), scope, replay


async def _read(receive: Any) -> tuple[bytes, Any]:
    """The whole body, and a `receive` that plays it back and then goes on with what follows."""
    messages: list[Any] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    pending = iter(messages)

    async def replay() -> Any:
        for message in pending:
            return message
        return await receive()

    return b"".join(m.get("body", b"") for m in messages if m["type"] == "http.request"), replay
