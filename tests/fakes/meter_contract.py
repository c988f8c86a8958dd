"""What every meter back-end must do, as checks over one opened back-end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from serve_app.meters import Anomaly, DeviceReading, EnergyMeter, MeterBackend, Source
from serve_app.meters.base import lossy


@dataclass
class FakeClock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Subject:
    """A back-end on a fake clock. `work(seconds)` lets time and energy pass; `lose()` takes the
    first device away for good; `sources` are the labels that its readings may carry."""

    backend: MeterBackend
    clock: FakeClock
    work: Callable[[float], None]
    lose: Callable[[], None]
    sources: frozenset[Source] = field(default_factory=lambda: frozenset({Source.COUNTER}))

    def read(self) -> tuple[DeviceReading, ...]:
        return self.backend.read(self.clock())


def check_devices(subject: Subject) -> None:
    devices = subject.backend.devices()
    assert devices
    assert len({device.id for device in devices}) == len(devices)
    assert tuple(reading.device for reading in subject.read()) == devices
    assert subject.backend.devices() == devices
    idle = subject.backend.idle_watts()
    assert idle is None or idle >= 0.0


def check_cumulative(subject: Subject) -> None:
    before = subject.read()
    assert all(reading.joules is not None and reading.joules < 1.0 for reading in before)
    for _ in range(5):
        subject.work(1.0)
        after = subject.read()
        for old, new in zip(before, after, strict=True):
            assert new.joules is not None
            assert old.joules is not None
            assert new.joules > old.joules
            assert new.source in subject.sources
            assert new.reason is None
            assert (new.last_known_joules, new.last_known_s) == (new.joules, subject.clock())
            assert (new.anomalies, new.anomaly_counts) == (0, {})
        before = after


def check_reading_again_adds_nothing(subject: Subject) -> None:
    subject.work(1.0)
    first = subject.read()[0].joules
    for _ in range(50):
        again = subject.read()[0].joules
    assert first is not None
    assert again is not None
    assert again - first < 0.5  # no time has passed; the estimate sees the CPU time of reading


def check_loss_keeps_the_floor(subject: Subject) -> None:
    subject.work(1.0)
    last_good = subject.read()[0]
    subject.lose()
    for _ in range(3):
        reading = subject.read()[0]
        assert reading.joules is None
        assert reading.draw_watts is None
        assert reading.source is Source.UNAVAILABLE
        assert reading.reason
        assert reading.last_known_joules == last_good.joules
        assert reading.last_known_s == last_good.last_known_s
        assert reading.anomalies == lossy(reading.anomaly_counts)
        subject.clock.advance(1.0)


def check_loss_inside_a_window(subject: Subject) -> None:
    meter = EnergyMeter([subject.backend], clock=subject.clock)
    meter.begin()
    subject.work(1.0)
    before = meter.read().devices[0].joules
    subject.lose()
    subject.clock.advance(1.0)
    result = meter.end()
    lost = result.devices[0]
    assert before is not None
    assert lost.joules == before > 0.0
    assert 0.0 < lost.covered_s < result.duration_s
    assert result.coverage_ratio < 1.0
    assert lost.device.id in result.unavailable
    meter.begin()
    subject.clock.advance(1.0)
    assert meter.end().joules_by_device[lost.device.id] is None


def check_window(subject: Subject) -> None:
    meter = EnergyMeter([subject.backend], clock=subject.clock)
    meter.begin()
    subject.work(2.0)
    result = meter.end()
    assert result.duration_s == 2.0
    assert result.joules is not None
    assert result.joules > 0.0
    assert result.average_watts == pytest.approx(result.joules / 2.0)
    assert result.source in subject.sources
    assert result.coverage_ratio == 1.0
    assert result.unavailable == {}
    assert sum(result.joules_by_device.values()) == pytest.approx(result.joules)
    assert sum(result.joules_by_kind.values()) == pytest.approx(result.joules)


def check_a_clock_that_steps_back(subject: Subject) -> None:
    subject.work(1.0)
    before = subject.read()[0].joules
    subject.clock.advance(-5.0)
    first = subject.read()[0]
    assert first.joules == pytest.approx(before, abs=0.5)  # the estimate sees its own CPU time
    assert first.joules >= before
    last = first.joules
    for _ in range(3):
        subject.work(1.0)
        reading = subject.read()[0]
        assert reading.joules >= last
        last = reading.joules
    assert last > first.joules
    assert last - first.joules < 3.5 * 1000.0
    assert reading.anomaly_counts[Anomaly.CLOCK] == 1
    assert reading.last_known_s == subject.clock()


def check_a_reader_that_was_held_up(subject: Subject) -> None:
    subject.work(1.0)
    before = subject.read()
    late = subject.backend.read(subject.clock() - 0.01)  # it took its time before the one above
    subject.work(1.0)
    after = subject.read()
    for old, new, newest in zip(before, late, after, strict=True):
        assert old.joules <= new.joules < newest.joules
        assert newest.anomaly_counts == {}


def check_close(subject: Subject) -> None:
    subject.work(1.0)
    last_good = subject.read()[0].joules
    subject.backend.close()
    subject.backend.close()
    reading = subject.read()[0]
    assert reading.joules is None
    assert reading.reason
    assert reading.last_known_joules == last_good


def check_threads(subject: Subject) -> None:
    errors: list[Exception] = []

    def hammer() -> None:
        try:
            last = 0.0
            for _ in range(100):
                joules = subject.read()[0].joules
                assert joules is not None
                assert joules >= last
                last = joules
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        subject.work(0.01)
    for thread in threads:
        thread.join()
    assert errors == []


CHECKS = (
    check_devices,
    check_cumulative,
    check_reading_again_adds_nothing,
    check_loss_keeps_the_floor,
    check_loss_inside_a_window,
    check_window,
    check_a_clock_that_steps_back,
    check_a_reader_that_was_held_up,
    check_close,
    check_threads,
)
