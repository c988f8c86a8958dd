"""The gate in front of the ingress's own FastAPI application, Ray's layers and all, with handlers
that stand for the replicas: nothing secret gets past it into logs, metrics or handlers."""

import logging

import pytest
from asgi_play import KeyFile, http_scope, play
from fastapi import Request

from serve_app.api_errors import use_openai_errors
from serve_app.engine import ray_server
from serve_app.ingress import ENDPOINTS
from serve_app.security.gate import GateMiddleware
from serve_app.security.report import families_of_gate
from serve_app.security.scopes import SCOPES

CHAT = "/v1/chat/completions"
PROMPT, HEADER, WRONG = "marker-prompt-1", "marker-header-2", "jsk-marker-wrong-3"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return KeyFile(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def key(file):
    return file.add("team-a")


class Service:
    """The ingress's application as serve_app.app makes it, without Serve around it."""

    def __init__(self, file):
        self.seen = []
        self.gates = []
        app = use_openai_errors(ray_server.new_ingress_app())
        settings = {"api_keys_file": str(file.path), "max_body_bytes": 4096}
        app.add_middleware(GateMiddleware, settings=settings, on_start=self.gates.append)

        async def handler(request: Request):
            self.seen.append((dict(request.headers), await request.body()))
            return {"ok": True}

        for name, route in ENDPOINTS.items():
            if name not in {"models", "model_data"}:  # they promise a model
                route(app)(handler)
        self.app = app

    async def ask(self, path, headers=(), method="POST", body=(b"{}",)):
        # Starlette builds its layers at the first call, whatever it is.
        return await play(self.app, http_scope(path, headers, method), body)


@pytest.fixture(scope="module")
def service(file, key):
    return Service(file)


def paths_of(app):
    return {route.path for route in app.routes if hasattr(route, "path")}


def test_every_route_of_the_ingress_is_in_the_table(service):
    paths = paths_of(service.app)
    assert {CHAT, "/metrics", "/jouleserve/energy"} <= paths
    unknown = [p for p in paths if not any(p == e or p.startswith(f"{e}/") for e in SCOPES)]
    assert unknown == []


async def test_the_gate_is_the_outermost_layer(service, key):
    """One gate for the process; a refused request reaches no handler and no layer of Ray's."""
    refused = await service.ask(CHAT)
    assert refused.status == 401
    assert b"vary" not in refused.headers  # Ray's CORS layer gives every answer one
    assert service.seen == []
    assert len(service.gates) == 1
    let_in = await service.ask(CHAT, [("authorization", f"Bearer {key}")])
    assert let_in.status == 200
    assert b"vary" in let_in.headers
    ((headers, body),) = service.seen
    assert "authorization" not in headers
    assert headers["x-jouleserve-tenant"] == "team-a"
    assert body == b"{}"


async def test_a_page_may_ask_whether_it_may_ask(service):
    asked = [("origin", "https://a.example"), ("access-control-request-method", "POST")]
    answer = await service.ask(CHAT, asked, "OPTIONS", [b""])
    assert answer.status == 200
    assert b"POST" in answer.headers[b"access-control-allow-methods"]
    refused = await service.ask(CHAT, [("origin", "https://a.example")])
    assert refused.headers[b"access-control-allow-origin"] == b"*"


async def test_a_body_that_grows_too_large_is_refused_through_rays_layers(service, key):
    headers = [("authorization", f"Bearer {key}"), ("transfer-encoding", "chunked")]
    answer = await service.ask(CHAT, headers, body=[b"x" * 1000] * 9)
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"


async def test_nothing_secret_in_logs_metrics_or_answers(service, key, caplog):
    """On every level, of every logger; the same with requests that fail on the way."""
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        try:
            marked = [("x-marker", HEADER), ("cookie", HEADER)]
            body = b'{"messages": "' + PROMPT.encode() + b'"}'
            answers = []
            for bearer in (key, WRONG):
                for path in (
                    CHAT,
                    "/v1/nothing",
                    "/jouleserve/energy",
                    "/admin",
                    "/v1/completions",
                ):
                    headers = [("authorization", f"Bearer {bearer}"), *marked]
                    answers.append(await service.ask(path, headers, body=[body]))
                    large = [*headers, ("content-length", "999999")]
                    answers.append(await service.ask(path, large, body=[body]))
        finally:
            logging.getLogger("ray.serve").removeHandler(caplog.handler)
    (gate,) = service.gates
    shown = repr([
        [(r.getMessage(), r.args, r.exc_text) for r in caplog.records],
        families_of_gate(gate, {"application": "llm"}),
        [(a.headers, a.body) for a in answers],
    ])  # fmt: skip
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 401, 403, 404, 413}
    for marker in (PROMPT, HEADER, WRONG, key):
        assert marker not in shown
    # What is kept of a key is its hash.
    assert key not in repr(vars(gate)) + repr(vars(gate.keys)) + repr(vars(gate.keys.ring))
