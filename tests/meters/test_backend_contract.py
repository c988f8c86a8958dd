"""The contract over rapl, estimated and replay; nvml and pyrapl run it elsewhere."""

import subprocess
import sys

import pytest
from fake_powercap import FakePowercap
from meter_contract import CHECKS, FakeClock, Subject

from serve_app.meters import (
    EstimatedBackend,
    EstimateSettings,
    ProcessShare,
    RaplBackend,
    RaplSettings,
    ReplayBackend,
    Source,
    record,
)


def _powercap(tmp_path):
    tree = FakePowercap.server(tmp_path / "powercap", sockets=2)
    zones = [zone for name, zone in tree.zones.items() if name.count(":") != 2 or name[-1] == "2"]
    return tree, zones


def _rapl(tmp_path, share="host"):
    clock = FakeClock()
    tree, zones = _powercap(tmp_path)

    def work(seconds):
        clock.advance(seconds)
        for zone in zones:
            zone.add(round(seconds * 100e6))

    settings = RaplSettings(root=tree.root, share=share)
    return Subject(RaplBackend(settings, clock=clock), clock, work, zones[0].file.unlink)


def rapl(tmp_path):
    yield _rapl(tmp_path)


def rapl_shared(tmp_path):
    yield _rapl(tmp_path, ProcessShare(allotted_cores=1.0))


def estimated(tmp_path):
    clock = FakeClock()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)

    def lose():
        child.kill()
        child.wait()

    backend = EstimatedBackend(EstimateSettings(), pid=child.pid, clock=clock)
    sources = frozenset({Source.ESTIMATED})
    yield Subject(backend, clock, clock.advance, lose, sources)
    child.stdin.close()
    lose()


def _replay(tmp_path, good_s):
    """A played recording of `good_s` good seconds and one in which the device was lost."""
    original = _rapl(tmp_path)
    recorder = record(original.backend, tmp_path / "run.jsonl", clock=original.clock)
    for _ in range(good_s):
        original.work(1.0)
        recorder.read(original.clock())
    original.lose()
    original.clock.advance(1.0)
    recorder.read(original.clock())
    recorder.close()
    clock = FakeClock(now_s=5.0)
    backend = ReplayBackend(tmp_path / "run.jsonl", clock=clock)
    return Subject(backend, clock, clock.advance, lambda: clock.advance(1.0))


def replay(tmp_path):
    yield _replay(tmp_path, good_s=10)


def replay_of_a_loss(tmp_path):
    yield _replay(tmp_path, good_s=1)


LOSS_CHECKS = [check for check in CHECKS if "loss" in check.__name__]
OTHER_CHECKS = [check for check in CHECKS if check not in LOSS_CHECKS]
CASES = [
    *((maker, check) for maker in (rapl, rapl_shared, estimated) for check in CHECKS),
    *((replay, check) for check in OTHER_CHECKS),
    *((replay_of_a_loss, check) for check in LOSS_CHECKS),
]


@pytest.mark.parametrize(
    ("maker", "check"), CASES, ids=[f"{m.__name__}-{c.__name__}" for m, c in CASES]
)
def test_contract(maker, check, tmp_path):
    opened = maker(tmp_path)
    subject = next(opened)
    try:
        check(subject)
    finally:
        subject.backend.close()
        list(opened)
