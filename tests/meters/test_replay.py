"""What is recorded is what is played."""

import json
from pathlib import Path

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
    Rotation,
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
    assert lines[0]["schema_version"] == 2
    backend.close()


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda lines: lines[:1], "header"),
        (lambda lines: ['{"schema_version": 9}', *lines[1:]], ":1: .*schema_version 9"),
        (lambda lines: [*lines[:3], "{half a li", *lines[4:]], ":4: "),
        (lambda lines: [*lines[:2], '{"offset_s": 1.0, "devices": []}'], ":3: "),
        (lambda lines: [lines[0], "[]"], ":2: "),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(recording, damage, where):
    lines = recording.read_text().splitlines()
    recording.write_text("\n".join(damage(lines)) + "\n")
    with pytest.raises(ConfigError, match=where):
        ReplayBackend(recording)


def play(path, seconds):
    """Joules after each of `seconds`."""
    clock = FakeClock(now_s=5.0)
    backend = ReplayBackend(path, clock=clock)
    return [backend.read(5.0 + second)[0].joules for second in seconds]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_last_line_that_a_crash_cut_off_is_left_out(recording, cut):
    recording.write_text(recording.read_text()[:-cut])
    last = 1000.0 if cut == 1 else None  # only its line end is missing
    assert play(recording, [9, 10]) == [900.0, last]


def test_a_recording_of_the_first_schema_is_played(recording):
    header, *rows = [json.loads(line) for line in recording.read_text().splitlines()]
    header = {k: v for k, v in header.items() if k not in {"recording", "part"}}
    for row in rows:
        row["devices"] = [values[:7] for values in row["devices"]]
    lines = [json.dumps(line) for line in ({**header, "schema_version": 1}, *rows)]
    recording.write_text("\n".join(lines) + "\n")
    assert play(recording, [0, 4, 10]) == [0.0, 400.0, 1000.0]


def recorded_with_rotation(folder, rotation, seconds=20):
    clock = FakeClock()
    tree = FakePowercap(folder / "p")
    zone = tree.add("intel-rapl:0", "package-0")
    inner = RaplBackend(RaplSettings(root=tree.root), clock=clock)
    backend = record(inner, folder / "r.jsonl", rotation=rotation, clock=clock)
    for _ in range(seconds):
        clock.advance(1.0)
        zone.add(100_000_000)
        backend.read(clock())
    backend.close()
    return folder / "r.jsonl"


def test_rotated_parts_are_played_as_one(tmp_path):
    path = recorded_with_rotation(tmp_path, Rotation(max_bytes=500, keep=50))
    assert len(list(tmp_path.glob("r.jsonl.*"))) > 3
    assert play(path, range(21)) == [100.0 * second for second in range(21)]


def test_the_disk_used_is_bounded_and_the_rest_is_played_from_zero(tmp_path):
    path = recorded_with_rotation(tmp_path, Rotation(max_bytes=500, keep=2))
    parts = sorted(tmp_path.glob("r.jsonl*"))
    assert [part.name for part in parts] == ["r.jsonl", "r.jsonl.1", "r.jsonl.2"]
    assert sum(part.stat().st_size for part in parts) < 3 * 700
    assert ReplayBackend(path, clock=FakeClock(now_s=5.0)).read(5.0)[0].last_known_s == 5.0
    played = [joules for joules in play(path, range(21)) if joules is not None]
    assert 4 < len(played) < 20
    assert played == [100.0 * second for second in range(len(played))]


def test_parts_of_an_older_recording_are_not_taken_for_its_own(tmp_path):
    recorded_with_rotation(tmp_path, Rotation(max_bytes=500, keep=50))
    (tmp_path / "p").rename(tmp_path / "old")
    path = recorded_with_rotation(tmp_path, Rotation(max_bytes=10**6, keep=1), seconds=3)
    assert (tmp_path / "r.jsonl.2").exists()
    assert play(path, range(5)) == [0.0, 100.0, 200.0, 300.0, None]
    (tmp_path / "r.jsonl.2").rename(tmp_path / "r.jsonl.1")  # of the older one, in the next place
    assert play(path, range(5)) == [0.0, 100.0, 200.0, 300.0, None]


def test_a_crash_while_rotating_leaves_a_recording(tmp_path):
    path = recorded_with_rotation(tmp_path, Rotation(max_bytes=500, keep=50))
    whole = play(path, range(21))
    path.rename(tmp_path / "gone")  # renamed, the next one not opened yet
    (tmp_path / "gone").unlink()
    kept = [joules for joules in play(path, range(21)) if joules is not None]
    assert kept == whole[: len(kept)]
    path.write_text("")  # opened, its header not written yet
    assert [j for j in play(path, range(21)) if j is not None] == kept


def test_a_disk_that_refuses_ends_the_recording_and_not_the_metering(tmp_path):
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0")
    clock = FakeClock()
    inner = RaplBackend(RaplSettings(root=tree.root), clock=clock)
    backend = record(inner, tmp_path / "r.jsonl", clock=clock)
    backend._file.close()
    backend._file = Path("/dev/full").open("w")  # noqa: SIM115 - every write to it fails
    for _ in range(3):
        clock.advance(1.0)
        zone.add(5_000_000)
        readings = backend.read(clock())
    assert readings[0].joules == 15.0
    assert "No space left" in backend.failure
    backend.close()


def test_no_file_is_unavailable(tmp_path):
    with pytest.raises(MeterUnavailable, match="replay_path"):
        ReplayBackend(tmp_path / "none.jsonl")
