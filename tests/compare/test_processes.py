"""Real process trees: who is what, what they use, and that nothing survives."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import psutil
import pytest

from policies.core.errors import EngineError
from serve_app.compare.probe import ReplicaProbe
from serve_app.compare.processes import (
    Child,
    Command,
    CpuWatch,
    ended,
    part_of,
    parts_of,
    replica_processes,
    wait_until,
)
from serve_app.meters import EstimateSettings

BUSY = f"{sys.executable} -c 'while True: pass'"
IDLE = "sleep 60"
REPLICA = '"ray::ServeReplica:stock:LLMServer:m"'


def titled(title, command):
    """Shell code for a background process with a title of its own."""
    return f"(exec -a {title} bash -c {shell_quoted(command + ' & wait')}) &"


def shell_quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.fixture
def start(tmp_path):
    children = []

    def run(script, name="ray"):
        command = Command(name=name, arguments=["bash", "-c", script], log=tmp_path / f"{name}.log")
        children.append(Child(command))
        return children[-1]

    yield run
    for child in children:
        child.stop()


def eventually(condition, timeout_s=10.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("title", "parent", "part"),
    [
        ("ray::ServeReplica:stock:LLMServer:m.handle", "ray/other", "stock/server"),
        ("ray::ServeReplica:ours:EnergyIngress", "ray/other", "ours/ingress"),
        ("ray::ServeReplica:ours:LLMRouter", "ray/other", "ours/ingress"),
        ("VLLM::EngineCore", "ours/server", "ours/engine"),
        ("VLLM::Worker", "ours/engine", "ours/engine"),
        ("ray::ProxyActor", "ray/other", "ray/proxy"),
        ("/opt/haproxy -f x", "ray/other", "ray/proxy"),
        ("ray::ServeController", "ray/other", "ray/controller"),
        ("ray::Ledger", "ray/other", "ours/ledger"),
        ("python -c resource_tracker", "stock/server", "stock/server"),
        ("raylet --x", "ray/other", "ray/other"),
    ],
)
def test_a_title_says_the_part(title, parent, part):
    assert part_of(title, parent) == part


def test_cpu_is_charged_to_the_part_that_used_it(start):
    child = start(f"{titled(REPLICA, BUSY)} {titled('ray::ProxyActor', IDLE)} wait")
    eventually(lambda: {"stock/server", "ray/proxy"} <= {p.part for p in parts_of(child)})
    watch = CpuWatch([child])
    started_s = time.monotonic()
    eventually(lambda: watch.spent().get("stock/server", 0.0) > 0.2)
    spent = watch.spent()
    assert spent["stock/server"] <= time.monotonic() - started_s + 0.05
    assert spent["ray/proxy"] < 0.1
    assert spent["ray/other"] < 0.1


def test_a_bare_server_is_an_application_of_its_own(start):
    child = start(f"{titled('VLLM::EngineCore', IDLE)} wait", name="bare")
    eventually(lambda: {p.part for p in parts_of(child)} == {"bare/server", "bare/engine"})


def test_stop_ends_the_whole_tree_also_what_ignores_the_interrupt(start, monkeypatch):
    monkeypatch.setattr("serve_app.compare.processes._STOP_TIMEOUT_S", 0.5)
    child = start("trap '' INT; (setsid sleep 60) & (setsid sleep 60) & wait")
    eventually(lambda: len(child.family()) >= 3)
    family = child.family()
    child.stop()
    assert all(map(ended, family))
    child.stop()


def test_an_orphan_that_was_seen_once_is_ended_too(start):
    child = start("(setsid sleep 60) & sleep 0.5")
    eventually(lambda: len(child.family()) >= 2)
    family = child.family()
    eventually(lambda: not psutil.pid_exists(child.pid) or not child.family()[1:])
    child.stop()
    assert all(map(ended, family))


def test_a_second_ctrl_c_does_not_leave_a_half_stopped_tree(start, monkeypatch):
    monkeypatch.setattr("serve_app.compare.processes._STOP_TIMEOUT_S", 0.6)
    child = start("trap '' INT; sleep 60 & wait")
    eventually(lambda: len(child.family()) >= 2)
    family = child.family()
    impatient = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    impatient.start()
    child.stop()
    impatient.join()
    assert all(map(ended, family))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ended_is_not_said_of_the_living(start):
    child = start(IDLE)
    assert not ended(child.family()[0])


def test_leaving_by_an_exception_stops_the_child(start):
    child = start(IDLE)
    with pytest.raises(KeyboardInterrupt), child:
        raise KeyboardInterrupt
    assert not psutil.pid_exists(child.pid)


def test_waiting_for_a_child_that_ends_tells_its_last_words(start):
    child = start("echo the reason; exit 3")
    with pytest.raises(EngineError, match=r"(?s)ended with status 3.*the reason"):
        wait_until(child, 10.0, lambda: False)


def test_waiting_has_an_end(start):
    with pytest.raises(EngineError, match="not ready after 0 s"):
        wait_until(start(IDLE), 0.1, lambda: False)


def test_the_probe_meters_replicas_that_come_and_go(start, tmp_path):
    """One busy replica, a second idle one for a while: joules and replica-seconds of both."""
    go, leave = tmp_path / "go", tmp_path / "leave"
    until = "while [ ! -e {} ]; do sleep 0.02; done"
    second = titled('"ray::ServeReplica:stock:LLMServer:n"', f"({until.format(leave)})")
    ingress = titled('"ray::ServeReplica:stock:OpenAiIngress"', IDLE)
    other = titled('"ray::ServeReplica:ours:EnergyLLMServer:m"', IDLE)
    child = start(f"{titled(REPLICA, BUSY)} {ingress} {other} {until.format(go)}; {second} wait")

    def count(app):
        return len(list(replica_processes(child, app)))

    eventually(lambda: (count("stock"), count("ours")) == (1, 1))
    probe = ReplicaProbe(
        child, "stock", EstimateSettings(watts_per_busy_core=100.0, idle_watts=100.0), period_s=0.05
    )
    watch = CpuWatch([child])
    started_s = time.monotonic()
    probe.start()
    go.touch()
    eventually(lambda: count("stock") == 2)
    second_s = time.monotonic()
    time.sleep(0.6)
    leave.touch()
    eventually(lambda: count("stock") == 1)
    second_s = time.monotonic() - second_s
    reading = probe.stop()
    wall_s = time.monotonic() - started_s
    assert (reading.min_replicas, reading.max_replicas) == (1, 2)
    assert reading.replica_seconds == pytest.approx(wall_s + second_s, abs=0.5)
    busy_joules = 100.0 * watch.spent()["stock/server"]
    idle_joules = 100.0 * reading.replica_seconds
    assert reading.joules == pytest.approx(busy_joules + idle_joules, rel=0.1, abs=15.0)


def test_a_probe_that_sees_no_replica_has_no_joules(start):
    probe = ReplicaProbe(start(IDLE), "stock", EstimateSettings(), period_s=0.05)
    probe.start()
    reading = probe.stop()
    assert reading.joules is None
    assert reading.replica_seconds == 0.0
