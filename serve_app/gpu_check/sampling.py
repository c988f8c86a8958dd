"""Samples of counter and power of each GPU, taken while the load changes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import MeterError
from serve_app.gpu_check.gpus import Gpu, ReadOnlyNvml

Floats = NDArray[np.float64]


class Sample(NamedTuple):
    """One reading of one GPU. `time_s`: monotonic; NaN for what could not be read."""

    time_s: float
    phase: str
    joules: float
    watts: float
    instant_watts: float


@dataclass(frozen=True, slots=True)
class Series:
    """All samples of one GPU, in order of time: one array per column. `phases`: names."""

    time_s: Floats
    phases: NDArray[np.str_]
    joules: Floats
    watts: Floats
    instant_watts: Floats

    @classmethod
    def of(cls, samples: list[Sample]) -> Series:
        """Return the samples as columns."""
        times, phases, *values = zip(*samples, strict=True) if samples else ((),) * 5
        columns = [np.asarray(value, dtype=np.float64) for value in values]
        return cls(np.asarray(times, dtype=np.float64), np.asarray(phases, dtype=str), *columns)

    def during(self, *names: str) -> Series:
        """Return the samples of some phases."""
        kept = np.isin(self.phases, names)
        return Series(
            self.time_s[kept],
            self.phases[kept],
            self.joules[kept],
            self.watts[kept],
            self.instant_watts[kept],
        )


class Clock(Protocol):
    """Monotonic seconds, and a way to let them pass."""

    def now_s(self) -> float:
        """Return the time."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return when that time has passed."""
        ...


class SystemClock:
    """The machine's own."""

    def now_s(self) -> float:
        """Return time.monotonic."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class Sampler:
    """Reads every GPU each `period_s`, for as long as it is told to.

    A GPU that fails keeps its place: its values are NaN, and `faults` has its last reason.
    """

    def __init__(self, nvml: ReadOnlyNvml, gpus: list[Gpu], period_s: float, clock: Clock) -> None:
        self.clock = clock
        self.faults: dict[str, str] = {}
        self._nvml = nvml
        self._gpus = gpus
        self._period_s = period_s
        self._samples: dict[str, list[Sample]] = {gpu.uuid: [] for gpu in gpus}

    def sample(self, phase: str, seconds: float) -> None:
        """Sample for a while under the name `phase`."""
        due_s = self.clock.now_s()
        end_s = due_s + seconds
        while (now_s := self.clock.now_s()) < end_s:
            for gpu in self._gpus:
                self._samples[gpu.uuid].append(self._read(gpu, phase))
            due_s = max(due_s + self._period_s, now_s)
            left_s = min(due_s, end_s) - self.clock.now_s()
            if left_s > 0.0:
                self.clock.sleep(left_s)

    def _read(self, gpu: Gpu, phase: str) -> Sample:
        joules = watts = instant = math.nan
        time_s = self.clock.now_s()
        try:
            if gpu.has_counter:
                raw = self._nvml.read("nvmlDeviceGetTotalEnergyConsumption", gpu.handle)
                joules, time_s = raw * 1e-3, self.clock.now_s()
            watts = self._nvml.read("nvmlDeviceGetPowerUsage", gpu.handle) * 1e-3
            if gpu.has_instant:
                milliwatts = self._nvml.instant_milliwatts(gpu.handle)
                instant = math.nan if milliwatts is None else milliwatts * 1e-3
        except MeterError as error:
            self.faults[gpu.uuid] = str(error)
        return Sample(time_s, phase, joules, watts, instant)

    def series(self) -> dict[str, Series]:
        """Return what was sampled, by GPU."""
        return {uuid: Series.of(samples) for uuid, samples in self._samples.items()}
