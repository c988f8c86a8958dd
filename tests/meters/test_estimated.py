"""The CPU estimate against real processes that burn real CPU time."""

import os
import select
import subprocess
import sys
import time

import psutil
import pytest
from meter_contract import FakeClock

from policies.core.errors import ConfigError, MeterUnavailable
from serve_app.meters import EstimatedBackend, EstimateSettings
from serve_app.meters.process_tree import ProcessTree

BURN = """
import time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
"""
# Each says when it is up, waits for a line before it works and for another before it ends: no test
# depends on how fast the machine is.
WORKER = BURN + "print('ready', flush=True); input(); burn({seconds}); print('done', flush=True)\n"
WORKER += "input()"
PARENT_OF_SHORT_LIVED = BURN + (
    "import subprocess, sys\nprint('ready', flush=True); input()\n"
    "code = 'import time\\nwhile time.process_time() < 0.25: pass'\n"
    "for _ in range(2): subprocess.run([sys.executable, '-S', '-c', code])\n"
    "print('done', flush=True); input()"
)
# SIGCHLD ignored: the kernel adds the child's time to nobody; waitpid only waits for its end.
PARENT_THAT_NEVER_WAITS = BURN + (
    "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "print('ready', flush=True); input()\n"
    "pid = os.fork()\n"
    "if pid == 0:\n    burn(0.4); print('burnt', flush=True); os.read(0, 1); os._exit(0)\n"
    "try: os.waitpid(pid, 0)\nexcept ChildProcessError: pass\n"
    "print('done', flush=True); input()"
)
PARENT_WITH_OLD_CHILD = BURN + (
    "import os\npid = os.fork()\n"
    "if pid == 0:\n    burn(0.4); os.kill(os.getpid(), 19); os._exit(0)\n"
    "os.waitpid(pid, os.WUNTRACED); print('ready', flush=True); input()\n"
    "os.kill(pid, 18); os.waitpid(pid, 0); print('done', flush=True); input()"
)

# The middle process leaves; the grandchild works as an orphan and ends outside of the tree. The
# root sees its end as the end of file of a pipe.
ROOT_OF_AN_ORPHAN = BURN + (
    "import os\nend, kept = os.pipe()\nmiddle = os.fork()\n"
    "if middle == 0:\n"
    "    me = os.getpid()\n"
    "    if os.fork() == 0:\n"
    "        print('ready', flush=True)\n"
    "        while os.getppid() == me: time.sleep(0.01)\n"
    "        burn(0.4); print('burnt', flush=True); os.read(0, 1); os._exit(0)\n"
    "    os.read(0, 1); os._exit(0)\n"
    "os.close(kept); os.waitpid(middle, 0); os.read(end, 1)\n"
    "print('done', flush=True); os.read(0, 1)"
)

ROOT_WITH_A_SURVIVOR = BURN + (
    "import os\nif os.fork() == 0:\n    time.sleep(60); os._exit(0)\n"
    "print('ready', flush=True); input(); burn(0.4); print('done', flush=True); input()"
)


