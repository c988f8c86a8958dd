"""Playing a meter recording as a back-end of its own. The format stands in `recording.py`."""

from __future__ import annotations

import bisect
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError, MeterUnavailable
from serve_app.meters.base import Anomaly, Device, DeviceKind, DeviceReading, Source
from serve_app.meters.counters import REORDER_S
from serve_app.meters.recording import FIELDS_OF, part_path


@dataclass(slots=True)
class _Recording:
    """The parts of one recording joined. `offsets_s` never decreases."""

    idle_watts: float | None
    devices: tuple[Device, ...]
    offsets_s: list[float] = field(default_factory=list)
    readings: list[tuple[DeviceReading, ...]] = field(default_factory=list)

    def bases(self) -> tuple[DeviceReading, ...]:
        """Return each device's first reading that knows joules, else its first one."""
        return tuple(
            next((r for r in series if r.last_known_joules is not None), series[0])
            for series in zip(*self.readings, strict=True)
        )


class ReplayBackend:
    """Plays a recording from now on, rotated parts included.

    Each reading is the last one recorded at or before that offset, never one in between. After the
    end the devices are unavailable and keep their last value. A last line that a crash cut off is
    left out. Raises MeterUnavailable if there is no such file, ConfigError if it is no recording.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = "replay"
        self._path = Path(path)
        self._recording = recording = _load(self._path)
        self._bases = recording.bases()
        self._start_s = recording.offsets_s[0]  # not 0 where the oldest parts are gone
        self._lock = threading.Lock()
        self._opened_s = self._last_s = clock()
        self._clock_steps = 0
        self._closed = False

    def devices(self) -> tuple[Device, ...]:
        """Return the recorded devices."""
        return self._recording.devices

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """Return what was recorded at the same offset from the opening."""
        with self._lock:
            offset_s = self._offset(now_s)
        recording = self._recording
        index = max(0, bisect.bisect_right(recording.offsets_s, offset_s) - 1)
        over = offset_s > recording.offsets_s[-1]
        reason = f"the recording {self._path.name} has ended" if over else None
        reason = "the meter is closed" if self._closed else reason
        return tuple(
            self._play(reading, base, reason)
            for reading, base in zip(recording.readings[index], self._bases, strict=True)
        )

    def _offset(self, now_s: float) -> float:
        """Return where in the recording it is; a clock that steps back does not play it again."""
        elapsed_s = now_s - self._last_s
        if elapsed_s < -REORDER_S:
            self._clock_steps += 1
            self._opened_s += elapsed_s
            self._last_s = now_s
        self._last_s = max(self._last_s, now_s)
        return self._start_s + max(0.0, self._last_s - self._opened_s)

    def _play(
        self, reading: DeviceReading, base: DeviceReading, reason: str | None
    ) -> DeviceReading:
        """Return the recorded reading in present time, counted from the recording's start."""
        known, known_s = reading.last_known_joules, reading.last_known_s
        gone = reason is not None
        base_joules = base.last_known_joules or 0.0
        counts = Counter(reading.anomaly_counts)
        counts.subtract(base.anomaly_counts)
        counts[Anomaly.CLOCK] += self._clock_steps
        return replace(
            reading,
            joules=None if gone or reading.joules is None else reading.joules - base_joules,
            source=Source.UNAVAILABLE if gone else reading.source,
            reason=reason or reading.reason,
            draw_watts=None if gone else reading.draw_watts,
            last_known_joules=None if known is None else known - base_joules,
            last_known_s=None if known_s is None else known_s - self._start_s + self._opened_s,
            anomalies=max(0, reading.anomalies - base.anomalies),
            anomaly_counts=dict(+counts),
            whole_joules=(
                None
                if reading.whole_joules is None
                else reading.whole_joules - (base.whole_joules or 0.0)
            ),
        )

    def idle_watts(self) -> float | None:
        """Return the recorded back-end's baseline."""
        return self._recording.idle_watts

    def close(self) -> None:
        """Later readings are unavailable."""
        self._closed = True


def _load(path: Path) -> _Recording:
    """Return the recording that ends in `path`, its parts joined, oldest first."""
    # A crash between two renames leaves no file under the plain name: the newest is then `.1`.
    first = 0 if path.exists() else 1
    parts = list(takewhile(Path.exists, (part_path(path, age) for age in count(first))))
    if not parts:
        raise MeterUnavailable(f"meter.replay_path: cannot read {path}: no such file")
    recording: _Recording | None = None
    newest: tuple[Any, Any] | None = None
    batches: list[tuple[Path, int, list[str]]] = []
    for part in parts:
        lines = _lines(part, newest=newest is None)
        if not lines and part is not parts[-1]:
            continue  # cut off before its header was written
        header = _parse(part, 1, lines[0] if lines else "", _header)
        if newest is not None and (header["recording"], header["part"] + 1) != newest:
            break
        newest = (header["recording"], header["part"])
        recording = recording or _Recording(header["idle_watts"], header["devices"])
        batches.append((part, header["schema_version"], lines))
    assert recording is not None
    for part, version, lines in reversed(batches):
        _append(recording, part, version, lines)
    if not recording.readings:
        raise ConfigError(f"{path}: not a meter recording: a header and one reading are needed")
    return recording


def _lines(path: Path, *, newest: bool) -> list[str]:
    """Return the file's lines, without a last one that a crash cut off."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise MeterUnavailable(f"meter.replay_path: cannot read {path}: {error}") from error
    lines = text.splitlines()
    if newest and lines and not text.endswith("\n"):
        try:
            json.loads(lines[-1])
        except ValueError:
            lines.pop()
    return lines


def _append(recording: _Recording, path: Path, version: int, lines: list[str]) -> None:
    for number, line in enumerate(lines[1:], start=2):
        offset_s, readings = _parse(
            path, number, line, lambda row: _row(recording.devices, FIELDS_OF[version], row)
        )
        last_s = recording.offsets_s[-1] if recording.offsets_s else offset_s
        recording.offsets_s.append(max(offset_s, last_s))
        recording.readings.append(readings)


def _parse(path: Path, number: int, line: str, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """Return one parsed line; ConfigError names file and line where it is malformed."""
    try:
        return parse(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}:{number}: not a meter recording: {error!r}") from error


def _header(row: dict[str, Any]) -> dict[str, Any]:
    if row["schema_version"] not in FIELDS_OF:
        allowed = ", ".join(map(str, FIELDS_OF))
        raise ValueError(f"schema_version {row['schema_version']}, allowed: {allowed}")
    devices = tuple(
        Device(id=d["id"], kind=DeviceKind(d["kind"]), name=d["name"]) for d in row["devices"]
    )
    part = {"recording": row.get("recording"), "part": int(row.get("part", 0))}
    return {**row, **part, "idle_watts": row["idle_watts"], "devices": devices}


def _row(
    devices: tuple[Device, ...], names: tuple[str, ...], row: dict[str, Any]
) -> tuple[float, tuple[DeviceReading, ...]]:
    readings = []
    for device, values in zip(devices, row["devices"], strict=True):
        fields = dict(zip(names, values, strict=True))
        fields["source"] = Source(fields["source"])
        counts = fields.get("anomaly_counts", {})
        fields["anomaly_counts"] = {Anomaly(kind): number for kind, number in counts.items()}
        readings.append(DeviceReading(device=device, **fields))
    return float(row["offset_s"]), tuple(readings)
