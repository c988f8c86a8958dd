"""What is recorded is what is played."""

import json

import pytest
from fake_powercap import FakePowercap
from meter_contract import FakeClock

from policies.core.errors import ConfigError, MeterUnavailable
from serve_app.meters import (
    EnergyMeter,
    MeterOptions,
    RaplBackend,
    RaplSettings,
    ReplayBackend,
    record,
)


@pytest.fixture
def recording(tmp_path):
    """Ten seconds at 100 W; opened 4 s before the recording starts."""
    clock = FakeClock()
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0")
    inner = RaplBackend(RaplSettings(root=tree.root, idle_watts=40.0), clock=clock)
    clock.advance(4.0)
    zone.add(400_000_000)
    backend = record(inner, tmp_path / "run.jsonl", clock=clock)
    for _ in range(10):
        clock.advance(1.0)
        zone.add(100_000_000)
        backend.read(clock())
    backend.close()
    return tmp_path / "run.jsonl"


def test_plays_the_recorded_joules_from_zero_in_present_time(recording):
    clock = FakeClock(now_s=77.0)
    options = MeterOptions(replay_path=recording)
    with EnergyMeter(["replay"], options=options, clock=clock) as meter:
        assert [device.id for device in meter.devices()] == ["cpu:package-0"]
        assert meter.idle_watts() == 40.0
        assert meter.read().devices[0].joules == 0.0
        meter.begin()
        clock.advance(2.9)  # the last reading at or before: 2 s
        reading = meter.read().devices[0]
        assert (reading.joules, reading.draw_watts) == (200.0, 100.0)
        assert reading.last_known_s == 79.0
        clock.advance(4.1)
        assert meter.end().joules == 700.0


def test_the_end_of_the_recording_is_unavailable_with_the_last_value(recording):
    clock = FakeClock(now_s=77.0)
    backend = ReplayBackend(recording, clock=clock)
    clock.advance(11.0)
    reading = backend.read(clock())[0]
    assert (reading.joules, reading.last_known_joules) == (None, 1000.0)
    assert reading.last_known_s == 87.0
    assert "ended" in reading.reason


def test_recording_hands_readings_on_and_is_complete_without_being_closed(tmp_path):
    clock = FakeClock()
    tree = FakePowercap(tmp_path / "p")
    tree.add("intel-rapl:0", "package-0")
    backend = record(
        RaplBackend(RaplSettings(root=tree.root), clock=clock), tmp_path / "r.jsonl", clock=clock
    )
    assert backend.name == "rapl"
    clock.advance(1.0)
    readings = backend.read(clock())
    assert [reading.joules for reading in readings] == [0.0]
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line.get("offset_s") for line in lines] == [None, 0.0, 1.0]
    assert lines[0]["schema_version"] == 1
    backend.close()


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda lines: lines[:1], "header"),
        (lambda lines: ['{"schema_version": 9}', *lines[1:]], ":1: .*schema_version 9"),
        (lambda lines: [*lines[:3], "{half a li"], ":4: "),
        (lambda lines: [*lines[:2], '{"offset_s": 1.0, "devices": []}'], ":3: "),
        (lambda lines: [lines[0], "[]"], ":2: "),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(recording, damage, where):
    lines = recording.read_text().splitlines()
    recording.write_text("\n".join(damage(lines)))
    with pytest.raises(ConfigError, match=where):
        ReplayBackend(recording)


def test_no_file_is_unavailable(tmp_path):
    with pytest.raises(MeterUnavailable, match="replay_path"):
        ReplayBackend(tmp_path / "none.jsonl")
