"""The file format of a meter recording, and the back-end that writes one.

JSONL. Line 1: `{"schema_version": 2, "recording", "part", "backend", "idle_watts", "devices":
[{"id", "kind", "name"}]}`. Every further line is one reading: `{"offset_s", "devices": [[...],
...]}` with the values of `FIELDS` for each device of line 1; times count from the first reading.

A full file is rotated: `x.jsonl` becomes `x.jsonl.1`, that `x.jsonl.2` and so on, the oldest is
removed. Every part has a header with the recording's id, so that parts of another recording under
the same name are not taken for its own.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from policies.core.errors import ConfigError
from serve_app.meters.base import Device, DeviceReading, MeterBackend

SCHEMA_VERSION = 2
FIELDS_V1 = (
    "joules",
    "source",
    "reason",
    "draw_watts",
    "last_known_joules",
    "last_known_s",
    "anomalies",
)
FIELDS = (
    *FIELDS_V1,
    "anomaly_counts",
    "whole_joules",
    "averaged_s",
    "cross_check_ratio",
    "caveat",
)
FIELDS_OF = {1: FIELDS_V1, 2: FIELDS}
log = logging.getLogger(__name__)


def part_path(path: Path, age: int) -> Path:
    """Return where the part that has been rotated `age` times stands."""
    return path if age == 0 else path.with_name(f"{path.name}.{age}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """A file is rotated when it has grown to `max_bytes`; `keep` older ones stay."""

    max_bytes: int = 64 * 2**20
    keep: int = 4

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.keep < 0:
            raise ConfigError(f"{self}; allowed: max_bytes >= 1, keep >= 0")


class RecordingBackend:
    """A back-end that writes every reading of `inner` to `path` and hands it on unchanged.

    One line per reading, flushed, so that a crash loses at most the line being written. A disk that
    refuses ends the recording, not the metering: `failure` says why. Closing it closes `inner`.
    """

    def __init__(
        self, inner: MeterBackend, path: Path, *, now_s: float, rotation: Rotation | None = None
    ) -> None:
        self.name = inner.name
        self.failure: str | None = None
        self._inner = inner
        self._path = path
        self._rotation = rotation or Rotation()
        self._lock = threading.Lock()
        self._opened_s = now_s
        self._recording = uuid.uuid4().hex
        self._part = 0
        for age in range(1, self._rotation.keep + 1):
            part_path(path, age).unlink(missing_ok=True)  # of an older recording
        self._file = self._open()
        self.read(now_s)

    def _open(self) -> TextIO:
        inner = self._inner
        file = self._path.open("w", encoding="utf-8")
        header = {
            "schema_version": SCHEMA_VERSION,
            "recording": self._recording,
            "part": self._part,
            "backend": inner.name,
            "idle_watts": inner.idle_watts(),
            "devices": [{"id": d.id, "kind": d.kind, "name": d.name} for d in inner.devices()],
        }
        _write(file, header)
        return file

    def devices(self) -> tuple[Device, ...]:
        """Those of the recorded back-end."""
        return self._inner.devices()

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """Return the recorded back-end's reading, written down."""
        with self._lock:
            readings = self._inner.read(now_s)
            if not self._file.closed:
                self._record(readings, now_s)
            return readings

    def _record(self, readings: tuple[DeviceReading, ...], now_s: float) -> None:
        rows = [[getattr(self._relative(one), name) for name in FIELDS] for one in readings]
        try:
            _write(self._file, {"offset_s": now_s - self._opened_s, "devices": rows})
            if self._file.tell() >= self._rotation.max_bytes:
                self._rotate()
        except OSError as error:
            self.failure = f"{self._path}: {error}"
            log.warning("recording ends: %s", self.failure)
            _close(self._file)

    def _rotate(self) -> None:
        self._file.close()
        keep = self._rotation.keep
        for age in reversed(range(keep)):
            older = part_path(self._path, age)
            if older.exists():
                older.replace(part_path(self._path, age + 1))
        self._part += 1
        self._file = self._open()

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
            _close(self._file)
        self._inner.close()


def record(
    backend: MeterBackend,
    path: str | Path,
    *,
    rotation: Rotation | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RecordingBackend:
    """`backend`, with every reading also written to `path` (an existing recording is replaced)."""
    return RecordingBackend(backend, Path(path), now_s=clock(), rotation=rotation)


def _write(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def _close(file: TextIO) -> None:
    """Close a file whose last write may still be refused."""
    try:
        file.close()
    except OSError as error:
        log.debug("closing a recording: %s", error)
