"""`jouleserve traces` as a user meets it: tables, JSON, files, downloads from a server on loopback."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from policies.core.errors import ConfigError, EnergyServeError
from serve_app.cli.main import app
from serve_app.traces import catalog
from serve_app.traces.catalog import SAMPLE_FILE, load_catalog, load_presets
from serve_app.traces.figures import SPARKS, sparkline
from serve_app.traces.files import read_trace

BODY = SAMPLE_FILE.read_bytes()
FILE = load_catalog()["azure-2023-chat"].file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JOULESERVE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "traces"


@pytest.fixture
def server():
    """Answers paths: /ok the sample, /moved a redirect to it, /short fewer bytes than said, /page
    a page of HTML, /lengthless no length."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/ok")
                self.end_headers()
                return
            body = {"/page": b"<html>sign in</html>"}.get(self.path, BODY)
            self.send_response(200 if self.path != "/gone" else 404)
            if self.path != "/lengthless":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:99] if self.path == "/short" else body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments):
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["traces", *map(str, arguments)], env=environment)


def document(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_the_list_names_everything_with_its_licence(cache):
    shown = run("list").stdout
    for name in (*load_presets(), *load_catalog(), "CC-BY 4.0", "Apache-2.0"):
        assert name in shown
    found = document("list")
    assert set(found["presets"]) == set(load_presets())
    assert found["public"]["azure-2023-chat"]["path"] is None
    assert found["public"]["azure-2023-chat"]["sha256"] is None
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(BODY)
    assert document("list")["public"]["azure-2023-chat"]["path"] == str(cache / FILE)


def test_describe_gives_figures_and_a_line_of_the_rate():
    arguments = ("describe", "code-bursty", "--duration-s", 1800, "--seed", 3)
    shown = run(*arguments).stdout
    for word in (
        "mean rate, req/s", "peak minute, req/s", "inter-arrival CV", "index of dispersion, 10 s",
        "p99", "highest over lowest rate", "up to",
    ):  # fmt: skip
        assert word in shown
    assert set(shown.splitlines()[-1].strip("|")) <= {*SPARKS, " "}
    found = document(*arguments)
    arrivals = found["arrivals"]
    assert set(arrivals["dispersion"]) == {"1", "10", "60"}
    assert arrivals["mean_per_s"] == pytest.approx(27.8, rel=0.2)
    assert found["expected_requests"] == pytest.approx(27.8 * 1800)
    assert np.mean(found["rates_per_s"]) * 1800 == pytest.approx(arrivals["requests"])
    assert max(found["rates_per_s"]) / min(found["rates_per_s"]) > 2.5
    assert found["peak_to_trough_ratio"] > 1.2
    assert found["prompt_tokens"]["mean"] == pytest.approx(2511, rel=0.05)
    assert document(*arguments) == found
    assert document(*arguments[:-1], 4) != found


def test_describe_scales_a_file(tmp_path):
    plain = document("describe", SAMPLE_FILE)
    tenfold = document("describe", SAMPLE_FILE, "--rate-scale", 10, "--shift-s", 2)
    assert plain["arrivals"]["requests"] * 10 == tenfold["arrivals"]["requests"]
    assert plain["duration_s"] == tenfold["duration_s"]
    slow = document("describe", SAMPLE_FILE, "--time-scale", 2)
    assert slow["arrivals"]["span_s"] == pytest.approx(2 * plain["arrivals"]["span_s"])


def test_a_sparkline_has_its_highest_whole_and_zero_empty():
    assert sparkline((0.0, 0.1, 4.0, 7.9, 8.0)) == " ▁▅████"[:3] + "██"
    assert sparkline((0.0, 0.0)) == "  "


def test_write_gives_the_file_that_is_shipped_and_reads_back(tmp_path):
    out = tmp_path / "sample.csv"
    done = run("write", "chat-2023", out, "--duration-s", 27)
    assert done.exit_code == 0, (done.output, done.exception)
    assert out.read_bytes() == BODY
    rows = BODY.count(b"\n") - 1
    assert f"{rows} requests in {out}" in done.stderr
    assert read_trace(out).rows == rows
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["sample.csv"]
    again = run("write", out, tmp_path / "copy.csv")
    assert again.exit_code == 0
    assert read_trace(tmp_path / "copy.csv").prompt_tokens.tolist() == (
        read_trace(out).prompt_tokens.tolist()
    )


def test_a_download_is_checked_told_and_used_by_its_name(server, cache):
    done = run("download", "azure-2023-chat", "--url", f"{server.url}/moved")
    assert done.exit_code == 0, (done.output, done.exception)
    assert (cache / FILE).read_bytes() == BODY
    assert f"downloaded: {cache / FILE}" in done.stdout
    assert f"sha256 {hashlib.sha256(BODY).hexdigest()}" in done.stdout
    assert "licence CC-BY 4.0; cite: Patel et al." in done.stdout
    assert document("describe", "azure-2023-chat")["arrivals"]["requests"] == BODY.count(b"\n") - 1
    asked = len(server.asked)
    assert "was here" in run("download", "azure-2023-chat").stdout
    assert len(server.asked) == asked
    to = cache.parent / "elsewhere"
    done = run("download", "azure-2023-chat", "--to", to, "--url", f"{server.url}/lengthless")
    assert done.exit_code == 0, (done.output, done.exception)
    assert (to / FILE).read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/gone", EnergyServeError, "/gone answers 404 Not Found. Behind a proxy, set HTTPS_PROXY"),
        ("/short", EnergyServeError, f"sent 99 of {len(BODY):,} bytes; run the command again"),
        ("/page", ConfigError, "/page: first line '<html>sign in</html>' is of no known trace"),
    ],
)
def test_a_failed_download_says_what_to_do_and_leaves_nothing(server, cache, path, error, message):
    done = run("download", "azure-2023-chat", "--url", server.url + path)
    assert type(done.exception) is error
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert list(cache.iterdir()) == []


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    done = run("download", "azure-2023-chat", "--url", address)
    assert f"{address} is not reached: " in str(done.exception)
    assert "bring the file by other means to" in str(done.exception)
    assert "jouleserve traces list" in str(done.exception)


