"""How our own commands ask a service that speaks TLS and wants a key."""

import json
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from certificates import self_signed

from policies.core.errors import ConfigError
from serve_app.cli.explain import _limits
from serve_app.launch import Deployment, Running
from serve_app.security.asking import trusting

KEY = "jsk-good"
ENERGY = {"replicas": [{"deployment": "d", "replica": "r", "power_limit": None}]}


class Handler(BaseHTTPRequestHandler):
    def _answer(self):
        good = self.headers.get("Authorization") == f"Bearer {KEY}"
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps(ENERGY if good else {"error": {}}).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer

    def log_message(self, *_):
        pass


@contextmanager
def serving(tls=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls[1], tls[0])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_first_question_of_serve(tmp_path, monkeypatch, tls, encrypted):
    with serving(tls if encrypted else None) as port:
        running = Running.__new__(Running)
        running.deployment = Deployment(
            path=Path("f.yaml"), host="127.0.0.1", port=port, models=("m",), sources=(),
            certificate=tls[1] if encrypted else None,
        )  # fmt: skip
        running.log_path = tmp_path / "log"
        running.log_path.write_text("Deployed nothing yet")
        monkeypatch.delenv("JOULESERVE_API_KEY", raising=False)
        assert running._ask() is None  # a refusal may come before the replicas do
        running.log_path.write_text("INFO -- Application 'llm' is ready at http://127.0.0.1:8000/.")
        assert running._ask() == {}
        monkeypatch.setenv("JOULESERVE_API_KEY", KEY)
        assert running._ask() == ENERGY


def test_only_the_certificate_of_the_file_is_trusted(tmp_path, tls):
    _, other = self_signed(tmp_path)
    with serving(tls) as port:
        url = f"https://localhost:{port}/"  # not the name in the certificate, but the host is ours
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=10, context=trusting(tls[1]))
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(url, timeout=10, context=trusting(other))
    assert trusting(None) is None


def test_explain_presents_the_key(monkeypatch):
    with serving() as port:
        monkeypatch.setenv("JOULESERVE_API_KEY", KEY)
        assert _limits(f"http://127.0.0.1:{port}") == ENERGY["replicas"]
        monkeypatch.setenv("JOULESERVE_API_KEY", "wrong")
        with pytest.raises(ConfigError, match="401"):
            _limits(f"http://127.0.0.1:{port}")
