"""The same energy estimate for any system, from outside: over the process trees of its replicas."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from itertools import pairwise

import psutil

from policies.core.errors import MeterUnavailable
from serve_app.compare.processes import Child, replica_processes
from serve_app.meters import EstimatedBackend, EstimateSettings

_PERIOD_S = 1.0
_JOIN_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeReading:
    """A run seen from outside. `joules`: estimated, None where no replica was ever seen.

    `replica_seconds`: integral of the number of replica processes, starting and draining ones
    included. What a replica used in the second before it was first seen is missing.
    """

    joules: float | None
    replica_seconds: float
    min_replicas: int
    max_replicas: int
    samples: tuple[tuple[float, int], ...]


class ReplicaProbe:
    """Watches the replicas of one application in a thread, from `start` to `stop`."""

    def __init__(
        self, child: Child, app: str, settings: EstimateSettings, period_s: float = _PERIOD_S
    ) -> None:
        self._child = child
        self._app = app
        self._settings = settings
        self._period_s = period_s
        self._meters: dict[psutil.Process, EstimatedBackend] = {}
        self._joules: dict[psutil.Process, float] = {}
        self._samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="replica-probe", daemon=True)
        self._start_s = 0.0

    def start(self) -> None:
        """Take the first sample and go on once per period."""
        self._start_s = time.monotonic()
        self._sample()
        self._thread.start()

    def stop(self) -> ProbeReading:
        """Take the last sample and return what was seen."""
        self._ended.set()
        self._thread.join(_JOIN_S)
        self._sample()
        counts = [count for _, count in self._samples]
        return ProbeReading(
            joules=sum(self._joules.values()) if self._joules else None,
            replica_seconds=_integral(self._samples),
            min_replicas=min(counts),
            max_replicas=max(counts),
            samples=tuple(self._samples),
        )

    def _watch(self) -> None:
        while not self._ended.wait(self._period_s):
            self._sample()

    def _sample(self) -> None:
        alive = set(replica_processes(self._child, self._app))
        for process in alive - self._meters.keys():
            with contextlib.suppress(MeterUnavailable):
                self._meters[process] = EstimatedBackend(self._settings, pid=process.pid)
        now_s = time.monotonic()
        for process, meter in self._meters.items():
            (reading,) = meter.read(now_s)
            known = reading.joules if reading.joules is not None else reading.last_known_joules
            self._joules[process] = known or 0.0
        self._samples.append((now_s - self._start_s, len(alive)))


def _integral(samples: list[tuple[float, int]]) -> float:
    """Return the integral of the count over the samples; a count holds to the next sample."""
    return sum(count * (end_s - start_s) for (start_s, count), (end_s, _) in pairwise(samples))