def test_a_wrong_checksum_is_refused(server, cache, monkeypatch):
    known = load_catalog()
    wrong = known["azure-2023-chat"].model_copy(update={"sha256": "0" * 64})
    monkeypatch.setattr(catalog, "load_catalog", lambda: known | {"azure-2023-chat": wrong})
    done = run("download", "azure-2023-chat", "--url", f"{server.url}/ok")
    assert f"instead of {'0' * 64}: not the trace of the catalogue" in str(done.exception)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("describe", "nowhere"), "trace 'nowhere': no such file, and no trace of this name"),
        (("describe", " "), "SPEC: empty; expected"),
        (("describe", "chat-2023", "--rate-cv", -1), "rate_cv -1: expected 0..10"),
        (("describe", "chat-2023", "--rate-scale", 0), "--rate-scale 0: allowed: a number above 0"),
        (("describe", "chat-2023", "--rate-scale", 1e-9), "chat-2023: no request; raise the rate"),
        (("write", "chat-2023", "/no/such/x.csv"), "/no/such/x.csv: No such file or directory"),
        (("download", "chat-2023"), "no public trace 'chat-2023' (allowed: azure-2023-chat, "),
        (("download", "azure-2023-chat", "--url", "file:///etc/passwd"), "starts with http(s)://"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = run(*arguments)
    assert isinstance(done.exception, EnergyServeError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_write_leaves_a_file_alone_where_it_fails(tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("before")
    assert run("write", "chat-2023", out, "--rate-scale", 1e-9).exit_code == 1
    assert out.read_text() == "before"
    assert list(tmp_path.glob("*.partial")) == []
