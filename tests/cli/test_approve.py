"""`jouleserve approve` against the routes over a real ledger."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from told import told_ledger

from serve_app.web.routes import add_routes


@pytest.fixture
def url():
    """The routes behind a plain server; the test client makes the calls."""
    ledger, _ = told_ledger()

    async def view(what, *arguments):
        return getattr(ledger, what)(*arguments)

    app = FastAPI()
    add_routes(app, view)
    client = TestClient(app)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            answer = client.post(self.path, content=body, headers=dict(self.headers))
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_does_not_wait_is_refused_with_the_reason(jouleserve, url):
    result = jouleserve("approve", "d1", "--url", url)
    assert result.returncode == 2
    assert "d1 was made in mode active: nothing waits for approval" in result.stderr
    result = jouleserve("approve", "none-such", "--url", url)
    assert "no such decision; ids are in /energy/decisions" in result.stderr
    result = jouleserve("approve", "d1", "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert "/jouleserve/approve does not answer" in result.stderr


def test_the_body_must_be_an_id(url):
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        f"{url}/jouleserve/approve", json.dumps({"no": 1}).encode(),
        {"content-type": "application/json"},
    )  # fmt: skip
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    assert caught.value.code == 422
