"""Puts the `energy` object into OpenAI responses: whole bodies, streams, and raw ASGI traffic.

A stream with `include_usage` carries it in the last usage chunk, beside `usage`; any other
stream as a comment line `: energy {...}` before `[DONE]`, which every conforming SSE client
ignores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from serve_app.api_errors import over_budget
from serve_app.request_log.call import Call
from serve_app.request_log.replica import ReplicaRequests

EnergyOf = Callable[[str], dict[str, Any]]  # OpenAI response id → the energy object
_ID = re.compile(r'"id":\s?"([^"]+)"')
_DONE = "data: [DONE]"
_METERED_PATHS = ("/v1/chat/completions", "/v1/completions")


class StreamAnnotator:
    """Adds energy to one SSE stream, event by event; every other event passes unchanged."""

    def __init__(self, energy_of: EnergyOf) -> None:
        self._energy_of = energy_of
        self._id: str | None = None
        self._told = False

    def annotate(self, event: str) -> str:
        """The event as it should be sent. Never raises: an event it cannot read passes as it is."""
        if self._id is None and (match := _ID.search(event)):
            self._id = match[1]
        if self._told or self._id is None:
            return event
        if '"choices":[]' in event and '"usage":{' in event:
            return self._into_usage(event)
        if _DONE in event:
            self._told = True
            comment = f": energy {json.dumps(self._energy_of(self._id))}\n\n"
            return event.replace(_DONE, comment + _DONE, 1)
        return event

    def _into_usage(self, event: str) -> str:
        start = event.find("data: ")
        head, rest = event[:start], event[start + 6 :]
        try:
            body, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            return event
        body["energy"] = self._energy_of(body["id"])
        self._told = True
        return f"{head}data: {json.dumps(body, separators=(',', ':'))}{rest[end:]}"


def error_event(message: str, kind: str = "engine_error", code: int = 500) -> str:
    """An SSE error event in OpenAI's shape, for a stream that cannot go on, and the end marker."""
    error = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return f"data: {json.dumps(error)}\n\n{_DONE}\n\n"


class EnergyMiddleware:
    """ASGI layer for Ray's direct streaming and plain vLLM, where no handler of ours is called."""

    def __init__(
        self,
        app: Any,
        *,
        energy_of: EnergyOf,
        requests: ReplicaRequests | None = None,
        refusal: Callable[[], str | None] | None = None,
    ) -> None:
        self.app = app
        self._energy_of = energy_of
        self._requests = requests
        self._refusal = refusal

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not str(scope["path"]).endswith(_METERED_PATHS):
            await self.app(scope, receive, send)
            return
        if self._requests is None:
            await self.app(scope, receive, _Sender(send, self._energy_of).send)
            return
        call, scope, receive = await self._requests.arrive_asgi(scope, receive)
        refused = self._refusal() if self._refusal is not None else None
        app = self.app if refused is None else over_budget(refused)
        with self._requests.follow(call):
            await app(scope, receive, _Sender(send, self._energy_of, call).send)


class _Sender:
    """Rewrites the response messages of one request, and notes in its call how they end."""

    def __init__(self, send: Any, energy_of: EnergyOf, call: Call | None = None) -> None:
        self._send = send
        self._energy_of = energy_of
        self._call = call or Call()
        self._stream: StreamAnnotator | None = None
        self._start: Any = None
        self._body = b""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", ()))
            content_type = headers.get(b"content-type", b"")
            if message["status"] != 200:
                self._call.refused(message["status"])
            if content_type.startswith(b"text/event-stream"):
                self._stream = StreamAnnotator(self._energy_of)
            elif content_type.startswith(b"application/json") and message["status"] == 200:
                self._start = message  # its content-length changes: send it with the body
                return
        elif message["type"] == "http.response.body":
            if self._stream is not None:
                event = message.get("body", b"").decode("utf-8")
                text = self._stream.annotate(event)
                self._call.event(event)
                message = {**message, "body": text.encode("utf-8")}
            elif self._start is not None:
                self._body += message.get("body", b"")
                if message.get("more_body"):
                    return
                await self._send_json()
                return
        await self._send(message)

    async def _send_json(self) -> None:
        body = with_energy(self._body, self._energy_of)
        self._call.completed()
        headers = [(k, v) for k, v in self._start["headers"] if k.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def with_energy(body: bytes, energy_of: EnergyOf) -> bytes:
    """A JSON response body with its energy; a body that is not an answer stays as it is."""
    try:
        data = json.loads(body)
    except ValueError:
        return body
    if not isinstance(data, dict) or "usage" not in data or "id" not in data:
        return body
    data["energy"] = energy_of(data["id"])
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
