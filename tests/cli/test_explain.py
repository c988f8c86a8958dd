"""`jouleserve explain` against a server that says what a ledger says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from recorded import PROFILES, records, seen
from told import told_ledger

from serve_app.decisions.log import DecisionLog

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

    def serve(limit, **paths):
        more = {f"/{name.replace('_', '/')}": data for name, data in paths.items()}
        body = json.dumps(
            {"replicas": [{"deployment": "d", "replica": "r1", "power_limit": limit}]}
        ).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                answers = {"/jouleserve/energy": body, **more}
                self.send_response(200 if path in answers else 404)
                self.end_headers()
                self.wfile.write(answers.get(path, b""))

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


def of_a_ledger():
    ledger, now_s = told_ledger()
    return {
        "energy_decisions": json.dumps(ledger.decisions(5, now_s)).encode(),
        "jouleserve_decisions": json.dumps(ledger.records(5)).encode(),
    }


def test_it_says_what_was_decided_on_what_and_what_came_of_it(jouleserve, serving):
    result = jouleserve("explain", "--url", serving(HELD, **of_a_ledger()))
    assert result.returncode == 0, result.stderr
    for words in (
        "replicas 1 → 2", "the targets were at risk", "seen      20 requests/s of 1125 prompt",
        "expected  ", "instead   ", "12 J each, 80 % within the targets", "in force",
    ):  # fmt: skip
        assert words in result.stdout, result.stdout


def test_every_decision_is_made_again(jouleserve, serving):
    answers = of_a_ledger()
    result = jouleserve("explain", "--url", serving(HELD, **answers), "--replay")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 of 4 decisions are the same again, bit for bit." in result.stdout
    told = json.loads(answers["jouleserve_decisions"])
    told["records"][0]["decision"]["chosen_max_num_active_seqs"] = 7
    answers["jouleserve_decisions"] = json.dumps(told).encode()
    result = jouleserve("explain", "--url", serving(HELD, **answers), "--replay")
    assert result.returncode == 1
    assert "3 of 4" in result.stdout
    assert "chosen_max_num_active_seqs" in result.stdout
    result = jouleserve("explain", "--url", serving(HELD, **answers), "--replay", "--json")
    (wrong,) = [one for one in json.loads(result.stdout)["replayed"] if one["differences"]]
    assert wrong["values"]["chosen_max_num_active_seqs"] == [7, 256]


def test_a_log_is_explained_and_replayed_without_a_service(jouleserve, tmp_path):
    log = DecisionLog(tmp_path, "llm", 1 << 20)
    for fingerprint, data in PROFILES.items():
        log.profile(fingerprint, data)
    for one in records([seen(float(k), 10.0 * k) for k in range(1, 4)]):
        log.line(one.model_dump_json())
    log.close()
    result = jouleserve("explain", "--log", str(tmp_path), "--last", "2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("replica r0") == 2
    result = jouleserve("explain", "--log", str(tmp_path), "--replay")
    assert "3 of 3 decisions are the same again" in result.stdout
    result = jouleserve("explain", "--log", str(tmp_path / "none"), "--replay")
    assert result.returncode == 2
    assert "no decision log" in result.stderr


def test_a_refusal_is_one_line(jouleserve, serving):
    result = jouleserve("explain", "--url", serving(HELD), "--replay")
    assert result.returncode == 2
    assert "/jouleserve/decisions answers 404" in result.stderr
