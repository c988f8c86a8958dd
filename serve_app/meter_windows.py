"""From cumulative meter readings to windows: what each kind of device used since the last one."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.meters import DeviceReading, EnergyMeter, Source
from serve_app.meters.base import weakest

# Shorter windows are below what the source resolves.
_MIN_WINDOW_S = {Source.COUNTER: 0.1, Source.INTEGRATED: 0.1, Source.ESTIMATED: 0.02}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterWindow:
    """Joules by kind of device between two readings, all devices of the kind summed.

    `joules`: None for a kind of which no device could be read. `late_joules`: counted by a device
    while it could not be read, told when it came back. `coverage_ratio`: readable devices of all.
    """

    end_s: float
    duration_s: float
    joules: dict[str, float | None]
    late_joules: dict[str, float] = field(default_factory=dict)
    coverage_ratio: float = 0.0


class WindowReader:
    """Reads a meter window by window, device by device: one that is lost never takes back what the
    others used, and never shows as a spike when it returns.

    `sources`: the weakest source of each kind; `unavailable`: why a kind, a device or a back-end
    gives nothing now; `draw_watts`: the mean of the last window by kind.
    """

    def __init__(self, meter: EnergyMeter, start_s: float) -> None:
        self._meter = meter
        self.sources: dict[str, str] = {}
        self.draw_watts: dict[str, float] = {}
        self.lost: dict[str, str] = {}  # kind → its devices that cannot be read now, and why
        self.devices: tuple[DeviceReading, ...] = ()  # as last read
        self.last_close_s = start_s
        self.last_reading_s: float | None = None
        self.min_window_s = _MIN_WINDOW_S[Source.ESTIMATED]
        self._last_joules: dict[str, float] = {}  # by device id, the last readable value
        self._away: set[str] = set()  # ids of devices that could not be read last time

    @property
    def unavailable(self) -> dict[str, str]:
        """Back-ends that could not be opened and devices that cannot be read, with the reason."""
        return {**self._meter.unavailable, **self.lost}

    def next(self) -> MeterWindow:
        """Read now; return what was used since the last call."""
        reading = self._meter.read()
        window = MeterWindow(
            end_s=reading.time_s,
            duration_s=reading.time_s - self.last_close_s,
            joules={},
            coverage_ratio=_readable_ratio(reading.devices),
        )
        for device in reading.devices:
            self._add(device, window)
        self._note(reading.devices)
        self.devices = reading.devices
        for kind, used in window.joules.items():
            if used is None:
                self.draw_watts.pop(kind, None)
            elif window.duration_s > 0.0:
                self.draw_watts[kind] = used / window.duration_s
        if window.coverage_ratio > 0.0:
            self.last_reading_s = reading.time_s
        self.last_close_s = reading.time_s
        return window

    def _add(self, device: DeviceReading, window: MeterWindow) -> None:
        name, kind = device.device.id, device.device.kind.value
        if device.joules is None:
            self._away.add(name)
            window.joules.setdefault(kind, None)
            return
        used = max(0.0, device.joules - self._last_joules.get(name, device.joules))
        self._last_joules[name] = device.joules
        into = window.joules
        if name in self._away:
            self._away.discard(name)
            window.late_joules[kind] = window.late_joules.get(kind, 0.0) + used
            used = 0.0
        into[kind] = (into.get(kind) or 0.0) + used

    def _note(self, devices: tuple[DeviceReading, ...]) -> None:
        sources: dict[str, list[Source]] = {}
        self.lost = {}
        for device in devices:
            kind = device.device.kind.value
            if device.joules is None:
                reason = f"{device.device.id}: {device.reason or 'unavailable'}"
                self.lost[kind] = "; ".join(filter(None, (self.lost.get(kind), reason)))
            else:
                sources.setdefault(kind, []).append(device.source)
                least_s = _MIN_WINDOW_S.get(device.source, 0.0)
                self.min_window_s = max(self.min_window_s, least_s)
        self.sources.update({kind: weakest(found).value for kind, found in sources.items()})


def _readable_ratio(devices: tuple[DeviceReading, ...]) -> float:
    if not devices:
        return 0.0
    return sum(device.joules is not None for device in devices) / len(devices)
