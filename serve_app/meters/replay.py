"""Recording any back-end to JSONL, and playing such a file as a back-end of its own.

Line 1: `{"schema_version": 1, "backend", "idle_watts", "devices": [{"id", "kind", "name"}]}`. Every
further line is one reading: `{"offset_s", "devices": [[joules, source, reason, draw_watts,
last_known_joules, last_known_s, anomalies], ...]}`, devices in the order of line 1, times counted
from the first reading.
"""

from __future__ import annotations

import bisect
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from policies.core.errors import ConfigError, MeterUnavailable
from serve_app.meters.base import Device, DeviceKind, DeviceReading, MeterBackend, Source

SCHEMA_VERSION = 1
_T = TypeVar("_T")
_FIELDS = (
    "joules",
    "source",
    "reason",
    "draw_watts",
    "last_known_joules",
    "last_known_s",
    "anomalies",
)


class RecordingBackend:
    """A back-end that writes every reading of `inner` to `path` and hands it on unchanged.

    One line per reading, flushed, so that a crash loses at most the line being written. Closing it
    closes `inner`.
    """

    def __init__(self, inner: MeterBackend, path: Path, *, now_s: float) -> None:
        self.name = inner.name
        self._inner = inner
        self._lock = threading.Lock()
        self._opened_s = now_s
        self._file = path.open("w", encoding="utf-8")
        header = {
            "schema_version": SCHEMA_VERSION,
            "backend": inner.name,
            "idle_watts": inner.idle_watts(),
            "devices": [{"id": d.id, "kind": d.kind, "name": d.name} for d in inner.devices()],
        }
        self._write(header)
        self.read(now_s)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def devices(self) -> tuple[Device, ...]:
        """Those of the recorded back-end."""
        return self._inner.devices()

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """Return the recorded back-end's reading, written down."""
        with self._lock:
            readings = self._inner.read(now_s)
            if not self._file.closed:
                rows = [[getattr(self._relative(r), field) for field in _FIELDS] for r in readings]
                self._write({"offset_s": now_s - self._opened_s, "devices": rows})
            return readings

    def _relative(self, reading: DeviceReading) -> DeviceReading:
        if reading.last_known_s is None:
            return reading
        return replace(reading, last_known_s=reading.last_known_s - self._opened_s)

    def idle_watts(self) -> float | None:
        """Return that of the recorded back-end."""
        return self._inner.idle_watts()

    def close(self) -> None:
        """Close the file and the recorded back-end. May be called twice."""
        with self._lock:
            self._file.close()
        self._inner.close()


def record(
    backend: MeterBackend, path: str | Path, *, clock: Callable[[], float] = time.monotonic
) -> RecordingBackend:
    """`backend`, with every reading also written to `path` (an existing file is replaced)."""
    return RecordingBackend(backend, Path(path), now_s=clock())


@dataclass(frozen=True, slots=True)
class _Recording:
    backend: str
    idle_watts: float | None
    devices: tuple[Device, ...]
    offsets_s: list[float]
    readings: list[tuple[DeviceReading, ...]]


class ReplayBackend:
    """Plays a recording from now on.

    Each reading is the last one recorded at or before that offset, never one in between. After the
    end the devices are unavailable and keep their last value. Raises MeterUnavailable if there is
    no such file, ConfigError if it is no recording.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._recording = _load(self._path)
        self._opened_s = clock()
        self._closed = False
        self.name = "replay"

    def devices(self) -> tuple[Device, ...]:
        """Return the recorded devices."""
        return self._recording.devices

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """Return what was recorded at the same offset from the opening."""
        recording = self._recording
        offset_s = max(0.0, now_s - self._opened_s)
        index = max(0, bisect.bisect_right(recording.offsets_s, offset_s) - 1)
        over = offset_s > recording.offsets_s[-1]
        reason = f"the recording {self._path.name} has ended" if over else None
        reason = "the meter is closed" if self._closed else reason
        first = recording.readings[0]
        return tuple(
            self._play(reading, base.last_known_joules or 0.0, reason)
            for reading, base in zip(recording.readings[index], first, strict=True)
        )

    def _play(self, reading: DeviceReading, base: float, reason: str | None) -> DeviceReading:
        """Return the recorded reading in present time, counted from the recording's start."""
        known, known_s = reading.last_known_joules, reading.last_known_s
        gone = reason is not None
        return replace(
            reading,
            joules=None if gone or reading.joules is None else reading.joules - base,
            source=Source.UNAVAILABLE if gone else reading.source,
            reason=reason or reading.reason,
            draw_watts=None if gone else reading.draw_watts,
            last_known_joules=None if known is None else known - base,
            last_known_s=None if known_s is None else known_s + self._opened_s,
        )

    def idle_watts(self) -> float | None:
        """Return the recorded back-end's baseline."""
        return self._recording.idle_watts

    def close(self) -> None:
        """Later readings are unavailable."""
        self._closed = True


def _load(path: Path) -> _Recording:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MeterUnavailable(f"meter.replay_path: cannot read {path}: {error}") from error
    if len(lines) < 2:
        raise ConfigError(f"{path}: not a meter recording: a header and one reading are needed")
    backend, idle_watts, devices = _parse(path, 1, lines[0], _parse_header)
    offsets_s: list[float] = []
    readings: list[tuple[DeviceReading, ...]] = []
    for number, line in enumerate(lines[1:], start=2):
        offset_s, reading = _parse(path, number, line, lambda row: _parse_row(devices, row))
        offsets_s.append(offset_s)
        readings.append(reading)
    return _Recording(backend, idle_watts, devices, offsets_s, readings)


def _parse(path: Path, number: int, line: str, parse: Callable[[dict[str, Any]], _T]) -> _T:
    """Return one parsed line; ConfigError names file and line where it is malformed."""
    try:
        return parse(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}:{number}: not a meter recording: {error!r}") from error


def _parse_header(row: dict[str, Any]) -> tuple[str, float | None, tuple[Device, ...]]:
    if row["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version {row['schema_version']}, allowed: {SCHEMA_VERSION}")
    devices = tuple(
        Device(id=d["id"], kind=DeviceKind(d["kind"]), name=d["name"]) for d in row["devices"]
    )
    return row["backend"], row["idle_watts"], devices


def _parse_row(
    devices: tuple[Device, ...], row: dict[str, Any]
) -> tuple[float, tuple[DeviceReading, ...]]:
    readings = []
    for device, values in zip(devices, row["devices"], strict=True):
        fields = dict(zip(_FIELDS, values, strict=True))
        fields["source"] = Source(fields["source"])
        readings.append(DeviceReading(device=device, **fields))
    return float(row["offset_s"]), tuple(readings)
