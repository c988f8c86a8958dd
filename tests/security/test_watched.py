"""Keys change while a service runs; a broken file changes nothing, and is told."""

import logging
import threading

import pytest
from asgi_play import KeyFile

from serve_app.security.gate import Gate
from serve_app.security.report import GateKeeper, families_of_gate
from serve_app.security.settings import SecuritySettings
from serve_app.security.watched import WatchedKeys


@pytest.fixture
def file(tmp_path):
    return KeyFile(tmp_path)


@pytest.fixture
def said(caplog):
    """What goes to Serve's logger, which keeps its lines to itself once Ray has set it up."""
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_a_new_key_is_good_and_a_revoked_one_is_not_after_a_check(file):
    key = file.add("a")
    watched = WatchedKeys(file.path)
    assert watched.ring.find(key.encode()).name == "a"
    other = file.add("b")
    assert watched.ring.find(other.encode()) is None
    watched.check()
    assert watched.ring.find(other.encode()).name == "b"
    file.path.write_text("[]")
    watched.check()
    assert len(watched.ring) == 0
    assert watched.in_force


def test_the_file_is_read_only_when_it_has_changed(file, monkeypatch):
    file.add("a")
    watched = WatchedKeys(file.path)
    ring = watched.ring
    for _ in range(3):
        watched.check()
    assert watched.ring is ring
    file.add("b")
    watched.check()
    assert watched.ring is not ring


BROKEN = {
    "no YAML": lambda path: path.write_text("- {name: "),
    "one wrong entry of two": lambda path: path.write_text(path.read_text() + "- {name: x}\n"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "writable by all": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_keeps_the_keys_in_force_and_is_said_once(file, said, how):
    key = file.add("a")
    good = file.path.read_bytes()
    watched = WatchedKeys(file.path)
    BROKEN[how](file.path)
    for _ in range(3):
        watched.check()
    assert watched.ring.find(key.encode()).name == "a"
    assert (watched.in_force, watched.errors) == (False, 1)
    (line,) = {r.getMessage() for r in said.records if r.levelno == logging.ERROR}
    assert line.startswith(f"API keys not read, the 1 in force stay: {file.path}: ")
    assert line.count(str(file.path)) == 1
    if file.path.is_dir():
        file.path.rmdir()
    file.path.unlink(missing_ok=True)
    file.path.write_bytes(good)
    watched.check()
    assert (watched.in_force, watched.errors, len(watched.ring)) == (True, 1, 1)


def test_nobody_is_let_in_before_the_first_good_read(tmp_path):
    watched = WatchedKeys(tmp_path / "nothing.yaml")
    assert (len(watched.ring), watched.in_force, watched.errors) == (0, False, 1)


def test_a_thread_looks_at_the_file_and_requests_do_not(file):
    gate = Gate(SecuritySettings(api_keys_file=file.path))
    looked, told = threading.Event(), threading.Event()
    keeper = GateKeeper(gate, told.set, check_every_s=0.01)
    check = gate.keys.check
    gate.keys.check = lambda: (check(), looked.set())
    keeper.start()
    try:
        key = file.add("a")
        looked.clear()
        assert looked.wait(5)
        looked.clear()
        assert looked.wait(5)
        assert gate.keys.ring.find(key.encode()).name == "a"
        assert told.wait(5)
    finally:
        keeper.stop()


def test_the_metrics_of_a_gate(file):
    file.add("a")
    gate = Gate(SecuritySettings(api_keys_file=file.path))
    gate.refused["wrong_key"] += 3
    labels = {"application": "llm", "deployment": "d", "replica": "r"}
    values = {
        (name, *more.values()): value
        for _, _, _, samples in families_of_gate(gate, labels)
        for name, more, value in samples
    }
    assert values["jouleserve_http_refused_requests_total", "llm", "d", "r", "wrong_key"] == 3.0
    assert values["jouleserve_http_refused_requests_total", "llm", "d", "r", "body"] == 0.0
    assert values["jouleserve_api_keys", "llm", "d", "r"] == 1.0
    assert values["jouleserve_api_keys_file_in_force", "llm", "d", "r"] == 1.0
    open_gate = families_of_gate(Gate(SecuritySettings()), labels)
    assert [family[0] for family in open_gate] == ["jouleserve_http_refused_requests"]