class Child:
    def __init__(self, code):
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_for(self, word):
        assert self.process.stdout.readline().strip() == word

    def finish(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start():
    children = []

    def make(code):
        children.append(Child(code))
        return children[-1]

    yield make
    for child in children:
        child.finish()


def test_joules_are_cpu_seconds_times_watts_plus_idle(start):
    child = start(WORKER.format(seconds=0.5))
    settings = EstimateSettings(watts_per_busy_core=10.0, idle_watts=2.0)
    child.wait_for("ready")
    begin_s = time.monotonic()
    backend = EstimatedBackend(settings, pid=child.pid)
    child.go()
    child.wait_for("done")
    now_s = time.monotonic()
    joules = backend.read(now_s)[0].joules
    idle = 2.0 * (now_s - begin_s)
    assert joules - idle == pytest.approx(10.0 * 0.5, rel=0.15)
    backend.read(now_s + 1.0)
    assert backend.read(now_s + 2.0)[0].draw_watts == pytest.approx(2.0, abs=0.3)


def test_what_was_used_before_opening_is_left_out(start):
    child = start(WORKER.format(seconds=0.3))
    child.wait_for("ready")
    child.go()
    child.wait_for("done")
    tree = ProcessTree(child.pid)
    assert tree.cpu_seconds() < 0.05


def test_short_lived_children_are_counted_through_their_parent(start):
    child = start(PARENT_OF_SHORT_LIVED)
    child.wait_for("ready")
    tree = ProcessTree(child.pid, refresh_s=1000.0)  # the list never shows them
    child.go()
    child.wait_for("done")
    assert 0.45 < tree.cpu_seconds() < 0.8


def test_a_child_seen_and_then_waited_for_is_counted_once(start):
    child = start(PARENT_OF_SHORT_LIVED)
    child.wait_for("ready")
    tree = ProcessTree(child.pid, refresh_s=0.0)
    child.go()
    last = 0.0
    while child.process.stdout not in _readable(child):
        seconds = tree.cpu_seconds()
        assert seconds >= last - 0.04
        last = seconds
    assert 0.45 < tree.cpu_seconds() < 0.8


def test_a_child_that_nobody_waits_for_keeps_its_seconds(start):
    child = start(PARENT_THAT_NEVER_WAITS)
    child.wait_for("ready")
    tree = ProcessTree(child.pid, refresh_s=0.0)
    child.go()
    child.wait_for("burnt")
    assert tree.cpu_seconds() == pytest.approx(0.4, abs=0.1)
    child.go()
    child.wait_for("done")
    assert psutil.Process(child.pid).children() == []
    assert tree.cpu_seconds() == pytest.approx(0.4, abs=0.1)


def test_an_orphan_stays_in_the_tree_and_keeps_its_seconds(start):
    child = start(ROOT_OF_AN_ORPHAN)
    child.wait_for("ready")
    tree = ProcessTree(child.pid, refresh_s=0.0)
    (middle,) = psutil.Process(child.pid).children()
    (orphan,) = middle.children()
    child.go()
    child.wait_for("burnt")
    assert tree.cpu_seconds() == pytest.approx(0.4, abs=0.1)
    child.go()
    child.wait_for("done")
    orphan.wait(timeout=30)  # until init has reaped it: before, it can still be read
    assert tree.cpu_seconds() == pytest.approx(0.4, abs=0.1)


def test_the_seconds_of_a_root_that_ends_are_kept_while_a_child_lives(start):
    """Its parent, this process, is outside of the tree: nobody in it inherits the time."""
    child = start(ROOT_WITH_A_SURVIVOR)
    child.wait_for("ready")
    tree = ProcessTree(child.pid, refresh_s=0.0)
    (survivor,) = psutil.Process(child.pid).children()
    try:
        child.go()
        child.wait_for("done")
        assert tree.cpu_seconds() == pytest.approx(0.4, abs=0.1)
        child.process.kill()
        child.process.wait()
        assert tree.cpu_seconds() == pytest.approx(0.4, abs=0.1)
        assert tree.alive
    finally:
        survivor.kill()


def test_an_old_child_brings_nothing_of_its_past_to_its_parent(start):
    child = start(PARENT_WITH_OLD_CHILD)
    child.wait_for("ready")
    tree = ProcessTree(child.pid)
    child.go()
    child.wait_for("done")
    times = psutil.Process(child.pid).cpu_times()
    assert times.children_user + times.children_system > 0.3
    assert tree.cpu_seconds() < 0.1


def test_no_such_process_is_unavailable():
    with pytest.raises(MeterUnavailable, match="no process"):
        EstimatedBackend(pid=2**22 + 1)


def test_the_end_of_the_process_is_a_loss_that_keeps_the_count(start):
    clock = FakeClock()
    child = start("input()")
    backend = EstimatedBackend(pid=child.pid, clock=clock)
    clock.advance(5.0)
    counted = backend.read(clock())[0].joules
    assert counted >= 5.0
    child.process.kill()
    child.process.wait()
    clock.advance(1.0)
    reading = backend.read(clock())[0]
    assert (reading.joules, reading.last_known_joules) == (None, counted)
    assert str(child.pid) in reading.reason


def test_a_reading_is_cheap():
    backend = EstimatedBackend(pid=os.getpid())
    costs = []
    for _ in range(100):
        begin_s = time.perf_counter()
        backend.read(time.monotonic())
        costs.append(time.perf_counter() - begin_s)
    assert sorted(costs)[50] < 2e-3


@pytest.mark.parametrize("field", ["watts_per_busy_core", "idle_watts"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_figures_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"meter\.estimate\.{field}"):
        EstimateSettings(**{field: value})


def _readable(child):
    return select.select([child.process.stdout], [], [], 0.02)[0]
