"""`jouleserve explain` against a server that says what a ledger says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

HELD = {
    "actuator": "agent", "available": True, "reason": None, "held": True,
    "holder": "llm r1 (process 7, user 0)", "natural_draw_watts": 690.0, "asked_watts": 300.0,
    "limit_watts": 300.0, "enforced_watts": 300.0, "most_watts": None, "drift_watts": None,
    "inert": False, "clock_mhz": None,
}  # fmt: skip


@pytest.fixture
def serving():
    """serving(limit) → URL of a service with one replica of that power limit."""
    servers = []

    def serve(limit):
        body = json.dumps(
            {"replicas": [{"deployment": "d", "replica": "r1", "power_limit": limit}]}
        ).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/jouleserve/energy" else 404)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, 0, ["690 W", "300 W", "binding", "llm r1 (process 7, user 0)"]),
        ({"inert": True}, 0, ["inert"]),
        ({"inert": True, "clock_mhz": 900}, 0, ["clock at most 900 MHz"]),
        ({"most_watts": 350.0}, 0, ["binding; budget 350 W"]),
        ({"asked_watts": None, "holder": None}, 0, ["the default", "nobody"]),
        ({"available": False, "reason": "GPU lost"}, 1, ["cannot be set: GPU lost"]),
        ({"drift_watts": 500.0}, 1, ["another program has set 500 W"]),
        ({"actuator": "none", "available": False, "reason": "none"}, 0, ["cannot be set: none"]),
    ],
)
def test_it_says_what_the_limit_does_and_who_holds_it(jouleserve, serving, changes, code, words):
    result = jouleserve("explain", "--url", serving({**HELD, **changes}))
    assert result.returncode == code, result.stderr
    for word in words:
        assert word in result.stdout


def test_json_is_what_the_service_says(jouleserve, serving):
    result = jouleserve("explain", "--url", serving(HELD), "--json")
    (row,) = json.loads(result.stdout)["replicas"]
    assert row["power_limit"] == HELD


def test_without_a_service_it_says_so(jouleserve):
    result = jouleserve("explain", "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert "/jouleserve/energy does not answer" in result.stderr
