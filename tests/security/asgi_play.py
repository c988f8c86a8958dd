"""Plays one request through an ASGI application, as a server would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from serve_app.security.key_file import change_keys
from serve_app.security.keys import ApiKey, digest_of, new_key
from serve_app.security.scopes import Scope


@dataclass
class Answer:
    messages: list = field(default_factory=list)
    received: int = 0  # messages that the application has taken

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return dict(self.messages[0]["headers"])

    @property
    def body(self):
        return b"".join(m.get("body", b"") for m in self.messages if m["type"].endswith(".body"))

    @property
    def error(self):
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def http_scope(path="/v1/models", headers=(), method="GET", **more):
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), _bytes(value)) for name, value in headers],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8000),
        **more,
    }


def _bytes(value):
    return value if isinstance(value, bytes) else value.encode("latin-1")


async def play(app, scope, body=(b"",)):
    """The answer of the application to a request whose body comes in these pieces."""
    answer = Answer()
    pieces = list(body)

    async def receive():
        answer.received += 1
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        answer.messages.append(message)

    await app(scope, receive, send)
    return answer


class Downstream:
    """An application that reads the whole body, answers 200, and remembers what it was given."""

    def __init__(self):
        self.scopes = []
        self.body = b""
        self.left = False

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        more = scope["type"] == "http"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left = True
                break
            self.body += message["body"]
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    @property
    def headers(self):
        return dict(self.scopes[-1]["headers"])


class KeyFile:
    """A keys file and what was put into it."""

    def __init__(self, folder):
        self.path = folder / "keys.yaml"
        change_keys(self.path, lambda keys: keys)

    def add(self, name, *scopes, expires_s=None):
        key = new_key()
        stored = ApiKey(
            name=name,
            digest=digest_of(key.encode()),
            scopes=frozenset(scopes or [Scope.INFERENCE]),
            expires_s=expires_s,
        )
        change_keys(self.path, lambda keys: [*keys, stored])
        return key
