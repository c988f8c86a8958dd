"""CPU energy without a sensor: busy CPU seconds of a process tree times a figure the user sets.

    joules = CPU seconds x watts_per_busy_core + idle_watts x wall seconds

Always labelled `estimated`. Processes that are not descendants (Ray actors on other workers) are
outside the tree.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from policies.core.errors import ConfigError
from serve_app.meters.base import Anomaly, Device, DeviceKind, DeviceReading, Source
from serve_app.meters.counters import REORDER_S
from serve_app.meters.process_tree import ProcessTree


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimateSettings:
    """Figures of the estimate; both defaults are placeholders for a value of the user's own host.

    `watts_per_busy_core`: package TDP divided by cores, the order of magnitude of a server core at
    load (AMD EPYC 9654: 360 W / 96 cores = 3.75 W; Intel Xeon 8592+: 350 W / 64 = 5.5 W).
    `idle_watts`: the share of the host's idle draw that one replica carries.
    Raises ConfigError for negative or non-finite figures.
    """

    watts_per_busy_core: float = 4.0
    idle_watts: float = 1.0

    def __post_init__(self) -> None:
        for name in ("watts_per_busy_core", "idle_watts"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(
                    f"meter.estimate.{name}: {value!r}; allowed: finite, >= 0 (watts)"
                )


class EstimatedBackend:
    """The estimate for the tree under `pid` (default: this process).

    Raises MeterUnavailable when there is no such process. When the last process of the tree ends,
    the device is lost and keeps what was counted.
    """

    name = "estimated"

    def __init__(
        self,
        settings: EstimateSettings | None = None,
        *,
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or EstimateSettings()
        self._pid = os.getpid() if pid is None else pid
        self._lock = threading.Lock()
        self._tree = ProcessTree(self._pid, clock=clock)
        self._device = Device(
            id="cpu:estimated", kind=DeviceKind.CPU, name=f"CPU of process {self._pid}"
        )
        self._opened_s = self._last_s = clock()
        self._joules = 0.0
        self._clock_steps = 0
        self._draw_watts: float | None = None
        self._lost: str | None = None

    def devices(self) -> tuple[Device, ...]:
        """One CPU device."""
        return (self._device,)

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """Return the estimate at `now_s`."""
        with self._lock:
            if self._lost is None:
                self._advance(now_s)
            lost = self._lost is not None
            return (
                DeviceReading(
                    device=self._device,
                    joules=None if lost else self._joules,
                    source=Source.UNAVAILABLE if lost else Source.ESTIMATED,
                    reason=self._lost,
                    draw_watts=None if lost else self._draw_watts,
                    last_known_joules=self._joules,
                    last_known_s=self._last_s,
                    anomaly_counts={Anomaly.CLOCK: self._clock_steps} if self._clock_steps else {},
                ),
            )

    def _advance(self, now_s: float) -> None:
        cpu_s = self._tree.cpu_seconds()
        if not self._tree.alive:
            self._lost = f"process {self._pid} and its children have ended"
            return
        elapsed_s = now_s - self._last_s
        if elapsed_s < -REORDER_S:
            self._clock_steps += 1
            self._opened_s += elapsed_s  # as long ago as before
        idle_joules = self._settings.idle_watts * max(0.0, now_s - self._opened_s)
        joules = max(self._joules, cpu_s * self._settings.watts_per_busy_core + idle_joules)
        if elapsed_s > 0.0:
            self._draw_watts = (joules - self._joules) / elapsed_s
        if elapsed_s > 0.0 or elapsed_s < -REORDER_S:
            self._last_s = now_s
        self._joules = joules

    def idle_watts(self) -> float | None:
        """Return the configured idle share."""
        return self._settings.idle_watts

    def close(self) -> None:
        """Later readings are unavailable."""
        with self._lock:
            self._lost = self._lost or "the meter is closed"
